"""Units on a plane: scikit-learn's own, neighbours kept, few and equal units, what is refused."""

import numpy as np
import pytest
import xarray as xr
from cluster_cases import blobs, features, z
from sklearn.manifold import TSNE

from neurolens.clusters import unit_embedding
from neurolens.errors import NonFiniteError, SchemaError

LAYERS = ["a"] * 40 + ["b"] * 60


def rows(n, seed=0):
    return np.random.default_rng(seed).gamma(1.0, 1.0, (n, 3)) * [1, 5, 100]


@pytest.mark.parametrize("scaled", [True, False])
def test_unit_embedding__is_sklearns(scaled):
    values = rows(100)
    found = unit_embedding(features(values), scaled=scaled)
    wanted = TSNE(2, perplexity=30, random_state=0).fit_transform(z(values) if scaled else values)
    assert found.dims == ("unit", "coordinate")
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    assert (found.attrs["scaled"], found.attrs["perplexity"], found.attrs["seed"]) == (int(scaled), 30.0, 0)


def test_unit_embedding__puts_units_beside_those_that_act_alike():
    values, group = blobs((20, 20, 20), apart=8.0)
    found = unit_embedding(features(values)).to_numpy()
    distance = np.linalg.norm(found[:, None] - found, axis=-1) + np.diag(np.full(len(found), np.inf))
    assert (group[distance.argmin(axis=1)] == group).mean() > 0.95


def test_unit_embedding__lays_out_each_layer_and_checkpoint_by_itself():
    values = np.stack([rows(100, seed) for seed in (0, 1)])
    ds = features(values, LAYERS)
    found = unit_embedding(ds)
    assert found.dims == ("epoch", "unit", "coordinate")
    alone = unit_embedding(ds.isel(epoch=1), layers="b")
    np.testing.assert_array_equal(found.isel(epoch=1, unit=slice(40, None)), alone)
    assert not np.array_equal(found.isel(epoch=0), found.isel(epoch=1))


@pytest.mark.parametrize("units", [1, 2, 3, 5, 12])
def test_unit_embedding__takes_few_units(units):
    found = unit_embedding(features(rows(units)))
    assert found.shape == (units, 2)
    assert np.isfinite(found).all()
    assert len(np.unique(found.to_numpy(), axis=0)) == units


def test_unit_embedding__puts_equal_units_in_one_place_and_takes_a_single_feature():
    np.testing.assert_array_equal(unit_embedding(features(np.ones((9, 3)))), np.zeros((9, 2)))
    one = unit_embedding(features(rows(20))[["mean"]])
    assert len(np.unique(one.to_numpy(), axis=0)) == 20


def test_unit_embedding__says_what_is_wrong():
    with pytest.raises(SchemaError, match="perplexity=0 is no number of neighbours; give 30"):
        unit_embedding(features(rows(5)), perplexity=0)
    with pytest.raises(SchemaError, match="there is no layer 'c'"):
        unit_embedding(features(rows(100), LAYERS), layers="c")
    broken = features(rows(5))
    broken["rate"] = xr.where(np.arange(5) == 2, np.nan, broken["rate"])
    with pytest.raises(NonFiniteError, match="no finite rate of units 2"):
        unit_embedding(broken)
