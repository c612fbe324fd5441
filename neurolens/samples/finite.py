"""Where a NaN or infinity comes from: the first sample of a batch, and the first layer, that has one."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from neurolens.errors import NonFiniteError
from neurolens.samples.softmax import cotangent


def require_finite(
    values: Mapping[str, Tensor], module: nn.Module, inputs: Tensor, labels: Tensor, ids: Sequence[str]
) -> None:
    """Check measured values; only if one is not finite, run the batch again to find out where that starts.

    Parameters
    ----------
    values : variable name → (n,)
    module : network in eval mode
    inputs, labels, ids : (n, …), (n,), (n,)
        The batch that the values were measured on.

    Raises
    ------
    NonFiniteError
        Naming the first sample with a value that is not finite, that value, and the first layer where it appears.
    """
    finite = {name: v.isfinite() for name, v in values.items() if v.is_floating_point()}
    good = torch.stack(list(finite.values())).all(dim=0)
    if bool(good.all()):
        return
    first = int((~good).nonzero()[0, 0])
    name = next(n for n, ok in finite.items() if not bool(ok[first]))
    raise NonFiniteError(
        f"sample {ids[first]!r} has {name} = {float(values[name][first])}, and a finite number was needed; "
        f"{first_layer(module, inputs[first : first + 1], labels[first : first + 1])}; "
        "leave the checkpoint out, or set allow_non_finite = true in [samples] to store it as it is"
    )


def first_layer(module: nn.Module, inputs: Tensor, labels: Tensor) -> str:
    """Say in which layer, of a forward and then a backward pass, something is not finite first.

    Parameters
    ----------
    module : network in eval mode
    inputs, labels : (n, …), (n,)
    """
    if not bool(inputs.isfinite().all()):
        return "the input itself is not finite"
    forward: list[str] = []
    backward: list[str] = []
    names = {m: name for name, m in module.named_modules()}

    def arrived(name: str, gradient: Tensor) -> None:
        if not bool(gradient.isfinite().all()):
            backward.append(name)

    def saw(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if not isinstance(tensor, Tensor):
                continue
            if not bool(tensor.isfinite().all()):
                forward.append(_describe(layer, names[layer]))
            if tensor.requires_grad:
                tensor.register_hook(partial(arrived, names[layer]))  # type: ignore[no-untyped-call]

    handles = [m.register_forward_hook(saw) for m in names if not any(True for _ in m.children())]
    handles += [module.register_forward_hook(saw)] if any(True for _ in module.children()) else []
    try:
        leaf = inputs.detach().requires_grad_()
        logits = module(leaf)
        if not forward:
            torch.autograd.grad(logits, leaf, cotangent(logits, labels))
    finally:
        for handle in handles:
            handle.remove()
    if forward:
        return f"it first appears in the output of {forward[0]}"
    if backward:
        return f"it first appears in the gradient of the output of layer {backward[0] or 'the network'!r}"
    return "every layer's output and gradient is finite, so it appears in the loss, or only in this pass's arithmetic"


def _describe(layer: nn.Module, name: str) -> str:
    """Name a layer, its type, and those of its own parameters and buffers that are not finite."""
    own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    broken = [n for n, t in own if t.is_floating_point() and not bool(t.isfinite().all())]
    where = f"layer {name!r} ({type(layer).__name__})" if name else "the network itself"
    return where + (f", whose {' and '.join(broken)} holds NaN or infinity" if broken else "")
