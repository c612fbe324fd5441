"""Concepts cubes for tests of pictures: scripted histories of units, and drawn ones, as counts of pixels."""

import numpy as np
import xarray as xr

AREA = 1_000_000
BLOCKS = 4
SCRIPT = {  # unit: {concept: what it holds at each of 16 checkpoints}
    0: {"red": "..######........"},  # born, and died
    1: {"square": "####....####...."},  # died, reborn, died again
    2: {"dotted": "########........"},  # hands its concept over to unit 3
    3: {"dotted": ".........#######"},
    4: {"wheel": "#######.........", "roof": ".......#########"},  # drifts without a pause
    5: {"street": "####.#####.#####"},  # dips that are no death
    6: {"red": "...........#####"},  # takes up in another layer what unit 0 lost
    7: {"square": "..............##"},  # too young to tell
    8: {"roof": "..............#."},  # the record ends before its death is confirmed
    9: {},
}
CATEGORY = {
    "red": "color",
    "square": "object",
    "dotted": "texture",
    "wheel": "part",
    "roof": "part",
    "street": "scene",
}
LAYERS = ["layer3"] * 4 + ["layer4"] * 6


def cube_of(iou, *, stamps=None, series="epoch", layers=None, categories=None, names=None, rotations=0, measured=None):
    """The Dataset that an opened concepts cube is, with counts that have the IoU given (series, unit, concept)."""
    iou = np.asarray(iou, float)
    times, units, concepts = iou.shape
    names = [f"concept {i}" for i in range(concepts)] if names is None else list(names)
    of = ["object"] * concepts if categories is None else list(categories)
    kinds = list(dict.fromkeys(of))
    layers = ["layer4"] * units if layers is None else list(layers)
    index = [layers[:i].count(layer) for i, layer in enumerate(layers)]
    common = np.round(2 * AREA * iou / (1 + iou))[:, None].repeat(BLOCKS, 1)
    area = np.full((times, BLOCKS, units, len(kinds)), float(AREA))
    data = {
        "threshold": ((series, "unit"), np.ones((times, units))),
        "intersection": ((series, "block", "unit", "concept"), common),
        "unit_area": ((series, "block", "unit", "category"), area),
        "unit_area_lite": ((series, "block", "unit", "category"), area * 0.8),
        "concept_area": ((series, "block", "concept"), np.full((times, BLOCKS, concepts), float(AREA))),
        "n_images": ((series, "block"), np.full((times, BLOCKS), 100.0)),
    }
    if rotations:
        rng = np.random.default_rng(1)
        best = np.nanmax(iou, axis=2)[:, None]
        data["rotated_score"] = (
            (series, "rotation", "unit"),
            best.mean(axis=2, keepdims=True) * rng.uniform(0.2, 1.2, (1, rotations, units)),
        )
        data["rotated_score_lite"] = data["rotated_score"]
    coords = {
        series: np.arange(times) * 10 if stamps is None else stamps,
        "block": np.arange(BLOCKS),
        "unit": np.arange(units),
        "layer": ("unit", np.asarray(layers, object)),
        "index": ("unit", index),
        "concept": np.asarray(names, object),
        "label": ("concept", np.arange(1, concepts + 1)),
        "concept_category": ("concept", np.asarray(of, object)),
        "category": np.asarray(kinds, object),
        "measured": (series, np.ones(times, bool) if measured is None else np.asarray(measured, bool)),
    }
    return xr.Dataset(data, coords, attrs={"run": "scripted"})


def scripted(**options):
    """Ten units in two layers over 16 checkpoints, as `SCRIPT` says: IoU 0.12 while they hold a concept, else 0.01."""
    names = list(CATEGORY)
    iou = np.full((16, len(SCRIPT), len(names)), 0.01)
    for unit, held in SCRIPT.items():
        for concept, line in held.items():
            iou[[mark == "#" for mark in line], unit, names.index(concept)] = 0.12 + 0.01 * unit
    return cube_of(iou, layers=LAYERS, categories=CATEGORY.values(), names=names, **options)


def silent(checkpoints=6, units=5):
    """Units that never detect anything."""
    return cube_of(np.full((checkpoints, units, 3), 0.01))


