"""How long concepts live: survival curves, with bands and numbers at risk."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from neurolens.errors import SchemaError
from neurolens.plot.style import COLOURS, GREY, INK, cut, empty, new_axes, percent_axis, short_names, styled

STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (4, 1, 1, 1, 1, 1)))
AT_RISK = 6
"""At how many times, at most, the lives at risk are written out."""
BANDS = 3
"""Up to how many curves have bands: more would lie over each other."""


def survival_curves(curves: xr.Dataset, *, count: int = 6, ax: Axes | None = None) -> Axes:
    """Draw how many concepts live longer than so many checkpoints, a step curve per group with its confidence band.

    Below the axis stands how many lives are at risk: seen for at least so long. Bands are of each time by itself, and
    are left out of more than three groups. A small bar marks half of the lives, where a curve crosses it.

    Parameters
    ----------
    curves : (group, time)
        What `neurolens.survival` returns; or (run, time), what `neurolens.mortality.compare` does.
    count : int
        How many groups at most, those with the most lives; the axis says how many are left out.

    Raises
    ------
    SchemaError
        If there is no survival in the Dataset.
    """
    if not isinstance(curves, xr.Dataset) or "survival" not in curves or "time" not in curves.dims:
        raise SchemaError("there is no survival over `time`; pass neurolens.survival(events)")
    group = "run" if "run" in curves.dims else "group"
    held = curves.compute()
    names, pattern = short_names([str(name) for name in held[group].values.tolist()], longest=26)
    order = np.arange(len(names))
    if "n_lives" in held:
        order = np.argsort(-held["n_lives"].values, kind="stable")
    chosen = np.sort(order[: min(count, len(COLOURS))])
    time = held["time"].values
    with styled():
        ax = new_axes(ax, size=(6.4, 4.0))
        by = curves.attrs.get("grouped_by", "run" if group == "run" else "")
        ax.set_title("How long concepts live" + (f", by {by}" if by else ""))
        ax.set_ylabel("share still alive")
        percent_axis(ax.yaxis)
        ax.set_ylim(0, 1.02)
        ax.set_xlim(0, max(1, float(time[-1])))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], nbins=8))
        left_out = f"; {len(names) - len(chosen)} more groups left out" if len(chosen) < len(names) else ""
        ax.set_xlabel(f"checkpoints since birth{left_out}")
        if not np.isfinite(held["survival"]).any():
            return empty(ax, "there is no life to follow")
        ax.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        alone = len(names) == 1
        for place, i in enumerate(chosen):
            one = held.isel({group: int(i)})
            colour = COLOURS[place % len(COLOURS)]
            values = np.asarray(one["survival"], np.float64)
            until = int(np.flatnonzero(np.isfinite(values))[-1]) + 1 if np.isfinite(values).any() else 0
            if "at_risk" in one:  # beyond the last life nothing is known
                until = min(until, int((one["at_risk"] > 0).sum()))
            if len(chosen) <= BANDS and {"lower", "upper"} <= set(one.data_vars):
                low, high = (np.asarray(one[name], np.float64)[:until] for name in ("lower", "upper"))
                ax.fill_between(time[:until], low, high, step="post", color=colour, alpha=0.16, linewidth=0)
            label = f"all {int(one['n_lives']):,} lives" if alone and "n_lives" in one else names[i]
            line = STYLES[place % len(STYLES)]
            ax.plot(time[:until], values[:until], drawstyle="steps-post", color=colour, linestyle=line, label=label)
        ax.legend(
            loc="upper right",
            frameon=True,
            framealpha=0.85,
            edgecolor="none",
            handlelength=3,
            title=cut(pattern, 34) or None,
        )
        if "at_risk" in held:
            _at_risk(
                ax, held["at_risk"].transpose(group, "time").values[chosen], time, [names[i] for i in chosen], alone
            )
        return ax


def median_interval(curves: xr.Dataset) -> list[tuple[float, float, float]]:
    """Return the median lifetime of each group with its bounds, in checkpoints; NaN where it is not reached.

    Where a bound of the curve falls to one half, there lies a bound of the median.

    References
    ----------
    Brookmeyer and Crowley 1982.
    """
    time = np.asarray(curves["time"], np.float64)
    out = []
    for i in range(curves.sizes["group"]):
        found = []
        for name in ("survival", "lower", "upper"):
            below = time[np.asarray(curves[name].isel(group=i), np.float64) <= 0.5]
            found.append(float(below[0]) if len(below) else np.nan)
        out.append((found[0], found[1], found[2]))
    return out


def _at_risk(ax: Axes, at_risk: np.ndarray, time: np.ndarray, names: list[str], alone: bool) -> None:
    """Write the numbers at risk under the axis, a line per curve in its colour."""
    ticks = [t for t in ax.xaxis.get_major_locator().tick_values(0, float(max(time[-1], 1))) if 0 <= t <= time[-1]]
    step = -(-len(ticks) // AT_RISK)
    look: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "va": "center"}
    ax.annotate("at risk", (0, 0), (-26, -42), xycoords="axes fraction", color=GREY, ha="right", **look)
    for row, values in enumerate(at_risk):
        down = -42 - 12.5 * (row + (0 if alone else 1))
        colour = INK if alone else COLOURS[row % len(COLOURS)]
        if not alone:
            name = cut(names[row], 14)
            ax.annotate(name, (0, 0), (-26, down), xycoords="axes fraction", color=colour, ha="right", **look)
        for t in ticks[::step]:
            words = f"{int(values[int(t)]):,}"
            ax.annotate(words, (t, 0), (0, down), xycoords=ax.get_xaxis_transform(), color=colour, ha="center", **look)
