"""Reductions of attributions as a run's store opens them: the numbers of the maps, and a lazy read."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from attribution_study import TEXT, run_both, write_study

import neurolens
from neurolens.attribution import merge_classes
from neurolens.errors import MissingMeasurementError
from neurolens.study import load_study

LAZY = ("map_scores", "accuracy", "filtered_summary", "control", "decompose")


def opened(path):
    return neurolens.open_run(load_study(path).store.url)["attributions"].to_dataset()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    text = TEXT + "reduced = true\nfull = 6\n"
    path = write_study(tmp_path_factory.mktemp("run") / "study", checkpoints=2, samples=24, text=text)
    run_both(path)
    return path


@pytest.mark.parametrize("name", LAZY)
def test_reductions__of_a_store_are_lazy_and_those_of_its_numbers(study, name):
    ds = opened(study)
    lazy = getattr(ds.lens, name)()
    assert all(isinstance(array.data, da.Array) for array in lazy.data_vars.values())
    xr.testing.assert_allclose(lazy.compute(), getattr(ds.compute().lens, name)())
    assert lazy.attrs["snapshot"] == ds.attrs["snapshot"]


def test_map_scores__of_a_store_are_those_of_its_whole_maps(study):
    ds = opened(study).compute()
    table = abs(ds["full_map"].astype(float)).sum("channel", skipna=False)
    cells = table.coarsen(y=2, x=2).sum().to_numpy().reshape(*table.shape[:4], -1)
    cells = -np.sort(-cells, axis=-1)
    reached = np.cumsum(cells, axis=-1) >= 0.9 * cells.sum(axis=-1, keepdims=True)
    wanted = 1 - (reached.argmax(axis=-1) + 1) / cells.shape[-1]
    found = ds.lens.map_scores(names=["sparsity"])["sparsity"].to_numpy()
    known = np.isfinite(found)
    assert known.any()
    np.testing.assert_allclose(found[known], wanted[known], atol=1.1 / cells.shape[-1])  # one cell by rounding, at most
    assert np.isclose(found[known], wanted[known]).mean() > 0.98


def test_decompose__of_a_store_adds_up_and_is_that_of_its_whole_maps(study):
    ds = opened(study).compute()
    found = ds.lens.decompose()
    own = np.flatnonzero((found["cut"] == "bn3") & (found["clustering"] == "k3"))
    names = found["map"].to_numpy()[own]
    maps = ds["full_map"].sel({"map": names}).isel(attribution=0)
    wanted = neurolens.attribution.decompose(maps, over=["channel", "y", "x"])
    one = found.isel(map=own, attribution=0)
    order = one["norm"].dims
    np.testing.assert_allclose(one["norm_share"], wanted["norm_share"].transpose(*order), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one["mean_abs_correlation"].isel(map=0), wanted["mean_abs_correlation"], atol=1e-4)
    share = ds["total"].sel({"map": "whole"}).isel(attribution=0) / (ds["output"] - ds["baseline_output"])
    np.testing.assert_allclose(one["completeness_share"].sum("map"), share, rtol=1e-3)


def test_comparisons__of_a_store_are_over_its_checkpoints_and_sets(study):
    ds = opened(study)
    compared = ds.lens.compare(bootstrap=20, flips=20)
    assert compared["p_max_t"].dims == ("epoch", "map", "attribution")
    assert set(compared["kind"].to_numpy()) == {"without"}
    assert ds.lens.control()["map"].to_numpy().tolist() == ["bn3/without k2/0"]
    numbers = sorted(set(ds["label"].to_numpy().tolist()))
    halves = (ds.lens.per_class(only=some) for some in (numbers[::2], numbers[1::2]))
    xr.testing.assert_allclose(merge_classes(*halves), ds.lens.per_class())
    assert ds.lens.held_out(bootstrap=0, choose="smaller")["map"].dims == ("epoch",)


def test_reductions__of_a_store_without_faithfulness_say_how_it_is_measured(tmp_path):
    path = write_study(tmp_path / "run", checkpoints=1, samples=16, text=TEXT + "faithfulness = false\n")
    run_both(path)
    ds = opened(path)
    for name in ("filtered_summary", "compare", "control", "per_class", "map_scores"):
        with pytest.raises(MissingMeasurementError, match="faithfulness = true"):
            getattr(ds.lens, name)()
    assert ds.lens.filtered_summary(scores=["sparsity"])["sparsity_mean"].notnull().any()
    found = ds.lens.decompose()
    assert found["norm_share"].notnull().any()
    assert found["mean_abs_correlation"].notnull().any()  # the size of a map is known where no map is kept
