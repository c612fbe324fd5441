"""Mean ablation of pairs, and what is recognised without them."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs_cases import golden_maps, golden_pool, long_way, random_maps, random_pool

from neurolens.errors import NonFiniteError, SchemaError
from neurolens.pairs import (
    ablate,
    ablation_curve,
    curve_difference,
    factors,
    image_embeddings,
    pair_norms,
    percentile_mask,
    scalars,
    unit_norms,
    zero_shot,
)


def measured(images=9, seed=0):
    pool = random_pool(seed=seed)
    maps = random_maps(pool, images, seed + 1)
    return scalars(pool, maps)["scalar"], factors(pool), long_way(pool, maps)


def mask_of(values):
    return xr.DataArray(np.asarray(values, bool), dims=("unit", "head"))


def test_ablate__of_the_golden_pool():
    pool = golden_pool()
    scalar = scalars(pool, golden_maps())["scalar"]
    keep = mask_of([[False, True], [True, False]])  # (h0, n1) and (h1, n0)
    found = ablate(scalar, factors(pool), keep)
    np.testing.assert_allclose(found, [[25.5, 14.25], [9.5, 8.25], [41.5, 20.25], [41.5, 20.25]])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.lists(st.booleans(), min_size=16, max_size=16))
def test_ablate__is_that_of_whole_arrays(seed, kept):
    scalar, fixed, r = measured(seed=seed)
    keep = mask_of(np.reshape(kept, (8, 2)))
    wanted = np.where(keep.transpose("head", "unit").to_numpy()[..., None], r, r.mean(axis=0)).sum(axis=(1, 2))
    np.testing.assert_allclose(ablate(scalar, fixed, keep), wanted, atol=1e-10)


def test_ablate__of_nothing_and_of_all():
    pool = random_pool()
    maps = random_maps(pool)
    scalar, fixed, whole = scalars(pool, maps)["scalar"], factors(pool), image_embeddings(pool, maps)
    every = xr.ones_like(scalar[0], dtype=bool)
    np.testing.assert_allclose(ablate(scalar, fixed, every), whole, atol=1e-10)
    np.testing.assert_allclose(ablate(scalar, fixed, ~every), np.broadcast_to(whole.mean(axis=0), whole.shape))


def test_ablate__takes_masks_of_units_and_heads():
    scalar, fixed, _ = measured()
    whole = mask_of(np.ones((8, 2)))
    for dim, part in (("unit", [1, 0, 1, 1, 0, 0, 1, 0]), ("head", [0, 1])):
        part = xr.DataArray(np.asarray(part, bool), dims=dim)
        xr.testing.assert_allclose(ablate(scalar, fixed, part), ablate(scalar, fixed, whole & part))


def test_ablate__holds_pairs_at_the_mean_of_other_images():
    scalar, fixed, r = measured()
    keep = mask_of(np.arange(16).reshape(8, 2) % 3 == 0)
    found = ablate(scalar[:4], fixed, keep, mean=scalar.mean("sample"))
    wanted = np.where(keep.transpose("head", "unit").to_numpy()[..., None], r[:4], r.mean(axis=0)).sum(axis=(1, 2))
    np.testing.assert_allclose(found, wanted, atol=1e-10)


@pytest.mark.parametrize("chunks", [{"head": 1}, {"sample": 2, "unit": 3}])
def test_ablate__is_lazy_and_blind_to_chunks(chunks):
    scalar, fixed, _ = measured()
    keep = mask_of(np.arange(16).reshape(8, 2) % 3 == 0)
    found = ablate(scalar.chunk(chunks), fixed, keep)
    assert isinstance(found.data, da.Array)
    xr.testing.assert_allclose(found.compute(), ablate(scalar, fixed, keep))


def test_percentile_mask__of_golden_norms():
    norms = xr.DataArray(np.arange(1.0, 9).reshape(2, 4), dims=("unit", "head"))
    for percentile, kept, least in ((50, 4, 5), (80, 2, 7), (90, 1, 8), (0, 8, 1), (100, 1, 8)):
        found = percentile_mask(norms, percentile)
        assert int(found.sum()) == kept
        assert float(norms.where(found).min()) == least
    ranked = xr.DataArray([[[1.0, 2, 6], [0, 0, 3]]], dims=("unit", "head", "rank"))
    assert percentile_mask(ranked.isel(rank=slice(1, 3)), 50).to_numpy().tolist() == [[True, False]]  # 4 and 1.5
    assert percentile_mask(xr.ones_like(norms), 90).all()  # ties are kept


def test_percentile_mask__says_what_is_wrong():
    score = xr.DataArray([1.0, np.nan], dims="unit")
    with pytest.raises(SchemaError, match="percentile=101"):
        percentile_mask(score, 101)
    with pytest.raises(NonFiniteError, match="1 scores are NaN"):
        percentile_mask(score, 50)
    with pytest.raises(SchemaError, match="found ndarray"):
        percentile_mask(score.to_numpy(), 50)


def test_ablate__says_what_is_wrong_with_a_mask():
    scalar, fixed, _ = measured()
    keep = mask_of(np.ones((8, 2)))
    for mask, message in (
        (None, "a mask of NoneType.*percentile_mask"),
        (keep.astype(int), "a mask of int64"),
        (keep.rename(unit="channel"), "channel"),
        (keep[:3], "a mask of 3 along 'unit' and scalars of 8"),
    ):
        with pytest.raises(SchemaError, match=message):
            ablate(scalar, fixed, mask)
    with pytest.raises(SchemaError, match="other pairs along 'head'"):
        ablate(scalar.assign_coords(head=["a", "b"]), fixed, keep.assign_coords(head=["a", "c"]))


def test_zero_shot__takes_the_nearest_direction():
    texts = np.array([[2.0, 0.0], [0.0, 0.1]])  # their lengths have no say
    shown = xr.DataArray([[3.0, 1], [1, 1.1], [-1, -3], [5, 4]], dims=("sample", "feature"))
    found = zero_shot(shown, texts, [0, 0, 0, 1])
    assert found["predicted"].to_numpy().tolist() == [0, 1, 0, 0]
    assert float(found["accuracy"]) == 0.5
    assert int(found["count"]) == 4
    assert 0.1 < float(found["low"]) < 0.5 < float(found["high"]) < 0.9
    assert found["correct"].to_numpy().tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (np.ones((2, 3)), [0, 0], "2 along 'feature' were needed"),
        (np.ones((0, 2)), [0, 0], "the list of phrases is empty"),
        (np.ones((2, 2)), [0, 2], "labels from 0 to 2 and 2 classes"),
        (np.ones((2, 2)), [0], "2 whole numbers were needed"),
        (np.zeros((2, 2)), [0, 0], "is 0 or NaN"),
        (np.ones(2), [0, 0], r"\(class, feature\)"),
    ],
)
def test_zero_shot__says_what_does_not_fit(texts, labels, message):
    with pytest.raises(SchemaError, match=message):
        zero_shot(xr.DataArray(np.eye(2), dims=("sample", "feature")), texts, labels)


def test_zero_shot__refuses_what_is_not_finite():
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        zero_shot(xr.DataArray([[np.nan, 1.0]], dims=("sample", "feature")), np.eye(2), [0])


def planted(images=60, seed=0):
    """Two classes told apart by one pair of unit 0, loud noise in the other head of that unit."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % 2
    pool = random_pool(units=6, heads=2, head_dim=3, features=6, dtype=np.float64)
    fixed = factors(pool).copy(deep=True)
    fixed["output"][:] = np.eye(6).reshape(6, 2, 3)
    fixed["value"][:] = 0
    fixed["value"][0, 0, 0] = 1  # pair (0, 0) writes to the first feature
    fixed["value"][1, 0, 0] = 1  # pair (0, 1) too: noise
    fixed["output"][0, 1, 0] = 1
    fixed["value"][:, 2, 1:] = 1  # other pairs write elsewhere
    fixed["constant"][:] = 0
    scalar = 0.01 * rng.normal(size=(images, 6, 2))
    scalar[:, 0, 0] = np.where(labels == 0, 3, -3)
    scalar[:, 0, 1] = 2.5 * rng.normal(size=images)
    texts = np.eye(6)[[0, 0]] * np.array([[1], [-1]])
    return xr.DataArray(scalar, dims=("sample", "unit", "head")), fixed, texts, labels


