"""Run a network again from a layer on: what came before is not computed but put out as it was.

Every module call that had returned when the layer was reached puts out what it put out then. What a network computes
between its modules is computed again, and so are calls that changed what they were given (in-place modules), returned
part of it, were given or returned what cannot be copied, or called a module that is also called elsewhere. A forward
that depends on more than its input, its weights and what its modules return may come out otherwise: compare it once
with a whole forward.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neurolens.capture import Tap, capture
from neurolens.effects.interventions import tensors_of

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)


class Recording(NamedTuple):
    """What the network returned, and what module calls had put out when the layer was reached."""

    output: Any
    calls: dict[nn.Module, dict[int, Any]]

    @property
    def nbytes(self) -> int:
        """What is held, without the output."""
        kept = tensors_of([list(calls.values()) for calls in self.calls.values()])
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)


class _Open(NamedTuple):
    """A call that has not returned: what it was given, and how many calls had begun and returned before it."""

    call: int
    given: list[tuple[Tensor, int]] | None
    lengths: list[tuple[Any, int]]
    begun: int
    returned: int


def calls_of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Counter[nn.Module]:
    """Run the network, without gradients, and return how often it calls each of its modules."""
    counts: Counter[nn.Module] = Counter()
    with ExitStack() as hooks, torch.no_grad():
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(lambda module, _: counts.update((module,))).remove)
        model(*args, **kwargs)
    return counts


def record(
    model: nn.Module, tap: Tap, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, totals: Mapping[nn.Module, int]
) -> Recording:
    """Run the network, without gradients, and keep copies of what had been put out when the layer was reached.

    Parameters
    ----------
    totals
        How often each module is called, from `calls_of`.

    Raises
    ------
    CaptureError
        If the network does not have the layer.
    """
    stack: list[_Open] = []
    begun: list[nn.Module] = []
    done: list[tuple[nn.Module, int, Any]] = []
    counts: dict[nn.Module, int] = {}
    over = [False]

    def enter(module: nn.Module, given: Any, named: Any) -> None:
        call = counts[module] = counts.get(module, -1) + 1
        if over[0]:
            return
        copyable = _copyable((given, named))
        versions = [(t, t._version) for t in tensors_of((given, named))] if copyable else None
        begun.append(module)
        stack.append(_Open(call, versions, _lengths((given, named)), len(begun), len(done)))

    def leave(module: nn.Module, _: Any, __: Any, output: Any) -> None:
        if over[0]:
            return
        call = stack.pop()
        if call.given is None or not _copyable(output) or any(len(held) != n for held, n in call.lengths):
            return
        if any(tensor._version != version for tensor, version in call.given):
            return
        own = {tensor.untyped_storage().data_ptr() for tensor, _ in call.given}
        if any(tensor.untyped_storage().data_ptr() in own for tensor in tensors_of(output)):
            return
        if any(n != totals[inner] for inner, n in Counter(begun[call.begun :]).items()):
            return
        del done[call.returned :]
        done.append((module, call.call, _copied(output)))

    with ExitStack() as hooks, torch.no_grad():
        for module in model.modules():
            if module is not model:
                hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        hooks.enter_context(capture(model, [tap], on=lambda _, __: over.__setitem__(0, True)))
        output = model(*args, **kwargs)
    calls: dict[nn.Module, dict[int, Any]] = {}
    for module, number, put_out in done:
        calls.setdefault(module, {})[number] = put_out
    return Recording(output, calls)


@contextmanager
def replaying(model: nn.Module, recording: Recording) -> Iterator[None]:
    """Let forwards of the network, of the batch that was recorded, start at the layer; it is left as it was."""
    counts: dict[nn.Module, int] = {}
    due: dict[nn.Module, Any] = {}

    def begin(*_: Any) -> None:
        counts.clear()
        due.clear()

    def enter(module: nn.Module, _: Any) -> None:
        call = counts[module] = counts.get(module, -1) + 1
        if call in recording.calls[module]:
            due[module] = recording.calls[module][call]

    def stand_in(module: nn.Module) -> Callable[..., Any]:
        whole = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return _copied(due.pop(module)) if module in due else whole(*args, **kwargs)

        return forward

    with ExitStack() as undo:
        undo.callback(model.register_forward_pre_hook(begin, prepend=True).remove)
        for module in recording.calls:
            undo.callback(module.register_forward_pre_hook(enter).remove)
            own = module.__dict__.get("forward")
            module.__dict__["forward"] = stand_in(module)
            undo.callback(_give_back, module, own)
        yield


def _give_back(module: nn.Module, own: Any) -> None:
    if own is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = own


def _copyable(value: Any) -> bool:
    """Tell whether a value is made of tensors, plain values and the built-in containers of them."""
    if type(value) in (Tensor, nn.Parameter):
        return not value.is_inference()
    if type(value) in (tuple, list):
        return all(map(_copyable, value))
    if type(value) is dict:
        return all(map(_copyable, value.values()))
    return isinstance(value, _PLAIN)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple | list):
        return type(value)(map(_copied, value)) if type(value) in (tuple, list) else value
    return {name: _copied(item) for name, item in value.items()} if type(value) is dict else value


def _lengths(value: Any) -> list[tuple[Any, int]]:
    """Return the lists and mappings in what a call is given, which it could lengthen, with their lengths."""
    if type(value) not in (tuple, list, dict):
        return []
    inner = value.values() if type(value) is dict else value
    own = [] if type(value) is tuple else [(value, len(value))]
    return own + [found for item in inner for found in _lengths(item)]
