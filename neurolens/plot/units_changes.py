"""What becomes of dormant units, and how their number depends on the threshold."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from neurolens import schema
from neurolens.errors import SchemaError
from neurolens.plot.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MARKERS,
    PALE,
    VERMILLION,
    empty,
    evenly_named,
    new_axes,
    percent_axis,
    styled,
)

POINTS = 16
"""Points along one ribbon."""
BARS = 40
"""Up to how many checkpoints each has a bar."""
USUAL = {0.025: "0.025", 0.1: "0.1"}
"""Thresholds that are marked: of the paper, and of the reference's logs."""


def transition_ribbons(changes: xr.Dataset, *, dim: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw how many units stay dormant, revive or fall silent from each checkpoint to the next. **Eager**.

    At every checkpoint dormant units stand below those that are alive; ribbons lead from where units are to where they
    are next. Checkpoints are evenly spaced. Where most units are alive, the top is cut off, and the axis says of how
    many units there are.

    Parameters
    ----------
    changes : (transition)
        What `neurolens.transitions` returns, of one mask (series, unit).
    dim : str, optional
        The series dim; `epoch` or `step`, whichever there is.

    Raises
    ------
    SchemaError
        If counts are missing, or there are further dims, naming them.
    """
    needed = ("n_dormant", "n_stay", "n_revived", "n_new", "n_units")
    lacking = [name for name in needed if name not in changes]
    if lacking:
        raise SchemaError(f"there is no {lacking[0]!r}; pass neurolens.transitions(neurolens.dormant(units))")
    further = [str(d) for d in changes["n_stay"].dims if d != "transition"]
    if further:
        raise SchemaError(f"transitions along {further} are not added up; select one: changes.isel({further[0]}=0)")
    counts = changes[list(needed)].compute()
    series = schema.series_dim(counts["n_dormant"], dim)
    at = np.asarray(counts[series]) if series in counts.coords else np.arange(counts.sizes[series])
    dormant, stay, revived, new = (np.asarray(counts[name], np.float64) for name in needed[:4])
    units = int(counts["n_units"])
    with styled():
        ax = new_axes(ax)
        definition, tau = counts.attrs.get("definition"), changes.attrs.get("dormancy_tau")
        named = f": {definition}" + (f" at {tau:g}" if tau is not None else "") if definition else ""
        ax.set_title(f"What becomes of dormant units{named}")
        ax.set_ylabel(f"units, of {units:,}")
        ax.set_xlabel(series)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if not stay.size:
            return empty(ax, "one checkpoint: there is nothing to follow yet")
        used = float(max((stay + new + revived).max(), dormant.max()))
        if not used:
            return empty(ax, f"none of {units:,} units is dormant at any checkpoint")
        top = units if used > 0.6 * units else min(units, 1.15 * used + 1)
        many = len(dormant) > BARS
        draw = _areas if many else _flows
        handles = draw(ax, dormant, stay, revived, new, units)
        top = units if used > 0.6 * units else min(units, 1.15 * used + 1)
        ax.set_ylim(-1.15 * revived.max() if many else 0, top)
        evenly_named(ax, at.tolist(), room=0.75)
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0))
        return ax


def _flows(
    ax: Axes, dormant: np.ndarray, stay: np.ndarray, revived: np.ndarray, new: np.ndarray, units: int
) -> list[Any]:
    """Draw a bar per checkpoint, and ribbons from each to the next; return what the legend says."""
    before, after = dormant[:-1], dormant[1:]
    nobody, everybody = np.zeros_like(stay), np.full_like(stay, units)
    x, width = np.arange(len(dormant)), 0.05
    ax.set_xlim(-0.3, len(dormant) - 0.7)
    ribbons: list[tuple[Any, Any, Any, Any, str, float]] = [
        (before + new, everybody, after + revived, everybody, PALE, 0.35),
        (nobody, stay, nobody, stay, BLUE, 0.8),
        (stay, before, after, after + revived, GREEN, 0.8),
        (before, before + new, stay, after, VERMILLION, 0.8),
    ]
    for ribbon in ribbons:
        _ribbons(ax, width, *ribbon)
    ax.bar(x, units - dormant, 2 * width, dormant, color=PALE, linewidth=0)
    ax.bar(x, dormant, 2 * width, color=INK, linewidth=0)
    alive = Patch(facecolor=PALE, alpha=0.6, linewidth=0, label="stays alive")
    return [Patch(color=INK, label="dormant"), *_patches("revives"), alive]


def _areas(
    ax: Axes, dormant: np.ndarray, stay: np.ndarray, revived: np.ndarray, new: np.ndarray, units: int
) -> list[Any]:
    """Draw areas, where ribbons would be too thin: who stays and who is new add up, who revives is below zero."""
    x = np.arange(1, len(dormant))
    ax.set_xlim(0, len(dormant) - 0.5)
    for low, high, colour in ((0, stay, BLUE), (stay, stay + new, VERMILLION), (-revived, 0, GREEN)):
        ax.fill_between(x, low, high, step="mid", color=colour, alpha=0.8, linewidth=0)
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):,.0f}"))
    return _patches("revived (below 0)")


def _patches(revived: str) -> list[Any]:
    named = ((BLUE, "stays dormant"), (VERMILLION, "falls silent"), (GREEN, revived))
    return [Patch(color=colour, alpha=0.8, linewidth=0, label=name) for colour, name in named]


def _ribbons(
    ax: Axes, width: float, low: Any, high: Any, low_next: Any, high_next: Any, colour: str, alpha: float
) -> None:
    """Draw all ribbons of one kind at once, smooth from each checkpoint to the next; none where nobody goes."""
    t = np.linspace(0, 1, POINTS)
    smooth = t * t * (3 - 2 * t)
    start = np.arange(len(low), dtype=np.float64)[:, None] + width
    x = start + t * (1 - 2 * width)
    bottom = low[:, None] + smooth * (low_next - low)[:, None]
    top = high[:, None] + smooth * (high_next - high)[:, None]
    some = (high > low) | (high_next > low_next)
    gap = np.full((len(low), 1), np.nan)  # keeps the ribbons apart
    x, bottom, top = (np.hstack([values, gap])[some].ravel() for values in (x, bottom, top))
    ax.fill_between(x, bottom, top, color=colour, alpha=alpha, linewidth=0)


def threshold_curves(summary: xr.Dataset, *, count: int = 5, dim: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw the share of dormant units against the threshold, at several checkpoints. **Eager**.

    Where curves are steep, a count says more about the threshold than about the network.

    Parameters
    ----------
    summary : (tau, series)
        What `neurolens.dormancy_summary` returns for several thresholds, e.g. ``tau=numpy.geomspace(1e-3, 1, 60)``.
    count : int
        How many checkpoints at most, evenly chosen along the series, the first and the last among them.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever there is.

    Raises
    ------
    SchemaError
        If there is no dim `tau`, or there are further dims, naming them.
    """
    share = summary["pooled_fraction"] if "pooled_fraction" in summary else xr.DataArray()
    if "tau" not in share.dims:
        raise SchemaError(
            f"found dims {share.dims} of pooled_fraction, and `tau` is drawn along; pass "
            "neurolens.dormancy_summary(units, 'redo', tau=numpy.geomspace(1e-3, 1, 60))"
        )
    series = schema.series_dim(share, dim)
    further = [str(d) for d in share.dims if d not in ("tau", series)]
    if further:
        raise SchemaError(f"curves along {further} are drawn one by one; select one: summary.isel({further[0]}=0)")
    share = share.transpose(series, "tau").sortby("tau").compute()
    taus, values = np.asarray(share["tau"], np.float64), np.asarray(share, np.float64)
    at = np.asarray(share[series]) if series in share.coords else np.arange(share.sizes[series])
    chosen = np.unique(np.linspace(0, len(at) - 1, min(count, len(at))).round().astype(int))
    with styled():
        ax = new_axes(ax)
        definition = summary.attrs.get("definition", "")
        ax.set_title(f"Dormant units by threshold: {definition}" if definition else "Dormant units by threshold")
        ax.set_xlabel("threshold tau")
        ax.set_ylabel("share of all units")
        percent_axis(ax.yaxis)
        if taus.min() > 0 and taus.max() >= 20 * taus.min():
            ax.set_xscale("log")
        colours = shades(len(chosen))
        for place, (i, colour) in enumerate(zip(chosen, colours)):
            marks: dict[str, Any] = {"marker": MARKERS[place % len(MARKERS)], "markersize": 4.5}
            every = (place * len(taus) // (8 * max(len(chosen), 1)), max(1, len(taus) // 8))
            ax.plot(taus, values[i], color=colour, label=f"{series} {at[i]}", markevery=every, **marks)
        ax.set_xlim(taus.min(), taus.max() if len(taus) > 1 else None)
        ax.set_ylim(0, max(float(np.nanmax(values, initial=0.0)) * 1.06, 0.01))
        for tau, text in USUAL.items():
            if taus.min() < tau < taus.max():
                ax.axvline(tau, color=GREY, linewidth=0.9, linestyle=":")
                place_of: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
                ax.annotate(text, (tau, 1), (3, -3), va="top", fontsize=8, color=GREY, **place_of)
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
        return ax


def shades(count: int) -> list[Any]:
    """Return colours of increasing lightness, by which an order is read: for the colour-blind too."""
    return [colormaps["viridis"](value) for value in (np.linspace(0, 0.86, count) if count > 1 else [0.0])]
