"""Arrays of a group: made, put whole, grown, compared."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import zarr
from numpy.dtypes import StringDType

from neurolens.store.encodings import compressors


def dims_of(array: zarr.Array[Any]) -> tuple[str, ...]:
    """Return the names of an array's dimensions."""
    return tuple(str(dim) for dim in getattr(array.metadata, "dimension_names", None) or ())


def add_array(
    group: zarr.Group,
    name: str,
    dtype: str,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    fill: Any,
    attrs: Mapping[str, str] | None = None,
    *,
    encoding: str | None = None,
) -> zarr.Array[Any]:
    """Create an array, compressed as its dtype and encoding want it."""
    return group.create_array(
        name,
        shape=shape,
        dtype=StringDType() if dtype == "string" else dtype,
        chunks=chunks,
        fill_value=fill,
        dimension_names=dims,
        compressors=compressors(dtype, encoding),
        attributes=dict(attrs or {}),
    )


def put(group: zarr.Group, name: str, values: np.ndarray, dim: str, chunk: int, overwrite: bool = False) -> None:
    """Make a coordinate along one dimension."""
    values = storable(values)
    if overwrite and name in group:
        del group[name]
    dtype = "string" if isinstance(values.dtype, StringDType) else str(values.dtype)
    fill: Any = {"f": np.nan, "b": False, "T": ""}.get(values.dtype.kind, 0)
    array = add_array(group, name, dtype, (dim,), values.shape, (max(chunk, 1),), fill)
    array[:] = values


def grow(arrays: Iterable[zarr.Array[Any]], dim: str, size: int) -> None:
    """Resize those of the arrays that have this dimension."""
    for array in arrays:
        names = dims_of(array)
        if dim in names:
            array.resize(tuple(size if d == dim else n for d, n in zip(names, array.shape, strict=True)))


def holds(group: zarr.Group, name: str, values: np.ndarray) -> bool:
    """Whether a coordinate is stored with exactly these values."""
    array = group.get(name)
    if not isinstance(array, zarr.Array) or array.dtype != values.dtype or array.shape != values.shape:
        return False
    return np.array_equal(np.asarray(array[:]), values, equal_nan=values.dtype.kind == "f")


def overlaid(size: int, held: np.ndarray | None, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return a coordinate: what is stored of it, blank where nothing is, and ``values`` where they are ``known``."""
    blank: Any = {"T": "", "b": False, "f": np.nan}.get(values.dtype.kind, -1)
    out = np.full(size, blank, dtype=values.dtype)
    if held is not None:
        out[: len(held)] = held.astype(values.dtype)
    out[known] = values
    return out


def storable(values: np.ndarray) -> np.ndarray:
    """Return values as they are stored: strings in variable length."""
    values = np.asarray(values)
    return values.astype(StringDType()) if values.dtype.kind in "UOST" else values
