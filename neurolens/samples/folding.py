"""Folding: batch norms absorbed by the convolutions before them, in a copy; the network's function stays the same."""

import copy
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, fx, nn

FOLDS: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    nn.BatchNorm1d: (nn.Linear, nn.Conv1d),
    nn.BatchNorm2d: (nn.Conv2d,),
    nn.BatchNorm3d: (nn.Conv3d,),
}
"""Which layers a batch norm can be folded into (exact types: a subclass may compute something else)."""

_UNTRACEABLE = (
    fx.proxy.TraceError,
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    LookupError,
    AssertionError,
)


def folded(module: nn.Module, *, probe: Tensor) -> nn.Module:
    """Return an eval-mode copy of ``module`` without parameter gradients, its batch norms folded where that is exact.

    Pairs are found in the traced graph (torch.fx), or, where the network cannot be traced, as neighbours in an
    `nn.Sequential`. The copy must agree with the network on ``probe``; otherwise an unfolded copy is returned.

    Parameters
    ----------
    module : network
        Never changed.
    probe : (n, …), normalised input
        A few real inputs, on the module's device.

    Returns
    -------
    copy : network
        Equal to ``module.eval()`` up to float rounding.
    """
    plain = copy.deepcopy(module).eval().requires_grad_(False)
    if not any(type(m) in FOLDS for m in plain.modules()):
        return plain
    candidate: nn.Module = copy.deepcopy(plain)
    try:
        candidate = fx.symbolic_trace(candidate)
    except _UNTRACEABLE:  # fx runs the network's own code on proxies, which can fail in any of these ways
        candidate = copy.deepcopy(plain)
        _fold_sequentials(candidate)
    else:
        _fold_graph(candidate)
    return candidate if _agree(plain, candidate, probe) else plain


def absorb(layer: nn.Module, norm: nn.Module) -> None:
    """Replace ``layer`` by norm∘layer, in place: W ← γ/√(σ²+ε)·W and b ← γ/√(σ²+ε)·(b−μ) + β, in float64."""
    weight = _float64(layer.weight)
    mean, var = _float64(norm.running_mean), _float64(norm.running_var)
    gamma = torch.ones_like(mean) if norm.weight is None else _float64(norm.weight)
    beta = torch.zeros_like(mean) if norm.bias is None else _float64(norm.bias)
    bias = torch.zeros_like(mean) if layer.bias is None else _float64(layer.bias)
    scale = gamma / torch.sqrt(var + float(norm.eps))  # type: ignore[arg-type]
    kept = layer.weight
    assert isinstance(kept, Tensor)
    new = (weight * scale.reshape(-1, *[1] * (weight.ndim - 1))).to(kept)
    layer.weight = nn.Parameter(new, requires_grad=False)
    layer.bias = nn.Parameter(((bias - mean) * scale + beta).to(kept), requires_grad=False)


def _float64(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value.detach().cpu().double()  # MPS has no float64


def _foldable(layer: nn.Module | None, norm: nn.Module | None) -> bool:
    """Tell whether a batch norm with running statistics follows a layer that can absorb it."""
    if layer is None or norm is None or type(layer) not in FOLDS.get(type(norm), ()):
        return False
    mean, weight = norm.running_mean, layer.weight
    return isinstance(mean, Tensor) and isinstance(weight, Tensor) and len(mean) == len(weight)


def _shared(module: nn.Module) -> set[int]:
    """Ids of the modules that share a parameter with another one, or hang at two places of the tree."""
    owners = Counter(id(p) for m in module.modules() for p in m.parameters(recurse=False))
    places = Counter(id(m) for _, m in module.named_modules(remove_duplicate=False))
    return {
        id(m)
        for m in module.modules()
        if places[id(m)] > 1 or any(owners[id(p)] > 1 for p in m.parameters(recurse=False))
    }


def _fold_graph(traced: fx.GraphModule) -> None:
    """Fold every batch norm whose only input is a layer that is called once and feeds nothing else."""
    modules = dict(traced.named_modules(remove_duplicate=False))
    calls = Counter(id(modules[str(n.target)]) for n in traced.graph.nodes if n.op == "call_module")
    barred = {i for i, n in calls.items() if n > 1} | _shared(traced)
    read = {str(n.target).rpartition(".")[0] for n in traced.graph.nodes if n.op == "get_attr"}
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or len(node.args) != 1 or not isinstance(before := node.args[0], fx.Node):
            continue
        if before.op != "call_module" or len(before.users) != 1:
            continue
        norm, layer = modules[str(node.target)], modules[str(before.target)]
        if (
            not _foldable(layer, norm)
            or {id(norm), id(layer)} & barred
            or {str(node.target), str(before.target)} & read
        ):
            continue
        absorb(layer, norm)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.recompile()


def _sequentials(module: nn.Module) -> Iterator[nn.Sequential]:
    for child in module.modules():
        if isinstance(child, nn.Sequential) and type(child).forward is nn.Sequential.forward:
            yield child


def _fold_sequentials(module: nn.Module) -> None:
    """Fold the batch norms that directly follow their layer in an `nn.Sequential`."""
    barred = _shared(module)
    for sequence in _sequentials(module):
        names = list(sequence._modules)
        for first, second in pairwise(names):
            layer, norm = sequence._modules[first], sequence._modules[second]
            if layer is not None and norm is not None and _foldable(layer, norm) and not {id(layer), id(norm)} & barred:
                absorb(layer, norm)
                sequence._modules[second] = nn.Identity()


def _agree(plain: nn.Module, candidate: nn.Module, probe: Tensor) -> bool:
    """Compare the two networks on the probe: folding errs by rounding only, a wrong pair by far more."""
    with torch.no_grad():
        expected, found = plain(probe), candidate(probe)
    if expected.shape != found.shape or not torch.isfinite(expected).all():
        return False
    return bool((found - expected).abs().max() <= 1e-3 * expected.abs().max().clamp(min=1e-3))
