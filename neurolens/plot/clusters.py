"""Clusters of units: what tells them apart, who is near whom, how sure they are, and what a filter keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from neurolens.clusters import clusters_of, unit_embedding
from neurolens.clusters.matrices import layers_or_one
from neurolens.errors import SchemaError, nearest
from neurolens.plot.style import (
    BLUE,
    COLOURS,
    GREY,
    INK,
    MARKERS,
    PALE,
    VERMILLION,
    cut,
    empty,
    new_axes,
    short_names,
    styled,
)
from neurolens.units.inputs import listed, series_of
from neurolens.units.layers_of import held

ELEVATION, AZIMUTH = 30, 120
"""From where the reference looks at statistics, in degrees."""

NAMED = {"rate": "rate", "mean": "mean activation", "variance": "variance"}
"""The statistics that are drawn, in order of the axes, and what they are called there."""

QUALITIES = {"silhouette": "Silhouette of clusters", "stability": "Agreement with other seeds (ARI)"}
SIZE = 14.0
"""Area of a point, in points squared."""


@dataclass(frozen=True)
class Points:
    """The units of one layer as they are drawn: statistics (unit, 3), the cluster of each (unit,), and names of both.

    ``clusters`` is None where units are not told apart by them.
    """

    values: np.ndarray
    clusters: np.ndarray | None
    layer: str
    k: int


def cluster_scatter(
    features: xr.Dataset,
    clusters: xr.DataArray | None = None,
    *,
    k: int | None = None,
    layer: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the units of a layer by rate, mean and variance, coloured by cluster, with centroids. **Eager**.

    Parameters
    ----------
    features : Dataset over (unit,)
        `rate`, `mean` and `variance` at one checkpoint: from `unit_features`, or the opened clusters cube.
    clusters : int, (unit,) or (k, unit), optional
        From `unit_clusters`; those of the cube by default.
    k, layer : optional
        Which clusters and whose, where there are several.
    ax : Axes with ``projection="3d"``, optional

    Raises
    ------
    SchemaError
        If there are several checkpoints, layers or numbers of clusters and none is named, or one is not there; if
        statistics are missing, or ``ax`` is flat.
    """
    found = points_of(features, clusters, k=k, layer=layer)
    assert found.clusters is not None
    with styled():
        ax = _solid_axes(ax)
        ax.set_title(_title(found))
        solid: Any = ax
        for cluster in np.unique(found.clusters).tolist():
            rows = found.values[found.clusters == cluster]
            solid.scatter(*rows.T, label=counted(cluster, rows), depthshade=False, **_look(cluster))
        for cluster in np.unique(found.clusters).tolist():
            middle = found.values[found.clusters == cluster].mean(axis=0)
            solid.scatter(*middle[:, None], **_diamond(cluster))
        _solid(ax)
        ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), title="cluster", alignment="left")
        return ax