def test_ablation_curve__tells_pairs_from_units():
    scalar, fixed, texts, labels = planted()
    score = abs(scalar - scalar.mean("sample")).median("sample")  # the pair of the classes is always far from its mean
    options = {"bootstrap": 200, "shares": (1.0, 0.05)}
    pairs = ablation_curve(scalar, fixed, texts, labels, score=score, **options)
    units = ablation_curve(scalar, fixed, texts, labels, score=unit_norms(scalar, fixed, top=20), **options)
    assert pairs["kept"].to_numpy().tolist() == [12, 1]
    assert units["kept"].to_numpy().tolist() == [6, 1]
    assert float(pairs["accuracy"][1]) == 1
    np.testing.assert_allclose(pairs["accuracy"][0], units["accuracy"][0])
    assert float(units["accuracy"][1]) == float(units["accuracy"][0]) < 1
    assert (pairs["low"] <= pairs["accuracy"]).all()
    assert (pairs["accuracy"] <= pairs["high"]).all()
    assert pairs["random"].sizes == {"share": 2, "draw": 5}
    assert (pairs["random"][0] == pairs["accuracy"][0]).all()
    assert float(pairs["random_high"][1]) < 1
    gap = curve_difference(pairs, units, bootstrap=200)
    np.testing.assert_allclose(gap["difference"], pairs["accuracy"] - units["accuracy"])
    assert float(gap["low"][1]) > 0
    assert gap.isel(share=0).to_array().to_numpy().tolist() == [0, 0, 0]


