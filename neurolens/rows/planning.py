"""What a study wants of a cube, against what its store holds: the plan of rows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from neurolens import schema
from neurolens.errors import StudyError
from neurolens.rows.holding import held_sets, holds_sets, sets_key
from neurolens.rows.keys import key
from neurolens.rows.leaving_out import lacking, lacking_key, unnamed, wanted_key
from neurolens.rows.materials import MEASURES, Materials

if TYPE_CHECKING:
    from neurolens.checkpoints import Checkpoint
    from neurolens.data import SampleSet
    from neurolens.store import Layout, Ledger, LedgerRow, Store

State = Literal["done", "missing", "stale", "failed"]


@dataclass(frozen=True)
class Row:
    """One wanted row: a checkpoint's measurements of one sample block.

    ``keys`` holds the wanted key (sha256, hex) of every part, ``missing`` the parts that the ledger does not hold
    under it, ``why`` the reason of a failure or staleness. ``asked`` are the units that the row is asked of, where not
    all. ``sets`` are the sets of units that a part will hold (id → digest), where its numbers are of such, and
    ``bases`` its key but for them. ``phrases`` is a digest of the embedded phrases that pairs are told in.
    ``unnamed`` are the places in the block of what the study does not name: they are not measured.
    """

    position: int
    block: int
    epoch: int | None
    step: int | None
    path: Path
    digest: str
    keys: Mapping[str, str]
    missing: tuple[str, ...]
    state: State
    why: str = ""
    asked: tuple[int, ...] = ()
    sets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    bases: Mapping[str, str] = field(default_factory=dict)
    phrases: str = ""
    unnamed: tuple[int, ...] = ()

    @property
    def id(self) -> tuple[int, int]:
        """The row's identity in the ledger: (position, block)."""
        return self.position, self.block


@dataclass(frozen=True)
class Plan:
    """What a study wants of one cube, against what its store holds.

    ``kept`` are positions that the store holds numbers of and the study no longer names: they stay. ``change`` says
    what preparing the store would do to the group, empty if nothing. ``notes`` and ``details`` are those of the
    checkpoints' series.
    """

    cube: str
    series: str
    rows: tuple[Row, ...]
    kept: tuple[int, ...] = ()
    change: str = ""
    notes: tuple[str, ...] = ()
    details: tuple[str, ...] = ()

    @property
    def todo(self) -> tuple[Row, ...]:
        """The rows that are not done."""
        return tuple(row for row in self.rows if row.state != "done")

    def count(self, state: State) -> int:
        """How many rows are in this state."""
        return sum(row.state == state for row in self.rows)


