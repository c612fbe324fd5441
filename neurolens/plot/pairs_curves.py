"""Numbers of pairs: what is still recognised with few of them or few components, and how unequal their norms are."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from neurolens.errors import SchemaError
from neurolens.plot.style import (
    BLUE,
    COLOURS,
    GREY,
    MARKERS,
    VERMILLION,
    empty,
    new_axes,
    percent_axis,
    plain_log_ticks,
    spans_decades,
    styled,
)

IDENTITY = "pairs, one direction each: an identity"
"""What the one direction of pairs is called: it gives embeddings back whatever the network learned."""
PERCENTILES = (50, 90, 99)
_BINS = 40


def ablation_curves(
    curves: xr.Dataset | Mapping[str, xr.Dataset], *, chance: float | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the accuracy that is left when only few pairs, or units, vary and the others are held at their mean.

    Parameters
    ----------
    curves : Dataset, or several by name
        What `neurolens.pairs.ablation_curve` returned: ``{"pairs": …, "units": …}``. Bands are its intervals; dashed
        are as many drawn at random, where there are any.
    chance : float, optional
        Accuracy of guessing, drawn as a line.
    ax : Axes, optional

    Raises
    ------
    SchemaError
        If something is no such curve, or there is none.
    """
    given = {"kept": curves} if isinstance(curves, xr.Dataset) else dict(curves)
    for name, curve in given.items():
        _require(curve, ("accuracy", "low", "high", "correct"), "share", f"{name!r} is no ablation_curve(…)")
    if not given:
        raise SchemaError("there is no curve; give ablation_curve(…), or several by name")
    with styled():
        ax = new_axes(ax, size=(6.4, 4.6))
        for i, (name, curve) in enumerate(given.items()):
            _curve(ax, name, curve, COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        if chance is not None:
            ax.axhline(chance, color=GREY, linewidth=1, linestyle=":")
            ax.annotate(
                "chance",
                (1, chance),
                (-2, 2),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="bottom",
                fontsize=8,
                color=GREY,
            )
        every = np.unique(np.concatenate([np.asarray(curve["share"], np.float64) for curve in given.values()]))
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(every.tolist()))
        ax.xaxis.set_minor_locator(NullLocator())
        percent_axis(ax.xaxis)
        percent_axis(ax.yaxis)
        ax.set_xlabel("share that varies; the others are held at their mean")
        images = {curve.sizes["sample"] for curve in given.values()}
        ax.set_ylabel(f"zero-shot accuracy, {' and '.join(f'{n:,}' for n in sorted(images))} images")
        ax.set_title("Accuracy with few pairs" if "pairs" in given else "Accuracy with few left")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
        return ax


def reconstruction_curve(curve: xr.Dataset, *, identity: bool = True, ax: Axes | None = None) -> Axes:
    """Draw the accuracy of embeddings made of the first components of each unit.

    Parameters
    ----------
    curve : Dataset over ``rank``
        What `neurolens.pairs.rank_curve` returned.
    identity : bool
        Mark the accuracy with the one direction of each pair, which is that of the embeddings, and say that this is an
        identity: a pair's contributions have rank 1 in any network.
    ax : Axes, optional

    Raises
    ------
    SchemaError
        If it is no such curve.
    """
    _require(curve, ("accuracy", "low", "high", "whole", "count"), "rank", "this is no rank_curve(…)")
    ranks = np.asarray(curve["rank"], np.int64)
    found, low, high = (np.asarray(curve[name], np.float64) for name in ("accuracy", "low", "high"))
    whole = float(curve["whole"])
    with styled():
        ax = new_axes(ax, size=(5.6, 4.4))
        ax.axhline(whole, color=GREY, linewidth=1.2, linestyle="--", label="embeddings as they are")
        ax.errorbar(
            ranks,
            found,
            yerr=np.stack([found - low, high - found]),
            color=BLUE,
            marker="o",
            capsize=3,
            linewidth=1.8,
            elinewidth=1,
            label="units, first components",
        )
        if identity:
            look: dict[str, Any] = {
                "linestyle": "none",
                "marker": "D",
                "markersize": 9,
                "fillstyle": "none",
                "zorder": 5,
            }
            ax.plot([1], [whole], color=VERMILLION, label=IDENTITY, **look)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator(ranks.tolist()))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        least, most = ax.get_ylim()
        least = min(least, most - 0.02)  # no mountains are made of single images
        ax.set_ylim(least, most + 0.05 * (most - least))  # and no marker is cut
        ax.yaxis.set_major_formatter(PercentFormatter(1))  # as many decimals as the range needs
        ax.set_xlabel("components of each unit")
        ax.set_ylabel(f"zero-shot accuracy, {int(curve['count']):,} images")
        ax.set_title("Reconstruction by rank")
        ax.margins(x=0.1)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18))
        return ax


