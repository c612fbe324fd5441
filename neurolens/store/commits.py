"""What one commit writes: a row's data, its sums and its ledger entries, or the reason why it failed."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr

from neurolens import schema
from neurolens.errors import SchemaError, StoreError, nearest
from neurolens.store.arrays import add_array, dims_of, grow
from neurolens.store.encodings import encoded
from neurolens.store.gather import Selection, read_all, write_all, write_grid
from neurolens.store.groups import SLOTS_AHEAD, exposed_classes
from neurolens.store.ledger import DONE, FAILED, SERIES_DIMS, arrays_in, group_in, key_bytes, readings, settings_of
from neurolens.store.locks import RowId
from neurolens.store.records import blocked


@dataclass(frozen=True)
class Row:
    """A row to be committed: what is needed to write it again from memory if another writer was faster."""

    cube: schema.Cube
    row: RowId
    positions: Mapping[str, int | None]
    keys: Mapping[str, str]
    provenance: Mapping[str, Any]
    values: Mapping[str, np.ndarray]
    seconds: float = float("nan")
    generation: int | None = None
    readings: Mapping[str, int] = field(default_factory=dict)

    @property
    def message(self) -> str:
        """The commit message."""
        place = ", ".join(f"{dim} {at}" for dim, at in self.positions.items() if at is not None)
        return f"{self.cube.name}: {place}, block {self.row[1]}: {', '.join(self.keys)}"


def check(row: Row) -> None:
    """Raise SchemaError if a row contradicts itself or the schema."""
    for part, key in row.keys.items():
        row.cube.part(part)
        if len(key) != 64 or set(key) - set("0123456789abcdef"):
            raise SchemaError(f"the key of part {part!r} is {key!r}; a sha256 in hex is needed")
    known = [v.name for part in row.keys for v in row.cube.part(part).variables]
    for name in row.values:
        if name not in known:
            raise SchemaError(f"{name!r} belongs to none of the parts {tuple(row.keys)}; {nearest(name, known)}")
    for dim, at in row.positions.items():
        if dim not in SERIES_DIMS:
            raise SchemaError(f"a position is given along {dim!r}; it must be one of {SERIES_DIMS}")
        if at is not None and at < 0:
            raise SchemaError(f"{dim} {at} is negative; number epochs and steps from 0")


def write_done(root: zarr.Group, row: Row) -> None:
    """Write data, sums and ledger entries of a row. A variable that has no value this time is set to *not measured*."""
    place = _place(root, row)
    wanted = [v for part in row.keys for v in row.cube.part(part).variables]
    for variable in wanted:
        if variable.name in row.values and variable.name not in place.arrays:
            raise StoreError(f"the store has no array for {variable.name!r}; name its part when preparing the cube")
    for variable in wanted:
        if variable.name in place.arrays:
            _add_variable(place, variable, _checked(row, variable, place))
    _add_entries(place, row, dict.fromkeys(row.keys, ""), DONE)
    write_all(place.writes)


def write_failed(root: zarr.Group, row: Row, error: str) -> bool:
    """Record why a row failed, and return whether there was anything to record.

    A part that is done under the same key stays done. One that was done under another key is stale: it becomes
    failed, and its numbers are set to *not measured* (the history keeps them).
    """
    place = _place(root, row)
    state, keys = place.entries["state"], place.entries["key"]
    done = {part: keys[i].tobytes().hex() for i, part in enumerate(place.parts) if state[i] == DONE}
    failed = {part: error for part, key in row.keys.items() if done.get(part) != key}
    for variable in (v for part in failed if part in done for v in row.cube.part(part).variables):
        if variable.name in place.arrays:
            _add_variable(place, variable, None)
    if failed:
        _add_entries(place, row, failed, FAILED)
        write_all(place.writes)
    return bool(failed)


def read_row(group: zarr.Group, row: RowId, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the stored values of one row: variable → array of its dims but the series."""
    settings, arrays = settings_of(group), arrays_in(group)
    at = np.flatnonzero(np.asarray(arrays[settings["series"]][:]) == row[0])
    kept = [name for name in names if name in arrays]
    if not len(at) or not kept:
        return {}
    start = sum(settings["blocks"][: row[1]])
    extent = slice(start, start + settings["blocks"][row[1]])
    cuts: list[Selection] = [
        (int(at[0]), *(extent if dim == "sample" else slice(None) for dim in dims_of(arrays[name])[1:]))
        for name in kept
    ]
    return dict(zip(kept, read_all([(arrays[n], cut) for n, cut in zip(kept, cuts, strict=True)]), strict=True))