def plan(materials: Materials, store: "Store | None") -> Plan:
    """Compare what the study wants with what the ledger holds. A pure read: nothing is created or written.

    Raises
    ------
    StoreError
        If the store cannot be read.
    StudyError
        If blocks of the store take more memory than the study allows now.
    """
    series = materials.series
    if not series.checkpoints:  # of a cube whose rows follow from another one
        return Plan(materials.cube, series.dim, (), (), "", series.notes, series.details)
    parts = materials.parts
    proposed = propose(materials, store)
    fingerprints, change = proposed.fingerprints, proposed.change
    ledger = None if store is None else store.ledger(materials.cube)
    if ledger is not None and proposed.generation != ledger.generation:
        ledger = None  # nothing of the old generation is carried over
    choosing = getattr(import_module(MEASURES[materials.cube]), "CHOOSING", ())
    chosen = set(chosen_samples(materials)) if set(choosing) & set(parts) else set()
    kept_of = [sorted(chosen.intersection(ids.tolist())) for ids in proposed.blocks] if chosen else []
    keeping = "sample" in schema.CUBES[materials.cube].growing
    left_out = unnamed(proposed.blocks, materials.samples.ids) if keeping else [()] * len(fingerprints)
    holding = [part for part in parts if holds_sets(materials.cube, part)]
    ids = store.axis(materials.cube, "map").tolist() if holding and store is not None and ledger is not None else []
    rows, without = [], materials.without_samples
    for checkpoint in series.checkpoints:
        position = checkpoint.position(series.dim)
        asked = () if materials.asked is None else materials.asked[position]
        wanted = {} if materials.sets is None else materials.sets.digests(position)
        phrases = "" if materials.phrases is None else materials.phrases.digests[position]
        for block, fingerprint in enumerate(fingerprints):
            if keeping and len(left_out[block]) == len(proposed.blocks[block]):
                continue
            keys = {
                part: key(
                    {
                        "checkpoint": checkpoint.digest,
                        "model": materials.model,
                        "measurement": config,
                        **({} if part in without else {"data": fingerprint}),
                        **({"units": list(asked)} if asked else {}),
                        **({"phrases": phrases} if phrases else {}),
                        **({"chosen": kept_of[block]} if chosen and part in choosing else {}),
                    }
                )
                for part, config in parts.items()
            }
            bases, lacks = {part: keys[part] for part in holding}, dict[str, str]()
            for part in keys if keeping else ():
                entry = None if ledger is None else ledger.entry(position, block, part)
                base, keys[part] = keys[part], wanted_key(entry, keys[part], left_out[block])
                if entry is not None and entry.key == lacking_key(base, lacking(entry)):
                    lacks[part] = f"{schema.CUBES[materials.cube].sample}s were named again"
            sets = {}
            for part in holding:
                entry = None if ledger is None else ledger.entry(position, block, part)
                held = {} if entry is None else held_sets(entry, bases[part], ids)
                sets[part] = {**held, **wanted}  # of what is not wanted now, a row keeps what it has
                keys[part] = sets_key(bases[part], sets[part])
                lacks |= {part: "sets of units were added"} if held else {}
            row = _row(checkpoint, position, block, keys, ledger, asked, lacks)
            row = replace(row, sets=sets, bases=bases) if holding else row
            row = replace(row, unnamed=left_out[block]) if left_out[block] else row
            rows.append(replace(row, phrases=phrases) if phrases else row)
    named = {row.position for row in rows}
    kept = () if ledger is None else tuple(sorted(ledger.done_positions - named))
    return Plan(materials.cube, series.dim, tuple(rows), kept, change, series.notes, series.details)


