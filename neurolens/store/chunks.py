"""Reading stored chunks: cells of a 2-d array, many chunks at a time, and only the bytes that are needed.

A stored row is one chunk of shape (1, N). Going through an array library costs more per chunk than reading one, so
uncompressed chunks are fetched as bytes.
"""

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import RangeByteRequest
from zarr.codecs import BytesCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

BATCH_BYTES = 16 << 20  # in flight at once

Columns = slice | NDArray[np.int64]
"""A forward slice with known ends, or non-negative positions."""


@dataclass(frozen=True)
class Piece:
    """The columns that fall into one chunk: fetch [start, stop) of it, take ``source``, put it at ``target``."""

    chunk: int
    start: int
    stop: int
    source: slice | NDArray[np.int64]
    target: slice | NDArray[np.int64]


def read(
    array: zarr.Array[Any],
    rows: NDArray[np.int64],
    columns: Columns,
    out: NDArray[Any],
    into: NDArray[np.int64],
) -> None:
    """Copy the cells (rows × columns) of a 2-d array into ``out[into]``; what is not stored is the fill value."""
    if not len(rows) or not out.shape[1]:
        return
    height, width = array.chunks
    if not _is_raw(array):
        fancy = np.arange(array.shape[1])[columns] if isinstance(columns, slice) else columns
        out[into] = array.get_orthogonal_selection((rows, fancy))
        return
    groups, member = np.unique(rows // height, return_inverse=True)
    members = [np.flatnonzero(member == g) for g in range(len(groups))] if height > 1 else []
    for piece in pieces(columns, width):
        whole = height > 1 or 2 * (piece.stop - piece.start) > width
        start, stop = (0, height * width) if whole else (piece.start, piece.stop)
        chunks = groups if height > 1 else rows
        offset = piece.start if whole else 0
        for i, cells in _fetch(array, chunks, piece.chunk, start, stop):
            if height == 1:
                out[into[i], piece.target] = array.fill_value if cells is None else cells[offset:][piece.source]
                continue
            for k in members[i]:  # one row of the tile at a time: no index array of rows × columns
                line = None if cells is None else cells[(rows[k] % height) * width :][:width]
                out[into[k], piece.target] = array.fill_value if line is None else line[offset:][piece.source]


def read_whole(arrays: Mapping[str, zarr.Array[Any]]) -> dict[str, NDArray[Any]]:
    """Read small arrays at once: one by one, each would wait for the event loop anew."""

    async def gather() -> list[Any]:
        return list(await asyncio.gather(*(array.async_array.getitem(...) for array in arrays.values())))

    return dict(zip(arrays, map(np.asarray, sync(gather())), strict=True)) if arrays else {}


def _fetch(
    array: zarr.Array[Any], chunks: Sequence[int] | NDArray[np.int64], column: int, start: int, stop: int
) -> Iterator[tuple[int, NDArray[Any] | None]]:
    """Yield (i, items [start, stop) of chunk (chunks[i], column)), None where that chunk is not stored."""
    itemsize = array.dtype.itemsize
    whole = start == 0 and stop == array.chunks[0] * array.chunks[1]
    span = None if whole else RangeByteRequest(start * itemsize, stop * itemsize)
    prototype = default_buffer_prototype()
    path, key_of = array.store_path, array.metadata.encode_chunk_key

    async def gather(batch: Sequence[int]) -> list[Any]:
        gets = [(path / key_of((int(c), column))).get(prototype, span) for c in batch]
        return list(await asyncio.gather(*gets))

    size = max(1, min(256, BATCH_BYTES // max(1, (stop - start) * itemsize)))
    for first in range(0, len(chunks), size):
        for i, buffer in enumerate(sync(gather([int(c) for c in chunks[first : first + size]]))):
            yield (
                first + i,
                None if buffer is None else np.frombuffer(buffer.as_numpy_array(), dtype=array.dtype),
            )


def _is_raw(array: zarr.Array[Any]) -> bool:
    """Whether a stored chunk is nothing but its items, in this machine's byte order."""
    codecs: Any = getattr(array.metadata, "codecs", ())
    if len(codecs) != 1 or not isinstance(codecs[0], BytesCodec):
        return False
    endian = codecs[0].endian
    return array.dtype.itemsize == 1 or (endian is not None and endian.value == sys.byteorder)


def as_columns(key: Any, size: int) -> Columns:
    """An outer key along samples as a forward slice with known ends, or as non-negative positions."""
    if isinstance(key, slice):
        start, stop, step = key.indices(size)
        return slice(start, stop, step) if step > 0 else np.arange(start, stop, step)
    positions = np.atleast_1d(np.asarray(key, np.int64))
    return np.where(positions < 0, positions + size, positions)


def count(columns: Columns) -> int:
    """Return how many columns are asked for."""
    if isinstance(columns, slice):
        return len(range(columns.start, columns.stop, columns.step))
    return len(columns)


def pieces(columns: Columns, width: int) -> Iterator[Piece]:
    """Split columns by the chunk they lie in."""
    if not isinstance(columns, slice):
        chunk = columns // width
        for c in np.unique(chunk):
            target = np.flatnonzero(chunk == c)
            inside = columns[target] - c * width
            low = int(inside.min())
            yield Piece(int(c), low, int(inside.max()) + 1, inside - low, target)
        return
    wanted = range(columns.start, columns.stop, columns.step)
    done = 0
    while done < len(wanted):
        c = wanted[done] // width
        size = len(range(wanted[done], min(columns.stop, (c + 1) * width), columns.step))
        low = wanted[done] - c * width
        high = wanted[done + size - 1] - c * width + 1
        yield Piece(c, low, high, slice(0, high - low, columns.step), slice(done, done + size))
        done += size
