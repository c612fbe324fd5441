"""Clusters of units as a page that can be turned and pointed at, with Plotly."""

from typing import Any

import numpy as np
import xarray as xr

from neurolens.clusters import clusters_of
from neurolens.clusters.matrices import layers_or_one
from neurolens.errors import MissingExtraError
from neurolens.plot.clusters import AZIMUTH, ELEVATION, NAMED, Points, counted, look_of, points_of
from neurolens.plot.style import GREY, INK, PALE
from neurolens.units.layers_of import held

DISTANCE = 2.4
"""From how far statistics are looked at, in sides of the box."""


def cluster_page(features: xr.Dataset, clusters: xr.DataArray | None = None) -> Any:
    """Return units by rate, mean and variance as a Plotly figure, with centroids as diamonds. **Eager**.

    A menu chooses the layer and the number of clusters; pointing at a unit names it.

    Parameters
    ----------
    features : Dataset over (unit,)
        `rate`, `mean` and `variance` at one checkpoint: from `unit_features`, or the opened clusters cube.
    clusters : int, (k, unit), optional
        From `unit_clusters`; those of the cube by default.

    Returns
    -------
    plotly.graph_objects.Figure
        ``write_html(path, include_plotlyjs=True)`` makes a page of it that needs no network.

    Raises
    ------
    MissingExtraError
        If Plotly is not installed.
    SchemaError
        As for `cluster_scatter`.
    """
    try:
        from plotly import graph_objects
    except ImportError as error:
        raise MissingExtraError.of("plotly", "report", "the interactive picture of clusters") from error
    labels = clusters_of(features) if clusters is None else clusters
    labels = labels if "k" in labels.dims else labels.expand_dims("k")
    layers = layers_or_one(features)
    numbers = [int(k) for k in np.asarray(labels["k"])] if "k" in labels.coords else [None]
    index = held(features["index"]) if "index" in features.coords else np.arange(len(layers.codes))
    traces: list[Any] = []
    choices: list[tuple[str, int, int]] = []
    for code, layer in enumerate(layers.names):
        for place, number in enumerate(numbers):
            at = labels.isel(k=place)
            found = points_of(features, at, layer=layer or None)
            drawn = _traces(graph_objects, found, index[layers.codes == code], visible=not choices)
            choices.append((f"{layer}, k = {number or found.k}".lstrip(", "), len(traces), len(drawn)))
            traces += drawn
    figure = graph_objects.Figure(traces)
    buttons = [
        {
            "label": label,
            "method": "update",
            "args": [{"visible": [first <= i < first + count for i in range(len(traces))]}],
        }
        for label, first, count in choices
    ]
    axis = {"backgroundcolor": "white", "gridcolor": PALE, "zerolinecolor": GREY, "color": INK}
    elevation, azimuth = np.deg2rad([ELEVATION, AZIMUTH])
    eye = {
        "x": DISTANCE * np.cos(elevation) * np.cos(azimuth),
        "y": DISTANCE * np.cos(elevation) * np.sin(azimuth),
        "z": DISTANCE * np.sin(elevation),
    }
    scene = {f"{side}axis": {**axis, "title": {"text": name}} for side, name in zip("xyz", NAMED.values(), strict=True)}
    figure.update_layout(
        title={"text": "Clusters of units" if len(choices) > 1 else choices[0][0]},
        font={"family": "sans-serif", "size": 13, "color": INK},
        scene={**scene, "camera": {"eye": eye, "center": {"x": 0, "y": 0, "z": -0.12}}, "aspectmode": "cube"},
        legend={"title": {"text": "cluster"}, "itemsizing": "constant"},
        margin={"l": 20, "r": 20, "t": 70, "b": 20},
    )
    if len(choices) > 1:
        menu = {"buttons": buttons, "x": 0.0, "xanchor": "left", "y": 1.0, "yanchor": "top", "bgcolor": "white"}
        figure.update_layout(updatemenus=[menu])
    return figure


_SYMBOLS = {"o": "circle", "s": "square", "^": "cross", "D": "diamond-open", "v": "x", "P": "square-open"}
"""What Plotly has in space for matplotlib's markers."""


def _traces(graph_objects: Any, found: Points, index: np.ndarray, *, visible: bool) -> list[Any]:
    assert found.clusters is not None
    traces = []
    for cluster in np.unique(found.clusters).tolist():
        rows = found.clusters == cluster
        colour, marker = look_of(cluster)
        values, middle = found.values[rows], found.values[rows].mean(axis=0)
        group = {"legendgroup": str(cluster), "visible": visible, "mode": "markers"}
        where = "rate %{x:.3g}, mean %{y:.3g}, variance %{z:.3g}"
        traces.append(
            graph_objects.Scatter3d(
                **dict(zip("xyz", values.T.tolist(), strict=True)),
                **group,
                name=counted(cluster, values),
                marker={"size": 3.5, "color": colour, "symbol": _SYMBOLS[marker], "opacity": 0.8},
                customdata=index[rows].tolist(),
                hovertemplate=f"unit %{{customdata}}, cluster {cluster}<br>{where}<extra></extra>",
            )
        )
        traces.append(
            graph_objects.Scatter3d(
                **dict(zip("xyz", ([float(x)] for x in middle), strict=True)),
                **group,
                name=f"centroid of {cluster}",
                showlegend=False,
                marker={"size": 9, "color": colour, "symbol": "diamond", "line": {"color": INK, "width": 2}},
                hovertemplate=f"centroid of {cluster}<br>{where}<extra></extra>",
            )
        )
    return traces
