"""Reading rows of more than one number per sample or unit: any cells of some slots, and only the chunks that hold them.

A chunk holds one slot. Where uncompressed chunks are files, their bytes are read as they are; else through zarr.
"""

import asyncio
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.sync import sync

from neurolens.store.chunk_files import ChunkFiles
from neurolens.store.chunks import BATCH_BYTES, Columns, Piece, count, is_raw, pieces


def read_grid(
    array: zarr.Array[Any],
    slots: NDArray[np.int64],
    columns: Sequence[Columns],
    out: NDArray[Any],
    into: NDArray[np.int64],
    files: ChunkFiles | None = None,
) -> None:
    """Copy the cells (slots × columns of every further dim) into ``out[into]``.

    Parameters
    ----------
    columns : per dim but the first.
    files : may hold the array's chunks at the snapshot that it was opened at.
    """
    if not len(slots) or not all(count(c) for c in columns):
        return
    if files is None or not is_raw(array):
        _read_through_zarr(array, slots, columns, out, into)
        return
    parts = [list(pieces(c, width)) for c, width in zip(columns, array.chunks[1:])]
    inner = array.chunks[2:]
    for slot, i in zip(slots, into, strict=True):
        for chosen in itertools.product(*parts):
            first, *rest = chosen
            cells = np.empty((first.stop - first.start, *inner), array.dtype)
            start = first.start * math.prod(inner) * array.dtype.itemsize
            if files.read_into(array.path, (int(slot), *(p.chunk for p in chosen)), start, cells):
                whole = [slice(p.start, p.stop) for p in rest]
                found = _cells(cells[(slice(None), *whole)], [p.source for p in chosen])
            else:
                where = [_wanted(p, width) for p, width in zip(chosen, array.chunks[1:])]
                found = np.asarray(array.get_orthogonal_selection((slice(int(slot), int(slot) + 1), *where)))[0]
            out[i][_open([p.target for p in chosen], out.shape[1:])] = found


def compact(columns: Columns) -> Columns:
    """Turn positions that follow each other into a slice, which reads and copies faster."""
    if isinstance(columns, slice) or len(columns) < 2 or not (np.diff(columns) == 1).all():
        return columns
    return slice(int(columns[0]), int(columns[-1]) + 1, 1)


def _read_through_zarr(
    array: zarr.Array[Any],
    slots: NDArray[np.int64],
    columns: Sequence[Columns],
    out: NDArray[Any],
    into: NDArray[np.int64],
) -> None:
    async def gather(batch: NDArray[np.int64]) -> list[Any]:
        gets = [array.async_array.get_orthogonal_selection((slice(int(s), int(s) + 1), *columns)) for s in batch]
        return list(await asyncio.gather(*gets))

    size = max(1, BATCH_BYTES // max(1, math.prod(out.shape[1:]) * out.dtype.itemsize))
    for start in range(0, len(slots), size):
        for i, cells in zip(into[start : start + size], sync(gather(slots[start : start + size])), strict=True):
            out[i] = cells[0]


def _wanted(piece: Piece, width: int) -> Columns:
    """Return the columns of a piece by their place in the array."""
    return np.arange(piece.start, piece.stop)[piece.source] + piece.chunk * width


def _cells(cells: NDArray[Any], sources: Sequence[slice | NDArray[np.int64]]) -> NDArray[Any]:
    """Take along one dim after the other."""
    for axis, source in enumerate(sources):
        cells = cells[(slice(None),) * axis + (source,)]
    return cells


def _open(targets: Sequence[slice | NDArray[np.int64]], shape: Sequence[int]) -> tuple[Any, ...]:
    """Return an index that places along every dim by itself."""
    if sum(not isinstance(t, slice) for t in targets) < 2:
        return tuple(targets)
    return np.ix_(*(np.arange(n)[t] for t, n in zip(targets, shape, strict=True)))
