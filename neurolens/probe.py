"""One forward, watched: which modules fire, and which modules are given what an activation function has made."""

import re
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from neurolens.capture import Side, Tap, first_tensor
from neurolens.errors import CaptureError

How = Literal["same", "gated", "carried"]
"""How a tensor stands to an activation: it is it; it is it times another of its shape or scaled; it is pooled,
padded or reshaped."""

GATES = {"sigmoid", "hardsigmoid", "tanh", "logsigmoid", "softsign"}
"""Functions that as often make a gate or an output as a unit."""
ACTIVATIONS = GATES | {
    *("relu", "relu6", "rrelu", "leaky_relu", "prelu", "threshold", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("hardtanh", "hardswish", "softplus", "tanhshrink", "softshrink", "hardshrink", "glu"),
}
_SAME = {"to", "contiguous", "clone", "type", "float", "half", "bfloat16", "double", "detach", "dropout"}
_RESHAPED = {
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim", "squeeze", "unsqueeze"),
    *("mean", "amax", "pad"),
}
_SCALED = {"square", "pow", "mul", "multiply", "imul", "rmul", "div", "truediv", "itruediv"}
_NAMED_SO = re.compile("elu|silu|swish|mish|tanh|sigmoid|softplus|activation", re.IGNORECASE)
_ATTENDS = re.compile("attention|attn", re.IGNORECASE)
_FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, NotImplementedError)
_PROBED = 2
"""Samples of the probe that are shown: one could not be told from none."""


@dataclass(frozen=True)
class Place:
    """One call of one module: the first tensor that it returned or was given.

    ``axis`` is the axis of the units where the operations before it tell, from 0; ``shape`` and ``floating`` are None
    and False where there is no tensor. ``product``: the module multiplies by a matrix (a linear layer, transformers'
    Conv1D) or convolves.
    """

    order: int
    module: str
    side: Side
    call: int
    kind: str
    shape: tuple[int, ...] | None
    floating: bool
    axis: int | None
    leaf: bool
    product: Literal["linear", "convolution"] | None

    @property
    def tap(self) -> Tap:
        """Where it is captured."""
        return Tap(self.module, self.side, self.call)


@dataclass
class Activation:
    """What an activation function has made in the probe, and where modules return it or are given it."""

    gate: bool
    inside: tuple[str, ...]
    source: Any = None
    outputs: list[Place] = field(default_factory=list)
    inputs: list[tuple[How, Place]] = field(default_factory=list)


@dataclass(frozen=True)
class Probe:
    """What was seen: ``batch`` samples, of ``tokens`` tokens each where the network is given tokens."""

    places: tuple[Place, ...]
    activations: tuple[Activation, ...]
    batch: int
    tokens: int | None
    attends: bool


@dataclass(frozen=True)
class _Mark:
    """What is known of a tensor at one version of its values."""

    version: int
    axis: int | None
    activation: Activation | None = None
    how: How = "same"


