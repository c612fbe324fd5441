"""Shares of phrases' pairs, and whether they go with metadata: golden numbers, long ways, planted shifts."""

import re
from dataclasses import replace
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import scipy.stats
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs_cases import golden_maps, golden_pool, long_way, random_maps, random_pool

from neurolens.errors import SchemaError
from neurolens.pairs import association, association_by_group, factors, phrase_share, scalars, text_scores, top_pairs


def series(values, name="sample"):
    return xr.DataArray(np.asarray(values), dims=name)


def texts(seed=0):
    drawn = np.random.default_rng(seed).normal(size=(3, 5))
    return xr.DataArray(drawn, dims=("phrase", "feature"), coords={"phrase": list("abc")})


def measured(seed=0, images=6):
    pool = random_pool(seed=seed)
    maps = random_maps(pool, images, seed + 1)
    return pool, maps, scalars(pool, maps), factors(pool)


def test_phrase_share__is_the_golden_one():
    pool = golden_pool()
    found = scalars(pool, golden_maps(slice(3)))
    pairs = xr.Dataset({"unit": ("rank", [0, 1]), "head": ("rank", [0, 1])})
    share = phrase_share(found["scalar"], factors(pool), pairs=pairs, bias=True)
    length = np.linalg.norm(found["embedding"], axis=1)
    np.testing.assert_allclose(length, [28.7760751320, 10.8195425042, 47.5295960429], rtol=0, atol=1e-10)
    np.testing.assert_allclose(share * length, [4.2426406871, 3.1622776602, 5.8309518948], rtol=0, atol=1e-10)
    # The last is √34 / √(43² + 20.25²) of the two above.
    np.testing.assert_allclose(share, [0.1474363918, 0.2922746187, 0.1226804429], rtol=0, atol=1e-10)
    bare = phrase_share(found["scalar"], factors(pool), pairs=pairs)
    np.testing.assert_allclose(bare * length, found["scalar"][:, 0, 0])  # u of (h0, n0) is (1, 0), that of the other 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.integers(1, 8))
def test_phrase_share__is_that_of_whole_vectors(seed, bias, k):
    pool, maps, found, fixed = measured(seed)
    share = phrase_share(found["scalar"], fixed, texts(seed), k=k, bias=bias)
    assert share.dims == ("sample", "phrase")
    r = long_way(pool, maps)  # image, head, unit, feature
    constant = fixed["constant"].to_numpy()[:, None]
    parts = r if bias else r - constant
    best = top_pairs(text_scores(fixed, texts(seed)), k=k)
    for p in range(3):
        chosen = parts[:, best["head"][p].to_numpy(), best["unit"][p].to_numpy()].sum(axis=1)
        exact = np.linalg.norm(chosen, axis=1) / np.linalg.norm(r.sum(axis=(1, 2)), axis=1)
        np.testing.assert_allclose(share[:, p], exact, atol=1e-10)


@pytest.mark.parametrize("chunks", [{"sample": 1}, {"unit": 3}, {"sample": 4, "head": 1}])
def test_phrase_share__is_lazy_and_blind_to_chunks(chunks):
    _, _, found, fixed = measured()
    exact = phrase_share(found["scalar"], fixed, texts())
    lazy = phrase_share(found["scalar"].chunk(chunks), fixed, texts())
    assert isinstance(lazy.data, da.Array)
    xr.testing.assert_allclose(lazy.compute(), exact)


def test_phrase_share__takes_embeddings_labels_and_pairs():
    _, _, found, fixed = measured()
    exact = phrase_share(found["scalar"], fixed, texts())
    given_e = phrase_share(found["scalar"], fixed, texts(), embedding=found["embedding"])
    xr.testing.assert_allclose(given_e, exact)
    np.testing.assert_allclose(phrase_share(found["scalar"], fixed, texts()[1]), exact[:, 1])
    names = {"unit": list("stuvwxyz"), "head": [4, 9]}
    labelled, cube = fixed.assign_coords(names), found["scalar"].assign_coords(names | {"sample": np.arange(6) * 2})
    named = phrase_share(cube, labelled, texts())
    np.testing.assert_allclose(named, exact)
    assert named["sample"].to_numpy().tolist() == [0, 2, 4, 6, 8, 10]
    best = top_pairs(text_scores(labelled, texts()), k=5)
    np.testing.assert_allclose(phrase_share(cube, labelled, pairs=best), exact)
    half = cube.isel(unit=slice(0, 4)), labelled.isel(unit=slice(0, 4))
    with pytest.raises(SchemaError, match="among the 4 of the scalars"):
        phrase_share(*half, pairs=best, embedding=found["embedding"])
    silent = phrase_share(
        found["scalar"], fixed, texts(), embedding=found["embedding"] * [[0]] + 0 * exact[:, :1].sum()
    )
    assert silent.isnull().all()


