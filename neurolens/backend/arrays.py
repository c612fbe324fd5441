"""The lazy arrays behind an opened cube: committed rows in order of the series, read chunk by chunk.

Few samples over many rows come from the tiles, where there are valid ones; scans come from the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from neurolens.store.chunk_files import ChunkFiles
from neurolens.store.chunks import Columns, as_columns, count, pieces, read
from neurolens.store.grids import compact, read_grid
from neurolens.store.repository import explained

REQUEST_COST = 100_000  # what one request costs, in bytes that could be read meanwhile (0.1 ms at 1 GB/s)


@dataclass(frozen=True)
class Rows:
    """One variable of a cube as it lies in the store.

    ``slots`` (row,) are the stored slots in order of the series. ``done`` (row, block) says where the variable was
    measured; None: everywhere. ``blocks`` (sample,) is the ledger block of each sample; None: there is one for all.
    ``opened`` is the dtype that it opens as, with NaN where ``fill`` is stored. ``tiles`` holds the same cells in
    chunks of ``TILE``; ``tiled`` (tile,) says which groups of slots it may be trusted for. ``files``: where the
    chunks of a local store lie.
    """

    array: zarr.Array[Any]
    slots: NDArray[np.int64]
    opened: np.dtype[Any]
    done: NDArray[np.bool_] | None = None
    blocks: NDArray[np.int32] | None = None
    fill: int | None = None
    tiles: zarr.Array[Any] | None = None
    tiled: NDArray[np.bool_] | None = None
    files: ChunkFiles | None = None


class _CommittedArray(BackendArray):
    """What the arrays over committed rows share: indexing by rows and outer columns."""

    __slots__ = ("dtype", "rows", "shape", "token")

    def __init__(self, rows: Rows, token: tuple[str, ...]) -> None:
        """``token`` names the array for good: store, snapshot, cube and variable."""
        self.rows = rows
        self.token = token
        self.shape = (len(rows.slots), *map(int, rows.array.shape[1:]))
        self.dtype = rows.opened

    def __dask_tokenize__(self) -> tuple[str, ...]:
        return self.token

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        if isinstance(key, indexing.VectorizedIndexer):
            return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._outer)
        return self._outer(key.tuple)  # the adapter would fail on an empty slice with a negative step

    def _outer(self, key: tuple[Any, ...]) -> NDArray[Any]:
        rows = np.atleast_1d(np.arange(self.shape[0])[key[0]])
        columns = [compact(as_columns(k, n)) for k, n in zip(key[1:], self.shape[1:], strict=True)]
        with explained(self.token[0]):  # e.g. a snapshot that was collected since it was opened
            cells = self._opened(self._cells(rows, columns))
        return cells[tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in key)]

    def _opened(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return stored cells as they open."""
        cells = stored.astype(self.dtype, copy=False)
        if self.rows.fill is not None:
            cells[stored == self.rows.fill] = np.nan
        return cells

    def _cells(self, rows: NDArray[np.int64], columns: Sequence[Columns]) -> NDArray[Any]:
        """Return the stored cells, with the array's fill value where the variable was not measured."""
        raise NotImplementedError


class RowsArray(_CommittedArray):
    """A (series, sample) or (series, unit) array over committed rows; what was not measured reads NaN."""

    __slots__ = ()

    def _cells(self, rows: NDArray[np.int64], columns: Sequence[Columns]) -> NDArray[Any]:
        (wanted,) = columns
        cells = self._stored(self.rows.slots[rows], wanted)
        if self.rows.done is not None:
            blocks = None if self.rows.blocks is None else self.rows.blocks[wanted]
            for i in np.flatnonzero(~self.rows.done[rows].all(axis=1)):
                cells[i, slice(None) if blocks is None else ~self.rows.done[rows[i]][blocks]] = self._blank
        return cells

    @property
    def _blank(self) -> Any:
        return self.rows.array.fill_value

    def _stored(self, slots: NDArray[np.int64], columns: Columns) -> NDArray[Any]:
        out = np.empty((len(slots), count(columns)), self.rows.array.dtype)
        scan = np.ones(len(slots), bool)
        tiles, tiled = self.rows.tiles, self.rows.tiled
        if tiles is not None and tiled is not None:
            wide = sum(1 for _ in pieces(columns, tiles.chunks[1]))
            # a tile is read, and what is wanted of it copied
            tile_cost = wide * (REQUEST_COST + 2 * tiles.chunks[0] * tiles.chunks[1] * tiles.dtype.itemsize)
            row_cost = sum(
                REQUEST_COST + (p.stop - p.start) * out.itemsize for p in pieces(columns, self.rows.array.chunks[1])
            )
            tile = slots // tiles.chunks[0]
            for t in np.unique(tile[tile < len(tiled)]):
                here = np.flatnonzero(tile == t)
                if tiled[t] and tile_cost < row_cost * len(here):
                    read(tiles, slots[here], columns, out, here, self.rows.files)
                    scan[here] = False
        here = np.flatnonzero(scan)
        if len(here):
            read(self.rows.array, slots[here], columns, out, here, self.rows.files)
        return out


class GridArray(_CommittedArray):
    """A (series, …) array of more than two dims over committed rows; what was not measured reads NaN.

    Blocks lie along ``sample``, which is its second dim then, or are whole rows.
    """

    __slots__ = ()

    def _cells(self, rows: NDArray[np.int64], columns: Sequence[Columns]) -> NDArray[Any]:
        at, array = self.rows, self.rows.array
        out = np.full((len(rows), *map(count, columns)), array.fill_value, array.dtype)
        done = np.ones((len(rows), 1), bool) if at.done is None else at.done[rows]
        whole = done.all(axis=1)
        here = np.flatnonzero(whole)
        read_grid(array, at.slots[rows[here]], columns, out, here, at.files)
        if at.blocks is None:
            return out
        first = np.arange(self.shape[1])[columns[0]] if isinstance(columns[0], slice) else columns[0]
        for i in np.flatnonzero(done.any(axis=1) & ~whole):
            measured = np.flatnonzero(done[i][at.blocks[first]])
            some = np.full((1, len(measured), *out.shape[2:]), array.fill_value, array.dtype)
            wanted = [compact(first[measured]), *columns[1:]]
            read_grid(array, at.slots[rows[i : i + 1]], wanted, some, np.zeros(1, np.int64), at.files)
            out[i, measured] = some[0]
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
