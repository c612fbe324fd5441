"""Tables of the reference's dissection, one per checkpoint and layer, read into trajectories.

Such a table knows the best concept per unit and category, and nothing of the others.
"""

import csv
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from neurolens.errors import DataError, nearest
from neurolens.mortality.inputs import spread_codes
from neurolens.study.tables import pattern_fields
from neurolens.units.inputs import choice, listed
from neurolens.units.seed_log import natural

FILE = "tally.csv"
COLUMNS = ("unit", "category", "label", "score")
FIGURES = ("truth", "activation", "intersect", "iou")
OWN_NAMES = (
    (re.compile(r"epoch[_-](\d+)[_-]iter[_-](\d+)"), ("epoch", "step")),
    (re.compile(r"epoch[_-](\d+)"), ("epoch",)),
    (re.compile(r"(?:iter|step)[_-](\d+)"), ("step",)),
)
"""Names of checkpoints as the reference writes them, and what their numbers are."""


@dataclass(frozen=True)
class Place:
    """A folder of tallies of one checkpoint, with its position along the series and its other number, if it has one."""

    path: Path
    position: int
    other: int | None = None


@dataclass(frozen=True)
class Tally:
    """One table: ``unit`` (row,) from 1, text and score (row,), and per category (row, category)."""

    unit: NDArray[np.int64]
    category: list[str]
    label: list[str]
    score: NDArray[np.float64]
    categories: tuple[str, ...]
    labels: NDArray[Any]
    figures: Mapping[str, NDArray[np.float64]]