def test_phrase_share__says_what_does_not_fit():
    _, _, found, fixed = measured()
    with pytest.raises(SchemaError, match="one of the two"):
        phrase_share(found["scalar"], fixed)
    with pytest.raises(SchemaError, match="'feature': 4"):
        phrase_share(found["scalar"], fixed, texts(), embedding=found["embedding"][:, :4])
    dead = fixed.copy(deep=True)
    dead["value"][0, :, 0] = 0
    with pytest.raises(SchemaError, match="fewer than k=16 pairs"):
        phrase_share(found["scalar"], dead, texts(), k=16)
    with pytest.raises(SchemaError, match="no 'head' over 'rank'"):
        phrase_share(found["scalar"], fixed, pairs=xr.Dataset({"unit": ("rank", [0])}))
    with pytest.raises(SchemaError, match="there is no unit 8 among the 8"):
        phrase_share(found["scalar"], fixed, pairs=xr.Dataset({"unit": ("rank", [8]), "head": ("rank", [0])}))


def test_association__is_the_golden_point_biserial():
    y, v = series([1, 0, 1, 0, 0, 1]), series([0.9, 0.2, 0.7, 0.4, 0.1, 0.3])
    found = association(v, y == 1, permutations=200, bootstrap=100)
    np.testing.assert_allclose(found["r"], 0.7120689950, atol=1e-10)
    assert found["low"] <= found["r"] <= found["high"]
    assert (int(found["n"]), int(found["informative"])) == (6, 6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 40))
def test_association__is_that_of_scipy_and_blind_to_scale(seed, n):
    rng = np.random.default_rng(seed)
    flag = np.r_[True, False, rng.random(n - 2) < 0.4]
    values = xr.DataArray(rng.normal(size=(n, 2)), dims=("sample", "phrase"))
    found = association(values, series(flag), permutations=20, bootstrap=0, seed=1)
    exact = [scipy.stats.pointbiserialr(flag, column).statistic for column in values.to_numpy().T]
    np.testing.assert_allclose(found["r"], exact, atol=1e-10)
    scaled = association(values * 3 + 2, series(flag), permutations=20, bootstrap=0, seed=1)
    xr.testing.assert_allclose(scaled, found)
    assert found["low"].isnull().all()


def test_association__has_a_p_that_is_that_of_all_permutations():
    rng = np.random.default_rng(0)
    y, v = series(np.arange(6) < 3), series(rng.normal(size=6))
    r = association(v, y, permutations=0, bootstrap=0)
    assert r["p"].isnull()
    found = association(v, y, permutations=20_000, bootstrap=0)
    exact = scipy.stats.permutation_test(
        (v.to_numpy(),),
        lambda x: abs(scipy.stats.pearsonr(x, y.to_numpy()).statistic),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=np.inf,
    )
    np.testing.assert_allclose(found["p"], exact.pvalue, atol=0.015)


def confounded(n=600, seed=0, own=0.0):
    """A value that follows the year, and a flag that does; within a year they go together only by ``own``."""
    rng = np.random.default_rng(seed)
    year = rng.integers(2000, 2006, n)
    flag = rng.random(n) < (year - 1999) / 8
    value = 0.3 * (year - 2000) + rng.normal(size=n) + own * flag
    return series(value), series(flag), series(year)


def test_association__within_strata_takes_the_confounder_off():
    value, flag, year = confounded()
    plain, within = association(value, flag), association(value, flag, strata=year)
    assert plain["p"] < 0.002
    assert plain["r"] > 0.15
    assert within["p"] > 0.05
    assert within["low"] < 0 < within["high"]
    real = association(*confounded(own=1.0)[:2], strata=confounded(own=1.0)[2])
    assert real["p"] < 0.002
    assert real["low"] > 0.2


def test_association__within_strata_is_the_correlation_of_what_is_left():
    value, flag, year = confounded(60)
    model = series(np.arange(60) % 3)
    found = association(value, flag, strata=[year, model], permutations=0, bootstrap=0)
    key = year.to_numpy() * 10 + model.to_numpy()
    x, y = value.to_numpy().copy(), flag.to_numpy().astype(float)
    informative = 0
    for stratum in np.unique(key):
        here = key == stratum
        informative += here.sum() * (len(np.unique(y[here])) > 1)
        x[here] -= x[here].mean()
        y[here] -= y[here].mean()
    np.testing.assert_allclose(found["r"], np.corrcoef(x, y)[0, 1])
    assert int(found["informative"]) == informative


def test_association__finds_a_planted_shift_and_not_a_random_phrase():
    """Images of one kind have more of a unit: its phrase's pairs tell them apart, those of others do not."""
    pool = random_pool(units=12, heads=2, head_dim=8, features=12, seed=5)
    pool = replace(pool, positions=pool.positions / 10)
    maps = random_maps(pool, 160, seed=6)
    flag = np.arange(160) % 2 == 0
    maps[flag, 3] += 1.5
    found, fixed = scalars(pool, maps), factors(pool)
    vectors = fixed["output"].to_numpy()[:, 0] @ fixed["value"].to_numpy()[0, :, [3, 8]].T  # u of two units, head 0
    share = phrase_share(found["scalar"], fixed, xr.DataArray(vectors.T, dims=("phrase", "feature")), k=1)
    tested = association(share, series(flag), bootstrap=200)
    assert tested["r"][0] > 0.5
    assert tested["p"][0] < 0.002
    assert abs(tested["r"][1]) < tested["r"][0] / 2


