"""What may be turned without changing what pairs say: signs, bases of heads, orders of units and heads."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs_cases import random_maps, random_pool

from neurolens.pairs import (
    ablate,
    class_pairs,
    directions,
    factors,
    image_embeddings,
    pair_norms,
    percentile_mask,
    phrase_share,
    reconstruct,
    retrieve,
    scalars,
    segment,
    text_scores,
    unit_components,
)

TEXTS = np.random.default_rng(5).normal(size=(3, 5))


def measured(pool, maps):
    return scalars(pool, maps)["scalar"], factors(pool)


def turned(pool, order, heads):
    """The pool with other orders of units and heads."""
    rows = np.arange(len(pool.W_q)).reshape(pool.heads, -1)[list(heads)].reshape(-1)
    return replace(
        pool,
        **{name: getattr(pool, name)[rows][:, list(order)] for name in ("W_q", "W_k", "W_v")},
        **{name: getattr(pool, name)[rows] for name in ("b_q", "b_k", "b_v")},
        W_o=pool.W_o[:, rows],
        positions=pool.positions[:, list(order)],
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.lists(st.sampled_from([-1.0, 1.0]), min_size=16, max_size=16))
def test_reconstruct__and_ablate_do_not_see_the_signs_of_directions(seed, signs):
    pool = random_pool(seed=seed)
    scalar, fixed = measured(pool, random_maps(pool))
    sign = xr.DataArray(np.reshape(signs, (8, 2)), dims=("unit", "head"))
    own = directions(fixed)["direction"]
    whole = image_embeddings(pool, random_maps(pool))
    np.testing.assert_allclose(reconstruct(scalar, fixed, own * sign), whole, atol=1e-9)
    few = unit_components(scalar, fixed, k=1)["direction"]
    flipped = few * sign.isel(head=0)
    np.testing.assert_allclose(reconstruct(scalar, fixed, flipped), reconstruct(scalar, fixed, few), atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(8)), st.permutations(range(4)))
def test_reductions__follow_units_and_heads(seed, order, heads):
    pool = random_pool(units=8, heads=4, seed=seed)
    maps = random_maps(pool)
    at = {"unit": list(order), "head": list(heads)}
    (scalar, fixed), (other, moved) = measured(pool, maps), measured(turned(pool, order, heads), maps[:, list(order)])
    norms, found = pair_norms(scalar, fixed, top=4), pair_norms(other, moved, top=4)
    np.testing.assert_allclose(found, norms.isel(at), atol=1e-10)
    np.testing.assert_allclose(directions(moved)["direction"], directions(fixed)["direction"].isel(at), atol=1e-10)
    np.testing.assert_allclose(text_scores(moved, TEXTS), text_scores(fixed, TEXTS).isel(at), atol=1e-10)
    keep = percentile_mask(norms.mean("rank"), 70)
    np.testing.assert_array_equal(percentile_mask(found.mean("rank"), 70), keep.isel(at))
    np.testing.assert_allclose(ablate(other, moved, keep.isel(at)), ablate(scalar, fixed, keep), atol=1e-9)
    shares = [phrase_share(*of, TEXTS, k=3) for of in ((other, moved), (scalar, fixed))]
    np.testing.assert_allclose(*shares, atol=1e-9)
    np.testing.assert_array_equal(class_pairs(moved, TEXTS, k=5), class_pairs(fixed, TEXTS, k=5).isel(at))
    unit, head = order.index(2), heads.index(1)
    best = [retrieve(other, moved, unit=unit, head=head, k=4), retrieve(scalar, fixed, unit=2, head=1, k=4)]
    np.testing.assert_allclose(best[0]["strength"], best[1]["strength"], atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_reductions__do_not_see_the_bases_of_heads(seed):
    """Values turned by Q in each head, and turned back on their way out: another basis, and the same network."""
    pool = random_pool(seed=seed)
    rng = np.random.default_rng(seed)
    turn = np.zeros((6, 6))
    for head in range(2):
        turn[head * 3 : head * 3 + 3, head * 3 : head * 3 + 3] = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    same = replace(pool, W_v=turn @ pool.W_v, b_v=turn @ pool.b_v, W_o=pool.W_o @ turn.T)
    maps = random_maps(pool)
    (scalar, fixed), (other, moved) = measured(pool, maps), measured(same, maps)
    np.testing.assert_allclose(other, scalar, atol=1e-12)
    np.testing.assert_allclose(moved["constant"], fixed["constant"], atol=1e-10)
    np.testing.assert_allclose(directions(moved)["direction"], directions(fixed)["direction"], atol=1e-9)
    np.testing.assert_allclose(pair_norms(other, moved, top=4), pair_norms(scalar, fixed, top=4), atol=1e-9)


def test_segment__is_the_same_of_a_constant_added_to_all_classes():
    image = np.random.default_rng(0).normal(size=(3, 16, 20))

    def logits_of(windows, added=0.0):
        values = windows.reshape(len(windows), 3, 4, 2, 4, 2).mean(axis=(3, 5)) + added
        return xr.DataArray(values, dims=("sample", "phrase", "y", "x"))

    size = {"crop": 8, "stride": 4, "short": None, "scale": 2.0}
    found, raised = segment(image, logits_of, **size), segment(image, lambda w: logits_of(w, 3.0), **size)
    np.testing.assert_array_equal(found["label"], raised["label"])
    assert found["probability"].values == pytest.approx(raised["probability"].values)


def test_reductions__take_any_path_that_writes_a_scalar_times_a_vector():
    """Neurons of an MLP into a residual stream, a layer for a head, as a ViT has them: no pool is there."""
    rng = np.random.default_rng(2)
    layers, units, width = 3, 6, 5
    out, bias = rng.normal(size=(layers, width, units)), rng.normal(size=(layers, width))
    fired = np.maximum(rng.normal(size=(9, units, layers)), 0)
    whole = np.einsum("luf,sul->sf", out.transpose(0, 2, 1), fired) + bias.sum(axis=0)
    path = xr.Dataset(
        {
            "value": (("head", "d", "unit"), out),
            "output": (("feature", "head", "d"), np.broadcast_to(np.eye(width)[:, None], (width, layers, width))),
            "constant": (("head", "feature"), bias / units),
        }
    )
    scalar = xr.DataArray(fired, dims=("sample", "unit", "head"))
    assert np.isfinite(directions(path)["direction"]).all()
    np.testing.assert_allclose(ablate(scalar, path, xr.ones_like(scalar[0], dtype=bool)), whole, atol=1e-12)
    np.testing.assert_allclose(reconstruct(scalar, path, directions(path)["direction"]), whole, atol=1e-12)
    lengths = np.abs(fired - fired.mean(axis=0)) * np.linalg.norm(out, axis=1).T
    np.testing.assert_allclose(pair_norms(scalar, path, top=1).max("rank"), lengths.max(axis=0), atol=1e-12)
    units_of = TEXTS / np.linalg.norm(TEXTS, axis=1, keepdims=True)
    cosines = np.einsum("pf,lfu->pul", units_of, out) / np.linalg.norm(out, axis=1).T
    np.testing.assert_allclose(text_scores(path, TEXTS), cosines, atol=1e-12)