def norm_histogram(norms: xr.DataArray, dead: xr.DataArray | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw how large the contributions of pairs are, and say how many pairs are dead.

    Parameters
    ----------
    norms : (unit, head), or with a ``rank``, whose mean it then is
        What `neurolens.pairs.pair_norms` returned. NaN is left out, as is what is 0.
    dead : bool, (unit, head), optional
        What `neurolens.pairs.dead_pairs` returned. Without it a pair is dead whose norm is 0.
    ax : Axes, optional

    Raises
    ------
    SchemaError
        If they are of other pairs.
    """
    score = norms.mean("rank", skipna=False) if "rank" in norms.dims else norms
    values = np.asarray(score.transpose("unit", "head"), np.float64)
    gone = values == 0 if dead is None else np.asarray(dead.transpose("unit", "head"), bool)
    if gone.shape != values.shape:
        raise SchemaError(
            f"found norms of {values.shape} units by heads, and dead pairs of {gone.shape}; give the same"
        )
    live = values[np.isfinite(values) & (values > 0) & ~gone]
    with styled():
        ax = new_axes(ax, size=(6.0, 3.6))
        ax.set_title("Norms of pairs", pad=18)
        words = f"{int(gone.sum()):,} of {gone.size:,} pairs {'is' if gone.sum() == 1 else 'are'} dead"
        below = f"{words}, and not drawn" if gone.any() else f"none of {gone.size:,} pairs is dead"
        ax.set_xlabel(f"mean of a pair's largest centred contributions [embedding]\n{below}")
        ax.set_ylabel("pairs")
        if not live.size:
            return empty(ax, words)
        logarithmic = spans_decades(live)
        edges = _edges(live, logarithmic)
        ax.hist(live, bins=edges, color=BLUE, edgecolor="white", linewidth=0.4)
        if logarithmic:
            ax.set_xscale("log")
            plain_log_ticks(ax.xaxis)
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        _percentiles(ax, live)
        return ax


def _curve(ax: Axes, name: str, curve: xr.Dataset, colour: str, marker: str) -> None:
    ordered = curve.sortby("share")
    at, found = (np.asarray(ordered[n], np.float64) for n in ("share", "accuracy"))
    low, high = (np.asarray(ordered[n], np.float64) for n in ("low", "high"))
    ax.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
    ax.plot(at, found, color=colour, marker=marker, markersize=5, label=name)
    if "random" not in ordered or not ordered.sizes.get("draw"):
        return
    drawn = np.asarray(ordered["random"].transpose("share", "draw"), np.float64)
    if {"random_low", "random_high"} <= set(ordered):
        low, high = (np.asarray(ordered[n], np.float64) for n in ("random_low", "random_high"))
        ax.fill_between(at, low, high, color=colour, alpha=0.1, linewidth=0)
    draws = ordered.sizes["draw"]
    label = f"{name}, as many at random ({draws} draw{'s' * (draws > 1)})"
    ax.plot(at, drawn.mean(axis=1), color=colour, linestyle="--", linewidth=1.2, label=label)


def _edges(values: np.ndarray, logarithmic: bool) -> list[float]:
    least, most = float(values.min()), float(values.max())
    if least == most:
        return [0.9 * least, 1.1 * most]
    edges = np.geomspace(least, most, _BINS + 1) if logarithmic else np.linspace(least, most, _BINS + 1)
    edges[[0, -1]] = least, most  # rounding would leave the ends out
    found: list[float] = edges.tolist()
    return found


def _percentiles(ax: Axes, live: np.ndarray) -> None:
    """Mark where masks that keep a share of the pairs begin; a share whose words would lie on others has none."""
    left, right = ax.get_xlim()
    logarithmic = ax.get_xscale() == "log"

    def place(value: float) -> float:
        ends = np.log([left, right, value]) if logarithmic else np.asarray([left, right, value])
        return float((ends[2] - ends[0]) / (ends[1] - ends[0]))

    said = -1.0
    for percentile in PERCENTILES:
        value = float(np.percentile(live, percentile))
        ax.axvline(value, color=VERMILLION, linewidth=1, linestyle="--")
        ax.annotate(
            f"top {100 - percentile} %",
            (value, 1),
            (2, 1 if place(value) - said > 0.13 else 11),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            color=VERMILLION,
        )
        said = place(value)


def _require(curve: Any, names: tuple[str, ...], dim: str, what: str) -> None:
    lacking = [name for name in names if not isinstance(curve, xr.Dataset) or name not in curve]
    if lacking or dim not in curve.dims:
        found = sorted(map(str, curve)) if isinstance(curve, xr.Dataset) else type(curve).__name__
        raise SchemaError(f"{what}: found {found}, and {(*lacking, dim)[0]!r} was needed")