def cluster_map(
    embedding: xr.DataArray,
    clusters: xr.DataArray,
    *,
    k: int | None = None,
    layer: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the units of a layer on a plane, near those that they are like, coloured by cluster. **Eager**.

    Parameters
    ----------
    embedding : (unit, coordinate)
        From `neurolens.clusters.unit_embedding`, at one checkpoint.
    clusters : int, (unit,) or (k, unit)
        From `unit_clusters`.
    k, layer : optional
        Which clusters and whose, where there are several.

    Raises
    ------
    SchemaError
        As for `cluster_scatter`.
    """
    _one_checkpoint(embedding)
    units, name = _of_layer(embedding, layer)
    labels, number = _labels(clusters, k, units)
    found = Points(np.asarray(embedding, np.float64)[units], labels, name, number)
    with styled():
        ax = new_axes(ax, size=(5.2, 4.0))
        ax.set_title(_title(found))
        for cluster in np.unique(labels).tolist():
            rows = found.values[labels == cluster]
            ax.scatter(*rows.T, label=counted(cluster, rows), **_look(cluster))
        _plane(ax, embedding)
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), title="cluster", alignment="left")
        return ax


def control_scatter(
    features: xr.Dataset,
    kept: Any,
    *,
    layer: str | None = None,
    embedding: xr.DataArray | None = None,
    axes: tuple[Axes, Axes] | None = None,
) -> tuple[Axes, Axes]:
    """Draw which units of a layer a set keeps and which it filters, by their statistics and on a plane. **Eager**.

    A random set lies scattered over both; a cluster does not.

    Parameters
    ----------
    features : Dataset over (unit,)
        `rate`, `mean` and `variance` at one checkpoint: from `unit_features`, or the opened clusters cube.
    kept : bool (units of the layer,), or a UnitSet
        The units that the gradient goes through. A `neurolens.attribution.UnitSet` names its layer.
    layer : optional
        Whose units they are, where there are several layers.
    embedding : (unit, coordinate), optional
        From `neurolens.clusters.unit_embedding`; made here by default.
    axes : the first with ``projection="3d"``, optional

    Returns
    -------
    The Axes of statistics, and those of the plane.

    Raises
    ------
    SchemaError
        As for `cluster_scatter`; and if the set is of other units, or of the whole.
    """
    named = str(getattr(kept, "name", "") or "")
    layer = layer or str(getattr(kept, "cut", "") or "") or None
    mask = np.asarray(getattr(kept, "units", kept))
    found = points_of(features, None, layer=layer, clustered=False)
    if mask.dtype != bool or mask.shape != (len(found.values),):
        raise SchemaError(
            f"found a set of {mask.dtype} {mask.shape}, and bool ({len(found.values)},) was needed, one for each unit "
            f"of layer {found.layer!r}; give a set of this layer's units"
        )
    plane = embedding if embedding is not None else unit_embedding(_bare(features), layers=layer)
    _one_checkpoint(plane)
    at, _ = _of_layer(plane, layer)
    places = np.asarray(plane, np.float64)[at]
    with styled():
        solid, flat = _pair(axes)
        words = cut(named.removeprefix(f"{found.layer}/"), 34) or "set of units"
        solid.set_title(f"{words}, {cut(found.layer, 24)}" if found.layer else words)
        three: Any = solid
        for rows, colour, marker, word in ((mask, BLUE, "o", "kept"), (~mask, VERMILLION, "^", "filtered")):
            look: dict[str, Any] = {"s": SIZE, "color": colour, "marker": marker, "linewidths": 0, "alpha": 0.75}
            label = f"{word}: {int(rows.sum()):,}"
            three.scatter(*found.values[rows].T, label=label, depthshade=False, **look)
            flat.scatter(*places[rows].T, label=label, **look)
        _solid(solid)
        _plane(flat, plane)
        flat.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
        return solid, flat


def cluster_quality(quality: xr.Dataset | xr.DataArray, *, name: str = "silhouette", ax: Axes | None = None) -> Axes:
    """Draw the silhouette or the stability of clusters as a table: a line per layer, a column per number. **Eager**.

    Parameters
    ----------
    quality : (k, layer) or (k,)
        What `cluster_summary` or `cluster_stability` returned, at one checkpoint.
    name : {"silhouette", "stability"}

    Raises
    ------
    SchemaError
        If the name is unknown, it is not there, or there are several checkpoints.
    """
    if name not in QUALITIES:
        raise SchemaError(f"name={name!r} is unknown; {nearest(name, QUALITIES)}")
    if isinstance(quality, xr.Dataset) and name not in quality:
        raise SchemaError(f"{name!r} is not here; pass what cluster_{_SOURCES[name]} returns")
    array = quality[name] if isinstance(quality, xr.Dataset) else quality
    _one_checkpoint(array)
    if not {"k"} <= set(array.dims) <= {"k", "layer"}:
        raise SchemaError(f"found dims {array.dims}, and ('k', 'layer') were needed; select one of the others")
    table = array if "layer" in array.dims else array.expand_dims("layer")
    cells = np.ma.masked_invalid(np.asarray(table.transpose("layer", "k"), np.float64))
    names = [str(one) for one in held(table["layer"]).tolist()] if "layer" in table.coords else [""]
    with styled():
        ax = new_axes(ax, size=(4.8, quality_height(len(names))))
        ax.set_title(QUALITIES[name])
        ax.grid(False)
        ax.patch.set(hatch="////", edgecolor=PALE, linewidth=0)  # seen where a cell is missing
        ax.imshow(cells, cmap=colormaps["Blues"], vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        short, pattern = short_names(names)
        ax.set_yticks(range(len(names)), short, fontsize=8 if len(names) > 12 else 9)
        ax.set_ylabel(f"layer: {pattern}" if pattern else "layer" if any(names) else "")
        ax.set_xticks(range(cells.shape[1]), [str(int(k)) for k in np.asarray(table["k"])])
        ax.set_xlabel("clusters")
        ax.tick_params(length=0)
        for (row, column), value in np.ma.ndenumerate(cells):  # type: ignore[no-untyped-call]
            colour = "white" if value > 0.55 else INK
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
        for side in ("left", "bottom"):
            ax.spines[side].set_visible(False)
        return ax if cells.count() else empty(ax, "there is nothing to tell")


_SOURCES = {"silhouette": "summary", "stability": "stability"}


def quality_height(layers: int) -> float:
    """Return how high a table of so many layers is, in inches."""
    return float(np.clip(1.1 + 0.34 * layers, 2.0, 9.0))


def points_of(
    features: xr.Dataset,
    clusters: xr.DataArray | None,
    *,
    k: int | None = None,
    layer: str | None = None,
    clustered: bool = True,
) -> Points:
    """Return the units of one layer as they are drawn.

    Raises
    ------
    SchemaError
        As for `cluster_scatter`.
    """
    lacking = [name for name in NAMED if name not in features]
    if lacking:
        raise SchemaError(f"there is no {lacking[0]!r}; give unit_features(…), or the opened clusters cube")
    _one_checkpoint(features)
    units, name = _of_layer(features, layer)
    values = np.stack([np.asarray(features[one], np.float64)[units] for one in NAMED], axis=1)
    if not clustered:
        return Points(values, None, name, 0)
    labels, number = _labels(clusters_of(features) if clusters is None else clusters, k, units)
    return Points(values, labels, name, number)


def _one_checkpoint(data: xr.Dataset | xr.DataArray) -> None:
    series = series_of(data)
    if series is not None:
        raise SchemaError(f"found {data.sizes[series]} checkpoints, and one is drawn; select it: isel({series}=-1)")


def _of_layer(data: xr.Dataset | xr.DataArray, layer: str | None) -> tuple[np.ndarray, str]:
    """Return the places of a layer's units, and its name."""
    layers = layers_or_one(data)
    if layer is None and len(layers.names) > 1:
        raise SchemaError(f"there are {len(layers.names)} layers, {listed(layers.names)}; name one as layer=")
    if layer is not None and layer not in layers.names:
        raise SchemaError(f"there is no layer {layer!r}; {nearest(layer, layers.names)}")
    name = layers.names[0] if layer is None else layer
    return np.flatnonzero(layers.codes == layers.names.index(name)), name


def _labels(clusters: xr.DataArray, k: int | None, units: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the cluster of each of some units, and how many clusters there are."""
    _one_checkpoint(clusters)
    array = clusters
    if "k" in array.dims:
        known = [int(each) for each in np.asarray(array["k"])]
        if k is None and len(known) > 1:
            raise SchemaError(f"there are clusterings of k = {listed(known)}; name one as k=")
        if k is not None and k not in known:
            raise SchemaError(f"there are no {k} clusters here, but {listed(known)}; name one of them as k=")
        array = array.isel(k=0 if k is None else known.index(k))
    labels = np.asarray(array)
    if labels.ndim != 1 or len(labels) <= units.max():
        raise SchemaError(f"found clusters of shape {labels.shape}, and one for each unit was needed")
    return labels[units].astype(np.int64), int(array["k"]) if "k" in array.coords else int(labels.max()) + 1


def _bare(features: xr.Dataset) -> xr.Dataset:
    return features[list(NAMED)]


def _title(found: Points) -> str:
    return f"{cut(found.layer, 30)}, k = {found.k}" if found.layer else f"k = {found.k}"


def counted(cluster: int, rows: np.ndarray) -> str:
    """Name a cluster with the number of its units."""
    return f"{cluster}: {len(rows):,} unit{'s' * (len(rows) != 1)}"


def look_of(cluster: int) -> tuple[str, str]:
    """Return the colour and the marker of a cluster: no two of the first 36 share both."""
    return COLOURS[cluster % len(COLOURS)], MARKERS[(cluster + cluster // len(COLOURS)) % len(MARKERS)]


def _look(cluster: int) -> dict[str, Any]:
    colour, marker = look_of(cluster)
    return {"s": SIZE, "color": colour, "marker": marker, "linewidths": 0, "alpha": 0.75}


def _diamond(cluster: int) -> dict[str, Any]:
    colour, _ = look_of(cluster)
    return {
        "s": 110,
        "color": colour,
        "marker": "D",
        "edgecolors": INK,
        "linewidths": 1.4,
        "depthshade": False,
        "zorder": 5,
    }


def _solid_axes(ax: Axes | None) -> Axes:
    if ax is None:
        import matplotlib.pyplot as plt

        made: Axes = plt.figure(figsize=(6.4, 4.6), layout="constrained").add_subplot(projection="3d")
        return made
    if not hasattr(ax, "set_zlabel"):
        raise SchemaError('these Axes are flat, and statistics have three axes; make them with projection="3d"')
    return ax


def _pair(axes: Sequence[Axes] | None) -> tuple[Axes, Axes]:
    if axes is not None:
        return _solid_axes(axes[0]), axes[1]
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(10.4, 4.4), layout=ConstrainedLayoutEngine(wspace=0.08))  # room for the third label
    return figure.add_subplot(1, 2, 1, projection="3d"), figure.add_subplot(1, 2, 2)


def _solid(ax: Axes) -> None:
    """Label three axes, and look at them from where the reference does."""
    solid: Any = ax
    solid.computed_zorder = False  # centroids are seen whatever is before them
    solid.view_init(elev=ELEVATION, azim=AZIMUTH)
    solid.set_box_aspect((4, 4, 3.2), zoom=1.0)
    names: Mapping[str, str] = NAMED
    for axis, name in zip((solid.xaxis, solid.yaxis, solid.zaxis), names.values(), strict=True):
        axis.set_label_text(name)
        axis.set_pane_color((1.0, 1.0, 1.0, 0.0))
        axis._axinfo["grid"].update(color=PALE, linewidth=0.6)
        axis.set_major_locator(MaxNLocator(4))
        axis.set_tick_params(labelsize=8, pad=4 if axis is solid.zaxis else 1)


def _plane(ax: Axes, embedding: xr.DataArray) -> None:
    """Hide what means nothing on a plane of neighbours."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for side in ax.spines.values():
        side.set(visible=True, color=PALE)
    scaled = "" if embedding.attrs.get("scaled", 1) else ", statistics unscaled"
    ax.set_xlabel(f"t-SNE{scaled}", color=GREY, loc="left")
    ax.set_aspect("equal", adjustable="datalim")