def test_association__leaves_out_what_is_missing_and_knows_no_constant():
    value, flag, year = confounded(80)
    holes = value.copy(deep=True)
    holes[::7] = np.nan
    found = association(holes, flag, strata=year, permutations=30, bootstrap=30)
    kept = holes.notnull().to_numpy()
    exact = association(value[kept], flag[kept], strata=year[kept], permutations=30, bootstrap=30)
    xr.testing.assert_identical(found, exact)
    assert int(found["n"]) == kept.sum()
    for one, other in ((value * 0 + 0.1, flag), (value, flag & False), (value[:0], flag[:0])):
        nothing = association(one, other, permutations=10, bootstrap=10)
        assert all(np.isnan(nothing[name]) for name in ("r", "p", "low", "high"))
    same = association(value, year == year, strata=year, permutations=10, bootstrap=10)
    assert int(same["informative"]) == 0


def test_association__is_drawn_from_its_seed():
    value, flag, year = confounded(80)
    one, two, other = (association(value, flag, strata=year, seed=s) for s in (1, 1, 2))
    xr.testing.assert_identical(one, two)
    assert one["low"] != other["low"]


def test_association_by_group__compares_means_with_rates():
    value, flag, year = confounded(400)
    found = association_by_group(value, flag, year)
    assert found["group"].to_numpy().tolist() == list(range(2000, 2006))
    for i, y in enumerate(range(2000, 2006)):
        here = year.to_numpy() == y
        np.testing.assert_allclose(found["mean"][i], value[here].mean())
        np.testing.assert_allclose(found["rate"][i], flag[here].mean())
        np.testing.assert_allclose(found["r"][i], np.corrcoef(value[here], flag[here])[0, 1])
        reach = scipy.stats.sem(value[here]) * scipy.stats.t.ppf(0.975, here.sum() - 1)
        np.testing.assert_allclose(found["mean_high"][i] - found["mean"][i], reach)
    wilson = scipy.stats.binomtest(int((flag & (year == 2000)).sum()), int((year == 2000).sum())).proportion_ci(
        method="wilson"
    )
    np.testing.assert_allclose([found["rate_low"][0], found["rate_high"][0]], wilson)
    np.testing.assert_allclose(found["correlation"], np.corrcoef(found["mean"], found["rate"])[0, 1])
    assert found["correlation"] > association(value, flag)["r"]  # of means, much higher than of images
    exact = scipy.stats.permutation_test(
        (found["mean"].to_numpy(),),
        lambda x: abs(scipy.stats.pearsonr(x, found["rate"].to_numpy()).statistic),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=np.inf,
    )
    np.testing.assert_allclose(found["p"], exact.pvalue, atol=0.02)


def test_association_by_group__knows_groups_of_one_and_numbers():
    value, flag, _ = confounded(9)
    found = association_by_group(value, flag, series(["a"] * 4 + ["b"] * 4 + ["c"]), permutations=5)
    assert found["n"].to_numpy().tolist() == [4, 4, 1]
    assert np.isnan(found["r"][2])
    assert np.isnan(found["mean_low"][2])
    numbers = association_by_group(value, value * 2, series([0.0, 1.0, np.nan] * 3), permutations=5)
    np.testing.assert_allclose(numbers["r"], [1, 1])
    np.testing.assert_allclose(numbers["rate_low"], numbers["mean_low"] * 2)
    assert int(numbers["n"].sum()) == 6


def test_association__says_what_does_not_fit():
    value, flag, year = confounded(20)
    with pytest.raises(SchemaError, match="compare it"):
        association(value, series(["red"] * 20))
    with pytest.raises(SchemaError, match=r"other samples \(20 and 19\)"):
        association(value, flag[1:])
    named = value.assign_coords(sample=np.arange(20))
    with pytest.raises(SchemaError, match="other samples"):
        association(named, flag.assign_coords(sample=np.arange(20)[::-1]))
    with pytest.raises(SchemaError, match="strata"):
        association(value, flag, strata=[year.rename(sample="image")])
    with pytest.raises(SchemaError, match="permutations=-1"):
        association(value, flag, permutations=-1)
    with pytest.raises(SchemaError, match="bootstrap=-1"):
        association(value, flag, bootstrap=-1)
    with pytest.raises(SchemaError, match="select one phrase"):
        association_by_group(xr.concat([value, value], "phrase"), flag, year)


def test_page__has_a_snippet_that_runs():
    text = (Path(__file__).parent.parent / "docs" / "reference" / "shift.md").read_text()
    snippet, _of_a_run = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    names = {}
    exec(compile(snippet, "shift.md", "exec"), names)
    assert int(names["alike"]["n"]) == 40
