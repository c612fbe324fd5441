"""What a study wants of a cube, against what its store holds: the plan of rows."""

import contextlib
import hashlib
import json
import os
import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from neurolens import schema
from neurolens.errors import StudyError, nearest
from neurolens.fingerprints import sample_fingerprint
from neurolens.study import Compute, Study

if TYPE_CHECKING:
    from neurolens.checkpoints import Checkpoint, Series
    from neurolens.data import SampleSet
    from neurolens.models import Network
    from neurolens.store import Ledger, LedgerRow, Store

MEASURES = {"samples": "neurolens.samples.measure"}
"""The module that measures each cube: ``parts``, ``key_config`` and ``measure``."""

State = Literal["done", "missing", "stale", "failed"]


@dataclass(frozen=True)
class Row:
    """One wanted row: a checkpoint's measurements of one sample block.

    ``keys`` holds the wanted key (sha256, hex) of every part, ``missing`` the parts that the ledger does not hold
    under it, ``why`` the reason of a failure or staleness.
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


@dataclass(frozen=True)
class Materials:
    """What the rows of one cube are measured from, opened once: samples, checkpoints and modules to fill.

    ``networks`` is the pool of modules: a worker takes one, fills it and puts it back, so each is built once;
    ``blocks`` are the samples by fingerprint of a stored block.
    Set ``stop`` to end after the rows that are being measured.
    """

    study: Study
    cube: str
    samples: "SampleSet"
    series: "Series"
    model: Mapping[str, Any]
    device: str
    networks: "queue.SimpleQueue[Network]" = field(default_factory=queue.SimpleQueue)
    blocks: dict[str, "SampleSet"] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def table(self) -> Any:
        """The study's table of this cube."""
        return getattr(self.study, self.cube)

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """The settings that change each measured part's numbers."""
        measure = import_module(MEASURES[self.cube])
        return {part: measure.key_config(self.table, part) for part in measure.parts(self.table)}

    @contextlib.contextmanager
    def network(self) -> Iterator["Network"]:
        """Lend a built network; the caller fills its module."""
        from neurolens import models

        try:
            network = self.networks.get_nowait()
        except queue.Empty:
            network = models.build(self.study.model)
        try:
            yield network
        finally:
            self.networks.put(network)


def cubes(study: Study) -> tuple[str, ...]:
    """Return the names of the cubes that the study has a table for, in the order they are run."""
    return tuple(name for name in MEASURES if getattr(study, name, None) is not None)


