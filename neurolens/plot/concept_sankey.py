"""Migrations: where concepts go that die in a unit, as a Plotly Sankey or drawn with matplotlib, from one table."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from neurolens.errors import MissingExtraError, SchemaError, nearest
from neurolens.plot.concept_lifelines import OTHER, PALETTE
from neurolens.plot.style import GREY, INK, cut, empty, new_axes, short_names, styled
from neurolens.units.layers_of import held
from neurolens.units.seed_log import natural

NOWHERE = "no other unit"
"""Where a concept goes that no other unit takes up within the window."""
ELSEWHERE = "another layer"
"""Where it goes if the layers of destinations are not known, and it is not the layer that it died in."""
COLUMNS = ("source", "concept", "target")
HEADS = ("died in", "concept", "taken up by")
POINTS = 24


def migration_flows(
    moves: pd.DataFrame, *, level: str = "layer", units: Any = None, count: int = 10, dying: bool = True
) -> pd.DataFrame:
    """Add up migrations: from where a concept died, to where it was taken up. **Eager**.

    A death counts once, in equal shares to its destinations where it has several, so that what leaves a concept is what
    came to it.

    Parameters
    ----------
    moves : the table of `neurolens.migrations`
    level : {"layer", "unit"}
        What deaths and destinations are added up over.
    units : Dataset or DataArray with `layer` along `unit`, optional
        Names the layers of destinations; without it they are the same layer or another one.
    count : int
        How many concepts (of ``level="unit"``: and units on either side) at most, those of most deaths; the others are
        added up.
    dying : bool
        Count concepts that no other unit takes up too.

    Returns
    -------
    DataFrame
        `source`, `concept`, `target` and `deaths`, most first within the order of nodes.

    Raises
    ------
    SchemaError
        If ``level`` is neither, or the table has no destinations.
    """
    if level not in ("layer", "unit"):
        raise SchemaError(f"level={level!r} is unknown; {nearest(level, ('layer', 'unit'))}")
    lacking = [name for name in ("unit", "concept", "destinations", "same_layer") if name not in moves]
    if lacking:
        mend = " without compat: the reference's reading lists no destinations" if lacking[0] == "destinations" else ""
        raise SchemaError(f"the table has no column {lacking[0]!r}; pass what neurolens.migrations returns{mend}")
    name_of = _namer(units, level)
    lines: list[tuple[str, str, str, float]] = []
    for move in moves.to_dict("records"):
        home = str(move.get("layer", "")) or "network"
        source = home if level == "layer" else name_of(int(move["unit"]), home)
        away = list(zip(move["destinations"], move["same_layer"]))
        if not away and dying:
            lines.append((source, str(move["concept"]), NOWHERE, 1.0))
        for unit, same in away:
            where = home if same else name_of(int(unit), ELSEWHERE)
            target = where if level == "layer" else name_of(int(unit), where)
            lines.append((source, str(move["concept"]), target, 1.0 / len(away)))
    table = pd.DataFrame(lines, columns=[*COLUMNS, "deaths"]).astype({"deaths": float})
    for column in COLUMNS if level == "unit" else ("concept",):
        table[column] = _pooled(table, column, count)
    table = table.groupby(list(COLUMNS), sort=False, as_index=False)["deaths"].sum()
    return _ordered(table, level)


def migration_ribbons(
    moves: pd.DataFrame,
    *,
    level: str = "layer",
    units: Any = None,
    count: int = 10,
    dying: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw migrations as ribbons: where a concept died, the concept, and where it was taken up. **Eager**.

    Parameters
    ----------
    moves, level, units, count, dying
        As for `migration_flows`, whose table is drawn.

    Raises
    ------
    SchemaError
        As for `migration_flows`.
    """
    flows = migration_flows(moves, level=level, units=units, count=count, dying=dying)
    with styled():
        ax = new_axes(ax, size=(8.2, 4.6))
        ax.set_title(_title(moves))
        if flows.empty:
            return empty(ax, nowhere(moves, dying))
        ax.set_axis_off()
        places = [_stacked(flows, column) for column in COLUMNS]
        colours, (short, pattern) = _colours(flows), _shortened(flows)
        gap = 0.035
        for place, (nodes, column) in enumerate(zip(places, COLUMNS)):
            for name, (low, high) in nodes.items():
                colour = colours[name] if column == "concept" else OTHER if name == NOWHERE else INK
                ax.add_patch(Rectangle((place - gap / 2, low), gap, high - low, facecolor=colour, linewidth=0))
                words = name if column == "concept" else short.get(name, name)
                _node(ax, place, (low + high) / 2, words, gap)
        for i in (0, 1):
            _ribbons(ax, flows, i, places, colours, gap)
        for place, head in enumerate(HEADS):
            ax.text(place, 1.03, head, fontsize=9, color=GREY, ha=("right", "center", "left")[place], va="bottom")
        if pattern:
            ax.text(-0.73, -0.02, f"layers: {cut(pattern, 48)}", fontsize=8, color=GREY, va="top")
        ax.set_xlim(-0.75, 2.75)
        ax.set_ylim(-0.08 if pattern else -0.02, 1.1)
        return ax


