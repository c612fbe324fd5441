"""How the pictures look: colours that the colour-blind can tell apart (Okabe and Ito), quiet axes, clear labels."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from neurolens.errors import SchemaError

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, GREY, PALE = "#24292f", "#6e7781", "#d0d7de"
UNEVEN = 100
"""How many times the smallest gap between checkpoints the largest is, from where on their axis is logarithmic."""

STYLE: Any = {  # of matplotlib's settings
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "font.family": "DejaVu Sans",
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the style of the house, and leave matplotlib's settings as they were."""
    with mpl.rc_context(STYLE):
        yield


def new_axes(ax: Axes | None, *, size: tuple[float, float] = (5.6, 3.6)) -> Axes:
    """Return ``ax``, or the Axes of a new figure that keeps its labels inside."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # here, not above: it is only for interactive use, and slow to import

    return plt.figure(figsize=size, layout="constrained").add_subplot()


def new_figure(size: tuple[float, float] = (5.6, 3.6)) -> Figure:
    """Return a figure that pyplot does not know of, and so never keeps alive."""
    return Figure(figsize=size, layout="constrained")


def pick(data: xr.DataArray | xr.Dataset, name: str) -> xr.DataArray:
    """Return the named variable of a Dataset, or the array that was given instead of one.

    Raises
    ------
    SchemaError
        If the Dataset has no such variable.
    """
    if isinstance(data, xr.DataArray):
        return data
    if name not in data:
        found = ", ".join(map(str, data.data_vars)) or "nothing"
        raise SchemaError(f"the Dataset holds {found}, and {name!r} is drawn here; pass neurolens.{name}(ds)")
    return data[name]


def label_of(array: xr.DataArray, fallback: str = "") -> str:
    """Return the name of an array for an axis, with its units in brackets where it has any."""
    name = str(array.name or fallback).replace("_", " ")
    units = array.attrs.get("units", "")
    return f"{name} [{units}]" if units not in ("", "1") else name


def finite(array: xr.DataArray) -> np.ndarray:
    """Return the finite values of an array, float64. **Eager**."""
    values = np.asarray(array, dtype=np.float64).ravel()
    return values[np.isfinite(values)]


def spans_decades(values: np.ndarray) -> bool:
    """Tell whether values are better read on a logarithmic axis: all positive, and the largest ≥ 20 × the smallest."""
    return bool(values.size) and values.min() > 0 and values.max() >= 20 * values.min()


def plain_log_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers at 1, 2 and 5 times the powers of ten."""
    axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_formatter(NullFormatter())


def empty(ax: Axes, reason: str) -> Axes:
    """Say in the middle of the Axes why there is nothing to see."""
    ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center", color=GREY)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    return ax


def series_axis(ax: Axes, at: np.ndarray, series: str) -> None:
    """Label the axis of the series; it is logarithmic, zero included, where gaps between checkpoints differ much."""
    ax.set_xlabel(series)
    gaps = np.diff(np.sort(np.asarray(at, np.float64)))
    if gaps.size and gaps.min() > 0 and gaps.max() >= UNEVEN * gaps.min():
        linear = max(1.0, float(gaps.min()))
        ax.set_xscale("symlog", linthresh=linear)
        decades = 10.0 ** np.arange(np.ceil(np.log10(linear)), np.floor(np.log10(np.max(at))) + 1)
        marked = ([0.0] if np.min(at) <= 0 else []) + [float(d) for d in decades if d >= np.min(at)]
        if len(marked) > 1:  # the locator's own ticks crowd where the axis is linear
            ax.set_xticks(marked)
    else:
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _brief(round(value))))
    if len(at) == 1:
        ax.set_xticks([float(at[0])])


def percent_axis(axis: Axis) -> None:
    """Label shares as percentages, with as few digits as they need."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))


def evenly_named(ax: Axes, labels: Sequence[Any], *, room: float) -> None:
    """Name evenly spaced places along x, as many as fit: every one, every second, …, and the last.

    ``room`` is the share of the width of the Axes that labels may take, as its width is before it is drawn.
    """
    words = [_brief(label) for label in labels]
    figure: Any = ax.figure
    width = room * ax.get_position().width * figure.get_size_inches()[0] * 72
    fit = max(2, int(width / (6 * max(map(len, words), default=1) + 10)))
    step = max(1, -(-(len(words) - 1) // (fit - 1)))
    ticks = list(range(0, len(words), step))
    if ticks and ticks[-1] != len(words) - 1:
        if len(words) - 1 - ticks[-1] < 0.7 * step and len(ticks) > 1:
            ticks.pop()
        ticks.append(len(words) - 1)
    ax.set_xticks(ticks, [words[i] for i in ticks])


def _brief(label: Any) -> str:
    """Write thousands with a k, where nothing is lost by it."""
    whole = isinstance(label, int | np.integer) and label >= 10_000 and label % 1000 == 0
    return f"{int(label) // 1000}k" if whole else str(label)


def short_names(names: Sequence[str], *, longest: int = 30) -> tuple[list[str], str]:
    """Return names without the parts that all of them begin and end with, and the pattern that stands for all.

    Parts are what dots and colons set apart: of ``layers.0.mlp:input`` and ``layers.1.mlp:input`` these are 0 and 1,
    and the pattern is ``layers.*.mlp:input``. A name that still is too long loses its middle.
    """
    if len(names) < 2:
        return [cut(name, longest) for name in names], ""
    parts = [re.split(r"(?<=[.:])|(?=:)", name) for name in names]
    least = min(map(len, parts)) - 1
    same = [len(set(column)) == 1 for column in zip(*(p[:least] for p in parts))]
    first = same.index(False) if False in same else least
    least = min(map(len, parts)) - 1 - first
    ends = [len(set(column)) == 1 for column in zip(*(p[::-1][:least] for p in parts))]
    last = ends.index(False) if False in ends else least
    kept = ["".join(p[first : len(p) - last]) for p in parts]
    if not first and not last:
        return [cut(name, longest) for name in names], ""
    tail = "".join(parts[0][len(parts[0]) - last :])
    dot = "." if kept[0].endswith(".") and tail else ""
    return [cut(name.rstrip("."), longest) for name in kept], "".join(parts[0][:first]) + "*" + dot + tail


def cut(name: str, longest: int) -> str:
    """Return a name without its middle, where it is longer than ``longest``."""
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"