def key(part: Mapping[str, Any]) -> str:
    """Return the key of one part of a row: sha256 over the canonical JSON of all that its numbers depend on."""
    text = json.dumps(part, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def gather(study: Study, cube: str = "samples") -> Materials:
    """Open what the rows of ``cube`` are measured from.

    Raises
    ------
    StudyError
        If the study has no table for the cube.
    MissingCheckpointError, CheckpointError, DataError
        If there is no checkpoint, or the data cannot be read.
    """
    from neurolens import checkpoints, data, models

    if cube not in MEASURES:
        raise StudyError(f"there is no cube {cube!r}; {nearest(cube, MEASURES)}")
    if getattr(study, cube) is None:
        raise StudyError(f"study {study.name!r} does not ask for {cube}; add a [{cube}] table to its file")
    network = models.build(study.model)
    materials = Materials(
        study=study,
        cube=cube,
        samples=data.study_samples(study),
        series=checkpoints.discover(study.checkpoints),
        model=network.description,
        device=device(study.compute),
    )
    materials.networks.put(network)
    return materials


def open_for_reading(study: Study) -> "Store | None":
    """Open the study's store for reading, or return None if there is none yet."""
    from icechunk import Repository

    from neurolens import store
    from neurolens.store import repository

    table = study.store
    if repository.is_s3(table.url):
        with repository.explained(table.url):
            found = Repository.exists(repository.storage(table.url, endpoint=table.endpoint, region=table.region))
    else:
        folder = repository.local_path(table.url)
        found = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    if not found:
        return None
    return store.open_store(table.url, endpoint=table.endpoint, region=table.region, readonly=True)


def open_for_writing(study: Study) -> "Store":
    """Open the study's store for writing; create it if there is none."""
    from neurolens import store

    table = study.store
    return store.open_store(table.url, endpoint=table.endpoint, region=table.region, create=True)


def plan(materials: Materials, store: "Store | None") -> Plan:
    """Compare what the study wants with what the ledger holds. A pure read: nothing is created or written.

    Raises
    ------
    StoreError
        If the store cannot be read.
    """
    parts = materials.parts
    wanted = wanted_group(materials)
    if store is None:
        ledger, change = None, f"create {len(materials.samples)} samples"
        fingerprints: tuple[str, ...] = (sample_fingerprint(wanted["samples"].ids, wanted["samples"].labels),)
    else:
        proposed = store.propose(**wanted)
        ledger, fingerprints, change = store.ledger(materials.cube), proposed.fingerprints, proposed.change
        if proposed.generation != ledger.generation:
            ledger = None  # nothing of the old generation is carried over
    rows = []
    for checkpoint in materials.series.checkpoints:
        position = checkpoint.position(materials.series.dim)
        for block, fingerprint in enumerate(fingerprints):
            keys = {
                part: key(
                    {
                        "checkpoint": checkpoint.digest,
                        "model": materials.model,
                        "measurement": config,
                        "data": fingerprint,
                    }
                )
                for part, config in parts.items()
            }
            rows.append(_row(checkpoint, position, block, keys, ledger))
    named = {row.position for row in rows}
    kept = () if ledger is None else tuple(sorted(ledger.done_positions - named))
    series = materials.series
    return Plan(materials.cube, series.dim, tuple(rows), kept, change, series.notes, series.details)


def wanted_group(materials: Materials) -> dict[str, Any]:
    """Return what the store's group of this cube should be: the arguments of `Store.propose` and `Store.prepare`."""
    from neurolens.store import SampleCoords

    samples = materials.samples
    return {
        "cube": schema.CUBES[materials.cube],
        "run": materials.study.name,
        "series": materials.series.dim,
        "samples": SampleCoords(samples.ids, samples.labels, samples.classes, samples.coords),
        "settings": {"data": samples.name, "model": materials.model, "parts": materials.parts},
        "exposure": exposure_of(samples),
        "positions": [c.position(materials.series.dim) for c in materials.series.checkpoints],
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
    for fingerprint, ids in zip(layout.fingerprints, layout.blocks):
        if fingerprint not in materials.blocks:
            materials.blocks[fingerprint] = _in_order(materials.samples, ids)
    return tuple(materials.blocks[fingerprint] for fingerprint in layout.fingerprints)


def _in_order(samples: "SampleSet", ids: np.ndarray) -> "SampleSet":
    """Return the samples with these ids, in this order: the set itself where it is that already."""
    if samples.ids.tolist() == ids.tolist():
        return samples
    at = {name: index for index, name in enumerate(samples.ids.tolist())}
    return samples.subset(np.array([at[name] for name in ids.tolist()], dtype=np.int64))


def _row(checkpoint: "Checkpoint", position: int, block: int, keys: Mapping[str, str], ledger: "Ledger | None") -> Row:
    """Class one row by its parts: failed before stale before missing before done."""
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
            why.append(_stale(entry, checkpoint))
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
    )


def _stale(entry: "LedgerRow", checkpoint: "Checkpoint") -> str:
    """Say what has changed since a part was measured: the checkpoint's bytes, or what else is in its key."""
    measured = json.loads(entry.provenance or "{}")
    if "imported_from" in measured:
        return f"adopted from {measured['imported_from']}"
    if measured.get("digest") not in (None, checkpoint.digest):
        return "the checkpoint file changed"
    return "the network, a setting or the measurement's version changed"


def threads(compute: Compute) -> int:
    """Return the torch threads of one worker, so that all workers together take no more than the cores there are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // compute.workers)
    return min(compute.threads, share) if compute.threads else share


def device(compute: Compute) -> str:
    """Return the torch device that ``compute.device`` names; ``auto`` takes cuda, then the CPU.

    Raises
    ------
    StudyError
        If the device is not there.
    """
    import torch

    name = compute.device
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        count = torch.cuda.device_count()
        if int(name.partition(":")[2] or 0) >= count:
            raise StudyError(f"compute.device is {name!r} and torch sees {count} CUDA devices; use 'cpu' or 'auto'")
    if name == "mps" and not torch.backends.mps.is_available():
        raise StudyError("compute.device is 'mps', which torch cannot use here; use 'cpu' or 'auto'")
    return name
