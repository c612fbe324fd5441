"""What one checkpoint's units do on the samples: statistics that answer for every definition and threshold later.

Eval mode, no gradients, no augmentation, nothing folded. Every number but those of ``tokens = "seed"`` is the same
whatever the batch size and the order of the samples, beyond float64 rounding of the sums (and what a network itself
computes differently in another batch, beyond float32 rounding).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from neurolens import schema
from neurolens.errors import DataError, SchemaError, nearest
from neurolens.layers import Layer, find_layers
from neurolens.study import Units
from neurolens.units import observing, running, weights
from neurolens.units.histogram import BINS, bin_edges
from neurolens.units.observing import Kept, kept_tokens
from neurolens.units.totals import Observed, Totals, Wanted

if TYPE_CHECKING:
    from neurolens.data import SampleSet, Shown
    from neurolens.models import Network
    from neurolens.store import Axis

Array = npt.NDArray[Any]

MEASUREMENT_VERSION = {
    "statistics": 1,
    "abs_dev": 1,
    "histogram": 1,
    "classes": 1,
    "positions": 1,
    "top": 1,
    "weights": 1,
}
"""Raised when a part's numbers change; part of its key, so that new code never serves old numbers."""


def parts(table: Units) -> tuple[str, ...]:
    """Return the parts of the units cube that the study asks for."""
    return tuple(p.name for p in schema.UNITS.parts if p.option is None or getattr(table, p.option))


def key_config(table: Units, part: str) -> dict[str, Any]:
    """Return the settings that change a part's numbers, with its version, JSON-able.

    Batch size, device, workers and threads are not among them (see `DEPENDS_ON_BATCH`); nor is ``allow_non_finite``,
    which decides whether a row is kept, not what is in it. Positions do not depend on how tokens count, and weights on
    nothing but which layers there are.

    Raises
    ------
    SchemaError
        If there is no such part.
    """
    if part not in MEASUREMENT_VERSION:
        raise SchemaError(f"the units cube has no part {part!r}; {nearest(part, MEASUREMENT_VERSION)}")
    layers = table.layers if isinstance(table.layers, str) else list(table.layers)
    config: dict[str, Any] = {"version": MEASUREMENT_VERSION[part], "layers": layers}
    if part != "weights":
        config["dtype"] = "bfloat16" if table.bf16 else "model"
    if part not in ("weights", "positions"):
        config |= {"tokens": table.tokens, "skip_first": table.skip_first}
    if part == "top":
        config["top"] = table.top
    return config


def DEPENDS_ON_BATCH(table: Units) -> bool:
    """Tell whether numbers depend on compute.batch_size, which then has to be in their key: padding that counts."""
    return table.tokens == "seed"


def axes(
    network: "Network", samples: "SampleSet", table: Units, *, device: str | torch.device = "cpu"
) -> dict[str, "Axis"]:
    """Return the fixed axes of the cube, those of the parts that the study asks for.

    Returns
    -------
    axes : by dim
        ``unit`` (0, 1, … with coordinates layer, index, layer_index, module, call), ``class`` (names), ``bin`` (0 to
        255, with edges low and high), ``position`` (of a token in its text, from 0), ``rank``, ``sample`` (ids that
        top_sample counts in), ``parameter`` (names, with the size of each).

    Raises
    ------
    CaptureError
        If the network does not have the layers.
    DataError
        If there are no samples, or positions are asked of samples that are no texts.
    """
    from neurolens.store import Axis

    wanted = parts(table)
    with running.prepared(network, device=device, bf16=table.bf16) as module:
        probe = running.first_batch(network, samples, module, device=device)
        found = {"unit": unit_axis(find_layers(module, table.layers, probe))}
    if "histogram" in wanted:
        low, high = bin_edges()
        found["bin"] = Axis(np.arange(BINS), {"low": low, "high": high})
    if "classes" in wanted:
        found["class"] = Axis(class_ids(samples))
    if "positions" in wanted:
        found["position"] = Axis(np.arange(longest_text(samples, network)))
    if "top" in wanted:
        found |= {"rank": Axis(np.arange(table.top)), "sample": Axis(samples.ids)}
    if "weights" in wanted:
        tensors = weights.weight_parameters(network.module)
        sizes = np.array([tensor.numel() for tensor in tensors.values()], dtype=np.int64)
        found["parameter"] = Axis(np.array(list(tensors), dtype=np.str_), {"size": sizes})
    return found


