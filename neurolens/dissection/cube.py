"""The rows of the concepts cube: one checkpoint dissected."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from neurolens import schema
from neurolens.dissection.measure import dissect, mapped_layers, own_thresholds
from neurolens.dissection.tally import BLOCKS
from neurolens.errors import SchemaError, StudyError, nearest
from neurolens.study import Concepts
from neurolens.units import running
from neurolens.units.measure import unit_axis

if TYPE_CHECKING:
    from neurolens.checkpoints import Checkpoint, Series
    from neurolens.data.concept_sets import ConceptSamples
    from neurolens.models import Network
    from neurolens.store import Axis

Array = npt.NDArray[Any]

MEASUREMENT_VERSION = {"counts": 2, "top": 1, "rotated": 1}
"""Raised when the numbers of a part change."""

REFERRING = ("counts",)
"""Parts whose numbers depend on the checkpoint that thresholds are taken from."""


def parts(table: Concepts) -> tuple[str, ...]:
    """Return the parts of the cube that the study asks for."""
    return ("counts", *(["top"] if table.top else []), *(["rotated"] if table.rotations else []))


def key_config(table: Concepts, part: str) -> dict[str, Any]:
    """Return the settings that the numbers of a part depend on.

    Raises
    ------
    SchemaError
        If there is no such part.
    """
    if part not in MEASUREMENT_VERSION:
        raise SchemaError(f"the concepts cube has no part {part!r}; {nearest(part, MEASUREMENT_VERSION)}")
    layers = table.layers if isinstance(table.layers, str) else list(table.layers)
    config: dict[str, Any] = {"version": MEASUREMENT_VERSION[part], "layers": layers}
    config["dtype"] = "bfloat16" if table.bf16 else "model"
    if table.whole:
        config["whole"] = True
    if part == "top":
        return config | {"top": table.top}
    config |= {"quantile": table.quantile, "compat": table.compat}
    return config if part == "counts" else config | {"rotations": table.rotations, "seed": table.seed}


def open_samples(table: Concepts) -> "ConceptSamples":
    """Open the labelled images that networks are shown.

    Raises
    ------
    DataError, MissingExtraError
        As `neurolens.data.open_concepts`.
    """
    from neurolens.data.concepts import study_concepts

    return study_concepts(table)


def shown_to(network: "Network", table: Concepts) -> "Network":
    """Return the network as it is shown images: as they are, where the study says so."""
    if not table.whole:
        return network
    return replace(network, preprocessing=network.preprocessing.model_copy(update={"resize": None, "crop": None}))


def reference(table: Concepts, series: "Series") -> "Checkpoint | None":
    """Return the checkpoint whose thresholds all others are dissected with; None where each has its own.

    Raises
    ------
    StudyError
        If there is no checkpoint of that number.
    """
    wanted = table.threshold_from
    if wanted == "each":
        return None
    if wanted == "last":
        return series.checkpoints[-1]
    for checkpoint in series.checkpoints:
        if checkpoint.position(series.dim) == wanted:
            return checkpoint
    raise StudyError(
        f"concepts.threshold_from is {wanted}, and there is no checkpoint of that {series.dim}; "
        f"{nearest(str(wanted), map(str, series.positions))}"
    )


def axes(
    network: "Network", samples: "ConceptSamples", table: Concepts, *, device: str | torch.device = "cpu"
) -> dict[str, "Axis"]:
    """Return the fixed axes of the cube: units, blocks of images, concepts and categories, and those of its options.

    Raises
    ------
    CaptureError
        If the network does not have the layers, or one that was named has no maps.
    DataError
        If the network's preprocessing cuts the images, of which labels cover all, or an image has another size than
        was announced.
    """
    from neurolens.store import Axis

    concepts = samples.concepts
    assert concepts is not None
    network = shown_to(network, table)
    concepts.require_whole(network.preprocessing)
    concepts.require_sizes(2)  # of what is shown first; of all when labels are decoded
    with running.prepared(network, device=device, bf16=table.bf16) as module:
        probe = running.first_batch(network, samples, module, device=device)
        found = {"unit": unit_axis(mapped_layers(module, table.layers, probe))}
    found["block"] = Axis(np.arange(BLOCKS, dtype=np.int64))
    found["concept"] = Axis(
        np.array(concepts.concepts, dtype=np.str_),
        {"label": concepts.labels, "concept_category": np.array(concepts.concept_category, dtype=np.str_)},
    )
    found["category"] = Axis(np.array(concepts.categories, dtype=np.str_))
    if table.top:
        found |= {"rank": Axis(np.arange(table.top)), "sample": Axis(samples.ids)}
    if table.rotations:
        found["rotation"] = Axis(np.arange(table.rotations))
    return found


def refer(
    network: "Network",
    samples: "ConceptSamples",
    *,
    table: Concepts,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
) -> Array:
    """Return the thresholds of a network's units, (unit,) float64; NaN where a unit never exceeds its own."""
    return own_thresholds(
        shown_to(network, table),
        samples,
        layers=table.layers,
        quantile=table.quantile,
        compat=table.compat,
        memory_mib=table.memory_mib,
        batch_size=batch_size,
        device=device,
        bf16=table.bf16,
    )


def measure(
    network: "Network",
    samples: "ConceptSamples",
    *,
    parts: Sequence[str],
    table: Concepts,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
    reference: npt.ArrayLike | None = None,
) -> dict[str, Array]:
    """Dissect one checkpoint.

    Parameters
    ----------
    network : models.Network
        The filled module. It is left as it was.
    samples : images with their labels
        Labels are decoded the first time, and kept for all checkpoints.
    parts
        Parts of the concepts cube.
    table : study.Concepts
        Settings of the measurement.
    batch_size, device, progress
        As for `dissect`.
    reference : (unit,)
        Thresholds of another checkpoint; None: the network's own.

    Returns
    -------
    values : variable name → array
        Shaped as in the concepts cube without the series, over the axes of `axes`.

    Raises
    ------
    DataError
        If a label file is broken.
    CaptureError, NonFiniteError
        As for `dissect`.
    """
    concepts = samples.concepts
    assert concepts is not None
    values = dissect(
        shown_to(network, table),
        samples,
        concepts.masks,
        layers=table.layers,
        quantile=table.quantile,
        compat=table.compat,
        thresholds=reference,
        memory_mib=table.memory_mib,
        top=table.top if "top" in parts else 0,
        rotations=table.rotations if "rotated" in parts else 0,
        seed=table.seed,
        batch_size=batch_size,
        device=device,
        bf16=table.bf16,
        progress=progress,
    )
    variables = [v for part in parts for v in schema.CONCEPTS.part(part).variables]
    return {v.name: np.ascontiguousarray(values[v.name], dtype=v.dtype) for v in variables}
