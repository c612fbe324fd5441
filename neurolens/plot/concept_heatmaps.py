"""Heatmaps of IoU: of each unit with its best concept over the series, and of detectors with concepts."""

from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.image import AxesImage

from neurolens import schema
from neurolens.dissection import best_concept
from neurolens.dissection import iou as iou_of
from neurolens.dissection.overlap import TAU, Reading
from neurolens.errors import SchemaError
from neurolens.plot.style import GREY, cut, empty, evenly_named, new_axes, short_names, styled
from neurolens.units.layers_of import held

UNITS, CONCEPTS = 40, 30
"""How many units and concepts are drawn, if nothing else is said."""


def score_heatmap(
    data: xr.Dataset | xr.DataArray,
    *,
    tau: float = TAU,
    reading: Reading = "paper",
    count: int | None = None,
    dim: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the IoU of each unit with its best concept at every checkpoint: below the threshold grey, above it blue.

    **Eager**. Layers stand in their order; in each, units that detect first are on top, and those that never do at the
    bottom. What has no score is hatched.

    Parameters
    ----------
    data : Dataset with `score` (series, unit), or the array, or the concepts cube or IoU
        What `neurolens.best_concept` returns.
    tau, reading
        Threshold of a detector; reading of a cube.
    count : int, optional
        How many units at most, those with the highest scores; absent: all.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever there is.

    Raises
    ------
    SchemaError
        If there is no score.
    """
    score = _scores(data, reading)
    series = schema.series_dim(score, dim)
    score = score.transpose("unit", series).compute()
    at = np.asarray(score[series]) if series in score.coords else np.arange(score.sizes[series])
    values = np.asarray(score, np.float64)
    peak = np.max(np.where(np.isfinite(values), values, -1.0), axis=1, initial=-1.0)
    layers = [str(n) for n in held(score.coords["layer"]).tolist()] if "layer" in score.coords else [""] * len(values)
    order = by_onset(values, layers, tau)
    if count is not None:
        best = set(np.argsort(-peak, kind="stable")[:count].tolist())
        order = [i for i in order if i in best]
    with styled():
        ax = new_axes(ax, size=(6.8, float(np.clip(1.6 + 0.02 * len(order), 3.4, 8))))
        words = f"Best IoU of each unit: {int((peak >= tau).sum()):,} of {len(values):,} ever detect"
        ax.set_title(words)
        if not len(order) or peak.max() < 0:
            return empty(ax, "no unit has a score at any checkpoint")
        ax.grid(visible=False)
        cells = np.ma.masked_invalid(values[order])
        top = max(float(cells.max()), 1.5 * tau)
        ax.patch.set(hatch="////", edgecolor=GREY, linewidth=0)
        norm = TwoSlopeNorm(tau, 0, top)
        shown = ax.imshow(cells, cmap=_two_sided(), norm=norm, aspect="auto", interpolation="nearest")
        _layers_beside(ax, [layers[i] for i in order], _numbers(score, order))
        evenly_named(ax, at.tolist(), room=0.8)
        left = len(values) - len(order)
        ax.set_xlabel(f"{series}\n{left:,} units with lower scores left out" if left else series)
        _bar(ax, shown, tau, top, "IoU with the best concept")
        return ax


def iou_heatmap(
    data: xr.Dataset | xr.DataArray,
    *,
    tau: float = TAU,
    reading: Reading = "paper",
    units: int = UNITS,
    concepts: int = CONCEPTS,
    at: Any = None,
    dim: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the IoU of detectors with the concepts that are detected, at one checkpoint. **Eager**.

    Concepts are columns, in order of category and then of how many units detect them; units are rows, in the order of
    their best concept: the best IoUs lie on a staircase, and what else a unit answers to is seen off it.

    Parameters
    ----------
    data : the concepts cube, or IoU (series, unit, concept) or (unit, concept)
    tau, reading
        Threshold of a detector; reading of a cube.
    units, concepts : int
        How many at most, those with the highest IoU.
    at : optional
        Label of the checkpoint; absent: the last one.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever there is.

    Raises
    ------
    SchemaError
        If there is no IoU over units and concepts, or no such checkpoint.
    """
    iou = _iou(data, reading)
    if set(iou.dims) - {"unit", "concept"}:
        series = schema.series_dim(iou, dim)
        if at is not None and at not in iou[series].values:
            raise SchemaError(f"there is no {series} {at!r}; found {iou[series].values.tolist()[:8]}")
        iou = iou.isel({series: -1}) if at is None else iou.sel({series: at})
    stamps = [name for name in schema.SERIES_DIMS if name in iou.coords and iou.coords[name].ndim == 0]
    where = f" at {stamps[0]} {iou.coords[stamps[0]].item()}" if stamps else ""
    iou = iou.transpose("unit", "concept").compute()
    values = np.asarray(iou, np.float64)
    filled = np.where(np.isfinite(values), values, -1.0)
    names = [str(name) for name in held(iou["concept"]).tolist()]
    kinds = (
        [str(k) for k in held(iou["concept_category"]).tolist()]
        if "concept_category" in iou.coords
        else [""] * len(names)
    )
    rows, columns, found, held_ = _staircase(filled, kinds, names, tau, units, concepts)
    with styled():
        ax = new_axes(ax, size=_size(rows, columns))
        ax.set_title(f"IoU of detectors and concepts{where}")
        if not rows:
            return empty(ax, f"no unit reaches an IoU of {tau:g}{where}")
        ax.grid(visible=False)
        cells = np.ma.masked_invalid(values[np.ix_(rows, columns)])
        top = max(float(cells.max()), 1.5 * tau)
        ax.patch.set(hatch="////", edgecolor=GREY, linewidth=0)
        shown = ax.imshow(
            cells, cmap=_two_sided(), norm=TwoSlopeNorm(tau, 0, top), aspect="auto", interpolation="nearest"
        )
        words = [cut(names[c], 24) for c in columns]
        ax.set_xticks(range(len(columns)), words, rotation=90, fontsize=8)
        edges = [i for i in range(1, len(columns)) if kinds[columns[i]] != kinds[columns[i - 1]]]
        for edge in edges:
            ax.axvline(edge - 0.5, color=GREY, linewidth=0.8)
        _kinds_above(ax, [kinds[c] for c in columns], [0, *edges, len(columns)])
        layers = [str(n) for n in held(iou.coords["layer"]).tolist()] if "layer" in iou.coords else [""] * len(values)
        _unit_names(ax, [layers[i] for i in rows], _numbers(iou, rows))
        left = [f"{found - len(rows):,} more detectors"] if found > len(rows) else []
        left += [f"{held_ - len(columns):,} more concepts"] if held_ > len(columns) else []
        ax.set_xlabel(f"not drawn: {', '.join(left)}" if left else "")
        _bar(ax, shown, tau, top, "IoU")
        return ax


def iou_heatmap_size(
    iou: xr.DataArray, *, tau: float = TAU, units: int = UNITS, concepts: int = CONCEPTS
) -> tuple[float, float]:
    """Return width and height, in inches, of a figure for `iou_heatmap` of IoU (unit, concept)."""
    values = np.asarray(iou.transpose("unit", "concept"), np.float64)
    filled = np.where(np.isfinite(values), values, -1.0)
    rows, columns, _, _ = _staircase(filled, [""] * filled.shape[1], [""] * filled.shape[1], tau, units, concepts)
    return _size(rows, columns)


def _size(rows: list[int], columns: list[int]) -> tuple[float, float]:
    return float(np.clip(3.2 + 0.22 * len(columns), 5.2, 11)), float(np.clip(2.4 + 0.19 * len(rows), 3.4, 11))


def by_onset(values: np.ndarray, layers: list[str], tau: float) -> list[int]:
    """Order units (unit, series) by layer, then by when they detect first, then by their highest score."""
    above = values >= tau
    onset = np.where(above.any(axis=1), above.argmax(axis=1), values.shape[1])
    peak = np.max(np.where(np.isfinite(values), values, -1.0), axis=1, initial=-1.0)
    places = {name: i for i, name in enumerate(dict.fromkeys(layers))}
    return [int(i) for i in np.lexsort((-peak, onset, [places[name] for name in layers]))]


def several_layers(pattern: str) -> str:
    """Return what an axis of units of several layers is called."""
    return "unit (layer · number)" + (f"\n{cut(pattern, 40)}" if pattern else "")


def _staircase(
    values: np.ndarray, kinds: list[str], names: list[str], tau: float, units: int, concepts: int
) -> tuple[list[int], list[int], int, int]:
    """Choose and order units and concepts; and count all detectors, and all concepts that are detected."""
    if not values.size:
        return [], [], 0, 0
    best, peak = values.argmax(axis=1), values.max(axis=1)
    detecting = np.flatnonzero(peak >= tau)
    chosen = detecting[np.argsort(-peak[detecting], kind="stable")][:units]
    number = np.bincount(best[chosen], minlength=len(names))
    places = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
    columns = sorted(np.flatnonzero(number).tolist(), key=lambda c: (-number[c], names[c]))[:concepts]
    columns.sort(key=lambda c: (places[kinds[c]], -number[c], names[c]))
    rank = {c: i for i, c in enumerate(columns)}
    rows = sorted((int(u) for u in chosen if int(best[u]) in rank), key=lambda u: (rank[int(best[u])], -peak[u]))
    return rows, columns, len(detecting), len(np.unique(best[detecting]))


def _scores(data: xr.Dataset | xr.DataArray, reading: Reading) -> xr.DataArray:
    if isinstance(data, xr.Dataset) and "score" in data:
        return data["score"]
    if isinstance(data, xr.Dataset) and "iou" in data:
        data = data["iou"]
    if isinstance(data, xr.DataArray) and "concept" not in data.dims:
        if "unit" not in data.dims:
            raise SchemaError(f"found dims {data.dims}; scores over units are needed: neurolens.best_concept(ds)")
        return data
    if isinstance(data, xr.Dataset) and "intersection" not in data:
        found = ", ".join(map(str, data.data_vars)) or "nothing"
        raise SchemaError(f"the Dataset holds {found}; scores are needed: neurolens.best_concept(ds)")
    return best_concept(data, reading=reading)["score"]


def _iou(data: xr.Dataset | xr.DataArray, reading: Reading) -> xr.DataArray:
    if isinstance(data, xr.Dataset):
        data = data["iou"] if "iou" in data else iou_of(data, reading=reading)
    lacking = [dim for dim in ("unit", "concept") if dim not in data.dims]
    if lacking:
        raise SchemaError(f"found dims {data.dims} without {lacking[0]!r}; pass neurolens.iou(ds)")
    return data


def _two_sided() -> Colormap:
    """Return grey below the middle, blue above it."""
    pale, deep = ["#ffffff", "#c9d1d9"], ["#9ecae1", "#2c7fb8", "#08306b"]
    stops = [(0.0, pale[0]), (0.5, pale[1]), (0.5, deep[0]), (0.75, deep[1]), (1.0, deep[2])]
    return LinearSegmentedColormap.from_list("detectors", stops)


def _bar(ax: Axes, shown: AxesImage, tau: float, top: float, label: str) -> None:
    """Draw the colour bar, the threshold named on it."""
    bar = ax.figure.colorbar(shown, ax=ax, label=label, pad=0.02, fraction=0.05, aspect=30)
    above = np.linspace(tau, top, 4)[1:]
    bar.set_ticks([0, tau, *above], labels=["0", f"tau {tau:g}", *(f"{value:.2g}" for value in above)])
    bar.outline.set_visible(False)


def _numbers(array: xr.DataArray, rows: list[int]) -> list[str]:
    """Return the number of each unit in its layer, or its own."""
    for name in ("index", "unit"):
        if name in array.coords and array.coords[name].dims == ("unit",):
            return [str(value) for value in held(array.coords[name])[rows].tolist()]
    return [str(row) for row in rows]


def _layers_beside(ax: Axes, layers: list[str], numbers: list[str]) -> None:
    """Name every unit, or only the layers where there are too many."""
    figure: Any = ax.figure
    room = ax.get_position().height * figure.get_size_inches()[1] * 72
    if 9 * len(layers) <= room:
        _unit_names(ax, layers, numbers)
    else:
        short, pattern = short_names(list(dict.fromkeys(layers)), longest=18)
        starts = [0, *(i for i in range(1, len(layers)) if layers[i] != layers[i - 1])]
        ends = [*starts[1:], len(layers)]
        ax.set_yticks(
            [(a + b - 1) / 2 for a, b in zip(starts, ends)],
            [f"{s}\n{b - a} units" for s, a, b in zip(short, starts, ends)],
        )
        ax.tick_params(axis="y", length=0)
        ax.set_ylabel(f"layer: {cut(pattern, 40)}" if pattern else "", fontsize=8)
    for i in range(1, len(layers)):
        if layers[i] != layers[i - 1]:
            ax.axhline(i - 0.5, color=GREY, linewidth=0.8)


def _kinds_above(ax: Axes, kinds: list[str], edges: list[int]) -> None:
    """Name the categories over their columns: slanted, where one of them would not fit."""
    spans = [(kinds[start], start, end) for start, end in pairwise(edges) if kinds[start]]
    figure: Any = ax.figure
    letters = 0.7 * ax.get_position().width * figure.get_size_inches()[0] * 72 / 4.8 / len(kinds)
    slanted = any(len(name) > letters * (end - start) for name, start, end in spans)
    look: dict[str, Any] = {"rotation": 35, "ha": "left"} if slanted else {"ha": "center"}
    for name, start, end in spans:
        at = ((start + end - 1) / 2, 1)
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        ax.annotate(cut(name, 20), at, (0, 3), fontsize=8, color=GREY, va="bottom", **place, **look)
    if spans:
        longest = max(len(name) for name, _, _ in spans)
        ax.set_title(ax.get_title(loc="left"), pad=14 + 2.8 * min(longest, 20) if slanted else 17)


def _unit_names(ax: Axes, layers: list[str], numbers: list[str]) -> None:
    short, pattern = short_names(list(dict.fromkeys(layers)), longest=16)
    named = dict(zip(dict.fromkeys(layers), short))
    several = len(named) > 1
    size = 8 if len(layers) <= 30 else 6.5
    ax.set_yticks(
        range(len(layers)), [f"{named[n]} · {i}" if several else i for n, i in zip(layers, numbers)], fontsize=size
    )
    of_one = f"unit of {short[0]}" if short and short[0] else "unit"
    ax.set_ylabel(several_layers(pattern) if several else of_one)
