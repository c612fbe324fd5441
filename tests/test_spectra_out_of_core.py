"""Spectra of cubes that are not in memory: lazy, blind to chunks, each block read once, within a limit."""

import os
import subprocess
import sys
import textwrap
import tracemalloc

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from cube_cases import prepare_activations, write_activations
from hypothesis import given, settings
from hypothesis import strategies as st
from spectra_cases import GOLDEN, METHODS, close, cube

import neurolens
from neurolens import spectra
from neurolens.errors import MissingMeasurementError, SchemaError
from neurolens.store import open_store

CHUNKS = [
    {"epoch": 1},
    {"sample": 7},
    {"unit": 3},
    {"epoch": 2, "sample": 11, "unit": 13},
    {"epoch": 3, "sample": 1, "unit": 40},
]


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("samples", [50, 8])
@pytest.mark.parametrize("centred", [False, True])
def test_spectra__are_lazy_and_blind_to_chunks(chunks, method, samples, centred):
    ds = cube(samples)
    lazy = spectra(ds.chunk(chunks), method=method, centred=centred, vectors="both")
    assert all(isinstance(lazy[name].data, da.Array) for name in lazy)
    eager = spectra(ds, method=method, centred=centred, vectors="both")
    assert not any(isinstance(eager[name].data, da.Array) for name in eager)
    computed = lazy.compute()
    close(computed, eager)
    for name in ("right_vector", "left_vector"):
        np.testing.assert_allclose(computed[name], eager[name], atol=1e-6)


def counted(ds, chunks):
    """The Dataset in chunks, and a list that grows by the place of every block that is read."""
    reads = []
    values = ds["activation"].values

    def block(block_info=None):
        place = tuple(block_info[None]["array-location"])
        reads.append(place)
        return values[tuple(slice(*span) for span in place)]

    data = da.map_blocks(block, chunks=chunks, dtype=values.dtype, meta=np.empty((0,) * 3, values.dtype))
    return ds.assign(activation=(ds["activation"].dims, data)), reads


@pytest.mark.parametrize("chunks", [((1, 1, 1), (20, 20, 10), (40,)), ((2, 1), (50,), (10, 5, 25))])
@pytest.mark.parametrize(
    ("options", "passes"), [({}, 1), ({"missing": "drop"}, 2), ({"method": "qr", "centred": True}, 2)]
)
def test_spectra__read_each_block_once_per_pass_and_none_before(chunks, options, passes):
    ds, reads = counted(cube(), chunks)
    lazy = spectra(ds, **options)
    assert not reads
    lazy.compute(scheduler="threads")
    blocks = np.prod([len(c) for c in chunks])
    assert len(reads) == passes * blocks
    assert len(set(reads)) == blocks


def test_spectra__of_layers_that_do_not_fit_together_still_read_each_block_once():
    widths = {f"layer.{i}": 100 for i in range(12)}
    ds, reads = counted(cube(200, 1, widths=widths), ((1,), (100, 100), (400, 400, 400)))
    lazy = spectra(ds, memory_mib=1)
    assert lazy["stable_rank"].data.chunks[1] == (4, 4, 4)
    close(lazy.compute(), spectra(cube(200, 1, widths=widths)))
    assert len(reads) == len(set(reads)) == 6


def test_spectra__read_only_the_layers_wanted():
    ds, reads = counted(cube(), ((1, 1, 1), (50,), (10, 5, 25)))
    found = spectra(ds, layers=["layers.*"]).compute()
    assert found["layer"].values.tolist() == ["layers.10", "layers.2"]
    assert {place[2] for place in reads} == {(0, 10), (10, 15)}
    close(found, spectra(cube()).isel(layer=slice(2), component=slice(10)))


def test_spectra__of_a_small_memory_are_those_of_a_large():
    ds = cube(400, widths={f"layer.{i}": 150 for i in range(6)})
    lazy = ds.chunk(epoch=3, sample=90, unit=450)
    close(spectra(lazy, memory_mib=2).compute(), spectra(ds))
    assert len(spectra(lazy, memory_mib=2)["stable_rank"].data.chunks[1]) > 1
    assert len(spectra(lazy)["stable_rank"].data.chunks[1]) == 1


def test_spectra__of_an_array_opened_without_dask_read_it_in_strips(tmp_path):
    ds = cube()
    ds.drop_vars(["layer", "sample"]).to_zarr(tmp_path / "cube.zarr", consolidated=False)
    opened = xr.open_zarr(tmp_path / "cube.zarr", chunks=None, consolidated=False).assign_coords(layer=ds["layer"])
    close(spectra(opened), spectra(ds))


@settings(max_examples=25, deadline=None)
@given(data=st.data(), method=st.sampled_from(METHODS), samples=st.integers(2, 40))
def test_spectra__are_blind_to_any_chunks(data, method, samples):
    ds = cube(samples)
    cuts = {}
    for dim, size in ds["activation"].sizes.items():
        inner = data.draw(st.sets(st.integers(1, size - 1), max_size=6), label=dim)
        cuts[dim] = tuple(np.diff([0, *sorted(inner), size]).tolist())
    lazy = spectra(ds.chunk(cuts), method=method, memory_mib=data.draw(st.sampled_from([1, 512])))
    close(lazy.compute(scheduler="threads"), spectra(ds, method=method))


