"""Cubes that are not (series, sample), opened: lazily, in order, NaN where not measured, by layer."""

import pickle
import re
import subprocess
import sys

import cube_cases
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from cube_cases import (
    AXES,
    BLOCK,
    PARTS,
    UNITS,
    activations,
    prepare_activations,
    prepare_units,
    unit_values,
    units,
    write_activations,
    write_units,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import key

import neurolens
from neurolens import schema
from neurolens.backend import cubes
from neurolens.store import Axis, doctor, open_store
from neurolens.store.export import export_zarr
from neurolens.store.maintain import maintain
from neurolens.store.tiles import build_tiles

STEPS = (8, 1, 4, 2)
SAMPLES = 50
SIZES = (20, 20, 10)
HOLES = {(4, 1), (1, 0), (2, 0), (2, 1), (2, 2)}  # (step, block) without activations; step 2 failed as a whole


@pytest.fixture(scope="module", params=["float16", "float32-bitround10"])
def run(request, tmp_path_factory):
    """A store of units and activations with holes, and the activations that opening it must give, by encoding."""
    url = tmp_path_factory.mktemp("cubes") / "store"
    store = open_store(url, create=True)
    prepare_units(store)
    prepare_activations(store, SAMPLES, encoding=request.param)
    truth = np.full((len(STEPS), SAMPLES, UNITS), np.nan, request.param[:7])
    for step in STEPS:
        write_units(store, step, PARTS if step != 4 else ("statistics", "top"))
        for block, n in enumerate(SIZES):
            if (step, block) not in HOLES:
                write_activations(store, step, block, n)
                row = sorted(STEPS).index(step)
                truth[row, block * BLOCK : block * BLOCK + n] = activations(step, block, n)
    failed = {"positions": {"step": 2}, "keys": {"activation": key(2)}, "provenance": {}}
    store.write_failure(schema.ACTIVATIONS, (2, 1), error="broken", **failed)
    return url, truth


def opened(url, group="activations", **options):
    return xr.open_dataset(url, group=group, engine="neurolens", **options)


def close(found, truth):
    np.testing.assert_allclose(found, truth, rtol=2**-11 if truth.dtype == np.float32 else 0)


def test_open_run__gives_every_variable_of_units_in_order(run):
    ds = neurolens.open_run(run[0])["units"].to_dataset()
    assert ds.step.values.tolist() == sorted(STEPS)
    assert list(ds.data_vars) == [v.name for v in schema.UNITS.variables]
    for variable in schema.UNITS.variables:
        found = ds[variable.name]
        integer = np.dtype(variable.dtype).kind in "iu"
        assert found.dims == ("step", *variable.dims[1:])
        assert found.dtype == (variable.opened if integer else variable.dtype)
        assert isinstance(found.data, da.Array)
        for step in STEPS:
            part = schema.UNITS.part_of(variable.name).name
            expected = unit_values(step, PARTS)[variable.name].astype(found.dtype)
            if step == 4:
                expected = unit_values(step, ("statistics", "top")).get(variable.name, np.nan * expected)
                assert (part in ("statistics", "top")) == bool(np.isfinite(expected).all())
            np.testing.assert_array_equal(found.sel(step=step).values, expected)


def test_open_run__gives_activations_with_nan_where_not_measured(run):
    url, truth = run
    ds = neurolens.open_run(url)["activations"].to_dataset()
    assert ds.activation.dims == ("step", "sample", "unit")
    assert ds.activation.dtype == truth.dtype
    close(ds.activation.values, truth)
    close(opened(url).activation.values, truth)
    assert ds.tokens.values.tolist() == list(range(1, SAMPLES + 1))


def test_open_dataset__says_where_a_cube_is_measured(run):
    url, _ = run
    assert opened(url).measured.values.tolist() == [False, False, False, True]
    assert opened(url, "units").measured.values.all()
    assert "measured" in opened(url, "units").coords


def test_open_dataset__keeps_coordinates_in_memory(run):
    for group in ("units", "activations"):
        ds = opened(run[0], group, chunks={})
        assert all(ds[name].variable._in_memory for name in ds.coords)
        assert {"unit", "layer", "index", "measured", "class"} <= set(ds.coords)
    assert opened(run[0], "units")["sample"].values.tolist() == ["s1", "s2"]
    assert "sample_block" not in ds


@pytest.mark.parametrize("chunks", [None, {}, "auto"])
@pytest.mark.parametrize("group", ["units", "activations"])
def test_sel__takes_a_layer_or_several(run, group, chunks):
    ds = opened(run[0], group, chunks=chunks)
    variable = "activation" if group == "activations" else "position_n_pos"
    everything = opened(run[0], group)[variable].load().drop_indexes("layer")
    a, b = [*range(4, 10)], [*range(4)]
    for wanted, at in (("a", a), ("b", b), (["a", "b"], a + b), (["b"], b)):
        found = ds.sel(layer=wanted)
        assert found.unit.values.tolist() == at
        np.testing.assert_array_equal(found[variable].values, everything.isel(unit=at).values)
    assert ds.sel(layer="a").sel(unit=7).layer == "a"
    with pytest.raises(KeyError, match=r"no layer 'aa'; did you mean 'a'"):
        ds.sel(layer=["b", "aa"])


def test_sel__of_a_layer_works_in_a_tree_and_survives_isel_concat_and_pickling(run):
    tree = neurolens.open_run(run[0])
    ds = pickle.loads(pickle.dumps(tree["units"].to_dataset()))
    both = xr.concat([ds.isel(step=[0]), ds.isel(step=[1])], "step")
    assert both.isel(unit=[9, 0, 5]).sel(layer="a").unit.values.tolist() == [9, 5]
    assert tree["units"].ds.sel(layer="b").sizes["unit"] == 4


def test_layer_index__aligns_by_units(run):
    ds = opened(run[0], "units", chunks={})
    mean, plain = ds["mean"], ds["mean"].load().drop_indexes("layer")
    some = mean.where(ds["max"].sel(layer="a") > 50)
    np.testing.assert_array_equal(some, plain.where(ds["max"].load()[:, 4:].drop_indexes("layer") > 50))
    assert some.sel(layer="a").sizes["unit"] == 6
    both = mean.isel(unit=[9, 3, 5]) + mean.sel(layer="a")
    assert both.unit.values.tolist() == [9, 5]
    np.testing.assert_array_equal(both, 2 * plain.isel(unit=[9, 5]))
    assert both.sel(layer="a").sizes["unit"] == 2
    outer = xr.align(mean.isel(unit=[0, 4]), mean.isel(unit=[4, 5, 6]), join="outer")
    assert outer[0].layer.values.tolist() == ["b", "a", "a", "a"]
    assert outer[0].isnull().all("step").values.tolist() == [False, False, True, True]
    shifted = ds.roll(unit=3, roll_coords=True)
    xr.testing.assert_equal((shifted["mean"] + mean).sortby("unit").load(), (mean + mean).load())


def test_layer_index__equal_names_of_other_units_are_not_equal(run):
    mean = opened(run[0], "units")["mean"].load()
    first, second = mean.isel(unit=[0, 1]), mean.isel(unit=[1, 2])
    assert not first.xindexes["layer"].equals(second.xindexes["layer"])
    assert (first + second).unit.values.tolist() == [1]
    joined = xr.concat([first, mean.sel(layer="a")], "unit")
    assert (joined + mean).unit.values.tolist() == [0, 1, *range(4, 10)]


@pytest.mark.parametrize("chunks", [None, {}, "auto"])
def test_to_zarr__writes_what_was_opened(run, chunks, tmp_path):
    for group in ("units", "activations"):
        ds = opened(run[0], group, chunks=chunks)
        ds.to_zarr(tmp_path / group, zarr_format=3, consolidated=False)
        found = xr.open_zarr(tmp_path / group, zarr_format=3, consolidated=False, chunks=None)
        xr.testing.assert_identical(found.load().drop_attrs(), ds.load().drop_indexes("layer").drop_attrs())


def test_export_zarr__holds_every_cube(run, tmp_path):
    url, truth = run
    export_zarr(url, tmp_path / "out.zarr")
    tree = xr.open_datatree(tmp_path / "out.zarr", engine="zarr", chunks={})
    close(tree["activations/activation"].values, truth)
    for group in ("units", "activations"):
        found, ours = tree[group].to_dataset().load(), opened(url, group).load().drop_indexes("layer")
        xr.testing.assert_equal(found, ours)


def test_maintain__and_doctor_take_every_cube(run):
    url, truth = run
    assert build_tiles(open_store(url)) == 0
    assert maintain(url).tiles == 0
    assert all(check.ok for check in doctor(url))
    close(opened(url).activation.values, truth)


def test_build_tiles__skips_variables_that_are_not_per_sample(tmp_path, monkeypatch):
    monkeypatch.setattr("neurolens.store.tiles.TILE", (2, 8))
    store = open_store(tmp_path / "s", create=True)
    prepare_units(store)
    prepare_activations(store)
    for step in (1, 2):
        write_units(store, step)
        for block, n in enumerate(SIZES):
            write_activations(store, step, block, n)
    assert build_tiles(store) == 0


def test_open_dataset__shows_no_rows_of_other_data(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    prepare_units(store)
    write_units(store, 1)
    prepare_units(store, fingerprint="e" * 64)
    ds = opened(store.url, "units")
    assert not ds.measured.any()
    assert all(ds[name].isnull().all() for name in ds.data_vars)
    prepare_units(store)
    assert opened(store.url, "units").measured.all()


def test_open_dataset__leaves_out_a_part_whose_axis_was_replaced(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    prepare_units(store)
    write_units(store, 1)
    axes = {**AXES, "rank": Axis(np.arange(5))}
    prepare_units(store, axes=axes)
    ds = opened(store.url, "units")
    assert "top_value" not in ds
    assert ds.sizes["rank"] == 5
    assert ds.measured.all()
    np.testing.assert_array_equal(ds.histogram[0], unit_values(1)["histogram"])
    write_units(store, 1, ("top",), axes=axes)
    assert opened(store.url, "units").top_sample.shape == (1, UNITS, 5)


def test_open_dataset__of_an_old_snapshot_has_the_old_units(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    prepare_units(store)
    old = write_units(store, 1)
    prepare_units(store, axes={**AXES, "unit": units({"c": 3})})
    assert opened(store.url, "units").sizes["step"] == 0
    assert opened(store.url, "units").layer.values.tolist() == ["c"] * 3
    ds = opened(store.url, "units", snapshot=old)
    np.testing.assert_array_equal(ds["mean"][0], unit_values(1)["mean"])
    assert ds.attrs["generation"] == 0


def test_open_dataset__without_layers_or_rows(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    prepare_units(store, ("statistics",), axes={"unit": Axis(np.arange(4))})
    ds = opened(store.url, "units", chunks={})
    assert ds["mean"].shape == (0, 4)
    assert ds.measured.shape == (0,)


def test_open_dataset__grown_by_samples_keeps_old_blocks(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    prepare_activations(store)
    for block, n in enumerate(SIZES):
        write_activations(store, 1, block, n)
    layout = prepare_activations(store, 97)
    assert opened(store.url).measured.values.tolist() == [False]
    assert int(opened(store.url).activation.notnull().all("unit").sum()) == 50
    for block, ids in list(enumerate(layout.blocks))[3:]:
        write_activations(store, 1, block, len(ids))
    assert opened(store.url).measured.values.tolist() == [True]
    wanted = np.concatenate([activations(1, block, len(ids)) for block, ids in enumerate(layout.blocks)])
    np.testing.assert_array_equal(opened(store.url).activation[0], wanted.astype("float16"))


def test_preferred_chunks__keep_units_apart_and_are_useful_to_dask(run, monkeypatch):
    ds = opened(run[0], chunks={})
    assert ds.activation.data.chunksize == (4, SAMPLES, UNITS)
    monkeypatch.setattr(cubes, "CHUNK_BYTES", 20 * UNITS * 2 * 2)
    ds = opened(run[0], chunks={})
    assert ds.activation.data.chunksize[0] == 1
    assert ds.activation.data.chunksize[1] in (20, 40)


def test_layer_selection__reads_only_the_chunks_that_hold_it(tmp_path, monkeypatch):
    monkeypatch.setattr("neurolens.store.shapes.CHUNK_BYTES", 20 * 5 * 2)
    store = open_store(tmp_path / "s", create=True)
    prepare_activations(store)
    assert store.root()[0]["activations/activation"].chunks == (1, 20, 5)
    for block, n in enumerate(SIZES):
        write_activations(store, 1, block, n)
    seen = set()

    def spy(self, path, chunk, start, out):
        seen.add(chunk)
        return plain(self, path, chunk, start, out)

    plain = cubes.chunk_files(store.url, store.snapshot_id).__class__.read_into
    monkeypatch.setattr("neurolens.store.chunk_files.ChunkFiles.read_into", spy)
    opened(store.url, chunks={}).sel(layer="b").activation.compute()
    assert seen == {(0, 0, 0), (0, 1, 0), (0, 2, 0)}
    seen.clear()
    opened(store.url).activation.isel(sample=45).load()
    assert seen == {(0, 2, 0), (0, 2, 1)}


_ROWS, _N = len(STEPS), SAMPLES


def _key(size):
    ends = st.none() | st.integers(-size, size + 2)
    positions = st.lists(st.integers(-size, size - 1), max_size=9).map(lambda x: np.asarray(x, int))
    slices = st.builds(slice, ends, ends, st.sampled_from([None, 1, 2, 3, -1, -2]))
    return positions | slices | st.integers(-size, size - 1)


@given(row=_key(_ROWS), sample=_key(_N), unit=_key(UNITS), chunks=st.sampled_from([None, {}, {"step": 1, "unit": 3}]))
@settings(max_examples=150, deadline=None)
def test_isel__equals_numpy_whatever_the_chunks(run, row, sample, unit, chunks):
    url, truth = run
    ds = opened(url, chunks=None if chunks is None else {})
    found = (ds.chunk(chunks) if chunks else ds).activation.isel(step=row, sample=sample, unit=unit)
    close(found.values, truth[row][..., sample, :][..., unit])


@given(row=_key(_ROWS), unit=_key(UNITS), rank=_key(3))
@settings(max_examples=60, deadline=None)
def test_isel__of_integers_with_a_fill_equals_numpy(run, row, unit, rank):
    url, _ = run
    truth = np.stack([unit_values(s, PARTS if s != 4 else ("statistics", "top"))["top_sample"] for s in sorted(STEPS)])
    found = opened(url, "units").top_sample.isel(step=row, unit=unit, rank=rank)
    np.testing.assert_array_equal(found.values, truth.astype("float64")[row][..., unit, :][..., rank])


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_isel__pointwise_equals_numpy(run, data):
    url, truth = run
    point = st.tuples(st.integers(0, _ROWS - 1), st.integers(0, _N - 1), st.integers(0, UNITS - 1))
    index = np.array(data.draw(st.lists(point, min_size=1, max_size=9))).T
    row, sample, unit = (xr.DataArray(i, dims="point") for i in index)
    ds = opened(url, chunks=data.draw(st.sampled_from([None, {}])))
    close(ds.activation.isel(step=row, sample=sample, unit=unit).values, truth[tuple(index)])


def test_opening__units_imports_neither_torch_nor_prefect(run):
    code = (
        "import sys, xarray as xr\n"
        f"ds = xr.open_dataset({str(run[0])!r}, group='units', chunks={{}})\n"
        "ds.sel(layer='a').mean().compute()\n"
        "print([m for m in ('torch', 'prefect', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_write_row__of_activations_killed_at_any_time_loses_nothing(tmp_path, stores_equal):
    def start(url):
        command = [sys.executable, cube_cases.__file__, str(url), "3", "1"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    said = []
    for _ in range(3):
        with start(tmp_path / "killed") as writer:
            said.append(writer.stdout.readline().strip())
            writer.kill()
            said += [line.strip() for line in writer.stdout]
    with start(tmp_path / "killed") as writer:
        said += [line.strip() for line in writer.stdout]
    said = [line for line in said if re.fullmatch(r"\d \d", line)]
    assert len(said) == len(set(said)), "a committed row was computed again"
    cube_cases.run(str(tmp_path / "whole"), [3, 1])
    stores_equal(tmp_path / "killed", tmp_path / "whole")
