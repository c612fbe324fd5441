"""How the pictures look: colours that the colour-blind can tell apart (Okabe and Ito), quiet axes, clear labels."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from neurolens.errors import SchemaError

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, GREY, PALE = "#24292f", "#6e7781", "#d0d7de"

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
