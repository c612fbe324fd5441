"""What reading a store costs: opening it, one sample's history by rows and by tiles, and a sum over all of it.

``python benchmarks/store_reads.py [--quick]``. The reference way is a folder of one .npy per checkpoint, stacked. The
ways are timed turn by turn, so that a busy machine slows them all; printed are medians, and the ratio to the reference.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

import neurolens
from neurolens import schema
from neurolens.store import SampleCoords, open_store
from neurolens.store.tiles import build_tiles

CUBE = schema.SAMPLES
TURNS = 5


def write(folder: Path, epochs: int, samples: int) -> None:
    """Write the same gradient norms into a store and into one .npy file per epoch."""
    rng = np.random.default_rng(0)
    store = open_store(folder / "store", create=True)
    ids = np.array([f"{i:032x}" for i in range(samples)])
    classes = tuple(map(str, range(100)))
    coords = SampleCoords(ids, np.arange(samples) % 100, classes)
    settings = {"parts": {"input_gradient": {}}}
    variables = ["grad_norm"]
    store.prepare(CUBE, run="bench", series="epoch", samples=coords, settings=settings, variables=variables)
    for epoch in range(epochs):
        values = rng.random(samples, dtype="float32")
        np.save(folder / f"loss_grad_cifar100_epoch_{epoch}.npy", values)
        key = {"input_gradient": f"{epoch:064x}"}
        positions = {"epoch": epoch}
        store.write_row(
            CUBE, (epoch, 0), positions=positions, values={"grad_norm": values}, keys=key, seconds=0, provenance={}
        )


def stack(folder: Path) -> np.ndarray:
    """Load every file and stack them, as the reference does."""
    epochs = len(list(folder.glob("*.npy")))
    return np.stack([np.load(folder / f"loss_grad_cifar100_epoch_{e}.npy") for e in range(epochs)])


def opened(folder: Path) -> xr.Dataset:
    """Open the store afresh."""
    return neurolens.open_run(folder / "store")["samples"].to_dataset()


def race(ways: dict[str, Callable[[], object]]) -> None:
    """Time the ways turn by turn, and print medians and the ratio of the first to each."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    first = float(np.median(next(iter(times.values()))))
    for name, taken in times.items():
        median = float(np.median(taken))
        print(f"  {name:<44} {median * 1e3:>9.1f} ms {first / median:>8.1f}x")


def main(quick: bool) -> None:
    """Print what each way of reading takes."""
    epochs, samples = (300, 2000) if quick else (1000, 50_000)
    print(f"{epochs} epochs x {samples} samples, {epochs * samples * 4 / 1e6:.0f} MB of float32")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, epochs, samples)
        rows = opened(folder)
        start = time.perf_counter()
        built = build_tiles(open_store(folder / "store"))
        print(f"{built} tiles built in {time.perf_counter() - start:.2f} s")
        tiles = opened(folder)
        lazy = xr.open_dataset(folder / "store", engine="neurolens", cache=False)
        tiled = epochs // 256 * 256
        one, hundred = samples // 3, np.linspace(0, samples - 1, 100).astype(int)
        print("open")
        race({"files: list and stack": lambda: stack(folder), "store": lambda: opened(folder)})
        print("one sample's history")
        race(
            {
                "files: stack, take one": lambda: stack(folder)[:, one],
                "store, rows alone": lambda: rows.grad_norm.isel(sample=one).compute(),
                "store, tiles and the last rows": lambda: tiles.grad_norm.isel(sample=one).compute(),
                "store, the tiled part, without dask": lambda: lazy.grad_norm[:tiled, one].values,
            }
        )
        print("the histories of 100 samples")
        race(
            {
                "files: stack, take 100": lambda: stack(folder)[:, hundred],
                "store, without dask": lambda: lazy.grad_norm[:, hundred].values,
            }
        )
        print("sum over epochs")
        race(
            {
                "files: stack, sum": lambda: stack(folder).sum(axis=0),
                "store": lambda: tiles.grad_norm.sum("epoch", skipna=False).compute(),
            }
        )
        np.testing.assert_array_equal(lazy.grad_norm.values, stack(folder))


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
