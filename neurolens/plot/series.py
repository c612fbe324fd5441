"""Curves over the series: what training reported, and what single samples went through."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from neurolens import schema
from neurolens.errors import SchemaError, nearest
from neurolens.plot.style import (
    BLUE,
    GREY,
    INK,
    PALE,
    VERMILLION,
    empty,
    label_of,
    new_axes,
    pick,
    plain_log_ticks,
    spans_decades,
    styled,
)

if TYPE_CHECKING:
    import pandas as pd

QUANTITIES = {"loss": ("loss", "loss [nat]"), "acc": ("accuracy", "accuracy"), "lr": ("learning rate", "learning rate")}
BAND_SAMPLES = 2000


def training_curves(metrics: "pd.DataFrame", *, quantity: str = "loss", ax: Axes | None = None) -> Axes:
    """Draw loss, accuracy or learning rate of a training over its epochs.

    Parameters
    ----------
    metrics : DataFrame
        Columns `epoch`, `train_loss`, `train_acc`, `val_loss`, `val_acc`, `lr`, as in ``metrics.csv``; columns that
        are absent or empty are left out. Loss in nat, accuracy in [0, 1].
    quantity : {"loss", "acc", "lr"}
        What to draw.

    Raises
    ------
    SchemaError
        If the quantity is none of these, or there is no column for it.
    """
    if quantity not in QUANTITIES:
        raise SchemaError(f"there is no training curve {quantity!r}; {nearest(quantity, QUANTITIES)}")
    columns = {"lr": "lr"} if quantity == "lr" else {"training": f"train_{quantity}", "validation": f"val_{quantity}"}
    present = {name: column for name, column in columns.items() if column in metrics and metrics[column].notna().any()}
    if not present or "epoch" not in metrics:
        needed = ["epoch", *columns.values()]
        raise SchemaError(f"the metrics have columns {list(metrics.columns)}; needed {needed}, as in metrics.csv")
    title, axis = QUANTITIES[quantity]
    looks: dict[str, Any] = {
        "training": {"color": BLUE, "marker": "o"},
        "validation": {"color": VERMILLION, "marker": "s", "linestyle": "--"},
        "lr": {"color": INK, "drawstyle": "steps-post"},
    }
    size = 3.5 if len(metrics) <= 40 else 0
    with styled():
        ax = new_axes(ax)
        ax.set_title(title.capitalize())
        ax.set_xlabel("epoch")
        ax.set_ylabel(axis)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        if quantity == "acc":
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        for name, column in present.items():
            ax.plot(metrics["epoch"], metrics[column], markersize=size, label=name, **looks[name])
        if len(present) > 1:
            ax.legend()
        if quantity != "acc" and spans_decades(np.concatenate([metrics[c].dropna() for c in present.values()])):
            ax.set_yscale("log")
            plain_log_ticks(ax.yaxis)
        return ax


def trajectories(
    data: xr.Dataset | xr.DataArray,
    score: xr.DataArray | xr.Dataset,
    *,
    variable: str = "loss",
    count: int = 5,
    dim: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw one quantity over the series for the samples with the lowest and the highest score. **Eager**.

    Behind them lie the median and the 5–95 % band of up to 2000 evenly spaced samples.

    Parameters
    ----------
    data : (series, sample)
        A samples cube, or one array of it. NaN leaves a gap.
    score : (sample)
        What orders the samples, matched by their ids; usually what `neurolens.csl` returns.
    variable : str
        Which quantity of a Dataset.
    count : int
        How many samples from each end.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever there is.

    Raises
    ------
    SchemaError
        If the variable or the series dim is missing.
    MissingMeasurementError
        If the variable was not measured.
    """
    if isinstance(data, xr.Dataset):
        schema.require(data, variable, dim=dim)
        data = data[variable]
    series = schema.series_dim(data, dim)
    array, ranking = xr.align(data.transpose(series, "sample"), pick(score, "csl"), join="inner")
    values = np.asarray(ranking, np.float64)
    order = np.argsort(values, kind="stable")[: np.isfinite(values).sum()]  # NaN sorts last
    with styled():
        ax = new_axes(ax)
        name = str(ranking.name or "score").replace("_", " ")
        ax.set_title(f"{str(array.name or variable).replace('_', ' ').capitalize()} of the easiest and hardest samples")
        ax.set_xlabel(series)
        ax.set_ylabel(label_of(array, variable))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        if not order.size:
            return empty(ax, "no sample has a score")
        at = np.asarray(array[series]) if series in array.coords else np.arange(array.sizes[series])
        background = np.unique(np.linspace(0, array.sizes["sample"] - 1, BAND_SAMPLES).astype(int))
        low, middle, high = _quantiles(np.asarray(array.isel(sample=background), np.float64))
        ax.fill_between(at, low, high, color=PALE, alpha=0.6, linewidth=0, label="5–95 % of all")
        ax.plot(at, middle, color=GREY, linewidth=1.4, linestyle="--", label="median of all")
        some = min(count, order.size // 2) or 1
        ends = (("lowest", order[:some], BLUE, "-"), ("highest", order[::-1][:some], VERMILLION, "-"))
        for end, chosen, colour, line in ends:
            lines = np.asarray(array.isel(sample=np.sort(chosen)), np.float64)
            for i in range(lines.shape[1]):
                label = f"{end} {name} ({some})" if i == 0 else None
                ax.plot(at, lines[:, i], color=colour, linestyle=line, linewidth=1.2, alpha=0.85, label=label)
        if (low[np.isfinite(low)] >= 0).all():
            _loss_scale(ax, high)
        ax.legend(ncols=2)
        return ax


def _quantiles(values: np.ndarray) -> np.ndarray:
    """Return the 5, 50 and 95 % quantiles of every row, NaN where it has no finite value."""
    out = np.full((3, len(values)), np.nan)
    for i, row in enumerate(values):
        row = row[np.isfinite(row)]
        if row.size:
            out[:, i] = np.quantile(row, (0.05, 0.5, 0.95))
    return out


def _loss_scale(ax: Axes, high: np.ndarray) -> None:
    """Scale by the square root: unlike a logarithm, it keeps exact zeros, and small losses stay visible."""
    top = max(ax.get_ylim()[1], float(np.nanmax(high, initial=0.0)))
    ax.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    ax.set_ylim(0, top)
    ax.set_ylabel(f"{ax.get_ylabel()}, square-root scale")
