"""Five images with known counts, and slow versions of what is counted, for the tests of dissection."""

import numpy as np
import xarray as xr
from PIL import Image

from neurolens.dissection import Tally, pack_labels

CONCEPTS = ["red", "blue", "dog", "cat", "leg", "street", "dotted"]
CATEGORIES = ["color", "object", "part", "scene", "texture"]
CATEGORY = [0, 0, 1, 1, 2, 3, 4]


def _where(*slices):
    mask = np.zeros((4, 4), bool)
    for s in slices:
        mask[s] = True
    return mask


LEFT, RIGHT = _where(np.s_[:, :2]), _where(np.s_[:, 2:])
CHECKER = np.indices((4, 4)).sum(axis=0) % 2 == 0
IMAGES = [  # label 0 of the last one's scene is no concept
    {0: LEFT, 1: RIGHT, 2: _where(np.s_[:2, :2]), 3: _where(np.s_[2:, 2:]), 4: _where(np.s_[:2, 0]), 5: True},
    {0: True, 2: LEFT},
    {0: CHECKER, 1: ~CHECKER, 6: True},
    {1: True, 3: _where(np.s_[0, 0]), 5: True},
    {1: True},
]
MAPS = np.zeros((5, 2, 2, 2), np.float32)
MAPS[0, 0] = [[4, 0], [0, 0]]
MAPS[1, 0] = [[4, 0], [4, 0]]
MAPS[3, 0] = [[0, 0], [0, 4]]
MAPS[4, 0] = [[4, 0], [0, 0]]
MAPS[0, 1] = [[0, 0], [0, 4]]
MAPS[2, 1] = 4


def five_images(**options):
    """The counts of the five images."""
    tally = Tally(pack_labels(IMAGES, (4, 4), CATEGORY), 2, **options)
    tally.add(MAPS, [1.0, 1.0], np.arange(5))
    return tally


def cube(*tallies, concepts=CONCEPTS, category=CATEGORY, categories=CATEGORIES):
    """The Dataset of the concepts cube, an epoch per tally."""
    dims = {
        "intersection": ("block", "unit", "concept"),
        "unit_area": ("block", "unit", "category"),
        "unit_area_lite": ("block", "unit", "category"),
        "concept_area": ("block", "concept"),
        "n_images": ("block",),
    }
    rows = [tally.variables() for tally in tallies]
    data = {name: (("epoch", *of), np.stack([row[name] for row in rows]).astype(float)) for name, of in dims.items()}
    units = rows[0]["intersection"].shape[1]
    coords = {
        "epoch": np.arange(len(rows)),
        "unit": np.arange(units),
        "layer": ("unit", ["layer4"] * units),
        "concept": concepts,
        "label": ("concept", np.arange(1, len(concepts) + 1)),
        "concept_category": ("concept", [categories[c] for c in category]),
        "category": categories,
    }
    return xr.Dataset(data, coords, attrs={"run": "five"})


def drawn_images(seed, images=6, units=5, size=(3, 4), label_size=(9, 14)):
    """Maps of few distinct values (ties with thresholds happen), and overlapping labels of four categories."""
    rng = np.random.default_rng(seed)
    category = rng.integers(0, 4, 7)
    shown = []
    for _ in range(images):
        present = rng.choice(7, rng.integers(0, 6), replace=False).tolist()
        shown.append({c: True if rng.random() < 0.3 else rng.random(label_size) < rng.random() for c in present})
    maps = np.maximum(rng.integers(-6, 9, (images, units, *size)), 0).astype(np.float32) / 4
    maps[:, 0] = 0
    return maps, rng.integers(0, 7, units) / 4.0, shown, category


def slow_counts(maps, thresholds, shown, category, n_categories, label_size, blocks):
    """Section 2.3 of the paper and the inner loop of NetDissect-Lite, written out; masks by Pillow."""
    images, units = maps.shape[:2]
    count, concepts = max(blocks) + 1, len(category)
    both = np.zeros((count, units, concepts), np.int64)
    paper, lite = np.zeros((count, units, n_categories), np.int64), np.zeros((count, units, n_categories), np.int64)
    truth = np.zeros((count, concepts), np.int64)
    for i in range(images):
        labels = {c: np.broadcast_to(mask, label_size) for c, mask in shown[i].items()}
        for c, mask in labels.items():
            truth[blocks[i], c] += mask.sum()
        anywhere = {category[c] for c, mask in labels.items() if mask.any()}
        for u in range(units):
            if not maps[i, u].max() > thresholds[u]:
                continue
            image = Image.fromarray(maps[i, u].astype(np.float32))
            mask = np.asarray(image.resize(label_size[::-1], Image.Resampling.BILINEAR)) > thresholds[u]
            within = set()
            for c, where in labels.items():
                common = np.logical_and(mask, where).sum()
                both[blocks[i], u, c] += common
                if common:
                    within.add(category[c])
            for k in anywhere:
                paper[blocks[i], u, k] += mask.sum()
            for k in within:
                lite[blocks[i], u, k] += mask.sum()
    return both, paper, lite, truth
