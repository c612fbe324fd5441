"""Attributions by unit cluster: what each group of units carries of a network's answer to its input.

Names are loaded when they are first used: reductions need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurolens.attribution.classwise import merge_classes, per_class
    from neurolens.attribution.controlled import control, split_controls
    from neurolens.attribution.curves import perturbation_curves
    from neurolens.attribution.cuts import Cuts, find_cuts
    from neurolens.attribution.decomposition import decompose
    from neurolens.attribution.exported_files import export_attributions
    from neurolens.attribution.faithfulness import faithfulness
    from neurolens.attribution.fills import blur_fill, filled, road_fill
    from neurolens.attribution.gradients import basis_gradients
    from neurolens.attribution.integrals import quadrature
    from neurolens.attribution.maps import attributions, combined, completeness
    from neurolens.attribution.masks import cluster_masks, complements, controls, unions, unit_masks
    from neurolens.attribution.planner import Cost, Plan, plan
    from neurolens.attribution.reading import accuracy, map_scores
    from neurolens.attribution.scores import entropy, gini, patch_table, ranking, sparsity
    from neurolens.attribution.statistics import compare, held_out
    from neurolens.attribution.summaries import filtered_summary

_HOMES = {
    "Cost": "planner",
    "Cuts": "cuts",
    "Plan": "planner",
    "accuracy": "reading",
    "attributions": "maps",
    "basis_gradients": "gradients",
    "blur_fill": "fills",
    "cluster_masks": "masks",
    "combined": "maps",
    "compare": "statistics",
    "complements": "masks",
    "completeness": "maps",
    "control": "controlled",
    "controls": "masks",
    "decompose": "decomposition",
    "entropy": "scores",
    "export_attributions": "exported_files",
    "faithfulness": "faithfulness",
    "filled": "fills",
    "filtered_summary": "summaries",
    "find_cuts": "cuts",
    "gini": "scores",
    "held_out": "statistics",
    "map_scores": "reading",
    "merge_classes": "classwise",
    "patch_table": "scores",
    "per_class": "classwise",
    "perturbation_curves": "curves",
    "plan": "planner",
    "quadrature": "integrals",
    "ranking": "scores",
    "road_fill": "fills",
    "sparsity": "scores",
    "split_controls": "controlled",
    "unions": "masks",
    "unit_masks": "masks",
}

__all__ = [
    "Cost",
    "Cuts",
    "Plan",
    "accuracy",
    "attributions",
    "basis_gradients",
    "blur_fill",
    "cluster_masks",
    "combined",
    "compare",
    "complements",
    "completeness",
    "control",
    "controls",
    "decompose",
    "entropy",
    "export_attributions",
    "faithfulness",
    "filled",
    "filtered_summary",
    "find_cuts",
    "gini",
    "held_out",
    "map_scores",
    "merge_classes",
    "patch_table",
    "per_class",
    "perturbation_curves",
    "plan",
    "quadrature",
    "ranking",
    "road_fill",
    "sparsity",
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
