"""Scores per sample: how they are distributed, and how two of them go together."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from neurolens import samples
from neurolens.plot.style import (
    BLUE,
    COLOURS,
    INK,
    MARKERS,
    VERMILLION,
    empty,
    finite,
    label_of,
    new_axes,
    pick,
    plain_log_ticks,
    spans_decades,
    styled,
)


def csl_histogram(
    csl: xr.DataArray | xr.Dataset,
    *,
    marked: xr.DataArray | None = None,
    marked_as: str = "flipped label",
    bins: int = 40,
    ax: Axes | None = None,
) -> Axes:
    """Draw how cumulative sample loss is distributed. **Eager**.

    Parameters
    ----------
    csl : (sample), nat
        What `neurolens.csl` returns, or its `csl`. NaN is left out.
    marked : (sample), bool, optional
        Samples drawn apart, e.g. the coordinate `is_mislabelled`.
    marked_as : str
        What they are called in the legend.
    bins : int
        Number of bins; they are logarithmic where all values are positive and span a factor of 20.
    """
    return _histogram(pick(csl, "csl"), marked, marked_as, bins, ax, "Cumulative sample loss")


def learning_time_histogram(
    learning_time: xr.DataArray | xr.Dataset,
    *,
    marked: xr.DataArray | None = None,
    marked_as: str = "flipped label",
    bins: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how learning time is distributed over [0, 1]. **Eager**.

    Parameters
    ----------
    learning_time : (sample), dimensionless
        What `neurolens.learning_time` returns (the title then names its threshold tau), or its `learning_time`.
    marked, marked_as
        Samples drawn apart, and what they are called, as in `csl_histogram`.
    bins : int, optional
        Number of bins between 0 and 1; absent: one per possible value up to 40 checkpoints, else 25.
    """
    array = pick(learning_time, "learning_time")
    title = "Learning time"
    if isinstance(learning_time, xr.Dataset) and "learning_tau" in learning_time:
        tau = learning_time["learning_tau"]
        if tau.ndim == 0:
            title += f", tau = {float(tau):.3g}"
    edges = np.linspace(0, 1, (bins or 25) + 1)
    if bins is None and isinstance(learning_time, xr.Dataset) and "n_epochs" in learning_time:
        counted = int(learning_time["n_epochs"].max())
        if 0 < counted <= 40:
            edges = (np.arange(counted + 2) - 0.5) / counted
    ax = _histogram(array, marked, marked_as, edges, ax, title)
    ax.set_xlabel("learning time [share of checkpoints]")
    return ax


def _histogram(
    array: xr.DataArray,
    marked: xr.DataArray | None,
    marked_as: str,
    bins: int | np.ndarray,
    ax: Axes | None,
    title: str,
) -> Axes:
    with styled():
        ax = new_axes(ax)
        ax.set_title(title)
        ax.set_xlabel(label_of(array))
        ax.set_ylabel("samples")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        values = finite(array)
        if not values.size:
            return empty(ax, "no sample has a value")
        logarithmic = isinstance(bins, int) and spans_decades(values)
        edges = np.geomspace(values.min(), values.max(), bins + 1) if logarithmic else bins
        edges = np.histogram_bin_edges(values, edges)
        if logarithmic:
            ax.set_xscale("log")
            plain_log_ticks(ax.xaxis)
        ax.hist(values, edges.tolist(), color=BLUE, alpha=0.85, label="all samples")
        apart = finite(array.where(marked)) if marked is not None else values[:0]
        if apart.size:
            look: dict[str, Any] = {"color": VERMILLION, "alpha": 0.9, "hatch": "///", "edgecolor": "white"}
            ax.hist(apart, edges.tolist(), linewidth=0, label=marked_as, **look)
        median = float(np.median(values))
        ax.axvline(median, color=INK, linewidth=1, linestyle="--", label=f"median {median:.3g}")
        ax.legend()
        return ax


