"""Layers that every path from input to output crosses, and gradients through sets of their units.

At such a layer the gradient is the sum of what goes through its units. Elsewhere (inside a residual or dense block) it
is not: some paths go around. Whether a layer is a cut is seen by adding up.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode

from neurolens.attribution.descent import Descent, Piece
from neurolens.attribution.jacobians import Constants
from neurolens.capture import capture
from neurolens.effects.interventions import logits_of, tensors_of
from neurolens.errors import CaptureError, DataError, NonFiniteError
from neurolens.layers import Layer, find_layers
from neurolens.samples.softmax import full_precision


class Together(NamedTuple):
    """Memory of gradients that are followed back together: of a point, and of each gradient of a point more."""

    point: int
    row: int


_SAME = 1e-4
"""How far gradients that are followed back together may be from autograd's, relative to the whole gradient."""


@dataclass(frozen=True)
class Cuts:
    """Layers of a network that every path crosses, in the order in which they fire.

    Parameters
    ----------
    layers
        As `neurolens.layers.find_layers` found them.
    shape
        Of one sample, as they were found on.
    residuals
        Norm of the sum of the gradients through a cut's units minus the whole gradient, over the norm of the latter.
    nbytes
        Memory that one point takes, at its most: the forward pass, what it keeps for gradients, and those.
    together
        What it takes to follow several gradients back at once; None where that does not give the same gradients.
    """

    layers: tuple[Layer, ...]
    shape: tuple[int, ...]
    residuals: tuple[float, ...]
    nbytes: int
    together: Together | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(layer.name for layer in self.layers)


class Through:
    """One forward pass, and gradients of what is explained with respect to its points, through chosen units.

    Parameters
    ----------
    module : as `differentiable` lends it
    layers : the cuts
    points : (P, …) floating point
    """

    def __init__(self, module: nn.Module, layers: Sequence[Layer], points: Tensor) -> None:
        self._layers = layers
        self._points = points.detach().requires_grad_()
        self._edges: list[GradientEdge] = [None] * len(layers)  # type: ignore[list-item]
        self._tops: list[Tensor | None] = []

        def keep(index: int, tensor: Tensor) -> None:
            layer = layers[index]
            if not tensor.requires_grad:
                raise CaptureError(
                    f"layer {layer.name!r} does not depend on the input by gradients; choose a layer behind it"
                )
            if tensor.ndim <= _axis(layer) or tensor.shape[_axis(layer)] != layer.units:
                raise CaptureError(
                    f"layer {layer.name!r} has an activation of shape {tuple(tensor.shape)}, and {layer.units} units "
                    f"along axis {_axis(layer)} were needed; find the cuts of this network anew"
                )
            self._edges[index] = get_gradient_edge(tensor)  # of the tensor as it is now: writing to it later is no harm

        with capture(module, [replace(layer.tap, flat=False) for layer in layers], on=keep):
            output = module(self._points)
        self.logits = logits_of(output, len(points), 1)

    def back(self, explained: Tensor, *, whole: bool = True, last: bool = False) -> Tensor | None:
        """Follow the gradient of the sum of ``explained`` back to all cuts, and to the points where ``whole``.

        Returns
        -------
        gradient : (P, …), or None
        """
        inputs: list[Any] = [*([self._points] if whole else []), *self._edges]
        found = torch.autograd.grad(explained.sum(), inputs, retain_graph=not last, allow_unused=True)
        self._tops = list(found[whole:])
        return self._or_zeros(found[0]) if whole else None

    def part(self, cut: int, units: Tensor) -> Tensor:
        """Follow it from a cut to the points, through some of its units, (units,) of the dtype of the points."""
        top = self._tops[cut]
        if top is None:
            return torch.zeros_like(self._points)
        (found,) = torch.autograd.grad(
            [self._edges[cut]],
            [self._points],
            grad_outputs=[top * self._along(cut, units)],
            retain_graph=True,
            allow_unused=True,
        )
        return self._or_zeros(found)

    def parts(
        self, vectors: Sequence[tuple[int, Tensor]], rows: int, constants: tuple[Constants, Constants]
    ) -> Iterator[Piece]:
        """Do so for several pairs of a cut and units, following up to so many gradients at once, as `Descent` does."""
        descent = Descent(self._points, self._edges, self._tops, constants)
        yield from descent.through([(cut, self._along(cut, units)) for cut, units in vectors], rows)

    def _along(self, cut: int, units: Tensor) -> Tensor:
        """Lay units along their axis of what the cut puts out."""
        layer, top = self._layers[cut], self._tops[cut]
        return units if top is None else units.view([-1 if dim == _axis(layer) else 1 for dim in range(top.ndim)])

    def _or_zeros(self, gradient: Tensor | None) -> Tensor:
        return torch.zeros_like(self._points) if gradient is None else gradient


