"""Attributions of all units together by a class of captum.attr, set beside those that go through sets of units."""

import inspect
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from neurolens.attribution.cuts import differentiable
from neurolens.attribution.gradients import Explained, explained_of
from neurolens.attribution.maps import METHODS
from neurolens.effects.interventions import logits_of
from neurolens.errors import ModelMismatchError, NeurolensError, NonFiniteError, StudyError, nearest

Array = npt.NDArray[Any]

PREFIX = "captum."
RANDOM = ("GradientShap", "KernelShap", "Lime", "ShapleyValueSampling")
"""Classes that draw random numbers: the same ones for each sample."""
UNFIT = {
    "DeepLiftShap": "it needs several baselines, and a study gives one; take captum.DeepLift",
    "FeaturePermutation": "it fills in from other samples of a batch; take captum.FeatureAblation",
    "ShapleyValues": "it runs the network for every order of the patches; take captum.ShapleyValueSampling",
}
_GIVEN = {"inputs", "baselines", "target"}
_RANDOM_LOCK = threading.Lock()  # the generators of torch and numpy are one per process


class _Explaining(nn.Module):
    """A network that puts out what is explained of one sample, (B, 1)."""

    def __init__(self, module: nn.Module, target: Tensor, explain: Explained) -> None:
        super().__init__()
        self.module, self.target, self.explain = module, target, explain

    def forward(self, x: Tensor) -> Tensor:
        logits = logits_of(self.module(x), len(x), 1)
        return explained_of(logits, self.target.expand(len(x)), self.explain)[:, None]


def require_methods(methods: Sequence[str]) -> None:
    """Check that methods are known, and that a study can give those of captum what they need.

    Raises
    ------
    StudyError
        If one is unknown (near names are given), named twice, or needs more than a network, samples, a class and a
        baseline.
    """
    for method in methods:
        if methods.count(method) > 1:
            raise StudyError(f"attributions.methods lists {method!r} more than once; name each once")
        if method in METHODS:
            continue
        if not method.startswith(PREFIX):
            known = [*METHODS, *(PREFIX + name for name, why in _classes().items() if not why)]
            raise StudyError(f"attributions.methods has no {method!r}; {nearest(method, known)}")
        name, classes = method.removeprefix(PREFIX), _classes()
        if name not in classes:
            fit = [known for known, why in classes.items() if not why]
            raise StudyError(f"captum.attr has no class {name!r}; {nearest(name, fit)}")
        if classes[name]:
            raise StudyError(f"{method!r} cannot be measured by a study: {classes[name]}")


def captum_versions(methods: Sequence[str]) -> dict[str, str]:
    """Return the version of captum, where one of the methods is captum's."""
    return {"captum": version("captum")} if any(method.startswith(PREFIX) for method in methods) else {}


def captum_map(
    method: str,
    module: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    start: Tensor,
    number: int = 0,
    explain: Explained = "logit",
    grid: int = 14,
    batch_size: int = 32,
) -> Array:
    """Return what a class of captum.attr attributes to one sample, with the defaults of captum.

    Parameters
    ----------
    method
        ``captum.…``, as `require_methods` lets it pass.
    module : nn.Module
        In eval mode; left as it was.
    x, start : (1, channel, y, x)
        The sample, and the baseline, for classes that have one.
    target : (1,) int64
    number
        Of the sample, for errors.
    grid
        What perturbs features takes the patches of such a grid for them; the last ones hold the rows and columns that
        are left over.
    batch_size
        Points of a pass, where the class lets it be chosen.

    Returns
    -------
    map : (channel, y, x) float32

    Raises
    ------
    ModelMismatchError
        If captum cannot explain this network, with its reason.
    NonFiniteError
        If a number is NaN or infinite.
    """
    import captum.attr

    name = method.removeprefix(PREFIX)
    kind = getattr(captum.attr, name)
    known = inspect.signature(kind.attribute).parameters
    each = {"internal_batch_size": batch_size, "perturbations_per_eval": batch_size, "baselines": start}
    given: dict[str, Any] = {option: value for option, value in each.items() if option in known}
    if "feature_mask" in known:
        given["feature_mask"] = _patches(x, grid)
    with differentiable(module), ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # that hooks are set for a while
        if name in RANDOM:
            stack.enter_context(_RANDOM_LOCK)
            stack.enter_context(torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []))
            stack.callback(np.random.set_state, np.random.get_state())
            torch.manual_seed(0)
            np.random.seed(0)
        try:
            explainer = kind(_Explaining(module, target, explain))
            found = explainer.attribute(x.detach().clone(), target=0, **given)
        except NeurolensError:
            raise
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
            reason = str(e).strip().partition("\n")[0]
            raise ModelMismatchError(
                f"{method} cannot explain this network ({reason}); leave it out of attributions.methods"
            ) from e
    array: Array = found.detach().float().cpu().numpy()[0]
    if not np.isfinite(array).all():
        raise NonFiniteError(
            f"sample number {number} has an attribution of NaN or infinity by {method}, and finite numbers were "
            "needed; leave the method, or the checkpoint, out"
        )
    return array


@cache
def _classes() -> Mapping[str, str]:
    """Return the attribution classes of captum.attr, with why a study cannot give one what it needs, or nothing."""
    import captum.attr

    found = {}
    for name, kind in vars(captum.attr).items():
        if inspect.isclass(kind) and hasattr(kind, "attribute"):
            found[name] = UNFIT.get(name) or _lacks(kind)
    return found


def _lacks(kind: type) -> str:
    made = _needed(kind.__init__) - {"self"}  # type: ignore[misc]
    used = _needed(kind.attribute) - {"self", *_GIVEN}  # type: ignore[attr-defined]
    missing = sorted(made - {"model", "forward_func"} | used)
    if missing:
        return f"it needs {', '.join(missing)}; take one for whole networks, e.g. captum.DeepLift"
    if "target" not in inspect.signature(kind.attribute).parameters:  # type: ignore[attr-defined]
        return "it explains no class; take one that does, e.g. captum.DeepLift"
    return ""


def _needed(call: Any) -> set[str]:
    parameters = inspect.signature(call).parameters.values()
    return {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}


def _patches(x: Tensor, grid: int) -> Tensor:
    """Return the number of the patch that each pixel is in, (1, 1, y, x) int64."""
    rows, columns = ((torch.arange(side) // (side // grid)).clamp(max=grid - 1) for side in x.shape[2:])
    return (rows[:, None] * grid + columns)[None, None].to(x.device)
