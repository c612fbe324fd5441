"""Singular values of a layer's activations, and the ranks that sum them up, over training."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import FuncFormatter, MaxNLocator

from neurolens import schema
from neurolens.errors import SchemaError, nearest
from neurolens.plot.style import (
    COLOURS,
    MARKERS,
    empty,
    new_axes,
    pick,
    plain_log_ticks,
    series_axis,
    short_names,
    styled,
)
from neurolens.plot.units_changes import shades
from neurolens.schema.spectra import METRICS

LISTED = 6
"""Up to how many checkpoints each has its entry in the legend; above, a colour bar says which is which."""


def singular_values(
    spectra: xr.Dataset, *, layer: str | None = None, dim: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the singular values of one layer at every checkpoint, both axes logarithmic, coloured by checkpoint.

    **Eager**. Values of 0, and those lost in rounding, are left out.

    Parameters
    ----------
    spectra : (series, layer, component)
        What `neurolens.spectra` returns.
    layer : str, optional
        Which layer; may be left out where there is one.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever there is.

    Raises
    ------
    SchemaError
        If there is no such layer, or several and none is named.
    """
    values = pick(spectra, "singular_value")
    if "layer" in values.dims:
        names = values["layer"].values.tolist()
        if layer is None and len(names) > 1:
            raise SchemaError(f"there are {len(names)} layers; name one: layer={names[0]!r}")
        if layer is not None and layer not in names:
            raise SchemaError(f"there is no layer {layer!r}; {nearest(layer, names)}")
        values = values.isel(layer=0 if layer is None else names.index(layer))
    name = str(values["layer"].item()) if "layer" in values.coords else ""
    series = schema.series_dim(values, dim)
    lines = np.asarray(values.transpose(series, "component"), np.float64)
    at = np.asarray(values[series]) if series in values.coords else np.arange(len(lines))
    with styled():
        ax = new_axes(ax)
        ax.set_title(f"Singular values of {name}" if name else "Singular values")
        ax.set_xlabel("component")
        units = values.attrs.get("units", "")
        ax.set_ylabel("singular value" if units in ("", "1") else f"singular value [{units}]")
        measured = np.flatnonzero((lines > 0).any(axis=1))
        if not measured.size:
            return empty(ax, "no singular value is above 0")
        ax.set_xscale("log")
        ax.set_yscale("log")
        colours = shades(len(at))
        listed = len(measured) <= LISTED
        for place, i in enumerate(measured):
            held = np.flatnonzero(lines[i] > 0)
            label = f"{series} {at[i]}" if listed else None
            marker = MARKERS[place % len(MARKERS)] if listed else None
            every = (place % 3, max(1, len(held) // 8))
            look: dict[str, Any] = {"linewidth": 1.6 if listed else 1.1, "marker": marker, "markersize": 4}
            ax.plot(held + 1, lines[i, held], color=colours[i], label=label, markevery=every, **look)
        plain_log_ticks(ax.xaxis)
        _log_ticks(ax, lines[lines > 0])
        if listed and len(at) > 1:
            ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
        elif not listed:
            _bar(ax, at, series)
        return ax


def rank_curves(
    spectra: xr.Dataset,
    *,
    variable: str = "effective_rank",
    dim: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw one measure of rank of every layer over the series. **Eager**.

    Parameters
    ----------
    spectra : (series, layer)
        What `neurolens.spectra` returns.
    variable : str
        Which measure: `effective_rank`, `stable_rank`, `srank99`, `approx99`, `participation_ratio`, `numerical_rank`.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever there is.

    Raises
    ------
    SchemaError
        If there is no such measure.
    """
    if variable not in METRICS:
        raise SchemaError(f"there is no measure of rank {variable!r}; {nearest(variable, METRICS)}")
    ranks = pick(spectra, variable)
    if "layer" not in ranks.dims:
        ranks = ranks.expand_dims("layer")
    series = schema.series_dim(ranks, dim)
    lines = np.asarray(ranks.transpose("layer", series), np.float64)
    at = np.asarray(ranks[series]) if series in ranks.coords else np.arange(lines.shape[1])
    full = ranks["layer"].values.tolist() if "layer" in ranks.coords else ["activations"]
    names, pattern = short_names([str(name) for name in full])
    with styled():
        ax = new_axes(ax)
        title = variable.replace("_", " ").capitalize()
        of = pattern or (names[0] if len(names) == 1 and "layer" in ranks.coords else "")
        ax.set_title(f"{title} of {of}" if of else title)
        ax.set_ylabel(variable.replace("_", " "))
        series_axis(ax, at, series)
        if not np.isfinite(lines).any():
            return empty(ax, "no rank was computed")
        many = len(names) > 2 * LISTED
        colours = shades(len(names)) if len(names) > LISTED else COLOURS
        for i, name in enumerate(names):
            every = max(1, len(at) // 10)
            look: dict[str, Any] = {"marker": None if many else MARKERS[i % len(MARKERS)], "markersize": 4}
            ax.plot(at, lines[i], color=colours[i], label=None if many else name, markevery=every, **look)
        ax.set_ylim(0, float(np.nanmax(lines)) * 1.06)
        if many:
            _bar(ax, np.asarray(names), "layer")
        elif len(names) > 1:
            ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
        return ax


def _log_ticks(ax: Axes, values: np.ndarray) -> None:
    """Label few decades with plain numbers; powers of ten stand for many."""
    if values.max() < 1e3 * values.min():
        plain_log_ticks(ax.yaxis)


def _bar(ax: Axes, labels: np.ndarray, title: str) -> None:
    """Say by a colour bar which line is which of an ordered set."""
    count = len(labels)
    cmap = ListedColormap(colormaps["viridis"](np.linspace(0, 0.86, 256)))
    mappable = ScalarMappable(Normalize(0, max(count - 1, 1)), cmap)
    bar = ax.figure.colorbar(mappable, ax=ax, label=title, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    bar.ax.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: str(labels[int(value)]) if 0 <= value < count else "")
    )
