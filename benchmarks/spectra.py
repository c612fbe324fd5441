"""Singular values by Gram matrices against np.linalg.svd, and the memory that spectra of a large cube take.

``python benchmarks/spectra.py [--quick]``. The ways are timed turn by turn, so that a busy machine slows them all; the
ratio is that of the medians. Goals at 50 000 x 512: 10x with the first 50 singular values right to 1e-11, 20x to 1e-6.
numpy is timed with the vectors that it gives by default, and for the values alone; ours with the vectors of the shorter
side, and for the values alone.

The memory is shown on a cube ten times a limit of 600 MB, in a process of its own that never imports torch. The limit
is the kernel's on all memory that the process may write (RLIMIT_DATA), set before anything is imported; it holds for
imports, thread stacks and BLAS buffers too. The address space (RLIMIT_AS) would count the mapped libraries of a dozen
packages besides, memory that they share with every process. One OpenBLAS thread: each sets a buffer apart, in numpy's
copy of OpenBLAS and in scipy's, so that the need would grow with the cores and not with the data. A fixed threshold
from which glibc gives freed memory back: by default it learns to keep it. And no pool of Arrow's own, which sets aside
1 GiB of addresses for the first string of an index.
"""

import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOP = 50
MEMORY_MIB = 256
Way = Callable[[], Any]


def activations(samples: int, units: int) -> Any:
    """ReLU of correlated features with a power-law spectrum, float32."""
    import numpy as np

    rng = np.random.default_rng(0)
    scales = (np.arange(1, units + 1) ** -0.7).astype(np.float32)
    mixing, bias = rng.standard_normal((units, units), dtype=np.float32), rng.standard_normal(units, dtype=np.float32)
    return np.maximum((rng.standard_normal((samples, units), dtype=np.float32) * scales) @ mixing + bias, 0)


def race(ways: dict[str, Way], turns: int) -> dict[str, float]:
    """Time the ways turn by turn, and return the median seconds of each."""
    import numpy as np

    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(taken)) for name, taken in times.items()}


def gram(samples: int, units: int, turns: int) -> None:
    """Print times, ratios and errors of the singular values of one matrix."""
    import numpy as np

    import neurolens

    single = activations(samples, units)
    double = single.astype(np.float64)
    exact = np.linalg.svd(double, compute_uv=False)
    ours: dict[str, dict[str, Any]] = {
        "gram": {},
        "gram, mixed": {"precision": "mixed"},
        "gram, with right vectors": {"vectors": "right"},
        "gram, mixed, with right vectors": {"vectors": "right", "precision": "mixed"},
        "qr": {"method": "qr"},
    }
    ways: dict[str, Way] = {
        "numpy, float64, values": lambda: np.linalg.svd(double, compute_uv=False),
        "numpy, float64, values and vectors": lambda: np.linalg.svd(double, full_matrices=False),
        "numpy, float32, values": lambda: np.linalg.svd(single, compute_uv=False),
    } | {name: functools.partial(neurolens.spectra, single, **options) for name, options in ours.items()}
    taken = race(ways, turns)
    values, vectors = list(taken.values())[:2]
    print(f"{samples} x {units} float32, {turns} turns, {os.cpu_count()} cores: medians, and numpy's over ours")
    print(f"  {'':<36} {'ms':>6} {'/ values':>9} {'/ vectors':>9}   largest relative error: first {TOP}, all")
    for name, seconds in taken.items():
        line = f"  {name:<36} {seconds * 1e3:>6.0f}"
        if name in ours:
            found = neurolens.spectra(single, **ours[name])["singular_value"].values
            error = np.abs(found - exact) / exact
            line += (
                f" {values / seconds:>8.1f}x {vectors / seconds:>8.1f}x   {error[:TOP].max():.0e}, {error.max():.0e}"
            )
        print(line, flush=True)


