"""A store with the cubes of pairs, made by hand: pools that turn from checkpoint to checkpoint, and what they give.

All numbers are those of real pools on random maps, so that contributions add up to the embeddings.
"""

import atexit
import functools
import shutil
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import xarray as xr
from pairs_cases import random_maps, random_pool
from store_cases import key

from neurolens import schema
from neurolens.pairs import Pool, ScalarTotals, directions, factors, scalars
from neurolens.sparse_codes import sparse_codes
from neurolens.store import Axis, SampleCoords, Store, open_store

EPOCHS = (0, 5, 10)
IMAGES, UNITS, HEADS, DIM, FEATURES, GRID, RANKS = 20, 6, 2, 2, 5, (2, 2), 8
SETS = {
    "classes": ("zero", "one", "two"),
    "words": ("a dog", "a cat", "round", "straight", "dark", "bright", "left", "right"),
}
PHRASES = tuple(f"{name}/{phrase}" for name, phrases in SETS.items() for phrase in phrases)
ATOMS = 3
LABELS = np.arange(IMAGES) % 3


def pools(epochs=EPOCHS) -> list[Pool]:
    """Pools that turn from one random pool to another as training goes on."""
    ends = [random_pool(UNITS, HEADS, DIM, FEATURES, GRID, seed=seed, dtype=np.float32) for seed in (0, 1)]
    out = []
    for epoch in epochs:
        share = np.float32(epoch / 10)
        mixed = {
            field.name: (1 - share) * getattr(ends[0], field.name) + share * getattr(ends[1], field.name)
            for field in fields(Pool)
            if isinstance(getattr(ends[0], field.name), np.ndarray)
        }
        out.append(replace(ends[0], **mixed))
    return out


def measured(pool: Pool, images: int = IMAGES) -> xr.Dataset:
    """The scalars of the images, with their parts."""
    return scalars(pool, random_maps(pool, images, seed=2), split=True)


def totals(found: xr.Dataset, ranks: int = RANKS) -> xr.Dataset:
    """The scalars, summed up."""
    kept = ScalarTotals(ranks=ranks)
    kept.add(found["scalar"])
    return kept.dataset()


def text(epoch: int) -> np.ndarray:
    """Embeddings (phrase, feature) of length 1 that drift from checkpoint to checkpoint."""
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(len(PHRASES), FEATURES)) + 0.05 * epoch * rng.normal(size=(len(PHRASES), FEATURES))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def codes(pool: Pool, words: np.ndarray) -> xr.Dataset:
    """Codes (unit, head, atom) of all pairs."""
    return sparse_codes(directions(factors(pool))["direction"], words, atoms=ATOMS)


