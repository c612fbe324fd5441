"""Rows made whole: what is measured now, beside what the store holds of the row already."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from neurolens import schema
from neurolens.errors import StoreError
from neurolens.rows.holding import AXIS, HELD, held_sets, spread, told_sets
from neurolens.rows.materials import MEASURES, Materials
from neurolens.rows.planning import Row, chosen_samples

if TYPE_CHECKING:
    from neurolens.attribution.sets import UnitSet
    from neurolens.store import LedgerRow, Store

Array = npt.NDArray[Any]


class Completing:
    """One row to be measured: what of it is lacking, and how it is put together with what is held.

    ``given`` is what the measuring module is told; ``told`` what the row's provenance says.
    """

    def __init__(
        self, materials: Materials, row: Row, missing: Sequence[str], entries: Mapping[str, "LedgerRow"], store: "Store"
    ) -> None:
        self._row, self._store, self._cube = row, store, schema.CUBES[materials.cube]
        self._parts = [part for part in missing if part in row.sets]
        self._ids: list[str] = store.axis(materials.cube, AXIS).tolist() if self._parts else []
        self._held = {part: held_sets(entries[part], row.bases[part], self._ids) for part in self._parts}
        self._lacking = sorted(
            {name for part in self._parts for name in row.sets[part] if not self._has(part, name)}, key=self._ids.index
        )
        self.given: dict[str, Any] = {}
        if materials.sets is not None:
            self._sizes = {dim: len(store.axis(materials.cube, dim)) for dim in self._cube.growing}
            self._sizes |= {dim: len(axis) for dim, axis in materials.axes.items() if dim not in self._sizes}
            by_id = {materials.sets.id_of(one): one for one in materials.sets.sets[row.position]}
            if not by_id.keys() >= set(self._lacking):  # planned to be kept, and gone since
                raise StoreError(
                    f"another run has measured {materials.series.dim} {row.position}, block {row.block}, by other "
                    "settings meanwhile, and what the row held is gone; run again"
                )
            asked: list[UnitSet] = [by_id[name] for name in self._lacking]
            self.given = {"sets": asked, "mates": self._sizes["mate"], "chosen": chosen_samples(materials)}
        self.given |= self._needed(materials, missing, entries)

    @property
    def keeping(self) -> frozenset[str]:
        """The parts of which the row holds sets that stay, whatever becomes of those that are lacking."""
        return frozenset(part for part, held in self._held.items() if held)

    @property
    def told(self) -> dict[str, Any]:
        """What the provenance of the row says of the sets that it holds."""
        if not self._parts:
            return {}
        return {HELD: {part: told_sets(self._row.sets[part], self._ids) for part in self._parts}}

    def whole(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Return the row's variables over all sets on the store's axis."""
        out, place = dict(values), {name: at for at, name in enumerate(self._ids)}
        for part in self._parts:
            kept = [place[name] for name in self._row.sets[part] if self._has(part, name)]
            new = {place[name]: at for at, name in enumerate(self._lacking) if not self._has(part, name)}
            names = [variable.name for variable in self._cube.part(part).variables]
            stored = self._store.read_row(self._cube.name, self._row.id, names) if kept else {}
            for variable in self._cube.part(part).variables:
                measured = values.get(variable.name)
                if measured is None and variable.name not in stored:
                    continue  # nothing of it was ever measured: it has no value this time either
                sample = measured if measured is not None else stored[variable.name]
                sizes = {**self._sizes, "sample": sample.shape[0]}
                out[variable.name] = spread(
                    variable,
                    sizes,
                    measured=None if measured is None else (measured, new),
                    stored=(stored[variable.name], kept) if variable.name in stored else None,
                )
        return out

    def _has(self, part: str, name: str) -> bool:
        return self._held[part].get(name) == self._row.sets[part].get(name) is not None

    def _needed(
        self, materials: Materials, missing: Sequence[str], entries: Mapping[str, "LedgerRow"]
    ) -> dict[str, Any]:
        """Return what other parts of the row hold that these are made from, where it is current."""
        needs: Mapping[str, Sequence[str]] = getattr(import_module(MEASURES[materials.cube]), "NEEDS", {})
        names = sorted({name for part in missing for name in needs.get(part, ())})
        of = {self._cube.part_of(name).name for name in names}
        if not names or of & set(missing):
            return {}
        ledger = self._store.ledger(materials.cube)
        if not all(ledger.is_done(*self._row.id, part, self._row.keys[part]) for part in of):
            return {}
        return {"stored": self._store.read_row(self._cube.name, self._row.id, names)}
