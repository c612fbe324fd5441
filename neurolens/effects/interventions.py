"""Change what a layer puts out, or is given, while the network runs: correct for in-place and re-used modules."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from neurolens.capture import Tap, capture
from neurolens.errors import CaptureError, ModelMismatchError
from neurolens.layers import Layer

Change = Callable[[Tensor], Tensor]


@contextmanager
def intervening(model: nn.Module, tap: Tap | str, change: Change) -> Iterator[None]:
    """Let the rest of each forward see ``change(tensor)`` in the place of a layer's tensor.

    What is changed is what `neurolens.capture.capture` would take there: the first tensor of what the module returns or
    is given, at one of its calls; of a `flat` tap it is handed over as it is, (B·T, U). An in-place module has
    overwritten what it was given, so whoever still holds that tensor sees the change too; of what a module is given,
    only the module sees it. Outside of a forward of ``model`` nothing is changed; afterwards the model is as it was.

    Parameters
    ----------
    model
        The network that will be called.
    tap
        Where; a name is read by `Tap.of`.
    change
        Called with the tensor, which it must not write to; returns a tensor of the same shape.

    Raises
    ------
    CaptureError
        As for `neurolens.capture.capture`, and if the shape changes.
    """
    tap = Tap.of(tap) if isinstance(tap, str) else tap
    due = [False]
    given: list[tuple[Tensor, int]] = []

    def arm(_: int, __: Tensor) -> None:
        due[0] = True

    def changed(tensor: Tensor) -> Tensor:
        new = change(tensor)
        if new.shape != tensor.shape:
            raise CaptureError(
                f"layer {tap.layer!r}: a change made {tuple(new.shape)} of {tuple(tensor.shape)}; keep the shape"
            )
        if any(old.data_ptr() == tensor.data_ptr() and old._version > version for old, version in given):
            return tensor.copy_(new)
        return new

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if tap.side == "output":
            given[:] = [(tensor, tensor._version) for tensor in tensors_of((args, kwargs)) if not tensor.is_inference()]
            return None
        return _replaced((args, kwargs), changed)[0] if _disarm(due) else None

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        out = _replaced(output, changed)[0] if _disarm(due) else None
        given.clear()
        return out

    with capture(model, [tap], on=arm):  # counts the calls, and its hooks come first
        module = model.get_submodule(tap.module)
        handles = [module.register_forward_pre_hook(before, with_kwargs=True)]
        if tap.side == "output":
            handles.append(module.register_forward_hook(after))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def without_units(
    model: nn.Module, layer: Layer, units: Sequence[int] | npt.NDArray[Any], *, values: npt.ArrayLike = 0.0
) -> Iterator[None]:
    """Let units of a layer put out nothing, or given values, at every position.

    Parameters
    ----------
    model
        The network that will be called.
    layer
        As `neurolens.layers.find_layers` found it.
    units
        Numbers of the units in the layer, from 0.
    values : scalar, or one per unit
        What they put out instead.

    Raises
    ------
    CaptureError
        If the layer does not have the units, or, in the forward, is not laid out as it was found.
    """
    index = np.asarray(units, dtype=np.int64).reshape(-1)
    if ((index < 0) | (index >= layer.units)).any():
        wrong = int(index[(index < 0) | (index >= layer.units)][0])
        raise CaptureError(f"layer {layer.name!r} has no unit {wrong}; it has units 0 to {layer.units - 1}")
    instead = np.broadcast_to(np.asarray(values, dtype=np.float64), index.shape).tolist()

    def change(tensor: Tensor) -> Tensor:
        axis = 1 if layer.tap.flat else layer.axis
        if tensor.ndim <= axis or tensor.shape[axis] != layer.units:
            raise CaptureError(
                f"layer {layer.name!r} has an activation of shape {tuple(tensor.shape)}, and {layer.units} units along "
                f"axis {axis} were needed; find the layers of this network anew"
            )
        new = tensor.clone()
        for unit, value in zip(index.tolist(), instead, strict=True):
            new.select(axis, unit).fill_(value)
        return new

    with intervening(model, layer.tap, change):
        yield


def tensors_of(value: Any) -> list[Tensor]:
    """Return all tensors in sequences, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value) and not isinstance(value, Mapping | type):
        value = vars(value)
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return [tensor for item in inner for tensor in tensors_of(item)]


def logits_of(output: Any, samples: int, classes: int) -> Tensor:
    """Return the logits in what a network returned, (samples, at least ``classes``).

    Raises
    ------
    ModelMismatchError
        If there are none.
    """
    logits = getattr(output, "logits", output)
    if isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == samples and logits.shape[1] >= classes:
        return logits
    if isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == samples:
        raise ModelMismatchError(
            f"the network tells {logits.shape[1]} classes apart, and the data has {classes}; name in [data] what the "
            "network was trained on, or correct model.classes"
        )
    found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
    raise ModelMismatchError(
        f"the network returned {found} for {samples} samples of {classes} classes, and a row of logits for each sample "
        "was needed to tell what a unit does for its class; name a factory in [model] whose network classifies"
    )


def _disarm(due: list[bool]) -> bool:
    now, due[0] = due[0], False
    return now


def _replaced(value: Any, change: Change) -> tuple[Any, bool]:
    """Return the value with its first tensor changed, and whether there is one; what holds it is copied."""
    if isinstance(value, Tensor):
        return change(value), True
    if is_dataclass(value) and not isinstance(value, Mapping | type):
        for name, item in vars(value).items():
            new, done = _replaced(item, change)
            if done:
                out = copy.copy(value)
                object.__setattr__(out, name, new)
                return out, True
    elif isinstance(value, Mapping):
        for name, item in value.items():
            new, done = _replaced(item, change)
            if done:
                held: Any = copy.copy(value)
                held[name] = new
                return held, True
    elif isinstance(value, tuple | list):
        for at, item in enumerate(value):
            new, done = _replaced(item, change)
            if done:
                items = [*value[:at], new, *value[at + 1 :]]
                return (value._make(items) if hasattr(value, "_make") else type(value)(items)), True
    return value, False
