"""Groups: created from the schema, grown by blocks of samples, completed by what they lack.

A group is blocked by samples, or its rows are whole and lie along fixed axes alone (`neurolens.store.axes`).

Along ``slot`` every array is allocated some way ahead of its use; a slot that is not used yet has −1 as its position.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.dtypes import StringDType

from neurolens import schema
from neurolens.errors import SchemaError
from neurolens.fingerprints import sample_fingerprint
from neurolens.store import axes, naming
from neurolens.store.arrays import add_array, grow, holds, put, storable
from neurolens.store.encodings import stored_dtype
from neurolens.store.ledger import array_in, arrays_in, group_in, settings_of, strings
from neurolens.store.records import SampleCoords, Wanted, blocked
from neurolens.store.shapes import block_sizes, chunk_shape, sample_chunk

SLOTS_AHEAD = 64
LEDGER_SLOTS = 64  # slots per chunk of the ledger: small enough to rewrite at every row, few enough to read at once
SUMS_BYTES = 2**16

LEDGER = {
    "state": ("uint8", 0),
    "reading": ("uint64", 0),
    "seconds": ("float64", np.nan),
    "time": ("float64", np.nan),
    "error": ("string", ""),
    "provenance": ("string", ""),
}


def create(root: zarr.Group, wanted: Wanted, *, generation: int, previous: str | None) -> None:
    """Create the group of a cube from the schema, with the wanted samples as its first blocks."""
    cube, blocks = wanted.cube, list(first_blocks(wanted))
    base: dict[str, Any] = {
        "cube": cube.name,
        "series": wanted.series,
        "generation": generation,
        "previous_snapshot": previous,
        "blocks": blocks,
    }
    chunk = block_chunk(wanted)
    if chunk is not None:
        base["sample_chunk"] = chunk
    group = root.create_group(cube.name, attributes={"neurolens": merged_settings(base, wanted)})
    add_array(group, wanted.series, "int64", ("slot",), (SLOTS_AHEAD,), (1024,), -1)
    if wanted.samples is not None:
        _put_samples(group, wanted.samples, blocks)
    ledger = group.create_group("ledger")
    parts = [p.name for p in cube.parts]
    put(ledger, "part", np.asarray(parts, str), "part", len(parts))
    put(ledger, "fingerprint", np.asarray(fingerprints(wanted, blocks), str), "block", 64)
    dims, shape = ("slot", "block", "part"), (SLOTS_AHEAD, len(blocks), len(parts))
    chunks = (LEDGER_SLOTS, 1, len(parts))
    for name, (dtype, fill) in LEDGER.items():
        add_array(ledger, name, dtype, dims, shape, chunks, fill)
    add_array(ledger, "key", "uint8", (*dims, "byte"), (*shape, 32), (*chunks, 32), 0)
    add_array(ledger, "named", "bool", ("slot",), (SLOTS_AHEAD,), (1024,), True)
    complete(group, wanted)


def _put_samples(group: zarr.Group, samples: SampleCoords, blocks: Sequence[int]) -> None:
    chunk = sample_chunk(len(samples), (schema.SERIES, "sample"), None)
    put(group, "sample", np.asarray(samples.ids, str), "sample", chunk)
    put(group, "label", np.asarray(samples.labels, "int64"), "sample", chunk)
    put(group, "sample_block", np.repeat(np.arange(len(blocks), dtype="int32"), blocks), "sample", chunk)
    put(group, "class", np.asarray(samples.classes, str), "class", len(samples.classes))


def block_chunk(wanted: Wanted) -> int | None:
    """Return how many samples share a chunk of what a sample has more than one number of; None where there is none."""
    found = [v for v in wanted.cube.variables if "sample" in v.dims and len(v.dims) > 2]
    if wanted.samples is None or not found:
        return None
    return sample_chunk(len(wanted.samples), found[0].dims, wanted.block_samples)


def first_blocks(wanted: Wanted) -> tuple[int, ...]:
    """Return how many samples each block of a new group has; a group without samples has one block, of none."""
    if wanted.samples is None:
        return (0,)
    n = len(wanted.samples)
    chunk = block_chunk(wanted) or sample_chunk(n, (schema.SERIES, "sample"), None)
    return block_sizes(n, start=0, chunk=chunk, most=wanted.block_samples)


def added_blocks(group: zarr.Group, wanted: Wanted, added: int) -> tuple[int, ...]:
    """Return how many samples each of the blocks has that new samples would be appended as."""
    settings = settings_of(group)
    chunk = int(settings.get("sample_chunk") or array_in(group, "sample").chunks[0])
    return block_sizes(added, start=sum(settings["blocks"]), chunk=chunk, most=wanted.block_samples)


def fingerprints(wanted: Wanted, blocks: Sequence[int], chosen: Sequence[int] | None = None) -> list[str]:
    """Return the fingerprint of each block of the wanted samples (or the ``chosen`` ones, in that order)."""
    if wanted.samples is None:
        return [str(wanted.fingerprint)]
    ids, labels = np.asarray(wanted.samples.ids, str), np.asarray(wanted.samples.labels, "int64")
    if chosen is not None:
        ids, labels = ids[list(chosen)], labels[list(chosen)]
    ends = np.cumsum(blocks)[:-1]
    return [sample_fingerprint(i, n) for i, n in zip(np.split(ids, ends), np.split(labels, ends), strict=True)]


def complete(group: zarr.Group, wanted: Wanted) -> None:
    """Bring settings, axes, arrays, ledger and coordinates up to what is wanted; the samples are in place."""
    group.attrs["neurolens"] = merged_settings(settings_of(group), wanted)
    ledger = group_in(group, "ledger")
    if wanted.samples is None and strings(ledger, "fingerprint").tolist() != [wanted.fingerprint]:
        array_in(ledger, "fingerprint")[0] = str(wanted.fingerprint)
    axes.bring_up(group, wanted)
    sizes = axes.sizes(group)
    for variable in wanted.measured:
        if variable.name not in group:
            _add_variable(group, wanted, variable, sizes)
    _add_parts(ledger, wanted.cube)
    chunk = array_in(group, "sample").chunks[0] if blocked(wanted.cube) else 1
    for name, values in stored_order(group, wanted).items():
        if not holds(group, name, values):
            put(group, name, values, "sample", chunk, overwrite=True)
    _complete_exposure(group, wanted)
    array_in(ledger, "named")[:] = named(group, wanted)


def _add_variable(group: zarr.Group, wanted: Wanted, variable: schema.Variable, sizes: Mapping[str, int]) -> None:
    """Add the array of a variable, and those of its sums and counts."""
    slots, settings = array_in(group, wanted.series).shape[0], settings_of(group)
    encoding = wanted.encodings.get(variable.name)
    dtype = stored_dtype(variable, encoding)
    fixed = {dim: sizes[dim] for dim in variable.dims if dim != schema.SERIES}
    together = 1
    if "sample" in fixed and blocked(wanted.cube):
        together = array_in(group, "sample").chunks[0] if len(variable.dims) == 2 else settings["sample_chunk"]
    add_array(
        group,
        variable.name,
        str(dtype),
        ("slot", *fixed),
        (slots, *fixed.values()),
        chunk_shape(variable, dtype.itemsize, fixed, together),
        variable.fill_value,
        variable.attrs if encoding is None else {**variable.attrs, "encoding": encoding},
        encoding=encoding,
    )
    if variable.summed:
        blocks, classes = len(settings["blocks"]), len(wanted.classes)
        dims, shape = ("slot", "block", "class"), (slots, blocks, classes)
        chunks = (slots_per_chunk(classes), 1, classes)
        attrs = {"long_name": f"sum of {variable.name} over the samples of a class", "units": variable.units}
        add_array(group, f"{variable.name}_sum", "float64", dims, shape, chunks, 0.0, attrs)
        attrs = {"long_name": f"number of samples in {variable.name}_sum; 0: not measured", "units": "1"}
        add_array(group, f"{variable.name}_count", "int64", dims, shape, chunks, 0, attrs)


def named(group: zarr.Group, wanted: Wanted) -> np.ndarray:
    """Return which slots the study names, (slot,) bool; those that are not used yet count as named."""
    if wanted.positions is None:
        return np.asarray(array_in(group_in(group, "ledger"), "named")[:])
    at = np.asarray(array_in(group, wanted.series)[:])
    return (at < 0) | np.isin(at, sorted(wanted.positions))


def _complete_exposure(group: zarr.Group, wanted: Wanted) -> None:
    """Make ``exposed`` what the class schedule says at every row, or remove it where there is none."""
    if wanted.exposure is None:
        if "exposed" in group:
            del group["exposed"]
        return
    used = np.flatnonzero(np.asarray(array_in(group, wanted.series)[:]) >= 0)
    slots, classes = array_in(group, wanted.series).shape[0], len(wanted.classes)
    if "exposed" not in group:
        attrs = {"long_name": "whether the class had been shown to the network by then", "units": "1"}
        chunks = (slots_per_chunk(classes), classes)
        add_array(group, "exposed", "bool", ("slot", "class"), (slots, classes), chunks, False, attrs)
    if not len(used):
        return
    epochs = np.asarray(array_in(group, "epoch")[:])[used] if "epoch" in group else np.full(len(used), -1)
    if (epochs < 0).any():
        raise SchemaError(f"the class schedule is by epoch, and {(epochs < 0).sum()} rows have no known epoch")
    schedule = settings_of(group)["exposure"]
    array_in(group, "exposed")[: len(used)] = np.stack([exposed_classes(schedule, int(e), classes) for e in epochs])


def slots_per_chunk(classes: int) -> int:
    """Return how many slots of per-class sums share a chunk."""
    return max(1, min(LEDGER_SLOTS, SUMS_BYTES // (8 * classes)))


def _add_parts(ledger: zarr.Group, cube: schema.Cube) -> None:
    part = array_in(ledger, "part")
    stored = strings(ledger, "part").tolist()
    new = [p.name for p in cube.parts if p.name not in stored]
    if new:
        part.append(np.asarray(new, StringDType()))
        grow(arrays_in(ledger).values(), "part", part.shape[0])


def append_blocks(group: zarr.Group, wanted: Wanted, added: Sequence[int]) -> None:
    """Add samples as new blocks; the others keep their place."""
    assert wanted.samples is not None
    settings, sizes = settings_of(group), added_blocks(group, wanted, len(added))
    ids = np.asarray(wanted.samples.ids, str)[list(added)]
    labels = np.asarray(wanted.samples.labels, "int64")[list(added)]
    old, block = sum(settings["blocks"]), len(settings["blocks"])
    ledger = group_in(group, "ledger")
    grow(arrays_in(group).values(), "sample", old + len(added))
    for target in (group, ledger):
        grow(arrays_in(target).values(), "block", block + len(sizes))
    array_in(group, "sample")[old:] = storable(ids)
    array_in(group, "label")[old:] = labels
    array_in(group, "sample_block")[old:] = np.repeat(np.arange(block, block + len(sizes), dtype="int32"), sizes)
    array_in(ledger, "fingerprint")[block:] = storable(np.asarray(fingerprints(wanted, sizes, added), str))
    group.attrs["neurolens"] = {**settings, "blocks": [*settings["blocks"], *sizes]}


def exposed_classes(schedule: Mapping[str, Sequence[int]], epoch: int, classes: int) -> np.ndarray:
    """Return which classes a schedule (first epoch → classes from there on) lists at an epoch, (class,) bool."""
    started = [int(first) for first in schedule if int(first) <= epoch]
    row = np.zeros(classes, bool)
    if started:
        row[list(schedule[str(max(started))])] = True
    return row


def stored_order(group: zarr.Group, wanted: Wanted) -> dict[str, np.ndarray]:
    """Return the wanted coordinates of the samples in the order of the stored ones."""
    if wanted.samples is None:
        return {}
    if naming.keeps(wanted.cube):
        return naming.kept_order(group, wanted.samples)
    ids = strings(group, "sample").tolist()
    position = {name: i for i, name in enumerate(np.asarray(wanted.samples.ids, str).tolist())}
    order = [position[name] for name in ids]
    return {name: storable(values)[order] for name, values in wanted.samples.coords.items()}


def merged_settings(old: Mapping[str, Any], wanted: Wanted) -> dict[str, Any]:
    """Lay the wanted settings over the stored ones; parts measured before keep theirs."""
    exposure = None
    if wanted.exposure is not None:
        exposure = {str(e): [int(c) for c in wanted.exposure[e]] for e in sorted(wanted.exposure)}
    new: dict[str, Any] = json.loads(json.dumps(dict(wanted.settings)))
    new["parts"] = {**old.get("parts", {}), **new.get("parts", {})}
    return {**old, **new, "exposure": exposure}
