"""Small units and activations for the tests of the store; run as a program, a writer that can be killed.

``python cube_cases.py URL EPOCH …`` claims and writes every block of each epoch that is not done.
"""

import sys
from dataclasses import replace

import numpy as np
from store_cases import key

from neurolens import schema
from neurolens.store import Axis, SampleCoords, Store, open_store

PARTS = tuple(part.name for part in schema.UNITS.parts)
WIDTHS = {"b": 4, "a": 6}
UNITS = sum(WIDTHS.values())
BLOCK = 20


def units(widths: dict[str, int] = WIDTHS) -> Axis:
    names = list(widths)
    layer = np.repeat(names, list(widths.values()))
    index = np.concatenate([np.arange(n) for n in widths.values()])
    return Axis(np.arange(len(layer)), {"layer": layer, "index": index})


AXES = {
    "unit": units(),
    "bin": Axis(np.arange(256)),
    "rank": Axis(np.arange(3)),
    "class": Axis(np.array(["x", "y"])),
    "position": Axis(np.arange(7)),
    "parameter": Axis(np.array(["w1", "w2", "w3"])),
    "sample": Axis(np.array(["s1", "s2"]), {"label": np.array([0, 1])}),
}


def prepare_units(store: Store, parts=PARTS, *, axes=AXES, fingerprint="f" * 64, **changes):
    """The fingerprint is in the settings of every part, as the row engine puts it there."""
    settings = {"parts": {part: {"data": fingerprint} for part in parts}, "model": {"name": "m"}}
    wanted = {"run": "r", "series": "step", "axes": axes, "fingerprint": fingerprint, "settings": settings}
    return store.prepare(schema.UNITS, **{**wanted, **changes})


def unit_values(step: int, parts=PARTS, axes=AXES, version: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([step, version])
    wanted = [v for part in parts for v in schema.UNITS.part(part).variables]
    return {v.name: (rng.random([len(axes[d]) for d in v.dims[1:]]) * 100).astype(v.dtype) for v in wanted}


def write_units(store: Store, step: int, parts=PARTS, *, axes=AXES, version: int = 1) -> str:
    return store.write_row(
        schema.UNITS,
        (step, 0),
        positions={"step": step},
        values=unit_values(step, parts, axes, version),
        keys={part: key(step, part, version) for part in parts},
        seconds=0.5,
        provenance={},
    )


def texts(n: int) -> SampleCoords:
    return SampleCoords(
        np.array([f"t{i:04d}" for i in range(n)]), np.zeros(n, int), ("text",), {"tokens": np.arange(n) + 1}
    )


def prepare_activations(
    store: Store, n: int = 50, *, encoding: str | None = None, block: int | None = BLOCK, **changes
):
    wanted = {
        "run": "r",
        "series": "step",
        "samples": texts(n),
        "axes": {"unit": units()},
        "settings": {"parts": {"activation": {}}},
        "block_samples": block,
        "encodings": {} if encoding is None else {"activation": encoding},
    }
    return store.prepare(schema.ACTIVATIONS, **{**wanted, **changes})


def activations(step: int, block: int, n: int, width: int = UNITS) -> np.ndarray:
    rng = np.random.default_rng([step, block])
    return (rng.standard_normal((n, width)) * 10).astype("float32")


def write_activations(store: Store, step: int, block: int, n: int, **changes) -> str:
    given = {
        "positions": {"step": step},
        "values": {"activation": activations(step, block, n)},
        "keys": {"activation": key(step, block)},
        "seconds": 0.5,
        "provenance": {},
    }
    return store.write_row(schema.ACTIVATIONS, (step, block), **{**given, **changes})


def without(axes: dict[str, Axis], *names: str) -> dict[str, Axis]:
    return {name: axis for name, axis in axes.items() if name not in names}


def relabelled(axis: Axis, **coords: np.ndarray) -> Axis:
    return replace(axis, coords={**axis.coords, **coords})


def run(url: str, steps: list[int]) -> None:
    """Write what is missing, and say each row once its commit has returned."""
    store = open_store(url, create=True)
    layout = prepare_activations(store)
    for step in steps:
        for block, ids in enumerate(layout.blocks):
            with store.claim("activations", [(step, block)]) as won:
                done = store.ledger("activations").is_done(step, block, "activation", key(step, block))
                if won and not done:
                    write_activations(store, step, block, len(ids))
                    sys.stdout.write(f"{step} {block}\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    run(sys.argv[1], [int(arg) for arg in sys.argv[2:]])
