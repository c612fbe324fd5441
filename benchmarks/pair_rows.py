"""Rows of the cubes of pools and pairs at RN50x16's size, measured and written to a store as a run does.

``python benchmarks/pair_rows.py [--quick]``. The network is nothing but a random pool of 3072 units, 48 heads, 145
tokens and an embedding of 768, over maps drawn once; what it puts out is computed once, so that seconds are those of
measuring. Each of 1000 images is checked against it. Each cube has a process of its own: totals alone (what is
kept without scalars: the pool's matrices, means, spreads and 50 extremes to either side with their images), scalars in
float32, and in float16. Two threads at most, as many as the cores.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks.pairs import RN50X16, TOP, random_maps, random_pool, tensors_of
from neurolens import schema
from neurolens.clip_networks import AttentionPool2d
from neurolens.data import SampleSet
from neurolens.data.arrays import ArrayImages
from neurolens.models import Network
from neurolens.pairs import Pool, pair_cube, pool_cube
from neurolens.store import SampleCoords, open_store
from neurolens.study import Preprocessing, Study

TINY = {"units": 64, "heads": 4, "features": 32, "side": 3}
MEMORY_MIB = 512
AT_ONCE = 16
CUBES: dict[str, tuple[ModuleType, dict[str, Any]]] = {
    "totals": (pool_cube, {}),
    "scalars": (pair_cube, {"dtype": "float32"}),
    "float16": (pair_cube, {"dtype": "float16"}),
}


class Pooling(AttentionPool2d):
    """A pool over maps drawn once, whatever it is given; what it puts out is computed once."""

    def __init__(self, pool: Pool, maps: Any) -> None:
        super().__init__(pool.units, pool.heads, pool.features, grid=pool.grid)
        tensors = tensors_of(pool)
        state = {"positional_embedding": tensors["positions"]}
        for ours, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "c_proj")):
            state |= {f"{theirs}.weight": tensors[f"W_{ours}"], f"{theirs}.bias": tensors[f"b_{ours}"]}
        self.load_state_dict(state)
        with torch.no_grad():
            self.out = super().forward(torch.from_numpy(maps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return embeddings of as many images."""
        return self.out[: len(x)]


class Images(torch.nn.Module):
    """A network that is nothing but the pool."""

    def __init__(self, pool: Pool, maps: Any) -> None:
        super().__init__()
        self.attnpool, self.maps = Pooling(pool, maps), torch.from_numpy(maps)

    def forward(self, x: torch.Tensor) -> Any:
        """Return embeddings of as many images."""
        return self.attnpool(self.maps[: len(x)])


def megabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def rows(name: str, size: dict[str, int], images: int, folder: Path) -> dict[str, float]:
    """Measure and write the rows of one cube, and return seconds, bytes and peak memory."""
    module, given = CUBES[name]
    pool = random_pool(**size)
    network = Network(Images(pool, random_maps(pool, AT_ONCE)), Preprocessing(mean=(0.0,), std=(1.0,)), 1, None, {})
    ids = np.array([f"image-{i:05d}" for i in range(images)])
    samples = SampleSet(ids, np.zeros(images, int), ("any",), ArrayImages(np.zeros((images, 1, 1, 1), np.uint8)))
    pairs = {"memory_mib": MEMORY_MIB, "attention": False, **given}
    study = Study.model_validate({"name": "large", "pools": {"ranks": TOP}, "pairs": pairs})
    blocked = module is pair_cube
    table: Any = pair_cube.table_of(study) if blocked else study.pools
    before, axes, parts = megabytes(), module.axes(network, samples, table), module.parts(table)
    cube, store = schema.CUBES["pairs" if blocked else "pools"], open_store(folder, create=True)
    store.prepare(
        cube,
        run="large",
        series="epoch",
        settings={"parts": {part: {} for part in parts}},
        axes=axes,
        samples=SampleCoords(ids, samples.labels, samples.classes) if blocked else None,
        block_samples=module.block_size(table, axes) if blocked else None,
        fingerprint=None if blocked else "f" * 64,
        encodings=module.encodings(table) if blocked else {},
    )
    layout = store.layout(cube.name)
    assert layout is not None
    sizes = [len(block) for block in layout.blocks] if blocked else [images]
    measuring = writing = 0.0
    for number, (count, end) in enumerate(zip(sizes, np.cumsum(sizes), strict=True)):
        start = time.perf_counter()
        block = samples.subset(range(end - count, end))
        values = module.measure(network, block, parts=parts, table=table, batch_size=AT_ONCE)
        done = time.perf_counter()
        store.write_row(
            cube,
            (0, number),
            positions={"epoch": 0},
            values=values,
            keys=dict.fromkeys(parts, "0" * 64),
            seconds=done - start,
            provenance={},
        )
        measuring, writing = measuring + done - start, writing + time.perf_counter() - done
    disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    return {
        "measuring": measuring,
        "writing": writing,
        "blocks": len(sizes),
        "disk": disk,
        "before": before,
        "peak": megabytes(),
    }


def main(quick: bool) -> None:
    """Print what each cube takes."""
    size, images = (TINY, 40) if quick else (RN50X16, 1000)
    pairs = size["units"] * size["heads"]
    print(f"{images} images, {pairs} pairs, blocks of {MEMORY_MIB} MiB; whole arrays would take", end=" ")
    print(f"{pairs * size['features'] * images * 4 / 1e9:.1f} GB", flush=True)
    for name in CUBES:
        words = [sys.executable, "-m", "benchmarks.pair_rows", "--cube", name, *(["--quick"] if quick else [])]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        found = json.loads(done.stdout)
        print(
            f"  {name:<8} {found['disk']:>7.1f} MB, {found['measuring']:.1f} s measuring and {found['writing']:.1f} s "
            f"writing {found['blocks']} blocks, peak {found['peak']:.0f} MB ({found['before']:.0f} MB before)",
            flush=True,
        )


def one(name: str, quick: bool) -> None:
    """Print what one cube takes, as JSON."""
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(rows(name, *((TINY, 40) if quick else (RN50X16, 1000)), Path(folder) / "store")))


if __name__ == "__main__":
    if "--cube" in sys.argv:
        one(sys.argv[sys.argv.index("--cube") + 1], "--quick" in sys.argv)
    else:
        main("--quick" in sys.argv)
