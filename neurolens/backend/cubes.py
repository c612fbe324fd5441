"""One cube of a store as a Dataset: committed rows in order of the series, what was not measured NaN.

A row that failed is a row of NaN: left out, it would let a sum over the series pass for complete.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from xarray.core import indexing

from neurolens import schema
from neurolens.backend.arrays import EagerVariable, GridArray, Rows, RowsArray, SnapshotVariable
from neurolens.backend.layers import LayerIndex
from neurolens.errors import StoreError, nearest
from neurolens.store import tiles
from neurolens.store.arrays import dims_of
from neurolens.store.axes import NAMED
from neurolens.store.chunk_files import chunk_files
from neurolens.store.chunks import read_whole
from neurolens.store.ledger import ABSENT, DONE, PLACE, current_readings, named_blocks

CHUNK_BYTES = 32 << 20  # of a dask chunk, at least
CHUNK_ROWS = 100  # or this many rows, if that is more, up to twice the bytes


@dataclass(frozen=True)
class Cube:
    """One cube at one snapshot: its arrays by path, and the values of the small ones."""

    name: str
    series: str
    arrays: Mapping[str, zarr.Array[Any]]
    held: Mapping[str, NDArray[Any]]
    parts: tuple[str, ...]
    tried: NDArray[np.bool_]  # (slot, block, part): done or failed, under whatever settings, and named by the study
    done: NDArray[np.bool_]  # (slot, block, part): done, and under the settings that the group has now
    named: NDArray[np.bool_]  # (block,): holds samples that the study names
    slots: NDArray[np.int64]  # (row,): those with anything tried, in order of the series

    def rows(self, entries: NDArray[np.bool_], part: str) -> NDArray[np.bool_]:
        """Pick ``entries`` of a part, (row, block)."""
        if part not in self.parts:
            return np.zeros((len(self.slots), entries.shape[1]), bool)
        return entries[self.slots][:, :, self.parts.index(part)]


def read_cube(group: zarr.Group) -> Cube:
    """Read what is small of a cube's group, and find out what is done."""
    found = settings(group)
    name, series = str(found["cube"]), str(found["series"])
    if name not in schema.CUBES:
        raise StoreError(f"there is no cube {name!r} in this neurolens; {nearest(name, schema.CUBES)}")
    arrays = {key: a for key, a in sorted(group.members(max_depth=1)) if isinstance(a, zarr.Array)}
    small = {key: array for key, array in arrays.items() if "/" not in key and not _of_rows(key, array)}
    wanted = [
        "ledger/part",
        "ledger/state",
        "ledger/reading",
        "ledger/named",
        *(["tiles/keys", "ledger/key"] if "tiles/keys" in arrays else []),
    ]
    held = read_whole(small | {key: arrays[key] for key in wanted})
    parts = tuple(map(str, held["ledger/part"].tolist()))
    done = (held["ledger/state"] == DONE) & (held["ledger/reading"] == current_readings(found, parts))
    # at a position that the study no longer names, only what is done shows: nothing will mend the rest
    tried = np.where(held["ledger/named"][:, None, None], held["ledger/state"] != ABSENT, done)
    named = np.ones(done.shape[1], bool)
    if PLACE in held:
        named = named_blocks(held[PLACE], held["sample_block"], len(named))
        tried &= named[None, :, None]
    rows = np.flatnonzero(tried.any(axis=(1, 2)))
    slots = rows[np.argsort(held[series][rows], kind="stable")]
    return Cube(name, series, arrays, held, parts, tried, done, named, slots)


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
    Dataset : (epoch or step, …), in order of the series
        ``layer`` is an index of ``unit``. ``measured`` (series) says where all of the cube's first part is done; a
        cube with sums and counts has those instead. One row per checkpoint that was measured, or that failed and the
        study names. What failed, or was measured under other settings than the group has now, is NaN (with count 0),
        so that reductions name it. A variable never tried is left out. The dim of the samples goes by the cube's own
        name for them; where that is another, they are of no class.
    """
    found, dropped, read = settings(cube), set(drop), read_cube(cube)
    coords, tiled = _coords(read), _tiles(read)
    files = chunk_files(origin["url"], origin["snapshot"])
    variables: dict[str, xr.Variable] = {}
    for declared, part in _declared(read):
        key, done = declared.name, read.rows(read.done, part)
        if key in dropped or not (read.rows(read.tried, part).any() or not len(read.slots)):
            continue
        array = read.arrays[key]
        copy, valid = tiled.get(key, (None, None))
        rows = Rows(
            array,
            read.slots,
            np.dtype(declared.opened if array.dtype.kind in "iu" else array.dtype),
            done=None if done.all() else done,
            blocks=read.held["sample_block"] if "sample" in dims_of(array) else None,
            fill=None if declared.fill is None else int(declared.fill),
            tiles=copy,
            tiled=valid,
            files=files,
        )
        token = (origin["url"], origin["snapshot"], read.name, key)
        data = (RowsArray if array.ndim == 2 else GridArray)(rows, token)
        variables[key] = _variable(data, read, declared, array, origin["snapshot"])
        if declared.summed and f"{key}_sum" in read.held and f"{key}_count" in read.held:
            coords |= _sums(read, key, done)
    attrs = dict(origin) | {
        "cube": read.name,
        "series": read.series,
        "generation": int(found.get("generation", 0)),
        "data": str(found.get("data", "")),
        "settings": json.dumps(found, sort_keys=True),
    }
    kept = {key: value for key, value in coords.items() if key not in dropped}
    # set afterwards: given as coords=, they would become plain Variables
    ds = xr.Dataset(kept | variables, attrs=attrs).set_coords(list(kept))
    for dim in schema.CUBES[read.name].growing:
        ds = _placed(ds, schema.CUBES[read.name].sample) if dim == "sample" else _named(ds, dim)
    by_layer = "layer" in kept and ds["layer"].dims == ("unit",)
    return ds.set_xindex("layer", LayerIndex, units=ds.indexes.get("unit")) if by_layer else ds


def _named(ds: xr.Dataset, dim: str) -> xr.Dataset:
    """Leave out what the study no longer names of a growing axis; the rest goes by its name, without its digest."""
    flag = f"{dim}_{NAMED}"
    if flag not in ds.coords:
        return ds
    wanted = ds[flag].to_numpy()
    ds = ds.drop_vars(flag)
    if not wanted.all():
        ds = ds.isel({dim: np.flatnonzero(wanted)})
    return _without_digests(ds, dim)


def _placed(ds: xr.Dataset, dim: str) -> xr.Dataset:
    """Put samples that the cube keeps in the study's order, without those that it no longer names."""
    if PLACE not in ds.coords:
        return ds
    place = ds[PLACE].to_numpy()
    ds, named = ds.drop_vars(PLACE), np.flatnonzero(place >= 0)
    order = named[np.argsort(place[named], kind="stable")]
    if not np.array_equal(order, np.arange(len(place))):
        ds = ds.isel({dim: order})
    return _without_digests(ds, dim)


