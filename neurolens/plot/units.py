"""Dormant units over the series: all layers together, layer by layer, and the layers that change most."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from neurolens import schema, units
from neurolens.errors import SchemaError
from neurolens.plot.style import (
    BLUE,
    COLOURS,
    GREY,
    INK,
    MARKERS,
    PALE,
    empty,
    evenly_named,
    new_axes,
    percent_axis,
    series_axis,
    short_names,
    styled,
)

BANDS = 2
"""Up to how many curves the bands are drawn too."""
FEW = 40
"""Up to how many checkpoints each is marked on its line."""
MEAN = "mean of the layers"
DASHED: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.3}
CELLS = 14, 16
"""Up to how many checkpoints and layers the cells of a heatmap are annotated."""


def dormancy_curves(data: xr.Dataset, *, dim: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw the share of dormant units over the series. **Eager**.

    A line for the mean over the layers, as in the reference's plots; a dashed one for the share of all units, which
    differs where layers differ in width; and a band from the least to the most dormant layer. Further dims
    (`definition`, `tau`, `log`) are never averaged: each of their members has lines of its own colour, and from three
    members on the bands are left out.

    Parameters
    ----------
    data : (series, layer)
        What `neurolens.dormancy_summary` returns; or the units cube, whose units are then counted by ``redo`` at 0.025;
        or a dormancy log. NaN leaves a gap.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever there is.

    Raises
    ------
    SchemaError
        If there are no units, no counts and no log in ``data``, or the series dim is missing.
    """
    summary = counted(data)
    series = schema.series_dim(summary["fraction"], dim)
    members = list(_members(summary, series))
    layers = int(summary["fraction"].notnull().any([d for d in summary["fraction"].dims if d != "layer"]).sum())
    with styled():
        ax = new_axes(ax, size=(6.8, 3.6))
        at = np.asarray(summary[series]) if series in summary.coords else np.arange(summary.sizes[series])
        ax.set_title("Dormant units" if len(members) > 1 else _title("Dormant units", summary))
        ax.set_ylabel("share of units")
        percent_axis(ax.yaxis)
        series_axis(ax, at, series)
        if not np.isfinite(summary["pooled_fraction"]).any():
            return empty(ax, "no checkpoint was measured")
        for i, (label, one) in enumerate(members):
            _curve(ax, at, one, i, label, layers, several=len(members) > 1, band=len(members) <= BANDS)
        top = float(summary["max_fraction" if len(members) <= BANDS else "mean_fraction"].max())
        top = max(top, float(summary["pooled_fraction"].max()))
        ax.set_ylim(0, max(top * 1.06, 0.01))
        _legend(ax, members, layers)
        return ax


def _curve(
    ax: Axes, at: np.ndarray, one: xr.Dataset, i: int, label: str, layers: int, *, several: bool, band: bool
) -> None:
    colour = COLOURS[i % len(COLOURS)]
    mean, pooled, low, high = (
        np.asarray(one[f"{name}_fraction"], np.float64) for name in ("mean", "pooled", "min", "max")
    )
    if band and layers > 1:
        ax.fill_between(at, low, high, color=colour, alpha=0.16, linewidth=0)
        if len(at) == 1:  # a band of one checkpoint has no width
            ax.vlines(at, low, high, color=colour, alpha=0.35, linewidth=5)
    size = 4 if len(at) <= FEW else 0
    ax.plot(at, mean, color=colour, marker=MARKERS[i % len(MARKERS)], markersize=size, label=label or MEAN)
    if layers > 1:
        ax.plot(at, pooled, color=colour if several else INK, marker="_" if len(at) == 1 else None, **DASHED)


