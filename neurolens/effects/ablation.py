"""What the classes lose when a unit is taken away: one forward for all, and for each unit one from its layer on."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from neurolens.effects.interventions import logits_of, without_units
from neurolens.effects.replay import Call, Recording, calls_of, record, replaying
from neurolens.errors import NonFiniteError
from neurolens.layers import Layer
from neurolens.units import running

if TYPE_CHECKING:
    from neurolens.data import SampleSet, Shown
    from neurolens.models import Network

Array = npt.NDArray[Any]
Asked = Sequence[tuple[Layer, Sequence[int]]]
"""Layers in the order in which they fire, with the units asked for, by their numbers in the layer."""

RECORD_MIB = 1024
"""Memory for what the modules before a layer put out; batches are cut down to it."""


def ablate(
    network: "Network",
    samples: "SampleSet",
    module: nn.Module,
    asked: Asked,
    *,
    replace: Literal["zero", "mean"] = "zero",
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: Callable[[int], None] | None = None,
) -> dict[str, Array]:
    """Take units away one at a time, and see what the classes lose.

    Of each batch, the network runs once as it is, in pieces from layer to layer; and once for each unit, from its layer
    on, with what was computed before it (`neurolens.effects.replay`). Where that does not give what a whole forward
    gives, compared on the first samples, each unit takes a whole forward. The numbers are those of whole forwards.

    Parameters
    ----------
    network : models.Network
        Of which ``module`` was prepared by `neurolens.units.running.prepared`.
    samples : N samples
    module : in eval mode; left as it was
    asked : layers with their units
    replace : {"zero", "mean"}
        What a unit puts out when it is away: nothing, or everywhere its mean over the samples (and the positions, or
        the tokens of the texts), from a pass of its own.
    batch_size, device
        As for the units of a study.
    progress : called with the samples of each batch, of one pass, or of two with "mean"

    Returns
    -------
    values : over the C classes, and the A units asked for in their order
        ``n_class``, ``class_correct`` (C,): samples, and how many the network tells right; the first of equal logits
        counts. ``class_logit`` (C,): mean logit of the class over its own samples; NaN where it has none.
        ``ablated_correct``, ``ablated_logit`` (A, C): the same without the unit. ``ablated_lost`` (A, C): samples told
        right with the unit only. ``ablated_m2`` (A, C): sum over the samples of the class of the squared deviation of
        logit minus logit without the unit, from its mean.

    Raises
    ------
    DataError
        If there are no samples.
    ModelMismatchError
        If the network does not give a row of logits per sample.
    CaptureError
        If a layer does not have a unit.
    NonFiniteError
        If a logit, or a mean activation, is NaN or infinite.
    """
    from neurolens.data import shown

    classes = len(samples.classes)
    with torch.no_grad():
        means: Sequence[Array] = [np.zeros(len(units)) for _, units in asked]
        if replace == "mean" and asked:
            means = _means(network, samples, module, asked, batch_size=batch_size, device=device, progress=progress)
        probe = running.first_batch(network, samples, module, device=device)
        runs = _Runs(module, asked, means, probe, classes)
        totals = _Totals(classes, sum(len(units) for _, units in asked))
        texts = running.token_counts(samples, network)
        cpu = torch.device(device).type == "cpu" and texts is None
        size = runs.batch_size(min(batch_size, running.CPU_BATCH) if cpu else batch_size)
        order = np.arange(len(samples)) if texts is None else np.argsort(-texts, kind="stable")
        for drawn in shown(samples, network, batch_size=size, device=device, indices=order):
            batch = running.laid_out(drawn, module)
            labels = batch.y.cpu().numpy()

            def take(unit: int, logits: Tensor, batch: "Shown" = batch, labels: Array = labels) -> None:
                exact = logits.double().cpu() if logits.device.type != "mps" else logits.cpu().double()
                _require_finite(exact, batch, samples, runs.without(unit))
                totals.add(unit, exact.numpy(), labels)

            runs.each(batch, take)
            if progress is not None:
                progress(len(labels))
    return totals.values()


@dataclass
class _Runs:
    """A network, and how the logits of a batch are found without each unit."""

    module: nn.Module
    asked: Asked
    means: Sequence[Array]
    probe: "Shown"
    classes: int

    def __post_init__(self) -> None:
        """Try on the first samples which layers can be started from, and what that takes."""
        shown, self.replayed, self.nbytes = self.probe, [False] * len(self.asked), 0
        self.copied: list[frozenset[Call]] = [frozenset()] * len(self.asked)
        if all(len(units) < 2 for _, units in self.asked):
            return
        self.calls = calls_of(self.module, shown.args, shown.kwargs)
        for at, (_, units) in enumerate(self.asked):
            if len(units) < 2:
                continue
            whole = self._logits_without(at, 0, shown)
            try:
                recording = self._recorded(at, shown)
                with replaying(self.module, recording):
                    again = self._logits_without(at, 0, shown)
            except (LookupError, AttributeError, TypeError, ValueError, RuntimeError):
                continue  # the whole forward did not fail: what is missing is what a skipped module did besides
            small = 16 * torch.finfo(whole.dtype).eps
            self.replayed[at] = bool((again - whole).abs().max() <= small * whole.abs().max())
            self.nbytes = max(self.nbytes, recording.nbytes // len(shown.indices))

    def batch_size(self, wanted: int) -> int:
        """Return how many samples a batch may have."""
        return max(1, min(wanted, int(RECORD_MIB * 2**20 / max(1, self.nbytes))))

    def without(self, unit: int) -> str:
        """Say which unit is away; nothing for -1."""
        for layer, units in self.asked:
            if 0 <= unit < len(units):
                return f" without unit {units[unit]} of layer {layer.name!r}"
            unit -= len(units)
        return ""

    def each(self, batch: "Shown", take: Callable[[int, Tensor], None]) -> None:
        """Hand out the logits of a batch: as they are, numbered -1, then without each unit."""
        first = self.replayed.index(True) if any(self.replayed) else -1
        recording: Recording | None = None
        if first >= 0:
            recording = self._recorded(first, batch)
            take(-1, self._logits(recording.output, batch))
        else:
            take(-1, self._logits(self.module(*batch.args, **batch.kwargs), batch))
        unit = 0
        for at, (_, units) in enumerate(self.asked):
            with ExitStack() as stack:
                if self.replayed[at]:
                    assert recording is not None
                    if at > first:
                        with replaying(self.module, recording):
                            recording = self._recorded(at, batch)
                    stack.enter_context(replaying(self.module, recording))
                for number in range(len(units)):
                    take(unit, self._logits_without(at, number, batch))
                    unit += 1

    def _recorded(self, at: int, batch: "Shown") -> Recording:
        while True:
            tap, copied = self.asked[at][0].tap, self.copied[at]
            recording = record(self.module, tap, batch.args, batch.kwargs, totals=self.calls, copied=copied)
            if not recording.overwritten:
                return recording
            self.copied[at] |= recording.overwritten

    def _logits_without(self, at: int, number: int, batch: "Shown") -> Tensor:
        layer, units = self.asked[at]
        with without_units(self.module, layer, [units[number]], values=self.means[at][number]):
            return self._logits(self.module(*batch.args, **batch.kwargs), batch)

    def _logits(self, output: Any, batch: "Shown") -> Tensor:
        return logits_of(output, len(batch.indices), self.classes)


class _Totals:
    """Sums over the samples of each class, of the network and of it without each unit."""

    def __init__(self, classes: int, units: int) -> None:
        self.classes = classes
        self.n = np.zeros(classes)
        self.correct, self.logit = np.zeros((units + 1, classes)), np.zeros((units + 1, classes))
        self.lost, self.drop, self.m2 = (np.zeros((units, classes)) for _ in range(3))
        self.told, self.whole = np.zeros(0, np.bool_), np.zeros(0)

    def add(self, unit: int, logits: Array, labels: Array) -> None:
        """Take in the logits of a batch, of the network (-1) before those without a unit."""
        own, right = logits[np.arange(len(labels)), labels], logits.argmax(axis=1) == labels
        if unit < 0:
            self.before, self.n = self.n, self.n + self._by_class(np.ones(len(labels)), labels)
            self.told, self.whole = right, own
        else:
            drop = self.whole - own
            count = self.n - self.before
            mean = self._by_class(drop, labels) / np.maximum(count, 1)
            gap = mean - self.drop[unit]
            self.m2[unit] += self._by_class((drop - mean[labels]) ** 2, labels)
            self.m2[unit] += gap**2 * self.before * count / np.maximum(self.n, 1)  # Chan et al. 1979, eq. 2.1b
            self.drop[unit] += gap * count / np.maximum(self.n, 1)
            self.lost[unit] += self._by_class(self.told & ~right, labels)
        self.correct[unit + 1] += self._by_class(right, labels)
        self.logit[unit + 1] += self._by_class(own, labels)

    def values(self) -> dict[str, Array]:
        """Return what `ablate` returns."""
        logit = np.where(self.n > 0, self.logit / np.maximum(self.n, 1), np.nan)
        return {
            "n_class": self.n,
            "class_correct": self.correct[0],
            "class_logit": logit[0],
            "ablated_correct": self.correct[1:],
            "ablated_logit": logit[1:],
            "ablated_lost": self.lost,
            "ablated_m2": np.where(self.n > 0, self.m2, np.nan),
        }

    def _by_class(self, values: Array, labels: Array) -> Array:
        return np.bincount(labels, weights=values, minlength=self.classes)


def _means(
    network: "Network",
    samples: "SampleSet",
    module: nn.Module,
    asked: Asked,
    *,
    batch_size: int,
    device: str | torch.device,
    progress: Callable[[int], None] | None,
) -> list[Array]:
    """Return the mean activation of the units of each layer, over samples and positions, or the tokens of texts."""
    layers = [layer for layer, _ in asked]
    sums, counts = [np.zeros(len(units)) for _, units in asked], np.zeros(len(asked))

    def observe(index: int, tensor: Tensor, batch: "Shown") -> tuple[Array, int]:
        units = torch.as_tensor(list(asked[index][1]), device=tensor.device)
        values = tensor.index_select(layers[index].axis, units).movedim(layers[index].axis, -1)
        mask = batch.mask if batch.mask is not None and running.has_tokens(layers[index], tensor, batch.mask) else None
        kept = values.reshape(-1, len(units)) if mask is None else values[mask]
        return kept.float().cpu().double().sum(dim=0).numpy(), len(kept)

    def commit(_: "Shown", seen: Mapping[int, tuple[Array, int]]) -> None:
        for index, (total, count) in seen.items():
            sums[index] += total
            counts[index] += count

    running.sweep(
        network,
        samples,
        module,
        layers,
        observe=observe,
        commit=commit,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    for (layer, units), total in zip(asked, sums, strict=True):
        if not np.isfinite(total).all():
            raise NonFiniteError(
                f"layer {layer.name!r}, unit {units[int(np.argmin(np.isfinite(total)))]} has an activation of NaN or "
                "infinity, and a finite mean was needed; leave the checkpoint out"
            )
    return [total / count for total, count in zip(sums, counts, strict=True)]


def _require_finite(logits: Tensor, batch: "Shown", samples: "SampleSet", without: str) -> None:
    wrong = (~logits.isfinite().all(dim=1)).nonzero()
    if len(wrong):
        sample = str(samples.ids[batch.indices[int(wrong[0, 0])]])
        raise NonFiniteError(
            f"sample {sample!r} has a logit of NaN or infinity{without}, and finite numbers were needed; leave the "
            "checkpoint out"
        )
