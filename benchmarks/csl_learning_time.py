"""CSL and learning time against the reference's way: in memory, and from the store against its files.

``python benchmarks/csl_learning_time.py [--quick]``. The two ways are timed turn by turn, so that a busy machine slows
both; the ratio is the median of the turns'. The reference's way keeps a list of per-epoch arrays, stacks them, and
makes the running mean of every sample at every epoch. Goals: 12x at 200 epochs and 30x at 4000 (of 50 000 samples) in
memory, with less than 100 MB beyond the inputs; 2.5x from the store against loading and stacking a file per epoch and
quantity.
"""

import functools
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr

import neurolens
from neurolens import schema
from neurolens.store import SampleCoords, open_store
from neurolens.store.tiles import build_tiles

PARTS = ("forward", "input_gradient")
Scores = tuple[Any, Any, float]


def reference(losses: list[Any], gradients: list[Any]) -> Scores:
    """The reference's computation, written from its description (float32 sums, float64 running means)."""
    stacked, norms = np.stack(losses), np.stack(gradients)
    running = np.cumsum(norms, axis=0) / np.arange(1, len(norms) + 1)[:, None]
    tau = running.mean()
    return stacked.sum(axis=0), (1 - (running < tau).mean(axis=0)).astype(np.float32), float(tau)


def ours(ds: xr.Dataset) -> Scores:
    """The same scores by two queries, in one graph where they are lazy."""
    total, learned = neurolens.csl(ds)["csl"], neurolens.learning_time(ds)
    arrays = total.data, learned["learning_time"].data, learned["learning_tau"].data
    csl, learning_time, tau = dask.compute(*arrays)
    return csl, learning_time, float(tau)


def exact(losses: list[Any], gradients: list[Any]) -> Scores:
    """The same scores in float64 throughout, some samples at a time: what both ways are held against."""
    loss, norm = np.stack(losses), np.stack(gradients)
    counts = np.arange(1, len(norm) + 1)[:, None]
    strips = [slice(low, low + 1000) for low in range(0, norm.shape[1], 1000)]

    def running(strip: slice) -> Any:
        return np.cumsum(norm[:, strip], axis=0, dtype=np.float64) / counts

    tau = sum(running(s).sum() for s in strips) / norm.size
    below = np.concatenate([(running(s) < tau).mean(axis=0) for s in strips])
    return loss.sum(axis=0, dtype=np.float64), 1 - below, float(tau)


def rounds(ways: dict[str, Callable[[], Scores]], count: int, truth: Scores) -> str:
    """Time the ways in turn and word the outcome; the first round warms up and holds ours against the truth."""
    results = {name: way() for name, way in ways.items()}
    csl, learned, tau = list(results.values())[-1]
    np.testing.assert_allclose(csl, truth[0], rtol=1e-9)
    np.testing.assert_allclose(tau, truth[2], rtol=1e-9)
    np.testing.assert_allclose(learned, truth[1], atol=1e-9)
    off = {name: float(np.mean(np.abs(found[1] - truth[1]) > 1e-6)) for name, found in results.items()}
    del results
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(count):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    first, second = seconds.values()
    taken = "; ".join(
        f"{name} median {np.median(times) * 1e3:.1f} ms (least {min(times) * 1e3:.1f})"
        for name, times in seconds.items()
    )
    differ = ", ".join(f"{name} {share:.2%}" for name, share in off.items())
    taken += f"; samples whose learning time is not float64's: {differ}"
    return f"{taken}; ratio {np.median(np.divide(first, second)):.1f}x (of the least {min(first) / min(second):.1f}x)"