def migration_sankey(
    moves: pd.DataFrame, *, level: str = "layer", units: Any = None, count: int = 10, dying: bool = True
) -> Any:
    """Return migrations as a Plotly figure, of the table that `migration_ribbons` draws. **Eager**.

    Parameters
    ----------
    moves, level, units, count, dying
        As for `migration_flows`.

    Returns
    -------
    plotly.graph_objects.Figure
        ``write_html(path, include_plotlyjs=True)`` makes a page of it that needs no network.

    Raises
    ------
    MissingExtraError
        If Plotly is not installed.
    SchemaError
        As for `migration_flows`.
    """
    try:
        from plotly import graph_objects
    except ImportError as error:
        raise MissingExtraError.of("plotly", "report", "the interactive picture of migrations") from error
    flows = migration_flows(moves, level=level, units=units, count=count, dying=dying)
    colours = _colours(flows)
    places = [_stacked(flows, column) for column in COLUMNS] if len(flows) else []
    nodes = [(column, name) for column, stacked in zip(COLUMNS, places) for name in stacked]
    middles = [1 - (low + high) / 2 for stacked in places for low, high in stacked.values()]
    at = {node: i for i, node in enumerate(nodes)}
    links = []
    for i in (0, 1):
        pair = flows.groupby([COLUMNS[i], COLUMNS[i + 1]], sort=False)["deaths"].sum()
        for (left, right), value in pair.items():
            concept = right if i == 0 else left
            links.append((at[COLUMNS[i], left], at[COLUMNS[i + 1], right], float(value), _faded(colours[concept])))
    source, target, value, colour = zip(*links) if links else ((), (), (), ())
    figure = graph_objects.Figure(
        graph_objects.Sankey(
            arrangement="snap",
            node={
                "label": [cut(name, 48) for _, name in nodes],
                "color": [colours[n] if c == "concept" else OTHER if n == NOWHERE else INK for c, n in nodes],
                "x": [(0.001, 0.5, 0.999)[COLUMNS.index(column)] for column, _ in nodes],
                "y": [float(np.clip(y, 0.001, 0.999)) for y in middles],
                "pad": 14,
                "thickness": 16,
                "line": {"width": 0},
                "hovertemplate": "%{label}: %{value:.3g} deaths<extra></extra>",
            },
            link={
                "source": list(source),
                "target": list(target),
                "value": list(value),
                "color": list(colour),
                "hovertemplate": "%{source.label} → %{target.label}: %{value:.3g} deaths<extra></extra>",
            },
        )
    )
    title = _title(moves) if len(flows) else f"{_title(moves)}<br>{nowhere(moves, dying)}"
    figure.update_layout(title={"text": title}, font={"family": "sans-serif", "size": 13, "color": INK})
    figure.update_layout(margin={"l": 40, "r": 40, "t": 90, "b": 30})
    if flows.empty:
        figure.update_layout(xaxis={"visible": False}, yaxis={"visible": False}, plot_bgcolor="white")
    for place, head in enumerate(HEADS if len(flows) else ()):
        figure.add_annotation(
            x=place / 2, y=1.02, yanchor="bottom", xref="paper", yref="paper", text=head, showarrow=False,
            xanchor=("left", "center", "right")[place], font={"color": GREY},
        )  # fmt: skip
    return figure