def _without_digests(ds: xr.Dataset, dim: str) -> xr.Dataset:
    ids = ds[dim].to_numpy()
    if ids.dtype.kind != "T":
        return ds
    names = np.array([name.rpartition("@")[0] or name for name in ids.tolist()], dtype=np.dtypes.StringDType())
    return ds.assign_coords({dim: (dim, names, ds[dim].attrs)})


def _variable(
    data: RowsArray | GridArray, read: Cube, declared: schema.Variable, array: zarr.Array[Any], snapshot: str
) -> xr.Variable:
    series, opened = read.series, schema.CUBES[read.name].opened
    dims = (series, *declared.dims[1:])
    stored = tuple(max(1, min(int(c), n)) for c, n in zip(array.chunks, data.shape, strict=True))
    chunks = dict(zip(dims, stored, strict=True))
    row = data.dtype.itemsize * math.prod(stored[1:])
    if data.ndim > 2 and "sample" in chunks:  # many samples of few units: a layer is read without the others
        chunks["sample"] = min(chunks["sample"] * max(1, CHUNK_BYTES // row), array.shape[dims.index("sample")])
        row = data.dtype.itemsize * math.prod(chunks[dim] for dim in dims[1:])
    chunks[series] = chunk_rows(row) if data.ndim == 2 else max(1, CHUNK_BYTES // row)
    dims, chunks = tuple(map(opened, dims)), {opened(dim): size for dim, size in chunks.items()}
    encoding = {"preferred_chunks": chunks, "stored_chunks": dict(zip(dims, stored)), "snapshot": snapshot}
    return SnapshotVariable(dims, indexing.LazilyIndexedArray(data), dict(declared.attrs), encoding)


def chunk_rows(row_bytes: int) -> int:
    """How many stored rows make a useful dask chunk: 32 MiB, or up to 64 MiB where 100 rows need them."""
    return max(1, CHUNK_BYTES // row_bytes, min(CHUNK_ROWS, 2 * CHUNK_BYTES // row_bytes))


def _coords(read: Cube) -> dict[str, xr.Variable]:
    coords: dict[str, xr.Variable] = {}
    cube = schema.CUBES[read.name]
    left_out = {"sample_block"} if cube.sample == "sample" else {"sample_block", "label", "class"}
    for key, values in read.held.items():
        dims = dims_of(read.arrays[key])
        if "/" in key or key in left_out:
            continue
        if dims == ("slot",):
            values = values[read.slots].astype(np.int64)
            if key != read.series and (values < 0).all():
                continue
            known = values if key == read.series or (values >= 0).all() else np.where(values < 0, np.nan, values)
            coords[key] = EagerVariable(read.series, known, {"long_name": f"{key} of the checkpoint"})
        elif dims == ("slot", "class"):
            coords[key] = EagerVariable((read.series, "class"), values[read.slots])
        elif len(dims) == 1:
            coords[cube.opened(key)] = EagerVariable(cube.opened(dims[0]), values)
    if not any(variable.summed for variable in cube.variables):
        first = read.rows(read.done, cube.parts[0].name)[:, read.named].all(axis=1)
        coords["measured"] = EagerVariable(read.series, first, {"long_name": f"whether {cube.parts[0].name} is done"})
    return coords


def _sums(read: Cube, key: str, done: NDArray[np.bool_]) -> dict[str, xr.Variable]:
    """Sums and counts per (series, class), over the blocks that are done; count 0: not measured."""
    out: dict[str, xr.Variable] = {}
    for suffix, meaning in (("sum", "sum over the samples of a class"), ("count", "samples of a class measured")):
        values = read.held[f"{key}_{suffix}"][read.slots]
        total = np.where(done[:, :, None], values, values.dtype.type(0)).sum(axis=1)
        out[f"{key}_{suffix}"] = EagerVariable((read.series, "class"), total, {"long_name": f"{meaning}: {key}"})
    return out


def _tiles(read: Cube) -> dict[str, tuple[zarr.Array[Any], NDArray[np.bool_]]]:
    """The tiles of each variable, and which of them were made from the rows as they are now."""
    if "tiles/keys" not in read.held:
        return {}
    names = [tiles.variables(read.name, part, read.arrays) for part in read.parts]
    copied = read.held["ledger/state"] == DONE  # whatever the settings: tiles hold what rows hold
    tiled = tiles.matching(read.held["tiles/keys"], read.held["ledger/key"], copied, names)
    out = {}
    for i, part in enumerate(names):
        for key in part:
            array = read.arrays.get(f"tiles/{key}")
            if array is not None and array.shape[1] == read.arrays[key].shape[1] and tiled[:, i].any():
                out[key] = (array, tiled[: array.shape[0] // tiles.TILE[0], i])
    return out


def _declared(read: Cube) -> list[tuple[schema.Variable, str]]:
    """The data variables of a cube with the part each belongs to, in the schema's order."""
    stored = {key for key, array in read.arrays.items() if "/" not in key and _of_rows(key, array)}
    declared = {v.name: (v, p.name) for p in schema.CUBES[read.name].parts for v in p.variables}
    unknown = sorted(stored - declared.keys())
    if unknown:
        raise StoreError(
            f"cube {read.name!r} holds variables that this neurolens does not know: {', '.join(unknown)}; "
            "a newer one wrote them; run: pip install --upgrade neurolens"
        )
    return [entry for key, entry in declared.items() if key in stored]


def _of_rows(key: str, array: zarr.Array[Any]) -> bool:
    """Whether an array holds rows of data: not a coordinate, and no sums."""
    dims = dims_of(array)
    return len(dims) > 1 and dims[0] == "slot" and dims[1:] != ("block", "class") and key != "exposed"
