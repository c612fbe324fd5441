"""Attributions by unit cluster: what each group of units carries of a network's answer to its input.

Names are loaded when they are first used: reductions need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurolens.attribution.classwise import merge_classes, per_class
    from neurolens.attribution.controlled import control, split_controls
    from neurolens.attribution.cuts import Cuts, find_cuts
    from neurolens.attribution.decomposition import decompose
    from neurolens.attribution.gradients import basis_gradients, quadrature
    from neurolens.attribution.maps import attributions, combined, completeness
    from neurolens.attribution.masks import cluster_masks, complements, controls, unions, unit_masks
    from neurolens.attribution.planner import Cost, Plan, plan
    from neurolens.attribution.statistics import compare, held_out

_HOMES = {
    "Cost": "planner",
    "Cuts": "cuts",
    "Plan": "planner",
    "attributions": "maps",
    "basis_gradients": "gradients",
    "cluster_masks": "masks",
    "combined": "maps",
    "compare": "statistics",
    "complements": "masks",
    "completeness": "maps",
    "control": "controlled",
    "controls": "masks",
    "decompose": "decomposition",
    "find_cuts": "cuts",
    "held_out": "statistics",
    "merge_classes": "classwise",
    "per_class": "classwise",
    "plan": "planner",
    "quadrature": "gradients",
    "split_controls": "controlled",
    "unions": "masks",
    "unit_masks": "masks",
}

__all__ = [
    "Cost",
    "Cuts",
    "Plan",
    "attributions",
    "basis_gradients",
    "cluster_masks",
    "combined",
    "compare",
    "complements",
    "completeness",
    "control",
    "controls",
    "decompose",
    "find_cuts",
    "held_out",
    "merge_classes",
    "per_class",
    "plan",
    "quadrature",
    "split_controls",
    "unions",
    "unit_masks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