def nowhere(moves: pd.DataFrame, dying: bool = True) -> str:
    """Say in words that there is no migration."""
    if moves.empty:
        return "no concept died, so none moved"
    return f"{len(moves):,} concepts died, and no other unit took one up" if not dying else "no concept died"


def _title(moves: pd.DataFrame) -> str:
    about = moves.attrs
    words = [f"IoU of {about['iou_tau']:g}"] if "iou_tau" in about else []
    words += [f"within {about['window']} checkpoints"] if "window" in about else []
    return "Where concepts go that die" + (f": {', '.join(words)}" if words else "")


def _namer(units: Any, level: str) -> Any:
    if units is None:
        return lambda unit, otherwise: f"unit {unit}" if level == "unit" else otherwise
    if "layer" not in units.coords or units.coords["layer"].dims != ("unit",):
        raise SchemaError("units have no coordinate `layer` along `unit`; pass the scores that were followed")
    coords: xr.Dataset | xr.DataArray = units
    numbers = coords["unit"].values.tolist() if "unit" in coords.coords else range(coords.sizes["unit"])
    layers = [str(name) for name in held(coords.coords["layer"]).tolist()]
    index = coords.coords["index"].values.tolist() if "index" in coords.coords else numbers
    named = {u: (name if level == "layer" else f"{name} · {i}") for u, name, i in zip(numbers, layers, index)}
    return lambda unit, otherwise: named.get(unit, otherwise)


def _pooled(table: pd.DataFrame, column: str, count: int) -> Any:
    """Name all but the largest of a column together."""
    total = table[table[column] != NOWHERE].groupby(column)["deaths"].sum()
    ranked = sorted(total.index, key=lambda name: (-total[name], str(name)))
    kept = {*(ranked[:count]), NOWHERE}
    other = f"{len(ranked) - count} other {'concepts' if column == 'concept' else 'units'}"
    return [name if name in kept else other for name in table[column]]


def _ordered(table: pd.DataFrame, level: str) -> pd.DataFrame:
    """Order nodes so that few ribbons cross: concepts by deaths, the ends by the concepts they belong to."""
    if table.empty:
        return table
    total = table.groupby("concept")["deaths"].sum()
    concepts = sorted(total.index, key=lambda c: (_is_other(c), -total[c], str(c)))
    rank = {name: i for i, name in enumerate(concepts)}
    keys = {}
    for column in ("source", "target"):
        weighted = table.assign(at=table["concept"].map(rank) * table["deaths"]).groupby(column)[["at", "deaths"]].sum()
        mean = weighted["at"] / weighted["deaths"]
        last = {name: (name == NOWHERE, _is_other(name)) for name in mean.index}
        keys[column] = {n: (*last[n], natural(str(n)) if level == "layer" else mean[n], str(n)) for n in mean.index}
    order = sorted(
        range(len(table)),
        key=lambda i: (
            keys["source"][table["source"].iloc[i]],
            rank[table["concept"].iloc[i]],
            keys["target"][table["target"].iloc[i]],
        ),
    )
    out = table.iloc[order].reset_index(drop=True)
    out.attrs["order"] = {
        "source": sorted(keys["source"], key=keys["source"].__getitem__),
        "concept": concepts,
        "target": sorted(keys["target"], key=keys["target"].__getitem__),
    }
    return out


def _is_other(name: object) -> bool:
    words = str(name).split(" ")
    return len(words) == 3 and words[1] == "other" and words[0].isdigit()