def write_pairs_store(
    url: Path | str,
    *,
    epochs=EPOCHS,
    cubes=("texts", "pools", "pairs", "codes"),
    with_totals: bool = True,
    options=("attention", "split"),
    images: int = IMAGES,
    block: int = 16,
    ranks: int = RANKS,
    series: str = "epoch",
    encoding: str | None = None,
    coded=tuple((unit, head) for unit in range(UNITS) for head in range(HEADS)),
    failed=(),
    ids: np.ndarray | None = None,
) -> Store:
    """Write a store that holds these cubes at these checkpoints; ``failed`` are (cube, checkpoint, block)."""
    store = open_store(url, create=True)
    made = pools(epochs)
    found = [measured(pool, images) for pool in made]
    words = [text(epoch) for epoch in epochs]
    common = {"run": "case", "series": series}
    features = {"feature": Axis(np.arange(FEATURES))}

    def settings(*parts):
        return {"parts": {part: {"version": 1} for part in parts}, "model": {"name": "case"}}

    def write(cube, parts, number, at, values):
        row = {"positions": {series: at}, "keys": {part: key(at, number, part) for part in parts}, "provenance": {}}
        if (cube.name, at, number) in failed:
            store.write_failure(cube, (at, number), error="NonFiniteError: a map has NaN", **row)
        else:
            store.write_row(cube, (at, number), values=values, seconds=0.1, **row)

    if "texts" in cubes:
        store.prepare(schema.TEXTS, samples=phrase_coords(), axes=features, settings=settings("embeddings"), **common)
        for at, rows in zip(epochs, words):
            write(schema.TEXTS, ("embeddings",), 0, at, {"text": rows})
    if "pools" in cubes:
        parts = ("factors", "totals") if with_totals else ("factors",)
        axes = {"unit": Axis(np.arange(UNITS)), "head": Axis(np.arange(HEADS)), "d": Axis(np.arange(DIM))}
        axes |= features
        if with_totals:
            axes |= {"rank": Axis(np.arange(ranks)), "sample": Axis(image_ids(images) if ids is None else ids)}
        store.prepare(schema.POOLS, axes=axes, fingerprint="f" * 64, settings=settings(*parts), **common)
        for at, pool, scalar in zip(epochs, made, found):
            write(schema.POOLS, parts, 0, at, pool_row(pool, scalar, with_totals, ranks))
    if "pairs" in cubes:
        parts = ("scalars", *options)
        variables = [v.name for part in parts for v in schema.PAIRS.part(part).variables]
        axes = {"unit": Axis(np.arange(UNITS)), "head": Axis(np.arange(HEADS))} | features
        if "attention" in options:
            y, x = np.indices(GRID).reshape(2, -1)
            places = {"y": np.append(-1, y), "x": np.append(-1, x)}
            places["token_kind"] = np.array(["mean", *["patch"] * len(y)])
            axes["token"] = Axis(np.arange(GRID[0] * GRID[1] + 1), places)
        layout = store.prepare(
            schema.PAIRS,
            samples=image_coords(images, ids),
            axes=axes,
            block_samples=block,
            settings=settings(*parts),
            encodings={} if encoding is None else {"scalar": encoding},
            **common,
        )
        for at, scalar in zip(epochs, found):
            stored = scalar.transpose("sample", "head", "unit", "feature", "token")
            start = 0
            for number, ids in enumerate(layout.blocks):
                part = stored.isel(sample=slice(start, start + len(ids)))
                write(schema.PAIRS, parts, number, at, {name: part[name].to_numpy() for name in variables})
                start += len(ids)
    if "codes" in cubes:
        layout = store.prepare(
            schema.CODES,
            samples=pair_coords(coded),
            axes={"atom": Axis(np.arange(ATOMS)), "phrase": Axis(np.array(SETS["words"]))},
            settings=settings("codes"),
            **common,
        )
        assert len(layout.blocks) == 1
        for at, pool, rows in zip(epochs, made, words):
            told = codes(pool, rows[len(SETS["classes"]) :]).transpose("unit", "head", "atom")
            chosen = tuple(np.transpose(coded))
            write(schema.CODES, ("codes",), 0, at, {name: told[name].to_numpy()[chosen] for name in told})
    return store


@functools.cache
def pairs_run() -> str:
    """A store with all cubes, written once; it is not to be changed."""
    place = tempfile.mkdtemp(prefix="pairs-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    write_pairs_store(Path(place) / "run")
    return str(Path(place) / "run")


def pool_row(pool: Pool, found: xr.Dataset, with_totals: bool = True, ranks: int = RANKS) -> dict[str, np.ndarray]:
    """One row of the pools cube."""
    row = {name: array.to_numpy() for name, array in factors(pool).items()}
    if with_totals:
        summed = totals(found, ranks).transpose("head", "unit", "rank")
        row |= {name: array.to_numpy() for name, array in summed.items()}
        row = {name: a.astype("int32") if name.endswith("_sample") else a for name, a in row.items()}
        row["count"] = np.full(HEADS, summed["count"].item())
        row["worst_residual"] = np.full(HEADS, found["completeness"].max().item())
    return row


def image_ids(images: int = IMAGES) -> np.ndarray:
    return np.array([f"{i:032x}" for i in range(images)])


def image_coords(images: int = IMAGES, ids: np.ndarray | None = None) -> SampleCoords:
    given = {"year": 2000 + np.arange(images) // 5}
    named = image_ids(images) if ids is None else ids
    return SampleCoords(named, np.arange(images) % 3, SETS["classes"], given)


def phrase_coords() -> SampleCoords:
    sets = np.array([name.partition("/")[0] for name in PHRASES])
    words = np.array([name.partition("/")[2] for name in PHRASES])
    labels = np.array([list(SETS).index(name) for name in sets])
    return SampleCoords(np.array(PHRASES), labels, tuple(SETS), {"set": sets, "words": words})


def pair_coords(coded) -> SampleCoords:
    units, heads = np.transpose(coded)
    ids = np.array([f"u{unit}/h{head}" for unit, head in coded])
    return SampleCoords(ids, np.zeros(len(ids), int), ("pair",), {"unit": units, "head": heads})
