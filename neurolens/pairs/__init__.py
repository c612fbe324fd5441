"""What each unit says through each head of an attention pool: a scalar per image times a fixed vector.

Names are loaded when they are first used: reductions need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurolens.pairs.measure import scalars
    from neurolens.pairs.pool import Pool, embeddings, resampled
    from neurolens.pairs.totals import ScalarTotals
    from neurolens.pairs.writing import along, dead_vectors, factors, pair_vectors, vector_norms

_HOMES = {
    "Pool": "pool",
    "ScalarTotals": "totals",
    "along": "writing",
    "dead_vectors": "writing",
    "embeddings": "pool",
    "factors": "writing",
    "pair_vectors": "writing",
    "resampled": "pool",
    "scalars": "measure",
    "vector_norms": "writing",
}

__all__ = [
    "Pool",
    "ScalarTotals",
    "along",
    "dead_vectors",
    "embeddings",
    "factors",
    "pair_vectors",
    "resampled",
    "scalars",
    "vector_norms",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
