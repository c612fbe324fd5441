"""Firing, its bounds, quantiles, utility and weights: golden numbers, slow versions, scipy, laziness."""

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dormancy_cases import H, raising, statistics, with_units
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from neurolens.errors import MissingMeasurementError, SchemaError
from neurolens.units import (
    alive,
    contribution_utility,
    firing_bound,
    firing_density,
    quantile,
    weight_magnitude,
)
from neurolens.units.histogram import bin_edges
from neurolens.units.quantiles import interpolate

Q = np.array([[0, 0.5, 1e-6], [0, 0, 0], [0, 0.2, 0], [0, 0, 0]])


def test_firing_density__matches_the_activations_worked_by_hand():
    cube_ = with_units(xr.Dataset({"activation": (("step", "sample", "unit"), Q[None])}))
    assert firing_density(cube_, epsilon=1e-5).data.tolist() == [[0, 0.5, 0]]
    assert float(alive(cube_, epsilon=1e-5).mean()) == pytest.approx(1 / 3)
    units = statistics(Q)
    assert float(alive(units, epsilon=1e-5).mean()) == pytest.approx(1 / 3)
    assert firing_density(units).data.tolist() == firing_density(cube_).data.tolist() == [[0, 0.5, 0.25]]
    np.testing.assert_array_equal(alive(-units.assign(min=units["max"], max=units["min"])), alive(units))


def test_firing_density__of_the_cube_is_lazy_and_blind_to_chunks():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 20, 7)).astype(np.float16) * (rng.random((3, 20, 7)) < 0.5)
    ds = with_units(xr.Dataset({"activation": (("epoch", "sample", "unit"), values)}))
    for reduction in (firing_density, alive):
        lazy = reduction(ds.chunk({"sample": 3, "unit": 4}), epsilon=0.5)
        assert isinstance(lazy.data, da.Array)
        xr.testing.assert_allclose(lazy.compute(), reduction(ds, epsilon=0.5))
    np.testing.assert_allclose(firing_density(ds, epsilon=0.5), (abs(values) > 0.5).mean(axis=1))


def test_firing_density__is_unknown_where_activations_are_not_finite():
    a = Q.copy()
    a[1, 1] = np.nan
    assert firing_density(statistics(a)).isnull().data.tolist() == [[False, True, False]]
    cube_ = with_units(xr.Dataset({"activation": (("step", "sample", "unit"), a[None])}))
    assert firing_density(cube_).isnull().data.tolist() == [[False, True, False]]


def test_firing_density__needs_the_activations_for_an_epsilon():
    with pytest.raises(SchemaError, match="give the activations cube, or epsilon=0"):
        firing_density(statistics(Q), epsilon=1e-5)
    with pytest.raises(SchemaError, match="epsilon=-1"):
        alive(statistics(Q), epsilon=-1)


@pytest.mark.parametrize("method", ["wilson", "clopper_pearson"])
def test_firing_bound__is_that_of_the_binomial(method):
    a = np.zeros((300, 3))
    a[:7, 1], a[:, 2] = 1, 1
    found = firing_bound(statistics(a), method=method)
    scipys = {"wilson": "wilson", "clopper_pearson": "exact"}[method]
    expected = [binomtest(k, 300, alternative="less").proportion_ci(0.95, scipys).high for k in (0, 7, 300)]
    np.testing.assert_allclose(found[0], expected)
    assert float(found[0, 0]) == pytest.approx(3 / 300, rel=0.15)


def test_firing_bound__takes_weights_whose_sums_are_rounded():
    ds = statistics(np.ones((10, 2)))
    ds["n_pos"][:] = np.nextafter(10, 11)
    assert (firing_bound(ds) == 1).all()
    assert (firing_bound(ds, observations=3) == 1).all()


def test_firing_bound__counts_independent_observations_if_told():
    a = np.zeros((300, 2))
    a[:30, 1] = 1
    few = firing_bound(statistics(a), observations=20)
    np.testing.assert_allclose(few, firing_bound(statistics(a[::15])))
    assert (few > firing_bound(statistics(a))).all()
    nothing = statistics(a)
    nothing["n"][:], nothing["n_pos"][:] = 0, 0
    assert (firing_bound(nothing) == 1).all()
    with pytest.raises(SchemaError, match="observations=0"):
        firing_bound(statistics(a), observations=0)


def test_contribution_utility__matches_the_weights_worked_by_hand():
    weights = np.array([[1, -2, 0], [3, 0, 0]], float)
    ds = statistics([[1, 0, 5], [1, 2, 5]]).assign(out_weight=(("epoch", "unit"), np.abs(weights).mean(axis=0)[None]))
    assert contribution_utility(ds).data.tolist() == [[2, 1, 0]]
    unread = ds.assign(out_weight=ds["out_weight"].where(ds["unit"] != 1))
    np.testing.assert_array_equal(contribution_utility(unread), [[2, np.nan, 0]])


