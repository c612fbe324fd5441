"""Sample dynamics: what each checkpoint makes of each sample (needs torch), and what a run's history says of it.

Names are imported when they are asked for, so that the reductions do not import torch.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "neurolens.samples.measure": ("MEASUREMENT_VERSION", "key_config", "measure_batch", "parts"),
    "neurolens.samples.grand": ("GradientNorms", "seed_scores"),
    "neurolens.samples.folding": ("folded",),
    "neurolens.samples.curvature": ("rademacher",),
    "neurolens.samples.softmax": ("statistics",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
