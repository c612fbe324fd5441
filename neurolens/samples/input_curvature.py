"""Curvature: how much the input gradient of a sample's loss turns under a small random step.

Each sample has its own draws, from its id, so that neither batch size nor order changes its number.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from neurolens.samples.softmax import input_gradient


def rademacher(ids: Sequence[str], shape: Sequence[int], *, draws: int, seed: int) -> Tensor:
    """Return random signs for each sample, from its id and the seed alone.

    Returns
    -------
    signs : (draws, n, *shape) int8, each -1 or 1
        From SHAKE-128 of seed and id: the same on every machine, in every order, and with more draws the first ones
        stay.
    """
    size = int(np.prod(shape))
    width = -(-size // 8)
    stream = b"".join(hashlib.shake_128(f"{seed}\0{name}".encode()).digest(draws * width) for name in ids)
    packed = np.frombuffer(stream, dtype=np.uint8).reshape(len(ids), draws, width)
    bits = np.unpackbits(packed, axis=2, count=size).astype(np.int8).transpose(1, 0, 2)
    return torch.from_numpy(np.ascontiguousarray(2 * bits - 1)).reshape(draws, len(ids), *shape)


def input_curvature(module: nn.Module, inputs: Tensor, labels: Tensor, signs: Tensor, *, h: float = 1e-3) -> Tensor:
    """Return the curvature of the loss at each sample.

    Parameters
    ----------
    module : network in eval mode, of float32 or wider
    inputs : (n, …), normalised input
    labels : (n,) int64
    signs : (draws, n, …), -1 or 1
        From :func:`rademacher`.
    h : normalised input units
        Step of the finite difference.

    Returns
    -------
    curvature : (n,) float64, nat per normalised input
        Mean over the draws v of ||∇L(x + h v) - ∇L(x)||, not divided by h. The reference takes the gradient of a
        batch-mean loss in some places, which scales it by 1/n; this is always the sample's own loss.

    References
    ----------
    Garg et al. 2023, "Memorization Through the Lens of Curvature of Loss Function Around Samples", eq. 4;
    Ravikumar et al. 2025.
    """
    _, here = input_gradient(module, inputs, labels)
    total = torch.zeros(len(inputs), dtype=torch.float64)
    for sign in signs:
        step = h * sign.to(device=inputs.device, dtype=inputs.dtype)
        _, there = input_gradient(module, inputs + step, labels)
        total += row_norms(there - here)
    return total / len(signs)


def row_norms(gradient: Tensor, *, divide_by: Tensor | None = None) -> Tensor:
    """Return the L2 norm of every sample's gradient, (n,) float64 on the CPU; ``divide_by`` is per channel (dim 1)."""
    gradient = gradient.detach()
    if gradient.device.type == "mps":  # MPS has no float64
        gradient = gradient.cpu()
    squares = gradient.double().square().flatten(2).sum(dim=2) if gradient.ndim > 2 else gradient.double().square()
    if divide_by is not None:
        squares = squares / divide_by.to(squares).square()
    return squares.sum(dim=1).sqrt().cpu()
