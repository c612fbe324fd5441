"""The index of units by their layer."""

from typing import Any

import numpy as np
from xarray.core.indexes import PandasIndex
from xarray.core.indexing import IndexSelResult

from neurolens.errors import nearest


class LayerIndex(PandasIndex):
    """A plain index over a coordinate that repeats: a list of labels selects all that carry one of them.

    xarray's own takes one label of such a coordinate, and refuses a list.
    """

    __slots__ = ()

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