def unit_axis(layers: Sequence[Layer]) -> "Axis":
    """Return the axis of the units of these layers, one after the other."""
    from neurolens.store import Axis

    sizes = [layer.units for layer in layers]

    def each(values: Sequence[Any], dtype: Any) -> Array:
        return np.repeat(np.array(values, dtype=dtype), sizes)

    return Axis(
        np.arange(sum(sizes), dtype=np.int64),
        {
            "layer": each([layer.name for layer in layers], np.str_),
            "index": np.concatenate([np.arange(size, dtype=np.int64) for size in sizes]),
            "layer_index": each(range(len(layers)), np.int32),
            "module": each([layer.tap.module for layer in layers], np.str_),
            "call": each([layer.tap.call for layer in layers], np.int32),
        },
    )


def longest_text(samples: "SampleSet", network: "Network") -> int:
    """Return the number of tokens of the longest text: for a block of a set, of the set.

    Raises
    ------
    DataError
        If the samples are no texts.
    """
    from neurolens.data import TextSet

    counts = running.token_counts(samples, network)
    if counts is None:
        raise DataError(
            f"{samples.name} has no tokens, and positions are counted over the tokens of texts; "
            "set positions = false in [units]"
        )
    if isinstance(samples, TextSet) and network.tokenizer is not None:
        return samples.longest(network.tokenizer)
    return int(counts.max(initial=0))


def measure(
    network: "Network",
    samples: "SampleSet",
    *,
    parts: Sequence[str],
    table: Units,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Array]:
    """Measure the units of one checkpoint on all samples: one pass, and a second one for ``abs_dev``.

    Observations of a unit are the positions of its map, or the tokens of each text that ``table.tokens`` and
    ``table.skip_first`` let count; of a layer without positions, the samples. Histograms and positions count each of
    them once, however they are weighted.

    Parameters
    ----------
    network : models.Network
        The filled module. It is left as it was.
    samples : data.SampleSet
        N samples.
    parts
        Parts of the units cube.
    table : study.Units
        Settings of the measurement.
    batch_size
        Samples a pass; images on a CPU are cut to what suits its caches. Changes no number beyond float64 rounding,
        except with ``tokens = "seed"``.
    device
        Where to compute, as torch names it.
    progress
        Called with (samples done, N · passes) after each batch.

    Returns
    -------
    values : variable name → array
        Shaped as in the units cube without the series, over the axes of `axes`. ``class_max`` of a class without
        samples is NaN; ``top_value`` NaN and ``top_sample`` -1 where there are fewer samples than ranks;
        ``position_n_pos`` NaN in layers without tokens; ``out_weight`` NaN where no reader is known.

    Raises
    ------
    DataError
        If there are no samples, a text has no token, or none is left.
    CaptureError
        If the network does not have the layers.
    NonFiniteError
        If an activation that counts is NaN or infinite, naming the layer and the sample; not with
        ``table.allow_non_finite``, where NaN then spreads to its own unit alone.
    ModelMismatchError
        If the network's activations depend on the batch, or a layer's positions are not those of the text.
    SchemaError
        If a part is unknown.
    """
    variables = [v for part in parts for v in schema.UNITS.part(part).variables]
    values: dict[str, Array] = {}
    passes = bool(set(parts) - {"weights"}) + ("abs_dev" in parts)
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, passes * len(samples))

    with running.prepared(network, device=device, bf16=table.bf16) as module:
        probe = running.first_batch(network, samples, module, device=device)
        layers = find_layers(module, table.layers, probe)
        bench = _Bench(network, samples, module, layers, table, batch_size, device, report)
        if passes:
            wanted = Wanted(
                histogram="histogram" in parts,
                classes=len(samples.classes) if "classes" in parts else 0,
                positions=longest_text(samples, network) if "positions" in parts else 0,
                top=table.top if "top" in parts else 0,
            )
            totals = bench.totals(wanted)
            values |= _joined([t.statistics() | t.of_parts() for t in totals])
            if wanted.positions:
                lengths = running.token_counts(samples, network)
                assert lengths is not None
                values["position_n"] = (lengths[:, None] > np.arange(wanted.positions)).sum(axis=0)
        if "abs_dev" in parts:
            centres = [total.table[2] for total in totals]
            values["abs_dev"] = np.concatenate(bench.deviations(centres)) / values["n"]
        if "weights" in parts:
            readers = weights.readers_of(module, layers, probe.args, probe.kwargs)
            own = network.module
            values["out_weight"] = np.concatenate(
                [weights.out_weight(own, read, layer.units) for read, layer in zip(readers, layers, strict=True)]
            )
            values["parameter_mean_abs"], values["parameter_norm"] = weights.parameter_magnitudes(own)
    return {v.name: np.ascontiguousarray(values[v.name], dtype=v.dtype) for v in variables}


