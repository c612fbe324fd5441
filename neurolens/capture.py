"""Activations of one forward, by module path, side and call: correct for in-place, re-used and shared modules."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal

from torch import Tensor, nn

from neurolens.errors import CaptureError, nearest

Side = Literal["output", "input"]
OnTensor = Callable[[int, Tensor], None]

_LAYER = re.compile(r"(?P<module>[^:#]*)(?::(?P<side>input|output))?(?:#(?P<call>\d+))?")
_CLOSED = -(2**62)  # a counter at this value matches no call


@dataclass(frozen=True)
class Tap:
    """One place where activations are taken.

    Parameters
    ----------
    module
        Path of the module in the network, e.g. ``layer3.1.relu``.
    side
        ``"output"``: what the module returns; ``"input"``: what it is given, e.g. a down projection.
    call
        Which call of the module in one forward, from 0: modules may be re-used.
    flat
        The tensor has batch and tokens in one axis, (B·T, U), as some networks lay them; it is captured as (B, T, U).
    """

    module: str
    side: Side = "output"
    call: int = 0
    flat: bool = False

    @property
    def layer(self) -> str:
        """Its name: ``layer3.1.relu``, ``layer3.1.relu#1`` (the second call), ``layers.0.mlp.down_proj:input``."""
        side = ":input" if self.side == "input" else ""
        return f"{self.module}{side}#{self.call}" if self.call else f"{self.module}{side}"

    @classmethod
    def of(cls, layer: str) -> "Tap":
        """Read a layer's name.

        Raises
        ------
        CaptureError
            If it is no such name.
        """
        found = _LAYER.fullmatch(layer)
        if found is None:
            raise CaptureError(
                f"{layer!r} names no layer; write a module path, then ':input' and '#1' where they apply"
            )
        side: Side = "input" if found["side"] == "input" else "output"
        return cls(found["module"], side, int(found["call"] or 0))


class _NotCapturedError(CaptureError, KeyError):
    """A layer that was asked for is not among the captured ones."""

    __str__ = Exception.__str__  # KeyError shows the repr