@dataclass(frozen=True)
class _Place:
    """Where a row goes, what is there of its ledger and labels, and the writes gathered so far.

    ``extent`` are its samples in stored order; None where rows are not of samples.
    """

    arrays: dict[str, zarr.Array[Any]]
    ledger: dict[str, zarr.Array[Any]]
    slot: int
    block: int
    extent: slice | None
    parts: list[str]
    labels: np.ndarray
    entries: dict[str, np.ndarray]
    readings: dict[str, int]
    writes: list[tuple[zarr.Array[Any], Selection, Any]]


def _group(root: zarr.Group, row: Row) -> zarr.Group:
    group = root.get(row.cube.name)
    if not isinstance(group, zarr.Group):
        raise StoreError(f"the store has no cube {row.cube.name!r}; prepare it before writing rows")
    settings = settings_of(group)
    if row.generation is not None and row.generation != settings["generation"]:
        raise StoreError(
            f"cube {row.cube.name!r} is now at generation {settings['generation']}, and this row was measured for "
            f"generation {row.generation}: another run changed the samples meanwhile; run again"
        )
    if row.row[1] >= len(settings["blocks"]):
        raise StoreError(f"cube {row.cube.name!r} has {len(settings['blocks'])} blocks, and no block {row.row[1]}")
    position, series = row.row[0], settings["series"]
    if row.positions.get(series) != position:
        raise SchemaError(f"row {row.row} is given with positions {dict(row.positions)}; {series} must be {position}")
    return group


def _place(root: zarr.Group, row: Row) -> _Place:
    """Find the slot of the row's position, or make it, and the extent of its block."""
    group = _group(root, row)
    settings = settings_of(group)
    position, block = row.row
    arrays, ledger = arrays_in(group), arrays_in(group_in(group, "ledger"))
    known = np.asarray(arrays[settings["series"]][:])
    found = np.flatnonzero(known == position)
    slot = int(found[0]) if len(found) else int(np.count_nonzero(known >= 0))
    if slot >= len(known):
        for target in (arrays, ledger):
            grow(target.values(), "slot", len(known) + SLOTS_AHEAD)
    writes: list[tuple[zarr.Array[Any], Selection, Any]] = []
    for dim, at in row.positions.items():
        if at is None or (dim == settings["series"] and len(found)):
            continue
        if dim not in arrays:
            arrays[dim] = add_array(group, dim, "int64", ("slot",), arrays[settings["series"]].shape, (1024,), -1)
        writes.append((arrays[dim], (slot,), at))
    if not len(found) and settings["exposure"] is not None:
        epoch = row.positions.get("epoch")
        if epoch is None:
            raise SchemaError(f"the class schedule is by epoch, and that of the row at {position} is not known")
        exposed = arrays["exposed"]
        writes.append((exposed, (slot,), exposed_classes(settings["exposure"], epoch, exposed.shape[1])))
    start = sum(settings["blocks"][:block])
    extent = slice(start, start + settings["blocks"][block]) if blocked(row.cube) else None
    names = [name for name in ledger if name not in ("part", "fingerprint", "named")]
    reads: list[tuple[zarr.Array[Any], Selection]] = [(ledger[name], (slot, block)) for name in names]
    if extent is not None:
        reads.append((arrays["label"], (extent,)))
    parts, *entries = read_all([(ledger["part"], (slice(None),)), *reads])
    at_row = dict(zip(names, entries))
    labels = entries[-1] if extent is not None else np.zeros(0, "int64")
    current = {**readings(settings), **row.readings}
    return _Place(arrays, ledger, slot, block, extent, parts.tolist(), labels, at_row, current, writes)


