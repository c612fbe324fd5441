"""The index of units by their layer."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Self, cast

import numpy as np
import pandas as pd
from xarray import Variable
from xarray.core.indexes import Index, PandasIndex
from xarray.core.indexing import IndexSelResult

from neurolens.errors import nearest


class LayerIndex(PandasIndex):
    """A plain index over a coordinate that repeats, which knows whose it is.

    xarray's own takes one label of such a coordinate and refuses a list, and cannot align it. This one selects all
    that carry any of the labels, and aligns by the ids of the units: made with
    ``ds.set_xindex("layer", LayerIndex, units=ds.indexes["unit"])``.
    """

    units: "pd.Index[Any] | None" = None

    @classmethod
    def from_variables(cls, variables: Mapping[Any, Variable], *, options: Mapping[str, Any]) -> Self:
        """Make the index from the one coordinate; the option ``units`` are the ids that it lies along."""
        made = super().from_variables(variables, options={})
        assert isinstance(made, cls)
        made.units = options.get("units")
        return made

    def sel(self, labels: dict[Any, Any], method: Any = None, tolerance: Any = None) -> IndexSelResult:
        """Select by layer: one name or several, in the order given, each with all its units.

        Raises
        ------
        KeyError
            If there is no layer of a name; the nearest are said.
        """
        ((name, wanted),) = labels.items()
        values = np.asarray(wanted)
        if isinstance(wanted, slice) or values.dtype.kind == "b" or values.ndim > 1:
            return super().sel(labels, method, tolerance)
        held = np.asarray(self.index)
        places = []
        for label in values.reshape(-1).tolist():
            at = np.flatnonzero(held == label)
            if not len(at):
                raise KeyError(f"there is no {name} {label!r}; {nearest(str(label), set(held.tolist()))}")
            places.append(at)
        at = np.concatenate(places) if places else np.zeros(0, np.int64)
        if len(at) > 1 and (np.diff(at) == 1).all():
            return IndexSelResult({self.dim: slice(int(at[0]), int(at[-1]) + 1)})
        return IndexSelResult({self.dim: at})

    def equals(self, other: Index, *, exclude: frozenset[Hashable] | None = None) -> bool:
        """Whether both say the same of the same units."""
        if not super().equals(other, exclude=exclude):
            return False
        if not isinstance(other, LayerIndex) or self.units is None or other.units is None:
            return True
        return bool(self.units.equals(other.units))

    def join(self, other: Self, how: str = "inner") -> Self:
        """Join the units, as an index of theirs does, and look up their layers."""
        if self.units is None or other.units is None:
            return super().join(other, how)
        units = self.units.union(other.units) if how == "outer" else self.units.intersection(other.units)
        every = dict(zip(other.units, other.index, strict=True)) | dict(zip(self.units, self.index, strict=True))
        joined = pd.Index([every[unit] for unit in units], dtype=self.index.dtype, name=self.index.name)
        made = self._replace(joined)
        made.units = units
        return made

    def reindex_like(self, other: Self, method: Any = None, tolerance: Any = None) -> dict[Hashable, Any]:
        """Return where the units of another index are in this one; −1: nowhere."""
        if self.units is None or other.units is None:
            return super().reindex_like(other, method, tolerance)
        return PandasIndex(self.units, self.dim).reindex_like(PandasIndex(other.units, self.dim), method, tolerance)

    def isel(self, indexers: Mapping[Any, int | slice | np.ndarray | Variable]) -> Self | None:
        """Take some positions; the units go with them."""
        made = super().isel(indexers)
        if not isinstance(made, type(self)) or made is self or self.units is None:
            return cast("Self | None", made)
        taken = PandasIndex(self.units, self.dim).isel(indexers)
        made.units = None if taken is None else taken.index
        return made

    def roll(self, shifts: Mapping[Any, int]) -> Self:
        """Shift along the dim; the units go with it."""
        made = cast("Self", super().roll(shifts))
        made.units = None if self.units is None else PandasIndex(self.units, self.dim).roll(shifts).index
        return made

    @classmethod
    def concat(cls, indexes: Sequence[Self], dim: Hashable, positions: Iterable[Iterable[int]] | None = None) -> Self:
        """Put indexes one after the other, and their units."""
        made = super().concat(indexes, dim, positions)
        known = [index.units for index in indexes if index.units is not None]
        if indexes and len(known) == len(indexes):
            made.units = PandasIndex.concat([PandasIndex(units, dim) for units in known], dim, positions).index
        return made

    def _replace(self, index: Any, dim: Any = None, coord_dtype: Any = None) -> Self:
        made = cast("Self", super()._replace(index, dim, coord_dtype))  # type: ignore[no-untyped-call]
        made.units = self.units if len(index) == len(self.index) else None  # renamed or copied
        return made
