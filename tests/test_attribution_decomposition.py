"""A map and those of its clusters."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.attribution import decompose
from neurolens.errors import SchemaError


def maps(samples=4, clusters=3, seed=0, dtype=np.float64):
    values = np.random.default_rng(seed).normal(size=(samples, clusters, 2, 5, 6)) + 0.3
    coords = {"map": [f"k3/{i}" for i in range(clusters)], "sample": np.arange(samples)}
    return xr.DataArray(values.astype(dtype), dims=("sample", "map", "channel", "y", "x"), coords=coords)


def test_decompose__of_a_sample_by_hand():
    two = xr.DataArray([[[3.0, 0.0], [4.0, 0.0]], [[0.0, 5.0], [0.0, -5.0]]], dims=("map", "y", "x"))
    found = decompose(two, whole=two.sum("map") + 0.5, change=xr.DataArray(10.0))
    np.testing.assert_allclose(found["norm"], [5, np.sqrt(50)])
    np.testing.assert_allclose(found["norm_share"], [0.4142135624, 0.5857864376])
    np.testing.assert_allclose(found["cosine"], np.eye(2), atol=1e-15)
    np.testing.assert_allclose(found["conductance"], [7, 0])
    np.testing.assert_allclose(found["completeness_share"], [0.7, 0])
    assert float(found["reconstruction_error"]) == 0.5
    wanted = abs(np.corrcoef(two.to_numpy().reshape(2, 4))[0, 1])
    assert float(found["mean_abs_correlation"]) == pytest.approx(wanted)


def test_decompose__is_that_of_numpy_sample_by_sample():
    given_ = maps(clusters=4)
    found = decompose(given_)
    for at in range(4):
        rows = given_[at].to_numpy().reshape(4, -1)
        norm = np.linalg.norm(rows, axis=1)
        np.testing.assert_allclose(found["norm"][at], norm)
        np.testing.assert_allclose(found["norm_share"][at], norm / norm.sum())
        np.testing.assert_allclose(found["cosine"][at], rows @ rows.T / np.outer(norm, norm))
        pearson = [abs(np.corrcoef(rows[i], rows[j])[0, 1]) for i in range(4) for j in range(i)]
        assert float(found["mean_abs_correlation"][at]) == pytest.approx(np.mean(pearson))
    assert found["cosine"].dims == ("sample", "map", "other")
    assert found["other"].to_numpy().tolist() == given_["map"].to_numpy().tolist()


@pytest.mark.parametrize("chunks", [{"sample": 1}, {"map": 1, "y": 2}, {"sample": 3, "map": 2, "channel": 1, "x": 4}])
def test_decompose__is_lazy_and_blind_to_chunks(chunks):
    given_ = maps()
    options = {"whole": given_.sum("map"), "change": given_.sum(["map", "channel", "y", "x"])}
    lazy = decompose(given_.chunk(chunks), **options)
    assert all(isinstance(array.data, da.Array) for array in lazy.data_vars.values())
    xr.testing.assert_allclose(lazy.compute(), decompose(given_, **options))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(3)), st.floats(1e-6, 1e6))
def test_decompose__follows_clusters_and_not_scale(seed, order, factor):
    given_ = maps(2, seed=seed)
    change = given_.sum(["map", "channel", "y", "x"])
    found = decompose(given_, whole=given_.sum("map"), change=change)
    np.testing.assert_allclose(found["norm_share"].sum("map"), 1)
    np.testing.assert_allclose(found["completeness_share"].sum("map"), 1)
    np.testing.assert_allclose(found["reconstruction_error"], 0, atol=1e-12)
    assert (abs(found["cosine"]) <= 1).all()
    order = list(order)
    turned = decompose(given_.isel(map=order), whole=given_.sum("map"), change=change)
    xr.testing.assert_allclose(turned, found.isel(map=order, other=order), atol=1e-12)
    scaled = decompose(given_ * factor, change=change * factor)
    same = ["norm_share", "cosine", "mean_abs_correlation", "completeness_share"]
    xr.testing.assert_allclose(scaled[same], found[same])


def test_decompose__says_nothing_of_what_is_not_defined():
    given_ = maps(3)
    given_[0] = 0
    given_[1, :2] = np.float64(0.1) * 3  # constant: no correlation
    given_[2, 0, 0, 0, 0] = np.nan
    found = decompose(given_, change=xr.DataArray([0.0, 1.0, 1.0], dims="sample"))
    assert np.isnan(found["norm_share"][0]).all()
    assert np.isnan(found["cosine"][0]).all()
    assert np.isnan(found["completeness_share"][0]).all()
    assert (found["norm"][0] == 0).all()
    assert np.isnan(found["mean_abs_correlation"]).all()
    assert np.isnan(found["norm"][2, 0])
    assert np.isfinite(found["norm"][2, 1])
    assert np.isnan(found["norm_share"][2]).all()
    assert np.isnan(found["conductance"][2, 0])
    np.testing.assert_allclose(found["cosine"][1, 0, 1], 1)


def test_decompose__sums_float32_in_float64():
    given_ = maps(dtype=np.float32)
    found, exact = decompose(given_, change=given_[:, 0, 0, 0, 0]), decompose(given_.astype(np.float64))
    assert all(array.dtype == np.float64 for array in found.data_vars.values() if array.name != "completeness_share")
    xr.testing.assert_allclose(found[list(exact)], exact, rtol=1e-14)


def test_decompose__takes_patch_tables_and_one_cluster():
    table = maps(clusters=1).stack(patch=("channel", "y", "x")).reset_index("patch", drop=True)
    found = decompose(table, over=["patch"])
    assert found["norm"].dims == ("sample", "map")
    assert np.isnan(found["mean_abs_correlation"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": "cluster"}, "clusters along 'cluster' were needed"),
        ({"over": ["patch"]}, r"\['patch'\]"),
        ({"over": []}, "at least one"),
        ({"whole": maps()}, "whole has dims"),
        ({"change": maps().isel(map=0)}, "change has dims"),
    ],
)
def test_decompose__errors_name_the_mend(options, message):
    with pytest.raises(SchemaError, match=message):
        decompose(maps(), **options)
