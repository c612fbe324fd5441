"""Layers in natural order, reductions over the units of each, and how many are dormant."""

import numpy as np
import pytest
import xarray as xr
from dormancy_cases import drawn, statistics, with_units
from hypothesis import given, settings
from hypothesis import strategies as st

import neurolens
from neurolens import accessor
from neurolens.units import dormancy_summary
from neurolens.units.layers_of import layers_of, per_layer


def test_layers_of__are_in_natural_order():
    names = ["layers.2", "layers.10", "layers.2", "layers.10", "a"]
    ds = statistics(np.ones((2, 5)), names)
    assert layers_of(ds).names == ("layers.2", "layers.10", "a")
    placed = ds.assign_coords(layer_index=("unit", [2, 10, 2, 10, 0]))
    assert layers_of(placed).names == ("a", "layers.2", "layers.10")
    assert layers_of(placed).codes.tolist() == [1, 2, 1, 2, 0]
    assert layers_of(placed.isel(unit=[3, 0])).names == ("layers.2", "layers.10")
    assert dormancy_summary(placed).layer.data.tolist() == ["a", "layers.2", "layers.10"]


@given(codes=st.lists(st.integers(0, 20), min_size=1, max_size=40), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_per_layer__matches_a_loop(codes, seed):
    rng = np.random.default_rng(seed)
    array = with_units(
        xr.Dataset({"x": (("epoch", "unit"), rng.normal(size=(3, len(codes))))}), [f"l{c}" for c in codes]
    )
    array = array["x"]
    for rule, function in (("total", np.sum), ("mean", np.mean), ("median", np.median)):
        found = per_layer(array, rule)
        assert found.layer.data.tolist() == list(dict.fromkeys(f"l{c}" for c in codes))
        for layer in found.layer.data:
            expected = function(array.data[:, array.layer.data == str(layer)], axis=1)
            np.testing.assert_allclose(found.sel(layer=layer), expected, atol=1e-12)
    assert per_layer(array > 0, "total").dtype == np.int64
    assert per_layer(array > 0, "total").sum() == (array > 0).sum()


def test_dormancy_summary__averages_over_layers_and_over_units():
    mask = np.zeros((2, 10), bool)
    mask[0, :2], mask[1] = True, True
    layers = ["narrow"] * 2 + ["wide"] * 8
    ds = with_units(xr.Dataset({"mask": (("step", "unit"), mask)}, coords={"step": [0, 512]}), layers)
    found = dormancy_summary(ds["mask"])
    assert found["n_units"].data.tolist() == [2, 8]
    assert found["n_dormant"].data.tolist() == [[2, 0], [2, 8]]
    assert found["fraction"].data.tolist() == [[1, 0], [1, 1]]
    assert found["mean_fraction"].data.tolist() == [0.5, 1]
    assert found["pooled_fraction"].data.tolist() == [0.2, 1]
    assert found["min_fraction"].data.tolist() == [0, 1]
    assert found["max_fraction"].data.tolist() == [1, 1]
    assert set(found["fraction"].dims) == {"step", "layer"}


def test_dormancy_summary__sweeps_definitions_and_thresholds():
    ds = drawn()
    found = dormancy_summary(ds, ["redo", "lop"], [0.0, 0.1, 0.5])
    assert found["fraction"].sizes == {"definition": 2, "tau": 3, "epoch": 5, "layer": found.sizes["layer"]}
    alone = dormancy_summary(ds, "lop", 0.1)
    xr.testing.assert_equal(found.sel(definition="lop", tau=0.1, drop=True), alone)


@pytest.mark.parametrize("name", ["dormancy", "dormant", "dormancy_summary"])
def test_lens__is_the_function_of_the_same_name(name):
    ds = drawn()
    assert isinstance(ds.lens, accessor.Lens)
    xr.testing.assert_identical(getattr(ds.lens, name)("lop"), getattr(neurolens, name)(ds, "lop"))
