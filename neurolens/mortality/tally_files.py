"""One table of the reference's dissection: a line per unit, and in it the best concept of each category."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurolens.errors import DataError, nearest
from neurolens.units.inputs import listed

FILE = "tally.csv"
COLUMNS = ("unit", "category", "label", "score")
FIGURES = ("truth", "activation", "intersect", "iou")

_OTHER = (
    "they were dissected with other concepts or images, and are no one series: leave the odd ones out of the order, or "
    'follow them all the same with differing="keep" (--differing keep)'
)


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


def read_table(path: Path, mismatched: str) -> Tally:
    """Read and check one table.

    Raises
    ------
    DataError
        If columns or numbers are missing, or contradict each other.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
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
        odd = sorted(set(tally.category) - {"", *categories})
        if odd:
            raise DataError(
                f"{path}: {odd[0]!r} is the category of a unit, and of no column; {nearest(odd[0], categories)}"
            )
        _require_identity(path, tally, mismatched)
    return tally


def require_alike(tables: Sequence[tuple[str, Tally]]) -> None:
    """Raise DataError if tables are not of the same concepts: other categories, or another area of a concept."""
    known: dict[tuple[str, str], tuple[float, str]] = {}
    for name, table in tables:
        first, model = tables[0]
        if set(table.categories) != set(model.categories):
            raise DataError(
                f"{name} has columns for the categories {listed(table.categories) or 'none'}, and {first} for "
                f"{listed(model.categories) or 'none'}; {_OTHER}"
            )
        for key, area in _areas(table).items():
            before, where = known.setdefault(key, (area, name))
            if before != area:
                raise DataError(
                    f"the area (truth) of the {key[0]} {key[1]!r} is {before:.10g} in {where} and {area:.10g} in "
                    f"{name}, and was to be the same; {_OTHER}"
                )


def _areas(table: Tally) -> dict[tuple[str, str], float]:
    """Return the area of each concept that the table has one area of."""
    out: dict[tuple[str, str], set[float]] = {}
    truth, iou = table.figures["truth"], table.figures["iou"]
    for row, column in zip(*np.nonzero(iou > 0), strict=True):  # elsewhere the label may be any
        key = (table.categories[column], str(table.labels[row, column]))
        out.setdefault(key, set()).add(float(truth[row, column]))
    return {key: areas.pop() for key, areas in out.items() if len(areas) == 1 and key[1]}


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
