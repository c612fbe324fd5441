"""Generated concept data: written in the layout of Broden, with class folders to train a network on."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from neurolens.data.samples import in_threads
from neurolens.data.shape_pictures import NAMES, NUMBERS, SCENES, Numbers, Picture, picture
from neurolens.errors import DataError, nearest

SHAPES_VERSION = 1
"""Raised when a seed means other pictures."""

KINDS = ("shapes",)
FEWEST, SMALLEST = 5 * len(SCENES), 32
_COLUMNS = ("color", "object", "part", "material", "scene", "texture")
_CHUNK = 256


def make_concepts(
    root: str | Path,
    *,
    kind: str = "shapes",
    n: int = 600,
    seed: int = 0,
    size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write pictures whose every concept is known, in the layout of Broden, and return the folder.

    Eight colours, five shapes as objects, their parts (two planes a picture), four textures, six scenes. Images lie in
    ``images/<split>/<scene>/``, so that ``[data] source = "folder"`` with ``root = "<folder>/images"`` and the split
    ``train`` or ``val`` is a task of telling scenes apart, on the same images. Every fifth image of a scene is in
    ``val``. The picture of a number is the same for every ``n``.

    Parameters
    ----------
    n
        How many pictures, 30 at least.
    seed
        Of the pictures.
    size : pixel
        Side of the pictures, even; labels have half of it.
    progress
        Told (pictures done, pictures in all).

    Raises
    ------
    DataError
        If the folder is there and not empty, or the kind, the number or the size cannot be.
    """
    root = Path(root)
    if kind not in KINDS:
        raise DataError(f"there is no kind {kind!r} of generated concepts; {nearest(kind, KINDS)}")
    if n < FEWEST:
        raise DataError(f"n = {n} pictures do not give every scene one of each split; make {FEWEST} or more")
    if size < SMALLEST or size % 2:
        raise DataError(f"size = {size} is odd or below {SMALLEST}; labels have half of it: choose an even size")
    if seed < 0:
        raise DataError(f"seed = {seed} is negative; give 0 or more")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root} is there and not empty; give another folder, or remove it")
    made = root.parent / f".{root.name}-{os.getpid()}"
    made.mkdir(parents=True)
    try:
        _write(made, n, seed, size, progress)
        about = {"kind": kind, "n": n, "seed": seed, "size": size, "version": SHAPES_VERSION}
        (made / "made.json").write_text(json.dumps(about) + "\n")
        os.replace(made, root)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return root


@dataclass
class _Tally:
    """In how many images each label is, and how much of them it covers."""

    images: dict[str, dict[int, int]] = field(default_factory=lambda: {category: {} for category in NAMES})
    covered: dict[int, float] = field(default_factory=dict)
    shown: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 0))

    def add(self, category: str, pixels: dict[int, float]) -> None:
        """Count the labels of one category in one image."""
        for number, fraction in pixels.items():
            self.images[category][number] = self.images[category].get(number, 0) + 1
            self.covered[number] = self.covered.get(number, 0.0) + fraction
        self.shown[category] += bool(pixels)


def _write(root: Path, n: int, seed: int, size: int, progress: Callable[[int, int], None] | None) -> None:
    names = [_name(number) for number in range(n)]
    for folder in {Path(name).parent for name in names} | {Path("masks", category) for category in NAMES}:
        (root / "images" / folder).mkdir(parents=True, exist_ok=True)
    tally, rows = _Tally(), []
    sizes = {"ih": size, "iw": size, "sh": size // 2, "sw": size // 2}

    def one(number: int) -> tuple[dict[str, str], dict[str, dict[int, float]]]:
        drawn = picture(number, seed=seed, size=size)
        Image.fromarray(drawn.pixels).save(root / "images" / names[number])
        return _cells(root / "images", number, drawn)

    for start in range(0, n, _CHUNK):
        chunk = range(start, min(start + _CHUNK, n))
        for number, (cells, covered) in zip(chunk, in_threads(one, chunk, threads=os.cpu_count() or 1)):
            for category, pixels in covered.items():
                tally.add(category, pixels)
            split = names[number].partition("/")[0]
            rows.append({"image": names[number], "split": split, **sizes, **dict.fromkeys(_COLUMNS, ""), **cells})
        if progress is not None:
            progress(chunk.stop, n)
    _table(root / "index.csv", rows)
    _label_tables(root, tally)


def _name(number: int) -> str:
    turn, scene = divmod(number, len(SCENES))
    return f"{'val' if turn % 5 == 4 else 'train'}/{SCENES[scene].name}/{number:06d}.png"


def _cells(folder: Path, number: int, drawn: Picture) -> tuple[dict[str, str], dict[str, dict[int, float]]]:
    """Write the planes of a picture that show anything; return its cells, and what each category covers."""
    cells, covered = {"scene": str(drawn.scene)}, {"scene": {drawn.scene: 1.0}}
    for category, planes in drawn.planes.items():
        files: list[str] = []
        pixels: dict[int, float] = {}
        for i, plane in enumerate(planes):
            counts = np.bincount(plane.ravel())
            found = [int(label) for label in np.flatnonzero(counts) if label]
            if found:
                files.append(f"masks/{category}/{number:06d}{f'_{i + 1}' if i else ''}.png")
                _save(folder / files[-1], plane)
                pixels |= {label: counts[label] / plane.size for label in found}
        cells[category], covered[category] = ";".join(files), pixels
    return cells, covered


def _save(path: Path, plane: Numbers) -> None:
    """Write a plane of labels as Broden does: R + 256 G."""
    channels = np.stack([plane % 256, plane // 256, np.zeros_like(plane)], axis=-1)
    Image.fromarray(channels.astype(np.uint8)).save(path)


def _label_tables(root: Path, tally: _Tally) -> None:
    labels, categories = [], []
    for category, names in NAMES.items():
        rows = []
        for code, name in enumerate(names, 1):
            number = NUMBERS[name]
            count = tally.images[category].get(number, 0)
            last = {"frequency": count, "coverage": f"{tally.covered.get(number, 0.0):.6f}"}
            rows.append({"code": code, "number": number, "name": name, **last})
            labels.append({"number": number, "name": name, "category": f"{category}({count})", **last, "syns": name})
        _table(root / f"c_{category}.csv", rows)
        first, last_ = NUMBERS[names[0]], NUMBERS[names[-1]]
        categories.append(
            {"name": category, "first": first, "last": last_, "count": len(names), "frequency": tally.shown[category]}
        )
    _table(root / "label.csv", labels)
    _table(root / "category.csv", categories)


def _table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