def _checked(row: Row, variable: schema.Variable, place: _Place) -> np.ndarray | None:
    if variable.name not in row.values:
        return None
    name, array, values = variable.name, place.arrays[variable.name], np.asarray(row.values[variable.name])
    dims = dims_of(array)[1:]
    need = [_length(array, axis, dim, place) for axis, dim in enumerate(dims, 1)]
    values = _lengthened(values, dims, need, [d for d in row.cube.growing if d != "sample"], variable.fill_value)
    if values.shape != tuple(need):
        shape = ", ".join(f"{dim} {n}" for dim, n in zip(dims, need, strict=True))
        block = "" if place.extent is None else f"; block {place.block} has {need[dims.index('sample')]} samples"
        raise SchemaError(f"{name!r} has shape {values.shape}{block}, and needs ({shape}); measure it for this layout")
    return values


def _lengthened(
    values: np.ndarray, dims: Sequence[str], need: Sequence[int], growing: Sequence[str], fill: float
) -> np.ndarray:
    """Return values with *not measured* where a growing axis got longer since they were measured."""
    if values.ndim != len(dims):
        return values
    more = [n - have if dim in growing else 0 for dim, n, have in zip(dims, need, values.shape, strict=True)]
    if not any(more) or min(more) < 0:
        return values
    return np.pad(values, [(0, extra) for extra in more], constant_values=fill)


def _length(array: zarr.Array[Any], axis: int, dim: str, place: _Place) -> int:
    if dim == "sample" and place.extent is not None:
        return int(place.extent.stop - place.extent.start)
    return int(array.shape[axis])


def _encoding(array: zarr.Array[Any]) -> str | None:
    found = array.attrs.get("encoding")
    return None if found is None else str(found)


def _add_variable(place: _Place, variable: schema.Variable, values: np.ndarray | None) -> None:
    """Add the writes of a variable and its sums; None stands for *not measured*. Large values are written at once."""
    arrays, name = place.arrays, variable.name
    array, slot = arrays[name], place.slot
    lengths = [_length(array, axis, dim, place) for axis, dim in enumerate(dims_of(array)) if axis]
    starts = [place.extent.start if dim == "sample" and place.extent else 0 for dim in dims_of(array)[1:]]
    extents = [slice(start, start + n) for start, n in zip(starts, lengths, strict=True)]
    if values is not None and len(extents) > 1:
        write_grid(array, slot, extents, values, lambda part: encoded(part, array.dtype, _encoding(array), name))
    elif values is not None:
        values = encoded(values, array.dtype, _encoding(array), name)
        place.writes.append((array, (slot, *extents), values))
    else:  # chunks of more than numbers are removed, not filled
        array = array if len(extents) == 1 else array.with_config({"write_empty_chunks": False})
        place.writes.append((array, (slot, *extents), variable.fill_value))
    if variable.summed:
        total, count = arrays[f"{name}_sum"], arrays[f"{name}_count"]
        sums, counts = class_sums(values, place.labels, total.shape[2])
        at = (place.slot, place.block)
        place.writes.extend([(total, at, sums), (count, at, counts)])


def class_sums(values: np.ndarray | None, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return per class the float64 sum and the number of the values that are not NaN, each (class,)."""
    if values is None:
        return np.zeros(classes), np.zeros(classes, "int64")
    measured = ~np.isnan(values)
    labels, weights = labels[measured], values[measured].astype("float64")
    return np.bincount(labels, weights, minlength=classes), np.bincount(labels, minlength=classes)


def _add_entries(place: _Place, row: Row, errors: Mapping[str, str], state: int) -> None:
    """Add the writes of the ledger's entries for the parts in ``errors``; the other parts keep theirs."""
    at = [place.parts.index(part) for part in errors]
    now: dict[str, Any] = {
        "state": state,
        "key": [key_bytes(row.keys[part]) for part in errors],
        "reading": [place.readings.get(part, 0) for part in errors],
        "seconds": row.seconds,
        "time": time.time(),
        "provenance": json.dumps(dict(row.provenance), sort_keys=True),
    }
    if state == FAILED or (place.entries["state"][at] == FAILED).any():
        now["error"] = list(errors.values())
    for name, value in now.items():
        entries = place.entries[name].copy()
        entries[at] = value
        place.writes.append((place.ledger[name], (place.slot, place.block), entries))
