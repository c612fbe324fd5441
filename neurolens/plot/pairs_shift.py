"""A data set that shifts: what a phrase's pairs carry of each year's images, beside how often the thing is there."""

import textwrap

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from neurolens.errors import SchemaError
from neurolens.plot.style import BLUE, GREY, VERMILLION, evenly_named, percent_axis, styled

_GROUPED = ("mean", "mean_low", "mean_high", "rate", "rate_low", "rate_high", "correlation", "p", "n")


def shift_curves(
    grouped: xr.Dataset,
    whole: xr.Dataset | None = None,
    *,
    phrase: str = "",
    group: str = "group",
    column: str = "rate",
    axes: tuple[Axes, Axes] | None = None,
) -> tuple[Axes, Axes]:
    """Draw the share of the norm that a phrase's pairs carry in each group of images, and the rate of a column below.

    Parameters
    ----------
    grouped : Dataset over ``group``
        What `neurolens.pairs.association_by_group` returned. Bands are its intervals.
    whole : Dataset, optional
        What `neurolens.pairs.association` returned of the same images: the correlation over images, with its bootstrap
        interval and permutation p, is written below.
    phrase, group, column : str
        What they are called: a phrase, ``"year"``, ``"yellow cars"``.
    axes : (Axes, Axes), optional

    Returns
    -------
    Axes of the shares, and those of the rates.

    Raises
    ------
    SchemaError
        If these are not such Datasets, or of several phrases.
    """
    lacking = [name for name in _GROUPED if name not in grouped]
    if lacking or grouped["mean"].dims != ("group",):
        raise SchemaError(f"found no {(*lacking, 'group')[0]!r}; give association_by_group(…) of one phrase")
    if whole is not None and ("r" not in whole or whole["r"].ndim):
        raise SchemaError("the correlation over images is of several phrases, or none; select one: association(…)")
    at = np.arange(grouped.sizes["group"])
    with styled():
        top, low = _pair(axes)
        for ax, name, colour in ((top, "mean", BLUE), (low, "rate", VERMILLION)):
            values, least, most = (np.asarray(grouped[name + end], np.float64) for end in ("", "_low", "_high"))
            ax.fill_between(at, least, most, color=colour, alpha=0.2, linewidth=0)
            ax.plot(at, values, color=colour, marker="o" if name == "mean" else "s", markersize=4)
        top.set_title(f"Share of the norm in the pairs of “{phrase}”" if phrase else "Share of the norm in the pairs")
        top.set_ylabel("share of the norm")
        top.set_xticks(at, [])
        low.set_ylabel(column)
        if float(np.nanmax(np.asarray(grouped["rate_high"]), initial=0)) <= 1:
            percent_axis(low.yaxis)
        evenly_named(low, grouped["group"].to_numpy().tolist(), room=1.0)
        low.set_xlabel(group)
        low.annotate(
            shift_words(grouped, whole, group=group),
            (0, 0),
            (0, -38),
            xycoords="axes fraction",
            textcoords="offset points",
            va="top",
            fontsize=8,
            color=GREY,
        )
        return top, low


def shift_words(grouped: xr.Dataset, whole: xr.Dataset | None = None, *, group: str = "group", width: int = 88) -> str:
    """Say how share and column go together, over groups and over images."""
    images = int(grouped["n"].sum())
    told = (
        f"Over {grouped.sizes['group']} groups by {group}: r = {float(grouped['correlation']):+.2f}"
        f"{_p(float(grouped['p']))}."
    )
    if whole is not None:
        low, high = float(whole["low"]), float(whole["high"])
        between = f" (95 %: {low:+.2f} to {high:+.2f})" if np.isfinite([low, high]).all() else ""
        told += f" Over {int(whole['n']):,} images: r = {float(whole['r']):+.2f}{between}{_p(float(whole['p']))}."
    else:
        told += f" {images:,} images."
    return "\n".join(textwrap.wrap(told, width))


def _p(value: float) -> str:
    return f", permutation p = {value:.3g}" if np.isfinite(value) else ""


def _pair(axes: tuple[Axes, Axes] | None) -> tuple[Axes, Axes]:
    if axes is not None:
        return axes
    import matplotlib.pyplot as plt

    made = plt.figure(figsize=(6.2, 4.8), layout="constrained").subplots(2, 1, height_ratios=(3, 2))
    return made[0], made[1]
