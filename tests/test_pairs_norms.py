"""Directions, norms, means and strengths: the factored way against whole arrays."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs_cases import golden_maps, golden_pool, long_way, random_maps, random_pool

from neurolens.errors import SchemaError
from neurolens.pairs import (
    ScalarTotals,
    dead_pairs,
    directions,
    factors,
    majority,
    pair_means,
    pair_norms,
    pair_vectors,
    scalars,
    strengths,
    unit_gram,
    unit_norms,
    vector_norms,
)


def golden():
    pool = golden_pool()
    return scalars(pool, golden_maps())["scalar"], factors(pool)


def random_pairs(images=9, seed=0, **options):
    pool = random_pool(seed=seed, **options)
    maps = random_maps(pool, images, seed + 1)
    return scalars(pool, maps)["scalar"], factors(pool), long_way(pool, maps)


def by_head(array):
    return array.transpose("head", "unit", ...).to_numpy()


def test_directions__of_the_golden_pool():
    scalar, fixed = golden()
    for found in (directions(fixed), directions(fixed, sign="majority", scalar=scalar, top=3)):
        direction = by_head(found["direction"])
        np.testing.assert_allclose(direction[0], [[1, 0], [1, 0]])
        np.testing.assert_allclose(direction[1, 0], [0.8944271910, 0.4472135955])
        assert np.isnan(direction[1, 1]).all()
        assert by_head(found["dead"]).tolist() == [[False, False], [False, True]]
        assert (found["sign"] == 1).all()


def test_pair_norms__of_the_golden_pool():
    norms = by_head(pair_norms(*golden(), top=3))
    np.testing.assert_allclose(norms[0], [[1.5, 1.5, 2.5], [3, 3, 5]])
    np.testing.assert_allclose(norms[1], [[10.0623058987, 10.0623058987, 16.7705098312], [0, 0, 0]], rtol=1e-11)
    singular = [[3.278719262151, 6.557438524302], [21.994317447923, 0]]  # one direction: the length of all norms
    np.testing.assert_allclose(np.sqrt((norms**2).sum(axis=2)), singular, rtol=1e-11)


def test_pair_vectors__are_lazy_where_they_are_many_or_the_factors_are(monkeypatch):
    scalar, fixed = golden()
    eager = pair_means(scalar, fixed)
    assert eager.chunks is None
    xr.testing.assert_allclose(pair_means(scalar, fixed.chunk()).compute(), eager)
    assert isinstance(pair_means(scalar, fixed.chunk()).data, da.Array)
    monkeypatch.setattr("neurolens.pairs.writing.EAGER", 0)
    assert isinstance(pair_means(scalar, fixed).data, da.Array)
    xr.testing.assert_allclose(pair_means(scalar, fixed).compute(), eager)


def test_pair_means__of_the_golden_pool():
    found = pair_means(*golden())
    np.testing.assert_allclose(by_head(found), [[[4.5, 2], [7.5, 2]], [[18.5, 10.75], [-1, 1]]])


def one_pair(values):
    scalar = xr.DataArray(np.asarray(values, float).reshape(-1, 1, 1), dims=("sample", "unit", "head"))
    return scalar, factors(random_pool(units=1, heads=1, head_dim=1, features=2))


@pytest.mark.parametrize(
    ("values", "top", "sign"),
    [
        ([0, 0, 0, 0, 10, 1], 4, -1),
        ([-3, -1, 1, 3], 4, 0),
        ([10, 10, 10, 10, 0, 9], 4, 1),
        *[([10.0] * n + [0.0] * (1000 - n), 50, sign) for n, sign in ((10, -1), (20, -1), (25, 0), (26, 1), (30, 1))],
    ],
)
def test_majority__follows_the_references_rule(values, top, sign):
    scalar, fixed = one_pair(values)
    assert int(majority(scalar, fixed, top=top)[0, 0]) == sign
    found = directions(fixed, sign="majority", scalar=scalar, top=top)
    wanted = directions(fixed)["direction"] * (sign if sign else np.nan)
    np.testing.assert_allclose(found["direction"], wanted)
    totals = ScalarTotals(ranks=max(top, 4))
    totals.add(scalar)
    assert int(majority(totals.dataset(), fixed, top=top)[0, 0]) == sign


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1000), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(4, 5)
)
def test_pairs__are_the_singular_vectors_of_whole_arrays(seed, units, heads, head_dim, features, top):
    scalar, fixed, r = random_pairs(seed=seed, units=units, heads=heads, head_dim=head_dim, features=features)
    found = directions(fixed, sign="majority", scalar=scalar, top=top)
    norms, means = by_head(pair_norms(scalar, fixed, top=top)), by_head(pair_means(scalar, fixed))
    direction, sign = by_head(found["direction"]), by_head(found["sign"])
    np.testing.assert_allclose(means, r.mean(axis=0), atol=1e-10)
    for h, n in np.ndindex(heads, units):
        centred = r[:, h, n] - r[:, h, n].mean(axis=0)
        lengths = np.linalg.norm(centred, axis=1)
        largest = np.argsort(lengths)[-top:]
        np.testing.assert_allclose(norms[h, n], lengths[largest], atol=1e-10)
        _, values, vh = np.linalg.svd(centred[largest], full_matrices=False)
        assert (values[1:] < 1e-10 * max(values[0], 1)).all()
        projected = centred[largest] @ vh[0]
        if (projected > 0).sum() * 2 == top:  # a tie: the reference's sign is LAPACK's, and none here
            assert sign[h, n] == 0
            assert np.isnan(direction[h, n]).all()
            continue
        component = vh[0] if (projected > 0).sum() > top // 2 else -vh[0]
        np.testing.assert_allclose(direction[h, n], component, atol=1e-8)


def test_pairs__are_rank_one_in_float32():
    pool = random_pool(16, 2, 4, 12, dtype=np.float32)
    maps = random_maps(pool, 20)
    scalar, fixed = scalars(pool, maps)["scalar"], factors(pool)
    r = pair_vectors(fixed).compute() * (scalar - scalar.mean("sample"))
    for h, n in np.ndindex(2, 16):
        values = np.linalg.svd(r.isel(head=h, unit=n).transpose("sample", "feature"), compute_uv=False)
        assert values[1] < 1e-6 * values[0]


@pytest.mark.parametrize("chunks", [{"head": 1}, {"sample": 2, "unit": 3}, {"sample": 4, "unit": 1, "head": 1}])
def test_reductions__are_lazy_and_blind_to_chunks(chunks):
    scalar, fixed, _ = random_pairs()
    lazy = scalar.chunk(chunks)
    for reduction in (
        lambda s: pair_norms(s, fixed, top=4),
        lambda s: pair_means(s, fixed),
        lambda s: majority(s, fixed, top=4),
        lambda s: directions(fixed, sign="majority", scalar=s, top=4)["direction"],
        lambda s: dead_pairs(s, fixed),
        lambda s: strengths(s, fixed, kind="norm", bias=True),
        lambda s: strengths(s, fixed, level="unit", kind="norm", centred=True),
        lambda s: strengths(s, fixed, level="unit"),
        lambda s: unit_norms(s, fixed, top=3),
    ):
        found = reduction(lazy)
        assert isinstance(found.data, da.Array)
        xr.testing.assert_allclose(found.compute(), reduction(scalar).compute())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(5, 30))
def test_reductions__of_totals_are_those_of_the_cube(seed, ranks):
    scalar, fixed, _ = random_pairs(images=12, seed=seed)
    totals = ScalarTotals(ranks=ranks)
    for start in range(0, 12, 5):
        totals.add(scalar[start : start + 5])
    kept = totals.dataset()
    xr.testing.assert_allclose(pair_norms(kept, fixed, top=5), pair_norms(scalar, fixed, top=5), rtol=1e-6)
    xr.testing.assert_allclose(pair_means(kept, fixed).compute(), pair_means(scalar, fixed).compute())
    xr.testing.assert_equal(majority(kept, fixed, top=5), majority(scalar, fixed, top=5))
    xr.testing.assert_equal(dead_pairs(kept, fixed), dead_pairs(scalar, fixed))


def test_dead_pairs__have_no_vector_or_do_not_vary():
    scalar, fixed, _ = random_pairs(images=6)
    fixed = fixed.copy(deep=True)
    assert not dead_pairs(scalar, fixed).any()
    scalar[:, 3, 1] = 0.1 + 0.2
    scalar[:, 4, 0] = 0
    fixed["value"][0, :, 5] = 0
    found = dead_pairs(scalar, fixed)
    assert np.argwhere(found.to_numpy()).tolist() == [[3, 1], [4, 0], [5, 0]]
    assert np.argwhere((vector_norms(fixed) == 0).to_numpy()).tolist() == [[5, 0]]
    assert np.isnan(directions(fixed)["direction"].isel(unit=5, head=0)).all()


def test_vector_norms__see_through_rounding():
    pool = random_pool(units=3, heads=1, head_dim=4, features=2, dtype=np.float32)
    fixed = factors(pool).copy(deep=True)
    basis = np.linalg.svd(pool.W_o)[2][2:]  # what the output does not read
    fixed["value"][0, :, 1] = basis[0] * 100
    assert (vector_norms(fixed) == 0).to_numpy().tolist() == [[False], [True], [False]]


def test_strengths__of_the_golden_pool():
    scalar, fixed = golden()
    found = strengths(scalar, fixed, kind="norm", bias=True)
    np.testing.assert_allclose(found[:3, 1, 0], [6.8007352544, 3.2015621187, 10.6887791632])
    of_unit = strengths(scalar, fixed, level="unit", kind="norm", bias=True)
    np.testing.assert_allclose(of_unit[:3, 1], [6.2649820431, 3.3541019662, 9.9624294226])
    np.testing.assert_allclose(strengths(scalar, fixed)[:, 0, 1], scalar[:, 0, 1] * np.sqrt(45))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.booleans())
def test_strengths__are_lengths_of_whole_arrays(seed, centred, bias):
    scalar, fixed, r = random_pairs(seed=seed)
    bias = bias and not centred
    if centred:
        r = r - r.mean(axis=0)
    elif not bias:
        r = r - fixed["constant"].to_numpy()[:, None]
    options = {"kind": "norm", "centred": centred, "bias": bias}
    pairs = strengths(scalar, fixed, **options).transpose("sample", "head", "unit")
    np.testing.assert_allclose(pairs, np.linalg.norm(r, axis=-1), atol=1e-10)
    units = strengths(scalar, fixed, level="unit", **options)
    np.testing.assert_allclose(units, np.linalg.norm(r.sum(axis=1), axis=-1), atol=1e-6)


def test_unit_norms__are_the_largest_of_all_heads_together():
    scalar, fixed, r = random_pairs()
    through_all = r.sum(axis=1)
    lengths = np.linalg.norm(through_all - through_all.mean(axis=0), axis=-1)
    np.testing.assert_allclose(unit_norms(scalar, fixed, top=4), np.sort(lengths, axis=0)[-4:].T)
    u = pair_vectors(fixed).compute().to_numpy()
    np.testing.assert_allclose(unit_gram(fixed), u @ u.transpose(0, 2, 1), atol=1e-12)
    np.testing.assert_allclose(vector_norms(fixed), np.linalg.norm(u, axis=-1))


def test_selected_pairs__are_those_of_all():
    scalar, fixed, _ = random_pairs()
    scalar = scalar.assign_coords(unit=np.arange(8) * 10, head=["a", "b"])
    named = fixed.assign_coords(unit=np.arange(8) * 10, head=["a", "b"])
    few = {"unit": [20, 50], "head": ["b"]}
    xr.testing.assert_allclose(
        pair_norms(scalar.sel(few), named.sel(few), top=3), pair_norms(scalar, named, top=3).sel(few)
    )
    with pytest.raises(SchemaError, match="other pairs along 'unit'"):
        pair_norms(scalar.sel(few), named.sel(few | {"unit": [20, 60]}))


def test_reductions__say_what_is_wrong():
    scalar, fixed, _ = random_pairs()
    for call, message in (
        (lambda: directions(fixed, sign="majorty"), "did you mean 'majority'"),
        (lambda: directions(fixed, sign="majority"), "there is no scalar; pass scalar="),
        (lambda: directions(scalar), "found DataArray, and a Dataset of factors"),
        (lambda: directions(fixed.drop_vars("output")), "found no 'output'"),
        (lambda: directions(fixed.isel(head=0)), r"factors\(pool\)\.isel\(unit=\[624\], head=\[21\]\)"),
        (lambda: pair_norms(scalar, fixed), "top=50 of 9 images"),
        (lambda: pair_norms(scalar, fixed, top=0), "top=0"),
        (lambda: pair_norms(scalar[:, :3], fixed, top=2), "3 along 'unit', and factors of 8"),
        (lambda: pair_norms(scalar[0], fixed, top=2), r"array over \('sample', 'unit', 'head'\)"),
        (lambda: pair_means(scalar[:0], fixed), "found no sample"),
        (lambda: strengths(scalar, fixed, level="head"), "level='head' is unknown"),
        (lambda: strengths(scalar, fixed, kind="norms"), "did you mean 'norm'"),
        (lambda: strengths(scalar, fixed, bias=True), "bias=True"),
        (lambda: unit_norms(scalar, fixed, top=2, mean=scalar.mean()), r"a mean over \{\}"),
    ):
        with pytest.raises(SchemaError, match=message):
            call()
    totals = ScalarTotals(ranks=3)
    totals.add(scalar)
    with pytest.raises(SchemaError, match=r"top=5 and 3 extremes.*ScalarTotals\(ranks=5\)"):
        pair_norms(totals.dataset(), fixed, top=5)


def test_reductions__give_nan_for_what_was_not_measured():
    scalar, fixed, _ = random_pairs()
    scalar = scalar.copy()
    scalar[2, 3, 1] = np.nan
    wanted = np.zeros((8, 2), bool)
    wanted[3, 1] = True
    np.testing.assert_array_equal(pair_norms(scalar, fixed, top=4).isnull().all("rank"), wanted)
    np.testing.assert_array_equal(pair_means(scalar, fixed).isnull().all("feature"), wanted)
    found = directions(fixed, sign="majority", scalar=scalar, top=5)
    np.testing.assert_array_equal(found["direction"].isnull().all("feature"), wanted)


def test_reductions__refuse_means_of_other_pairs():
    scalar, fixed, _ = random_pairs()
    scalar = scalar.assign_coords(unit=np.arange(8))
    mean = scalar.mean("sample").assign_coords(unit=np.arange(8) + 1)
    with pytest.raises(SchemaError, match="mean and scalars name other pairs along 'unit'"):
        strengths(scalar, fixed, centred=True, mean=mean)
