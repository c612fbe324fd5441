"""Groups: created from the schema, grown by blocks of samples, completed by what they lack.

Along ``slot`` every array is allocated some way ahead of its use; a slot that is not used yet has −1 as its position.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.dtypes import StringDType
from zarr.codecs import ZstdCodec

from neurolens import schema
from neurolens.errors import SchemaError
from neurolens.fingerprints import sample_fingerprint
from neurolens.store.ledger import array_in, arrays_in, group_in, settings_of, strings
from neurolens.store.records import Wanted

SLOTS_AHEAD = 64
LEDGER_SLOTS = 64  # slots per chunk of the ledger: small enough to rewrite at every row, few enough to read at once
SUMS_BYTES = 2**16
MAX_CHUNK = 2**20

LEDGER = {
    "state": ("uint8", 0),
    "reading": ("uint64", 0),
    "seconds": ("float64", np.nan),
    "time": ("float64", np.nan),
    "error": ("string", ""),
    "provenance": ("string", ""),
}


def create(root: zarr.Group, wanted: Wanted, *, generation: int, previous: str | None) -> None:
    """Create the group of a cube from the schema, with the wanted samples as its first block."""
    cube, samples = wanted.cube, wanted.samples
    base = {
        "cube": cube.name,
        "series": wanted.series,
        "generation": generation,
        "previous_snapshot": previous,
        "blocks": [len(samples)],
    }
    group = root.create_group(cube.name, attributes={"neurolens": merged_settings(base, wanted)})
    add_array(group, wanted.series, "int64", ("slot",), (SLOTS_AHEAD,), (1024,), -1)
    n = min(len(samples), MAX_CHUNK)
    _put(group, "sample", np.asarray(samples.ids, str), "sample", n)
    _put(group, "label", np.asarray(samples.labels, "int64"), "sample", n)
    _put(group, "sample_block", np.zeros(len(samples), "int32"), "sample", n)
    _put(group, "class", np.asarray(samples.classes, str), "class", len(samples.classes))
    ledger = group.create_group("ledger")
    parts = [p.name for p in cube.parts]
    _put(ledger, "part", np.asarray(parts, str), "part", len(parts))
    _put(ledger, "fingerprint", np.asarray([sample_fingerprint(samples.ids, samples.labels)], str), "block", 64)
    dims, shape, chunks = ("slot", "block", "part"), (SLOTS_AHEAD, 1, len(parts)), (LEDGER_SLOTS, 1, len(parts))
    for name, (dtype, fill) in LEDGER.items():
        add_array(ledger, name, dtype, dims, shape, chunks, fill)
    add_array(ledger, "key", "uint8", (*dims, "byte"), (*shape, 32), (*chunks, 32), 0)
    add_array(ledger, "named", "bool", ("slot",), (SLOTS_AHEAD,), (1024,), True)
    complete(group, wanted)


def complete(group: zarr.Group, wanted: Wanted) -> None:
    """Bring settings, arrays, ledger parts and coordinates up to what is wanted; the samples are in place."""
    series = array_in(group, wanted.series)
    slots, samples, blocks = series.shape[0], array_in(group, "sample").shape[0], len(settings_of(group)["blocks"])
    chunk = array_in(group, "sample").chunks[0]
    classes = len(wanted.samples.classes)
    group.attrs["neurolens"] = merged_settings(settings_of(group), wanted)
    for variable in wanted.measured:
        if variable.name in group:
            continue
        attrs = variable.attrs
        shape = (slots, samples)
        add_array(
            group, variable.name, variable.dtype, ("slot", "sample"), shape, (1, chunk), variable.fill_value, attrs
        )
        if variable.summed:
            dims, shape3, chunks3 = (
                ("slot", "block", "class"),
                (slots, blocks, classes),
                (slots_per_chunk(classes), 1, classes),
            )
            attrs = {"long_name": f"sum of {variable.name} over the samples of a class", "units": variable.units}
            add_array(group, f"{variable.name}_sum", "float64", dims, shape3, chunks3, 0.0, attrs)
            attrs = {"long_name": f"number of samples in {variable.name}_sum; 0: not measured", "units": "1"}
            add_array(group, f"{variable.name}_count", "int64", dims, shape3, chunks3, 0, attrs)
    _add_parts(group_in(group, "ledger"), wanted.cube)
    for name, values in stored_order(group, wanted).items():
        if not holds(group, name, values):
            _put(group, name, values, "sample", chunk, overwrite=True)
    _complete_exposure(group, wanted)
    array_in(group_in(group, "ledger"), "named")[:] = named(group, wanted)


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
    slots, classes = array_in(group, wanted.series).shape[0], len(wanted.samples.classes)
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


def append_block(group: zarr.Group, wanted: Wanted, added: list[int]) -> None:
    """Add samples as a new block; the others keep their place."""
    settings = settings_of(group)
    ids = np.asarray(wanted.samples.ids, str)[added]
    labels = np.asarray(wanted.samples.labels, "int64")[added]
    old, block = sum(settings["blocks"]), len(settings["blocks"])
    ledger = group_in(group, "ledger")
    grow(arrays_in(group).values(), "sample", old + len(added))
    for target in (group, ledger):
        grow(arrays_in(target).values(), "block", block + 1)
    array_in(group, "sample")[old:] = storable(ids)
    array_in(group, "label")[old:] = labels
    array_in(group, "sample_block")[old:] = block
    array_in(ledger, "fingerprint")[block] = sample_fingerprint(ids, labels)
    group.attrs["neurolens"] = {**settings, "blocks": [*settings["blocks"], len(added)]}


def grow(arrays: Iterable[zarr.Array[Any]], dim: str, size: int) -> None:
    """Resize those of the arrays that have this dimension."""
    for array in arrays:
        names = array.metadata.dimension_names or ()  # type: ignore[union-attr]
        if dim in names:
            array.resize(tuple(size if d == dim else n for d, n in zip(names, array.shape, strict=True)))


def exposed_classes(schedule: Mapping[str, Sequence[int]], epoch: int, classes: int) -> np.ndarray:
    """Return which classes a schedule (first epoch → classes from there on) lists at an epoch, (class,) bool."""
    started = [int(first) for first in schedule if int(first) <= epoch]
    row = np.zeros(classes, bool)
    if started:
        row[list(schedule[str(max(started))])] = True
    return row


def add_array(
    group: zarr.Group,
    name: str,
    dtype: str,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    fill: Any,
    attrs: Mapping[str, str] | None = None,
) -> zarr.Array[Any]:
    """Create an array: floats raw (they are noise to a compressor), all else lightly compressed."""
    raw = np.dtype(dtype).kind == "f" if dtype != "string" else False
    return group.create_array(
        name,
        shape=shape,
        dtype=StringDType() if dtype == "string" else dtype,
        chunks=chunks,
        fill_value=fill,
        dimension_names=dims,
        compressors=None if raw else (ZstdCodec(level=1),),
        attributes=dict(attrs or {}),
    )


def _put(group: zarr.Group, name: str, values: np.ndarray, dim: str, chunk: int, overwrite: bool = False) -> None:
    values = storable(values)
    if overwrite and name in group:
        del group[name]
    dtype = "string" if isinstance(values.dtype, StringDType) else str(values.dtype)
    fill: Any = {"f": np.nan, "b": False, "T": ""}.get(values.dtype.kind, 0)
    array = add_array(group, name, dtype, (dim,), values.shape, (max(chunk, 1),), fill)
    array[:] = values


def stored_order(group: zarr.Group, wanted: Wanted) -> dict[str, np.ndarray]:
    """Return the wanted coordinates in the order of the stored samples."""
    ids = strings(group, "sample").tolist()
    position = {name: i for i, name in enumerate(np.asarray(wanted.samples.ids, str).tolist())}
    order = [position[name] for name in ids]
    return {name: storable(values)[order] for name, values in wanted.samples.coords.items()}


def holds(group: zarr.Group, name: str, values: np.ndarray) -> bool:
    """Whether a coordinate is stored with exactly these values."""
    array = group.get(name)
    if not isinstance(array, zarr.Array) or array.dtype != values.dtype or array.shape != values.shape:
        return False
    return np.array_equal(np.asarray(array[:]), values, equal_nan=values.dtype.kind == "f")


def storable(values: np.ndarray) -> np.ndarray:
    """Return values as they are stored: strings in variable length."""
    values = np.asarray(values)
    return values.astype(StringDType()) if values.dtype.kind in "UOST" else values


def merged_settings(old: Mapping[str, Any], wanted: Wanted) -> dict[str, Any]:
    """Lay the wanted settings over the stored ones; parts measured before keep theirs."""
    exposure = None
    if wanted.exposure is not None:
        exposure = {str(e): [int(c) for c in wanted.exposure[e]] for e in sorted(wanted.exposure)}
    new: dict[str, Any] = json.loads(json.dumps(dict(wanted.settings)))
    new["parts"] = {**old.get("parts", {}), **new.get("parts", {})}
    return {**old, **new, "exposure": exposure}
