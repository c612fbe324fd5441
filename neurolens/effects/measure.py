"""The rows of the effects cube: what one checkpoint's outputs lose without the units that are asked for."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from neurolens import schema
from neurolens.effects.ablation import ablate
from neurolens.effects.conductance import layer_conductance, shown_samples
from neurolens.errors import DataError, SchemaError, nearest
from neurolens.layers import Layer, find_layers
from neurolens.study import Effects, Selection
from neurolens.units import running
from neurolens.units.measure import class_ids, unit_axis

if TYPE_CHECKING:
    from neurolens.data import SampleSet
    from neurolens.models import Network
    from neurolens.store import Axis

Array = npt.NDArray[Any]
Layers = Literal["auto"] | Sequence[str]

MEASUREMENT_VERSION = {"ablation": 1, "conductance": 1}
"""Raised when the numbers of a part change."""


def parts(table: Effects) -> tuple[str, ...]:
    """Return the parts of the cube that the study asks for."""
    return tuple(p.name for p in schema.EFFECTS.parts if p.option is None or getattr(table, p.option))


def key_config(table: Effects, part: str) -> dict[str, Any]:
    """Return the settings that the numbers of a part depend on, with its version, JSON-able.

    What decides which units are asked for (the table's tau and so on) is not among them: the units are.

    Raises
    ------
    SchemaError
        If there is no such part.
    """
    if part not in MEASUREMENT_VERSION:
        raise SchemaError(f"the effects cube has no part {part!r}; {nearest(part, MEASUREMENT_VERSION)}")
    config: dict[str, Any] = {"version": MEASUREMENT_VERSION[part]}
    if part == "ablation":
        config |= {"dtype": "bfloat16" if table.bf16 else "model", "replace": table.replace}
        return config | {"samples": table.samples}
    config |= {"dtype": "model", "samples": table.conductance_samples, "batch": table.conductance_batch}
    return config | {"steps": table.conductance_steps}


def encodings(table: Effects) -> dict[str, str]:
    """Return how the store writes what is NaN for all units but those asked for."""
    return {v.name: "float64-zstd" for v in schema.EFFECTS.variables if "unit" in v.dims}


def axes(
    network: "Network",
    samples: "SampleSet",
    table: Effects,
    *,
    layers: Layers = "auto",
    device: str | torch.device = "cpu",
) -> dict[str, "Axis"]:
    """Return the fixed axes of the cube: ``unit``, of all units of the layers, and ``class``.

    Raises
    ------
    CaptureError
        If the network does not have the layers.
    DataError
        If there are no samples.
    """
    from neurolens.store import Axis

    with running.prepared(network, device=device, bf16=table.bf16) as module:
        probe = running.first_batch(network, samples, module, device=device)
        return {"unit": unit_axis(_layers(module, layers, probe)), "class": Axis(class_ids(samples))}


def measure(
    network: "Network",
    samples: "SampleSet",
    *,
    parts: Sequence[str],
    table: Effects,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
    layers: Layers = "auto",
    units: Sequence[int] = (),
) -> dict[str, Array]:
    """Measure what one checkpoint's outputs lose without each of some units.

    Parameters
    ----------
    network : models.Network
        The filled module, left as it was. Its own preprocessing is used; it must give a row of logits per sample.
    samples : data.SampleSet
        Ablation takes ``table.samples`` of them, stratified by class, the same whatever their order; conductance the
        first ``table.conductance_samples``, up to whole batches.
    parts
        Parts of the effects cube.
    table : study.Effects
        Settings of the measurement. With ``bf16``, conductance is still measured in the network's dtype: it is made of
        differences of neighbouring steps, which drown in bfloat16.
    batch_size
        Samples a pass, cut down to what suits a CPU's caches and memory. Changes no number beyond float rounding.
    device
        Where to compute, as torch names it.
    progress
        Called with (samples done, samples of all passes) after each batch.
    layers : "auto", or the names that the concepts cube has, or globs
        Those that the units are counted in. A name is that of one call of a module: ``relu`` of the first.
    units
        Numbers of the units asked for, over the units of all layers in order.

    Returns
    -------
    values : variable name → array
        Shaped as in the effects cube without the series, over the axes of `axes`; NaN for units not asked for, and the
        logits of classes without samples.

    Raises
    ------
    SchemaError
        If a part or a unit is unknown.
    DataError
        If there are fewer samples than asked for, or conductance is asked of texts.
    CaptureError
        If the network does not have the layers.
    ModelMismatchError
        If the network does not give a row of logits per sample, or its activations depend on the batch.
    NonFiniteError
        If a logit or a conductance is NaN or infinite, naming the sample.
    """
    variables = [v for part in parts for v in schema.EFFECTS.part(part).variables]
    values: dict[str, Array] = {}
    chosen = _chosen(samples, table) if "ablation" in parts else samples
    passes = (1 + (table.replace == "mean" and len(units) > 0)) * ("ablation" in parts)
    first = shown_samples(len(samples), wanted=table.conductance_samples, batch_size=table.conductance_batch)
    total, done = passes * len(chosen) + first * ("conductance" in parts), 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    if "ablation" in parts:
        with running.prepared(network, device=device, bf16=table.bf16) as module:
            found = _layers(module, layers, running.first_batch(network, samples, module, device=device))
            asked, rows = _asked(found, units)
            measured = ablate(
                network,
                chosen,
                module,
                asked,
                replace=table.replace,
                batch_size=batch_size,
                device=device,
                progress=report,
            )
        for name, array in measured.items():
            values[name] = array if array.ndim == 1 else _spread(array, rows, found)
    if "conductance" in parts:
        with running.prepared(network, device=device, bf16=False) as module:
            found = _layers(module, layers, running.first_batch(network, samples, module, device=device))
            asked, rows = _asked(found, units)
            scores = layer_conductance(
                network,
                samples,
                module,
                [layer for layer, _ in asked],
                wanted=table.conductance_samples,
                batch_size=table.conductance_batch,
                steps=table.conductance_steps,
                device=device,
                progress=report,
            )
        kept = [score[list(inside)] for score, (_, inside) in zip(scores, asked, strict=True)]
        values["conductance"] = _spread(np.concatenate([*kept, np.zeros(0)]), rows, found)
    return {v.name: np.ascontiguousarray(values[v.name], dtype=v.dtype) for v in variables}


def _layers(module: torch.nn.Module, layers: Layers, probe: Any) -> tuple[Layer, ...]:
    """Find the layers; a name is that of one call, where a glob stands for all."""
    if isinstance(layers, str):
        return find_layers(module, layers, probe)
    return find_layers(module, [name if set("*?[#") & set(name) else f"{name}#0" for name in layers], probe)


def _chosen(samples: "SampleSet", table: Effects) -> "SampleSet":
    """Return the samples that units are taken away on."""
    from neurolens.data import draws, selection

    if table.samples is None:
        return samples
    if table.samples > len(samples):
        raise DataError(
            f"[effects] samples = {table.samples}, and {samples.name} has {len(samples)}; lower it, or leave it out to "
            "take all"
        )
    kept = selection.select(
        Selection(count=table.samples, how="stratified"),
        samples.labels,
        samples.classes,
        ids=lambda: samples.ids,
        keys=lambda: draws.keys(samples.ids.tolist()),
    )
    return samples.subset(kept)


def _asked(layers: Sequence[Layer], units: Sequence[int]) -> tuple[list[tuple[Layer, list[int]]], list[int]]:
    """Return the layers of the units with their numbers in each, in order, and the same numbers over all layers."""
    edges = np.cumsum([0, *(layer.units for layer in layers)])
    rows = sorted(set(map(int, units)))
    if rows and (rows[0] < 0 or rows[-1] >= edges[-1]):
        wrong = rows[0] if rows[0] < 0 else rows[-1]
        raise SchemaError(
            f"unit {wrong} was asked for, and the {len(layers)} layers have units 0 to {edges[-1] - 1}; name the "
            "layers that units were counted in"
        )
    inside: dict[int, list[int]] = {}
    for row in rows:
        at = int(np.searchsorted(edges, row, side="right")) - 1
        inside.setdefault(at, []).append(row - int(edges[at]))
    return [(layers[at], numbers) for at, numbers in inside.items()], rows


def _spread(values: Array, rows: Sequence[int], layers: Sequence[Layer]) -> Array:
    """Return the values of the units asked for at their places among all units, NaN elsewhere."""
    out = np.full((sum(layer.units for layer in layers), *values.shape[1:]), np.nan)
    out[list(rows)] = values
    return out