def watch(model: nn.Module, shown: Any) -> Probe:
    """Run one forward on at most two samples, in eval mode and without gradients, and watch it.

    Parameters
    ----------
    model
        Its device, weights and mode are left as they are.
    shown
        The arguments of one forward: a tensor, a tuple of tensors, a mapping of keyword arguments, a pair of both, or
        something with ``args`` and ``kwargs``. Tensors whose first axis is the batch are cut to two samples.

    Raises
    ------
    CaptureError
        If nothing is shown, the forward fails, or the network is TorchScript.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            "the network is compiled to TorchScript, whose modules cannot be watched; build it as Python"
        )
    args, kwargs = _arguments(shown)
    first = first_tensor((args, kwargs))
    if first is None or first.ndim == 0 or len(first) == 0:
        raise CaptureError("no sample is shown to the network; layers are found by running it on one or two")
    size = len(first)
    args = tuple(_cut(value, size) for value in args)
    kwargs = {name: _cut(value, size) for name, value in kwargs.items()}
    tokens = first.shape[1] if first.ndim == 2 and not first.is_floating_point() else None
    modes = {module: module.training for module in model.modules()}
    watcher = _Watcher(model)
    model.eval()
    try:
        with ExitStack() as stack:
            for hook in watcher.hooks():
                stack.callback(hook.remove)
            with torch.no_grad(), watcher:
                model(*args, **kwargs)
    except _FAILURES as error:
        raise CaptureError(
            f"the network fails on a probe of {min(size, _PROBED)} samples, so its layers cannot be found: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    attends = any(isinstance(m, nn.MultiheadAttention) or _ATTENDS.search(type(m).__name__) for m in modes)
    return Probe(tuple(watcher.places), tuple(watcher.activations), min(size, _PROBED), tokens, attends)


def _arguments(shown: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if hasattr(shown, "args") and hasattr(shown, "kwargs"):
        return tuple(shown.args), dict(shown.kwargs)
    if isinstance(shown, Mapping):
        return (), dict(shown)
    if isinstance(shown, tuple) and len(shown) == 2 and isinstance(shown[0], tuple) and isinstance(shown[1], Mapping):
        return shown[0], dict(shown[1])
    return (tuple(shown) if isinstance(shown, tuple | list) else (shown,)), {}


def _cut(value: Any, size: int) -> Any:
    return value[:_PROBED] if isinstance(value, Tensor) and value.ndim and len(value) == size else value


class _Watcher(TorchFunctionMode):
    """Follows tensors through functions and modules while it is entered."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.places: list[Place] = []
        self.activations: list[Activation] = []
        self._names = {module: name for name, module in model.named_modules()}
        self._marks: Any = WeakTensorKeyDictionary()
        self._open: list[str] = []
        self._calls: dict[tuple[nn.Module, Side], int] = {}

    def hooks(self) -> Iterable[Any]:
        """Register on every module; the handles remove."""
        for module in self._names:
            yield module.register_forward_pre_hook(self._enter, with_kwargs=True)
            yield module.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._open.append(self._names[module])
        tensor = first_tensor((args, kwargs))
        place = self._place(module, "input", tensor)
        mark = self._mark(tensor)
        if mark is not None and mark.activation is not None:
            mark.activation.inputs.append((mark.how, place))

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        tensor = first_tensor(output)
        mark = self._mark(tensor)
        if (
            tensor is not None
            and _is_activation(module)
            and (mark is None or mark.activation is None or mark.how != "same")
        ):
            axis = None if mark is None else mark.axis
            name = type(module).__name__.lower()
            mark = self._made(tensor, axis, gate=name in GATES, source=None)
        place = self._place(module, "output", tensor)
        made = None if mark is None or mark.how != "same" else mark.activation
        if made is not None and self._names[module] in made.inside:
            made.outputs.append(place)
        self._open.pop()

    def _place(self, module: nn.Module, side: Side, tensor: Tensor | None) -> Place:
        call = self._calls.get((module, side), 0)
        self._calls[module, side] = call + 1
        mark = None if tensor is None else self._marks.get(tensor)
        place = Place(
            order=len(self.places),
            module=self._names[module],
            side=side,
            call=call,
            kind=type(module).__name__,
            shape=None if tensor is None else tuple(tensor.shape),
            floating=tensor is not None and tensor.is_floating_point(),
            axis=None if mark is None else mark.axis,
            leaf=next(module.children(), None) is None,
            product=_product(module),
        )
        self.places.append(place)
        return place

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [(tensor, self._mark(tensor), tensor.shape) for tensor in _tensors(args, kwargs)]
        out = func(*args, **kwargs)
        made = out[0] if isinstance(out, tuple) and out and isinstance(out[0], Tensor) else out
        if isinstance(made, Tensor) and given:
            self._follow(getattr(func, "__name__", "").strip("_"), given, args, kwargs, made)
        return out

    def _follow(self, name: str, given: Any, args: Any, kwargs: Any, made: Tensor) -> None:
        """Mark what a function has made of what it was given."""
        source, mark, _ = given[0]
        if made is source and mark is not None and mark.version == _version(made):
            return
        axis = _axis(name, given, args, kwargs, made)
        if name in ACTIVATIONS or (name in ("clamp", "clamp_min") and _cut_at_zero(args, kwargs)):
            self._made(made, axis, gate=name in GATES, source=None if made is source else weakref.ref(source))
            return
        activation: Activation | None = None
        how: How = "same"
        if name in ("mul", "multiply", "imul", "rmul") and len(given) == 2:
            activation, how = _gated(given), "gated"
        elif mark is not None and mark.activation is not None:
            if name in _SAME:
                activation, how = mark.activation, mark.how
            elif name in _SCALED and len(given) == 1:
                activation, how = mark.activation, "gated"
            elif name in _RESHAPED or "pool" in name:
                activation, how = mark.activation, "carried" if mark.how == "same" else mark.how
        self._marks[made] = _Mark(_version(made), axis, activation, how)

    def _made(self, tensor: Tensor, axis: int | None, *, gate: bool, source: Any) -> _Mark:
        activation = Activation(gate, tuple(self._open), source)
        self.activations.append(activation)
        mark = self._marks[tensor] = _Mark(_version(tensor), axis, activation)
        return mark

    def _mark(self, tensor: Tensor | None) -> _Mark | None:
        """Return what is known of a tensor's values: after an in-place operation, the axis only."""
        mark = None if tensor is None else self._marks.get(tensor)
        if mark is None or tensor is None or mark.version == _version(tensor):
            return mark
        return _Mark(_version(tensor), mark.axis)


