"""Layout: what a run wants of a cube's group, against what the store holds, and making it so."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from neurolens import schema
from neurolens.errors import SchemaError, StoreError, nearest
from neurolens.fingerprints import sample_fingerprint
from neurolens.store.groups import append_block, complete, create, holds, merged_settings, named, stored_order
from neurolens.store.ledger import SERIES_DIMS, array_in, group_in, settings_of, strings
from neurolens.store.records import Layout, SampleCoords, Wanted

RESERVED = frozenset({*SERIES_DIMS, "sample", "label", "sample_block", "class", "exposed", "ledger", "tiles"})


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
    samples: SampleCoords,
    settings: Mapping[str, Any],
    exposure: Mapping[int, Sequence[int]] | None,
    variables: Iterable[str] | None,
    positions: Iterable[int] | None,
) -> Wanted:
    """Return what is wanted as a record, checked."""
    names = None if variables is None else tuple(variables)
    named = None if positions is None else frozenset(positions)
    record = Wanted(cube, run, series, samples, settings, exposure, names, named)
    check(record)
    return record


def check(wanted: Wanted) -> None:
    """Raise SchemaError if what is wanted contradicts itself."""
    samples, cube = wanted.samples, wanted.cube
    n = len(samples)
    if wanted.series not in SERIES_DIMS:
        raise SchemaError(f"the series dim is {wanted.series!r}; it must be one of {SERIES_DIMS}")
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
    taken = RESERVED | {v.name for v in cube.variables}
    for name in samples.coords:
        if name in taken or name.endswith(("_sum", "_count")):
            raise SchemaError(f"a sample coordinate cannot be named {name!r}; that name is the store's own")
    for name in wanted.variables or ():
        if name not in {v.name for v in cube.variables}:
            raise SchemaError(f"cube {cube.name!r} has no {name!r}; {nearest(name, [v.name for v in cube.variables])}")
    for variable in wanted.measured:
        if variable.dims != (schema.SERIES, "sample"):
            raise SchemaError(f"{variable.name!r} has dims {variable.dims}; this store lays out (series, sample) only")


def read_layout(root: zarr.Group, cube: str, change: str = "") -> Layout | None:
    """Read how a cube lies in the store; None where it is not there."""
    group = root.get(cube)
    if not isinstance(group, zarr.Group):
        return None
    settings = settings_of(group)
    ids = strings(group, "sample")
    return Layout(
        cube=cube,
        series=settings["series"],
        generation=settings["generation"],
        blocks=tuple(np.split(ids, np.cumsum(settings["blocks"])[:-1])),
        fingerprints=tuple(strings(group_in(group, "ledger"), "fingerprint").tolist()),
        change=change,
    )


def propose(root: zarr.Group, wanted: Wanted) -> Layout:
    """Return the layout that applying ``wanted`` would leave, with its ``change``. A pure read."""
    change = _compare(root, wanted)
    old = read_layout(root, wanted.cube.name, change.text)
    samples = wanted.samples
    if old is None or change.renew:
        generation = 0 if old is None else old.generation + 1
        ids = np.asarray(samples.ids, str)
        digest = sample_fingerprint(samples.ids, samples.labels)
        return Layout(wanted.cube.name, wanted.series, generation, (ids,), (digest,), change.text)
    if not change.added:
        return old
    added = np.asarray(samples.ids, str)[list(change.added)]
    digest = sample_fingerprint(added, np.asarray(samples.labels)[list(change.added)])
    blocks, digests = (*old.blocks, added), (*old.fingerprints, digest)
    return Layout(old.cube, old.series, old.generation, blocks, digests, change.text)


def _compare(root: zarr.Group, wanted: Wanted) -> _Change:
    own: Any = root.attrs.get("neurolens", {})
    if own.get("run") not in (None, wanted.run):
        raise StoreError(
            f"this store holds run {own['run']!r}, and the study is named {wanted.run!r}; "
            "give every run a store of its own ([store] url), or name the study as the run"
        )
    group = root.get(wanted.cube.name)
    if not isinstance(group, zarr.Group):
        return _Change(f"create {len(wanted.samples)} samples")
    settings = settings_of(group)
    if settings["series"] != wanted.series:
        raise StoreError(
            f"cube {wanted.cube.name!r} is a series by {settings['series']}, and the checkpoints are now read by "
            f"{wanted.series}; set [checkpoints] series = {settings['series']!r}, or use another store"
        )
    reasons = _reasons_to_renew(group, wanted)
    if reasons:
        return _Change("new generation: " + "; ".join(reasons), renew=True)
    known = set(strings(group, "sample").tolist())
    added = tuple(i for i, name in enumerate(np.asarray(wanted.samples.ids, str).tolist()) if name not in known)
    texts = [f"append {len(added)} samples"] if added else []
    return _Change("; ".join(texts + _differences(group, wanted, bool(added))), added=added)


def _reasons_to_renew(group: zarr.Group, wanted: Wanted) -> list[str]:
    reasons = []
    samples = wanted.samples
    classes = tuple(strings(group, "class").tolist())
    if classes != tuple(samples.classes):
        reasons.append(f"classes were {len(classes)} and are {len(samples.classes)}, or are named otherwise")
    ids = strings(group, "sample").tolist()
    label_of = dict(zip(np.asarray(samples.ids, str).tolist(), np.asarray(samples.labels).tolist(), strict=True))
    gone = sum(name not in label_of for name in ids)
    if gone:
        reasons.append(f"{gone} of {len(ids)} samples were removed or altered")
    labels = np.asarray(array_in(group, "label")[:]).tolist()
    moved = sum(label_of.get(name, label) != label for name, label in zip(ids, labels, strict=True))
    if moved:
        reasons.append(f"{moved} labels were changed")
    for variable in wanted.measured:
        array = group.get(variable.name)
        if isinstance(array, zarr.Array) and array.dtype != np.dtype(variable.dtype):
            reasons.append(f"{variable.name} was stored as {array.dtype} and is now {variable.dtype}")
    return reasons


def _differences(group: zarr.Group, wanted: Wanted, grown: bool) -> list[str]:
    """Name what differs short of the samples: settings, arrays, coordinates."""
    out = []
    if merged_settings(settings_of(group), wanted) != settings_of(group):
        out.append("update settings")
    arrays = [v.name for v in wanted.measured if v.name not in group]
    if arrays or ("exposed" not in group and wanted.exposure is not None):
        out.append("add arrays " + ", ".join(arrays or ["exposed"]))
    parts = set(strings(group_in(group, "ledger"), "part").tolist())
    if {p.name for p in wanted.cube.parts} - parts:
        out.append("add parts to the ledger")
    if not grown:
        changed = [name for name, values in stored_order(group, wanted).items() if not holds(group, name, values)]
        if changed:
            out.append("update coordinates " + ", ".join(changed))
    before, now = np.asarray(array_in(group_in(group, "ledger"), "named")[:]), named(group, wanted)
    for count, what in (((before & ~now).sum(), "no longer names"), ((now & ~before).sum(), "names again")):
        if count:
            out.append(f"mark {count} {wanted.series}{'s' if count > 1 else ''} that the study {what}")
    return out


def apply(root: zarr.Group, wanted: Wanted, tip: str) -> str:
    """Make the group what is wanted, changing only what differs, and return what was changed."""
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
            append_block(group, wanted, list(change.added))
        complete(group, wanted)
    return change.text


__all__ = ["Layout", "SampleCoords", "Wanted", "apply", "check", "propose", "read_layout", "wanted"]
