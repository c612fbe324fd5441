"""The card of a unit: how loud it is through each head, and of its loudest heads the phrases and images."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from neurolens.errors import SchemaError
from neurolens.plot.pairs_images import ImagesById, shown
from neurolens.plot.panels import figure_of
from neurolens.plot.style import COLOURS, GREY, INK, PALE, cut, styled

_SIDE, _WORDS, _BARS = 1.0, 2.3, 2.5  # inches: of an image, of the column of phrases, of that of bars
_LONGEST = 26


def unit_card(
    described: xr.Dataset,
    images: ImagesById | None = None,
    *,
    told: xr.Dataset | None = None,
    figure: Figure | SubFigure | None = None,
) -> list[Axes]:
    """Draw the card of a unit. **Eager**.

    On the left the norm of what it says through each head, the loudest ones coloured; then a row for all heads together
    and one for each of the loudest: the phrases nearest to it with their cosines, and the images at which it is
    strongest with the strength.

    Parameters
    ----------
    described : Dataset
        What `neurolens.pairs.describe_unit` returned.
    images : function, optional
        From sample ids to their (H, W, C) images; without it, ids stand in their place.
    told : Dataset, optional
        What `neurolens.sparse_codes.describe` returned of the pairs' codes, ``phrase`` and ``value`` (unit, head,
        atom), or (head, atom) of this unit: then phrases of codes stand beside the heads, not the nearest ones.
    figure : Figure, optional
        Where to draw; absent: a new one.

    Returns
    -------
    Axes: the bars, then row by row the words and the images.

    Raises
    ------
    SchemaError
        If it is no description of a unit, or the codes are of other heads.
    """
    lacking = [name for name in ("norm", "dead", "row_head", "strength") if name not in described]
    if lacking:
        raise SchemaError(f"found {sorted(map(str, described))}, and {lacking[0]!r} was needed: describe_unit(…)")
    rows, count = described.sizes["row"], described.sizes["rank"]
    heads = [int(head) for head in described["row_head"].to_numpy()]
    words = _words(described, told)
    with styled():
        figure = figure_of(figure, card_size(described))
        parts: Any = figure.subfigures(1, 2, width_ratios=(_BARS, _WORDS + count * _SIDE))
        left, right = parts
        title = f"Unit {described['unit'].item()}" if "unit" in described.coords else "Unit"
        bars = left.subplots()
        bars.set_title(title)
        _bars(bars, described, heads)
        grid: Any = right.subplots(rows, 1 + count, squeeze=False, width_ratios=(_WORDS, *[_SIDE] * count))
        for row, axes in enumerate(grid):
            axes[0].set_axis_off()
            colour = INK if heads[row] < 0 else _colour(heads.index(heads[row]) - 1)
            axes[0].text(
                0, 1, str(described["row"].to_numpy()[row]), va="top", fontsize=9.5, fontweight="bold", color=colour
            )
            axes[0].text(0, 0.8, "\n".join(words[row]), va="top", fontsize=8.3, color=INK, linespacing=1.25)
            _images(axes[1:], described.isel(row=row), images)
        return [bars, *grid.ravel()]


def card_size(described: xr.Dataset) -> tuple[float, float]:
    """Return width and height in inches that `unit_card` needs."""
    return _BARS + _WORDS + described.sizes["rank"] * _SIDE, max(2.4, described.sizes["row"] * (_SIDE + 0.22))


def _bars(ax: Axes, described: xr.Dataset, heads: list[int]) -> None:
    norms, dead = np.asarray(described["norm"], np.float64), np.asarray(described["dead"], bool)
    colours = [PALE] * len(norms)
    for i, head in enumerate(heads[1:]):
        colours[head] = _colour(i)
    ax.barh(np.arange(len(norms)), norms, color=colours, edgecolor=GREY, linewidth=0.3)
    ax.plot(np.zeros(int(dead.sum())), np.flatnonzero(dead), "x", color=GREY, markersize=4, clip_on=False)
    ax.invert_yaxis()
    labels = [str(label) for label in described["head"].to_numpy().tolist()]
    if len(labels) <= 20:
        ax.set_yticks(range(len(labels)), labels)
    else:
        ax.yaxis.set_major_locator(MaxNLocator(10, integer=True))
    ax.grid(visible=False)
    ax.set_ylabel("head")
    silent = f"\n× {int(dead.sum())} dead" if dead.any() else ""
    ax.set_xlabel(f"norm, top {described.attrs.get('top', 50)} images{silent}", fontsize=9)
    ax.xaxis.set_major_locator(MaxNLocator(4))


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _words(described: xr.Dataset, told: xr.Dataset | None) -> list[list[str]]:
    """Return the lines that stand beside each row."""
    rows: list[list[str]] = [[] for _ in range(described.sizes["row"])]
    if told is not None:
        own = told.sel(unit=described["unit"].item()) if "unit" in told.dims else told
        if "head" not in own.dims or not {"phrase", "value"} <= set(own):
            raise SchemaError(f"found {sorted(map(str, told))} over {dict(told.sizes)}; give describe(codes_at(…), …)")
        known = own["head"].to_numpy().tolist() if "head" in own.coords else list(range(own.sizes["head"]))
        for row, head in enumerate(described["row_head"].to_numpy()):
            label = described["head"].to_numpy()[head] if head >= 0 else None
            if label in known:
                one = own.isel(head=known.index(label))
                rows[row] = _lines(one["phrase"].to_numpy(), one["value"].to_numpy(), described.sizes.get("place", 5))
    elif "phrase" in described:
        for row in range(len(rows)):
            one = described.isel(row=row)
            rows[row] = _lines(one["phrase"].to_numpy(), one["score"].to_numpy(), described.sizes["place"])
    return rows


def _lines(phrases: Any, numbers: Any, count: int) -> list[str]:
    told = [(str(p), float(n)) for p, n in zip(phrases, numbers) if str(p) and np.isfinite(n)]
    return [f"{cut(phrase, _LONGEST)}  {number:+.2f}" for phrase, number in told[:count]]


def _images(axes: Any, row: xr.Dataset, images: ImagesById | None) -> None:
    names = row["sample" if "sample" in row else "position"].to_numpy().tolist()
    strengths = np.asarray(row["strength"], np.float64)
    if images is None:
        for ax, name, strength in zip(axes, names, strengths):
            ax.set_axis_off()
            ax.text(0.5, 0.5, f"{cut(str(name), 12)}\n{strength:.3g}", ha="center", va="center", fontsize=7, color=GREY)
        return
    for ax, image, strength in zip(axes, images(names), strengths, strict=True):
        shown(ax, image, f"{strength:.3g}")