def _gated(given: Any) -> Activation | None:
    """Return the activation that a product of two tensors of one shape gates; of two, the one that is no gate."""
    (one, first, shape), (two, second, other_shape) = given
    if shape != other_shape:
        return None
    found = [(m.activation, other) for m, other in ((first, two), (second, one)) if m is not None and m.activation]
    if not found:
        return None
    activation: Activation
    activation, other = min(found, key=lambda pair: bool(pair[0].gate))
    if activation.source is not None and activation.source() is other:  # x·sigmoid(x)
        activation.gate = False
    return activation


def _cut_at_zero(args: Any, kwargs: Any) -> bool:
    low = kwargs.get("min", args[1] if len(args) > 1 else None)
    return isinstance(low, int | float) and low == 0


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors among a function's arguments, and in lists among them."""
    found = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += [item for item in value if isinstance(item, Tensor)]
    return found


def _axis(name: str, given: Any, args: Any, kwargs: Any, made: Tensor) -> int | None:
    """Return which axis of a function's result holds units, if that is known."""
    if name in ("linear", "addmm"):
        return made.ndim - 1
    if name.startswith("conv") or name in ("batch_norm", "instance_norm", "group_norm"):
        return 1
    if name in ("layer_norm", "rms_norm"):
        normal = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
        return made.ndim - 1 if isinstance(normal, tuple | list) and len(normal) == 1 else None
    _, mark, shape = given[0]
    before: int | None = None if mark is None else mark.axis
    if name == "permute" and before is not None:
        dims = kwargs.get("dims", args[1:])
        dims = dims[0] if dims and isinstance(dims[0], tuple | list) else dims
        order = [int(d) % made.ndim for d in dims]
        return order.index(before)
    if name in ("transpose", "swapaxes") and before is not None and len(args) == 3:
        one, two = (int(d) % made.ndim for d in args[1:])
        return {one: two, two: one}.get(before, before)
    if before is not None and name in ("view", "reshape", "unflatten", "flatten"):
        kept = before == len(shape) - 1 and made.shape[-1:] == shape[-1:]
        return made.ndim - 1 if kept else None
    alike = (
        m.axis
        for _, m, shape in given
        if m is not None and (shape == made.shape or "pool" in name or name in ("cat", "pad"))
    )
    return next((axis for axis in alike if axis is not None and axis < made.ndim), None)


def _product(module: nn.Module) -> Literal["linear", "convolution"] | None:
    name = type(module).__name__
    if isinstance(module, nn.modules.conv._ConvNd):
        return "convolution"
    if isinstance(module, nn.Linear) or name.endswith("Linear"):
        return "linear"
    weight = getattr(module, "weight", None)
    return "linear" if name == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2 else None


def _is_activation(module: nn.Module) -> bool:
    """Tell whether a module without parts computes an activation function; softmax is none."""
    if next(module.children(), None) is not None or isinstance(module, nn.MultiheadAttention):
        return False
    kind = type(module)
    if "softm" in kind.__name__.lower():
        return False
    if kind.__module__ in ("torch.nn.modules.activation", "transformers.activations"):
        return True
    return bool(_NAMED_SO.search(kind.__name__)) and next(module.parameters(), None) is None