WORDS = [
    "red-c",
    "blue-c",
    "green-c",
    "sky-s",
    "street-s",
    "bedroom-s",
    "forest-broadleaf-s",
    "dog",
    "cat",
    "person",
    "car",
    "train",
    "building",
    "tree",
    "grass",
    "bus",
    "wheel",
    "head",
    "leg",
    "window-part",
    "roof-part",
    "headlight",
    "handle",
    "dotted",
    "chequered",
    "striped",
    "woven",
    "banded",
    "zigzagged",
    "grid",
    "airplane",
    "bird",
    "bottle",
    "chair",
    "table",
    "horse",
    "motorbike",
    "sheep",
    "sofa",
    "screen-of-a-television",
    "mountain",
    "water",
    "road",
    "sidewalk",
    "painting",
    "wall",
    "floor",
    "ceiling",
    "bed",
    "lamp",
    "cabinet",
    "shelf",
    "pillow",
    "curtain",
    "mirror",
    "pool-table",
    "swimming-pool-indoor-s",
]


def drawn(
    units=512, checkpoints=30, concepts=58, seed=0, series="step", stamps=None, layers=2, activity=0.5, **options
):
    """Many units that take up concepts and lose them at random, more of them as training goes on."""
    rng = np.random.default_rng(seed)
    kinds = ["color"] * 3 + ["scene"] * 4 + ["object"] * 9 + ["part"] * 7 + ["texture"] * 7
    kinds = (kinds + ["object"] * concepts)[:concepts]
    names = [WORDS[i] if i < len(WORDS) else f"thing-{i}" for i in range(concepts)]
    popular = 1 / np.arange(1, concepts + 1)
    popular = rng.permutation(popular / popular.sum())
    iou = rng.gamma(2.0, 0.004, (checkpoints, units, concepts))
    for unit in range(units):
        if rng.random() > activity:
            continue
        for concept in rng.choice(concepts, rng.integers(1, 4), p=popular, replace=False):
            start = int(rng.integers(0, checkpoints))
            while start < checkpoints:
                length = 1 + int(rng.geometric(min(1, 2.5 / checkpoints)))
                rows = slice(start, start + length)
                iou[rows, unit, concept] += rng.uniform(0.035, 0.2) + rng.normal(
                    0, 0.008, iou[rows, unit, concept].shape
                )
                start += length + 3 + int(rng.geometric(min(1, 2 / checkpoints)))
    names_of_layers = [f"layer{3 + i * layers // units}" for i in range(units)]
    stamps = np.arange(checkpoints) * 300 if stamps is None else stamps
    return cube_of(
        np.clip(iou, 0, 0.9),
        stamps=stamps,
        series=series,
        layers=names_of_layers,
        categories=kinds,
        names=names,
        **options,
    )


def write_store(url, ds, *, run="scripted"):
    """Write a Dataset of `cube_of` into a store, a row per checkpoint, and return the store."""
    from store_cases import key

    from neurolens import schema
    from neurolens.store import Axis, open_store

    series = next(iter(ds["threshold"].dims))
    text = {name: np.array(ds[name].values.tolist(), np.str_) for name in ("concept", "category", "concept_category")}
    unit = {"layer": np.array(ds["layer"].values.tolist(), np.str_), "index": ds["index"].values}
    axes = {
        "unit": Axis(ds["unit"].values, unit),
        "block": Axis(ds["block"].values),
        "concept": Axis(text["concept"], {n: text.get(n, ds[n].values) for n in ("label", "concept_category")}),
        "category": Axis(text["category"]),
    }
    parts = ["counts"]
    if "rotated_score" in ds:
        parts.append("rotated")
        axes["rotation"] = Axis(np.arange(ds.sizes["rotation"]))
    store = open_store(url, create=True)
    settings = {"parts": {part: {} for part in parts}, "model": {"name": "none"}}
    store.prepare(schema.CONCEPTS, run=run, series=series, axes=axes, fingerprint="f" * 64, settings=settings)
    for i, position in enumerate(ds[series].values.tolist()):
        if not ds["measured"].values[i]:
            continue
        wanted = [v for part in parts for v in schema.CONCEPTS.part(part).variables]
        values = {v.name: ds[v.name].isel({series: i}).values.astype(v.dtype) for v in wanted}
        store.write_row(
            schema.CONCEPTS, (position, 0), positions={series: position}, values=values,
            keys={part: key(position, part) for part in parts}, seconds=0.1, provenance={},
        )  # fmt: skip
    return store
