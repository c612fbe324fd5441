"""Neurolens: the longitudinal microscope for neural networks.

Every name is loaded when it is first used: xarray imports this package whenever it looks for an engine.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurolens import attribution, clusters, mortality, plot, samples, schema, store, units
    from neurolens.attribution import filtered_summary
    from neurolens.backend import open_run
    from neurolens.dissection import best_concept, detectors, iou
    from neurolens.mortality import (
        churn,
        concept_events,
        concept_lives,
        diversity,
        extinctions,
        functional_death,
        label_drift,
        migrations,
        survival,
    )
    from neurolens.samples import (
        agreement,
        aum,
        cartography,
        csg,
        csl,
        evaluate_detection,
        forgetting,
        learning_time,
        memorization_influence,
    )
    from neurolens.samples.cumulative import curvature
    from neurolens.spectral import spectra, spectrum_metrics
    from neurolens.study import Study, load_study
    from neurolens.units import class_selectivity, dormancy_summary, lifetime_sparseness, positional_information
    from neurolens.units.dormancy import dormancy, dormant
    from neurolens.units.transitions import transitions

__version__ = "0.1.0"

_MODULES = ("attribution", "clusters", "mortality", "plot", "samples", "schema", "store", "units")
_HOMES = (
    {
        "Study": "neurolens.study",
        "curvature": "neurolens.samples.cumulative",
        "filtered_summary": "neurolens.attribution",
        "load_study": "neurolens.study",
        "open_run": "neurolens.backend",
    }
    | dict.fromkeys(
        (
            "agreement",
            "aum",
            "cartography",
            "csg",
            "csl",
            "evaluate_detection",
            "forgetting",
            "learning_time",
            "memorization_influence",
        ),
        "neurolens.samples",
    )
    | dict.fromkeys(
        (
            "class_selectivity",
            "dormancy",
            "dormancy_summary",
            "dormant",
            "lifetime_sparseness",
            "positional_information",
            "transitions",
        ),
        "neurolens.units",
    )
    | dict.fromkeys(
        (
            "churn",
            "concept_events",
            "concept_lives",
            "diversity",
            "extinctions",
            "functional_death",
            "label_drift",
            "migrations",
            "survival",
        ),
        "neurolens.mortality",
    )
    | dict.fromkeys(("spectra", "spectrum_metrics"), "neurolens.spectral")
    | dict.fromkeys(("best_concept", "detectors", "iou"), "neurolens.dissection")
)

__all__ = [
    "Study",
    "agreement",
    "attribution",
    "aum",
    "best_concept",
    "cartography",
    "churn",
    "class_selectivity",
    "clusters",
    "concept_events",
    "concept_lives",
    "csg",
    "csl",
    "curvature",
    "detectors",
    "diversity",
    "dormancy",
    "dormancy_summary",
    "dormant",
    "evaluate_detection",
    "extinctions",
    "filtered_summary",
    "forgetting",
    "functional_death",
    "iou",
    "label_drift",
    "learning_time",
    "lifetime_sparseness",
    "load_study",
    "memorization_influence",
    "migrations",
    "mortality",
    "open_run",
    "plot",
    "positional_information",
    "samples",
    "schema",
    "spectra",
    "spectrum_metrics",
    "store",
    "survival",
    "transitions",
    "units",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