def test_spectra__run_on_a_cluster(tmp_path):
    from distributed import Client

    ds = cube()
    with dask.config.set({"distributed.worker.daemon": False}):
        client = Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None)
    with client:
        lazy = spectra(ds.chunk(epoch=1, sample=9), vectors="both")
        close(lazy.compute(), spectra(ds, vectors="both"))
        with pytest.raises(SchemaError, match="without persist"):
            spectra(ds.chunk(epoch=1).persist())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"missing": "drop", "centred": True, "precision": "mixed"},
        {"method": "qr"},
        {"method": "randomised", "rank": 20},
        {"vectors": "right", "rank": 2},
    ],
)
@pytest.mark.parametrize("samples", [1500, 150])
def test_spectra__hold_no_more_than_they_may(options, samples):
    widths = {f"layer.{i}": 256 for i in range(8)}

    def block(block_info=None):
        return np.random.default_rng(0).standard_normal(block_info[None]["chunk-shape"], dtype="f4")

    data = da.map_blocks(
        block, chunks=((1,) * 3, (150,) * (samples // 150), (1024,) * 2), dtype="f4", meta=np.empty((0,) * 3, "f4")
    )
    ds = xr.Dataset({"activation": (("epoch", "sample", "unit"), data)})
    lazy = spectra(ds.assign_coords(layer=("unit", np.repeat(list(widths), 256))), memory_mib=12, **options)
    tracemalloc.start()
    try:
        lazy.isel(epoch=slice(1)).compute(scheduler="threads", num_workers=2)  # imports count, the first time
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        lazy.compute(scheduler="threads", num_workers=2)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    results = sum(variable.nbytes for variable in lazy.variables.values())
    assert peak < (12 << 20) + 2 * results + 500_000


def test_spectra__import_no_torch_and_keep_within_a_tenth_of_the_cube(tmp_path):
    """A cube of 320 MB on disk, with 32 MB of memory to allocate once everything is imported."""
    code = """
        import ctypes, resource, sys, threading, numpy as np, xarray as xr, zarr
        from neurolens.spectral import spectra
        path, rows, repeats = sys.argv[1], 1024, 40
        threading.stack_size(1 << 20)  # stacks count, and how many threads there are is chance
        zarr.config.set({"threading.max_workers": 2})
        block = np.random.default_rng(0).standard_normal((rows, 2000)).astype("f2")
        def make(path, repeats):
            group = zarr.open_group(path, mode="w")
            shape = (2, rows * repeats, 2000)
            array = group.create_array(
                "activation", shape=shape, chunks=(1, rows, 1000), dtype="f2", compressors=None,
                dimension_names=("epoch", "sample", "unit"),
            )
            for i in range(repeats):
                array[:, i * rows : (i + 1) * rows] = np.stack([block, block])
        def run(path, memory_mib):
            ds = xr.open_zarr(path, consolidated=False)
            ds = ds.assign_coords(layer=("unit", np.repeat(["a", "b", "c"], [200, 800, 1000])))
            return spectra(ds, memory_mib=memory_mib).compute(scheduler="threads", num_workers=2)
        make(path + "/small", 2)
        make(path + "/large", repeats)
        run(path + "/small", 20)
        ctypes.CDLL(None).malloc_trim(0)
        used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (used + (32 << 20),) * 2)
        found = run(path + "/large", 20)
        assert "torch" not in sys.modules
        try:
            np.ones(40 << 20, "i1")
        except MemoryError:
            pass
        else:
            raise AssertionError("the limit does not hold")
        np.save(path + "/found.npy", found["singular_value"].values)
        np.save(path + "/block.npy", block)
    """
    environment = os.environ | {
        "OPENBLAS_NUM_THREADS": "1",  # each thread of each OpenBLAS, numpy's and scipy's, sets a buffer apart
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "1000000",  # else glibc raises it, and keeps what was freed
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found, block = np.load(tmp_path / "found.npy"), np.load(tmp_path / "block.npy").astype(float)
    for i, (low, high) in enumerate([(0, 200), (200, 1000), (1000, 2000)]):
        exact = np.linalg.svd(block[:, low:high], compute_uv=False) * 40**0.5
        np.testing.assert_allclose(found[:, i, : high - low], np.stack([exact, exact]), rtol=1e-9)


@pytest.mark.parametrize("encoding", ["float16", "float32-bitround10"])
def test_spectra__of_a_store_are_those_of_its_values(tmp_path, encoding):
    samples, blocks = 50, (20, 20, 10)
    store = open_store(tmp_path / "store", create=True)
    prepare_activations(store, samples, encoding=encoding)
    for step in (8, 1, 4):
        for block, n in enumerate(blocks):
            if (step, block) != (4, 1):
                write_activations(store, step, block, n)
    ds = neurolens.open_run(tmp_path / "store")["activations"].to_dataset()
    with pytest.raises(MissingMeasurementError, match="lacks activations at step 4;"):
        ds.lens.spectra()
    lazy = ds.lens.spectra(missing="drop", vectors="both")
    assert isinstance(lazy["stable_rank"].data, da.Array)
    found = lazy.compute()
    assert found["step"].values.tolist() == [1, 4, 8]
    assert found["n_samples"].values[:, 0].tolist() == [50, 30, 50]
    assert found.attrs["snapshot"] == ds.attrs["snapshot"]
    for layer in found["layer"].values:
        matrix = ds["activation"].sel(layer=layer, step=8).values.astype(float)
        one = found.sel(layer=layer, step=8)
        exact = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(one["singular_value"][: len(exact)], exact, atol=1e-6 * exact[0])
        alone = spectra(ds.sel(layer=layer, step=[8])).isel(layer=0, step=0)
        for name in GOLDEN:
            assert float(alone[name]) == pytest.approx(float(one[name])), name
