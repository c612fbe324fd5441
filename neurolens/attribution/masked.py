"""What a network answers to samples of which some entries are taken away: each distinct sample is shown once."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor, nn

from neurolens.attribution.cuts import Peak, differentiable, require_samples
from neurolens.attribution.fills import Fill, filled
from neurolens.attribution.gradients import explained_of, targets_of
from neurolens.attribution.scores import PATCH, Compat, masses
from neurolens.effects.interventions import logits_of
from neurolens.errors import DataError, NonFiniteError, SchemaError

Array = npt.NDArray[Any]
Target = Literal["predicted"] | npt.ArrayLike | Tensor
Chosen = Callable[[Array], Sequence[Array]]
"""From the mass of each entry of a map, (n,), to the entries that are taken away, once or several times."""

_SPARE = 1.25
_FILLING = 6
"""Memory of a pass that is not counted, and of what is filled in, in samples."""

CPU_PASS = 16
"""Samples from which on a CPU takes its fast kernels, and twice as many fall out of its caches."""


def answers(
    module: nn.Module,
    x: Tensor,
    maps: xr.DataArray,
    chosen: Chosen,
    *,
    times: int,
    grid: int | None,
    fill: Fill,
    target: Target,
    batch_size: int,
    budget_mib: float,
    compat: Compat = None,
) -> xr.Dataset:
    """Show samples, each as it is and without entries that its maps choose, ``times`` times per map.

    Returns
    -------
    Dataset
        ``logit`` and ``log_prob`` of the explained class, (sample,), and ``masked_logit`` and ``masked_log_prob``
        (sample, …, time), float64; NaN of maps without mass. ``target`` (sample,) int64. Attributes ``entries`` of a
        map, ``pictures``, how many distinct samples were shown, ``forwards``, in how many passes, and ``batch_size``.

    Raises
    ------
    SchemaError, DataError, ModelMismatchError, NonFiniteError
        As `faithfulness` says.
    """
    require_samples(x)
    if "sample" not in maps.dims or maps.sizes["sample"] != len(x):
        raise DataError(
            f"found maps over {dict(maps.sizes)} for {len(x)} samples, and dim 'sample' of as many was needed; give "
            "the samples that the maps are of, in their order"
        )
    entries, dims = masses(maps.isel(sample=0), grid=grid, compat=compat)
    lead = [dim for dim in entries.dims if dim not in dims]
    shape = tuple(entries.sizes[dim] for dim in dims)
    _require_fit(x, dims, shape)
    per_map = [entries.sizes[dim] for dim in lead]
    index = np.full((len(x), int(np.prod(per_map)), times), -1, dtype=np.int64)
    with differentiable(module), torch.no_grad():
        given = target if isinstance(target, str | Tensor) else np.asarray(target)
        shown = _Shown(module, x.detach(), shape, fill, targets_of(given, x))
        shown.start(batch_size, budget_mib)
        for sample in range(len(x)):
            entries, _ = masses(maps.isel(sample=sample), grid=grid, compat=compat)
            shown.first(sample)
            for at, row in enumerate(entries.transpose(*lead, *dims).to_numpy().reshape(index.shape[1], -1)):
                if np.isfinite(row).all() and (compat == "seed" or row.any()):
                    index[sample, at] = [shown.place(away) for away in chosen(row)]
        shown.flush()
    found = np.append(np.concatenate(shown.found, axis=1), np.full((2, 1), np.nan), axis=1)  # -1: of no mass
    coords = {name: coord for name, coord in maps.coords.items() if set(coord.dims) <= {"sample", *lead}}
    data: dict[Hashable, Any] = {"target": ("sample", shown.targets.cpu().numpy())}
    for name, values in zip(("logit", "log_prob"), found, strict=True):
        data[name] = ("sample", values[: len(x)])
        data[f"masked_{name}"] = (("sample", *lead, "time"), values[index].reshape(len(x), *per_map, times))
    attrs = {
        "entries": int(np.prod(shape)),
        "pictures": shown.pictures,
        "forwards": shown.forwards,
        "batch_size": shown.size,
    }
    return xr.Dataset(data, coords, attrs)


@dataclass
class _Shown:
    """Answers to what was shown, those to whole samples first, and what waits to be shown."""

    module: nn.Module
    x: Tensor
    shape: tuple[int, ...]  # of the entries
    fill: Fill
    targets: Tensor  # (B,); -1 until it is predicted
    size: int = 1
    quick: int = 1  # samples of a pass that are shown at once, up to twice as many in the last ones
    pictures: int = 0
    forwards: int = 0
    found: list[Array] = field(default_factory=list)  # logit and log-probability, (2, shown)

    def start(self, batch_size: int, budget_mib: float) -> None:
        """Show all samples as they are: the first one alone, to see what memory one takes."""
        if batch_size < 1:
            raise SchemaError(f"batch_size={batch_size} is no number of samples; give 1 or more")
        self.waiting: list[tuple[int, Array]] = []
        peak = Peak()
        with peak:
            self._show(self.x[:1], torch.arange(1))
        one = peak.nbytes * _SPARE + _FILLING * self.x[0].numel() * self.x.element_size()
        self.size = min(batch_size, int(budget_mib * 2**20 // one))
        if self.size < 1:
            raise SchemaError(
                f"budget_mib={budget_mib:g} was given, and {one / 2**20:.1f} are needed to show one sample; raise it"
            )
        self.quick = CPU_PASS if self.x.device.type == "cpu" and self.size >= 2 * CPU_PASS else self.size
        for rows in torch.split(torch.arange(1, len(self.x)), self.size):
            if len(rows):
                self._show(self.x[rows], rows)

    def first(self, sample: int) -> None:
        """Turn to another sample."""
        self.sample = sample
        self.seen = {self._key(np.zeros(0, dtype=np.int64)): sample}

    def place(self, away: Array) -> int:
        """Return where the answer to the sample without these entries is, or will be."""
        key = self._key(away)
        if key not in self.seen:
            self.seen[key] = self.pictures + len(self.waiting)
            self.waiting.append((self.sample, np.frombuffer(key, dtype=np.uint8)))
            if len(self.waiting) == 2 * self.quick:
                self._show_waiting(self.quick)
        return self.seen[key]

    def flush(self) -> None:
        """Show what waits, in even passes: one of a few samples takes each of them longer."""
        for left in range(-(-len(self.waiting) // self.size), 0, -1):  # less than twice what is shown at once
            self._show_waiting(-(-len(self.waiting) // left))

    def _show_waiting(self, count: int) -> None:
        shown, self.waiting = self.waiting[:count], self.waiting[count:]
        rows = torch.tensor([sample for sample, _ in shown])
        packed = np.stack([mask for _, mask in shown])
        entries = np.unpackbits(packed, axis=1, count=int(np.prod(self.shape))).astype(bool)
        masks = _pixels(entries.reshape(-1, *self.shape), tuple(self.x.shape[1:]))
        samples = self.x[rows]
        self._show(filled(samples, torch.as_tensor(masks, device=samples.device), self.fill), rows)

    def _key(self, away: Array) -> bytes:
        mask = np.zeros(int(np.prod(self.shape)), dtype=bool)
        mask[away] = True
        return np.packbits(mask).tobytes()

    def _show(self, samples: Tensor, rows: Tensor) -> None:
        logits = logits_of(self.module(samples), len(samples), 1).double()
        self.forwards += 1
        self.pictures += len(samples)
        finite = logits.isfinite().all(dim=1)
        if not finite.all():
            raise NonFiniteError(
                f"sample number {int(rows[(~finite).cpu()][0])} is answered with NaN or infinity, as it is or without "
                "some entries, and finite numbers were needed; leave it, or the checkpoint, out"
            )
        targets = self.targets[rows]
        new = targets < 0
        targets[new] = logits[new].argmax(dim=1)
        self.targets[rows] = targets
        pair = explained_of(logits, targets, "logit"), explained_of(logits, targets, "log_prob")
        self.found.append(torch.stack(pair).cpu().numpy())


def _pixels(entries: Array, sample: tuple[int, ...]) -> Array:
    """Return masks of pixels, (B, …), from masks of entries: those of patches are repeated."""
    if entries.shape[1:] == sample[-(entries.ndim - 1) :]:
        return entries
    sides = [size // cells for size, cells in zip(sample[1:], entries.shape[1:], strict=True)]
    inside = entries.repeat(sides[0], axis=1).repeat(sides[1], axis=2)
    return np.pad(inside, [(0, 0), *((0, size - s) for size, s in zip(sample[1:], inside.shape[1:], strict=True))])


def _require_fit(x: Tensor, dims: tuple[str, ...], shape: tuple[int, ...]) -> None:
    pixels = tuple(x.shape[1 + (x.ndim == 4) :])
    fits = shape == pixels if dims != PATCH else x.ndim == 4 and all(s <= p for s, p in zip(shape, pixels, strict=True))
    if x.ndim not in (2, 4) or not fits:
        raise DataError(
            f"found maps of {dict(zip(dims, shape, strict=True))} for samples of shape {tuple(x.shape[1:])}, and one "
            "entry per pixel, or patches of pixels, were needed; give the samples that the maps are of"
        )
