"""Squared norm of each sample's gradient in the parameters of one layer, from its inputs and its outputs' gradients."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

PRODUCTS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""Layers whose gradient is a product of inputs and output gradients."""
AFFINES: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm)
"""Layers that scale and shift a normalised input."""

CHUNK_BYTES = 2**24
"""Samples are taken so many at a time that a temporary array is about this large."""

Pairs = Sequence[tuple[Tensor, Tensor]]
"""Of each call of a layer: its input and the gradient of its output, (n, …) each."""


def row_squares(values: Tensor) -> Tensor:
    """Squared norm of each row, (n, …) → (n,) float64.

    Blocks of 1024 are summed in float32 and the blocks in float64: as exact as float64 throughout, at float32's speed.
    (`vector_norm` over whole rows loses five digits at a million elements.)
    """
    rows = values.flatten(1)
    whole = rows.shape[1] // 1024 * 1024
    total = rows[:, whole:].double().square().sum(dim=1)
    if whole:
        blocks = torch.linalg.vector_norm(rows[:, :whole].reshape(len(rows), -1, 1024), dim=2)
        total += blocks.double().square().sum(dim=1)
    return total


def product_squares(layer: nn.Module, pairs: Pairs, names: Collection[str]) -> Tensor:
    """Squared norms, (n,) float64, for a linear or convolution layer that was called once or more.

    Parameters
    ----------
    names
        Which of its ``weight`` and ``bias`` count.
    """
    assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    fan_out, fan_in = len(layer.weight) // groups, layer.weight[0].numel()
    positions = sum(g[0].numel() for _, g in pairs) // len(layer.weight)
    # measured: the Gram matrices cost about twice their multiplications, because they need the columns written out
    gram = 2 * positions * (fan_in + fan_out) < fan_in * fan_out
    fused = not gram and len(pairs) == 1 and _grouped_is_fast(layer, pairs[0][0])
    floats = max(0 if fused else groups * fan_in * positions, 0 if gram else layer.weight.numel())
    rows = max(1, CHUNK_BYTES // (4 * floats))
    out = []
    for start in range(0, len(pairs[0][0]), rows):
        part = [(a[start : start + rows], g[start : start + rows]) for a, g in pairs]
        total = torch.zeros(len(part[0][0]), dtype=torch.float64, device=layer.weight.device)
        if "bias" in names:
            total += row_squares(torch.stack([_bias_gradient(layer, g) for _, g in part]).sum(dim=0))
        if "weight" in names and fused:
            assert isinstance(layer, nn.Conv2d)
            total += row_squares(_grouped_gradient(layer, *part[0]))
        elif "weight" in names:
            columns, gradient = (torch.cat(p, dim=3) for p in zip(*(_columns(layer, *p) for p in part), strict=True))
            total += _gram(columns, gradient) if gram or positions == 1 else row_squares(gradient @ columns.mT)
        out.append(total)
    return torch.cat(out)


def affine_squares(layer: nn.Module, pairs: Pairs, names: Collection[str]) -> Tensor:
    """Squared norms, (n,) float64, for a norm layer's scale Σ g·x̂ and shift Σ g, summed over its calls."""
    scales, shifts = [], []
    for inputs, gradient in pairs:
        if isinstance(layer, nn.LayerNorm):
            over = tuple(range(1, inputs.ndim - len(layer.normalized_shape)))
            normal = F.layer_norm(inputs, layer.normalized_shape, None, None, layer.eps)
        elif isinstance(layer, nn.GroupNorm):
            over = tuple(range(2, inputs.ndim))
            normal = F.group_norm(inputs, layer.num_groups, None, None, layer.eps)
        else:
            assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
            over = tuple(range(2, inputs.ndim))
            normal = F.batch_norm(inputs, layer.running_mean, layer.running_var, eps=layer.eps)
        product = gradient * normal
        scales.append(product.sum(over) if over else product)
        shifts.append(gradient.sum(over) if over else gradient)
    total = torch.zeros(len(scales[0]), dtype=torch.float64, device=scales[0].device)
    if "weight" in names:
        total += row_squares(torch.stack(scales).sum(dim=0))
    if "bias" in names:
        total += row_squares(torch.stack(shifts).sum(dim=0))
    return total


def _bias_gradient(layer: nn.Module, gradient: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return gradient.flatten(1, -2).sum(dim=1) if gradient.ndim > 2 else gradient
    return gradient.flatten(2).sum(dim=2)


def _grouped_is_fast(layer: nn.Module, inputs: Tensor) -> bool:
    """Tell whether oneDNN's kernel for grouped convolutions applies: whole vectors of channels, zero padding."""
    return (
        isinstance(layer, nn.Conv2d)
        and inputs.device.type == "cpu"
        and inputs.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and not isinstance(layer.padding, str)
        and layer.padding_mode == "zeros"
        and layer.in_channels // layer.groups % 16 == 0
        and layer.out_channels // layer.groups % 16 == 0
    )


def _grouped_gradient(layer: nn.Conv2d, inputs: Tensor, gradient: Tensor) -> Tensor:
    """Return each sample's weight gradient, (n, weight): the batch is laid side by side as groups of channels."""
    n = len(inputs)
    padding: Any = layer.padding
    side_by_side: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
        inputs.reshape(1, -1, *inputs.shape[2:]),
        (n * len(layer.weight), *layer.weight.shape[1:]),
        gradient.reshape(1, -1, *gradient.shape[2:]),
        layer.stride,
        padding,
        layer.dilation,
        n * layer.groups,
    )
    return side_by_side.reshape(n, -1)


def _gram(columns: Tensor, gradient: Tensor) -> Tensor:
    """‖G Aᵀ‖² = ⟨AᵀA, GᵀG⟩ per sample, summed over groups."""
    if columns.shape[3] == 1:
        squares = columns.double().square().sum(dim=2) * gradient.double().square().sum(dim=2)
        return squares.sum(dim=(1, 2))
    inner: Tensor = (columns.mT @ columns).double() * (gradient.mT @ gradient).double()
    return inner.sum(dim=(1, 2, 3)).clamp(min=0)


def _columns(layer: nn.Module, inputs: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return A (n, groups, fan-in, positions) and G (n, groups, fan-out, positions) with weight gradient G Aᵀ."""
    if isinstance(layer, nn.Linear):
        flat = (v.flatten(1, -2) if v.ndim > 2 else v[:, None] for v in (inputs, gradient))
        columns, gradient = (v.mT[:, None] for v in flat)
        return columns, gradient
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    kernel, dilation, stride = (tuple(v) for v in (layer.kernel_size, layer.dilation, layer.stride))
    # last dim first, as F.pad takes it; for "same" it is uneven where the kernel is even
    around = list(layer._reversed_padding_repeated_twice)
    if isinstance(layer, nn.Conv1d):
        inputs, gradient = inputs[:, :, None], gradient[:, :, None]
        kernel, dilation, stride = (1, *kernel), (1, *dilation), (1, *stride)
        around += [0, 0]
        if layer.padding_mode != "zeros":
            inputs = F.pad(inputs[:, :, 0], around[:2], mode=layer.padding_mode)[:, :, None]
            around = [0, 0, 0, 0]
    elif layer.padding_mode != "zeros":
        inputs = F.pad(inputs, around, mode=layer.padding_mode)
        around = [0, 0, 0, 0]
    padded = F.pad(inputs, around).contiguous() if any(around) else inputs.contiguous()
    n, channels = padded.shape[:2]
    high, wide = gradient.shape[2:]
    sn, sc, sh, sw = padded.stride()
    # a strided view, then one copy: six times as fast as F.unfold
    windows = padded.as_strided(
        (n, channels, *kernel, high, wide),
        (sn, sc, sh * dilation[0], sw * dilation[1], sh * stride[0], sw * stride[1]),
        padded.storage_offset(),
    )
    shape = (n, layer.groups, -1, high * wide)
    return windows.reshape(shape), gradient.reshape(shape)
