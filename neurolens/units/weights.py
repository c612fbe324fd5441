"""Magnitudes of weights: of each parameter, and out of each unit through the modules that read it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from neurolens.capture import capture, first_tensor
from neurolens.layers import Layer

Floats = npt.NDArray[np.float64]


def weight_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that are weights, by name: matrices, kernels and embeddings, not biases or scales."""
    return {name: p.detach() for name, p in module.named_parameters() if p.is_floating_point() and p.ndim > 1}


def parameter_magnitudes(module: nn.Module) -> tuple[Floats, Floats]:
    """Return the mean absolute value and the L2 norm of each of `weight_parameters`, (parameter,) each."""
    weights = list(weight_parameters(module).values())
    mean = [float(w.abs().sum(dtype=torch.float64) / w.numel()) for w in weights]
    norm = [float(torch.linalg.vector_norm(w, dtype=torch.float64)) for w in weights]
    return np.array(mean), np.array(norm)


def readers_of(
    module: nn.Module, layers: Sequence[Layer], args: Sequence[Tensor] = (), kwargs: Mapping[str, Tensor] | None = None
) -> list[dict[str, str]]:
    """Find, for each layer, the modules that read it: linear layers and convolutions that are given the very tensor.

    A module reads a layer if it is given the tensor that was captured there, or a view of all of it, unchanged since.
    What is added to, pooled or normalised first is not read.

    Parameters
    ----------
    module
        In eval mode; run once.
    args, kwargs
        Arguments of one forward.

    Returns
    -------
    readers : per layer, path of the module → its kind
    """
    captured: list[_Held | None] = [None] * len(layers)
    given: list[tuple[str, _Held]] = []

    def saw(index: int, tensor: Tensor) -> None:
        captured[index] = _held(tensor)

    def reads(name: str) -> Any:
        def hook(_: nn.Module, values: Any, named: Any) -> None:
            tensor = first_tensor((values, named))
            if tensor is not None:
                given.append((name, _held(tensor)))

        return hook

    readers = {name: kind for name, m in module.named_modules() if (kind := _kind(m))}
    handles = [module.get_submodule(n).register_forward_pre_hook(reads(n), with_kwargs=True) for n in readers]
    try:
        with torch.no_grad(), capture(module, [layer.tap for layer in layers], on=saw):
            module(*args, **(kwargs or {}))
    finally:
        for handle in handles:
            handle.remove()
    return [
        {name: readers[name] for name, held in given if made is not None and _same(made, layer, held, readers[name])}
        for layer, made in zip(layers, captured, strict=True)
    ]


def out_weight(module: nn.Module, readers: Mapping[str, str], units: int) -> Floats:
    """Return the mean absolute weight out of each unit over all its readers, (units,); NaN where there is none.

    Of a grouped convolution a unit has the weights of its own group.

    References
    ----------
    Dohare et al. 2024, "Loss of plasticity in deep continual learning": the mean over a unit's outgoing weights.
    """
    total, count = np.zeros(units), 0
    for name, kind in readers.items():
        reader = module.get_submodule(name)
        weight = reader.weight
        assert isinstance(weight, Tensor)
        absolute = weight.detach().abs()
        groups = getattr(reader, "groups", 1)
        if kind == "convolution":  # (out, in / groups, …)
            absolute = absolute.reshape(groups, len(absolute) // groups, absolute.shape[1], -1).transpose(1, 2)
        elif kind == "linear":  # (out, in)
            absolute = absolute.T
        absolute = absolute.reshape(units, -1)
        total += absolute.sum(dim=1, dtype=torch.float64).cpu().numpy()
        count += absolute.shape[1]
    return total / count if count else np.full(units, np.nan)


class _Held(NamedTuple):
    """A tensor, kept so that its memory is not given to another one, and the version of its values."""

    tensor: Tensor
    version: int


def _held(tensor: Tensor) -> _Held:
    return _Held(tensor, tensor._version)


def _same(made: _Held, layer: Layer, given: _Held, kind: str) -> bool:
    """Tell whether what a module was given is what a layer made, the units on the axis that the module sums over."""
    one, two = made.tensor, given.tensor
    axis = two.ndim - 1 if kind in ("linear", "transposed linear") else 1
    return (
        made.version == given.version
        and one.data_ptr() == two.data_ptr()
        and one.numel() == two.numel()
        and axis < two.ndim
        and two.shape[axis] == one.shape[layer.axis] == layer.units
        and two.stride(axis) == one.stride(layer.axis)
    )


def _kind(module: nn.Module) -> str:
    """Name the layout of a module's weight; empty where it does not multiply by one."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return "transposed convolution"  # (in, out / groups, …)
    if isinstance(module, nn.modules.conv._ConvNd):
        return "convolution"
    if type(module).__name__ == "Conv1D" and isinstance(getattr(module, "nf", None), int):
        return "transposed linear"  # transformers' Conv1D: (in, out)
    return ""
