"""Clusters of units that act alike: features of units, clusters of each layer, how sure they are.

Names are loaded when they are first used: opening a store needs no scikit-learn.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurolens.clusters.cluster_files import read_clusters, read_features, write_clusters
    from neurolens.clusters.embedding import unit_embedding
    from neurolens.clusters.features import unit_features
    from neurolens.clusters.fitting import unit_clusters
    from neurolens.clusters.matrices import standardised
    from neurolens.clusters.opened import clusters_of
    from neurolens.clusters.quality import cluster_stability, cluster_summary

_HOMES = {
    "cluster_stability": "quality",
    "cluster_summary": "quality",
    "clusters_of": "opened",
    "read_clusters": "cluster_files",
    "read_features": "cluster_files",
    "standardised": "matrices",
    "unit_clusters": "fitting",
    "unit_embedding": "embedding",
    "unit_features": "features",
    "write_clusters": "cluster_files",
}

__all__ = [
    "cluster_stability",
    "cluster_summary",
    "clusters_of",
    "read_clusters",
    "read_features",
    "standardised",
    "unit_clusters",
    "unit_embedding",
    "unit_features",
    "write_clusters",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
