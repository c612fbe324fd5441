"""Stores of concepts with a history that is given: IoU per checkpoint, unit and concept, in counts of blocks."""

from pathlib import Path

import numpy as np
from store_cases import key

from neurolens import schema
from neurolens.store import Axis, Store, open_store

AREA = 10_000  # of each unit's mask, and of each concept, in each block


def counts_of(iou, blocks=4, seed=0, spread=0.0):
    """Return the variables of the part `counts` whose IoU is the one given; ``spread`` makes blocks differ."""
    iou = np.asarray(iou, float)
    epochs, units, concepts = iou.shape
    rng = np.random.default_rng(seed)
    shares = 1 + spread * rng.uniform(-1, 1, (blocks, units, concepts))
    common = 2 * AREA * iou / (1 + iou)  # of I / (2 A - I)
    exact = common[:, None] * shares / shares.mean(axis=0)
    silent = np.isnan(iou).all(axis=2)
    mask = np.where(silent[:, None, :, None], 0.0, np.full((epochs, blocks, units, 1), float(AREA)))
    return {
        "threshold": np.where(silent, 0.0, 1.0),
        "intersection": np.rint(np.nan_to_num(exact)).astype("uint32"),
        "unit_area": mask,
        "unit_area_lite": mask / 2,
        "concept_area": np.full((epochs, blocks, concepts), float(AREA)),
        "n_images": np.full((epochs, blocks), 10.0),
    }


def axes(units, concepts, blocks, layers=("layer4",)):
    layer = np.repeat(layers, -(-units // len(layers)))[:units]
    index = np.concatenate([np.arange((layer == name).sum()) for name in layers])
    names = np.array([f"c{i}" for i in range(concepts)])
    return {
        "block": Axis(np.arange(blocks)),
        "unit": Axis(np.arange(units), {"layer": layer, "index": index}),
        "concept": Axis(names, {"label": np.arange(concepts) + 1, "concept_category": np.array(["object"] * concepts)}),
        "category": Axis(np.array(["object"])),
    }


def prepare_concepts(url: Path | str, units, concepts, blocks, *, run="r", series="epoch", layers=("layer4",)) -> Store:
    store = open_store(url, create=True)
    store.prepare(
        schema.CONCEPTS,
        run=run,
        series=series,
        axes=axes(units, concepts, blocks, layers),
        fingerprint="f" * 64,
        settings={"parts": {"counts": {"data": "f" * 64}}, "model": {"name": "m"}},
    )
    return store


def write_counts(store: Store, at: int, values, series="epoch") -> None:
    store.write_row(
        schema.CONCEPTS,
        (at, 0),
        positions={series: at},
        values=values,
        keys={"counts": key(at, "counts")},
        seconds=0.5,
        provenance={},
    )


def write_concepts(
    url: Path | str, iou, *, run="r", blocks=4, seed=0, spread=0.0, series="epoch", stamps=None, layers=("layer4",)
) -> Store:
    """Write a store whose concepts cube has this IoU (series, unit, concept); NaN: the unit is silent there."""
    values = counts_of(iou, blocks, seed, spread)
    store = prepare_concepts(url, *np.shape(iou)[1:], blocks, run=run, series=series, layers=layers)
    for i, at in enumerate(range(len(iou)) if stamps is None else stamps):
        write_counts(store, at, {name: array[i] for name, array in values.items()}, series)
    return store
