"""One cube of a store as a Dataset: committed rows in order of the series, what was not measured NaN."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from xarray.core import indexing

from neurolens import schema
from neurolens.backend.arrays import EagerVariable, Rows, RowsArray, SnapshotVariable
from neurolens.errors import StoreError, nearest
from neurolens.store import tiles
from neurolens.store.ledger import DONE, array_in, group_in

CHUNK_BYTES = 32 << 20  # of a dask chunk, at least
CHUNK_ROWS = 100  # or this many rows, if that is more, up to twice the bytes


@dataclass(frozen=True)
class Committed:
    """What the ledger of one cube says is done, at one snapshot."""

    series: str
    positions: NDArray[np.int64]  # (slot,); −1: not used yet
    parts: tuple[str, ...]
    done: NDArray[np.bool_]  # (slot, block, part)

    @property
    def slots(self) -> NDArray[np.int64]:
        """The slots with at least one part done in at least one block, in order of the series."""
        rows = np.flatnonzero(self.done.any(axis=(1, 2)))
        return rows[np.argsort(self.positions[rows], kind="stable")]


def committed(cube: zarr.Group) -> Committed:
    """Read what is done from the ledger of a cube's group."""
    ledger = group_in(cube, "ledger")
    series = str(settings(cube)["series"])
    return Committed(
        series,
        np.asarray(array_in(cube, series)[...], np.int64),
        tuple(map(str, np.asarray(array_in(ledger, "part")[...]).tolist())),
        np.asarray(array_in(ledger, "state")[...]) == DONE,
    )


def settings(cube: zarr.Group) -> dict[str, Any]:
    """The settings a cube's group was measured with."""
    found = cube.attrs.get("neurolens")
    if not isinstance(found, dict):
        raise StoreError(f"group {cube.path!r} is not a cube of neurolens: its attributes lack 'neurolens'")
    return dict(found)


def open_cube(cube: zarr.Group, origin: Mapping[str, str], drop: Iterable[str] = ()) -> xr.Dataset:
    """Open a cube's group lazily.

    Parameters
    ----------
    cube : the Zarr group, from a read-only session at one snapshot.
    origin : attributes that say where it came from: url, snapshot, run, …
    drop : names of variables and coordinates to leave out.

    Returns
    -------
    Dataset : (epoch or step, sample), in order of the series
        One row per checkpoint with anything measured; what is not done in the ledger is NaN. A variable measured
        nowhere is left out.
    """
    book, found, dropped = committed(cube), settings(cube), set(drop)
    name = _name(found)
    arrays = {key: array for key, array in sorted(cube.arrays()) if key not in dropped}
    slots = book.slots
    blocks = np.asarray(array_in(cube, "sample_block")[...], np.int32)
    tiled = _tiles(cube, book)
    variables: dict[str, xr.Variable] = {}
    coords = _coords(arrays, book, slots)
    for declared, part in _declared(name, arrays):
        key, array = declared.name, arrays[declared.name]
        done = book.done[slots][:, :, book.parts.index(part)] if part in book.parts else None
        if done is None or not (done.any() or not len(slots)):
            continue
        fill = int(declared.fill_value) if np.dtype(array.dtype).kind in "iu" else None
        rows = Rows(array, slots, None if done.all() else done, blocks, fill, *tiled.get(key, (None, None)))
        token = (origin["url"], origin["snapshot"], name, key)
        variables[key] = _variable(RowsArray(rows, token), book.series, declared, array, origin["snapshot"])
        if declared.summed and f"{key}_sum" in arrays and f"{key}_count" in arrays:
            coords |= _sums(key, arrays, book, slots, done)
    attrs = dict(origin) | {
        "cube": name,
        "series": book.series,
        "generation": int(found.get("generation", 0)),
        "data": str(found.get("data", "")),
        "settings": json.dumps(found, sort_keys=True),
    }
    kept = {key: value for key, value in coords.items() if key not in dropped}
    # set afterwards: given as coords=, they would become plain Variables
    return xr.Dataset(kept | variables, attrs=attrs).set_coords(list(kept))


