"""The activation of every unit on every sample, or of every element of every map: one row of the activations cube.

Eval mode, no gradients, no augmentation, nothing folded. A sample's numbers do not depend on the batch it came in, but
for what a network itself computes differently in another batch (float32 rounding).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neurolens import schema
from neurolens.errors import NonFiniteError, SchemaError, StudyError, nearest
from neurolens.layers import Layer, find_layers
from neurolens.study import Activations
from neurolens.units import observing, running
from neurolens.units.measure import longest_text, unit_axis
from neurolens.units.observing import Groups, Kept, kept_tokens

if TYPE_CHECKING:
    from neurolens.data import SampleSet, Shown
    from neurolens.models import Network
    from neurolens.store import Axis

MEASUREMENT_VERSION = {"activation": 1}
"""Raised when a part's numbers change; part of its key, so that new code never serves old numbers."""

COPIES = 2
"""Buffers of a block that exist at once: what is measured, and what is written of it."""


def parts(table: Activations) -> tuple[str, ...]:
    """Return the parts of the activations cube that the study asks for."""
    return tuple(p.name for p in schema.ACTIVATIONS.parts)


def key_config(table: Activations, part: str) -> dict[str, Any]:
    """Return the settings that change the numbers, with their version, JSON-able; batch size and memory do not.

    Raises
    ------
    SchemaError
        If there is no such part.
    """
    if part not in MEASUREMENT_VERSION:
        raise SchemaError(f"the activations cube has no part {part!r}; {nearest(part, MEASUREMENT_VERSION)}")
    return {
        "version": MEASUREMENT_VERSION[part],
        "layers": table.layers if isinstance(table.layers, str) else list(table.layers),
        "pool": table.pool,
        "skip_first": table.skip_first,
        "stored": table.dtype,
        "dtype": "bfloat16" if table.bf16 else "model",
    }


def DEPENDS_ON_BATCH(table: Activations) -> bool:
    """Tell whether numbers depend on compute.batch_size: never."""
    return False


def encodings(table: Activations) -> dict[str, str]:
    """Return how the store writes the activations."""
    return {"activation": "float16" if table.dtype == "float16" else "float32-bitround10"}


def axes(
    network: "Network", samples: "SampleSet", table: Activations, *, device: str | torch.device = "cpu"
) -> dict[str, "Axis"]:
    """Return the axis of the units, with coordinates layer, index, layer_index, module and call.

    With ``pool = "full"`` it has an entry per element, in order of layer, index and place, with the further coordinates
    ``y`` and ``x`` (of maps) or ``token`` (its position, up to the longest text); -1 in layers without them.

    Raises
    ------
    CaptureError
        If the network does not have the layers.
    DataError
        If there are no samples.
    """
    with running.prepared(network, device=device, bf16=table.bf16) as module:
        probe = running.first_batch(network, samples, module, device=device)
        layers = find_layers(module, table.layers, probe)
    if table.pool != "full":
        return {"unit": unit_axis(layers)}
    return {"unit": _element_axis(layers, _shapes(layers, network, samples, probe))}


def block_size(table: Activations, axes: Mapping[str, "Axis"]) -> int:
    """Return how many samples' activations fit ``memory_mib``.

    Counted are the buffer that a block is measured into, and as much again for what is made of it when it is written.
    Not counted are what the network itself takes for a batch, and the one layer of a batch that is being pooled.

    Raises
    ------
    StudyError
        If not even one sample fits.
    """
    itemsize = np.dtype(table.dtype).itemsize
    each = COPIES * itemsize * len(axes["unit"].ids)
    budget = table.memory_mib * 2**20
    if each > budget:
        raise StudyError(
            f"the activations of one sample take {each / 2**20:.1f} MiB, and activations.memory_mib is "
            f"{table.memory_mib}; raise it to {-(-each // 2**20)}, name fewer layers, or pool them"
        )
    return budget // each