def find_cuts(module: nn.Module, names: Sequence[str], x: Tensor, *, tolerance: float = 1e-4) -> Cuts:
    """Find layers by path, and verify that each is a cut: the gradients through its units add up to the whole one.

    They are compared on the first sample and on half of it, for a fixed random combination of all logits, so that no
    path is missed because a class does not use it. A path that is closed (by ReLUs) at both points is not seen.

    Parameters
    ----------
    module : nn.Module
        Takes ``x`` and returns logits. Left as it was; run in eval mode.
    names
        Module paths, of the first call of a module unless ``#1`` and so on says otherwise, or globs
        (``features.denseblock*``). What is taken is what the module puts out; ``:input`` takes what it is given.
    x : (B, …) floating point
        Samples as the network takes them, of which the first is shown.
    tolerance
        Largest residual of a cut; float32 leaves about 1e-6.

    Returns
    -------
    Cuts

    Raises
    ------
    CaptureError
        If a layer is not there, is no cut (the residual is given), does not depend on the input, or nothing does.
    DataError
        If ``x`` is no batch of floating-point samples.
    NonFiniteError
        If a gradient is NaN or infinite.
    ModelMismatchError
        If the network does not give a row of logits per sample.
    """
    require_samples(x)
    named = [name if set("*?[#") & set(name) else f"{name}#0" for name in names]
    with differentiable(module):
        layers = find_layers(module, named, x[:1]) if named else ()
        points, peak = torch.cat([x[:1], x[:1] / 2]), Peak()
        with peak:
            run = Through(module, layers, points)
            generator = torch.Generator().manual_seed(0)
            weights = torch.randn(run.logits.shape[1], generator=generator).to(run.logits)
            whole = run.back(run.logits @ weights)
            assert whole is not None
            halves = [half for at, layer in enumerate(layers) for half in _halves(at, layer.units, whole)]
            parts = [run.part(*half) for half in halves]
            gaps = [float((odd + even - whole).norm()) for odd, even in zip(parts[::2], parts[1::2], strict=True)]
            nbytes = peak.nbytes
            together = _together(run, halves, parts, whole, peak) if layers and whole.isfinite().all() else None
    if not whole.isfinite().all():
        raise NonFiniteError(
            "the gradient of the logits is NaN or infinite on the first sample, and finite numbers were needed to tell "
            "cuts; give another sample, or leave the checkpoint out"
        )
    if not whole.any():
        raise CaptureError(
            "the gradient of the logits is zero on the first sample, which tells no cut from another layer; give "
            "another sample"
        )
    residuals = tuple(gap / float(whole.norm()) for gap in gaps)
    for layer, residual in zip(layers, residuals, strict=True):
        if not residual <= tolerance:
            raise CaptureError(
                f"layer {layer.name!r} is no cut: the gradients through its units differ from the whole gradient by "
                f"{residual:.2g} of its norm, and at most {tolerance:g} was needed, so there are paths around it; take "
                "what a whole block or stage puts out, e.g. features.denseblock1 or layer1"
            )
    return Cuts(layers, tuple(x.shape[1:]), residuals, -(-nbytes // len(points)), together)


@contextmanager
def differentiable(module: nn.Module) -> Iterator[None]:
    """Put a network in eval mode, with gradients of inputs and none of parameters; it is left as it was."""
    modes = {m: m.training for m in module.modules()}
    parameters = [p for p in module.parameters() if p.requires_grad]
    try:
        for m in modes:
            m.training = False
        for parameter in parameters:
            parameter.requires_grad_(False)  # no memory for gradients that nobody asks for
        with full_precision(), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for m, mode in modes.items():
            m.training = mode
        for parameter in parameters:
            parameter.requires_grad_(True)


def require_samples(x: Tensor) -> None:
    """Raise DataError unless this is a batch of floating-point samples."""
    if x.ndim < 2 or not len(x) or not x.is_floating_point():
        raise DataError(
            f"found {str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}, and a batch of floating-point "
            "samples, (B, …), was needed to follow gradients to; give images as the network takes them"
        )


def _halves(at: int, units: int, like: Tensor) -> list[tuple[int, Tensor]]:
    """Return the odd and the even units of a cut."""
    odd = (torch.arange(units, device=like.device) % 2).to(like)
    return [(at, odd), (at, 1 - odd)]


def _together(
    run: Through, vectors: Sequence[tuple[int, Tensor]], parts: Sequence[Tensor], whole: Tensor, peak: "Peak"
) -> Together | None:
    """Follow gradients back one by one and all at once: what that takes, if they are the same as without."""
    constants, peaks, kept = (Constants(whole.dtype),) * 2, [], peak.held
    with torch.no_grad():
        for rows in (1, len(vectors)):
            peak.nbytes = kept
            try:
                for piece in run.parts(vectors, rows, constants):
                    for point in range(len(whole)):
                        for number, found in zip(piece.vectors, piece.at(point), strict=True):
                            if not float((found - parts[number][point]).norm()) <= _SAME * float(whole.norm()):
                                return None
            except (NotImplementedError, RuntimeError):  # an operation that does not let itself be followed alone
                return None
            peaks.append(-(-peak.nbytes // len(whole)))
    row = max(0, peaks[1] - peaks[0]) // (len(vectors) - 1)
    return Together(max(0, peaks[0] - row), row)


def _axis(layer: Layer) -> int:
    return 1 if layer.tap.flat else layer.axis


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the memory of the tensors that are made inside: what is held at once, at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nbytes = 0
        self.held = 0
        self._refs: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_of(out):
            storage = tensor.untyped_storage()
            if id(storage) not in self._refs:
                size = storage.nbytes()
                self._refs[id(storage)] = weakref.ref(storage, self._freed(id(storage), size))
                self.held += size
                self.nbytes = max(self.nbytes, self.held)
        return out

    def _freed(self, key: int, size: int) -> Callable[[Any], None]:
        def free(_: Any) -> None:
            self.held -= size
            self._refs.pop(key, None)

        return free