def magnitudes(weights, steps=2):
    """A units cube of the magnitudes of named weights, twice as large at every step."""
    found = {
        "parameter_mean_abs": [[2**s * np.abs(w).mean() for w in weights.values()] for s in range(steps)],
        "parameter_norm": [[2**s * np.linalg.norm(w) for w in weights.values()] for s in range(steps)],
    }
    data = {name: (("step", "parameter"), values) for name, values in found.items()}
    sizes = ("parameter", [w.size for w in weights.values()])
    return xr.Dataset(data, coords={"step": range(steps), "parameter": list(weights), "size": sizes})


def test_weight_magnitude__is_that_of_all_the_weights_of_a_module():
    rng = np.random.default_rng(0)
    shapes = {"b.in_proj": (3, 4), "a.weight": (5, 2, 3), "b.out_proj": (2, 2)}
    weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    ds = magnitudes(weights)
    found = weight_magnitude(ds)
    together = {"b": np.append(weights["b.in_proj"], weights["b.out_proj"]), "a": weights["a.weight"].ravel()}
    assert found.module.data.tolist() == ["b", "a"]
    assert found["n_weights"].data.tolist() == [16, 30]
    np.testing.assert_allclose(found["weight_mean_abs"][1], [2 * np.abs(w).mean() for w in together.values()])
    np.testing.assert_allclose(found["weight_norm"][0], [np.linalg.norm(w) for w in together.values()])
    everything = np.concatenate(list(together.values()))
    np.testing.assert_allclose(found["total_weight_mean_abs"], np.abs(everything).mean() * np.array([1, 2]))
    np.testing.assert_allclose(found["total_weight_norm"], np.linalg.norm(everything) * np.array([1, 2]))
    with dask.config.set(scheduler=raising):
        lazy = weight_magnitude(ds.chunk({"step": 1, "parameter": 2}))
    xr.testing.assert_allclose(lazy.compute(), found)
    with pytest.raises(SchemaError, match="`size` of the parameters are needed"):
        weight_magnitude(ds.drop_vars("size"))
    with pytest.raises(MissingMeasurementError, match="weights = true"):
        weight_magnitude(statistics(H))


def test_interpolate__is_linear_inside_a_bin():
    edges, counts = np.arange(5.0), np.array([5, 3, 0, 2])
    found = interpolate(counts, edges[:-1], edges[1:], np.array([0.25, 0.5, 0.6, 0.9, 0, 1]))
    np.testing.assert_allclose(found, [0.5, 1, 4 / 3, 3.5, 0, 4])
    assert np.isnan(interpolate(np.zeros(4), edges[:-1], edges[1:], np.array([0.5]))).all()


def histogram(values):
    """Count by sign, exponent and two bits of mantissa of the float16, and by nothing else."""
    bits = np.asarray(values, np.float16).view(np.uint16) >> 8
    counts = np.bincount(bits, minlength=256).astype(float)
    return with_units(xr.Dataset({"histogram": (("epoch", "unit", "bin"), counts[None, None])}))


@given(seed=st.integers(0, 999), scale=st.sampled_from([1e-3, 1, 100]))
@settings(max_examples=25, deadline=None)
def test_quantile__is_right_to_the_width_of_a_bin(seed, scale):
    values = np.random.default_rng(seed).normal(size=400) * scale
    shares = np.linspace(0.05, 0.95, 10)
    found = quantile(histogram(values), shares).data[:, 0, 0]
    exact = np.quantile(values.astype(np.float16).astype(float), shares, method="inverted_cdf")
    assert (np.diff(found) >= 0).all()
    assert (np.abs(found - exact) <= 0.25 * np.abs(exact) + 2**-16).all()


def test_quantile__knows_signs_infinities_and_nan():
    median = [float(quantile(histogram(v), 0.5)[0, 0]) for v in ([-2.0] * 9, [2.0] * 9, [-3.0, 1.0, 70.0], [0.0] * 5)]
    assert -2.5 <= median[0] <= -2
    assert 2 <= median[1] <= 2.5
    assert 1 <= median[2] <= 1.25
    assert abs(median[3]) <= 2**-16
    with np.errstate(over="ignore"):
        tail = quantile(histogram(np.array([1.0, 65504.0, 1e6, -1e6])), [0.1, 0.75, 0.9])
    assert float(tail[0, 0, 0]) == -np.inf
    assert 57344 <= float(tail[1, 0, 0]) <= 65520
    assert float(tail[2, 0, 0]) == np.inf
    assert quantile(histogram([1.0, np.nan]), 0.5).isnull().all()
    assert quantile(histogram([]), 0.5).isnull().all()
    assert quantile(histogram([1.0]), 0.5).dims == ("epoch", "unit")
    low, high = bin_edges()
    assert low[histogram([1.0])["histogram"].data.argmax()] == 1
    assert high[histogram([-1.0])["histogram"].data.argmax()] == -1


@pytest.mark.parametrize("q", [-0.1, 1.5, [], [[0.5]], np.nan])
def test_quantile__refuses_what_is_no_share(q):
    with pytest.raises(SchemaError, match="is no share"):
        quantile(histogram([1.0]), q)
    with pytest.raises(SchemaError, match="has 4 bins"):
        quantile(histogram([1.0]).isel(bin=slice(4)), 0.5)
