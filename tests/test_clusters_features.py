"""Features of units: golden numbers, slow versions, both cubes, laziness, what is refused."""

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from cluster_cases import blobs, features, z
from dormancy_cases import raising, statistics, with_units
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.clusters import standardised, unit_features
from neurolens.errors import MissingMeasurementError, SchemaError
from neurolens.units.histogram import bin_edges

G6 = np.array([[0.05, 0.2], [0.1, 0.4], [0.15, -0.2], [0.3, 0]])
LAYERS = ["a"] * 3 + ["b"] * 4


def activations(seed=0, epochs=3, samples=20, units=7, dtype=np.float32):
    values = np.random.default_rng(seed).normal(size=(epochs, samples, units)).astype(dtype)
    ds = xr.Dataset({"activation": (("epoch", "sample", "unit"), values)}, coords={"epoch": np.arange(epochs)})
    return with_units(ds, LAYERS[:units])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_unit_features__match_the_golden_numbers_in_every_precision(dtype):
    found = unit_features(G6.astype(dtype))
    assert found["rate"].data.tolist() == [0.5, 0.5]
    close = 1e-12 if dtype is np.float64 else 1e-2 if dtype is np.float16 else 1e-6
    np.testing.assert_allclose(found["mean"], [0.15, 0.10], rtol=close)
    np.testing.assert_allclose(found["variance"], [0.00875, 0.05], rtol=close)
    assert found["rate"].attrs["threshold"] == 0.1


def test_standardised__matches_the_golden_numbers():
    found = standardised(features([[0, 0, 0.1], [1, 0.5, 0.3], [0.5, 1, 0.2]]))
    r = 1.2247448714
    np.testing.assert_allclose(found, [[-r, -r, -r], [r, 0, r], [0, r, 0]], atol=1e-10)
    assert found["feature"].data.tolist() == ["rate", "mean", "variance"]


def test_unit_features__match_a_slow_version():
    data = activations()
    found = unit_features(data, threshold=-0.3)
    for epoch in range(3):
        for unit in range(7):
            seen = [float(v) for v in data["activation"].data[epoch, :, unit]]
            mean = sum(seen) / len(seen)
            at = found.isel(epoch=epoch, unit=unit)
            assert float(at["rate"]) == sum(v > -0.3 for v in seen) / len(seen)
            assert float(at["mean"]) == pytest.approx(mean)
            assert float(at["variance"]) == pytest.approx(sum((v - mean) ** 2 for v in seen) / len(seen))


@pytest.mark.parametrize("chunks", [{"epoch": 1}, {"sample": 3}, {"unit": 2}, {"epoch": 2, "sample": 7, "unit": 5}])
@pytest.mark.parametrize("options", [{}, {"quantile": 0.8}])
def test_unit_features__are_lazy_and_blind_to_chunks(chunks, options):
    with dask.config.set(scheduler=raising):
        lazy = unit_features(activations().chunk(chunks), **options)
    assert all(isinstance(array.data, da.Array) for array in lazy.data_vars.values())
    xr.testing.assert_allclose(lazy.compute(), unit_features(activations(), **options))


def test_unit_features__of_arrays_are_those_of_the_cube():
    data = activations()
    xr.testing.assert_equal(unit_features(data["activation"]), unit_features(data))
    bare = unit_features(data["activation"].data, dims=("epoch", "sample", "unit"))
    np.testing.assert_array_equal(bare["variance"], unit_features(data)["variance"])
    one = unit_features(data.isel(epoch=1))
    np.testing.assert_array_equal(one["rate"], unit_features(data)["rate"][1])
    assert unit_features([[0, 1], [2, 0]])["rate"].data.tolist() == [0.5, 0.5]


