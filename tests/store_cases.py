"""Small rows for the tests of the store; run as a program, a writer that can be killed.

``python store_cases.py URL VERSION EPOCH …`` claims and writes each of the epochs that is not done under its key.
"""

import hashlib
import sys

import numpy as np

from neurolens import schema
from neurolens.store import SampleCoords, Store, open_store

CUBE = schema.SAMPLES
EPOCHS = list(range(12))
PARTS = {"forward": {"version": 1}, "input_gradient": {"version": 1}}


def samples(n: int = 12, *, first: int = 0) -> SampleCoords:
    ids = np.array([f"id{i:04d}" for i in range(first, first + n)])
    return SampleCoords(ids, np.arange(n) % 3, ("cat", "dog", "fox"), {"position": np.arange(n), "split": ids})


def prepare(store: Store, given: SampleCoords | None = None, **changes):
    wanted = {
        "run": "r",
        "series": "epoch",
        "samples": samples() if given is None else given,
        "settings": {"parts": PARTS},
    }
    return store.prepare(CUBE, **{**wanted, **changes})


def key(*what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()


def values(epoch: int, n: int = 12, parts: tuple[str, ...] = tuple(PARTS), version: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([epoch, version])
    wanted = [v for p in parts for v in CUBE.part(p).variables]
    return {v.name: (rng.random(n) * 8).astype(v.dtype) for v in wanted}


def write(
    store: Store, epoch: int, block: int = 0, n: int = 12, parts=tuple(PARTS), version: int = 1, **changes
) -> str:
    given = {
        "positions": {"epoch": epoch, "step": epoch * 100},
        "values": values(epoch, n, parts, version),
        "keys": {p: key(epoch, p, version) for p in parts},
        "seconds": 0.5,
        "provenance": {"device": "cpu"},
    }
    return store.write_row(CUBE, (epoch, block), **{**given, **changes})


def array(store: Store, name: str) -> np.ndarray:
    root, _ = store.root()
    return np.asarray(root[f"samples/{name}"][:])


def run(url: str, version: int, epochs: list[int]) -> None:
    """Write what is missing, and say each epoch once its commit has returned."""
    store = open_store(url, create=True)
    prepare(store)
    for epoch in epochs:
        with store.claim("samples", [(epoch, 0)]) as won:
            ledger = store.ledger("samples")
            done = all(ledger.is_done(epoch, 0, p, key(epoch, p, version)) for p in PARTS)
            if won and not done:
                write(store, epoch, version=version)
                sys.stdout.write(f"{epoch}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), [int(arg) for arg in sys.argv[3:]])
