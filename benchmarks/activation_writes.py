"""Writing and reading activations: rows of the store against np.save and np.load of the same bytes.

``python benchmarks/activation_writes.py [--quick]``. The ways are timed turn by turn, so that a busy machine slows all.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.store import Axis, SampleCoords, Store, open_store

CUBE = schema.ACTIVATIONS
ENCODINGS = {"float16": np.float16, "float32-bitround10": np.float32}


def new_store(folder: Path, samples: int, units: int, encoding: str) -> Store:
    """Make a store whose rows are one block of activations, in ten layers."""
    store = open_store(folder, create=True)
    layer = np.repeat([f"layers.{i}" for i in range(10)], -(-units // 10))[:units]
    store.prepare(
        CUBE,
        run="bench",
        series="epoch",
        samples=SampleCoords(np.array([f"{i:032x}" for i in range(samples)]), np.zeros(samples, int), ("all",)),
        axes={"unit": Axis(np.arange(units), {"layer": layer})},
        settings={"parts": {"activation": {}}},
        encodings={"activation": encoding},
    )
    return store


def write(store: Store, epoch: int, values: np.ndarray) -> None:
    """Commit a row."""
    store.write_row(
        CUBE,
        (epoch, 0),
        positions={"epoch": epoch},
        values={"activation": values},
        keys={"activation": f"{epoch:064x}"},
        seconds=1.0,
        provenance={"checkpoint": f"checkpoints/epoch_{epoch}.pt"},
    )


def save(folder: Path, epoch: int, values: np.ndarray, sync: bool) -> None:
    """Write a file of its own."""
    with (folder / f"{epoch}{'-synced' * sync}.npy").open("wb") as file:
        np.save(file, values)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def seconds(act: Callable[[], object]) -> float:
    """Return how long something takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def compare(encoding: str, samples: int, units: int, rounds: int) -> None:
    """Print the rates of one encoding: MB of its dtype per second, and ratios to np.save."""
    rng = np.random.default_rng(0)
    values = np.maximum(rng.standard_normal((samples, units), np.float32), 0).astype(ENCODINGS[encoding])
    size = values.nbytes / 1e6
    taken: dict[str, list[float]] = {
        name: [] for name in ("store", "np.save", "np.save+fsync", "open, all", "open, one layer", "np.load")
    }
    with tempfile.TemporaryDirectory() as folder:
        store, files = new_store(Path(folder) / "store", samples, units, encoding), Path(folder)
        write(store, 0, values)  # imports, page faults
        for epoch in range(1, rounds + 1):
            taken["store"].append(seconds(lambda epoch=epoch: write(store, epoch, values)))
            taken["np.save"].append(seconds(lambda epoch=epoch: save(files, epoch, values, False)))
            taken["np.save+fsync"].append(seconds(lambda epoch=epoch: save(files, epoch, values, True)))
        ds = xr.open_dataset(store.url, engine="neurolens", group="activations", cache=False)
        for epoch in range(1, rounds + 1):
            row = ds.activation.sel(epoch=epoch)
            taken["open, all"].append(seconds(lambda row=row: row.values))
            taken["open, one layer"].append(seconds(lambda row=row: row.sel(layer="layers.5").values))
            taken["np.load"].append(seconds(lambda epoch=epoch: np.load(files / f"{epoch}.npy")))
        on_disk = sum(p.stat().st_size for p in (Path(store.url) / "chunks").iterdir()) / (rounds + 1) / 1e6
        chunks = store.root()[0]["activations/activation"].chunks
    print(f"{encoding}: {samples} x {units}, {size:.0f} MB, {on_disk:.0f} MB in the store, chunks {chunks}")
    median = {name: float(np.median(times)) for name, times in taken.items()}
    for name, against in (("store", "np.save"), ("store", "np.save+fsync"), ("open, all", "np.load")):
        ours, theirs = median[name], median[against]
        print(
            f"  {name:>16} {size / ours:>7.0f} MB/s   {against:>14} {size / theirs:>7.0f} MB/s   "
            f"rate ratio {theirs / ours:.2f}"
        )
    print(f"  one layer of ten: {median['open, one layer'] * 1e3:.1f} ms, all {median['open, all'] * 1e3:.1f} ms")


def main(quick: bool) -> None:
    """Print rates for both encodings."""
    samples, units, rounds = (2000, 512, 3) if quick else (50_000, 3904, 9)
    for encoding in ENCODINGS:
        compare(encoding, samples, units, rounds)


if __name__ == "__main__":
    main("--quick" in sys.argv)