def chosen_samples(materials: Materials) -> tuple[str, ...]:
    """Return the ids of the samples whose whole maps are kept: evenly spaced ones."""
    count = min(materials.table.full, len(materials.samples))
    if not count:
        return ()
    at = np.arange(count) * max(1, len(materials.samples) // count)
    return tuple(np.asarray(materials.samples.ids)[at].tolist())


def propose(materials: Materials, store: "Store | None") -> "Layout":
    """Return the layout of the cube's group that preparing would leave, in this store or in a new one."""
    wanted = wanted_group(materials)
    if store is not None:
        proposed = store.propose(**wanted)
        _check_blocks(materials, proposed)
        return proposed
    import zarr
    from zarr.storage import MemoryStore

    from neurolens.store import layout

    optional = {"exposure": None, "variables": None}
    return layout.propose(zarr.create_group(MemoryStore()), layout.wanted(**{**optional, **wanted}))


def _check_blocks(materials: Materials, layout: "Layout") -> None:
    """Refuse blocks, stored when more memory was allowed, that no longer fit."""
    largest = max((len(ids) for ids in layout.blocks), default=0)
    if not hasattr(materials.table, "memory_mib"):
        return  # then memory is not what decides how long blocks are
    if materials.block_samples is not None and largest > materials.block_samples:
        cube, allowed = materials.cube, materials.table.memory_mib
        raise StudyError(
            f"the store keeps {cube} in blocks of up to {largest} samples, and {cube}.memory_mib = {allowed} has room "
            f"for {materials.block_samples}; set it to {-(-allowed * largest // materials.block_samples)}, or use "
            "another store"
        )


def wanted_group(materials: Materials) -> dict[str, Any]:
    """Return what the store's group of this cube should be: the arguments of `Store.propose` and `Store.prepare`."""
    from neurolens.store import SampleCoords

    samples, cube = materials.samples, schema.CUBES[materials.cube]
    coords = SampleCoords(samples.ids, samples.labels, samples.classes, samples.coords)
    summed = any(variable.summed for variable in cube.variables)
    return {
        "cube": cube,
        "run": materials.study.name,
        "series": materials.series.dim,
        "samples": coords if materials.by_sample else None,
        "settings": {"data": samples.name, "model": materials.model, "parts": materials.parts},
        "exposure": exposure_of(samples) if summed else None,
        "positions": [c.position(materials.series.dim) for c in materials.series.checkpoints],
        "axes": materials.axes,
        "block_samples": materials.block_samples,
        "fingerprint": None if materials.by_sample else samples.fingerprint,
        "encodings": getattr(import_module(MEASURES[materials.cube]), "encodings", lambda table: {})(materials.table),
    }


def exposure_of(samples: "SampleSet") -> dict[int, tuple[int, ...]] | None:
    """Return the classes that count as shown, by first checkpoint; None where there is no class schedule."""
    schedule = samples.exposure
    if schedule is None:
        return None
    return {start + 1: schedule.introduced(start + 1) for start in schedule.starts}  # a task trains after its start


def prepare(materials: Materials, store: "Store") -> tuple["SampleSet", ...]:
    """Make the store's group what the study wants, and return the samples of each block, in stored order.

    One commit, or none if it is so already.
    """
    layout = store.prepare(**wanted_group(materials))
    if not materials.by_sample:
        return (materials.samples,)
    unknown = [(f, ids) for f, ids in zip(layout.fingerprints, layout.blocks) if f not in materials.blocks]
    at = {name: index for index, name in enumerate(materials.samples.ids.tolist())} if unknown else {}
    for fingerprint, ids in unknown:
        materials.blocks[fingerprint] = _in_order(materials.samples, ids, at)
    return tuple(materials.blocks[fingerprint] for fingerprint in layout.fingerprints)


def _in_order(samples: "SampleSet", ids: np.ndarray, at: Mapping[str, int]) -> "SampleSet":
    """Return the samples with these ids, in this order: the set itself where it is that already.

    Of a cube that keeps what the study no longer names, those that there are. ``at`` is where each sample is.
    """
    if len(samples) == len(ids) and samples.ids.tolist() == ids.tolist():
        return samples
    return samples.subset(np.array([at[name] for name in ids.tolist() if name in at], dtype=np.int64))


def _row(
    checkpoint: "Checkpoint",
    position: int,
    block: int,
    keys: Mapping[str, str],
    ledger: "Ledger | None",
    asked: tuple[int, ...],
    lacks: Mapping[str, str] = MappingProxyType({}),
) -> Row:
    """Class one row by its parts: failed before stale before missing before done.

    ``lacks`` says of parts that are as they should be, as far as they go, what they lack.
    """
    missing, states, why = [], set(), []
    for part, wanted in keys.items():
        entry = ledger.entry(position, block, part) if ledger is not None else None
        if entry is not None and entry.state == "done" and entry.key == wanted:
            continue
        missing.append(part)
        if entry is None or entry.state == "absent":
            states.add("missing")
        elif entry.state == "done":
            states.add("stale")
            why.append(_stale(entry, checkpoint, lacks.get(part, "")))
        else:
            states.add("failed")
            why.append(entry.error)
    state: State = "done"
    for candidate in ("missing", "stale", "failed"):
        if candidate in states:
            state = candidate
    return Row(
        position=position,
        block=block,
        epoch=checkpoint.epoch,
        step=checkpoint.step,
        path=checkpoint.path,
        digest=checkpoint.digest,
        keys=dict(keys),
        missing=tuple(missing),
        state=state,
        why="; ".join(dict.fromkeys(why)),
        asked=asked,
    )


def _stale(entry: "LedgerRow", checkpoint: "Checkpoint", lacks: str) -> str:
    """Say what has changed since a part was measured: the checkpoint's bytes, or what else is in its key."""
    if lacks:
        return lacks
    measured = json.loads(entry.provenance or "{}")
    if "imported_from" in measured:
        return f"adopted from {measured['imported_from']}"
    if measured.get("digest") not in (None, checkpoint.digest):
        return "the checkpoint file changed"
    return "the network, a setting or the measurement's version changed"