def _variable(
    data: RowsArray, series: str, declared: schema.Variable, array: zarr.Array[Any], snapshot: str
) -> xr.Variable:
    width = min(int(array.chunks[1]), data.shape[1])
    chunks = {series: chunk_rows(max(1, width) * data.dtype.itemsize), "sample": max(1, width)}
    return SnapshotVariable(
        (series, "sample"),
        indexing.LazilyIndexedArray(data),
        dict(declared.attrs),
        {"preferred_chunks": chunks, "snapshot": snapshot},
    )


def chunk_rows(row_bytes: int) -> int:
    """How many stored rows make a useful dask chunk: 32 MiB, or up to 64 MiB where 100 rows need them."""
    return max(1, CHUNK_BYTES // row_bytes, min(CHUNK_ROWS, 2 * CHUNK_BYTES // row_bytes))


def _coords(arrays: Mapping[str, zarr.Array[Any]], book: Committed, slots: NDArray[np.int64]) -> dict[str, xr.Variable]:
    coords: dict[str, xr.Variable] = {}
    for key, array in arrays.items():
        dims = _dims(array)
        if dims == ("slot",):
            values = np.asarray(array[...], np.int64)[slots]
            if key != book.series and (values < 0).all():
                continue
            known = values if key == book.series or (values >= 0).all() else np.where(values < 0, np.nan, values)
            coords[key] = EagerVariable(book.series, known, {"long_name": f"{key} of the checkpoint"})
        elif dims == ("slot", "class"):
            coords[key] = EagerVariable((book.series, "class"), np.asarray(array[...])[slots])
        elif dims in (("sample",), ("class",)):
            coords[key] = EagerVariable(dims, np.asarray(array[...]))
    coords.pop("sample_block", None)
    return coords


def _sums(
    key: str,
    arrays: Mapping[str, zarr.Array[Any]],
    book: Committed,
    slots: NDArray[np.int64],
    done: NDArray[np.bool_],
) -> dict[str, xr.Variable]:
    """Sums and counts per (series, class), over the blocks that are done; count 0: not measured."""
    out: dict[str, xr.Variable] = {}
    for suffix, meaning in (("sum", "sum over the samples of a class"), ("count", "samples of a class measured")):
        values = np.asarray(arrays[f"{key}_{suffix}"][...])[slots]
        total = np.where(done[:, :, None], values, values.dtype.type(0)).sum(axis=1)
        out[f"{key}_{suffix}"] = EagerVariable((book.series, "class"), total, {"long_name": f"{meaning}: {key}"})
    return out


def _tiles(cube: zarr.Group, book: Committed) -> dict[str, tuple[zarr.Array[Any], NDArray[np.bool_]]]:
    """The tiles of each variable, and which of them were made from the rows as they are now."""
    group = cube.get("tiles")
    if not isinstance(group, zarr.Group):
        return {}
    tiled = tiles.valid(cube, book.done)
    name = _name(settings(cube))
    out = {}
    arrays = dict(group.arrays())
    for declared, part in _declared(name, arrays):
        key, array = declared.name, arrays[declared.name]
        if part in book.parts and array.shape[1] == array_in(cube, "sample_block").shape[0]:
            valid = tiled[: array.shape[0] // tiles.TILE[0], book.parts.index(part)]
            if valid.any():
                out[key] = (array, valid)
    return out


def _declared(cube: str, arrays: Mapping[str, zarr.Array[Any]]) -> list[tuple[schema.Variable, str]]:
    """The data variables among a cube's arrays with the part each belongs to, in the schema's order."""
    stored = {key for key, array in arrays.items() if _dims(array) == ("slot", "sample")}
    declared = {v.name: (v, p.name) for p in schema.CUBES[cube].parts for v in p.variables}
    unknown = sorted(stored - declared.keys())
    if unknown:
        raise StoreError(
            f"cube {cube!r} holds variables that this neurolens does not know: {', '.join(unknown)}; "
            "a newer one wrote them; run: pip install --upgrade neurolens"
        )
    return [entry for key, entry in declared.items() if key in stored]


def _name(found: Mapping[str, Any]) -> str:
    name = str(found["cube"])
    if name not in schema.CUBES:
        raise StoreError(f"there is no cube {name!r} here; {nearest(name, schema.CUBES)}")
    return name


def _dims(array: zarr.Array[Any]) -> tuple[str | None, ...]:
    return tuple(getattr(array.metadata, "dimension_names", None) or ())
