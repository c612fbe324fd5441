"""What units were good for before and after a concept died in them."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from neurolens.errors import SchemaError
from neurolens.plot.picture import Picture
from neurolens.plot.style import BLUE, GREY, PALE, VERMILLION, empty, new_axes, new_figure, styled


def effects_of_deaths(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw, per death of a concept, what its classes lose without the unit: before the death and after it.

    On the diagonal a unit is of as much use as before. Below the lower line less is left than the ratio that makes a
    death a functional one: those are red. Deaths of units that were of no use to any class, or that were not measured,
    are counted in the legend.

    Parameters
    ----------
    table : what `neurolens.functional_death` returns, of our own reading

    Raises
    ------
    SchemaError
        If the falls of the logit are not in the table.
    """
    needed = ("logit_drop_before", "logit_drop_after", "functional_dead")
    lacking = [name for name in needed if name not in table]
    if lacking:
        raise SchemaError(
            f"there is no {lacking[0]!r}; pass neurolens.functional_death(effects, events), without compat"
        )
    before, after = (table[name].to_numpy(np.float64, na_value=np.nan) for name in needed[:2])
    known = table["functional_dead"].notna().to_numpy() & np.isfinite(before) & np.isfinite(after)
    dead = table["functional_dead"].fillna(False).to_numpy(bool) & known
    with styled():
        ax = new_axes(ax, size=(6.4, 4.0))
        ax.set_title("What units are good for when a concept dies in them")
        ax.set_xlabel("fall of the logit without the unit, before the death")
        ax.set_ylabel("the same, after the death")
        if not known.any():
            return empty(ax, "no concept died" if table.empty else "no death was measured on both sides")
        size = 26 if known.sum() <= 100 else 12
        look: dict[str, Any] = {"s": size, "linewidths": 0.3, "edgecolors": "white", "zorder": 3}
        rest = known & ~dead
        ratio = float(table.attrs.get("ratio", 0.1))
        ax.scatter(before[rest], after[rest], color=BLUE, alpha=0.7, label=f"still of use: {int(rest.sum()):,}", **look)
        label = f"functional deaths: {int(dead.sum()):,}\n(below {100 * ratio:g} % of before)"
        ax.scatter(before[dead], after[dead], color=VERMILLION, marker="s", label=label, **look)
        end = 1.05 * float(before[known].max())
        ax.plot([0, end], [0, end], color=GREY, linewidth=0.9, label="as much as before")
        ax.plot([0, end], [0, ratio * end], color=VERMILLION, linewidth=0.9, linestyle=":")
        ax.axhline(0, color=PALE, linewidth=0.8)
        ax.set_xlim(0, end)
        if not known.all():
            ax.plot([], [], linestyle="none", label=f"of no use, or not\nmeasured: {int((~known).sum()):,}")
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
        return ax


def effects_pictures(table: pd.DataFrame) -> list[Picture]:
    """Draw what the units lose their use in whose concepts died. **Eager**.

    Parameters
    ----------
    table : what `neurolens.functional_death` returns
    """
    with styled():
        figure = new_figure((6.8, 3.8))
        effects_of_deaths(table, ax=figure.add_subplot())
    caption = (
        f"{functional(table)} Each dot is one; the fall is that of the mean logit of the classes that used the unit."
    )
    title = "Use of units before and after a death"
    return [Picture("concept_effects", title, caption, f"Scatter plot. {caption}", figure)]


def functional(table: pd.DataFrame) -> str:
    """Say how many deaths are functional, of how many that are known about."""
    known = table["functional_dead"].dropna()
    return f"{int(known.sum()):,} of {len(known):,} deaths are functional."