def csl_against_learning_time(
    csl: xr.DataArray | xr.Dataset,
    learning_time: xr.DataArray | xr.Dataset,
    *,
    gridsize: int = 30,
    ax: Axes | None = None,
) -> Axes:
    """Draw cumulative sample loss against learning time as hexagons coloured by how many samples they hold. **Eager**.

    Parameters
    ----------
    csl : (sample), nat
        What `neurolens.csl` returns, or its `csl`.
    learning_time : (sample), dimensionless
        What `neurolens.learning_time` returns, or its `learning_time`. Samples are matched by their ids.
    gridsize : int
        Hexagons across.
    """
    loss, time = xr.align(pick(csl, "csl"), pick(learning_time, "learning_time"), join="inner")
    with styled():
        ax = new_axes(ax)
        kind = "Mean" if loss.name == "csl_mean" else "Cumulative"
        ax.set_title(f"{kind} sample loss against learning time")
        ax.set_xlabel("learning time [share of checkpoints]")
        ax.set_ylabel(label_of(loss, "csl"))
        ax.grid(False)
        x, y = np.asarray(time, np.float64), np.asarray(loss, np.float64)
        both = np.isfinite(x) & np.isfinite(y)
        if not both.any():
            return empty(ax, "no sample has both")
        x, y = x[both], y[both]
        logarithmic = spans_decades(y)
        hexagons = ax.hexbin(
            x,
            y,
            gridsize=(gridsize, max(1, int(gridsize * 0.6))),
            yscale="log" if logarithmic else "linear",
            bins="log" if x.size > 50 else None,
            mincnt=1,
            cmap="cividis_r",
            linewidths=0.2,
        )
        if logarithmic:
            plain_log_ticks(ax.yaxis)
        bar = ax.figure.colorbar(hexagons, ax=ax, label="samples", pad=0.02)
        bar.outline.set_visible(False)
        return ax


def binned_curves(
    scores: xr.DataArray | xr.Dataset | Mapping[str, xr.DataArray] | Sequence[xr.DataArray],
    reference: xr.DataArray,
    *,
    bins: int = 15,
    ax: Axes | None = None,
) -> Axes:
    """Draw the mean of scores in equal bins of an external score, such as memorisation. **Eager**.

    Bars are 95 % normal intervals of the mean, from `neurolens.samples.binned_curve`. Several scores are each scaled to
    [0, 1] by the range of their curve, since their units differ.

    Parameters
    ----------
    scores : (sample) each
        One score, or several: a Dataset's variables, a mapping of names to arrays, or a sequence of named arrays.
    reference : (sample)
        The external score that is binned; samples are matched by their ids.
    bins : int
        Number of equally wide bins; the literature uses 15 (CIFAR-100) and 21 (ImageNet).
    """
    named = _named(scores)
    with styled():
        ax = new_axes(ax)
        ax.set_xlabel(label_of(reference, "reference"))
        ax.set_title(f"Mean score in {bins} bins of {label_of(reference, 'the reference')}")
        several = len(named) > 1
        only = label_of(next(iter(named.values())))
        ax.set_ylabel("mean of the bin, scaled to [0, 1]" if several else f"mean {only}")
        for i, (name, array) in enumerate(named.items()):
            table = samples.binned_curve(*xr.align(array, reference, join="inner"), bins=bins).compute()
            centre, mean, half = (np.asarray(table[column]) for column in ("centre", "mean", "sem"))
            some = np.isfinite(mean)
            if not some.any():
                continue
            low, height = (np.nanmin(mean), np.ptp(mean[some]) or 1.0) if several else (0.0, 1.0)
            ax.errorbar(
                centre[some],
                (mean[some] - low) / height,
                1.96 * np.nan_to_num(half[some]) / height,
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                markersize=4.5,
                capsize=2,
                elinewidth=1,
                label=name.replace("_", " "),
            )
        if not ax.has_data():
            return empty(ax, "no sample has both scores")
        if several:
            ax.legend()
        return ax


def _named(
    scores: xr.DataArray | xr.Dataset | Mapping[str, xr.DataArray] | Sequence[xr.DataArray],
) -> dict[str, xr.DataArray]:
    if isinstance(scores, xr.DataArray):
        return {str(scores.name or "score"): scores}
    if isinstance(scores, xr.Dataset):
        return {str(name): array for name, array in scores.data_vars.items() if array.dims == ("sample",)}
    if isinstance(scores, Mapping):
        return {str(name): array.rename(name) for name, array in scores.items()}
    return {str(array.name or f"score {i + 1}"): array for i, array in enumerate(scores)}