def _shortened(flows: pd.DataFrame) -> tuple[dict[str, str], str]:
    """Return layers, and units of layers, without what the names of all layers have in common; and that."""
    names = [str(name) for column in ("source", "target") for name in flows[column].unique()]
    plain = {name: name.rpartition(" · ") for name in names if name not in (NOWHERE, ELSEWHERE) and not _is_other(name)}
    layers = list(dict.fromkeys(parts[0] or name for name, parts in plain.items()))
    named, pattern = short_names(layers, longest=24)
    short = dict(zip(layers, named))
    return {n: f"{short[p[0]]} · {p[2]}" if p[0] else short[n] for n, p in plain.items()}, pattern


def _colours(flows: pd.DataFrame) -> dict[str, str]:
    names = flows.attrs.get("order", {}).get("concept", [])
    plain = [name for name in names if not _is_other(name)]
    return {name: PALETTE[i] if i < len(PALETTE) else OTHER for i, name in enumerate(plain)} | {
        name: OTHER for name in names if _is_other(name)
    }


def _stacked(flows: pd.DataFrame, column: str) -> dict[str, tuple[float, float]]:
    """Return from where to where each node of a column reaches, from the top down, with room between them."""
    total = flows.groupby(column)["deaths"].sum()
    names: Iterable[str] = flows.attrs["order"][column]
    room = min(0.045, 0.3 / max(len(total) - 1, 1)) if len(total) > 1 else 0.0
    scale = (1 - room * (len(total) - 1)) / float(total.sum())
    out, top = {}, 1.0
    for name in names:
        high = top
        top -= float(total[name]) * scale
        out[name] = (top, high)
        top -= room
    return out


def _node(ax: Axes, place: int, y: float, name: str, gap: float) -> None:
    look: dict[str, Any] = {"fontsize": 8.5, "color": INK, "va": "center"}
    if place == 0:
        ax.text(-gap, y, cut(name, 26), ha="right", **look)
    elif place == 2:
        ax.text(2 + gap, y, cut(name, 26), ha="left", **look)
    else:
        box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.8}
        ax.text(1 + gap, y, cut(name, 26), ha="left", bbox=box, zorder=4, **look)


def _ribbons(
    ax: Axes,
    flows: pd.DataFrame,
    i: int,
    places: list[dict[str, tuple[float, float]]],
    colours: dict[str, str],
    gap: float,
) -> None:
    """Draw all ribbons between two columns, in the order of the nodes at either end."""
    left, right = COLUMNS[i], COLUMNS[i + 1]
    pair = flows.groupby([left, right], sort=False)["deaths"].sum()
    order = {column: {n: k for k, n in enumerate(flows.attrs["order"][column])} for column in (left, right)}
    edges = {}
    for side, (near, far) in enumerate(((left, right), (right, left))):
        total = flows.groupby(near)["deaths"].sum()
        used = {name: places[i + side][name][1] for name in total.index}
        keys = sorted(pair.index, key=lambda key, side=side, far=far: order[far][key[1 - side]])  # type: ignore[misc]
        for key in keys:
            name = key[side]
            low, high = places[i + side][name]
            size = float(pair[key]) / float(total[name]) * (high - low)
            edges[key, side] = (used[name] - size, used[name])
            used[name] -= size
    t = np.linspace(0, 1, POINTS)
    smooth = t * t * (3 - 2 * t)
    for key in pair.index:
        (low, high), (low_next, high_next) = edges[key, 0], edges[key, 1]
        concept = key[1] if i == 0 else key[0]
        x = i + gap / 2 + t * (1 - gap)
        bottom, top = low + smooth * (low_next - low), high + smooth * (high_next - high)
        ax.fill_between(x, bottom, top, color=colours[concept], alpha=0.45, linewidth=0)


def _faded(colour: str) -> str:
    return f"rgba({int(colour[1:3], 16)}, {int(colour[3:5], 16)}, {int(colour[5:7], 16)}, 0.45)"
