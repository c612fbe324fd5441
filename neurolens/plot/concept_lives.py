"""Births and deaths of concepts: at each checkpoint, added up, and of which concepts."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from neurolens.errors import SchemaError, nearest
from neurolens.plot.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    PALE,
    VERMILLION,
    cut,
    empty,
    evenly_named,
    new_axes,
    series_axis,
    styled,
)

FEW = 40
"""Up to how many checkpoints each is marked on its line."""
LONGEST = 28
"""Letters of a concept's name that are shown."""
SIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}


def births_and_deaths(events: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how many concepts are born and die at each checkpoint: births up, rebirths on top of them, deaths down.

    Checkpoints are evenly spaced, and all of the record are on the axis. What was alive when it was first seen was not
    born there: it is counted in the legend, and has no bar.

    Parameters
    ----------
    events : the table of `neurolens.concept_events`

    Raises
    ------
    SchemaError
        If columns are missing, or the table does not say what checkpoints there are.
    """
    at, series = record(events, "birth_position", "death_position", "birth_seen", "rebirth", "end")
    born, reborn, died, unseen = counts(events)
    with styled():
        ax = new_axes(ax, size=(6.4, 3.6))
        ax.set_title(f"Births and deaths: {rule_of(events)}")
        ax.set_ylabel(f"{followed(events)} per checkpoint")
        ax.set_xlabel(series)
        if not (born.any() or reborn.any() or died.any()):
            return empty(ax, nothing(events))
        x, width = np.arange(len(at)), 0.8
        ax.bar(x, born, width, color=BLUE, linewidth=0)
        ax.bar(x, reborn, width, bottom=born, color=GREEN, linewidth=0)
        ax.bar(x, -died, width, color=VERMILLION, linewidth=0)
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.set_xlim(-0.7, len(at) - 0.3)
        top = float(max((born + reborn).max(), died.max()))
        ax.set_ylim(-1.08 * died.max() - 0.04 * top, 1.08 * (born + reborn).max() + 0.04 * top)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):,.0f}"))
        evenly_named(ax, at, room=0.75)
        handles: list[Any] = [
            Patch(color=BLUE, label=f"births: {int(born.sum()):,}"),
            Patch(color=GREEN, label=f"rebirths: {int(reborn.sum()):,}"),
            Patch(color=VERMILLION, label=f"deaths: {int(died.sum()):,}"),
        ]
        late = _too_late(events)
        if late:
            ax.axvspan(len(at) - late - 0.5, len(at) - 0.5, color=PALE, alpha=0.5, linewidth=0, zorder=0)
            handles.append(Patch(color=PALE, alpha=0.5, label="too late to\nconfirm a death"))
        if unseen:
            handles.append(Line2D([], [], linestyle="none", label=f"alive when first\nseen: {unseen:,}"))
        ax.legend(handles=handles, **SIDE)
        return ax


def cumulative_events(events: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw births, rebirths and deaths added up over the series, all checkpoints of the record included.

    Parameters
    ----------
    events : the table of `neurolens.concept_events`

    Raises
    ------
    SchemaError
        As for `births_and_deaths`.
    """
    at, series = record(events, "birth_position", "death_position", "birth_seen", "rebirth", "end")
    born, reborn, died, _ = counts(events)
    with styled():
        ax = new_axes(ax, size=(6.4, 3.6))
        ax.set_title(f"Births and deaths so far: {rule_of(events)}")
        ax.set_ylabel(f"{followed(events)}, added up")
        series_axis(ax, np.asarray(at), series)
        if not (born.any() or reborn.any() or died.any()):
            return empty(ax, nothing(events))
        size = 4 if len(at) <= FEW else 0
        lines: list[tuple[str, Any, str, str]] = [
            ("births,\nrebirths included", born + reborn, BLUE, "o"),
            ("deaths", died, VERMILLION, "s"),
            ("rebirths", reborn, GREEN, "^"),
        ]
        for name, per_checkpoint, colour, marker in lines:
            if per_checkpoint.any() or name == "deaths":
                ax.plot(at, per_checkpoint.cumsum(), color=colour, marker=marker, markersize=size, label=name)
        late = _too_late(events)
        if late:
            low, high = (float(at[-late - 1]) + float(at[-late])) / 2, float(at[-1])
            ax.axvspan(low, high, color=PALE, alpha=0.5, linewidth=0, zorder=0, label="too late to\nconfirm a death")
        ax.set_ylim(0, None)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        ax.legend(**SIDE)
        return ax


def top_concepts(events: pd.DataFrame, *, by: str = "deaths", count: int = 15, ax: Axes | None = None) -> Axes:
    """Draw the concepts that died most often, or lived most often, as bars: deaths before lives that did not end.

    Parameters
    ----------
    events : the table of `neurolens.concept_events`
    by : {"deaths", "lives"}
        What concepts are ordered by. Those without any are left out.
    count : int
        How many concepts at most.

    Raises
    ------
    SchemaError
        If the table has no concepts, or ``by`` is neither.
    """
    if by not in ("deaths", "lives"):
        raise SchemaError(f"by={by!r} is unknown; {nearest(by, ('deaths', 'lives'))}")
    record(events, "concept", "end")
    ranked = ranking(events, by)
    shown = ranked.head(count).iloc[::-1]
    with styled():
        ax = new_axes(ax, size=(7.6, max(2.2, 1.3 + 0.24 * len(shown))))
        verb = "die most often" if by == "deaths" else "live most often"
        ax.set_title(f"Concepts that {verb}: {rule_of(events)}")
        if shown.empty:
            return empty(
                ax, nothing(events) if by == "lives" or not len(events) else f"no concept dies: {tally(events)}"
            )
        y = np.arange(len(shown))
        ax.barh(y, shown["deaths"], color=VERMILLION, linewidth=0, label="died")
        ax.barh(
            y, shown["others"], left=shown["deaths"], color=PALE, linewidth=0, label="alive in the end,\nor censored"
        )
        for place, (deaths, lives) in enumerate(zip(shown["deaths"], shown["lives"])):
            words = f"{deaths:,} of {lives:,}"
            ax.annotate(words, (lives, place), (3, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
        ax.set_yticks(y, [cut(str(name), LONGEST) for name in shown["shown"]])
        ax.set_xlim(0, 1.16 * float(shown["lives"].max()))
        ax.set_ylim(-0.6, len(shown) - 0.4)
        ax.set_xlabel("lives" + (f"; {len(ranked) - len(shown):,} more concepts" if len(ranked) > len(shown) else ""))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        ax.grid(axis="x")
        ax.grid(visible=False, axis="y")
        ax.legend(**SIDE)
        return ax


def ranking(events: pd.DataFrame, by: str) -> pd.DataFrame:
    """Count `lives`, `deaths` and `others` of each concept, most first; `shown` is its name with its category."""
    of = ["concept", *(["category"] if "category" in events and events["category"].nunique() > 1 else [])]
    named = events[events["concept"].astype(str) != ""]
    grouped = named.assign(died=named["end"] == "death").groupby(of, sort=True)["died"]
    table = grouped.agg(lives="size", deaths="sum").reset_index()
    table["others"] = table["lives"] - table["deaths"]
    table["shown"] = table["concept"]
    if len(of) > 1:
        table["shown"] = [f"{cut(str(c), LONGEST - 10)} ({k})" for c, k in zip(table["concept"], table["category"])]
    other = "lives" if by == "deaths" else "deaths"
    table = table.sort_values([by, other, "concept"], ascending=[False, False, True])
    return table[table[by] > 0].reset_index(drop=True)


def record(events: pd.DataFrame, *columns: str) -> tuple[list[Any], str]:
    """Return the checkpoints that a table of events is about, and what their numbers are.

    Raises
    ------
    SchemaError
        If a column is missing, or the table does not say what checkpoints there are.
    """
    if not isinstance(events, pd.DataFrame):
        raise SchemaError(f"found a {type(events).__name__}; pass the table of neurolens.concept_events(iou)")
    lacking = [name for name in columns if name not in events]
    if lacking:
        raise SchemaError(
            f"the table has no column {lacking[0]!r}; pass what neurolens.concept_events returns"
            + (", of scores with labels" if lacking[0] == "concept" else "")
        )
    if "checkpoints" not in events.attrs or "series" not in events.attrs:
        raise SchemaError(
            "the table does not say what checkpoints there are: its attrs were lost; set them again from those of the "
            "table that neurolens.concept_events returned: events.attrs = original.attrs"
        )
    return list(events.attrs["checkpoints"]), str(events.attrs["series"])


def counts(events: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return first births, rebirths and deaths (checkpoint), and how many lives were alive when first seen."""
    n = len(events.attrs["checkpoints"])
    seen, again = events["birth_seen"].to_numpy(bool), events["rebirth"].to_numpy(bool)
    birth = events["birth_position"].to_numpy(np.int64)
    death = events.loc[events["end"] == "death", "death_position"].to_numpy(np.int64)
    first = np.bincount(birth[seen & ~again], minlength=n)
    return first, np.bincount(birth[again], minlength=n), np.bincount(death, minlength=n), int((~seen & ~again).sum())


def _too_late(events: pd.DataFrame) -> int:
    """Return in how many of the last checkpoints no death can be confirmed any more."""
    k, n = int(events.attrs.get("k", 1)), len(events.attrs["checkpoints"])
    return k - 1 if events.attrs.get("compat") is None and k < n else 0


def rule_of(events: pd.DataFrame) -> str:
    """Say what a life is: the threshold and k, and the reference's reading where it is that."""
    words = [f"IoU of {events.attrs['iou_tau']:g}"] if "iou_tau" in events.attrs else []
    words += [f"k = {events.attrs['k']}"] if "k" in events.attrs else []
    words += [f"hysteresis {events.attrs['hysteresis']:g}"] if events.attrs.get("hysteresis") else []
    words += ["the reference's reading"] if events.attrs.get("compat") == "seed" else []
    return ", ".join(words)


def followed(events: pd.DataFrame) -> str:
    """Say what is counted: units, or pairs of a unit and a concept."""
    return {"unit": "units", "concept": "concepts"}.get(str(events.attrs.get("by")), "unit × concept")


def nothing(events: pd.DataFrame) -> str:
    """Say in words that nothing was born and nothing died."""
    n = len(events.attrs["checkpoints"])
    where = "the one checkpoint" if n == 1 else f"any of {n:,} checkpoints"
    if events.empty:
        tau = events.attrs.get("iou_tau")
        return f"no unit reaches an IoU of {tau:g}\nat {where}" if tau is not None else f"no life at {where}"
    return f"no birth and no death: {tally(events)}"


def tally(events: pd.DataFrame) -> str:
    """Say how lives end."""
    if events.empty:
        return "there is no life"
    ends = events["end"].value_counts()
    words = {"alive": "alive in the end", "unconfirmed": "below it in the end", "absent": "lost sight of"}
    named = [f"{n:,} {words.get(str(end), str(end))}" for end, n in ends.items()]
    return f"{len(events):,} {'life' if len(events) == 1 else 'lives'},\n" + ", ".join(named)
