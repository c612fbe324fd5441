"""Layout: what a run wants of a cube's group, against what the store holds, and making it so."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr

from neurolens import schema
from neurolens.errors import SchemaError, StoreError, nearest
from neurolens.store import axes, naming
from neurolens.store.arrays import holds
from neurolens.store.encodings import stored_dtype
from neurolens.store.groups import (
    added_blocks,
    append_blocks,
    complete,
    create,
    fingerprints,
    first_blocks,
    merged_settings,
    named,
    stored_order,
)
from neurolens.store.ledger import PLACE, SERIES_DIMS, array_in, group_in, settings_of, strings
from neurolens.store.records import Axis, Layout, SampleCoords, Wanted, blocked, main_dims

RESERVED = frozenset(
    {
        *(*SERIES_DIMS, "slot", "sample", "label", "sample_block", PLACE, "class", "exposed", "measured"),
        *("ledger", "tiles"),
    }
)


@dataclass(frozen=True)
class _Change:
    """What has to be done: ``renew`` makes a new generation, ``added`` indexes the samples of a new block."""

    text: str = ""
    renew: bool = False
    added: tuple[int, ...] = ()


def wanted(
    cube: schema.Cube,
    run: str,
    series: str,
    samples: SampleCoords | None,
    settings: Mapping[str, Any],
    exposure: Mapping[int, Sequence[int]] | None,
    variables: Iterable[str] | None,
    positions: Iterable[int] | None,
    axes: Mapping[str, Axis],
    block_samples: int | None,
    fingerprint: str | None,
    encodings: Mapping[str, str],
) -> Wanted:
    """Return what is wanted as a record, checked."""
    names = None if variables is None else tuple(variables)
    named = None if positions is None else frozenset(positions)
    fixed = {dim: Axis(np.asarray(a.ids), {k: np.asarray(v) for k, v in a.coords.items()}) for dim, a in axes.items()}
    record = Wanted(
        cube, run, series, samples, settings, exposure, names, named, fixed, block_samples, fingerprint, encodings
    )
    check(record)
    return record


def check(wanted: Wanted) -> None:
    """Raise SchemaError if what is wanted contradicts itself."""
    cube = wanted.cube
    if wanted.series not in SERIES_DIMS:
        raise SchemaError(f"the series dim is {wanted.series!r}; it must be one of {SERIES_DIMS}")
    if blocked(cube):
        if wanted.samples is None:
            raise SchemaError(f"cube {cube.name!r} has rows of samples, and none are given; pass samples=")
        if wanted.fingerprint is not None:
            raise SchemaError(f"cube {cube.name!r} takes its fingerprints from its samples; leave fingerprint= out")
        if wanted.block_samples is not None and wanted.block_samples < 1:
            raise SchemaError(f"block_samples is {wanted.block_samples}; a block holds at least one sample")
        _check_samples(wanted.samples, cube)
    else:
        if wanted.samples is not None or wanted.block_samples is not None:
            raise SchemaError(f"cube {cube.name!r} has no rows of samples; pass fingerprint=, and leave samples out")
        if not wanted.fingerprint:
            raise SchemaError(f"cube {cube.name!r} needs to know its samples; pass their fingerprint as fingerprint=")
    names = [v.name for v in cube.variables]
    for name in (*(wanted.variables or ()), *wanted.encodings):
        if name not in names:
            raise SchemaError(f"cube {cube.name!r} has no {name!r}; {nearest(name, names)}")
    axes.check(wanted, RESERVED)
    for variable in wanted.measured:
        stored_dtype(variable, wanted.encodings.get(variable.name))
        if variable.summed and not blocked(cube):
            raise SchemaError(f"{variable.name!r} is summed over samples, which cube {cube.name!r} does not have")
    if wanted.exposure is not None and not wanted.classes:
        raise SchemaError(f"cube {cube.name!r} has no classes for the class schedule; leave exposure= out")


def _check_samples(samples: SampleCoords, cube: schema.Cube) -> None:
    n = len(samples)
    if n == 0:
        raise SchemaError(f"cube {cube.name!r} has no samples; select at least one")
    for name, values in {"labels": samples.labels, **samples.coords}.items():
        if np.shape(values) != (n,):
            raise SchemaError(f"{name!r} has shape {np.shape(values)} for {n} samples; give one value per sample")
    ids, counts = np.unique(np.asarray(samples.ids, str), return_counts=True)
    if len(ids) < n:
        raise SchemaError(f"sample id {str(ids[counts.argmax()])!r} occurs {counts.max()} times; ids must be unique")
    labels = np.asarray(samples.labels)
    if labels.min() < 0 or labels.max() >= len(samples.classes):
        raise SchemaError(
            f"labels range over {labels.min()}…{labels.max()}, and there are {len(samples.classes)} classes; "
            "give every label a class name"
        )
    taken = RESERVED | {v.name for v in cube.variables} | {*cube.dims, cube.sample}
    for name in samples.coords:
        if name in taken or name.endswith(("_sum", "_count")):
            raise SchemaError(f"a sample coordinate cannot be named {name!r}; that name is the store's own")


def read_layout(root: zarr.Group, cube: str, change: str = "") -> Layout | None:
    """Read how a cube lies in the store; None where it is not there."""
    group = root.get(cube)
    if not isinstance(group, zarr.Group):
        return None
    settings = settings_of(group)
    counts = settings["blocks"]
    ids = strings(group, "sample") if sum(counts) else np.zeros(0, str)
    return Layout(
        cube=cube,
        series=settings["series"],
        generation=settings["generation"],
        blocks=tuple(np.split(ids, np.cumsum(counts)[:-1])),
        fingerprints=tuple(strings(group_in(group, "ledger"), "fingerprint").tolist()),
        change=change,
        sizes=axes.sizes(group),
    )


def propose(root: zarr.Group, wanted: Wanted) -> Layout:
    """Return the layout that applying ``wanted`` would leave, with its ``change``. A pure read."""
    wanted = _grown(root, wanted)
    change = _compare(root, wanted)
    name, samples = wanted.cube.name, wanted.samples
    old = read_layout(root, name, change.text)
    sizes = {dim: len(axis) for dim, axis in wanted.axes.items()}
    if samples is not None:
        sizes |= {"sample": len(samples), "class": len(samples.classes)}
    if old is None or change.renew:
        generation = 0 if old is None else old.generation + 1
        counts = first_blocks(wanted)
        ids = np.zeros(0, str) if samples is None else np.asarray(samples.ids, str)
        blocks, digests = np.split(ids, np.cumsum(counts)[:-1]), fingerprints(wanted, counts)
        return Layout(name, wanted.series, generation, tuple(blocks), tuple(digests), change.text, sizes)
    sizes = {**old.sizes, **sizes}
    if samples is None:
        return replace(old, fingerprints=tuple(fingerprints(wanted, (0,))), sizes=sizes)
    if not change.added:
        return replace(old, sizes=sizes)
    counts = added_blocks(group_in(root, name), wanted, len(change.added))
    added = np.split(np.asarray(samples.ids, str)[list(change.added)], np.cumsum(counts)[:-1])
    digests = fingerprints(wanted, counts, change.added)
    return replace(old, blocks=(*old.blocks, *added), fingerprints=(*old.fingerprints, *digests), sizes=sizes)


def _grown(root: zarr.Group, wanted: Wanted) -> Wanted:
    group = root.get(wanted.cube.name)
    return axes.grown(group if isinstance(group, zarr.Group) else None, wanted)


def _compare(root: zarr.Group, wanted: Wanted) -> _Change:
    own: Any = root.attrs.get("neurolens", {})
    if own.get("run") not in (None, wanted.run):
        raise StoreError(
            f"this store holds run {own['run']!r}, and the study is named {wanted.run!r}; "
            "give every run a store of its own ([store] url), or name the study as the run"
        )
    group = root.get(wanted.cube.name)
    if not isinstance(group, zarr.Group):
        return _Change("create " + _extent(wanted))
    settings = settings_of(group)
    if settings["series"] != wanted.series:
        raise StoreError(
            f"cube {wanted.cube.name!r} is a series by {settings['series']}, and the checkpoints are now read by "
            f"{wanted.series}; set [checkpoints] series = {settings['series']!r}, or use another store"
        )
    reasons = _reasons_to_renew(group, wanted)
    if reasons:
        return _Change("new generation: " + "; ".join(reasons), renew=True)
    if wanted.samples is None:
        return _Change("; ".join(_differences(group, wanted, False)))
    known = set(strings(group, "sample").tolist())
    added = tuple(i for i, name in enumerate(np.asarray(wanted.samples.ids, str).tolist()) if name not in known)
    texts = [f"append {len(added)} {wanted.cube.sample}s"] if added else []
    return _Change("; ".join(texts + _differences(group, wanted, bool(added))), added=added)


def _extent(wanted: Wanted) -> str:
    """Say how large a cube is to be, but for its series."""
    sizes = [] if wanted.samples is None else [f"{len(wanted.samples)} {wanted.cube.sample}s"]
    sizes += [f"{len(axis)} {axes.plural(dim)}" for dim, axis in wanted.axes.items() if dim in main_dims(wanted.cube)]
    return " × ".join(sizes)


def _reasons_to_renew(group: zarr.Group, wanted: Wanted) -> list[str]:
    reasons = axes.reasons_to_renew(group, wanted)
    if wanted.samples is not None:
        reasons += _changed_samples(group, wanted.samples, keeping=naming.keeps(wanted.cube))
    for variable in wanted.measured:
        array = group.get(variable.name)
        encoding = wanted.encodings.get(variable.name)
        now = stored_dtype(variable, encoding)
        if not isinstance(array, zarr.Array):
            continue
        if array.dtype != now:
            reasons.append(f"{variable.name} was stored as {array.dtype} and is now {now}")
        elif array.attrs.get("encoding", str(now)) != (encoding or str(now)):
            was = array.attrs.get("encoding", str(now))
            reasons.append(f"{variable.name} was stored as {was} and is now {encoding or now}")
    return reasons


def _changed_samples(group: zarr.Group, samples: SampleCoords, *, keeping: bool) -> list[str]:
    reasons = []
    classes = tuple(strings(group, "class").tolist())
    if classes != tuple(samples.classes):
        reasons.append(f"classes were {len(classes)} and are {len(samples.classes)}, or are named otherwise")
    ids = strings(group, "sample").tolist()
    label_of = dict(zip(np.asarray(samples.ids, str).tolist(), np.asarray(samples.labels).tolist(), strict=True))
    gone = 0 if keeping else sum(name not in label_of for name in ids)
    if gone:
        reasons.append(f"{gone} of {len(ids)} samples were removed or altered")
    labels = np.asarray(array_in(group, "label")[:]).tolist()
    moved = sum(label_of.get(name, label) != label for name, label in zip(ids, labels, strict=True))
    if moved:
        reasons.append(f"{moved} labels were changed")
    return reasons


def _differences(group: zarr.Group, wanted: Wanted, grown: bool) -> list[str]:
    """Name what differs short of the samples and the main axes: settings, other axes, arrays, coordinates."""
    out = []
    if merged_settings(settings_of(group), wanted) != settings_of(group):
        out.append("update settings")
    arrays = [v.name for v in wanted.measured if v.name not in group]
    if arrays or ("exposed" not in group and wanted.exposure is not None):
        out.append("add arrays " + ", ".join(arrays or ["exposed"]))
    parts = set(strings(group_in(group, "ledger"), "part").tolist())
    if {p.name for p in wanted.cube.parts} - parts:
        out.append("add parts to the ledger")
    if not blocked(wanted.cube) and strings(group_in(group, "ledger"), "fingerprint").tolist() != [wanted.fingerprint]:
        out.append("measure other samples")
    out += axes.differences(group, wanted)
    if wanted.samples is not None and naming.keeps(wanted.cube):
        out += naming.changes(group, wanted.samples, wanted.cube.sample)
    if not grown:
        order = stored_order(group, wanted)
        changed = [name for name in order if name != PLACE and not holds(group, name, order[name])]
        if changed:
            out.append("update coordinates " + ", ".join(changed))
    before, now = np.asarray(array_in(group_in(group, "ledger"), "named")[:]), named(group, wanted)
    for count, what in (((before & ~now).sum(), "no longer names"), ((now & ~before).sum(), "names again")):
        if count:
            out.append(f"mark {count} {wanted.series}{'s' if count > 1 else ''} that the study {what}")
    return out


def apply(root: zarr.Group, wanted: Wanted, tip: str) -> str:
    """Make the group what is wanted, changing only what differs, and return what was changed."""
    wanted = _grown(root, wanted)
    change = _compare(root, wanted)
    if not change.text:
        return ""
    name = wanted.cube.name
    own: Any = root.attrs["neurolens"]
    if own.get("run") is None:
        root.attrs["neurolens"] = {**own, "run": wanted.run}
    if name not in root:
        create(root, wanted, generation=0, previous=None)
    elif change.renew:
        generation = settings_of(group_in(root, name))["generation"] + 1
        del root[name]
        create(root, wanted, generation=generation, previous=tip)
    else:
        group = group_in(root, name)
        if change.added:
            append_blocks(group, wanted, change.added)
        complete(group, wanted)
    return change.text


__all__ = ["Layout", "SampleCoords", "Wanted", "apply", "check", "propose", "read_layout", "wanted"]
