"""Mixed arithmetic: a forward pass in float64, and the products of the backward pass in float32.

Rounding in the forward pass can turn a ReLU or the winner of a max-pooling, and lose the digits of softmax - one-hot:
that changes a gradient by far more than rounding. The backward pass is linear in the cotangent once the forward pass
is known, so float32 products there err by rounding only, about 1e-8 of the norm of a gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from neurolens.samples.wide_convolution import by_windows, fits_winograd, winograd, winograd_weight

Pair = tuple[int, int]


class MixedArithmetic(TorchFunctionMode):
    """``with MixedArithmetic(): module(x)``: linear and convolution layers of a float64 network, their backward narrow.

    Inside the block `linear`, `conv1d` and `conv2d` (called by layers or as functions) run forward in float64, and
    propagate gradients to their inputs in float32. Every other operation, a convolution with ``padding="same"``, and a
    weight that itself needs a gradient, runs in float64 both ways. The weights must not change while the mode lives:
    what is derived from them is kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[int, tuple[Tensor, dict[Any, Tensor]]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Take over the layers' functions; leave the others alone."""
        kwargs = kwargs or {}
        if func is F.linear:
            return self._linear(*args, **kwargs)
        if func is F.conv2d or func is F.conv1d:
            return self._convolution(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not _covered(input, weight, bias):
            return F.linear(input, weight, bias)
        found: Tensor = _Linear.apply(input, weight, bias, self._derived(weight, "narrow", Tensor.float))
        return found

    def _convolution(
        self,
        func: Callable[..., Tensor],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if not _covered(input, weight, bias) or isinstance(padding, str) or input.ndim != weight.ndim:
            return func(input, weight, bias, stride, padding, dilation, groups)
        narrow = self._derived(weight, "narrow", Tensor.float)
        flat = weight.ndim == 3
        settings = _pair(stride, 1, flat), _pair(padding, 0, flat), _pair(dilation, 1, flat), groups
        if flat:
            input, weight, narrow = input[:, :, None], weight[:, :, None], narrow[:, :, None]
        transformed = None
        if input.device.type == "cpu" and fits_winograd(weight, *settings):
            transformed = self._derived(weight, "winograd", winograd_weight)
        found: Tensor = _Convolution.apply(input, weight, bias, narrow, transformed, settings)
        return found[:, :, 0] if flat else found

    def _derived(self, weight: Tensor, what: str, derive: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what is derived from a weight; of a parameter it is derived once."""
        if not isinstance(weight, nn.Parameter):
            return derive(weight.detach())
        _, kept = self._kept.setdefault(id(weight), (weight, {}))
        if what not in kept:
            kept[what] = derive(weight.detach())
        return kept[what]


class _Linear(torch.autograd.Function):
    """A linear layer, forward in float64, and backward to its input in float32."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, narrow: Tensor) -> Tensor:
        ctx.narrow = narrow
        return F.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (gradient.float() @ ctx.narrow).double(), None, None, None


class _Convolution(torch.autograd.Function):
    """A 2-d convolution, forward in float64, and backward to its input in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        narrow: Tensor,
        transformed: Tensor | None,
        settings: tuple[Pair, Pair, Pair, int],
    ) -> Tensor:
        ctx.narrow, ctx.settings, ctx.shape = narrow, settings, inputs.shape
        stride, padding, dilation, groups = settings
        if inputs.device.type != "cpu" or groups != 1:
            return F.conv2d(inputs, weight, bias, stride, padding, dilation, groups)
        if transformed is not None:
            found = winograd(inputs, transformed, padding)
        else:
            found = by_windows(inputs, weight, stride, padding, dilation)
        return found if bias is None else found.add_(bias[:, None, None])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        stride, padding, dilation, groups = ctx.settings
        inputs = ctx.narrow.new_empty(1).expand(ctx.shape)  # only its shape is read
        narrow, _, _ = torch.ops.aten.convolution_backward(
            gradient.float(),
            inputs,
            ctx.narrow,
            None,
            stride,
            padding,
            dilation,
            False,
            (0, 0),
            groups,
            (True, False, False),
        )
        return narrow.double(), None, None, None, None, None


def _covered(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Tell whether only the input needs a gradient, and all is float64."""
    return (
        inputs.dtype == weight.dtype == torch.float64
        and not weight.requires_grad
        and (bias is None or (bias.dtype == torch.float64 and not bias.requires_grad))
    )


def _pair(value: Any, before: int, flat: bool) -> Pair:
    """Return a setting as (down, across); one of a 1-d convolution is across."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * (1 if flat else 2)
    values = values * 2 if len(values) == 1 and not flat else values
    return (before, values[0]) if flat else (values[0], values[1])
