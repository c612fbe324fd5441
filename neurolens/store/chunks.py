"""Reading stored chunks: cells of a 2-d array, many chunks at a time, and only the bytes that are needed.

A stored row is one chunk of shape (1, N). Going through an array library costs more per chunk than reading one, so
uncompressed chunks are fetched as bytes.
"""

import asyncio
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import RangeByteRequest
from zarr.codecs import BytesCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from neurolens.store.chunk_files import ChunkFiles

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
    files: ChunkFiles | None = None,
) -> None:
    """Copy the cells (rows × columns) of a 2-d array into ``out[into]``; what is not stored is the fill value.

    ``files`` may hold the array's chunks at the snapshot that it was opened at.
    """
    if not len(rows) or not out.shape[1]:
        return
    height, width = array.chunks
    if not is_raw(array):
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
        if height == 1 and files is not None and out.flags.c_contiguous and _in_one_piece(piece):
            byte = piece.start * array.dtype.itemsize
            lines = (out[i, piece.target] for i in into)
            left = np.array(
                [
                    i
                    for i, (row, line) in enumerate(zip(rows, lines, strict=True))
                    if not files.read_into(array.path, (int(row), piece.chunk), byte, line)
                ],
                np.int64,
            )
        else:
            left = np.arange(len(chunks))
        for i, cells in _fetch(array, chunks, left, piece.chunk, (start, stop), files):
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


def _in_one_piece(piece: Piece) -> bool:
    return all(isinstance(side, slice) and side.step in (None, 1) for side in (piece.source, piece.target))


def _fetch(
    array: zarr.Array[Any],
    chunks: NDArray[np.int64],
    wanted: NDArray[np.int64],
    column: int,
    span: tuple[int, int],
    files: ChunkFiles | None,
) -> Iterator[tuple[int, NDArray[Any] | None]]:
    """Yield (i, the items ``span`` of chunk (chunks[i], column)) for the wanted i, None where it is not stored."""
    itemsize, (start, stop) = array.dtype.itemsize, span
    whole = start == 0 and stop == array.chunks[0] * array.chunks[1]
    request = None if whole else RangeByteRequest(start * itemsize, stop * itemsize)
    prototype = default_buffer_prototype()
    path, key_of = array.store_path, array.metadata.encode_chunk_key

    async def gather(batch: NDArray[np.int64]) -> list[Any]:
        gets = [(path / key_of((int(chunks[i]), column))).get(prototype, request) for i in batch]
        return list(await asyncio.gather(*gets))

    if files is not None:
        cells, left = np.empty(stop - start, array.dtype), []
        for i in wanted:
            if files.read_into(array.path, (int(chunks[i]), column), start * itemsize, cells):
                yield int(i), cells
            else:
                left.append(i)
        wanted = np.array(left, np.int64)
    size = max(1, min(256, BATCH_BYTES // max(1, (stop - start) * itemsize)))
    for first in range(0, len(wanted), size):
        batch = wanted[first : first + size]
        for i, buffer in zip(batch, sync(gather(batch)), strict=True):
            yield int(i), None if buffer is None else np.frombuffer(buffer.as_numpy_array(), dtype=array.dtype)


def is_raw(array: zarr.Array[Any]) -> bool:
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
