"""The key figures of clusters of units: how many units in how many layers, and how sure their clusters are."""

import numpy as np

from neurolens.clusters.matrices import layers_or_one
from neurolens.plot.clusters_pictures import STARTS, ClusterNumbers
from neurolens.report.records import KeyFigure


def cluster_figures(given: ClusterNumbers) -> list[KeyFigure]:
    """Gather the numbers of a clusters cube that say most about it.

    Parameters
    ----------
    given : ClusterNumbers
        What `neurolens.plot.cluster_numbers` returned for it.
    """
    layers = len(layers_or_one(given.clusters).names)
    numbers = [int(k) for k in given.clusters["k"].to_numpy()]
    where = f"in {layers} layer{'s' if layers > 1 else ''}, k = {', '.join(map(str, numbers))}"
    found = [
        KeyFigure(
            f"{given.clusters.sizes['unit']:,}", "units in clusters", "; ".join(filter(None, [where, given.source]))
        )
    ]
    for name, called, meaning in (
        ("silhouette", "best silhouette of clusters", "mean over units; 1 is far apart, 0 is in between"),
        (
            "stability",
            "least stable clusters",
            f"adjusted Rand index with clusters of {STARTS} other seeds; 1 is the same",
        ),
    ):
        array = given.quality[name]
        if not array.notnull().any():
            continue
        flat = array.stack(place=array.dims).dropna("place")
        values = np.asarray(flat)
        at = flat.isel(place=int(values.argmax() if name == "silhouette" else values.argmin()))
        told = [str(at[coord].item()) if coord == "layer" else f"k = {int(at[coord])}" for coord in array.dims]
        found.append(KeyFigure(f"{float(at):.2f}", called, f"{', '.join(reversed(told))}: {meaning}"))
    return found