def test_unit_features__above_a_quantile_count_against_the_layer():
    data = activations()
    found = unit_features(data, quantile=0.75)["rate"]
    for layer in ("a", "b"):
        values = data["activation"].data[1][:, np.array(LAYERS) == layer].astype(float)
        expected = (values > np.quantile(values, 0.75)).mean(axis=0)
        np.testing.assert_array_equal(found[1, np.array(LAYERS) == layer], expected)
        assert expected.mean() == pytest.approx(0.25)
    assert found.attrs["quantile"] == 0.75
    assert "threshold" not in found.attrs


def test_unit_features__are_unknown_where_an_observation_is():
    data = activations()
    data["activation"][0, 2, 4] = np.nan
    for options in ({}, {"quantile": 0.5}):
        found = unit_features(data, **options)
        for array in found.data_vars.values():
            assert np.argwhere(array.isnull().data).tolist() == [[0, 4]]


def test_unit_features__of_statistics_are_those_of_their_observations():
    a = np.random.default_rng(0).normal(size=(2, 30, 7))
    data = xr.Dataset({"activation": (("epoch", "sample", "unit"), a)})
    of_units = unit_features(statistics(a), threshold=0)
    of_samples = unit_features(data, threshold=0)
    for name in ("rate", "mean", "variance"):
        np.testing.assert_allclose(of_units[name], of_samples[name])
    never = statistics(a)
    never["n"][0, 3] = never["n_pos"][0, 3] = 0
    assert np.isnan(unit_features(never, threshold=0)["rate"][0, 3])


def histogram(values):
    bits = np.asarray(values, np.float16).view(np.uint16) >> 8
    counts = np.stack([np.bincount(bits[:, u], minlength=256) for u in range(bits.shape[1])])
    return ("epoch", "unit", "bin"), counts[None].astype(float)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), threshold=st.sampled_from([0.1, -0.2, 1e-6, 2.0, 1e5, -1e5]))
def test_unit_features__of_histograms_are_right_but_for_the_bin_of_the_threshold(seed, threshold):
    a = np.random.default_rng(seed).normal(size=(200, 3)).astype(np.float16).astype(float)
    ds = statistics(a).assign(histogram=histogram(a))
    found = unit_features(ds, threshold=threshold)["rate"][0]
    low, high = bin_edges()
    at = (np.nan_to_num(low, nan=np.inf) <= threshold) & (np.nan_to_num(high, nan=-np.inf) >= threshold)
    own = ds["histogram"].data[0][:, at].sum(axis=1) / 200
    assert (abs(found - (a > threshold).mean(axis=0)) <= own + 1e-12).all()


def test_unit_features__of_histograms_take_no_part_in_weights():
    a = np.random.default_rng(0).normal(size=(50, 3))
    ds = statistics(a).assign(histogram=histogram(a))
    weighted = ds.assign(n=ds["n"] / 7, n_pos=ds["n_pos"] / 7, m2=ds["m2"] / 7)
    xr.testing.assert_allclose(unit_features(weighted), unit_features(ds))
    assert unit_features(ds.chunk({"unit": 1}))["rate"].chunks
    xr.testing.assert_allclose(unit_features(ds.chunk({"bin": 50})).compute(), unit_features(ds))


def test_unit_features__take_a_threshold_at_the_edge_of_a_bin_exactly():
    a = np.array([[0.05], [0.1171875], [0.3], [0.11], [-4.0]])
    found = unit_features(statistics(a).assign(histogram=histogram(a)), threshold=0.109375)
    assert found["rate"].data.tolist() == [[0.6]]


