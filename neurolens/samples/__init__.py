"""Sample dynamics: measured per checkpoint (needs torch), reduced over the series (does not).

Every name is loaded when it is first used, so that a reduction never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurolens.samples.cumulative import aum, csg, csl, curvature
    from neurolens.samples.detection import evaluate_detection
    from neurolens.samples.dynamics import cartography, forgetting, second_split_forgetting
    from neurolens.samples.external import align, binned_curve, compare, load_scores
    from neurolens.samples.grand import GradientNorms, seed_scores
    from neurolens.samples.influence import memorization_influence
    from neurolens.samples.label_quality import normalized_margin, self_confidence
    from neurolens.samples.learning import learning_time
    from neurolens.samples.measure import measure_batch
    from neurolens.samples.ranking import agreement
    from neurolens.samples.seed_files import export_csl, read_samples

_HOMES = {
    "GradientNorms": "grand",
    "agreement": "ranking",
    "align": "external",
    "aum": "cumulative",
    "binned_curve": "external",
    "cartography": "dynamics",
    "compare": "external",
    "csg": "cumulative",
    "csl": "cumulative",
    "curvature": "cumulative",
    "evaluate_detection": "detection",
    "export_csl": "seed_files",
    "forgetting": "dynamics",
    "learning_time": "learning",
    "load_scores": "external",
    "measure_batch": "measure",
    "memorization_influence": "influence",
    "normalized_margin": "label_quality",
    "read_samples": "seed_files",
    "second_split_forgetting": "dynamics",
    "seed_scores": "grand",
    "self_confidence": "label_quality",
}

__all__ = [
    "GradientNorms",
    "agreement",
    "align",
    "aum",
    "binned_curve",
    "cartography",
    "compare",
    "csg",
    "csl",
    "curvature",
    "evaluate_detection",
    "export_csl",
    "forgetting",
    "learning_time",
    "load_scores",
    "measure_batch",
    "memorization_influence",
    "normalized_margin",
    "read_samples",
    "second_split_forgetting",
    "seed_scores",
    "self_confidence",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
