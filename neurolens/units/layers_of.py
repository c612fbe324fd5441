"""Which layer each unit belongs to, and reductions over the units of each layer.

xarray's groupby would make tens of thousands of dask tasks of these, and sort ``layers.10`` before ``layers.2``.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from neurolens.errors import SchemaError


@dataclass(frozen=True)
class Layers:
    """The layers in order of the forward, and the layer of each unit.

    ``names`` (layer,) and ``codes`` (unit,), numbers into ``names``; every layer has a unit.
    """

    names: tuple[str, ...]
    codes: NDArray[np.int64]

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """How many units each layer has, (layer,)."""
        return np.bincount(self.codes, minlength=len(self.names)).astype(np.int64)

    @cached_property
    def _order(self) -> NDArray[np.int64] | None:
        return None if (np.diff(self.codes) >= 0).all() else np.argsort(self.codes, kind="stable")

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum(self.sizes) - self.sizes

    def total(self, values: Any) -> Any:
        """Sum (…, unit) to (…, layer); float64, or int64 of integers and bools. NaN in a unit is NaN in its layer."""
        dtype = np.float64 if values.dtype.kind == "f" else np.int64
        return np.add.reduceat(self._sorted(values), self._starts, axis=-1, dtype=dtype)

    def mean(self, values: Any) -> Any:
        """Mean over the units of each layer: (…, unit) to (…, layer)."""
        return self.total(values) / self.sizes

    def median(self, values: Any) -> Any:
        """Median over the units of each layer: (…, unit) to (…, layer)."""
        values, stops = self._sorted(values), self._starts + self.sizes
        pieces = [np.median(values[..., low:high], axis=-1) for low, high in zip(self._starts, stops)]
        return np.stack(pieces, axis=-1)

    def _sorted(self, values: Any) -> Any:
        return values if self._order is None else values[..., self._order]


def layers_of(data: xr.Dataset | xr.DataArray) -> Layers:
    """Return the layers of the units of ``data``, in natural order.

    Parameters
    ----------
    data : with coordinate `layer` (unit,), and `layer_index` (unit,) where units do not come in order of their layers
        Without `layer_index`, layers come in order of their first unit.

    Raises
    ------
    SchemaError
        If there is no unit, or no coordinate `layer`, or `layer_index` puts one layer in two places.
    """
    if "unit" not in data.dims or data.sizes["unit"] == 0:
        raise SchemaError(f"found dims {dict(data.sizes)}; at least one unit is needed, along the dim 'unit'")
    if "layer" not in data.coords or data.coords["layer"].dims != ("unit",):
        raise SchemaError(
            "there is no coordinate `layer` along `unit`; add it: units.assign_coords(layer=('unit', names))"
        )
    layer = np.asarray(held(data.coords["layer"]).tolist(), str)  # numpy cannot cast StringDType to a fixed width
    names, first, codes = np.unique(layer, return_index=True, return_inverse=True)
    if "layer_index" in data.coords:
        place = held(data.coords["layer_index"])
        if (place[first][codes] != place).any():
            twice = str(layer[np.argmax(place[first][codes] != place)])
            raise SchemaError(f"`layer_index` gives layer {twice!r} two places; it needs one number per layer")
        order = np.lexsort((first, place[first]))
    else:
        order = np.argsort(first)
    return Layers(tuple(map(str, names[order])), np.argsort(order)[codes].astype(np.int64))


def sizes_of(data: xr.Dataset | xr.DataArray) -> xr.DataArray:
    """Return how many units each layer has: int64 (layer,), in natural order."""
    layers = layers_of(data)
    return xr.DataArray(layers.sizes, dims="layer", coords={"layer": ("layer", _as_coord(layers))})


def held(coord: xr.DataArray) -> Any:
    """Return the values of a small coordinate, which re-chunking a Dataset may have made lazy."""
    return np.asarray(coord.compute(scheduler="synchronous").data)


def whole(array: xr.DataArray, dim: str = "unit") -> xr.DataArray:
    """Chunk a lazy array so that ``dim`` is in one piece and chunks stay of a size that memory holds."""
    if array.chunks is None or len(array.chunksizes.get(dim, ())) <= 1:
        return array
    return in_chunks(array, dim)


def in_chunks(array: xr.DataArray, dim: str) -> xr.DataArray:
    """Chunk a lazy array with ``dim`` in one piece, and its other dims as memory allows."""
    chunks: Any = {other: -1 if other == dim else "auto" for other in array.dims}
    sizes = array.variable.chunk(chunks).chunksizes  # "auto" fails on coordinates that hold text
    return array.chunk(dict(sizes))


def per_layer(array: xr.DataArray, rule: str) -> xr.DataArray:
    """Reduce (…, unit) to (…, layer) by a method of :class:`Layers`: ``total``, ``mean`` or ``median``. Lazy."""
    layers = layers_of(array)
    bare = whole(array).drop_vars([name for name, coord in array.coords.items() if "unit" in coord.dims])
    out: xr.DataArray = xr.apply_ufunc(
        _reduce,
        bare,
        input_core_dims=[["unit"]],
        output_core_dims=[["layer"]],
        kwargs={"layers": layers, "rule": rule},
        dask="parallelized",
        output_dtypes=[np.dtype("float64" if array.dtype.kind == "f" or rule != "total" else "int64")],
        dask_gufunc_kwargs={"output_sizes": {"layer": len(layers.names)}},
    )
    return out.assign_coords(layer=("layer", _as_coord(layers)))


def _as_coord(layers: Layers) -> Any:
    return np.asarray(layers.names, dtype=np.dtypes.StringDType())


def _reduce(values: Any, layers: Layers, rule: str) -> Any:
    return getattr(layers, rule)(values)
