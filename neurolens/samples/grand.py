"""GraNd: the norm of every sample's parameter gradient, from one forward and one backward pass of the batch.

A linear layer's gradient for one sample is G Aᵀ, of its inputs A (features × positions) and the gradients G of its
outputs. Its norm needs no parameter-sized array where positions are few (‖G Aᵀ‖² = ⟨AᵀA, GᵀG⟩, Goodfellow 2015 and
Li et al. 2022), and one small product per sample where they are many; each layer takes the cheaper way. Parameters of
other layers, and shared ones, are differentiated per sample by `torch.func.vmap`, exactly and more slowly.

The arithmetic is mixed unless asked otherwise: float64 where rounding could turn a ReLU, float32 where it only rounds.
"""

import contextlib
import copy
import logging
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from neurolens.errors import ModelMismatchError
from neurolens.samples.layer_norms import AFFINES, PRODUCTS, affine_squares, product_squares, row_squares
from neurolens.samples.mixed import MixedArithmetic
from neurolens.samples.softmax import cotangent

EXPLICIT_BYTES = 2**28

Arithmetic = Literal["mixed", "float64", "float32"]
"""In what the norms are computed; see :class:`GradientNorms`."""

_log = logging.getLogger(__name__)


@dataclass
class _Use:
    """One call of a layer: its input, the version of that tensor, and the gradient of its output when it is known."""

    inputs: Tensor
    version: int
    gradient: Tensor | None = None


@dataclass
class _Pass:
    """What one forward and backward pass has seen so far."""

    size: int
    uses: dict[nn.Module, list[_Use]] = field(default_factory=dict)
    unfit: set[nn.Module] = field(default_factory=set)


