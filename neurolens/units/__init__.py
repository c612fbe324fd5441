"""Units across checkpoints: measured per checkpoint (needs torch), reduced over the series (does not).

Two functions have the name of the module that they are in and are loaded with the package; the rest when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neurolens.units.dormancy import dormancy, dormant
from neurolens.units.transitions import transitions

if TYPE_CHECKING:
    from neurolens.units.firing import alive, firing_bound, firing_density
    from neurolens.units.quantiles import quantile
    from neurolens.units.selectivity import (
        class_selectivity,
        dormant_for_one,
        lifetime_sparseness,
        positional_information,
        preferred_class,
    )
    from neurolens.units.summary import dormancy_summary
    from neurolens.units.utility import contribution_utility, weight_magnitude

_HOMES = {
    "alive": "firing",
    "class_selectivity": "selectivity",
    "contribution_utility": "utility",
    "dormancy_summary": "summary",
    "dormant_for_one": "selectivity",
    "firing_bound": "firing",
    "firing_density": "firing",
    "lifetime_sparseness": "selectivity",
    "positional_information": "selectivity",
    "preferred_class": "selectivity",
    "quantile": "quantiles",
    "weight_magnitude": "utility",
}

__all__ = [
    "alive",
    "class_selectivity",
    "contribution_utility",
    "dormancy",
    "dormancy_summary",
    "dormant",
    "dormant_for_one",
    "firing_bound",
    "firing_density",
    "lifetime_sparseness",
    "positional_information",
    "preferred_class",
    "quantile",
    "transitions",
    "weight_magnitude",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
