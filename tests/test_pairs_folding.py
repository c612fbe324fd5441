"""Masks folded into weights: the network itself puts out what ablation computes."""

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs_cases import golden_maps, golden_pool, random_maps, random_pool

from neurolens.clip_networks import AttentionPool2d
from neurolens.errors import SchemaError
from neurolens.pairs import (
    ScalarTotals,
    ablate,
    factors,
    fold_mask,
    image_embeddings,
    pool_of,
    pool_state,
    scalars,
    state_pool,
)


def drawn(pool, seed, dims):
    sizes = {"unit": pool.units, "head": pool.heads}
    keep = np.random.default_rng(seed).random([sizes[dim] for dim in dims]) < 0.5
    return xr.DataArray(keep, dims=dims)


@given(seed=st.integers(0, 99), dims=st.sampled_from([("unit", "head"), ("head", "unit"), ("unit",), ("head",)]))
@settings(max_examples=8, deadline=None)
def test_fold_mask__puts_out_what_ablation_computes(seed, dims):
    pool = random_pool(seed=seed, class_token=seed % 2 == 0)
    maps = random_maps(pool, 6, seed)
    mask, scalar = drawn(pool, seed, dims), scalars(pool, maps)["scalar"]
    folded = fold_mask(pool, mask, scalar)
    np.testing.assert_allclose(image_embeddings(folded, maps), ablate(scalar, factors(pool), mask), rtol=1e-9)
    totals = ScalarTotals(ranks=2)
    totals.add(scalar)
    np.testing.assert_allclose(fold_mask(pool, mask, totals.dataset()).b_o, folded.b_o, rtol=1e-9)


def test_fold_mask__of_the_golden_pool():
    pool = golden_pool()
    mask = xr.DataArray([[False, True], [True, False]], dims=("unit", "head"))
    folded = fold_mask(pool, mask, scalars(pool, golden_maps())["scalar"])
    found = image_embeddings(folded, golden_maps())
    np.testing.assert_allclose(found, [[25.5, 14.25], [9.5, 8.25], [41.5, 20.25], [41.5, 20.25]])
    np.testing.assert_array_equal(scalars(folded, golden_maps())["scalar"], scalars(pool, golden_maps())["scalar"])


def test_fold_mask__without_means_leaves_the_biases():
    pool = random_pool(seed=3)
    maps = random_maps(pool)
    mask = drawn(pool, 0, ("unit", "head"))
    found, fixed = scalars(pool, maps), factors(pool)
    kept = fixed.assign(value=fixed["value"].where(mask, 0.0))
    exact = xr.dot(found["scalar"], kept["value"], kept["output"], dim=("unit", "head", "d"))
    exact = exact + fixed["constant"].sum("head") * pool.units
    np.testing.assert_allclose(image_embeddings(fold_mask(pool, mask), maps), exact.transpose("sample", "feature"))


def test_pool_state__goes_into_a_network():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 1), torch.nn.ReLU(), AttentionPool2d(8, 2, 5, grid=(2, 2)))
    images = torch.rand(7, 1, 2, 2)
    with torch.no_grad():
        pool, maps = pool_of(network), network[:2](images)
        scalar = scalars(pool, maps, embedding=network(images))["scalar"]
        mask = drawn(pool, 1, ("unit", "head"))
        state = pool_state(fold_mask(pool, mask, scalar), prefix="2.")
        done = network.load_state_dict({k: torch.from_numpy(a.copy()) for k, a in state.items()}, strict=False)
        assert not done.unexpected_keys
        found = network(images)
    np.testing.assert_allclose(found, ablate(scalar, factors(pool), mask), atol=2e-6)


def test_pool_state__is_state_pool_the_other_way_round():
    pool = random_pool(grid=(2, 2), seed=5)
    for prefix in ("visual.attnpool.", "attnpool.", ""):
        again = state_pool(pool_state(pool, prefix=prefix), heads=pool.heads)
        for name in ("W_q", "b_k", "W_v", "b_o", "positions"):
            np.testing.assert_array_equal(getattr(again, name), getattr(pool, name))


def test_folding__says_what_is_wrong():
    pool = random_pool()
    scalar = scalars(pool, random_maps(pool))["scalar"]
    with pytest.raises(SchemaError, match="mask of 3 along 'unit'"):
        fold_mask(pool, xr.DataArray([True] * 3, dims="unit"), scalar)
    with pytest.raises(SchemaError, match="found 2 along 'unit'"):
        fold_mask(pool, xr.DataArray([True] * 2, dims="head"), scalar.isel(unit=[0, 1]))
    named = xr.DataArray([True, False], dims="head", coords={"head": [1, 0]})
    with pytest.raises(SchemaError, match="other pairs along 'head'"):
        fold_mask(pool, named, scalar.assign_coords(head=[0, 1]))
    with pytest.raises(SchemaError, match="class token"):
        pool_state(random_pool(class_token=True))
    with pytest.raises(SchemaError, match="no dot"):
        pool_state(pool, prefix="attnpool")