def test_ablation_curve__is_ablation_at_each_share():
    scalar, fixed, texts, labels = planted()
    norms = pair_norms(scalar, fixed, top=10)
    mean = scalar[:30].mean("sample")
    found = ablation_curve(
        scalar, fixed, texts, labels, score=norms, shares=(0.5, 0.1), mean=mean, baselines=0, bootstrap=0
    )
    for share in (0.5, 0.1):
        mask = percentile_mask(norms, 100 * (1 - share))
        wanted = zero_shot(ablate(scalar, fixed, mask, mean=mean), texts, labels)
        assert float(found["accuracy"].sel(share=share)) == float(wanted["accuracy"])
        np.testing.assert_array_equal(found["correct"].sel(share=share), wanted["correct"])
    assert found["low"].isnull().all()
    assert found["random_low"].isnull().all()


def test_ablation_curve__is_the_same_for_the_same_seed():
    scalar, fixed, texts, labels = planted()
    options = {"score": pair_norms(scalar, fixed, top=10), "shares": (0.3,), "bootstrap": 50}
    one, same, other = (ablation_curve(scalar, fixed, texts, labels, seed=s, **options) for s in (1, 1, 2))
    xr.testing.assert_identical(one, same)
    assert not one["random"].equals(other["random"])


def test_ablation_curve__says_what_is_wrong():
    scalar, fixed, texts, labels = planted()
    norms = pair_norms(scalar, fixed, top=10)
    with pytest.raises(SchemaError, match=r"shares=\(0\.5, 0\)"):
        ablation_curve(scalar, fixed, texts, labels, score=norms, shares=(0.5, 0))
    with pytest.raises(SchemaError, match="bootstrap"):
        ablation_curve(scalar, fixed, texts, labels, score=norms, bootstrap=-1)
    one = ablation_curve(scalar, fixed, texts, labels, score=norms, shares=(0.5,), bootstrap=0)
    with pytest.raises(SchemaError, match="other shares or other images"):
        curve_difference(one, one.isel(sample=slice(3)))
    with pytest.raises(SchemaError, match="no 'correct'"):
        curve_difference(one.drop_vars("correct"), one)