class GradientNorms:
    """``with GradientNorms(module) as norms: norms(inputs, labels)`` → (n,) float64 parameter-gradient norms.

    All parameters that require a gradient count, as they are now: the norms are those of a copy in eval mode, and the
    module itself is only read. ``norms.explicit`` names the parameters that are differentiated one sample at a time
    (under vmap), because no shortcut is known for their layer, they are shared, or they are used outside their layer.

    Parameters
    ----------
    module : network
    arithmetic
        ``mixed``: the forward pass in float64, so that every ReLU, every max-pooling and softmax - one-hot is that of
        float64; linear and convolution layers propagate gradients, and square them, in float32. The norms differ from
        those of float64 by rounding, about 1e-8 relative. What the mode does not cover (attention, embeddings, norm
        layers, parameters differentiated per sample) is float64 both ways. ``float64``: throughout. ``float32``:
        throughout, which is about twice as fast as mixed; a ReLU that rounding turns costs its sample 1e-6 or more.

    Raises
    ------
    ModelMismatchError
        If no parameter requires a gradient, a layer can be handled neither way (the message names its type), or the
        network's own code insists on float32.

    References
    ----------
    Paul et al. 2021, "Deep Learning on a Data Diet", definition 2.1. Goodfellow 2015, "Efficient Per-Example Gradient
    Computations". Li et al. 2022, "Large Language Models Can Be Strong Differentially Private Learners", §4.
    """

    def __init__(self, module: nn.Module, *, arithmetic: Arithmetic = "mixed") -> None:
        self.dtype = torch.float32 if arithmetic == "float32" else torch.float64
        self.module = module = copy.deepcopy(module).to(self.dtype)
        self._mixed = MixedArithmetic() if arithmetic == "mixed" else None
        self.wanted = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not self.wanted:
            raise ModelMismatchError(
                "no parameter of the network requires a gradient, and GraNd needs one; "
                "leave requires_grad on, or set grand = false in [samples]"
            )
        owners = Counter(id(p) for m in module.modules() for p in m.parameters(recurse=False))
        self._ghost: dict[nn.Module, dict[str, nn.Parameter]] = {}
        for layer in module.modules():
            own = {
                name: p for name, p in layer.named_parameters(recurse=False) if p.requires_grad and owners[id(p)] == 1
            }
            batch_dependent = "running_mean" in layer._buffers and layer._buffers["running_mean"] is None
            if own and type(layer) in PRODUCTS + AFFINES and own.keys() <= {"weight", "bias"} and not batch_dependent:
                self._ghost[layer] = own
        self._reused: set[nn.Module] = set()
        self._pass: _Pass | None = None
        self._sums: Tensor | None = None
        self._checked = False
        self._handles: list[RemovableHandle] = []

    @property
    def explicit(self) -> tuple[str, ...]:
        """Names of the parameters that are differentiated per sample."""
        ghost = {id(p) for own in self._ghost.values() for p in own.values()}
        return tuple(name for name, p in self.wanted.items() if id(p) not in ghost)

    def __enter__(self) -> "GradientNorms":
        self.module.eval()
        for parameter in self.wanted.values():
            parameter.requires_grad_(False)
        self._handles = [m.register_forward_hook(self._saw, with_kwargs=True) for m in self._ghost]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        for parameter in self.wanted.values():
            parameter.requires_grad_(True)

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the norm of each sample's parameter gradient, (n,) float64, on the CPU."""
        if inputs.is_floating_point():
            inputs = inputs.to(self.dtype)
        else:
            self._ghost.clear()
        squares = self._ghost_squares(inputs, labels)
        if not self._checked and bool(squares.max() > 0) and self._ghost:
            self._check(inputs, labels, squares)
        names = self.explicit
        if names:
            squares = squares + self._explicit_squares(names, inputs, labels)
        return squares.cpu().sqrt()

    def _ghost_squares(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Sum the squared norms over the layers with a shortcut, demoting layers that turn out not to have one."""
        while self._ghost:
            seen = self._pass = _Pass(len(inputs))
            self._sums = _zeros(inputs)
            leaf = inputs.detach().requires_grad_()
            try:
                logits = self._logits(leaf)
                seen.unfit |= self._ghost.keys() - seen.uses.keys()
                self._reused = {m for m, uses in seen.uses.items() if len(uses) > 1}
                if not seen.unfit:
                    torch.autograd.grad(logits, leaf, cotangent(logits, labels))
            finally:
                self._pass = None
            if not seen.unfit:
                for layer in self._reused:
                    self._sums += self._squares(layer, seen.uses[layer])
                return self._sums
            for layer in seen.unfit:
                del self._ghost[layer]
        return _zeros(inputs)

    def _logits(self, inputs: Tensor) -> Tensor:
        """Run the network forward in the chosen arithmetic."""
        try:
            with self._mixed or contextlib.nullcontext():
                logits: Tensor = self.module(inputs)
        except RuntimeError as error:
            if self.dtype == torch.float32 or not re.search(r"type", str(error)):
                raise
            raise ModelMismatchError(
                f"the network cannot be run in float64 ({error}), because its own code casts to or makes another type; "
                'set grand_arithmetic = "float32" in [samples], or let that code follow its input\'s type'
            ) from error
        return logits

    def _saw(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook: note the input, and ask for the gradient of the output.

        A tensor hook gets the gradient of the output as it is now, also if an in-place ReLU overwrites it later
        (module backward hooks fail there).
        """
        seen = self._pass
        if seen is None or layer not in self._ghost:
            return
        given = args[0] if args else kwargs.get("input")
        if (
            not isinstance(given, Tensor)
            or not isinstance(output, Tensor)
            or len(given) != seen.size
            or not output.requires_grad
            or given.ndim < (3 if isinstance(layer, nn.Conv1d) else 4 if isinstance(layer, nn.Conv2d) else 2)
        ):
            seen.unfit.add(layer)
            return
        use = _Use(given.detach(), given._version)
        seen.uses.setdefault(layer, []).append(use)

        def arrived(gradient: Tensor) -> None:
            if use.inputs._version != use.version:
                seen.unfit.add(layer)  # an in-place operation has overwritten what the layer read
            elif layer in self._reused:
                use.gradient = gradient
            else:
                use.gradient = gradient
                assert self._sums is not None
                self._sums += self._squares(layer, [use])
                use.inputs, use.gradient = gradient.new_empty(0), None  # the graph keeps this closure to its end

        output.register_hook(arrived)  # type: ignore[no-untyped-call]

    def _squares(self, layer: nn.Module, uses: list[_Use]) -> Tensor:
        pairs = [(u.inputs, u.gradient) for u in uses if u.gradient is not None]
        if not pairs:
            return torch.zeros((), dtype=torch.float64, device=self._device)
        with torch.no_grad():
            names = self._ghost[layer].keys()
            if isinstance(layer, PRODUCTS):
                if self._mixed is not None:
                    pairs = [(_narrow(a), _narrow(g)) for a, g in pairs]
                return product_squares(layer, pairs, names)
            return affine_squares(layer, pairs, names)

    def _explicit_squares(self, names: tuple[str, ...], inputs: Tensor, labels: Tensor) -> Tensor:
        """Sum the squared norms over the named parameters, with each sample's gradient written out."""
        chosen = {name: self.wanted[name].detach() for name in names}

        def projected(parameters: dict[str, Tensor], sample: Tensor, label: Tensor) -> Tensor:
            logits = torch.func.functional_call(self.module, parameters, (sample[None],))
            weighted: Tensor = (logits * cotangent(logits, label[None])).sum()
            return weighted

        rows = max(1, EXPLICIT_BYTES // sum(p.numel() * p.element_size() for p in chosen.values()))
        gradients = torch.func.vmap(torch.func.grad(projected), in_dims=(None, 0, 0))
        out = []
        try:
            with sdpa_kernel(SDPBackend.MATH):  # the fused attentions have no rule for vmap
                for sample, label in zip(torch.split(inputs.detach(), rows), torch.split(labels, rows), strict=True):
                    total = _zeros(sample)
                    for gradient in gradients(chosen, sample, label).values():
                        total += row_squares(gradient)
                    out.append(total)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise ModelMismatchError(
                f"GraNd cannot differentiate per sample through {', '.join(self._owners(names))} ({error}); "
                "set grand = false in [samples], or build the network from linear, convolution and norm layers"
            ) from error
        return torch.cat(out)

    def _owners(self, names: tuple[str, ...]) -> list[str]:
        """Type and place of the modules that hold the named parameters."""
        places = dict.fromkeys(name.rpartition(".")[0] for name in names)
        return [f"{type(self.module.get_submodule(p)).__name__} ({p or 'the network itself'})" for p in places]

    def _check(self, inputs: Tensor, labels: Tensor, squares: Tensor) -> None:
        """Compare one sample with plain autograd: a parameter also used outside its layer would go unseen otherwise."""
        at = int(squares.argmax())
        ghost = [p for own in self._ghost.values() for p in own.values()]
        for p in ghost:
            p.requires_grad_(True)
        logits = self.module(inputs[at : at + 1].detach())
        found = torch.autograd.grad(logits, ghost, cotangent(logits, labels[at : at + 1]), allow_unused=True)
        for p in ghost:
            p.requires_grad_(False)
        expected = math.fsum(float(row_squares(g[None])) for g in found if g is not None)
        self._checked = True
        if not math.isclose(expected, float(squares[at]), rel_tol=1e-3):
            _log.info("parameters are used outside their layers: every gradient is written out (slower, exact)")
            self._ghost.clear()
            squares.zero_()

    @property
    def _device(self) -> torch.device:
        return next(iter(self.wanted.values())).device


def grand(module: nn.Module, inputs: Tensor, labels: Tensor, *, arithmetic: Arithmetic = "mixed") -> Tensor:
    """Return the L2 norm of each sample's loss gradient in all parameters that require one.

    Parameters
    ----------
    module : network
        Used in eval mode; left as it was.
    inputs : (n, …), normalised input
    labels : (n,) int64
    arithmetic
        As :class:`GradientNorms` says.

    Returns
    -------
    grand : (n,) float64, nat per parameter, on the CPU

    References
    ----------
    Paul et al. 2021, definition 2.1; see :class:`GradientNorms`.
    """
    with GradientNorms(module, arithmetic=arithmetic) as norms:
        return norms(inputs, labels)


def seed_scores(
    module: nn.Module, inputs: Tensor, labels: Tensor, *, weight_decay: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Return the reference's penalised scores: L = cross-entropy + weight_decay·‖θ‖², and ‖dL/dθ‖, per sample.

    The reference stores them under the names of the loss and the input-gradient norm, which they are not; they are
    here to reproduce its files. ‖g + 2λθ‖² = ‖g‖² + 4λ⟨g, θ⟩ + 4λ²‖θ‖², and ⟨g, θ⟩ = (p - y)·Jθ takes one more
    backward pass for all samples.

    Returns
    -------
    loss, norm : (n,) float64 each
    """
    norms = grand(module, inputs, labels)
    parameters = [p for p in module.parameters() if p.requires_grad]
    square = sum(float(p.detach().double().square().sum()) for p in parameters)
    training = [m for m in module.modules() if m.training]
    module.eval()
    logits = module(inputs)
    for m in training:
        m.training = True
    # J'u is linear in u, so the gradient of ⟨J'u, θ⟩ in u is Jθ
    u = torch.zeros_like(logits, requires_grad=True)
    pulled = torch.autograd.grad(logits, parameters, u, create_graph=True, allow_unused=True)
    product = torch.stack([(g * p.detach()).sum() for g, p in zip(pulled, parameters, strict=True) if g is not None])
    (tangent,) = torch.autograd.grad(product.sum(), u)
    logits = logits.detach()
    along = (cotangent(logits, labels).double() * tangent.double()).sum(dim=1).cpu()
    loss = F.cross_entropy(logits.double(), labels, reduction="none").cpu() + weight_decay * square
    return loss, (norms.square() + 4 * weight_decay * along + 4 * weight_decay**2 * square).sqrt()


def _narrow(values: Tensor) -> Tensor:
    return values.to(torch.float32, memory_format=torch.contiguous_format)


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros(len(like), dtype=torch.float64, device=like.device)