def _legend(ax: Axes, members: list[tuple[str, xr.Dataset]], layers: int) -> None:
    several = len(members) > 1
    if layers == 1 and not several:
        return
    handles: list[Any] = [line for line in ax.lines if not str(line.get_label()).startswith("_")] if several else []
    if layers > 1:
        handles.append(Line2D([], [], color=GREY if several else BLUE, label=MEAN))
        handles.append(Line2D([], [], color=GREY if several else INK, label="all units pooled", **DASHED))
        if len(members) <= BANDS:
            colour = GREY if several else BLUE
            handles.append(Patch(color=colour, alpha=0.25, linewidth=0, label="least to most dormant layer"))
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def dormancy_heatmap(data: xr.Dataset, *, dim: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw the share of dormant units of every layer at every checkpoint; layers in natural order, the first on top.

    **Eager**. Few cells are annotated with their percentage; what was not measured is hatched.

    Parameters
    ----------
    data : (series, layer)
        As for `dormancy_curves`, of one definition, threshold and log.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever there is.

    Raises
    ------
    SchemaError
        As for `dormancy_curves`; and if there are further dims, naming them.
    """
    summary, series, at = _single(data, dim)
    share = summary["fraction"].transpose("layer", series)
    names = share["layer"].values.tolist()
    cells = np.ma.masked_invalid(np.asarray(share, np.float64))
    with styled():
        ax = new_axes(ax, size=(6.4, float(np.clip(1.6 + 0.19 * len(names), 2.4, 9))))
        ax.set_title(_title("Dormant units by layer", summary))
        ax.grid(False)
        top = float(cells.max()) if cells.count() else 0.0
        ax.patch.set(hatch="////", edgecolor=GREY, linewidth=0)  # seen where a cell is missing
        top = max(top, 0.01)
        shown = ax.imshow(cells, cmap=colormaps["Blues"], vmin=0, vmax=top, aspect="auto", interpolation="nearest")
        _names_of_layers(ax, names)
        evenly_named(ax, at.tolist(), room=0.8)
        ax.set_xlabel(series)
        if cells.shape[1] <= CELLS[0] and cells.shape[0] <= CELLS[1]:
            for (row, column), value in np.ma.ndenumerate(cells):  # type: ignore[no-untyped-call]
                colour = "white" if value > 0.55 * top else INK
                text = f"{100 * value:.1f}".removesuffix(".0")
                ax.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        bar = ax.figure.colorbar(shown, ax=ax, label="share of the layer's units", pad=0.02)
        percent_axis(bar.ax.yaxis)
        bar.outline.set_visible(False)
        return ax


def dormancy_evolution(data: xr.Dataset, *, count: int = 5, dim: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw the share of dormant units of the layers that change most over the series, the others pale behind.

    **Eager**. Layers are ranked by the variance of their share over the series, as in the reference's plots; where
    there is one checkpoint only, by the share itself.

    Parameters
    ----------
    data : (series, layer)
        As for `dormancy_curves`, of one definition, threshold and log.
    count : int
        How many layers.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever there is.

    Raises
    ------
    SchemaError
        As for `dormancy_heatmap`.
    """
    summary, series, at = _single(data, dim)
    share = np.asarray(summary["fraction"].transpose("layer", series), np.float64)
    names, pattern = short_names(summary["layer"].values.tolist())
    chosen = most_variable(share)[:count]
    with styled():
        ax = new_axes(ax)
        ax.set_title(_title("Layers that change most" if len(names) > count else "Layers", summary))
        ax.set_ylabel("share of the layer's units")
        percent_axis(ax.yaxis)
        series_axis(ax, at, series)
        if not np.isfinite(share).any():
            return empty(ax, "no checkpoint was measured")
        few = len(at) <= FEW
        rest = [i for i in range(len(names)) if i not in chosen]
        for i in rest:
            ax.plot(at, share[i], color=PALE, linewidth=1, marker="." if len(at) == 1 else None)
        for place, i in enumerate(sorted(chosen)):  # in the legend, layers come in natural order
            look: dict[str, Any] = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
            ax.plot(at, share[i], markersize=4 if few else 0, label=names[i], **look)
        if not few:
            _sparse_markers(ax, len(at))
        if rest:
            ax.plot([], [], color=PALE, linewidth=1, label=f"{len(rest)} other{'s' * (len(rest) > 1)}")
        ax.set_ylim(0, max(float(np.nanmax(share)) * 1.06, 0.01))
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), title=_wrapped(pattern), title_fontsize=8)
        return ax


