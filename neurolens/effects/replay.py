"""Run a network again from a layer on: what came before is not computed but put out as it was.

Every module call that had returned when the layer was reached puts out what it put out then. What a network computes
between its modules is computed again, and so are calls that changed what they were given, returned a view of it, were
given or returned what cannot be taken apart, or called a module that is also called elsewhere. In-place modules that
overwrite what another module returned are among those that are not computed: that one puts out the final values at
once. A forward that depends on more than its input, its weights and what its modules return may come out otherwise:
compare it once with a whole forward.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neurolens.capture import Tap, capture
from neurolens.effects.interventions import tensors_of

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)

Call = tuple[nn.Module, int]
"""A call of a module in a forward, from 0."""


class Recording(NamedTuple):
    """What the network returned, and what module calls had put out when the layer was reached.

    ``overwritten`` are calls whose tensors something else wrote to afterwards; ``copied`` those of which copies are
    kept. Where the first has more than the second, it has to be recorded again, with copies of them.
    """

    output: Any
    calls: dict[nn.Module, dict[int, Any]]
    overwritten: frozenset[Call]
    copied: frozenset[Call]

    @property
    def nbytes(self) -> int:
        """What is held, without the output."""
        kept = {id(t): t for t in tensors_of([list(calls.values()) for calls in self.calls.values()])}
        return sum(tensor.numel() * tensor.element_size() for tensor in kept.values())


class _Open(NamedTuple):
    """A call that has not returned: what it was given, and how many calls had begun and returned before it."""

    call: int
    given: list[tuple[Tensor, int]] | None
    lengths: list[tuple[Any, int]]
    begun: int
    returned: int


class _Done(NamedTuple):
    """A call that has returned: its output, its tensors and their versions then (none of a copy)."""

    module: nn.Module
    call: int
    output: Any
    tensors: list[tuple[Tensor, int]]


def calls_of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Counter[nn.Module]:
    """Run the network, without gradients, and return how often it calls each of its modules."""
    counts: Counter[nn.Module] = Counter()
    with ExitStack() as hooks, torch.no_grad():
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(lambda module, _: counts.update((module,))).remove)
        model(*args, **kwargs)
    return counts


def record(
    model: nn.Module,
    tap: Tap,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    totals: Mapping[nn.Module, int],
    copied: Collection[Call] = (),
) -> Recording:
    """Run the network, without gradients, and keep what had been put out when the layer was reached.

    Parameters
    ----------
    totals
        How often each module is called, from `calls_of`.
    copied
        Calls whose output is overwritten afterwards, from an earlier recording.

    Raises
    ------
    CaptureError
        If the network does not have the layer.
    """
    stack: list[_Open] = []
    begun: list[nn.Module] = []
    done: list[_Done] = []
    counts: dict[nn.Module, int] = {}
    over = [False]

    def enter(module: nn.Module, given: Any, named: Any) -> None:
        call = counts[module] = counts.get(module, -1) + 1
        if over[0]:
            return
        apart = _apart((given, named))
        versions = [(t, t._version) for t in tensors_of((given, named))] if apart else None
        begun.append(module)
        stack.append(_Open(call, versions, _lengths((given, named)), len(begun), len(done)))

    def leave(module: nn.Module, _: Any, __: Any, output: Any) -> None:
        if over[0]:
            return
        call = stack.pop()
        if call.given is None or not _apart(output) or any(len(held) != n for held, n in call.lengths):
            return
        if any(n != totals[inner] for inner, n in Counter(begun[call.begun :]).items()):
            return
        if not _put_out_before(output, call.given, done[: call.returned]):
            if any(tensor._version != version for tensor, version in call.given):
                return
            own = {tensor.untyped_storage().data_ptr() for tensor, _ in call.given}
            if any(tensor.untyped_storage().data_ptr() in own for tensor in tensors_of(output)):
                return
        del done[call.returned :]
        if (module, call.call) in copied:
            done.append(_Done(module, call.call, _handed(output, copy=True), []))
        else:
            done.append(_Done(module, call.call, output, [(t, t._version) for t in tensors_of(output)]))

    with ExitStack() as hooks, torch.no_grad():
        for module in model.modules():
            if module is not model:
                hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        hooks.enter_context(capture(model, [tap], on=lambda _, __: over.__setitem__(0, True)))
        output = model(*args, **kwargs)
    calls: dict[nn.Module, dict[int, Any]] = {}
    last = {id(tensor): version for one in done for tensor, version in one.tensors}
    overwritten = set()
    for one in done:
        calls.setdefault(one.module, {})[one.call] = one.output
        if any(tensor._version != last[id(tensor)] for tensor, _ in one.tensors):
            overwritten.add((one.module, one.call))
    return Recording(output, calls, frozenset(overwritten), frozenset(copied))


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
            due[module] = _handed(recording.calls[module][call], copy=(module, call) in recording.copied)

    def stand_in(module: nn.Module) -> Callable[..., Any]:
        whole = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return due.pop(module) if module in due else whole(*args, **kwargs)

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


def _put_out_before(output: Any, given: list[tuple[Tensor, int]], done: list[_Done]) -> bool:
    """Tell whether a call returned a tensor that it was given, as a call that is put out returned it.

    It may have written to that one, and to no other: in-place modules, identities.
    """
    if not isinstance(output, Tensor):
        return False
    version = next((version for tensor, version in given if tensor is output), None)
    if version is None or any(t._version != v for t, v in given if t is not output):
        return False
    known = [v for one in done for tensor, v in one.tensors if tensor is output]
    return bool(known) and known[-1] == version


def _apart(value: Any) -> bool:
    """Tell whether a value is made of tensors, plain values and the built-in containers of them."""
    if type(value) in (Tensor, nn.Parameter):
        return not value.is_inference()
    if type(value) in (tuple, list):
        return all(map(_apart, value))
    if type(value) is dict:
        return all(map(_apart, value.values()))
    return isinstance(value, _PLAIN)


def _handed(value: Any, *, copy: bool) -> Any:
    """Return an output in containers of its own, with copies of its tensors, or the tensors themselves."""
    if isinstance(value, Tensor):
        return value.detach().clone() if copy else value
    if type(value) in (tuple, list):
        return type(value)([_handed(item, copy=copy) for item in value])
    return {name: _handed(item, copy=copy) for name, item in value.items()} if type(value) is dict else value


def _lengths(value: Any) -> list[tuple[Any, int]]:
    """Return the lists and mappings in what a call is given, which it could lengthen, with their lengths."""
    if type(value) not in (tuple, list, dict):
        return []
    inner = value.values() if type(value) is dict else value
    own = [] if type(value) is tuple else [(value, len(value))]
    return own + [found for item in inner for found in _lengths(item)]