def sketches(samples: int, units: int, rank: int) -> None:
    """Print how far off randomised singular values are: ours, and dask's by default."""
    import dask.array as da
    import numpy as np

    import neurolens

    matrix = activations(samples, units)
    exact = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)[:rank]
    found = neurolens.spectra(matrix, method="randomised", rank=rank)
    lazy = da.from_array(matrix.astype(np.float64), chunks=(samples // 8, units))
    plain = da.linalg.svd_compressed(lazy, rank, seed=0)[1].compute()
    print(f"{samples} x {units}, the first {rank} singular values by random subspaces: largest relative error")
    values, bounds = found["singular_value"].values, found["singular_value_error"].values
    print(f"  neurolens       {np.abs(values / exact - 1).max():.0e}, reported bound {bounds.max():.0e}")
    print(f"  svd_compressed  {np.abs(plain / exact - 1).max():.0e}, none reported", flush=True)


def write(path: Path, positions: int, blocks: int, layers: int) -> None:
    """Write a cube of float16 (epoch, sample, unit) as plain Zarr: the same samples, scaled by powers of two."""
    import numpy as np
    import zarr

    rows, units = 512, 512 * layers
    block = activations(rows, units).astype(np.float16)
    np.save(path.with_suffix(".npy"), block)
    array = zarr.open_group(path, mode="w").create_array(
        "activation",
        shape=(positions, rows * blocks, units),
        chunks=(1, rows, 4096),
        dtype="float16",
        compressors=None,
        dimension_names=("epoch", "sample", "unit"),
    )
    for position in range(positions):
        for i in range(blocks):
            array[position, i * rows : (i + 1) * rows] = block * np.float16(2 ** (i % 3))


def limited(path: str, limit: int) -> None:
    """In a process of its own: compute the spectra under the limit and print what they took."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    import numpy as np
    import xarray as xr

    import neurolens

    status = Path("/proc/self/status")
    imported = status.read_text()
    ds = xr.open_zarr(path, consolidated=False)
    layers = [f"layer.{i}" for i in range(ds.sizes["unit"] // 512)]
    ds = ds.assign_coords(layer=("unit", np.repeat(layers, 512)))
    if "--naive" in sys.argv:
        np.linalg.svd(ds["activation"].values[0, :, :512].astype(np.float64), compute_uv=False)
        return
    start = time.perf_counter()
    found = neurolens.spectra(ds, memory_mib=MEMORY_MIB).compute(scheduler="threads", num_workers=2)
    seconds = time.perf_counter() - start
    block = np.load(path.removesuffix(".zarr") + ".npy").astype(np.float64)
    scale = float(np.linalg.norm(2.0 ** (np.arange(ds.sizes["sample"] // len(block)) % 3)))
    for i in (0, len(layers) - 1):
        exact = np.linalg.svd(block[:, 512 * i : 512 * (i + 1)], compute_uv=False)[:TOP] * scale
        np.testing.assert_allclose(found["singular_value"][-1, i, :TOP], exact, rtol=1e-10)
    lines = {name: text.split(":")[1].strip() for name in ("VmHWM", "VmData") for text in _of(status.read_text(), name)}
    resident = next(_of(imported, "VmRSS")).split(":")[1].strip()
    print(json.dumps({"seconds": seconds, "resident": resident, "torch": "torch" in sys.modules} | lines))


def _of(status: str, name: str) -> Any:
    return (line for line in status.splitlines() if line.startswith(name))


def memory(limit: int, positions: int, blocks: int, layers: int) -> None:
    """Print the peak memory of the spectra of a cube ten times the limit, and that numpy's way exceeds it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cube.zarr"
        write(path, positions, blocks, layers)
        size = positions * blocks * 512 * layers * 512 * 2
        print(f"{positions} x {512 * blocks} x {512 * layers} float16: {size / 1e6:.0f} MB, limit {limit / 1e6:.0f} MB")
        words = [sys.executable, "-m", "benchmarks.spectra", "--limited", str(path), str(limit)]
        options: Any = {
            "env": os.environ
            | {"OPENBLAS_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1000000", "ARROW_DEFAULT_MEMORY_POOL": "system"},
            "cwd": Path(__file__).parent.parent,
            "capture_output": True,
            "text": True,
        }
        done = subprocess.run(words, **options)
        if done.returncode:
            raise SystemExit(done.stderr)
        found = json.loads(done.stdout)
        print(
            f"  spectra within memory_mib={MEMORY_MIB}: peak {found['VmHWM']} resident ({found['resident']} after the "
            f"imports), {found['seconds']:.0f} s, {size / 1e6 / found['seconds']:.0f} MB/s, torch: {found['torch']}"
        )
        naive = subprocess.run([*words, "--naive"], **options)
        said = (naive.stderr.strip().splitlines() or ["it fits"])[-1]
        print(f"  np.linalg.svd of the array's first layer: {said[:100]}", flush=True)


def main(quick: bool) -> None:
    """Print all comparisons."""
    if quick:
        gram(2000, 64, 2)
        sketches(1000, 200, TOP)
        memory(600_000_000, 1, 8, 8)
        return
    gram(50_000, 512, 5)
    sketches(20_000, 1000, TOP)
    memory(600_000_000, 2, 240, 24)


if __name__ == "__main__":
    if "--limited" in sys.argv:
        limited(sys.argv[2], int(sys.argv[3]))
    else:
        main("--quick" in sys.argv)