def read_tallies(
    folder: str | os.PathLike[str],
    *,
    layers: Sequence[str] | None = None,
    order: Sequence[str] | Mapping[str, int] | None = None,
    pattern: str | None = None,
    dim: Literal["epoch", "step"] | None = None,
    mismatched: Literal["error", "nan"] = "error",
) -> xr.Dataset:
    """Read a tree of `tally.csv`, one folder per checkpoint, into trajectories that can be followed.

    Parameters
    ----------
    folder
        Holds ``<checkpoint>/<layer>/tally.csv`` or ``<checkpoint>/tally.csv``.
    layers
        Layers to read, in order; absent: all folders with a table that there are, in natural order. A table without a
        folder of a layer says not which layer it is of: name that one layer.
    order
        Folders of the checkpoints in order, numbered 0, 1, …; or their positions by name.
    pattern
        What the folders are called, with ``{epoch}`` or ``{step}`` or both, which stand for digits. Others are passed
        over. Absent, with no ``order``: names as the reference writes them, ``epoch_0``, ``epoch_0_iter_300`` or
        ``iter_300``, all of one kind; any other name is refused and not guessed.
    dim
        What the positions are. Absent: the step where names have one, else the epoch.
    mismatched
        Where an IoU is not intersect / (activation + truth − intersect): raise, or read that cell as NaN.

    Returns
    -------
    Dataset (series, unit)
        `score`, `label` and `label_category` of each unit's best concept, as in the table; with tables that have
        columns per category also `best_label`, `truth`, `activation`, `intersect`, `best_iou` (series, unit, category),
        and `iou` (series, unit, concept), lazy: NaN for all but the best concept of each category, so that a concept
        that another displaces ends as *displaced*, never as a death. A nameless concept (label 0) has no IoU.
        Coordinates `layer` and `index`, the reference's unit − 1, (unit), `checkpoint` (series), `concept_category`
        (concept).

    Raises
    ------
    DataError
        If there is no table, names are ambiguous, a table lacks columns, units or layers that others have, or a number
        is none or contradicts the others.

    References
    ----------
    Bau et al. 2017, "Network Dissection"; columns as of NetDissect-Lite.
    """
    choice("mismatched", mismatched, "error", "nan")
    root = Path(folder)
    if not root.is_dir():
        near = [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
        raise DataError(f"{root}: there is no such folder; {nearest(root.name, near)}")
    places, series = _places(root, order, pattern, dim)
    names = _layers(places, layers)
    read = [[_read(_file(place.path, layer, names), mismatched) for layer in names] for place in places]
    return _together(root, places, series, names, read)


def _places(
    root: Path, order: Sequence[str] | Mapping[str, int] | None, pattern: str | None, dim: str | None
) -> tuple[list[Place], str]:
    if order is not None and pattern is not None:
        raise DataError("found both an order and a pattern; give the one or the other")
    if dim is not None and dim not in ("epoch", "step"):
        raise DataError(f"dim={dim!r} is unknown; {nearest(dim, ('epoch', 'step'))}")
    folders = {p.name: p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")}
    if order is not None:
        places = _ordered(root, folders, order)
        series = dim or "epoch"
    else:
        places, series = _named(root, folders, pattern, dim)
    twice = [p for p in places if sum(q.position == p.position for q in places) > 1]
    if twice:
        raise DataError(
            f"{listed([p.path.name for p in twice])} are at the same {series}, {twice[0].position}; "
            "give the order: order=[…], or positions by name"
        )
    return sorted(places, key=lambda p: p.position), series


def _ordered(root: Path, folders: Mapping[str, Path], order: Sequence[str] | Mapping[str, int]) -> list[Place]:
    at = dict(order) if isinstance(order, Mapping) else {name: i for i, name in enumerate(order)}
    if not at or len(at) != len(order):
        raise DataError("the order names no checkpoint, or one twice; name each folder once")
    for name in at:
        if name not in folders:
            raise DataError(f"the order names {name!r}, which is not in {root}; {nearest(name, folders)}")
    return [Place(folders[name], int(position)) for name, position in at.items()]


def _named(root: Path, folders: Mapping[str, Path], pattern: str | None, dim: str | None) -> tuple[list[Place], str]:
    if pattern is None:
        candidates = {name: path for name, path in folders.items() if _tables(path)}
        found, fields = _by_reference(root, candidates)
    else:
        found, fields = _by_pattern(folders, pattern)
    if not found:
        wanted = f"is called {pattern!r}" if pattern else f"holds a {FILE}"
        raise DataError(f"no folder in {root} {wanted}; {nearest(pattern or FILE, folders)}")
    series = dim or ("step" if "step" in fields else "epoch")
    if series not in fields:
        raise DataError(
            f"the names of checkpoints tell no {series}, only {', '.join(fields)}; give the order: order=[…]"
        )
    at, other = fields.index(series), next((i for i, name in enumerate(fields) if name != series), None)
    return [
        Place(folders[name], numbers[at], None if other is None else numbers[other]) for name, numbers in found.items()
    ], series


def _by_reference(root: Path, folders: Mapping[str, Path]) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    kinds: dict[tuple[str, ...], str] = {}
    for name in folders:
        hits = [(rule.fullmatch(name), fields) for rule, fields in OWN_NAMES]
        match, fields = next(((m, f) for m, f in hits if m), (None, ()))
        if match is None:
            raise DataError(
                f"{name!r} in {root} is no unambiguous name of a checkpoint: it is none of epoch_<n>, "
                "epoch_<n>_iter_<n> and iter_<n>, with digits only; give the order: order=['first', 'second', …], "
                f"positions by name: order={{{name!r}: 28000, …}}, or a pattern with {{epoch}} or {{step}} for digits"
            )
        found[name] = tuple(map(int, match.groups()))
        kinds.setdefault(fields, name)
    if len(kinds) > 1:
        raise DataError(
            f"{listed(list(kinds.values()))} in {root} number epochs and steps on one axis; "
            "give the order: order=[…], or a pattern that fits one kind"
        )
    return found, next(iter(kinds), ())


def _by_pattern(folders: Mapping[str, Path], pattern: str) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    try:
        fields = pattern_fields(pattern)
    except ValueError as error:
        raise DataError(str(error)) from error
    odd = [name for name in fields if name not in ("epoch", "step")]
    if odd or not fields:
        found = f"has a field {{{odd[0]}}}" if odd else "has no field"
        raise DataError(f"pattern {pattern!r} {found}; {{epoch}} and {{step}} are known, and stand for digits")
    pieces = re.split(r"\{(?:epoch|step)[^}]*\}", pattern)
    rule = re.compile(r"(\d+)".join(re.escape(piece.replace("{{", "{").replace("}}", "}")) for piece in pieces))
    matches = {name: rule.fullmatch(name) for name in folders}
    return {name: tuple(map(int, match.groups())) for name, match in matches.items() if match}, fields


def _tables(folder: Path) -> list[Path]:
    return [p for p in (folder / FILE, *sorted(folder.glob(f"*/{FILE}"))) if p.is_file()]


def _layers(places: Sequence[Place], layers: Sequence[str] | None) -> list[str]:
    if layers is not None:
        if isinstance(layers, str) or not layers or len(set(layers)) < len(layers):
            raise DataError(f"layers={layers!r} is no list of distinct layers; give e.g. layers=['layer4']")
        return list(layers)
    found = {p.parent.name for place in places for p in _tables(place.path) if p.parent != place.path}
    if found:
        return sorted(found, key=natural)
    if not any(_tables(place.path) for place in places):
        raise DataError(f"there is no {FILE} in {listed([p.path for p in places])}; name the folder that holds them")
    raise DataError(
        f"{places[0].path / FILE} lies in no folder of a layer, so its layer is unknown; name it: layers=['layer4']"
    )


def _file(folder: Path, layer: str, layers: Sequence[str]) -> Path:
    own, shared = folder / layer / FILE, folder / FILE
    if own.is_file():
        return own
    if not shared.is_file():
        there = [p.parent.name for p in _tables(folder)]
        raise DataError(f"{folder} has no {FILE} of layer {layer!r}; {nearest(layer, there)}")
    if len(layers) > 1:
        raise DataError(
            f"{shared} lies in no folder of a layer, so it cannot be of {len(layers)} layers; "
            f"move it to {own}, or read one layer"
        )
    return shared


def _read(path: Path, mismatched: str) -> Tally:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table ({error}); export it again") from error
    header = list(lines[0]) if lines else []
    lacking = [name for name in COLUMNS if name not in header]
    if lacking:
        found = f"it lacks {listed(lacking)}" if lines else "it has no line"
        raise DataError(f"{path} is no tally: {found}; needed: {listed(COLUMNS)}, and one line per unit")
    if any(None in line or None in line.values() for line in lines):
        raise DataError(f"{path} has lines of another length than its header; mend or remove them")
    categories = tuple(name.removesuffix("-iou") for name in header if name.endswith("-iou"))
    incomplete = [f"{c}-{f}" for c in categories for f in ("label", *FIGURES) if f"{c}-{f}" not in header]
    if incomplete:
        raise DataError(f"{path} lacks the column {incomplete[0]!r}; a category has five: label, {', '.join(FIGURES)}")
    unit = np.array([_number(path, line, "unit") for line in lines])
    if (unit != np.floor(unit)).any() or (unit < 1).any() or len(np.unique(unit)) < len(unit):
        raise DataError(f"{path} numbers a unit twice, or not from 1 on; units are whole numbers, one line each")
    figures = {f: np.array([[_number(path, line, f"{c}-{f}") for c in categories] for line in lines]) for f in FIGURES}
    tally = Tally(
        unit.astype(np.int64),
        [line["category"] for line in lines],
        [line["label"] for line in lines],
        np.array([_number(path, line, "score") for line in lines]),
        categories,
        np.array([[line[f"{c}-label"] for c in categories] for line in lines], dtype=object),
        figures,
    )
    if categories:
        _require_identity(path, tally, mismatched)
    return tally


def _require_identity(path: Path, tally: Tally, mismatched: str) -> None:
    truth, activation, intersect, iou = (tally.figures[name] for name in FIGURES)
    union = activation + truth - intersect
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.where(union > 0, intersect / union, 0.0)
    wrong = np.isfinite(iou) & ~np.isclose(iou, expected, rtol=1e-5, atol=1e-9)
    if not wrong.any():
        return
    if mismatched == "nan":
        iou[wrong] = np.nan
        return
    row, column = (int(index[0]) for index in np.nonzero(wrong))
    raise DataError(
        f"{path}: the {tally.categories[column]} IoU of unit {tally.unit[row]} is {iou[row, column]:g}, but "
        f"intersect / (activation + truth − intersect) is {expected[row, column]:g}; {int(wrong.sum())} of "
        f"{wrong.size} cells are so: the table was altered, or written by another tool; export it again, or pass "
        'mismatched="nan" to leave these cells out'
    )


def _number(path: Path, line: Mapping[str, str], name: str) -> float:
    try:
        return float(line[name])
    except ValueError:
        raise DataError(
            f"{path}: {name} of unit {line['unit']} is {line[name]!r}; a number was needed: mend that line"
        ) from None


def _together(
    root: Path, places: Sequence[Place], series: str, layers: Sequence[str], read: Sequence[Sequence[Tally]]
) -> xr.Dataset:
    units = [sorted({int(u) for row in read for u in row[i].unit}) for i in range(len(layers))]
    offset = np.cumsum([0, *map(len, units)])
    categories = list(dict.fromkeys(c for row in read for tally in row for c in tally.categories))
    shape = (len(places), int(offset[-1]))
    text = {name: np.full(shape, "", dtype=object) for name in ("label", "category")}
    score = np.full(shape, np.nan)
    best_label = np.full((*shape, len(categories)), "", dtype=object)
    figures = {f: np.full((*shape, len(categories)), np.nan) for f in FIGURES}
    for t, row in enumerate(read):
        for i, tally in enumerate(row):
            if len(tally.unit) != len(units[i]):
                lost = sorted(set(units[i]) - set(tally.unit.tolist()))
                raise DataError(
                    f"{places[t].path.name} has no unit {listed(lost)} of layer {layers[i]!r}, which other checkpoints "
                    "have; export it again, or leave that checkpoint out of the order"
                )
            at = offset[i] + np.searchsorted(units[i], tally.unit)
            score[t, at], text["label"][t, at], text["category"][t, at] = tally.score, tally.label, tally.category
            where = [categories.index(c) for c in tally.categories]
            best_label[t, at[:, None], where] = tally.labels
            for name in FIGURES:
                figures[name][t, at[:, None], where] = tally.figures[name]
    string = np.dtypes.StringDType()
    coords: dict[str, Any] = {
        series: [p.position for p in places],
        "unit": np.arange(shape[1]),
        "layer": ("unit", np.repeat(np.asarray(layers, string), np.diff(offset))),
        "index": ("unit", np.concatenate(units).astype(np.int64) - 1),
        "checkpoint": (series, np.asarray([p.path.name for p in places], string)),
    }
    if all(p.other is not None for p in places):
        coords["epoch" if series == "step" else "step"] = (series, [p.other for p in places])
    here, per = (series, "unit"), (series, "unit", "category")
    out = xr.Dataset({"score": (here, score)}, coords, attrs={"imported_from": str(root)})
    for name, values in text.items():
        out["label_category" if name == "category" else name] = (here, values.astype(string))
    if categories:
        out = out.assign_coords(category=np.asarray(categories, string))
        out["best_label"] = (per, best_label.astype(string))
        for name in FIGURES:
            out["best_iou" if name == "iou" else name] = (per, figures[name])
        out["iou"] = _iou(out, best_label, categories)
    return out


def _iou(out: xr.Dataset, best_label: Any, categories: Sequence[str]) -> xr.DataArray:
    """Return (series, unit, concept) of the best per category; a name that two categories share is two concepts."""
    pairs = sorted({(c, name) for i, c in enumerate(categories) for name in best_label[..., i].ravel() if name})
    shared = pd.Series([name for _, name in pairs]).duplicated(keep=False).tolist()
    names = [f"{name} ({c})" if again else name for (c, name), again in zip(pairs, shared)]
    number = {pair: i for i, pair in enumerate(pairs)}
    codes = np.full(best_label.shape, -1)
    for i, c in enumerate(categories):
        column = best_label[..., i]
        codes[..., i] = [[number.get((c, name), -1) for name in row] for row in column]
    iou = out["best_iou"].reset_coords(drop=True)
    spread = spread_codes(iou.drop_vars("category", errors="ignore"), iou.copy(data=codes), names)
    category = np.asarray([c for c, _ in pairs], np.dtypes.StringDType())
    return spread.assign_coords(concept_category=("concept", category))
