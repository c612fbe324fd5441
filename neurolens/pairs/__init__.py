"""What each unit says through each head of an attention pool: a scalar per image times a fixed vector.

Names are loaded when they are first used: reductions need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurolens.pairs.measure import scalars
    from neurolens.pairs.phrases import (
        PASCAL_CONTEXT,
        embed_phrases,
        imagenet_classes,
        openai_templates,
        read_embeddings,
        read_phrases,
        read_templates,
        write_embeddings,
    )
    from neurolens.pairs.pool import Pool, embeddings, resampled
    from neurolens.pairs.totals import ScalarTotals
    from neurolens.pairs.writing import along, dead_vectors, factors, pair_vectors, vector_norms

_HOMES = {
    "PASCAL_CONTEXT": "phrases",
    "Pool": "pool",
    "ScalarTotals": "totals",
    "along": "writing",
    "dead_vectors": "writing",
    "embed_phrases": "phrases",
    "embeddings": "pool",
    "factors": "writing",
    "imagenet_classes": "phrases",
    "openai_templates": "phrases",
    "pair_vectors": "writing",
    "read_embeddings": "phrases",
    "read_phrases": "phrases",
    "read_templates": "phrases",
    "resampled": "pool",
    "scalars": "measure",
    "vector_norms": "writing",
    "write_embeddings": "phrases",
}

__all__ = [
    "PASCAL_CONTEXT",
    "Pool",
    "ScalarTotals",
    "along",
    "dead_vectors",
    "embed_phrases",
    "embeddings",
    "factors",
    "imagenet_classes",
    "openai_templates",
    "pair_vectors",
    "read_embeddings",
    "read_phrases",
    "read_templates",
    "resampled",
    "scalars",
    "vector_norms",
    "write_embeddings",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