def measure(
    network: "Network",
    samples: "SampleSet",
    *,
    parts: Sequence[str],
    table: Activations,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Measure the activations of one checkpoint on a block of samples.

    Parameters
    ----------
    network : models.Network
        The filled module. It is left as it was.
    samples : data.SampleSet
        N samples.
    parts
        ``("activation",)``.
    table : study.Activations
        Settings of the measurement.
    batch_size
        Samples a pass; images on a CPU are cut to what suits its caches. Changes no number beyond rounding.
    device
        Where to compute, as torch names it.
    progress
        Called with (samples done, N) after each batch.

    Returns
    -------
    values : ``{"activation": (N, units)}``
        In ``table.dtype``, rounded to nearest even, along the axis of `axes`. Mean or maximum over the positions of a
        map, or over the tokens of a text from ``skip_first`` on, without padding; with ``pool = "full"`` each of them.
        NaN: the text has no such token.

    Raises
    ------
    NonFiniteError
        If an activation is NaN or infinite, naming the layer and the sample (not with ``table.allow_non_finite``), or
        is beyond float16.
    CaptureError, DataError
        If the network does not have the layers, or there are no samples.
    ModelMismatchError
        If the network's activations depend on the batch, or a layer's positions are not those of the text.
    SchemaError
        If a part is unknown.
    """
    for part in parts:
        schema.ACTIVATIONS.part(part)
    with running.prepared(network, device=device, bf16=table.bf16) as module:
        probe = running.first_batch(network, samples, module, device=device)
        layers = find_layers(module, table.layers, probe)
        places = [()] * len(layers) if table.pool != "full" else _shapes(layers, network, samples, probe)
        sizes = [layer.units * int(np.prod(place)) for layer, place in zip(layers, places, strict=True)]
        edges = [0, *np.cumsum(sizes).tolist()]
        buffer = torch.empty(len(samples), edges[-1], dtype=getattr(torch, table.dtype))
        writing = _Writing(samples, table)
        done = 0

        def observe(index: int, tensor: Tensor, batch: "Shown") -> None:
            layer, kept = layers[index], None
            if running.has_tokens(layer, tensor, batch.mask):
                assert batch.mask is not None
                running.require_tokens(batch.mask, batch, samples)
                every = table.pool == "full"
                kept = kept_tokens(batch.mask, tokens="sample", skip_first=0 if every else table.skip_first)
            out = buffer[:, edges[index] : edges[index + 1]]
            if table.pool == "full":
                writing.elements(out.view(len(out), layer.units, *places[index]), tensor.detach(), layer, kept, batch)
            else:
                writing.pooled(out, observing.groups(tensor, layer.axis, kept), layer, batch)

        def report(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, len(samples))

        running.sweep(
            network,
            samples,
            module,
            layers,
            observe=observe,
            commit=lambda batch, seen: None,  # a forward that fails ends the measurement: nothing is returned
            batch_size=batch_size,
            device=device,
            in_order=False,
            progress=report,
        )
    return {"activation": buffer.numpy()} if parts else {}


@dataclass(frozen=True)
class _Writing:
    """Casts what a layer puts out into the buffer of the block, and checks it."""

    samples: "SampleSet"
    table: Activations

    def pooled(self, out: Tensor, groups: Groups, layer: Layer, batch: "Shown") -> None:
        """Write the mean or maximum of each (sample, unit) to ``out`` (N, U); NaN where nothing counts."""
        some = (groups.counts > 0)[:, None]
        if not self.table.allow_non_finite:
            finite = np.isfinite(groups.abs_sum) | ~some
            running.require_finite(finite, layer, batch, self.samples, table="activations")
        found = groups.mean if self.table.pool == "mean" else groups.high
        exact = np.where(some & ~np.isnan(groups.abs_sum), found, np.nan)
        with np.errstate(over="ignore"):
            cast = exact.astype(self.table.dtype)
        for row, unit in np.argwhere(np.isinf(cast) & np.isfinite(exact))[:1]:
            self._overflows(layer, batch, row, exact[row, unit])
        out.numpy()[batch.indices] = cast

    def elements(self, out: Tensor, tensor: Tensor, layer: Layer, kept: Kept | None, batch: "Shown") -> None:
        """Write every element to ``out`` (N, U, …): maps as they are; a text's tokens at their positions, else NaN."""
        for row, sample in enumerate(batch.indices.tolist()):
            values, place = tensor[row].movedim(layer.axis - 1, 0), out[sample]
            if kept is not None:
                first, last = min(self.table.skip_first, int(kept.counts[row])), int(kept.counts[row])
                at = torch.from_numpy(kept.at[row, first:last]).to(values.device)
                place.fill_(torch.nan)
                values, place = values.index_select(1, at), place[:, first:last]
            if values.numel():
                self._element(place, values, layer, batch, row)

    def _element(self, out: Tensor, values: Tensor, layer: Layer, batch: "Shown", row: int) -> None:
        """Cast one sample's elements, on the device that they are on."""
        out.copy_(values.to(out.dtype))
        low, high = (float(extreme) for extreme in torch.aminmax(values))
        finite = np.isfinite([low, high])
        if not finite.all():
            if not self.table.allow_non_finite:
                each = np.ones(len(batch.indices), dtype=np.bool_)
                each[row] = False
                running.require_finite(each, layer, batch, self.samples, table="activations")
            beyond = values.cpu()[out.isinf() & values.cpu().isfinite()]
            low, high = (float(beyond.min()), float(beyond.max())) if len(beyond) else (0.0, 0.0)
        with np.errstate(over="ignore"):
            if np.isinf(np.array([low, high], dtype=self.table.dtype)).any():
                self._overflows(layer, batch, row, max(low, high, key=abs))

    def _overflows(self, layer: Layer, batch: "Shown", row: int, value: float) -> NoReturn:
        raise NonFiniteError(
            f"layer {layer.name!r} has an activation of {value:.6g} on sample "
            f"{str(self.samples.ids[batch.indices[row]])!r}, and float16 ends at 65504; "
            'set dtype = "float32" in [activations]'
        )


def _shapes(layers: Sequence[Layer], network: "Network", samples: "SampleSet", probe: "Shown") -> list[tuple[int, ...]]:
    """Return the shape of what each unit has on a sample; as many tokens as the longest text has."""
    texts = probe.mask is not None
    return [(longest_text(samples, network),) if texts and len(layer.shape) == 1 else layer.shape for layer in layers]


def _element_axis(layers: Sequence[Layer], shapes: Sequence[tuple[int, ...]]) -> "Axis":
    """Return the axis of all elements: those of a unit lie together, in the order of its map."""
    from neurolens.store import Axis

    units = unit_axis(layers)
    sizes = [int(np.prod(shape)) for shape in shapes]
    repeats = np.repeat(sizes, [layer.units for layer in layers])
    coords = {name: np.repeat(values, repeats) for name, values in units.coords.items()}
    places = {"y": (2, 0), "x": (2, 1), "token": (1, 0)}
    for name, (dims, axis) in places.items():
        if any(len(shape) == dims for shape in shapes):
            coords[name] = np.concatenate(
                [
                    np.tile(np.indices(shape)[axis].ravel() if len(shape) == dims else np.full(size, -1), layer.units)
                    for layer, shape, size in zip(layers, shapes, sizes, strict=True)
                ]
            ).astype(np.int32)
    return Axis(np.arange(len(coords["layer"]), dtype=np.int64), coords)
