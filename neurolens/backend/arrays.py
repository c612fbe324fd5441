"""The lazy array behind an opened cube: committed rows in order of the series, read chunk by chunk.

A stored row is one chunk of shape (1, N). Going through an array library costs more per chunk than reading one, so
uncompressed chunks are fetched as bytes, many at a time. Few samples over many rows come from the tiles, where there
are valid ones; scans come from the rows.
"""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing
from zarr.abc.store import RangeByteRequest
from zarr.codecs import BytesCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

TILE = (256, 2048)
BATCH_BYTES = 16 << 20  # bytes in flight at once
REQUEST_COST = 100_000  # what one request costs, in bytes that could be read meanwhile (0.1 ms at 1 GB/s)

Columns = slice | NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """One variable of a cube as it lies in the store.

    ``slots`` (row,) are the stored slots in order of the series. ``done`` (row, block) says where the variable was
    measured; None: everywhere. ``blocks`` (sample,) is the ledger block of each sample. ``tiles`` holds the same
    cells in chunks of ``TILE``; ``tiled`` (tile,) says which groups of slots it may be trusted for.
    """

    array: zarr.Array[Any]
    slots: NDArray[np.int64]
    done: NDArray[np.bool_] | None = None
    blocks: NDArray[np.int32] | None = None
    fill: int | None = None
    tiles: zarr.Array[Any] | None = None
    tiled: NDArray[np.bool_] | None = None


class RowsArray(BackendArray):
    """A (series, sample) array over committed rows; what was not measured reads NaN."""

    __slots__ = ("dtype", "rows", "shape", "token")

    def __init__(self, rows: Rows, token: tuple[str, ...]) -> None:
        """``token`` names the array for good: store, snapshot, cube and variable."""
        self.rows = rows
        self.token = token
        self.shape = (len(rows.slots), int(rows.array.shape[1]))
        self.dtype = np.dtype("float32") if rows.fill is not None else np.dtype(rows.array.dtype)

    def __dask_tokenize__(self) -> tuple[str, ...]:
        return self.token

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        if isinstance(key, indexing.VectorizedIndexer):
            return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._outer)
        return self._outer(key.tuple)  # the adapter would fail on an empty slice with a negative step

    def _outer(self, key: tuple[Any, ...]) -> NDArray[Any]:
        rows = np.arange(self.shape[0])[key[0]]
        cells = self._cells(np.atleast_1d(rows), _columns(key[1], self.shape[1]))
        if np.ndim(rows) == 0:
            cells = cells[0]
        return cells[..., 0] if isinstance(key[1], int | np.integer) else cells

    def _cells(self, rows: NDArray[np.int64], columns: Columns) -> NDArray[Any]:
        stored = self._stored(self.rows.slots[rows], columns)
        cells = stored
        if self.rows.fill is not None:
            cells = stored.astype(self.dtype)
            cells[stored == self.rows.fill] = np.nan
        if self.rows.done is not None and self.rows.blocks is not None:
            blocks = self.rows.blocks[columns]
            for i in np.flatnonzero(~self.rows.done[rows].all(axis=1)):
                cells[i, ~self.rows.done[rows[i]][blocks]] = np.nan
        return cells

    def _stored(self, slots: NDArray[np.int64], columns: Columns) -> NDArray[Any]:
        out = np.empty((len(slots), _length(columns)), self.rows.array.dtype)
        scan = np.ones(len(slots), bool)
        tiles, tiled = self.rows.tiles, self.rows.tiled
        if tiles is not None and tiled is not None:
            wide = sum(1 for _ in _pieces(columns, tiles.chunks[1]))
            tile_cost = wide * (REQUEST_COST + tiles.chunks[0] * tiles.chunks[1] * tiles.dtype.itemsize)
            row_cost = sum(
                REQUEST_COST + (p.stop - p.start) * out.itemsize for p in _pieces(columns, self.rows.array.chunks[1])
            )
            tile = slots // tiles.chunks[0]
            for t in np.unique(tile[tile < len(tiled)]):
                here = np.flatnonzero(tile == t)
                if tiled[t] and tile_cost < row_cost * len(here):
                    read(tiles, slots[here], columns, out, here)
                    scan[here] = False
        here = np.flatnonzero(scan)
        read(self.rows.array, slots[here], columns, out, here)
        return out


class SnapshotVariable(xr.Variable):
    """A Variable whose dask name holds the snapshot it was opened at.

    xarray names the dask arrays it makes on opening after path, modification time and arguments alone. A commit
    changes none of them, so arrays of two snapshots would share keys, and dask would take one for the other.
    """

    __slots__ = ()

    def chunk(self, chunks: Any = {}, *args: Any, **kwargs: Any) -> Any:  # noqa: B006  (xarray's own signature)
        """As `xarray.Variable.chunk`; a plain Variable comes back."""
        if _is_opening(kwargs):
            options = kwargs["from_array_kwargs"]
            kwargs["from_array_kwargs"] = options | {"name": f"{options['name']}-{self.encoding['snapshot']}"}
        return _plain(super().chunk(chunks, *args, **kwargs))


class EagerVariable(xr.Variable):
    """A Variable that stays in memory when its store is opened with ``chunks={}``."""

    __slots__ = ()

    def chunk(self, chunks: Any = {}, *args: Any, **kwargs: Any) -> Any:  # noqa: B006  (xarray's own signature)
        """As `xarray.Variable.chunk`, except on opening: then the values stay as they are. A plain Variable."""
        if _is_opening(kwargs):
            return xr.Variable(self.dims, self.values, self._attrs, self._encoding, fastpath=True)
        return _plain(super().chunk(chunks, *args, **kwargs))


def _is_opening(options: dict[str, Any]) -> bool:
    """Whether `chunk` was called by xarray's opening functions: they prescribe the dask name."""
    name = (options.get("from_array_kwargs") or {}).get("name")
    return isinstance(name, str) and name.startswith("open_dataset-")


def _plain(variable: xr.Variable) -> xr.Variable:
    return xr.Variable(variable._dims, variable._data, variable._attrs, variable._encoding, fastpath=True)


@dataclass(frozen=True)
class _Piece:
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
    for piece in _pieces(columns, width):
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


def _columns(key: Any, size: int) -> Columns:
    """An outer key along samples as a forward slice with known ends, or as non-negative positions."""
    if isinstance(key, slice):
        start, stop, step = key.indices(size)
        return slice(start, stop, step) if step > 0 else np.arange(start, stop, step)
    positions = np.atleast_1d(np.asarray(key, np.int64))
    return np.where(positions < 0, positions + size, positions)


def _length(columns: Columns) -> int:
    if isinstance(columns, slice):
        return len(range(columns.start, columns.stop, columns.step))
    return len(columns)


def _pieces(columns: Columns, width: int) -> Iterator[_Piece]:
    """Split columns by the chunk they lie in."""
    if not isinstance(columns, slice):
        chunk = columns // width
        for c in np.unique(chunk):
            target = np.flatnonzero(chunk == c)
            inside = columns[target] - c * width
            low = int(inside.min())
            yield _Piece(int(c), low, int(inside.max()) + 1, inside - low, target)
        return
    wanted = range(columns.start, columns.stop, columns.step)
    done = 0
    while done < len(wanted):
        c = wanted[done] // width
        count = len(range(wanted[done], min(columns.stop, (c + 1) * width), columns.step))
        low = wanted[done] - c * width
        high = wanted[done + count - 1] - c * width + 1
        yield _Piece(c, low, high, slice(0, high - low, columns.step), slice(done, done + count))
        done += count
