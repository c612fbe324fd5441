"""What one batch shows of a layer: statistics of each (sample, unit), read from the live tensor in one pass.

On a CPU compiled kernels read the tensor where it lies, channels first or last; half precision and other layouts are
turned to float32 a few samples at a time. On an accelerator torch reduces in float64, a few samples at a time too. No
temporary has the tensor's size.
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neurolens.units import accelerated, histogram, kernels, per_sample

Floats = npt.NDArray[np.float64]
Layout = Literal["maps", "rows"]

TURNED = 2**18
"""Values that are turned to float32 at once (1 MB), or one sample."""

ALONE = 2**20
"""Fewer values than this (0.3 ms) are not worth waking another thread for."""


class Kept(NamedTuple):
    """Which tokens of a batch count, and how.

    Attributes
    ----------
    mask : (B, T) bool, on the device
    at : (B, T) int64
        ``at[b, :counts[b]]`` are the positions of the sample's tokens that count, in order.
    counts : (B,) int64
    scales : (B,) float64
        What one token of the sample counts for.
    """

    mask: Tensor
    at: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    scales: Floats


class Groups(NamedTuple):
    """Statistics of each (sample, unit) of a batch, (B, U) each; those of a sample without observations mean nothing.

    ``counts`` (B,) are the observations of each sample and ``scales`` (B,) what one of them counts for.
    """

    counts: npt.NDArray[np.int64]
    scales: Floats
    abs_sum: Floats
    mean: Floats
    m2: Floats
    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]
    positive: npt.NDArray[np.int32]
    nonzero: npt.NDArray[np.int32]


def kept_tokens(mask: Tensor, *, tokens: Literal["token", "sample", "seed"], skip_first: int = 0) -> Kept:
    """Say which tokens count.

    Parameters
    ----------
    mask : (B, T) bool
        Where a token of the text stands.
    tokens
        ``"token"``: every token the same; ``"sample"``: every text the same, by the mean over its tokens; ``"seed"``:
        every text the same, by the mean over all T positions, padding included.
    skip_first
        First tokens of each text that are left out.
    """
    real = mask.cpu().numpy().astype(bool)
    first = real & (np.cumsum(real, axis=1) <= skip_first)
    chosen = ~first if tokens == "seed" else real & ~first
    counts = chosen.sum(axis=1).astype(np.int64)
    at = np.argsort(~chosen, axis=1, kind="stable").astype(np.int64)
    scales = np.ones(len(counts)) if tokens == "token" else 1 / np.maximum(counts, 1)
    return Kept(torch.from_numpy(chosen).to(mask.device), at, counts, scales)


def groups(tensor: Tensor, axis: int, kept: Kept | None = None) -> Groups:
    """Return the statistics of each (sample, unit).

    Parameters
    ----------
    tensor : (B, …), with the units on ``axis``
        Floating point; any strides; never changed.
    kept
        Which tokens count, where the tensor is (B, T, U); None: every position.
    """
    if accelerated.wanted(tensor):
        reduced = accelerated.groups(tensor, axis, None if kept is None else kept.mask)
        counts = np.full(len(tensor), tensor[0].numel() // tensor.shape[axis]) if kept is None else kept.counts
        return Groups(counts.astype(np.int64), _scales(kept, len(tensor)), *reduced)
    batch, units = len(tensor), tensor.shape[axis]
    size = tensor[0].numel() // units if batch else 0
    counts = np.full(batch, size, dtype=np.int64) if kept is None else kept.counts
    sums = np.empty((3, batch, units))
    extremes = np.empty((2, batch, units), dtype=np.float32)
    occurrences = np.empty((2, batch, units), dtype=np.int32)
    outputs = (*sums, *extremes, *occurrences)
    for start, layout, values in _pieces(tensor, axis, rows=kept is not None):
        here = [output[start : start + len(values)] for output in outputs]
        if layout == "maps":
            here[3:5] = [extreme.view(np.int32) for extreme in here[3:5]]
            _spread(kernels.map_groups, values, values.view(np.int32), *here)
        else:
            _spread(kernels.row_groups, values, *_rows_of(kept, start, values), *here)
    return Groups(counts, _scales(kept, batch), *outputs)


def deviations(tensor: Tensor, axis: int, centres: Floats, kept: Kept | None = None) -> Floats:
    """Return the sum of absolute deviations from ``centres`` (U,) of each (sample, unit), (B, U)."""
    if accelerated.wanted(tensor):
        return accelerated.deviations(tensor, axis, centres, None if kept is None else kept.mask)
    out = np.empty((len(tensor), tensor.shape[axis]))
    for start, layout, values in _pieces(tensor, axis, rows=kept is not None):
        here = out[start : start + len(values)]
        if layout == "maps":
            _spread(kernels.map_deviations, values, centres, here)
        else:
            _spread(kernels.row_deviations, values, *_rows_of(kept, start, values), centres, here)
    return out


def bins(tensor: Tensor, axis: int, kept: Kept | None = None) -> npt.NDArray[np.int64]:
    """Count the observations of each unit by bin, (U, 256); every observation counts once."""
    if accelerated.wanted(tensor):
        return accelerated.bins(tensor, axis, None if kept is None else kept.mask)
    totals = np.zeros((tensor.shape[axis], histogram.BINS), dtype=np.int64)
    for start, layout, values in _pieces(tensor, axis, rows=kept is not None):
        if layout == "maps":
            histogram.count_maps(values.view(np.int32), totals)
        else:
            histogram.count_rows(values.view(np.int32), *_rows_of(kept, start, values), totals)
    return totals


def fired(tensor: Tensor, kept: Kept) -> npt.NDArray[np.int64]:
    """Count the texts in which each unit of a (B, T, U) tensor is above zero at each token, (rank of the token, U)."""
    if accelerated.wanted(tensor):
        return accelerated.fired(tensor, kept.at, kept.counts)
    times = np.zeros((int(kept.counts.max(initial=0)), tensor.shape[2]), dtype=np.int64)
    for start, _, values in _pieces(tensor, 2, rows=True):
        per_sample.add_fired(values, *_rows_of(kept, start, values), times)
    return times


def _scales(kept: Kept | None, batch: int) -> Floats:
    return np.ones(batch) if kept is None else kept.scales


def _rows_of(kept: Kept | None, start: int, values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the positions that count and their number for some samples; no columns stands for all positions."""
    size = len(values)
    if kept is None:
        return np.empty((size, 0), dtype=np.int64), np.empty(0, dtype=np.int64)
    return kept.at[start : start + size], kept.counts[start : start + size]


