"""What one commit writes: a row's data, its sums and its ledger entries, or the reason why it failed."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from neurolens import schema
from neurolens.errors import SchemaError, StoreError, nearest
from neurolens.store.groups import SLOTS_AHEAD, add_array, exposed_classes, grow
from neurolens.store.ledger import DONE, FAILED, SERIES_DIMS, array_in, group_in, key_bytes, settings_of, strings
from neurolens.store.locks import RowId


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
    group = _group(root, row)
    slot, extent = _place(group, row)
    values = {v.name: _checked(row, v, extent) for v in _variables(group, row)}
    _write_values(group, row, slot, extent, values)
    _write_ledger(group, row, slot, dict.fromkeys(row.keys, ""), DONE)


def write_failed(root: zarr.Group, row: Row, error: str) -> bool:
    """Record why a row failed, and return whether there was anything to record.

    A part that is done under the same key stays done. One that was done under another key is stale: it becomes
    failed, and its numbers are set to *not measured* (the history keeps them).
    """
    group = _group(root, row)
    slot, extent = _place(group, row)
    ledger = group_in(group, "ledger")
    parts = strings(ledger, "part").tolist()
    states = np.asarray(array_in(ledger, "state")[slot, row.row[1]])
    keys = np.asarray(array_in(ledger, "key")[slot, row.row[1]])
    failed = {
        part: error
        for part, key in row.keys.items()
        if not (states[parts.index(part)] == DONE and (keys[parts.index(part)] == key_bytes(key)).all())
    }
    stale = [part for part in failed if states[parts.index(part)] == DONE]
    blank = {v.name: None for part in stale for v in row.cube.part(part).variables if v.name in group}
    _write_values(group, row, slot, extent, blank)
    if failed:
        _write_ledger(group, row, slot, failed, FAILED)
    return bool(failed)


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
    return group


def _place(group: zarr.Group, row: Row) -> tuple[int, slice]:
    """Return the slot of the row's position, made if it is new, and the extent of its block."""
    settings = settings_of(group)
    position, block = row.row
    series = settings["series"]
    if row.positions.get(series) != position:
        raise SchemaError(f"row {row.row} is given with positions {dict(row.positions)}; {series} must be {position}")
    known = np.asarray(array_in(group, series)[:])
    found = np.flatnonzero(known == position)
    slot = int(found[0]) if len(found) else int(np.count_nonzero(known >= 0))
    if slot >= len(known):
        for target in (group, group_in(group, "ledger")):
            grow(target, "slot", len(known) + SLOTS_AHEAD)
    for dim, at in row.positions.items():
        if at is None:
            continue
        if dim not in group:
            size = array_in(group, series).shape[0]
            add_array(group, dim, "int64", ("slot",), (size,), (1024,), -1)
        if dim != series or not len(found):
            array_in(group, dim)[slot] = at
    if not len(found) and "exposed" in group and settings["exposure"] is not None:
        epoch = row.positions.get("epoch")
        if epoch is None:
            raise SchemaError(f"the class schedule is by epoch, and the epoch of {series} {position} is not known")
        classes = array_in(group, "class").shape[0]
        array_in(group, "exposed")[slot] = exposed_classes(settings["exposure"], epoch, classes)
    start = sum(settings["blocks"][:block])
    return slot, slice(start, start + settings["blocks"][block])


def _variables(group: zarr.Group, row: Row) -> list[schema.Variable]:
    """Return the variables of the row's parts that the group has an array for."""
    wanted = [v for part in row.keys for v in row.cube.part(part).variables]
    for variable in wanted:
        if variable.name in row.values and variable.name not in group:
            raise StoreError(f"the store has no array for {variable.name!r}; name its part when preparing the cube")
    return [v for v in wanted if v.name in group]


def _checked(row: Row, variable: schema.Variable, extent: slice) -> np.ndarray | None:
    if variable.name not in row.values:
        return None
    values = np.asarray(row.values[variable.name])
    size = extent.stop - extent.start
    if values.shape != (size,):
        raise SchemaError(f"{variable.name!r} has shape {values.shape}; block {row.row[1]} has {size} samples")
    if not np.can_cast(values.dtype, variable.dtype, "same_kind"):
        raise SchemaError(f"{variable.name!r} is {values.dtype}, which does not fit into {variable.dtype}")
    return values.astype(variable.dtype)


def _write_values(
    group: zarr.Group, row: Row, slot: int, extent: slice, values: Mapping[str, np.ndarray | None]
) -> None:
    """Write variables and their sums; None stands for *not measured*."""
    labels: np.ndarray | None = None
    for name, array in values.items():
        variable = next(v for v in row.cube.variables if v.name == name)
        target = array_in(group, name)
        target[slot, extent] = variable.fill_value if array is None else array
        if not variable.summed:
            continue
        if labels is None:
            labels = np.asarray(array_in(group, "label")[extent])
        total, count = array_in(group, f"{name}_sum"), array_in(group, f"{name}_count")
        total[slot, row.row[1]], count[slot, row.row[1]] = class_sums(array, labels, total.shape[2])


def class_sums(values: np.ndarray | None, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return per class the float64 sum and the number of the values that are not NaN, each (class,)."""
    if values is None:
        return np.zeros(classes), np.zeros(classes, "int64")
    measured = ~np.isnan(values)
    labels, weights = labels[measured], values[measured].astype("float64")
    return np.bincount(labels, weights, minlength=classes), np.bincount(labels, minlength=classes)


def _write_ledger(group: zarr.Group, row: Row, slot: int, errors: Mapping[str, str], state: int) -> None:
    ledger = group_in(group, "ledger")
    parts = strings(ledger, "part").tolist()
    block = row.row[1]
    before = np.asarray(array_in(ledger, "state")[slot, block])
    at = [parts.index(part) for part in errors]
    now = {
        "state": state,
        "seconds": row.seconds,
        "time": time.time(),
        "provenance": json.dumps(dict(row.provenance), sort_keys=True),
    }
    for name, value in now.items():
        entries = np.asarray(array_in(ledger, name)[slot, block])
        entries[at] = value
        array_in(ledger, name)[slot, block] = entries
    keys = np.asarray(array_in(ledger, "key")[slot, block])
    keys[at] = [key_bytes(row.keys[part]) for part in errors]
    array_in(ledger, "key")[slot, block] = keys
    if state == FAILED or (before[at] == FAILED).any():
        texts = np.asarray(array_in(ledger, "error")[slot, block])
        for i, text in zip(at, errors.values(), strict=True):
            texts[i] = text
        array_in(ledger, "error")[slot, block] = texts
