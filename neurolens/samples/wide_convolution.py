"""Float64 convolutions on a CPU, where torch's own take ten times the time of float32.

A 3x3 convolution of stride 1 goes by Winograd's F(4x4, 3x3): a quarter of the multiplications, and in float64 an error
of about 1e-14 of the largest output (its growth rules it out in float32 alone). Others of one group are one matrix
product over channels-last windows, a few samples at a time, so that the windows stay in cache.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CACHED_BYTES = 5 * 2**20
"""Samples are taken so many at a time that the windows or tiles are about this large."""

MANY = 32
"""Fewer channels than this do not repay Winograd's transforms."""

# Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", §4.3: interpolation at 0, ±1, ±2, ∞
_INPUT = torch.tensor(
    [
        [4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
        [0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
        [0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
        [0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
        [0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
        [0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
    ],
    dtype=torch.float64,
)
_WEIGHT = torch.tensor(
    [
        [6.0, 0.0, 0.0],
        [-4.0, -4.0, -4.0],
        [-4.0, 4.0, -4.0],
        [1.0, 2.0, 4.0],
        [1.0, -2.0, 4.0],
        [0.0, 0.0, 24.0],
    ],
    dtype=torch.float64,
).div(24)
_OUTPUT = torch.tensor(
    [
        [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
        [0.0, 1.0, -1.0, 2.0, -2.0, 0.0],
        [0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
        [0.0, 1.0, -1.0, 8.0, -8.0, 1.0],
    ],
    dtype=torch.float64,
)
# both axes of a tile at once
_INPUT_2D, _WEIGHT_2D, _OUTPUT_2D = (torch.kron(m, m) for m in (_INPUT, _WEIGHT, _OUTPUT))


def fits_winograd(
    weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], groups: int
) -> bool:
    """Tell whether :func:`winograd` computes this convolution, and fast."""
    return (
        weight.shape[2:] == (3, 3)
        and stride == dilation == (1, 1)
        and groups == 1
        and max(padding) <= 2
        and min(weight.shape[:2]) >= MANY
    )


def winograd_weight(weight: Tensor) -> Tensor:
    """Transform a 3x3 weight (out, in, 3, 3) once for all passes: (36, in, out)."""
    fan_out, fan_in = weight.shape[:2]
    transformed = _WEIGHT_2D @ weight.detach().reshape(-1, 9).T
    return transformed.view(36, fan_out, fan_in).mT.contiguous()


def winograd(inputs: Tensor, transformed: Tensor, padding: tuple[int, int]) -> Tensor:
    """Convolve (n, in, h, w) with a weight of :func:`winograd_weight`, at stride 1: (n, out, h', w'), channels-last."""
    n, channels, high, wide = inputs.shape
    fan_out = transformed.shape[2]
    high, wide = high + 2 * padding[0] - 2, wide + 2 * padding[1] - 2
    down, across = -(-high // 4), -(-wide // 4)
    # the last tiles may reach past the output; what they compute there is cut off
    around = (padding[1], padding[1] + 4 * across - wide, padding[0], padding[0] + 4 * down - high)
    last = inputs.permute(0, 2, 3, 1)
    out, out_last = _empty(n, fan_out, high, wide)
    rows = max(1, CACHED_BYTES // (36 * down * across * max(channels, fan_out) * 8))
    for start in range(0, n, rows):
        padded = F.pad(last[start : start + rows], (0, 0, *around)).contiguous()
        m = len(padded)
        sn, sh, sw, sc = padded.stride()
        tiles = padded.as_strided((6, 6, m, down, across, channels), (sh, sw, sn, 4 * sh, 4 * sw, sc))
        spread = torch.mm(_INPUT_2D, tiles.reshape(36, -1)).view(36, -1, channels)
        product = torch.bmm(spread, transformed).view(36, -1)
        found = torch.mm(_OUTPUT_2D, product).view(4, 4, m, down, across, fan_out)
        whole = found.permute(2, 3, 0, 4, 1, 5)
        if (4 * down, 4 * across) == (high, wide):
            out_last[start : start + m].view(whole.shape).copy_(whole)
        else:
            out_last[start : start + m] = whole.reshape(m, 4 * down, 4 * across, fan_out)[:, :high, :wide]
    return out


def by_windows(
    inputs: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """Convolve (n, in, h, w) with (out, in, …), one group: (n, out, h', w'), channels-last."""
    n, channels, high, wide = inputs.shape
    fan_out, _, *kernel = weight.shape
    high, wide = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip((high, wide), padding, dilation, kernel, stride, strict=True)
    )
    matrix = weight.permute(2, 3, 1, 0).reshape(-1, fan_out)
    last = inputs.permute(0, 2, 3, 1)
    out, out_last = _empty(n, fan_out, high, wide)
    rows = max(1, CACHED_BYTES // (8 * high * wide * len(matrix)))
    for start in range(0, n, rows):
        padded = F.pad(last[start : start + rows], (0, 0, padding[1], padding[1], padding[0], padding[0])).contiguous()
        sn, sh, sw, sc = padded.stride()
        windows = padded.as_strided(
            (len(padded), high, wide, *kernel, channels),
            (sn, sh * stride[0], sw * stride[1], sh * dilation[0], sw * dilation[1], sc),
        )
        torch.mm(windows.reshape(-1, len(matrix)), matrix, out=out_last[start : start + rows].view(-1, fan_out))
    return out


def _empty(n: int, channels: int, high: int, wide: int) -> tuple[Tensor, Tensor]:
    """Return a channels-last tensor to fill, and a view of it with the channels last.

    The tensor is no view: autograd would not let an in-place ReLU overwrite a view that a function of ours returned.
    """
    out = torch.empty((n, channels, high, wide), dtype=torch.float64, memory_format=torch.channels_last)
    return out, out.permute(0, 2, 3, 1)
