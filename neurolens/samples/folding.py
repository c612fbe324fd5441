"""Folding: batch norms absorbed by the convolutions before them, in a copy; the network's function stays the same."""

import copy
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

FOLDS: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    nn.BatchNorm1d: (nn.Linear, nn.Conv1d),
    nn.BatchNorm2d: (nn.Conv2d,),
    nn.BatchNorm3d: (nn.Conv3d,),
}
"""Which layers a batch norm can be folded into (exact types: a subclass may compute something else)."""

ROUNDING = 1e-4
"""Largest difference between the logits, relative to the largest of them, that is rounding."""


def folded(module: nn.Module, *, probe: Tensor, keep: Collection[str] = ()) -> nn.Module:
    """Return an eval-mode copy of ``module`` without parameter gradients, its batch norms folded where that is exact.

    A batch norm is folded where the autograd graph of the probe shows that it alone consumes the output of a layer that
    can absorb it. The copy must also agree with the network on the probe; otherwise an unfolded copy is returned. (The
    graph is that of a real pass: tracing with torch.fx would patch `nn.Module` for all threads.)

    Parameters
    ----------
    module : network
        Never changed.
    probe : (n, …), normalised input, floating point
        A few real inputs, on the module's device.
    keep : paths of modules
        Layers and batch norms that stay as they are.

    Returns
    -------
    copy : network
        Equal to ``module.eval()`` up to float rounding.
    """
    plain = copy.deepcopy(module).eval().requires_grad_(False)
    pairs = _pairs(plain, probe) if any(type(m) in FOLDS for m in plain.modules()) else []
    pairs = [pair for pair in pairs if not {*pair} & {*keep}]
    if not pairs:
        return plain
    candidate = copy.deepcopy(plain)
    for layer, norm in pairs:
        absorb(candidate.get_submodule(layer), candidate.get_submodule(norm))
        parent, _, name = norm.rpartition(".")
        candidate.get_submodule(parent)._modules[name] = nn.Identity()
    return candidate if _agree(plain, candidate, probe) else plain


def absorb(layer: nn.Module, norm: nn.Module) -> None:
    """Replace ``layer`` by norm∘layer, in place: W ← γ/√(σ²+ε)·W and b ← γ/√(σ²+ε)·(b−μ) + β, in float64."""
    kept = layer.weight
    assert isinstance(kept, Tensor)
    weight, mean, var = _float64(kept), _float64(norm.running_mean), _float64(norm.running_var)
    gamma = torch.ones_like(mean) if norm.weight is None else _float64(norm.weight)
    beta = torch.zeros_like(mean) if norm.bias is None else _float64(norm.bias)
    bias = torch.zeros_like(mean) if layer.bias is None else _float64(layer.bias)
    scale = gamma / torch.sqrt(var + float(norm.eps))  # type: ignore[arg-type]
    weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    layer.weight = nn.Parameter(weight.to(kept), requires_grad=False)
    layer.bias = nn.Parameter(((bias - mean) * scale + beta).to(kept), requires_grad=False)


def _float64(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value.detach().cpu().double()  # MPS has no float64


def _pairs(module: nn.Module, probe: Tensor) -> list[tuple[str, str]]:
    """Return the names of (layer, batch norm) pairs, each called once, the one feeding the other and nothing else."""
    shared = _shared(module)
    names = {m: name for name, m in module.named_modules() if id(m) not in shared}
    calls: Counter[nn.Module] = Counter()
    made: dict[Any, nn.Module] = {}  # the graph node of a layer's output -> the layer
    fed: list[tuple[Any, nn.Module]] = []

    def saw(called: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls[called] += 1
        if type(called) not in FOLDS and isinstance(output, Tensor) and output.grad_fn is not None:
            made[output.grad_fn] = called

    def feeds(norm: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            fed.append((args[0].grad_fn, norm))

    layers = {kind for kinds in FOLDS.values() for kind in kinds} | set(FOLDS)
    watched = [m for m in names if type(m) in layers]
    handles = [m.register_forward_hook(saw) for m in watched]
    handles += [m.register_forward_pre_hook(feeds) for m in watched if type(m) in FOLDS]
    try:
        with torch.enable_grad():
            output = module(probe.detach().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    uses = _uses(output.grad_fn) if isinstance(output, Tensor) else Counter()
    return [
        (names[made[node]], names[norm])
        for node, norm in fed
        if node in made and uses[node] == 1 and calls[made[node]] == calls[norm] == 1 and _foldable(made[node], norm)
    ]


def _uses(last: Any) -> Counter[Any]:
    """How often each node of the autograd graph that ends in ``last`` is consumed."""
    uses: Counter[Any] = Counter()
    seen, rest = {last}, [last]
    while rest:
        node = rest.pop()
        for before, _ in node.next_functions if node is not None else ():
            if before is not None:
                uses[before] += 1
                if before not in seen:
                    seen.add(before)
                    rest.append(before)
    return uses


def _foldable(layer: nn.Module, norm: nn.Module) -> bool:
    """Tell whether this batch norm has running statistics, and this layer a weight that can absorb them."""
    mean, weight = norm.running_mean, layer.weight
    fits = isinstance(mean, Tensor) and isinstance(weight, Tensor) and len(mean) == len(weight)
    return fits and type(layer) in FOLDS[type(norm)]


def _shared(module: nn.Module) -> set[int]:
    """Ids of the modules that share a parameter with another one, or hang at two places of the tree."""
    owners = Counter(id(p) for m in module.modules() for p in m.parameters(recurse=False))
    places = Counter(id(m) for _, m in module.named_modules(remove_duplicate=False))
    return {
        id(m)
        for m in module.modules()
        if places[id(m)] > 1 or any(owners[id(p)] > 1 for p in m.parameters(recurse=False))
    }


def _agree(plain: nn.Module, candidate: nn.Module, probe: Tensor) -> bool:
    """Compare the two networks on the probe: folding errs by rounding only, a wrong pair by far more."""
    try:
        with torch.no_grad():
            expected, found = plain(probe), candidate(probe)
    except AttributeError:  # the network's own code reads an attribute of the batch norm that is gone
        return False
    if expected.shape != found.shape or not bool(torch.isfinite(expected).all()):
        return False
    return bool((found - expected).abs().max() <= ROUNDING * expected.abs().max())