def peak_megabytes(way: Callable[[], Scores]) -> float:
    """What a way allocates at its peak beyond its inputs."""
    tracemalloc.start()
    way()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def in_memory(epochs: int, samples: int, count: int) -> None:
    """Print times, ratio and peaks for a cube in memory: loaded from a store, and made by hand.

    What is loaded from a store has sums per epoch and class beside the data, so that tau needs no pass of its own.
    """
    rng = np.random.default_rng(0)
    loss, norm = (rng.random((epochs, samples), dtype=np.float32) for _ in range(2))
    bare = xr.Dataset(
        {"loss": (("epoch", "sample"), loss), "grad_norm": (("epoch", "sample"), norm)},
        coords={"epoch": np.arange(epochs)},
    )
    sizes = np.full(10, samples // 10)
    loaded = bare.assign_coords(
        sample=[f"{i:016x}" for i in range(samples)],
        grad_norm_sum=(("epoch", "class"), norm.reshape(epochs, 10, -1).sum(axis=2, dtype=np.float64)),
        grad_norm_count=(("epoch", "class"), np.broadcast_to(sizes, (epochs, 10)).copy()),
    )
    lists = list(loss), list(norm)
    truth = exact(*lists)
    for made, ds in (("loaded from a store", loaded), ("made by hand", bare)):
        ways: dict[str, Callable[[], Scores]] = {
            "reference": lambda: reference(*lists),
            "ours": functools.partial(ours, ds),
        }
        print(f"in memory {epochs} x {samples}, {made}: {rounds(ways, count, truth)}")
        print(
            f"  peak beyond the inputs: reference {peak_megabytes(ways['reference']):.0f} MB, "
            f"ours {peak_megabytes(ways['ours']):.1f} MB",
            flush=True,
        )


def write(folder: Path, epochs: int, samples: int) -> None:
    """Write the same numbers as a store and as the reference's files."""
    variables = [v for part in PARTS for v in schema.SAMPLES.part(part).variables]
    store = open_store(folder / "store", create=True)
    coords = SampleCoords(
        np.array([f"{i:032x}" for i in range(samples)]), np.arange(samples) % 100, tuple(map(str, range(100)))
    )
    store.prepare(
        schema.SAMPLES, run="bench", series="epoch", samples=coords, settings={"parts": {key: {} for key in PARTS}}
    )
    rng = np.random.default_rng(0)
    for epoch in range(epochs):
        values = {v.name: (rng.random(samples, dtype=np.float32) * 9).astype(v.dtype) for v in variables}
        store.write_row(
            schema.SAMPLES,
            (epoch, 0),
            positions={"epoch": epoch},
            values=values,
            keys=dict.fromkeys(PARTS, f"{epoch:064x}"),
            seconds=1.0,
            provenance={},
        )
        np.save(folder / f"loss_bench_run1_epoch_{epoch}_noise_0.01.npy", values["loss"])
        np.save(folder / f"loss_grad_bench_run1_epoch_{epoch}_noise_0.01.npy", values["grad_norm"])


def from_store(epochs: int, samples: int, count: int) -> None:
    """Print times and ratio for a cube in a store and the same numbers in files, both in the page cache."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, epochs, samples)

        def loaded() -> Any:
            return (
                [np.load(folder / f"{quantity}_bench_run1_epoch_{e}_noise_0.01.npy") for e in range(epochs)]
                for quantity in ("loss", "loss_grad")
            )

        def from_files() -> Scores:
            return reference(*loaded())

        def queried() -> Scores:
            return ours(neurolens.open_run(folder / "store")["samples"].to_dataset())

        truth = exact(*loaded())
        for state in ("rows as written", "with the tiles of `refresh`"):
            outcome = rounds({"files": from_files, "store, opened each time": queried}, count, truth)
            print(f"from the store {epochs} x {samples}, {state}: {outcome}")
            print(
                f"  peak: files {peak_megabytes(from_files):.0f} MB, store {peak_megabytes(queried):.0f} MB",
                flush=True,
            )
            build_tiles(open_store(folder / "store"))


def main(quick: bool) -> None:
    """Print all three comparisons."""
    if quick:
        in_memory(20, 2000, 2)
        in_memory(100, 2000, 2)
        from_store(20, 2000, 1)
        return
    in_memory(200, 50_000, 10)
    from_store(1024, 50_000, 3)
    in_memory(4000, 50_000, 3)


if __name__ == "__main__":
    main("--quick" in sys.argv)
