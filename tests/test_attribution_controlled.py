"""A cluster against random sets of units."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.attribution import cluster_masks, control, controls, split_controls
from neurolens.errors import SchemaError


def table(draws=20, seed=0):
    """Return scores over (sample, map) of two clusters, their controls and the whole, by their names."""
    masks = cluster_masks(np.arange(12) % 2)
    names = ["whole", *masks["map"].to_numpy(), *controls(masks, draws=draws)["map"].to_numpy()]
    values = np.random.default_rng(seed).normal(size=(6, len(names)))
    coords = {"map": names, "cut": ("map", ["", *["block"] * (len(names) - 1)])}
    return xr.DataArray(values, dims=("sample", "map"), coords=coords)


def test_control__counts_the_observed_among_the_draws():
    observed = xr.DataArray([3.0, 2.5, 0.0], dims="map")
    draws = xr.DataArray([[1.0, 2.0, 2.5, 2.5] * 5] * 3, dims=("map", "draw"))
    found = control(observed, draws)
    np.testing.assert_allclose(found["p"], [1 / 21, 11 / 21, 1])  # none as large, ties count, all
    np.testing.assert_allclose(control(observed, draws, alternative="smaller")["p"], [1, 1, 1 / 21])
    np.testing.assert_allclose(control(observed, draws, alternative="two-sided")["p"], [2 / 21, 1, 2 / 21])
    np.testing.assert_allclose(found["draw_mean"], 2)
    np.testing.assert_allclose(found["draw_std"], np.std([1, 2, 2.5, 2.5] * 5, ddof=1))
    np.testing.assert_allclose(found["excess"], [1, 0.5, -2])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30))
def test_control__is_the_count_of_the_definition(seed, n):
    generator = np.random.default_rng(seed)
    draws, observed = generator.integers(0, 6, n).astype(float), float(generator.integers(0, 6))
    draws[generator.random(n) < 0.2] = np.nan
    found = control(xr.DataArray(observed), xr.DataArray(draws, dims="draw"))
    known = [x for x in draws if not np.isnan(x)]
    assert found["draws"] == len(known)
    if known:
        assert float(found["p"]) == pytest.approx((1 + sum(x >= observed for x in known)) / (len(known) + 1))
    else:
        assert np.isnan(found["p"])
        assert np.isnan(found["draw_mean"])


def test_control__is_right_as_often_as_it_says():
    generator = np.random.default_rng(0)
    p = control(
        xr.DataArray(generator.normal(size=4000), dims="map"),
        xr.DataArray(generator.normal(size=(4000, 19)), dims=("map", "draw")),
    )["p"]
    assert abs(float((p <= 0.05).mean()) - 0.05) < 0.015
    assert abs(float((p <= 0.5).mean()) - 0.5) < 0.03


def test_control__knows_nothing_of_what_was_not_observed():
    found = control(xr.DataArray([np.nan, 1.0], dims="map"), xr.DataArray([[1.0], [1.0]], dims=("map", "draw")))
    assert np.isnan(found["p"][0])
    assert found["p"][1] == 1
    assert np.isnan(found["draw_std"]).all()


@pytest.mark.parametrize("chunks", [{"sample": 1}, {"sample": 4, "map": 7}])
def test_control__is_lazy_and_blind_to_chunks(chunks):
    scores = table()
    lazy = control(*split_controls(scores.chunk(chunks)))
    assert all(isinstance(array.data, da.Array) for array in lazy.data_vars.values())
    xr.testing.assert_allclose(lazy.compute(), control(*split_controls(scores)))


def test_split_controls__finds_them_by_name():
    scores = table(draws=12)
    observed, draws = split_controls(scores.isel(map=np.random.default_rng(1).permutation(scores.sizes["map"])))
    assert draws.dims == ("sample", "map", "draw")
    assert draws.shape == (6, 2, 12)
    assert sorted(observed["map"].to_numpy()) == ["k2/0", "k2/1"]
    for name, number in (("k2/0", 0), ("k2/1", 2), ("k2/1", 11)):
        one = draws.sel(map=name).isel(draw=number)
        np.testing.assert_array_equal(one, scores.sel(map=f"{name} control {number}"))
    np.testing.assert_array_equal(observed.sel(map="k2/1"), scores.sel(map="k2/1"))


def test_split_controls__is_nan_where_a_map_has_fewer():
    scores = table(draws=3)
    _, draws = split_controls(scores.isel(map=scores["map"] != "k2/0 control 1"))
    assert draws.notnull().sum("draw").isel(sample=0).to_numpy().tolist() == [2, 3]
    found = control(*(part.mean("sample") for part in split_controls(scores)))
    assert found["draws"].to_numpy().tolist() == [3, 3]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda: table().isel(map=slice(0, 3)), "found no control among 3 maps"),
        (lambda: table().isel(map=slice(2, None)), "controls of 'k2/0', but no such map"),
        (lambda: table().drop_vars("map"), "names along 'map' were needed"),
    ],
)
def test_split_controls__errors_name_the_mend(scores, message):
    with pytest.raises(SchemaError, match=message):
        split_controls(scores())


@pytest.mark.parametrize(
    ("observed", "draws", "options", "message"),
    [
        ([1.0], [[1.0]], {"alternative": "bigger"}, "alternative='bigger' is unknown"),
        ([1.0], [[]], {}, "one or more along 'draw' was needed"),
        ([1.0], [[1.0]], {"dim": "map"}, "has a dim 'map' too"),
    ],
)
def test_control__errors_name_the_mend(observed, draws, options, message):
    with pytest.raises(SchemaError, match=message):
        control(xr.DataArray(observed, dims="map"), xr.DataArray(draws, dims=("map", "draw")), **options)