class Captured(Mapping[str, Tensor]):
    """Activations of the last forward that returned, by layer name, in the order in which the layers fired."""

    def __init__(self, layers: Sequence[str]) -> None:
        self._layers = tuple(layers)
        self._tensors: dict[str, Tensor] = {}

    def __getitem__(self, layer: str) -> Tensor:
        """Return a layer's activation.

        Raises
        ------
        CaptureError
            If it was not asked for, or no forward has returned.
        """
        if layer in self._tensors:
            return self._tensors[layer]
        if layer in self._layers:
            raise _NotCapturedError(
                f"layer {layer!r} has no activation: no forward of the network has returned; call the network itself, "
                "not a part of it, inside `with capture(…)`"
            )
        raise _NotCapturedError(f"layer {layer!r} was not captured; {nearest(layer, self._layers)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@contextmanager
def capture(model: nn.Module, taps: Sequence[Tap | str], *, on: OnTensor | None = None) -> Iterator[Captured]:
    """Take activations while the network runs.

    Without ``on``, the activations of a forward are copied as they come and shown when the forward has returned::

        with capture(network, ["layer3.1.relu", "layer3.1.relu#1"]) as seen:
            network(x)
        seen["layer3.1.relu#1"]

    With ``on``, nothing is copied or kept: ``on(index of the tap, tensor)`` is called inside the hook, on the live
    tensor, which may have a gradient attached and may be overwritten as soon as ``on`` returns. What ``on`` has done
    in a forward that then fails must be undone by the caller: commit after the forward has returned.

    A copy is made in the hook of the module itself, so an in-place operation that follows does not reach it. Of a
    module that returns or is given several values, the first tensor is taken, wherever it is nested. Calls are counted
    from the start of each forward of ``model``; calls outside of one (a part called by itself, activations recomputed
    in a backward pass) are not looked at. Several captures may be open at once. Neither device nor mode of the model
    is changed, and nothing but the returned mapping refers to what was captured. One forward at a time: a network that
    several threads run at once is not followed.

    Parameters
    ----------
    model
        The network that will be called.
    taps
        Where to take activations, each once; names are read by `Tap.of`.
    on
        Called with the position in ``taps`` and the tensor.

    Yields
    ------
    Captured
        The activations of the last forward that returned, detached; empty with ``on``, and after a forward that failed.

    Raises
    ------
    CaptureError
        If a module is not there, a tap is named twice, a module returns or is given no tensor, or (when the forward
        returns) a module was called fewer times than a tap says.
    """
    wanted = tuple(Tap.of(tap) if isinstance(tap, str) else tap for tap in taps)
    layers = [tap.layer for tap in wanted]
    if doubled := sorted({layer for layer in layers if layers.count(layer) > 1}):
        raise CaptureError(f"layers {doubled} are named more than once; name each once")
    places: dict[tuple[str, Side], dict[int, int]] = {}
    for index, tap in enumerate(wanted):
        places.setdefault((tap.module, tap.side), {})[tap.call] = index
    modules = {path: _module(model, path) for path, _ in places}
    seen = Captured(layers)
    counts = [_CLOSED] * len(places)
    batch = [0]
    pending: dict[str, Tensor] = {}

    def keep(index: int, tensor: Tensor) -> None:
        pending[layers[index]] = tensor.detach().clone()

    def begin(_: nn.Module, args: Any, kwargs: Any) -> None:
        pending.clear()
        seen._tensors = {}
        counts[:] = [0] * len(counts)
        batch[0] = _batch(args, kwargs)

    def commit(*_: Any) -> None:
        for at, (place, calls) in enumerate(places.items()):
            if counts[at] <= max(calls):
                raise CaptureError(_short(wanted[calls[max(calls)]], place[0], counts[at]))
        seen._tensors = dict(pending)

    def end(*_: Any) -> None:
        pending.clear()
        counts[:] = [_CLOSED] * len(counts)

    take = keep if on is None else on
    with ExitStack() as stack:
        for at, ((path, side), calls) in enumerate(places.items()):
            module = modules[path]
            if side == "input":
                before = _before(counts, at, calls, take, wanted, batch)
                handle = module.register_forward_pre_hook(before, with_kwargs=True)
            else:
                handle = module.register_forward_hook(_after(counts, at, calls, take, wanted, batch))
            stack.callback(handle.remove)
        for handle in (
            model.register_forward_pre_hook(begin, with_kwargs=True, prepend=True),
            model.register_forward_hook(commit),
            model.register_forward_hook(end, always_call=True),
        ):
            stack.callback(handle.remove)
        stack.callback(pending.clear)
        yield seen


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor in what a module returns or is given: itself, or in sequences, mappings, dataclasses."""
    if isinstance(value, Tensor):
        return value
    if is_dataclass(value) and not isinstance(value, Mapping | type):
        value = vars(value)
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return next((tensor for item in inner if (tensor := first_tensor(item)) is not None), None)


def _after(
    counts: list[int], at: int, calls: dict[int, int], take: OnTensor, taps: Sequence[Tap], batch: list[int]
) -> Callable[..., None]:
    """Make the hook of a module's outputs. ``calls``: which call goes to which tap."""

    def hook(_: nn.Module, args: Any, output: Any) -> None:
        call = counts[at]
        counts[at] = call + 1
        index = calls.get(call)
        if index is not None:
            tensor = output if type(output) is Tensor else _tensor(output, taps[index])
            take(index, _unflattened(tensor, batch[0]) if taps[index].flat else tensor)

    return hook


def _before(
    counts: list[int], at: int, calls: dict[int, int], take: OnTensor, taps: Sequence[Tap], batch: list[int]
) -> Callable[..., None]:
    """Make the hook of a module's inputs, positional ones first."""

    def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
        call = counts[at]
        counts[at] = call + 1
        index = calls.get(call)
        if index is not None:
            tensor = args[0] if args and type(args[0]) is Tensor else _tensor((args, kwargs), taps[index])
            take(index, _unflattened(tensor, batch[0]) if taps[index].flat else tensor)

    return hook


def _tensor(value: Any, tap: Tap) -> Tensor:
    tensor = first_tensor(value)
    if tensor is None:
        what = "is given" if tap.side == "input" else "returns"
        values = (*value[0], *value[1].values()) if tap.side == "input" else (value,)
        kind = " and ".join(type(v).__name__ for v in values) or "nothing"
        raise CaptureError(f"module {tap.module!r} {what} no tensor but {kind}; tap a module inside or after it")
    return tensor


def _unflattened(tensor: Tensor, batch: int) -> Tensor:
    if batch < 1 or len(tensor) % batch:
        raise CaptureError(
            f"an activation of shape {tuple(tensor.shape)} cannot be laid out as {batch} texts of equal length; "
            "capture it as it is, without `flat`"
        )
    return tensor.reshape(batch, -1, tensor.shape[-1])


def _batch(args: Any, kwargs: Any) -> int:
    tensor = first_tensor((args, kwargs))
    return len(tensor) if tensor is not None and tensor.ndim else 0


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
        raise CaptureError(f"the network has no module {path!r}; {nearest(path, known)}") from None


def _short(tap: Tap, path: str, called: int) -> str:
    """Say that a module was called fewer times than a tap needs."""
    if not called:
        return f"layer {tap.layer!r}: this forward never called {path!r}; tap a module that it calls"
    times = "once" if called == 1 else f"{called} times"
    return f"layer {tap.layer!r}: this forward called {path!r} {times}; its calls are #0 to #{called - 1}"
