"""How a map is made of those of clusters, and how answers go as ever more of it is taken away, or put in."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from neurolens.errors import SchemaError
from neurolens.inference import normal_interval
from neurolens.plot.attribution_names import method_name, short_sets
from neurolens.plot.panels import signed_colours
from neurolens.plot.style import (
    BLUE,
    COLOURS,
    GREY,
    INK,
    MARKERS,
    VERMILLION,
    empty,
    new_axes,
    percent_axis,
    styled,
)

Array = npt.NDArray[Any]

COLUMNS = 400
"""How many images shares are drawn of, at most: evenly spaced ones."""
REACH = 0.98
"""Share of the images that fits the axis of shares: where hardly anything changes, shares have no end."""

LOWEST, HIGHEST = -1.5, 2.5


def perturbation_lines(
    curves: xr.Dataset, *, dim: str = "sample", figure: Figure | SubFigure | None = None
) -> list[Axes]:
    """Draw how the probability falls as patches are deleted, and rises as they are inserted, set by set.

    Means over images, with their 95 % interval (normal); the area under each curve stands in the legend. Highest
    patches come first: faithful maps fall early, and rise early.

    Parameters
    ----------
    curves : Dataset over (sample, map, share) or (sample, map, attribution, share)
        `deletion`, `insertion`, or one of them. Images that lack a number anywhere are left out.
    dim
        That of the images.
    figure
        Where to draw; absent: a new one.

    Returns
    -------
    Axes, a row per method: deletion, insertion; on one scale.

    Raises
    ------
    SchemaError
        If there is neither, or there is a dim besides.
    """
    kinds = [name for name in ("deletion", "insertion") if name in curves]
    if not kinds:
        raise SchemaError(f"found {sorted(map(str, curves.data_vars))}, and 'deletion' or 'insertion' is drawn")
    more = {str(d) for name in kinds for d in curves[name].dims} - {dim, "map", "attribution", "share"}
    if more:
        raise SchemaError(f"found dims {sorted(more)} besides; select along them, e.g. one checkpoint")
    curves = curves[kinds] if "attribution" in curves.dims else curves[kinds].expand_dims("attribution")
    names = short_sets(curves)
    shares = np.asarray(curves["share"], np.float64)
    with styled():
        figure = _figure(figure, lines_size(curves))
        grid = figure.subplots(curves.sizes["attribution"], len(kinds), sharex=True, sharey=True, squeeze=False)
        for row, axes in enumerate(grid):
            for ax, kind in zip(axes, kinds):
                one = curves[kind].isel(attribution=row).transpose(dim, "map", "share")
                said = f"{method_name(one['attribution'].item())}: " if "attribution" in one.coords else ""
                ax.set_title(f"{said}{kind}")
                _lines(ax, np.asarray(one, np.float64), shares, names)
                ax.set_ylim(bottom=0)
                percent_axis(ax.xaxis)
                if ax.lines:
                    ax.legend(fontsize=8, title="area under the curve", title_fontsize=8)
        for ax in grid[-1]:
            ax.set_xlabel("share of the patches, highest first")
        for ax in grid[:, 0]:
            ax.set_ylabel("probability of the class")
        return list(grid.ravel())


def lines_size(curves: xr.Dataset) -> tuple[float, float]:
    """Return width and height in inches that `perturbation_lines` needs."""
    kinds = sum(name in curves for name in ("deletion", "insertion"))
    return 4.7 * max(1, kinds), 0.4 + 3.2 * curves.sizes.get("attribution", 1)


def _lines(ax: Axes, values: Array, shares: Array, names: Sequence[str]) -> None:
    values = values[np.isfinite(values).any(axis=(1, 2))]
    known = np.isfinite(values).any(axis=(0, 2))
    values, names = values[:, known], [names[int(i)] for i in np.flatnonzero(known)]
    values = values[np.isfinite(values).all(axis=(1, 2))]
    if not len(values):
        empty(ax, "no image has curves of all these maps")
        return
    mean = values.mean(axis=0)
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.full(mean.shape, np.nan)
    low, high = normal_interval(mean, error)
    for i, name in enumerate(names):
        colour = INK if name in ("whole", "all units") else COLOURS[i % len(COLOURS)]
        area = float(np.trapezoid(mean[i], shares) / (shares[-1] - shares[0])) if len(shares) > 1 else float("nan")
        ax.fill_between(shares, low[i], high[i], color=colour, alpha=0.15, linewidth=0)
        marker = MARKERS[i % len(MARKERS)]
        ax.plot(shares, mean[i], color=colour, marker=marker, markersize=3.5, label=f"{area:.3f}  {name}")


def completeness_shares(shares: xr.DataArray, *, ax: Axes | None = None) -> Axes:
    """Stack, image by image, the share of the change of the output that goes through each cluster.

    Shares are signed: what speaks against the class lies below 0. All of an image add up to 1, but for the steps of the
    integral. Images are sorted by the share of the first cluster; of more than 400, evenly spaced ones are drawn.

    Parameters
    ----------
    shares : (sample, map)
        Of each cluster of one clustering. Images without a share, where nothing changes, are left out.

    Raises
    ------
    SchemaError
        If the dims are others.
    """
    if set(shares.dims) != {"sample", "map"}:
        raise SchemaError(f"found shares over {shares.dims}, and (sample, map) was needed; select along the others")
    values = np.asarray(shares.transpose("sample", "map"), np.float64)
    values = values[np.isfinite(values).all(axis=1)]
    names = short_sets(shares)
    with styled():
        ax = new_axes(ax, size=(6.8, 3.6))
        ax.set_title("Share of the change through each cluster")
        if not len(values):
            return empty(ax, "no image has an output that changes")
        order = np.argsort(-values[:, 0], kind="stable")
        taken = order[np.unique(np.linspace(0, len(order) - 1, min(COLUMNS, len(order))).round().astype(int))]
        drawn = values[taken]
        above, below = np.zeros(len(drawn)), np.zeros(len(drawn))
        at = np.arange(len(drawn))
        wide: dict[str, Any] = {"width": 1.0 if len(drawn) > 80 else 0.86, "linewidth": 0}
        for i, name in enumerate(names):
            part = drawn[:, i]
            ax.bar(at, part, bottom=np.where(part >= 0, above, below), color=_colour(i), label=name, **wide)
            above, below = above + np.maximum(part, 0), below + np.minimum(part, 0)
        ax.plot(at, drawn.sum(axis=1), color=INK, linewidth=1.1, label="all together")
        ax.axhline(0, color=GREY, linewidth=0.9)
        low = max(min(-0.05, float(np.quantile(below, 1 - REACH)) * 1.08), LOWEST)
        high = min(max(1.1, float(np.quantile(above, REACH)) * 1.08), HIGHEST)
        ax.set_ylim(low, high)
        beyond = int(((below < low) | (above > high)).sum())
        words = f"{len(drawn):,} of {len(values):,} images" if len(drawn) < len(values) else f"{len(values):,} images"
        more = f"; {beyond:,} beyond the axis" if beyond else ""
        ax.set_xlabel(f"{words}, by the share of {names[0]}{more}")
        ax.set_xticks([])
        ax.set_xlim(-0.6, len(drawn) - 0.4)
        percent_axis(ax.yaxis)
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
        return ax


def gap_histogram(gap: xr.DataArray, change: xr.DataArray, *, ax: Axes | None = None) -> Axes:
    """Count images by how far the map of all units is from adding up to the change of the output.

    Parameters
    ----------
    gap : (sample)
        Sum of the map minus the change of the output: what the steps of the integral leave.
    change : (sample)
        Output minus that where paths start. Images where nothing changes are left out.

    Raises
    ------
    SchemaError
        If the dims are others.
    """
    if gap.dims != ("sample",) or change.dims != ("sample",):
        raise SchemaError(f"found {gap.dims} and {change.dims}, and ('sample',) was needed; select along the others")
    whole = np.abs(np.asarray(change, np.float64))
    values = np.asarray(gap, np.float64)
    known = np.isfinite(values) & (whole > 0)
    with styled():
        ax = new_axes(ax)
        ax.set_title("Gap of completeness")
        if not known.any():
            return empty(ax, "no image has an output that changes")
        share = values[known] / whole[known]
        reach = max(1e-6, float(np.quantile(np.abs(share), REACH))) * 1.05
        beyond = int((np.abs(share) > reach).sum())
        ax.hist(np.clip(share, -reach, reach), bins=np.linspace(-reach, reach, 32).tolist(), color=BLUE, linewidth=0)
        ax.axvline(0, color=GREY, linewidth=0.9)
        middle = float(np.median(np.abs(share)))
        ax.axvline(float(np.median(share)), color=VERMILLION, linewidth=1.2, linestyle="--", label="median")
        ax.set_xlabel(
            f"gap, in shares of the change\nmedian size {100 * middle:.2g} %"
            + (f"; {beyond:,} beyond, in the last bars" if beyond else "")
        )
        ax.legend(fontsize=8)
        ax.set_ylabel("images")
        ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        percent_axis(ax.xaxis)
        return ax


def cluster_shares(norm: xr.DataArray, completeness: xr.DataArray | None = None, *, ax: Axes | None = None) -> Axes:
    """Set the size of each cluster's map beside the share of the change that goes through it, mean over images.

    Norms say how large a map is and do not add up; completeness says what it contributes, with its sign.

    Parameters
    ----------
    norm : (sample, map)
        Share of each cluster of the sum of all norms.
    completeness : (sample, map), optional
        Share of the change that goes through it, of methods that add up. Of these the median is drawn: where hardly
        anything changes, shares have no end.

    Raises
    ------
    SchemaError
        If the dims are others.
    """
    for given in (norm, completeness):
        if given is not None and set(given.dims) != {"sample", "map"}:
            raise SchemaError(f"found shares over {given.dims}, and (sample, map) was needed; select along the others")
    names = short_sets(norm)
    at = np.arange(len(names))
    series = [("size: share of the norms, mean", np.asarray(norm.mean("sample"), np.float64), norm, "mean")]
    if completeness is not None:
        middle = np.asarray(completeness.median("sample"), np.float64)
        series.append(("completeness: share of the change, median", middle, completeness, "median"))
    with styled():
        ax = new_axes(ax, size=(5.6, 3.4))
        ax.set_title("Clusters by size and by what they contribute")
        width = 0.8 / len(series)
        for i, ((label, values, array, _), colour) in enumerate(zip(series, (GREY, BLUE))):
            place = at - 0.4 + width * (i + 0.5)
            quarter = np.asarray(array.quantile([0.25, 0.75], "sample").transpose("quantile", "map"), np.float64)
            ax.bar(place, values, width=width * 0.92, color=colour, alpha=0.85, linewidth=0, label=label)
            ax.vlines(place, quarter[0], quarter[1], color=INK, linewidth=1.0)
        ax.plot([], [], color=INK, linewidth=1.0, label="middle half of the images")
        ax.axhline(0, color=GREY, linewidth=0.9)
        ax.set_xticks(at, names)
        ax.grid(visible=False, axis="x")
        percent_axis(ax.yaxis)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize=8)
        return ax


def cosine_heatmap(cosine: xr.DataArray, *, ax: Axes | None = None) -> Axes:
    """Draw how alike the maps of clusters are: the cosine of each pair, from −1 to 1.

    Parameters
    ----------
    cosine : (map, other)
        As `neurolens.attribution.decompose` returns it, mean over images. NaN, where a map is zero, is hatched.

    Raises
    ------
    SchemaError
        If the dims are others.
    """
    if set(cosine.dims) != {"map", "other"}:
        raise SchemaError(f"found cosines over {cosine.dims}, and (map, other) was needed; take the mean over samples")
    values = np.asarray(cosine.transpose("map", "other"), np.float64)
    names = short_sets(cosine)
    with styled():
        ax = new_axes(ax, size=(4.4, 3.6))
        ax.set_title("Cosine between maps")
        ax.patch.set(hatch="////", edgecolor=GREY, linewidth=0)
        shown = ax.imshow(np.ma.masked_invalid(values), cmap=signed_colours(), vmin=-1, vmax=1)
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if abs(value) > 0.6 else INK
                ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
        ax.set_xticks(range(len(names)), names, rotation=30 if max(map(len, names)) > 6 else 0)
        ax.set_yticks(range(len(names)), names)
        ax.grid(visible=False)
        bar = ax.figure.colorbar(shown, ax=ax, shrink=0.85)
        bar.outline.set_visible(False)
        return ax


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _figure(figure: Figure | SubFigure | None, size: tuple[float, float]) -> Figure | SubFigure:
    if figure is not None:
        return figure
    import matplotlib.pyplot as plt

    return plt.figure(figsize=size, layout="constrained")