def test_unit_features__say_what_statistics_of_units_cannot_tell():
    units = statistics(G6)
    with pytest.raises(MissingMeasurementError, match=r"above 0\.1 is not in .* threshold=0, or .* histogram = true"):
        unit_features(units)
    with pytest.raises(SchemaError, match=r"quantile=0\.9 needs the activations"):
        unit_features(units, quantile=0.9)
    with pytest.raises(SchemaError, match="all 256 bins"):
        unit_features(units.assign(histogram=histogram(G6)).isel(bin=slice(9)))
    with pytest.raises(MissingMeasurementError, match="'mean' was not measured"):
        unit_features(units[["n", "n_pos"]])
    gone = units.assign_coords(measured=("epoch", [False]))
    with pytest.raises(MissingMeasurementError, match="no statistics of units at epoch"):
        unit_features(gone, threshold=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.1, "quantile": 0.5}, "give one of them"),
        ({"quantile": 1}, "quantile=1 is no share"),
        ({"threshold": np.inf}, "threshold=inf is no activation"),
        ({"dims": ("unit",)}, "name each of its dims"),
        ({"dims": ("sample", "x")}, "there is no dim 'unit'"),
    ],
)
def test_unit_features__refuse_what_makes_no_sense(options, message):
    with pytest.raises(SchemaError, match=message):
        unit_features(G6, **options)


def test_unit_features__want_positions_averaged():
    maps = np.zeros((4, 3, 2, 2))
    with pytest.raises(SchemaError, match=r"average positions first: maps\.mean"):
        unit_features(maps, dims=("sample", "unit", "y", "x"))
    with pytest.raises(SchemaError, match=r"average positions first: maps\.mean"):
        unit_features(maps)
    assert unit_features(maps.mean(axis=(2, 3))).sizes == {"unit": 3}


def test_unit_features__keep_where_numbers_come_from():
    data = activations().assign_attrs(run="r", snapshot="s")
    assert unit_features(data).attrs == {"run": "r", "snapshot": "s"}
    assert standardised(unit_features(data)).attrs["run"] == "r"


def test_standardised__matches_the_reference_layer_by_layer():
    rows = np.stack([blobs(seed=seed)[0] for seed in (0, 1)])
    names = np.where(np.arange(26) % 3 == 0, "a", "b")
    found = standardised(features(rows, names))
    for epoch in (0, 1):
        for layer in ("a", "b"):
            np.testing.assert_array_equal(found[epoch, names == layer], z(rows[epoch, names == layer]))


def test_standardised__gives_constant_features_no_part():
    rows, _ = blobs()
    rows[:, 1] = 0.1
    rows[3, 1] = np.nextafter(0.1, 1)
    found = standardised(features(rows))
    assert (found[:, 1] == 0).all()
    np.testing.assert_array_equal(found[:, 0], z(rows)[:, 0])
    assert (standardised(features(np.zeros((4, 3)))) == 0).all()


@pytest.mark.parametrize("chunks", [{"epoch": 1}, {"unit": 4}, {"epoch": 2, "unit": 9}])
def test_standardised__is_lazy_and_blind_to_chunks(chunks):
    ds = features(np.stack([blobs(seed=seed)[0] for seed in range(3)]), ["a"] * 10 + ["b"] * 16)
    with dask.config.set(scheduler=raising):
        lazy = standardised(ds.chunk(chunks))
    assert isinstance(lazy.data, da.Array)
    xr.testing.assert_equal(lazy.compute(), standardised(ds))


def test_standardised__is_unknown_for_a_layer_with_an_unknown_unit():
    rows, _ = blobs()
    rows[2, 0] = np.nan
    found = standardised(features(rows, ["a"] * 10 + ["b"] * 16))
    assert found.isnull().any("feature").sum() == 10
    assert found[:10, 0].isnull().all()


def test_standardised__wants_features():
    with pytest.raises(SchemaError, match=r"make them: unit_features\(units\)"):
        standardised(statistics(G6))
    with pytest.raises(SchemaError, match="found variables top"):
        standardised(features(blobs()[0]).assign(top=(("unit", "rank", "x"), np.zeros((26, 2, 1)))))
    with pytest.raises(SchemaError, match="found a ndarray"):
        standardised(blobs()[0])
    with pytest.raises(SchemaError, match="at least one unit"):
        standardised(features(blobs()[0]).isel(unit=[]))
    with pytest.raises(SchemaError, match="features of type"):
        standardised(xr.DataArray([["x", "y"]], dims=("unit", "feature")))
