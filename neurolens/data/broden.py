"""Broden: images with their colours, objects, parts, materials, scenes and textures (Bau et al. 2017)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neurolens.data.concept_sets import Cell, ConceptSet
from neurolens.data.folders import FileImages
from neurolens.data.planes import LARGEST, LabelFiles
from neurolens.data.tables import Row, rows_of, whole
from neurolens.errors import DataError, nearest

INDEX = "index.csv"
_SIZES = ("ih", "iw", "sh", "sw")
_TOLD = 3


def broden(root: Path, *, categories: Sequence[str] | None = None, split: str | None = None) -> ConceptSet:
    """Open a concept set in the layout of Broden, and check its tables and that every file is there.

    ``index.csv`` names, for each image, its size, the size of its labels and a cell per category: files of planes and
    numbers that the whole image has, separated by ``;``. Files lie in ``images/``; the number of a pixel is R + 256 G.
    Label 0 is no concept. Images whose cells are all empty are left out.

    A label that several categories list belongs to the one where its coverage (in the ``c_<category>.csv``) is
    largest, to the last of them in the order of ``category.csv`` where two are equal, as in NetDissect; only the
    categories asked for count.

    Parameters
    ----------
    root
        The folder of ``index.csv``.
    categories
        Which of those in ``category.csv``; all of them without it. The order is that of the file.
    split
        Images of this split only.

    Raises
    ------
    DataError
        If a table is missing, lacks a column or contradicts another; if a category or the split has no image; if an
        image or a label file is not there. Sizes and numbers inside the label files are checked when they are decoded.
    """
    numbers = _numbers(root)
    chosen = _chosen(root, categories)
    coverage = {category: _coverage(root, category, numbers) for category in chosen}
    rows = list(rows_of(root / INDEX, ("image", "split", *_SIZES, *chosen)))
    splits = sorted({row["split"] for _, row in rows})
    if split is not None and split not in splits:
        raise DataError(f"{root / INDEX} has no split {split!r}; {nearest(split, splits)}")
    kept, positions, cells = [], [], []
    filled: set[str] = set()
    for position, (line, row) in enumerate(rows):
        if split is not None and row["split"] != split:
            continue
        named = {category: _cell(root, line, row, category, numbers) for category in chosen}
        filled |= {category for category, cell in named.items() if any(cell)}  # a cell of 0 names nothing
        if any(named.values()):
            kept.append((line, row))
            positions.append(position)
            cells.append(tuple(one for cell in named.values() for one in cell))
    if not rows:
        raise DataError(f"{root / INDEX} lists no image; restore it from the data set")
    empty = [category for category in chosen if category not in filled or not coverage[category]]
    if empty:
        others = [category for category in chosen if category not in empty]
        raise DataError(
            f"no image of {root / INDEX} has anything in {', '.join(map(repr, empty))}"
            + (f" in the split {split!r}" if split is not None else "")
            + (f"; leave it out: categories = {others}" if others else "; restore it from the data set")
        )
    (ih, iw), label_size = _sizes(root, kept)
    paths = tuple(row["image"] for _, row in kept)
    folder = root / "images"
    _check_there(folder, paths, "images")
    _check_there(folder, tuple(sorted({c for cell in cells for c in cell if isinstance(c, str)})), "label files")
    labels = np.array(sorted(set().union(*coverage.values())), dtype=np.int64)
    return ConceptSet(
        name=f"broden:{root.name}" + (f":{split}" if split is not None else ""),
        images=FileImages(folder, paths),
        image_size=(ih, iw),
        files=LabelFiles(folder, label_size),
        cells=tuple(cells),
        labels=labels,
        concepts=tuple(numbers[n] for n in labels.tolist()),
        concept_category=tuple(_primary(coverage, n) for n in labels.tolist()),
        categories=tuple(chosen),
        numbers=numbers,
        coords=_coords(kept, positions, paths),
    )


def _coords(kept: list[tuple[int, Row]], positions: list[int], paths: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    return {
        "position": np.array(positions, dtype=np.int64),
        "path": np.array(paths, dtype=np.str_),
        "split": np.array([row["split"] for _, row in kept], dtype=np.str_),
    }


def _numbers(root: Path) -> dict[int, str]:
    """Return the names of labels by number, unique both."""
    path = root / "label.csv"
    names: dict[int, str] = {}
    for line, row in rows_of(path, ("number", "name")):
        number = whole(path, line, row, "number")
        if number == 0:  # no concept, whatever it is called
            continue
        if number in names or not 0 < number <= LARGEST:
            why = f"is that of {names[number]!r} too" if number in names else f"is not from 1 to {LARGEST}"
            raise DataError(f"{path}, line {line}: number {number} of {row['name']!r} {why}; give it one of its own")
        names[number] = row["name"]
    seen: dict[str, int] = {}
    for number, name in names.items():
        if name in seen:
            raise DataError(
                f"{path} calls both {seen[name]} and {number} {name!r}, and concepts are told apart by their names; "
                "rename one of them"
            )
        seen[name] = number
    if not names:
        raise DataError(f"{path} names no label; fill it: number,name,category,frequency,coverage,syns")
    return names


def _chosen(root: Path, categories: Sequence[str] | None) -> list[str]:
    known = [row["name"] for _, row in rows_of(root / "category.csv", ("name",))]
    wanted = known if categories is None else list(categories)
    for name in wanted:
        if name not in known:
            raise DataError(f"{root / 'category.csv'} has no category {name!r}; {nearest(name, known)}")
    if not wanted:
        raise DataError(f"no category is chosen; {root / 'category.csv'} has: {', '.join(known) or 'none'}")
    return [name for name in known if name in wanted]


def _coverage(root: Path, category: str, numbers: dict[int, str]) -> dict[int, float]:
    """Return the coverage of every label that a category lists."""
    path = root / f"c_{category}.csv"
    found = {}
    for line, row in rows_of(path, ("number", "coverage")):
        number = whole(path, line, row, "number")
        if number == 0:
            continue
        if number not in numbers:
            raise DataError(f"{path}, line {line}: label {number} is not in label.csv; add it there, or remove it here")
        try:
            found[number] = float(row["coverage"])
        except ValueError:
            raise DataError(f"{path}, line {line}: coverage {row['coverage']!r} is not a number; mend it") from None
    return found


def _primary(coverage: dict[str, dict[int, float]], number: int) -> str:
    """Return the category where a label covers most; the last of several."""
    best = max((of[number], i, category) for i, (category, of) in enumerate(coverage.items()) if number in of)
    return best[2]


def _cell(root: Path, line: int, row: Row, category: str, numbers: dict[int, str]) -> Cell:
    found: list[str | int] = []
    for text in row[category].split(";"):
        if text.strip().isdecimal():
            number = int(text)
            if number and number not in numbers:
                raise DataError(
                    f"{root / INDEX}, line {line}: {category} {number} of {row['image']} is not in label.csv; "
                    "add it there, or write 0 where it means nothing"
                )
            found.append(number)
        elif text.strip():
            found.append(text.strip())
    return tuple(found)


def _sizes(root: Path, rows: list[tuple[int, Row]]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size of the images and that of the labels, which all rows share."""
    path = root / INDEX
    first: tuple[int, ...] | None = None
    for line, row in rows:
        sizes = tuple(whole(path, line, row, name) for name in _SIZES)
        first = first or sizes
        if sizes != first:
            raise DataError(
                f"{path}, line {line}: {row['image']} has ih,iw,sh,sw = {','.join(map(str, sizes))}, and the images "
                f"before it have {','.join(map(str, first))}; all must share one size"
            )
    ih, iw, sh, sw = first or (0, 0, 0, 0)
    if min(ih, iw, sh, sw) < 1:
        raise DataError(f"{path} gives ih,iw,sh,sw = {ih},{iw},{sh},{sw}; write the real sizes")
    if abs(sh * iw - sw * ih) > max(ih, iw):  # half of 227 is 113: right to one pixel
        raise DataError(
            f"{path} gives images of {ih} x {iw} and labels of {sh} x {sw}, which cannot cover them; write the real "
            "sizes (Broden: sh = ih // 2, sw = iw // 2)"
        )
    return (ih, iw), (sh, sw)


def _check_there(folder: Path, names: Sequence[str], what: str) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} {what} are not in {folder}: {', '.join(missing[:_TOLD])}"
            + (", …" if len(missing) > _TOLD else "")
            + "; unpack the data set again, or remove their lines from index.csv"
        )
