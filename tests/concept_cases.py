"""The five-image concept set of the golden numbers, written in the layout of Broden, with what must come out of it.

Images A to E have labels of 4 x 4 pixels; two units have maps of 2 x 2; every threshold is 1. Numbers are of the
reference's tally (NetDissect-Lite) and of the paper's reading (Bau et al. 2017).
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = ("color", "object", "part", "scene", "texture")
CONCEPTS = ("red-c", "blue-c", "dog", "cat", "leg", "street-s", "dotted")
LABELS = (1, 2, 3, 4, 5, 6, 7)
CONCEPT_CATEGORY = ("color", "color", "object", "object", "part", "scene", "texture")
IMAGES = ("A", "B", "C", "D", "E")

TRUTH = {"red-c": 32, "blue-c": 48, "dog": 12, "cat": 5, "leg": 2, "street-s": 32, "dotted": 16}
IMAGE_CATEGORIES = {  # by the concepts in them: the scene of E is label 0, which is no concept
    "A": {"color", "object", "part", "scene"},
    "B": {"color", "object"},
    "C": {"color", "texture"},
    "D": {"color", "object", "scene"},
    "E": {"color"},
}

THRESHOLDS = np.array([1.0, 1.0])
MAPS = np.zeros((5, 2, 2, 2))  # image, unit, y, x
MAPS[0, 0], MAPS[1, 0], MAPS[3, 0], MAPS[4, 0] = [[4, 0], [0, 0]], [[4, 0], [4, 0]], [[0, 0], [0, 4]], [[4, 0], [0, 0]]
MAPS[0, 1], MAPS[2, 1] = [[0, 0], [0, 4]], 4
MASK_AREAS = np.array([[4, 4], [8, 0], [0, 16], [4, 0], [4, 0]])  # image, unit

# (unit, concept): intersection, area of the unit as Lite and as the paper counts it, IoU as Lite and as the paper
TALLY = {
    (1, "red-c"): (12, 20, 20, 0.3, 0.3),
    (1, "blue-c"): (8, 20, 20, 0.133333, 0.133333),
    (1, "dog"): (12, 12, 16, 1.0, 0.75),
    (1, "leg"): (2, 4, 4, 0.5, 0.5),
    (1, "street-s"): (8, 8, 8, 0.25, 0.25),
    (2, "red-c"): (8, 20, 20, 0.181818, 0.181818),
    (2, "blue-c"): (12, 20, 20, 0.214286, 0.214286),
    (2, "cat"): (4, 4, 4, 0.8, 0.8),
    (2, "street-s"): (4, 4, 4, 0.125, 0.125),
    (2, "dotted"): (16, 16, 16, 1.0, 1.0),
}
# the reference's first columns, best unit first (units from 1); its blank texture label for unit 1 is label 0
LITE_BEST = ((2, "texture", "dotted", 0.99999999999375), (1, "object", "dog", 0.99999999999167))


def label_planes() -> dict[str, dict[str, Any]]:
    """Return the labels of each image: category to a plane (4, 4) of label numbers, or to one number."""
    everywhere = np.ones((4, 4), dtype=np.int64)
    halves = np.where(np.arange(4) < 2, 1, 2) * everywhere
    checker = np.where(np.add.outer(np.arange(4), np.arange(4)) % 2 == 0, 1, 2)
    objects, legs, left, corner = (np.zeros((4, 4), dtype=np.int64) for _ in range(4))
    objects[:2, :2], objects[2:, 2:] = 3, 4
    legs[:2, 0] = 5
    left[:, :2] = 3
    corner[0, 0] = 4
    return {
        "A": {"color": halves, "object": objects, "part": legs, "scene": 6},
        "B": {"color": everywhere, "object": left},
        "C": {"color": checker, "texture": 7},
        "D": {"color": 2 * everywhere, "object": corner, "scene": 6},
        "E": {"color": 2 * everywhere, "scene": 0},
    }


def write_mini_broden(root: Path) -> Path:
    """Write the five images and their labels as Broden lays them out; return the root."""
    root = Path(root)
    (root / "images" / "mini").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for name, planes in label_planes().items():
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / "images" / "mini" / f"{name}.png")
        cells = dict.fromkeys(("color", "object", "part", "material", "scene", "texture"), "")
        for category, plane in planes.items():
            if isinstance(plane, int):
                cells[category] = str(plane)
            else:
                cells[category] = f"mini/{name}_{category}.png"
                write_plane(root / "images" / cells[category], plane)
        size = {"ih": 8, "iw": 8, "sh": 4, "sw": 4}
        rows.append({"image": f"mini/{name}.png", "split": "train" if name < "D" else "val", **size, **cells})
    write_table(root / "index.csv", rows)
    write_label_tables(root)
    return root


def write_label_tables(root: Path) -> None:
    """Write label.csv, category.csv and the c_*.csv of the five-image set."""
    frequency = (3, 4, 2, 2, 1, 2, 1)
    rows: dict[str, list[dict[str, Any]]] = {category: [] for category in CATEGORIES}
    labels = []
    for number, name, category, count in zip(LABELS, CONCEPTS, CONCEPT_CATEGORY, frequency, strict=True):
        shared = {"number": number, "name": name}
        last = {"frequency": count, "coverage": TRUTH[name] / 16}
        labels.append({**shared, "category": f"{category}({count})", **last, "syns": name})
        rows[category].append({"code": len(rows[category]) + 1, **shared, **last})
    write_table(root / "label.csv", labels)
    for category in CATEGORIES:
        write_table(root / f"c_{category}.csv", rows[category])
    numbers = {category: [row["number"] for row in rows[category]] for category in CATEGORIES}
    write_table(
        root / "category.csv",
        [
            {"name": name, "first": of[0], "last": of[-1], "count": len(of), "frequency": 5}
            for name, of in numbers.items()
        ],
    )


def write_plane(path: Path, plane: Any) -> None:
    """Write a plane of label numbers as Broden does: number = R + 256 G."""
    plane = np.asarray(plane)
    rgb = np.stack([plane % 256, plane // 256, np.zeros_like(plane)], axis=-1)
    Image.fromarray(rgb.astype(np.uint8)).save(path)


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV, the keys of the first as header."""
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
