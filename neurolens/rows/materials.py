"""What the rows of a cube are measured from: samples, checkpoints, networks, the dims of the cube, and the device."""

import contextlib
import os
import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurolens import schema
from neurolens.errors import NeurolensError, StudyError
from neurolens.study import Compute, Study

if TYPE_CHECKING:
    from neurolens.checkpoints import Checkpoint, Series
    from neurolens.data import SampleSet
    from neurolens.models import Network
    from neurolens.rows.asked import AskedSets
    from neurolens.rows.asked_phrases import AskedPhrases
    from neurolens.store import Axis

MEASURES = {
    "samples": "neurolens.samples.measure",
    "units": "neurolens.units.measure",
    "activations": "neurolens.units.activations",
    "concepts": "neurolens.dissection.cube",
    "effects": "neurolens.effects.measure",
    "clusters": "neurolens.clusters.measure",
    "attributions": "neurolens.attribution.measure",
    "texts": "neurolens.pairs.text_cube",
    "pools": "neurolens.pairs.pool_cube",
    "pairs": "neurolens.pairs.pair_cube",
    "codes": "neurolens.pairs.code_cube",
}
"""The module that measures each cube: ``parts``, ``key_config`` and ``measure``; and, where the cube has more dims than
series and sample, ``axes``. Optional: ``block_size``, where rows are resumed by blocks of samples;
``DEPENDS_ON_BATCH``, where numbers depend on compute.batch_size; ``open_samples``, where others than those of [data]
are shown; ``reference``, ``refer`` and ``REFERRING``, where rows are measured against one of the checkpoints;
``table_of``, where more of the study decides than the cube's own table; ``WITHOUT_SAMPLES``, parts that do not depend
on the samples of a cube whose rows are of all of them."""


@dataclass(frozen=True)
class Materials:
    """What the rows of one cube are measured from, opened once: samples, checkpoints and modules to fill.

    ``series`` are the checkpoints that have a row; ``every`` all of the run.
    ``axes`` are the cube's dims besides series and sample; ``block_samples`` is how many samples a row holds at most.
    ``asked`` are the units that the row of a position is asked of, where not all; ``layers`` are then those that they
    are in. ``sets`` are the sets of units that it is asked of, where numbers are of such; ``phrases`` are those that
    pairs are told in, where they are. ``reference`` is the checkpoint that rows are measured against, if one.
    ``shared`` are the samples of [data], where they were opened, for other cubes of the study.
    ``networks`` is the pool of modules: a worker takes one, fills it and puts it back, so each is built once;
    ``blocks`` are the samples by fingerprint of a stored block; ``left_out`` are the tensors of a checkpoint that the
    network has no use for, such as a head; ``refused`` is why a reference could not be measured.
    Set ``stop`` to end after the rows that are being measured.
    """

    study: Study
    cube: str
    samples: "SampleSet"
    series: "Series"
    every: "Series"
    model: Mapping[str, Any]
    device: str
    axes: Mapping[str, "Axis"] = field(default_factory=dict)
    block_samples: int | None = None
    asked: Mapping[int, tuple[int, ...]] | None = None
    sets: "AskedSets | None" = None
    phrases: "AskedPhrases | None" = None
    layers: tuple[str, ...] = ()
    reference: "Checkpoint | None" = None
    shared: "SampleSet | None" = None
    networks: "queue.SimpleQueue[Network]" = field(default_factory=queue.SimpleQueue)
    blocks: dict[str, "SampleSet"] = field(default_factory=dict)
    left_out: dict[Path, tuple[str, ...]] = field(default_factory=dict)
    refused: dict[str, NeurolensError] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def table(self) -> Any:
        """The study's table of this cube, as its measuring module takes it."""
        return table_of(self.study, self.cube)

    @property
    def by_sample(self) -> bool:
        """Whether the cube holds numbers per sample; if not, a row is made of all samples at once."""
        return "sample" in schema.CUBES[self.cube].dims

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """The settings that change each measured part's numbers; the samples too, where they are mixed in a row."""
        measure = import_module(MEASURES[self.cube])
        samples, table = self.samples, self.table
        common: dict[str, Any] = dict(samples.reading) if self.by_sample else {"data": samples.fingerprint}
        if getattr(measure, "DEPENDS_ON_BATCH", lambda table: False)(table):
            common["batch_size"] = self.study.compute.batch_size
        if self.phrases is not None:
            common |= self.phrases.settings
        found = {
            part: {**measure.key_config(table, part), **({} if part in self.without_samples else common)}
            for part in measure.parts(table)
        }
        if self.reference is not None:
            for part in measure.REFERRING:
                found[part]["reference"] = self.reference.digest
        return found

    @property
    def without_samples(self) -> tuple[str, ...]:
        """The parts whose numbers do not depend on the samples."""
        found: tuple[str, ...] = getattr(import_module(MEASURES[self.cube]), "WITHOUT_SAMPLES", ())
        return found

    @contextlib.contextmanager
    def network(self) -> Iterator["Network"]:
        """Lend a built network; the caller fills its module."""
        network = self.taken()
        try:
            yield network
        finally:
            self.networks.put(network)

    def taken(self) -> "Network":
        """Take a built network out of the pool, for good; a new one where none is free."""
        from neurolens import models

        try:
            return self.networks.get_nowait()
        except queue.Empty:
            return models.build(self.study.model)


def cubes(study: Study) -> tuple[str, ...]:
    """Return the names of the cubes that the study has a table for, in the order they are run."""
    return tuple(name for name in MEASURES if getattr(study, name, None) is not None)


def table_of(study: Study, cube: str) -> Any:
    """Return the study's table of a cube, with what its measuring module takes from other tables."""
    whole = getattr(import_module(MEASURES[cube]), "table_of", None)
    return getattr(study, cube) if whole is None else whole(study)


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
