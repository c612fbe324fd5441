"""Sets of units: clusters, complements, unions, matched random controls."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from neurolens.attribution import cluster_masks, complements, controls, unions, unit_masks
from neurolens.errors import SchemaError


def names(masks):
    return masks["map"].to_numpy().tolist()


def test_cluster_masks__has_each_unit_once():
    masks = cluster_masks(np.array([2, 0, 2, 1, 0]))
    assert masks.dims == ("map", "unit")
    assert masks.dtype == np.bool_
    assert names(masks) == ["k3/0", "k3/1", "k3/2"]
    np.testing.assert_array_equal(masks.sum("map"), 1)
    np.testing.assert_array_equal(masks.sel(map="k3/2"), [True, False, True, False, False])


def test_cluster_masks__takes_labelled_arrays_and_a_name():
    labels = xr.DataArray([1, 1, 0], dims="unit")
    assert names(cluster_masks(labels, name="by rate")) == ["by rate/0", "by rate/1"]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.randoms())
def test_cluster_masks__of_permuted_labels_are_the_same_masks_permuted(labels, random):
    turned = list(range(5))
    random.shuffle(turned)
    first = cluster_masks(np.array(labels))
    second = cluster_masks(np.array([turned[label] for label in labels]))
    assert sorted(map(bytes, first.to_numpy())) == sorted(map(bytes, second.to_numpy()))


def test_complements__are_all_other_units():
    masks = cluster_masks(np.array([0, 1, 1, 2]))
    rest = complements(masks)
    assert names(rest) == ["without k3/0", "without k3/1", "without k3/2"]
    np.testing.assert_array_equal(rest.to_numpy(), ~masks.to_numpy())


def test_unions__are_units_of_any():
    masks = cluster_masks(np.array([0, 1, 1, 2]))
    both = unions(masks, {"0 or 2": ["k3/0", "k3/2"], "1": ["k3/1"]})
    np.testing.assert_array_equal(both.to_numpy(), [[True, False, False, True], [False, True, True, False]])


def test_controls__are_those_of_the_reference():
    mask = unit_masks({"cluster 0": np.arange(256) < 214})
    drawn = controls(mask, draws=1, seed=42, compat="seed")
    found = np.flatnonzero(drawn.to_numpy()[0])
    assert len(found) == 214
    np.testing.assert_array_equal(found[:10], [0, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    np.random.seed(42)
    np.testing.assert_array_equal(found, np.sort(np.random.choice(256, 214, replace=False)))


def test_controls__have_the_size_of_their_mask():
    masks = cluster_masks(np.array([0] * 3 + [1] * 7))
    drawn = controls(masks, draws=5)
    assert names(drawn)[:2] == ["k2/0 control 0", "k2/0 control 1"]
    np.testing.assert_array_equal(drawn.sum("unit"), [3] * 5 + [7] * 5)
    assert len({row.tobytes() for row in drawn.to_numpy()}) > 5


def test_controls__of_more_draws_begin_with_those_of_fewer():
    mask = unit_masks({"a": np.arange(30) < 11})
    np.testing.assert_array_equal(controls(mask, draws=3, seed=5), controls(mask, draws=8, seed=5)[:3])
    assert (controls(mask, draws=3, seed=5).to_numpy() != controls(mask, draws=3, seed=6).to_numpy()).any()


def test_controls__take_from_each_stratum_what_the_mask_has_there():
    strata = ["carried in"] * 12 + ["new"] * 20
    mask = unit_masks({"a": np.isin(np.arange(32), [0, 1, 2, 20, 21])})
    drawn = controls(mask, draws=20, strata=strata).to_numpy()
    assert set(drawn[:, :12].sum(axis=1)) == {3}
    assert set(drawn[:, 12:].sum(axis=1)) == {2}
    assert drawn.any(axis=0).sum() > 20


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: unit_masks({}), "at least one set of units"),
        (lambda m: unit_masks({"a": [0, 1]}), "one bool per unit"),
        (lambda m: unit_masks({"a": [True], "b": [True, False]}), r"over \[1, 2\] units"),
        (lambda m: cluster_masks([0.5, 1.0]), "one whole number per unit"),
        (lambda m: complements(m.rename(map="cluster")), "make masks with unit_masks"),
        (lambda m: complements(xr.concat([m, m], "map")), "named more than once"),
        (lambda m: unions(m, {"u": ["k2/3"]}), "did you mean 'k2/"),
        (lambda m: unions(m, {"u": []}), "of no masks"),
        (lambda m: controls(m, draws=0), "no number of random sets"),
        (lambda m: controls(m, strata=["a"]), "strata name 1 units, and the masks are over 3"),
        (lambda m: controls(m, strata=["a"] * 3, compat="seed"), "draws from all units"),
        (lambda m: controls(m, compat="sead"), "did you mean 'seed'"),
    ],
)
def test_masks__say_what_is_wrong(call, words):
    with pytest.raises(SchemaError, match=words):
        call(cluster_masks(np.array([0, 1, 1])))
