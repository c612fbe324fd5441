"""The same numbers on an accelerator: torch reductions in float64, a few samples at a time."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neurolens.units.histogram import BINS

AT_ONCE = 2**24
"""Values that are turned to float64 at once (128 MB), or one sample."""


def wanted(tensor: Tensor) -> bool:
    """Tell whether a tensor is reduced where it lies: MPS has no float64, so its tensors are read by the CPU."""
    return tensor.device.type not in ("cpu", "mps")


def groups(tensor: Tensor, axis: int, mask: Tensor | None = None) -> tuple[npt.NDArray[Any], ...]:
    """Return abs_sum, mean, m2, low, high, positive and nonzero of each (sample, unit), (B, U) numpy arrays.

    Parameters
    ----------
    tensor : (B, …), with the units on ``axis``
    mask : (B, T) bool, for (B, T, U): the tokens that count; None: all
    """
    parts = []
    for x, chosen in _pieces(tensor, axis, mask):
        zeroed = x if chosen is None else torch.where(chosen, x, 0.0)
        count = x.shape[1] if chosen is None else chosen.sum(dim=1).clamp(min=1)
        mean = zeroed.sum(dim=1) / count
        apart = x - mean[:, None]
        parts.append(
            torch.stack(
                [
                    zeroed.abs().sum(dim=1),
                    mean,
                    (apart if chosen is None else torch.where(chosen, apart, 0.0)).square().sum(dim=1),
                    (x if chosen is None else torch.where(chosen, x, torch.inf)).amin(dim=1),
                    (x if chosen is None else torch.where(chosen, x, -torch.inf)).amax(dim=1),
                    (zeroed > 0).sum(dim=1).double(),
                    (zeroed != 0).sum(dim=1).double(),
                ]
            )
        )
    found = torch.cat(parts, dim=1).cpu().numpy()
    return (*found[:3], *found[3:5].astype(np.float32), *found[5:].astype(np.int32))


def deviations(
    tensor: Tensor, axis: int, centres: npt.NDArray[np.float64], mask: Tensor | None = None
) -> npt.NDArray[np.float64]:
    """Return the sum of absolute deviations from ``centres`` (U,) of each (sample, unit), (B, U)."""
    middle = torch.from_numpy(centres).to(tensor.device)
    parts = []
    for x, chosen in _pieces(tensor, axis, mask):
        apart = (x - middle).abs()
        parts.append((apart if chosen is None else torch.where(chosen, apart, 0.0)).sum(dim=1))
    found: npt.NDArray[np.float64] = torch.cat(parts).cpu().numpy()
    return found


def bins(tensor: Tensor, axis: int, mask: Tensor | None = None) -> npt.NDArray[np.int64]:
    """Count the observations of each unit by the top 8 bits of its float16, (U, 256)."""
    units = tensor.shape[axis]
    totals = torch.zeros(units * BINS, dtype=torch.int64, device=tensor.device)
    for x, chosen in _pieces(tensor, axis, mask):
        # from float64 to float16 by way of float32, which is what the values were
        top = (x.float().half().view(torch.int16).long() >> 8) & 0xFF
        top = torch.where(x.isnan(), (top & 0x80) | 0x7E, top)
        place = top + BINS * torch.arange(units, device=x.device)
        totals += torch.bincount((place if chosen is None else place[chosen[..., 0]]).flatten(), minlength=len(totals))
    found: npt.NDArray[np.int64] = totals.view(units, BINS).cpu().numpy()
    return found


def fired(tensor: Tensor, at: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Count the texts in which each unit of (B, T, U) is above zero, by rank of the token, (rank, U)."""
    longest = int(counts.max(initial=0))
    order = torch.from_numpy(at[:, :longest]).to(tensor.device)
    there = torch.arange(longest, device=tensor.device) < torch.from_numpy(counts).to(tensor.device)[:, None]
    times = torch.zeros(longest, tensor.shape[2], dtype=torch.int64, device=tensor.device)
    for sample, places, real in zip(tensor.detach(), order, there):
        times += (sample[places] > 0) & real[:, None]
    found: npt.NDArray[np.int64] = times.cpu().numpy()
    return found


def _pieces(tensor: Tensor, axis: int, mask: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield float64 (samples, positions, units) and, with a mask, bool (samples, positions, 1)."""
    last = tensor.detach().movedim(axis, -1)
    step = max(1, AT_ONCE // max(1, last[0].numel())) if len(last) else 1
    for start in range(0, len(last), step):
        piece = last[start : start + step]
        x = piece.reshape(len(piece), -1, piece.shape[-1]).double()
        yield x, None if mask is None else mask[start : start + step, :, None]