def most_variable(share: np.ndarray) -> list[int]:
    """Return the rows of ``share`` (layer, series) by decreasing variance; those without a value are left out."""
    some = np.flatnonzero(np.isfinite(share).any(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.array([np.var(row[np.isfinite(row)]) for row in share[some]])
    level = np.array([np.nanmax(row) for row in share[some]])
    return [int(i) for i in some[np.lexsort((some, -level, -spread))]]


def counted(data: xr.Dataset) -> xr.Dataset:
    """Return the counts of dormant units, computed: of units and of logs, or as they were given.

    Raises
    ------
    SchemaError
        If ``data`` holds none of them.
    """
    if not isinstance(data, xr.Dataset):
        raise SchemaError(f"found a {type(data).__name__}; pass what neurolens.dormancy_summary(units) returns")
    if "fraction" not in data:
        data = units.dormancy_summary(data)
    return data.compute()


def _single(data: xr.Dataset, dim: str | None) -> tuple[xr.Dataset, str, np.ndarray]:
    """Return the counts of one definition, threshold and log: its own layers, the series dim and its positions."""
    summary = counted(data)
    series = schema.series_dim(summary["fraction"], dim)
    further = [str(d) for d in summary["fraction"].dims if d not in (series, "layer")]
    for name in further:
        if summary.sizes[name] > 1:
            found = ", ".join(map(str, summary[name].values.tolist()[:6]))
            raise SchemaError(
                f"counts along {name!r} ({found}) are not averaged; select one: summary.isel({name}=0), and draw it"
            )
        summary = summary.isel({name: 0})
    summary = summary.isel(layer=np.flatnonzero(summary["fraction"].notnull().any(series).values))
    at = np.asarray(summary[series]) if series in summary.coords else np.arange(summary.sizes[series])
    if not summary.sizes["layer"]:
        raise SchemaError("no layer has a count at any checkpoint; there is nothing to draw")
    return summary, series, at


def _members(summary: xr.Dataset, series: str) -> Iterator[tuple[str, xr.Dataset]]:
    """Split the counts by all dims but those of series and layers, with a label each."""
    further = [str(d) for d in summary["fraction"].dims if d not in (series, "layer")]
    for where in product(*(range(summary.sizes[name]) for name in further)):
        one = summary.isel(dict(zip(further, where)))
        yield ", ".join(_named(one, name) for name in further), one


def _named(one: xr.Dataset, name: str) -> str:
    value = one.coords[name].item() if name in one.coords else ""
    if name == "tau":
        return f"tau {value:g}"
    if name == "definition" and "tau" in one.coords and np.isfinite(one.coords["tau"].item()):
        return f"{value} at {one.coords['tau'].item():g}"
    return str(value) if name in ("definition", "log") else f"{name} {value}"


def _title(what: str, summary: xr.Dataset) -> str:
    """Say what was counted and by which definition, so that no count stands without one."""
    if "log" in summary.coords and summary["log"].ndim == 0:
        return f"{what}: {summary['log'].item()}"
    definition = summary.attrs.get("definition")
    if "definition" in summary.coords and summary["definition"].ndim == 0:
        definition = summary["definition"].item()
    tau = summary.attrs.get("dormancy_tau")
    if "tau" in summary.coords and summary["tau"].ndim == 0:
        tau = summary["tau"].item()
    if definition is None:
        return what
    return f"{what}: {definition}" + (f" at {tau:g}" if tau is not None and np.isfinite(tau) else "")


def _names_of_layers(ax: Axes, names: list[str]) -> None:
    """Name every layer, or as many as there is room for."""
    short, pattern = short_names(names)
    figure: Any = ax.figure
    room = max(2, int(ax.get_position().height * figure.get_size_inches()[1] * 72 / 10.5))
    step = -(-len(names) // room)
    ax.set_yticks(range(0, len(names), step), short[::step], fontsize=8 if len(names) > 12 else 9)
    ax.set_ylabel(f"layer: {pattern}" if pattern else "layer")
    if len(pattern) > 3 * room:
        ax.set_ylabel(f"layer: {pattern}", fontsize=8)


def _sparse_markers(ax: Axes, count: int) -> None:
    """Mark a few points of long lines: lines are told apart by more than colour."""
    for place, line in enumerate(line for line in ax.lines if line.get_marker() not in (None, "None", "")):
        line.set_markersize(5)
        line.set_markevery((place * count // 40, max(1, count // 8)))


def _wrapped(pattern: str) -> str:
    """Break a long pattern at a dot."""
    if len(pattern) <= 24:
        return pattern
    middle = pattern.find(".", len(pattern) // 2)
    return pattern if middle < 0 else f"{pattern[: middle + 1]}\n{pattern[middle + 1 :]}"
