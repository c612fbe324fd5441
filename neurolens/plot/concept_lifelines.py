"""Lifelines: what each unit held, and when, as bars over the series coloured by concept."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

from neurolens.plot.concept_heatmaps import several_layers
from neurolens.plot.concept_lives import LONGEST, followed, nothing, record, rule_of
from neurolens.plot.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    VERMILLION,
    cut,
    empty,
    evenly_named,
    new_axes,
    short_names,
    styled,
)

PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, "#332288", "#882255", "#999933", "#F0E442")
"""Okabe and Ito's colours and three of Tol's: as many concepts as can be told apart."""
OTHER = "#aab2bb"
UNITS = 24
"""How many units are drawn, if nothing else is said."""
FEW = 60
"""Up to how many checkpoints bars have white edges."""
GAP = 0.3
"""Room between units, in lanes."""
INSET = 3.5
"""How far inside its bar a mark stands, in points: of bars that meet, each has its own."""
LANES = 3
"""Up to how many concepts that a unit holds at a time are drawn side by side."""
MARKS: dict[str, dict[str, Any]] = {
    "death": {
        "linestyle": "none",
        "marker": "X",
        "color": INK,
        "markersize": 5.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    },
    "alive": {
        "linestyle": "none",
        "marker": ">",
        "color": INK,
        "markersize": 4.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    },
    "lost": {
        "linestyle": "none",
        "marker": "o",
        "color": INK,
        "markersize": 4,
        "markerfacecolor": "white",
        "markeredgewidth": 1.0,
    },
    "rebirth": {
        "linestyle": "none",
        "marker": "D",
        "color": "white",
        "markersize": 4.2,
        "markeredgecolor": INK,
        "markeredgewidth": 1.0,
    },
    "unseen": {
        "linestyle": "none",
        "marker": "<",
        "color": INK,
        "markersize": 4.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    },
}
WORDS = {
    "death": "death",
    "rebirth": "rebirth",
    "alive": "alive in the end",
    "lost": "end not known: unconfirmed,\nabsent or displaced",
    "unseen": "born before the record",
}


@dataclass(frozen=True)
class _Bar:
    """A life where it is drawn: its concept, first and last position, lane, how it ends, and how it begins."""

    concept: str
    first: int
    last: int
    lane: int
    end: str
    start: str


def lifelines(events: pd.DataFrame, *, count: int = UNITS, colours: int = len(PALETTE), ax: Axes | None = None) -> Axes:
    """Draw the lives of concepts in the liveliest units as bars over the series, a row per unit.

    Units with most births, rebirths and deaths come first when some must be left out, and stand in order of layer and
    first birth; how many are left out is said below. Concepts held longest have colours of their own, all others are
    grey: no colour means two concepts. A bar bridges the dips that its life bridges. Of more than three concepts that
    a unit holds at a time, those with the highest scores are drawn. Of events by unit, the colour is that of the
    concept at the last alive checkpoint. Checkpoints are evenly spaced.

    Parameters
    ----------
    events : the table of `neurolens.concept_events`
    count : int
        How many units at most.
    colours : int
        How many concepts at most have a colour.

    Raises
    ------
    SchemaError
        If columns are missing, or the table does not say what checkpoints there are.
    """
    at, series = record(events, "unit", "birth_position", "last_position", "end", "rebirth", "birth_seen", "score_max")
    held = events if "concept" in events else events.assign(concept="")
    chosen = liveliest(held, count)
    rows = [_bars(held[held["unit"] == unit]) for unit in chosen]
    with styled():
        lanes = [1 + max(bar.lane for bar in bars) for bars, _ in rows]
        edges = np.concatenate([[0.0], np.cumsum([_height(n) for n in lanes])])
        ax = new_axes(ax, size=(8.6, _inches(lanes)))
        ax.set_title(f"Lives of concepts in units: {rule_of(events)}")
        ax.set_xlabel(series)
        if not chosen:
            return empty(ax, nothing(events))
        colour_of = _colours([bar for bars, _ in rows for bar in bars], min(colours, len(PALETTE)))
        seen = set()
        for (bars, _), top, bottom, n in zip(rows, edges[:-1], edges[1:], lanes):
            height = (bottom - top - GAP) / n
            for bar in bars:
                y = top + GAP / 2 + (bar.lane + 0.5) * height
                seen |= _draw(ax, bar, y, height * (1 if n == 1 else 0.9), colour_of.get(bar.concept, OTHER), len(at))
                _written(ax, bar, y, len(at), float(edges[-1]) / height, colour_of.get(bar.concept, OTHER))
        for edge in edges[1:-1]:
            ax.axhline(edge, color=PALE, linewidth=0.5, zorder=0)
        ax.grid(visible=False)
        ax.set_xlim(-0.9, len(at) - 0.1)
        ax.set_ylim(edges[-1], 0)
        evenly_named(ax, at, room=0.62)
        _names(ax, held, chosen, (edges[:-1] + edges[1:]) / 2)
        _below(ax, series, held["unit"].nunique() - len(chosen), sum(hidden for _, hidden in rows))
        _legends(ax, held, colour_of, [bar for bars, _ in rows for bar in bars], seen)
        return ax


def lifelines_height(events: pd.DataFrame, *, count: int = UNITS) -> float:
    """Return the height, in inches, of a figure that shows the lifelines of so many units."""
    held = events if "concept" in events else events.assign(concept="")
    rows = [_bars(held[held["unit"] == unit])[0] for unit in liveliest(held, count)]
    return _inches([1 + max(bar.lane for bar in bars) for bars in rows])


def liveliest(events: pd.DataFrame, count: int) -> list[int]:
    """Return the units with most births, rebirths and deaths, in order of layer and first birth."""
    if events.empty or count < 1:
        return []
    moved = events["birth_seen"].astype(int) + (events["end"] == "death")
    table = events.assign(moved=moved).groupby("unit", sort=True)
    ranked = table.agg(moved=("moved", "sum"), lives=("life", "size"), best=("score_max", "max"))
    ranked = ranked.reset_index().sort_values(["moved", "lives", "best", "unit"], ascending=[False, False, False, True])
    kept = events[events["unit"].isin(ranked["unit"].head(count))]
    first = kept.groupby("unit", sort=True)["birth_position"].min()
    layers = list(dict.fromkeys(events.sort_values("unit")["layer"])) if "layer" in events else [""]
    layer = kept.groupby("unit", sort=True)["layer"].first() if "layer" in events else None
    place = [0] * len(first) if layer is None else [layers.index(name) for name in layer]
    order = np.lexsort((first.index.to_numpy(), first.to_numpy(), place))
    return [int(unit) for unit in first.index.to_numpy()[order]]


def _bars(lives: pd.DataFrame) -> tuple[list[_Bar], int]:
    """Put the lives of a unit into lanes that do not overlap, the highest scores first; count those without a place."""
    ends: list[list[tuple[int, int]]] = []
    order: dict[str, int] = {}
    out: list[_Bar] = []
    for life in lives.sort_values("score_max", ascending=False, kind="stable").to_dict("records"):
        first, last = int(life["birth_position"]), int(life["last_position"])
        name = str(life["concept"])
        free = [i for i, taken in enumerate(ends) if all(last < low or first > high for low, high in taken)]
        free.sort(key=lambda i, name=name: i != order.get(name))  # type: ignore[misc]
        if not free and len(ends) >= LANES:
            continue
        if not free:
            ends.append([])
            free = [len(ends) - 1]
        order.setdefault(name, free[0])
        ends[free[0]].append((first, last))
        start = "rebirth" if life["rebirth"] else "birth" if life["birth_seen"] else "unseen"
        end = str(life["end"]) if life["end"] in ("death", "alive") else "lost"
        out.append(_Bar(name, first, last, free[0], end, start))
    return out, len(lives) - len(out)


def _colours(bars: list[_Bar], count: int) -> dict[str, str]:
    """Give a colour to the concepts that are held longest, all bars together."""
    span: dict[str, int] = {}
    for bar in bars:
        span[bar.concept] = span.get(bar.concept, 0) + bar.last - bar.first + 1
    ranked = sorted((name for name in span if name), key=lambda name: (-span[name], name))
    return dict(zip(ranked[:count], PALETTE))


def _draw(ax: Axes, bar: _Bar, y: float, height: float, colour: str, checkpoints: int) -> set[str]:
    """Draw a life and its marks; return which marks."""
    figure: Any = ax.figure
    left, right = bar.first - 0.5, bar.last + 0.5
    ax.barh(
        y,
        right - left,
        height,
        left=left,
        color=colour,
        edgecolor="white",
        linewidth=0.7 if checkpoints <= FEW else 0.2,
    )
    marked = {bar.end} | ({bar.start} & {"rebirth", "unseen"})
    for mark in marked:
        begins = mark in ("rebirth", "unseen")
        shift = ScaledTranslation((INSET if begins else -INSET) / 72, 0, figure.dpi_scale_trans)
        place: dict[str, Any] = {"transform": ax.transData + shift, "zorder": 3, "clip_on": False}
        ax.plot([left if begins else right], [y], **place, **MARKS[mark])
    return marked


def _written(ax: Axes, bar: _Bar, y: float, checkpoints: int, bars: float, colour: str) -> None:
    """Write the concept on its bar, if there is room; ``bars`` is how many of this height fill the Axes."""
    figure: Any = ax.figure
    width, height = (size * 72 for size in figure.get_size_inches())
    box = ax.get_position()
    size = min(7.5, 0.72 * 0.85 * height * box.height / bars)
    room = (bar.last - bar.first + 1) / (checkpoints + 1) * 0.7 * width * box.width - 16
    if bar.concept and size >= 5 and 0.62 * size * len(bar.concept) < room:
        middle = (bar.first + bar.last) / 2
        ax.text(middle, y, bar.concept, fontsize=size, ha="center", va="center_baseline", color=_ink_on(colour))


def _height(lanes: int) -> float:
    return 1.4 if lanes == 1 else lanes + GAP


def _inches(lanes: list[int]) -> float:
    return float(np.clip(1.2 + 0.15 * sum(map(_height, lanes)), 3.2, 18))


def _ink_on(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else INK


def _names(ax: Axes, events: pd.DataFrame, chosen: list[int], places: np.ndarray) -> None:
    """Name units by layer and number in it, or by their own number."""
    if "layer" not in events:
        ax.set_yticks(places, [str(unit) for unit in chosen], fontsize=8)
        ax.set_ylabel("unit")
        return
    first = events.drop_duplicates("unit").set_index("unit").loc[chosen]
    layers = [str(name) for name in first["layer"]]
    index = first["index"].tolist() if "index" in first else chosen
    short, pattern = short_names(list(dict.fromkeys(layers)), longest=18)
    if len(short) == 1:
        ax.set_yticks(places, [str(i) for i in index], fontsize=8)
        ax.set_ylabel(f"unit of {short[0]}")
        return
    named = dict(zip(dict.fromkeys(layers), short))
    ax.set_yticks(places, [f"{named[layer]} · {i}" for layer, i in zip(layers, index)], fontsize=8)
    ax.set_ylabel(several_layers(pattern))


def _below(ax: Axes, series: str, units: int, lives: int) -> None:
    """Say below the axis what is not drawn."""
    left = [f"{units:,} unit{'s' * (units > 1)} with fewer events"] if units else []
    left += [f"{lives:,} {'lives' if lives > 1 else 'life'} beside {LANES} with higher scores"] if lives else []
    ax.set_xlabel(f"{series}\nnot drawn: {', '.join(left)}" if left else series)


def _legends(ax: Axes, events: pd.DataFrame, colour_of: dict[str, str], bars: list[_Bar], seen: set[str]) -> None:
    """Name the colours, in order of how long they are held, and the marks."""
    others = len({bar.concept for bar in bars} - set(colour_of) - {""})
    handles: list[Any] = [Patch(color=colour, label=cut(name, LONGEST)) for name, colour in colour_of.items()]
    if others:
        handles.append(Patch(color=OTHER, label=f"{others} other concept{'s' * (others > 1)}"))
    unnamed = any(not bar.concept for bar in bars)
    if unnamed:
        handles.append(Patch(color=OTHER, label="alive"))
    marks: list[Any] = [Line2D([], [], label=WORDS[m], **MARKS[m]) for m in WORDS if m in seen]
    gap: list[Any] = [Line2D([], [], linestyle="none", label="")]
    title = "concept" if followed(events) != "units" or not unnamed else None
    ax.legend(
        handles=handles + gap + marks, loc="upper left", bbox_to_anchor=(1.02, 1.0), title=title, alignment="left",
        borderaxespad=0, labelcolor=INK, title_fontproperties={"size": 9, "weight": "bold"},
    )  # fmt: skip
    for text in ax.get_legend().get_texts():  # type: ignore[union-attr]
        text.set_color(INK if text.get_text() else GREY)
