"""What filters do to how faithful maps are: set by set with intervals, against random sets, class by class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from neurolens import schema
from neurolens.errors import SchemaError
from neurolens.plot.attribution_names import method_name, set_name, short_sets
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
    evenly_named,
    new_axes,
    series_axis,
    styled,
)

ALPHA = 0.05
LABEL = "drop of the probability, filtered − unfiltered map"
NAMED_CLASSES = 40
"""Up to how many classes are named."""


def forest_height(compared: xr.Dataset) -> float:
    """Return the height in inches that `effect_forest` needs."""
    layers = len(set(_layers(compared))) if "cut" in compared.coords else 0
    return 1.75 + 0.21 * (compared.sizes.get("map", 1) + 1.25 * layers)


def effect_forest(
    compared: xr.Dataset,
    *,
    draws: xr.DataArray | None = None,
    label: str = LABEL,
    alpha: float = ALPHA,
    figure: Figure | SubFigure | None = None,
) -> list[Axes]:
    """Draw the mean difference that each filter makes, with intervals, on one scale for all methods.

    Dots are filled where the p-value that is corrected for all sets and methods (by whole classes where there are any)
    is below ``alpha``. Behind a set that has random controls lies the range of theirs.

    Parameters
    ----------
    compared : Dataset over (map) or (map, attribution)
        What `neurolens.attribution.compare` returns: `difference`, `low`, `high`, and where there are any `class_low`,
        `class_high`, `p_max_t`, `class_p_max_t`. Sets stand in its order, under their layer where it has `cut`.
    draws : (map, draw) or (map, draw, attribution), optional
        Mean differences of the random controls of some of the sets; NaN where there is none.
    label
        What the differences are of, for the axis.
    figure
        Where to draw; absent: a new one.

    Returns
    -------
    An Axes per method.

    Raises
    ------
    SchemaError
        If `difference`, `low` or `high` is missing, or there is a dim besides.
    """
    _require(compared, ("difference", "low", "high"), ("map", "attribution"))
    compared = compared if "attribution" in compared.dims else compared.expand_dims("attribution")
    with styled():
        figure = _figure(figure, (9.2, forest_height(compared)))
        axes = figure.subplots(1, compared.sizes["attribution"], sharex=True, sharey=True, squeeze=False)[0]
        places, names, heads = _rows(compared)
        for i, ax in enumerate(axes):
            one = compared.isel(attribution=i).transpose("map", ...)
            ax.set_title(method_name(one["attribution"].item()) if "attribution" in one.coords else "")
            _bands(ax, one, draws, places)
            _points(ax, one, places, alpha)
            ax.axvline(0, color=GREY, linewidth=0.9, zorder=1)
            ax.grid(visible=False, axis="y")
            ax.grid(visible=True, axis="x")
            ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            ax.set_ylim(max(places, default=0) + 0.8, -0.8)
            ax.set_xlabel(label if len(axes) == 1 else "")
            ax.tick_params(axis="y", length=0)
        axes[0].set_yticks([*places, *heads], [*names, *heads.values()])
        for place, text in zip([*places, *heads], axes[0].get_yticklabels()):
            text.set_fontweight("bold" if place in heads else "normal")
        if len(axes) > 1:
            figure.supxlabel(label, fontsize=10, color=INK)
        controlled = draws is not None and bool(np.isin(compared["map"].values, draws["map"].values).any())
        handles = _legend(compared, controlled, alpha)
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
        return list(axes)


def control_strip(
    observed: xr.DataArray,
    draws: xr.DataArray,
    *,
    p: xr.DataArray | None = None,
    p_label: str = "p",
    label: str = LABEL,
    figure: Figure | SubFigure | None = None,
) -> list[Axes]:
    """Set what each filter does against random sets of as many units, on one scale for all methods.

    Parameters
    ----------
    observed : (map) or (map, attribution)
        Mean differences of the sets that have controls.
    draws : (map, draw) or (map, draw, attribution)
        The same of their random controls.
    p : (map) or (map, attribution), optional
        What `neurolens.attribution.control` returns as `p`.
    p_label
        What it is called.
    label
        What the differences are of, for the axis.
    figure
        Where to draw; absent: a new one.

    Returns
    -------
    An Axes per method.

    Raises
    ------
    SchemaError
        If the dims are others.
    """
    given = xr.Dataset({"observed": observed, "draws": draws} | ({} if p is None else {"p": p}))
    _require(given, ("observed", "draws"), ("map", "attribution", "draw"))
    given = given if "attribution" in given.dims else given.expand_dims("attribution")
    with styled():
        figure = _figure(figure, (9.2, 1.6 + 0.5 * given.sizes["map"]))
        axes = figure.subplots(1, given.sizes["attribution"], sharex=True, sharey=True, squeeze=False)[0]
        wave = np.resize([0.0, 0.16, -0.16, 0.08, -0.08, 0.24, -0.24], given.sizes["draw"])
        for i, ax in enumerate(axes):
            one = given.isel(attribution=i)
            ax.set_title(method_name(one["attribution"].item()) if "attribution" in one.coords else "")
            for row in range(one.sizes["map"]):
                values = np.asarray(one["draws"].isel(map=row).transpose("draw"), np.float64)
                ax.scatter(values, row + wave, s=16, color=GREY, alpha=0.6, linewidths=0, zorder=2)
                found = float(one["observed"].isel(map=row))
                ax.scatter([found], [row], s=54, color=VERMILLION, marker="D", edgecolors="white", zorder=3)
                if "p" in one:
                    words = f"{p_label} = {float(one['p'].isel(map=row)):.3g}, {int(np.isfinite(values).sum())} sets"
                    ax.annotate(
                        words, (1, row - 0.42), xycoords=("axes fraction", "data"), ha="right", fontsize=8, color=INK
                    )
            ax.axvline(0, color=GREY, linewidth=0.9, zorder=1)
            ax.set_ylim(given.sizes["map"] - 0.4, -0.75)
            ax.grid(visible=False, axis="y")
            ax.grid(visible=True, axis="x")
            ax.margins(x=0.08)
            ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes[0].set_yticks(range(given.sizes["map"]), [cut(str(name), 34) for name in given["map"].values])
        figure.supxlabel(label, fontsize=10, color=INK)
        dot: dict[str, Any] = {"linestyle": "none"}
        figure.legend(
            handles=[
                Line2D([], [], color=VERMILLION, marker="D", label="the set", **dot),
                Line2D([], [], color=GREY, marker="o", markersize=4, label="random sets of as many units", **dot),
            ],
            loc="outside upper center",
            ncols=2,
        )
        return list(axes)


def class_improvement(table: xr.Dataset, *, label: str = LABEL, ax: Axes | None = None) -> Axes:
    """Draw what a filter does to each class, sorted by the mean over methods, and the mean over classes as a line.

    Parameters
    ----------
    table : Dataset over (class) or (class, attribution)
        What `neurolens.attribution.per_class` returns: `difference_mean`. Classes without one are left out.
    label
        What the differences are of, for the axis.

    Raises
    ------
    SchemaError
        If `difference_mean` is missing, or there is a dim besides.
    """
    _require(table, ("difference_mean",), ("class", "attribution"))
    found = (
        table["difference_mean"] if "attribution" in table.dims else table["difference_mean"].expand_dims("attribution")
    )
    found = found.transpose("attribution", "class")
    mean = found.mean("attribution", skipna=True)
    order = np.argsort(-np.asarray(mean, np.float64), kind="stable")[: int(mean.notnull().sum())]
    found, mean = found.isel({"class": order}), mean.isel({"class": order})
    with styled():
        ax = new_axes(ax, size=(9.2, 3.8))
        if not order.size:
            return empty(ax, "no class has scores with and without the filter")
        at = np.arange(order.size)
        values = np.asarray(mean, np.float64)
        few = order.size <= NAMED_CLASSES
        bars: dict[str, Any] = {"width": 0.8 if few else 1.0, "linewidth": 0}
        several = found.sizes["attribution"] > 1
        ax.bar(at, values, color=PALE, label="mean over methods" if several else "class", **bars)
        looks = zip(COLOURS, MARKERS, found)
        for colour, marker, one in looks if several else ():
            name = method_name(one["attribution"].item())
            size = 22 if few else max(4.0, 1600 / order.size)
            ax.scatter(at, one, s=size, color=colour, marker=marker, linewidths=0, alpha=0.85, label=name)
        ax.axhline(0, color=GREY, linewidth=0.9)
        middle = float(values.mean())
        ax.axhline(middle, color=INK, linewidth=1.2, linestyle="--", label=f"mean over classes: {middle:+.3g}")
        ax.set_ylabel(_wrapped(label))
        ax.set_xlim(-0.7, order.size - 0.3)
        names = [cut(str(name), 18) for name in mean["class"].values]
        if few:
            turned: dict[str, Any] = {"rotation": 60, "ha": "right"} if max(map(len, names)) > 3 else {}
            ax.set_xticks(at, names, **turned)
        else:
            evenly_named(ax, [str(i + 1) for i in at], room=0.8)
        better = int((values > 0).sum())
        ax.set_xlabel(f"class, by falling difference: above 0 in {better:,} of {order.size:,}")
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
        return ax


def effects_over_checkpoints(
    compared: xr.Dataset, *, label: str = LABEL, dim: str | None = None, figure: Figure | SubFigure | None = None
) -> list[Axes]:
    """Follow the mean difference that each filter makes over the checkpoints, with its interval, method by method.

    Parameters
    ----------
    compared : Dataset over (series, map) or (series, map, attribution)
        What `neurolens.attribution.compare` returns of a few sets: `difference`, and `class_low` and `class_high` or
        `low` and `high`.
    label
        What the differences are of, for the axis.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever there is.
    figure
        Where to draw; absent: a new one.

    Returns
    -------
    An Axes per method, on one scale.

    Raises
    ------
    SchemaError
        If a variable or the series dim is missing, or there is a dim besides.
    """
    bounds = ("class_low", "class_high") if "class_low" in compared else ("low", "high")
    series = schema.series_dim(compared, dim)
    _require(compared, ("difference", *bounds), (series, "map", "attribution"))
    compared = compared if "attribution" in compared.dims else compared.expand_dims("attribution")
    at = np.asarray(compared[series]) if series in compared.coords else np.arange(compared.sizes[series])
    names = short_sets(compared)
    with styled():
        figure = _figure(figure, (4.6 * compared.sizes["attribution"] + 1.6, 3.6))
        axes = figure.subplots(1, compared.sizes["attribution"], sharex=True, sharey=True, squeeze=False)[0]
        for i, ax in enumerate(axes):
            one = compared.isel(attribution=i).transpose("map", series, ...)
            ax.set_title(method_name(one["attribution"].item()) if "attribution" in one.coords else "")
            ax.axhline(0, color=GREY, linewidth=0.9)
            for row, name in enumerate(names):
                colour, marker = COLOURS[row % len(COLOURS)], MARKERS[row % len(MARKERS)]
                low, high = (np.asarray(one[bound].isel(map=row), np.float64) for bound in bounds)
                ax.fill_between(at, low, high, color=colour, alpha=0.16, linewidth=0)
                values = np.asarray(one["difference"].isel(map=row), np.float64)
                ax.plot(at, values, color=colour, marker=marker, markersize=4, label=name)
            series_axis(ax, at, series)
        axes[0].set_ylabel(_wrapped(label))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")
        return list(axes)


def _figure(figure: Figure | SubFigure | None, size: tuple[float, float]) -> Figure | SubFigure:
    if figure is not None:
        return figure
    import matplotlib.pyplot as plt

    return plt.figure(figsize=size, layout="constrained")


def _wrapped(label: str) -> str:
    """Break a label after its first comma, so that it fits beside a low picture."""
    return label.replace(", ", ",\n", 1)


def _require(ds: xr.Dataset, names: Sequence[str], dims: Sequence[str]) -> None:
    lacking = [name for name in names if name not in ds]
    if lacking:
        found = ", ".join(map(str, ds.data_vars)) or "nothing"
        raise SchemaError(f"the Dataset holds {found}, and {lacking[0]!r} is drawn; pass what compare returns")
    more = {str(d) for name in names for d in ds[name].dims} - set(dims)
    if more:
        raise SchemaError(
            f"found dims {sorted(more)} besides {tuple(dims)}; select along them, e.g. .sel(level='patch')"
        )


def _layers(compared: xr.Dataset) -> list[str]:
    return [str(name) for name in compared["cut"].values] if "cut" in compared.coords else []


def _rows(compared: xr.Dataset) -> tuple[list[float], list[str], dict[float, str]]:
    """Return where sets stand, what they are called there, and headings by place."""
    layers = _layers(compared) or [""] * compared.sizes["map"]
    places: list[float] = []
    names: list[str] = []
    heads: dict[float, str] = {}
    y, last = 0.0, ""
    for name, layer in zip(compared["map"].values, layers):
        if layer != last:
            y += 0.25 if places else 0.0
            heads[y] = cut(layer, 34)
            y += 1
        places.append(y)
        names.append(cut(set_name(name, layer), 34))
        y, last = y + 1, layer
    return places, names, heads


def _bands(ax: Axes, one: xr.Dataset, draws: xr.DataArray | None, places: list[float]) -> None:
    if draws is None:
        return
    drawn = draws.sel({"attribution": one["attribution"].item()}) if "attribution" in draws.dims else draws
    known = [str(name) for name in drawn["map"].values]
    for name, place in zip(one["map"].values, places):
        if str(name) not in known:
            continue
        values = np.asarray(drawn.isel(map=known.index(str(name))), np.float64)
        values = values[np.isfinite(values)]
        if values.size:
            ax.barh(place, np.ptp(values), left=values.min(), height=0.86, color=PALE, linewidth=0, zorder=0.5)


def _points(ax: Axes, one: xr.Dataset, places: list[float], alpha: float) -> None:
    p = one.get("class_p_max_t", one.get("p_max_t"))
    sure = np.zeros(len(places), bool) if p is None else np.asarray(p, np.float64) < alpha
    if "class_low" in one:
        ax.hlines(places, one["class_low"], one["class_high"], color=BLUE, linewidth=1.1, zorder=2)
        ends = [*one["class_low"].values.tolist(), *one["class_high"].values.tolist()]
        ax.plot(ends, [*places, *places], linestyle="none", marker="|", markersize=5, color=BLUE, zorder=2)
    ax.hlines(places, one["low"], one["high"], color=BLUE, linewidth=3.2, alpha=0.45, zorder=2)
    fills = [BLUE if one_sure else "white" for one_sure in sure]
    ax.scatter(one["difference"], places, s=30, c=fills, edgecolors=BLUE, linewidths=1.2, zorder=3)


def _legend(compared: xr.Dataset, controlled: bool, alpha: float) -> list[Any]:
    tested = "class_p_max_t" in compared or "p_max_t" in compared
    handles: list[Any] = [Line2D([], [], color=BLUE, alpha=0.45, linewidth=3.2, label="95 %, images drawn")]
    if "class_low" in compared:
        handles.append(Line2D([], [], color=BLUE, linewidth=1.1, marker="|", label="95 %, whole classes drawn"))
    dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "markeredgecolor": BLUE}
    if tested:
        handles.append(Line2D([], [], color=BLUE, label=f"corrected p < {alpha:g}", **dot))
        handles.append(Line2D([], [], color="white", label="not", **dot))
    if controlled:
        handles.append(Patch(color=PALE, linewidth=0, label="range of random sets"))
    return handles