@dataclasses.dataclass(frozen=True)
class _Bench:
    """A network, prepared, and what it is to be shown."""

    network: "Network"
    samples: "SampleSet"
    module: nn.Module
    layers: tuple[Layer, ...]
    table: Units
    batch_size: int
    device: str | torch.device
    report: Callable[[int], None]
    masks: list[Any] = dataclasses.field(default_factory=list)

    def totals(self, wanted: Wanted) -> list[Totals]:
        """Run the first pass."""
        totals = [Totals(layer, wanted) for layer in self.layers]

        def observe(index: int, tensor: Tensor, batch: "Shown") -> Observed:
            return totals[index].observe(tensor, *self._tokens(index, tensor, batch))

        def commit(batch: "Shown", seen: Mapping[int, Observed]) -> None:
            labels = batch.y.cpu().numpy()
            for index, observed in sorted(seen.items()):
                if not self.table.allow_non_finite:
                    some = (observed.groups.counts > 0)[:, None]
                    finite = np.isfinite(observed.groups.abs_sum) | ~some
                    running.require_finite(finite, self.layers[index], batch, self.samples, table="units")
                totals[index].add(observed, labels, batch.indices)

        self._sweep(observe, commit)
        return totals

    def deviations(self, centres: Sequence[Array]) -> list[Array]:
        """Run the second pass: the weighted sums of absolute deviations from the means, (U,) per layer."""
        sums = [np.zeros(len(centre)) for centre in centres]

        def observe(index: int, tensor: Tensor, batch: "Shown") -> Array:
            kept, _ = self._tokens(index, tensor, batch)
            found = observing.deviations(tensor, self.layers[index].axis, centres[index], kept)
            return found if kept is None else found * kept.scales[:, None]

        def commit(batch: "Shown", seen: Mapping[int, Array]) -> None:
            for index, found in seen.items():
                for line in found:
                    sums[index] += line

        self._sweep(observe, commit)
        return sums

    def _sweep(self, observe: Callable[..., Any], commit: Callable[..., None]) -> None:
        running.sweep(
            self.network,
            self.samples,
            self.module,
            self.layers,
            observe=observe,
            commit=commit,
            batch_size=self.batch_size,
            device=self.device,
            in_order=self.table.tokens == "seed",
            progress=self.report,
        )

    def _tokens(self, index: int, tensor: Tensor, batch: "Shown") -> tuple[Kept | None, Kept | None]:
        """Return which tokens of the batch count in a layer, and which there are; None where it has no tokens."""
        mask = batch.mask
        if mask is None or not running.has_tokens(self.layers[index], tensor, mask):
            return None, None
        if not self.masks or self.masks[0] is not mask:
            running.require_tokens(mask, batch, self.samples)
            kept = kept_tokens(mask, tokens=self.table.tokens, skip_first=self.table.skip_first)
            self.masks[:] = [mask, kept, kept_tokens(mask, tokens="token")]
        return self.masks[1], self.masks[2]


def class_ids(samples: "SampleSet") -> Array:
    """Return the names of the classes, or their numbers where two have the same name."""
    names = np.array(samples.classes, dtype=np.str_)
    return names if len(set(samples.classes)) == len(names) else np.arange(len(names))


def _joined(layers: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Join what the layers hold along the axis of the units: the last of class sums, the first of all others."""
    return {
        name: np.concatenate([layer[name] for layer in layers], axis=1 if name.startswith("class_") else 0)
        for name in layers[0]
    }