def _pieces(tensor: Tensor, axis: int, *, rows: bool) -> Iterator[tuple[int, Layout, npt.NDArray[np.float32]]]:
    """Yield (first sample, layout, float32 array): the tensor where it lies if that can be read, else turned copies."""
    first, last = tensor.detach().movedim(axis, 1), tensor.detach().movedim(axis, -1)
    flat = first.ndim == 2 or first[0, 0].numel() == 1
    as_rows = rows or flat or (last.is_contiguous() and not first.is_contiguous())
    view = last if as_rows else first
    if not view.numel():
        return
    step = len(view)
    if view.dtype != torch.float32 or not view.is_contiguous():
        step = max(1, TURNED // view[0].numel())
    for start in range(0, len(view), step):
        piece = view[start : start + step].to(dtype=torch.float32, memory_format=torch.contiguous_format)
        shape = (len(piece), -1, view.shape[-1]) if as_rows else (len(piece), view.shape[1], -1)
        yield start, "rows" if as_rows else "maps", piece.contiguous().reshape(shape).numpy()


_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()


def _spread(kernel: Callable[..., None], values: npt.NDArray[Any], *rest: npt.NDArray[Any]) -> None:
    """Call ``kernel(first, last, values, …)`` for all samples, in as many threads as torch uses here."""
    samples = len(values)
    shares = max(1, min(torch.get_num_threads(), samples, values.size // ALONE))
    edges = [samples * share // shares for share in range(shares + 1)]
    others = [_pool().submit(kernel, *edge, values, *rest) for edge in itertools.pairwise(edges[1:])]
    try:
        kernel(0, edges[1], values, *rest)
    finally:
        wait(others)
    for other in others:
        other.result()


def _pool() -> ThreadPoolExecutor:
    """Return the threads of this process: those of a parent do not survive a fork."""
    with _lock:
        if os.getpid() not in _pools:
            _pools[os.getpid()] = ThreadPoolExecutor(os.cpu_count() or 1, "units")
        return _pools[os.getpid()]
