"""What a unit does for the outputs of its network: measured by taking it away, and by its conductance.

Each name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurolens.effects.ablation import ablate
    from neurolens.effects.conductance import layer_conductance
    from neurolens.effects.interventions import intervening, without_units

_HOMES = {
    "ablate": "ablation",
    "intervening": "interventions",
    "layer_conductance": "conductance",
    "without_units": "interventions",
}

__all__ = ["ablate", "intervening", "layer_conductance", "without_units"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
