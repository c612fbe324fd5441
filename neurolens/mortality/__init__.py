"""Following concepts over a run's checkpoints: pure reductions of scores, with no need of a network.

Each name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurolens.mortality.changes import churn, diversity, extinctions, label_drift
    from neurolens.mortality.events import concept_events, concept_lives
    from neurolens.mortality.exports import export_events, export_tallies, export_trajectories
    from neurolens.mortality.functional import asked_units, functional_death
    from neurolens.mortality.lifetimes import logrank, survival
    from neurolens.mortality.moves import migrations
    from neurolens.mortality.tallies import read_tallies
    from neurolens.mortality.uncertainty import compare, event_counts, event_probability, tau_sensitivity

_HOMES = {
    "asked_units": "functional",
    "churn": "changes",
    "compare": "uncertainty",
    "concept_events": "events",
    "concept_lives": "events",
    "diversity": "changes",
    "event_counts": "uncertainty",
    "event_probability": "uncertainty",
    "export_events": "exports",
    "export_tallies": "exports",
    "export_trajectories": "exports",
    "extinctions": "changes",
    "functional_death": "functional",
    "label_drift": "changes",
    "logrank": "lifetimes",
    "migrations": "moves",
    "read_tallies": "tallies",
    "survival": "lifetimes",
    "tau_sensitivity": "uncertainty",
}

__all__ = [
    "asked_units",
    "churn",
    "compare",
    "concept_events",
    "concept_lives",
    "diversity",
    "event_counts",
    "event_probability",
    "export_events",
    "export_tallies",
    "export_trajectories",
    "extinctions",
    "functional_death",
    "label_drift",
    "logrank",
    "migrations",
    "read_tallies",
    "survival",
    "tau_sensitivity",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
