"""The sets of units that the rows of attributions are asked of, by checkpoint, and their axis in the store."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from neurolens.attribution.sets import UnitSet

if TYPE_CHECKING:
    from neurolens.store import Axis

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class AskedSets:
    """The sets that each row is asked of, by position in the series; ``note`` says why there are none.

    ``common`` is what the ids of sets have in common, whatever the checkpoint; empty where ids end in the digest.
    """

    sets: Mapping[int, tuple[UnitSet, ...]]
    common: str = ""
    note: str = ""

    def id_of(self, one: UnitSet) -> str:
        """Return the id of a set on the store's axis."""
        return f"{one.name}@{self.common or one.digest}"

    def digests(self, position: int) -> dict[str, str]:
        """Return the digest of each set of a row by its id."""
        return {self.id_of(one): one.digest for one in self.sets[position]}

    def axes(self) -> dict[str, "Axis"]:
        """Return the axis of all sets, with what is known of each, and that of the clusters of a clustering."""
        from neurolens.store import Axis

        found = {self.id_of(one): one for sets in self.sets.values() for one in sets}
        sizes: dict[str, set[int]] = {name: set() for name in found}
        for sets in self.sets.values():
            for one in sets:
                sizes[self.id_of(one)].add(int(one.units.sum()))
        coords: dict[str, Array] = {
            name: np.array([getattr(one, name) for one in found.values()], dtype=np.dtypes.StringDType())
            for name in ("cut", "clustering", "kind", "of")
        }
        coords |= {name: np.array([getattr(one, name) for one in found.values()]) for name in ("cluster", "draw")}
        kept = [size.pop() if len(size) == 1 and found[name].cut else -1 for name, size in sizes.items()]
        coords["kept"] = np.array(kept, dtype=np.int64)
        most = 1 + max((one.cluster for one in found.values()), default=0)
        names = np.array(list(found), dtype=np.dtypes.StringDType())
        return {"map": Axis(names, coords), "mate": Axis(np.arange(max(1, most), dtype=np.int64))}
