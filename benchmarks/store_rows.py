"""What a committed row costs: at the start and after thousands, against np.save + fsync of the same numbers.

``python benchmarks/store_rows.py [--quick]``. The two ways are timed turn by turn, so that a busy machine slows both.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from neurolens import schema
from neurolens.store import SampleCoords, Store, open_store

CUBE = schema.SAMPLES
PARTS = ("forward", "input_gradient")
NAMES = [v for part in PARTS for v in CUBE.part(part).variables]


def new_store(folder: Path, samples: int) -> Store:
    """Make a store whose rows have the variables of two parts."""
    ids = np.array([f"{i:032x}" for i in range(samples)])
    store = open_store(folder, create=True)
    coords = SampleCoords(ids, np.arange(samples) % 10, tuple("0123456789"))
    store.prepare(CUBE, run="bench", series="epoch", samples=coords, settings={"parts": {key: {} for key in PARTS}})
    return store


def append(store: Store, epoch: int, values: dict[str, np.ndarray]) -> float:
    """Commit a row and return the seconds it took."""
    keys = {part: f"{hash((epoch, part)) % 2**256:064x}" for part in PARTS}
    provenance = {"checkpoint": f"checkpoints/epoch_{epoch}.pt", "digest": "0" * 64, "device": "cpu", "threads": 1}
    start = time.perf_counter()
    store.write_row(
        CUBE, (epoch, 0), positions={"epoch": epoch}, values=values, keys=keys, seconds=1.0, provenance=provenance
    )
    return time.perf_counter() - start


def save(folder: Path, epoch: int, values: dict[str, np.ndarray]) -> float:
    """Write a file per variable, each synced to disk, and return the seconds it took."""
    start = time.perf_counter()
    for name, array in values.items():
        with (folder / f"{name}_epoch_{epoch}.npy").open("wb") as file:
            np.save(file, array)
            os.fsync(file.fileno())
    return time.perf_counter() - start


def main(quick: bool) -> None:
    """Print milliseconds per row as the store grows."""
    rows, samples = (200, 1000) if quick else (4000, 2000)
    marks = [n for n in (50, 200, 500, 1000, 2000, 4000) if n <= rows]
    rng = np.random.default_rng(0)
    values = {v.name: (rng.random(samples) * 9).astype(v.dtype) for v in NAMES}
    row_bytes = sum(array.nbytes for array in values.values())
    print(f"{len(values)} variables x {samples} samples, {row_bytes / 1e3:.0f} kB per row")
    with tempfile.TemporaryDirectory() as folder:
        store = new_store(Path(folder) / "store", samples)
        files = Path(folder) / "files"
        files.mkdir()
        ours, theirs = [], []
        print(f"{'rows':>6} {'store ms':>10} {'np.save+fsync ms':>17} {'ratio':>7} {'ledger ms':>10} {'open ms':>8}")
        for epoch in range(rows):
            ours.append(append(store, epoch, values))
            theirs.append(save(files, epoch, values))
            if epoch + 1 in marks:
                a, b = (float(np.median(t[-50:])) * 1e3 for t in (ours, theirs))
                start = time.perf_counter()
                store.ledger(CUBE.name)
                read = (time.perf_counter() - start) * 1e3
                start = time.perf_counter()
                open_store(store.url, readonly=True)
                opened = (time.perf_counter() - start) * 1e3
                print(f"{epoch + 1:>6} {a:>10.1f} {b:>17.1f} {a / b:>7.2f} {read:>10.1f} {opened:>8.1f}")


if __name__ == "__main__":
    main("--quick" in sys.argv)
