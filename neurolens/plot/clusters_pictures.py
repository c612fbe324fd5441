"""The pictures of a clusters cube, drawn and captioned."""

import json
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from neurolens.clusters import cluster_stability, cluster_summary, clusters_of, unit_embedding
from neurolens.clusters.cluster_files import file_names
from neurolens.clusters.matrices import chosen, layers_or_one
from neurolens.errors import MissingMeasurementError
from neurolens.plot.clusters import NAMED, cluster_map, cluster_quality, cluster_scatter, quality_height
from neurolens.plot.picture import Picture
from neurolens.plot.style import new_figure, styled
from neurolens.units.inputs import labels_of, series_of

LAYERS, NUMBERS = 6, 4
"""Of how many layers, and of how many numbers of clusters each, units are drawn."""
STARTS = 5
"""Other seeds that clusters are found again with."""


@dataclass(frozen=True)
class ClusterNumbers:
    """What is drawn of a clusters cube: its last checkpoint with clusters.

    Attributes
    ----------
    features : Dataset over (unit,)
    clusters : (k, unit)
    quality : Dataset over (k, layer)
        `silhouette`, and `stability` over a few seeds; NaN where there is no chance in clusters.
    where, source : str
        The checkpoint, and what the features are of, in words; empty where the cube does not say.
    notes : tuple of str
        What is missing, in words.
    """

    features: xr.Dataset
    clusters: xr.DataArray
    quality: xr.Dataset
    where: str
    source: str
    notes: tuple[str, ...]


def cluster_numbers(ds: xr.Dataset) -> ClusterNumbers:
    """Gather what is drawn of the opened clusters cube. **Eager**.

    Raises
    ------
    MissingMeasurementError
        If no checkpoint has clusters.
    """
    notes = []
    try:
        every = clusters_of(ds)
    except MissingMeasurementError as error:
        notes.append(f"Pictures of clusters leave out what is missing: {error}")
        every = clusters_of(ds, missing="drop")
    series = series_of(every)
    last = every if series is None else every.isel({series: -1})
    where = "" if series is None else f"{series} {np.atleast_1d(labels_of(every, series))[-1]}"
    at = ds
    if series is not None:
        position = np.atleast_1d(labels_of(every, series))[-1]
        at = ds.isel({series: int(np.flatnonzero(np.asarray(labels_of(ds, series)) == position)[-1])})
    features = at[list(NAMED)].load()
    quality = cluster_summary(features, last)[["silhouette"]]
    quality["stability"] = cluster_stability(features, last, starts=STARTS)["stability"]
    return ClusterNumbers(features, last, quality, where, _source(ds), tuple(notes))


def cluster_pictures(ds: xr.Dataset, *, given: ClusterNumbers | None = None) -> list[Picture]:
    """Draw every picture that a clusters cube allows, at its last checkpoint that has clusters. **Eager**.

    Parameters
    ----------
    ds : the opened clusters cube
    given : ClusterNumbers, optional
        What `cluster_numbers` returned, if it was computed already.

    Raises
    ------
    MissingMeasurementError
        If no checkpoint has clusters.
    """
    given = given or cluster_numbers(ds)
    names = layers_or_one(given.clusters).names
    files = file_names(names)
    with styled():
        drawn = [_quality(given, len(names))]
        drawn += [_units(given, layer, files[layer], left=len(names) - LAYERS) for layer in names[:LAYERS]]
    return drawn


def _source(ds: xr.Dataset) -> str:
    """Say which images features are of, as the settings of the cube have it."""
    told = json.loads(ds.attrs.get("settings", "{}")).get("parts", {}).get("features", {})
    if "images" not in told:
        return ""
    drawn = "the first ones" if told["sample"] == "first" else "as many of each class"
    high = f"the {told['quantile']:g} quantile of the layer" if "quantile" in told else f"{told['threshold']:g}"
    return f"up to {told['images']:,} images, {drawn}; rate above {high}"


def _quality(given: ClusterNumbers, layers: int) -> Picture:
    figure = new_figure((9.6, quality_height(layers)))
    sure = bool(given.quality["stability"].notnull().any())
    cluster_quality(given.quality, ax=figure.add_subplot(1, 2, 1) if sure else figure.add_subplot())
    if sure:
        ax = cluster_quality(given.quality, name="stability", ax=figure.add_subplot(1, 2, 2))
        ax.set_yticks([])
        ax.set_ylabel("")
    best = given.quality["silhouette"]
    parts = [f"silhouettes of {float(best.min()):.2f} to {float(best.max()):.2f}"] if best.notnull().any() else []
    if sure:
        least = given.quality["stability"]
        parts.append(
            f"agreement with {STARTS} other seeds (adjusted Rand index) of {float(least.min()):.2f} to "
            f"{float(least.max()):.2f}"
        )
    caption = f"Clusters of units{_at(given)}: {'; '.join(parts) or 'nothing to compare'}."
    caption += f" Statistics are of {given.source}." if given.source else ""
    return Picture("clusters_quality", "How sure clusters of units are", caption, f"Tables. {caption}", figure)


def _units(given: ClusterNumbers, layer: str, name: str, *, left: int) -> Picture:
    numbers = [int(k) for k in given.clusters["k"].to_numpy()][:NUMBERS]
    picked = layer or None
    plane = unit_embedding(given.features, layers=picked)
    own = chosen(given.clusters, picked)
    figure = Figure(figsize=(4.1 * len(numbers), 7.2), layout=ConstrainedLayoutEngine(wspace=0.06, hspace=0.04))
    sizes = []
    for column, k in enumerate(numbers, start=1):
        solid: Axes = figure.add_subplot(2, len(numbers), column, projection="3d")
        cluster_scatter(given.features, given.clusters, k=k, layer=picked, ax=solid)
        flat = cluster_map(plane, own, k=k, ax=figure.add_subplot(2, len(numbers), len(numbers) + column))
        flat.set_title("")
        for ax in (solid, flat):
            legend = ax.get_legend()
            assert legend is not None
            legend.remove()
        flat.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2, title="cluster")
        sizes.append(np.bincount(own.sel(k=k).to_numpy()).tolist())
    largest = ", ".join(f"{max(size):,} of {sum(size):,} units at k = {k}" for size, k in zip(sizes, numbers))
    caption = f"Units of {layer or 'the network'}{_at(given)} by rate, mean and variance (above), and beside those "
    caption += f"that they are like (t-SNE, below); diamonds are centroids. The largest cluster has {largest}."
    caption += f" {left:,} further layers are not drawn." if left > 0 and layer else ""
    title = f"Clusters of units, {layer}" if layer else "Clusters of units"
    return Picture(f"clusters_{name}", title, caption, f"Scatter plots. {caption}", figure)


def _at(given: ClusterNumbers) -> str:
    return f" at {given.where}" if given.where else ""
