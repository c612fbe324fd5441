"""Concepts of a store that is larger than memory: who is alive, born and dead, counted within a limit."""

import os
import subprocess
import sys
import textwrap

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from concept_store_cases import AREA, prepare_concepts, write_counts

import neurolens
from neurolens import best_concept, concept_lives, detectors

EPOCHS, BLOCKS, UNITS, CONCEPTS = 48, 16, 512, 200
TAU, K = 0.03, 2
LIMIT_MIB = 288
CODE = """
    import resource, sys, threading, warnings, numpy as np, xarray as xr, zarr
    import neurolens
    threading.stack_size(1 << 20)  # stacks count, and how many threads there are is chance
    zarr.config.set({"threading.max_workers": 2})
    warnings.simplefilter("error")
    tau, k, limit = float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) << 20
    def reduced(url):
        ds = neurolens.open_run(url)["concepts"].to_dataset()
        lives, best = ds.lens.concept_lives(tau=tau, k=k), ds.lens.best_concept()
        wanted = lives[["births", "rebirths", "deaths", "n_alive", "n_births", "n_deaths"]]
        wanted["alive_at_end"] = lives["alive"].isel(epoch=-1)
        wanted["total_detectors"] = ds.lens.detectors(tau=tau)["total_detectors"]
        wanted["best"], wanted["position"] = best["score"], best["position"]
        wanted["largest"] = ds.lens.iou().max("unit")
        done = {}
        for names in (["births", "rebirths", "deaths"], ["n_alive", "n_births", "n_deaths"], ["alive_at_end"],
                      ["total_detectors"], ["best", "position"], ["largest"]):
            some = wanted[names].compute(scheduler="threads", num_workers=2)
            done |= {name: some[name].values for name in names}
        return done | {"n_events": len(ds.lens.concept_events(tau=tau, k=k))}
    reduced(sys.argv[1] + "/small")
    used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (used + limit,) * 2)
    found = reduced(sys.argv[1] + "/large")
    assert "torch" not in sys.modules
    try:
        np.ones(limit + (64 << 20), "i1")
    except MemoryError:
        pass
    else:
        raise AssertionError("the limit does not hold")
    np.savez(sys.argv[1] + "/found.npz", **found)
"""


def counts(epoch, units, concepts=CONCEPTS):
    rng = np.random.default_rng(epoch)
    return {
        "threshold": np.ones(units),
        "intersection": rng.integers(0, 900, (BLOCKS, units, concepts), dtype=np.uint32),
        "unit_area": np.full((BLOCKS, units, 1), float(AREA)),
        "unit_area_lite": np.full((BLOCKS, units, 1), float(AREA)),
        "concept_area": np.full((BLOCKS, concepts), float(AREA)),
        "n_images": np.full(BLOCKS, 10.0),
    }


def test_concept_reductions__of_a_store_larger_than_memory_keep_within_a_limit(tmp_path):
    """A cube that opens as 600 MiB, with 288 MiB to allocate once everything is imported."""
    exact = np.empty((EPOCHS, UNITS, CONCEPTS))
    for name, units, epochs in (("small", 8, 3), ("large", UNITS, EPOCHS)):
        store = prepare_concepts(tmp_path / name, units, CONCEPTS, BLOCKS)
        for epoch in range(epochs):
            values = counts(epoch, units)
            write_counts(store, epoch, values)
            if name == "large":
                common = values["intersection"].sum(axis=0, dtype=np.float64)
                exact[epoch] = common / (2 * AREA * BLOCKS - common + 1e-10)
    opened = neurolens.open_run(tmp_path / "large")["concepts"].to_dataset()
    assert opened["intersection"].nbytes > 2 * (LIMIT_MIB << 20)
    environment = os.environ | {
        "OPENBLAS_NUM_THREADS": "1",  # each thread of each OpenBLAS, numpy's and scipy's, sets a buffer apart
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "100000",  # else glibc raises it, and keeps what was freed
    }
    words = [sys.executable, "-c", textwrap.dedent(CODE)]
    done = subprocess.run(
        [*words, str(tmp_path), str(TAU), str(K), str(LIMIT_MIB)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(tmp_path / "found.npz")
    coords = {"concept_category": ("concept", ["object"] * CONCEPTS), "concept": opened["concept"].values}
    scores = xr.DataArray(exact, dims=("epoch", "unit", "concept"), coords=coords)
    lives = concept_lives(scores, tau=TAU, k=K)
    assert lives["deaths"].sum() > 1000
    for name in ("births", "rebirths", "deaths", "n_alive", "n_births", "n_deaths"):
        np.testing.assert_array_equal(found[name], lives[name], err_msg=name)
    np.testing.assert_array_equal(found["alive_at_end"], lives["alive"][-1])
    assert found["n_events"] == (lives["births"].sum() + lives["alive"].isel(epoch=0).sum() - lives["birth"][0].sum())
    best = best_concept(scores)
    np.testing.assert_allclose(found["best"], best["score"], rtol=1e-12)
    np.testing.assert_array_equal(found["position"], best["position"])
    np.testing.assert_array_equal(found["total_detectors"], detectors(scores, tau=TAU)["total_detectors"])
    np.testing.assert_allclose(found["largest"], exact.max(axis=1), rtol=1e-12)


@pytest.mark.parametrize("chunks", [{"epoch": 1}, {"unit": 3, "concept": 2}, {"epoch": 2, "block": 1}])
def test_iou__is_blind_to_chunks_and_reads_each_block_once(tmp_path, chunks):
    store = prepare_concepts(tmp_path / "store", 7, 5, BLOCKS, layers=("a", "b"))
    for epoch in range(4):
        write_counts(store, epoch, counts(epoch, 7, 5))
    ds = neurolens.open_run(tmp_path / "store")["concepts"].to_dataset().compute()
    reads = []

    def counted(block, block_info=None):
        reads.append(tuple(block_info[None]["array-location"]))
        return block

    lazy = ds.chunk(chunks)
    given = lazy["intersection"].data
    data = da.map_blocks(counted, given, dtype=given.dtype, meta=np.empty((0,) * 4))
    lazy = lazy.assign(intersection=(lazy["intersection"].dims, data))
    score = lazy.lens.iou()
    assert isinstance(score.data, da.Array)
    assert not reads
    xr.testing.assert_identical(score.compute(), ds.lens.iou())
    assert len(reads) == len(set(reads)) == given.npartitions
