"""Paired statistics of a grid: golden numbers, slow versions, and what they leave alone."""

from itertools import product

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel, wilcoxon

from neurolens.attribution import compare, held_out
from neurolens.errors import NonFiniteError, SchemaError


def scores(samples=12, maps=4, seed=0, effect=0.3, classes=4):
    """Return filtered (sample, map, attribution) and baseline (sample, attribution) scores of related samples."""
    generator = np.random.default_rng(seed)
    label = np.arange(samples) % classes
    coords = {"sample": [f"s{i}" for i in range(samples)], "label": ("sample", label)}
    baseline = xr.DataArray(generator.normal(size=(samples, 2)), dims=("sample", "attribution"), coords=coords)
    noise = generator.normal(size=(samples, maps, 2)) + generator.normal(size=(classes, 1, 1))[label]
    shift = effect * np.arange(maps)[:, None]
    names = {"map": [f"k3/{i}" for i in range(maps)], "attribution": ["ig", "saliency"]}
    filtered = xr.DataArray(noise + shift, dims=("sample", "map", "attribution"), coords=coords | names) + baseline
    return filtered, baseline


GOLDEN = (
    xr.DataArray([0.15, 0.18, 0.42, 0.47, 0.58], dims="sample"),
    xr.DataArray([0.10, 0.20, 0.30, 0.40, 0.50], dims="sample"),
)


def test_compare__gives_the_golden_numbers():
    found = compare(*GOLDEN, compat="seed", seed=42)
    wanted = {
        "t": 2.6062334566,
        "p_t": 0.0596556899,
        "d_z": 1.1655430348,
        "std": 0.0460434577,
        "improved": 0.8,
        "w": 1,
        "p_wilcoxon": 0.125,
        "low": 0.016,
        "high": 0.096,
        "difference": 0.06,
        "filtered_mean": 0.36,
        "baseline_mean": 0.3,
        "p_max_t": 4 / 32,
        "p_bh": 0.0596556899,
        "n": 5,
    }
    for name, value in wanted.items():
        assert float(found[name]) == pytest.approx(value, abs=5e-11), name
    assert found["percent"].to_numpy().tolist() == [5, 25, 50, 75, 95]
    np.testing.assert_allclose(found["percentile"], [-0.006, 0.05, 0.07, 0.08, 0.112], atol=1e-12)


def test_compare__draws_as_the_reference_does():
    filtered, baseline = (s.isel(attribution=0, drop=True) for s in scores(30))
    one = filtered.isel(map=2, drop=True)
    found = compare(one, baseline, compat="seed", seed=42, bootstrap=500)
    state, difference = np.random.RandomState(42), (one - baseline).to_numpy()
    means = [state.choice(difference, size=30, replace=True).mean() for _ in range(500)]
    np.testing.assert_allclose([found["low"], found["high"]], np.percentile(means, [2.5, 97.5]), rtol=1e-12)


def slow(one, other, classes):
    """Return the numbers of one filter, pair by pair."""
    known = np.isfinite(one) & np.isfinite(other)
    one, other, classes = one[known], other[known], classes[known]
    d = one - other
    t, p = ttest_rel(one, other)
    w, p_w = wilcoxon(one, other)
    out = {
        "n": len(d),
        "difference": sum(d) / len(d),
        "std": np.std(d),
        "d_z": np.mean(d) / np.std(d, ddof=1),
        "t": t,
        "p_t": p,
        "w": w,
        "p_wilcoxon": p_w,
        "improved": np.mean([x > 0 for x in d]),
        "n_classes": len(set(classes.tolist())),
    }
    return out


def test_compare__is_that_of_each_filter_alone():
    filtered, baseline = scores(20, 3)
    filtered[3, 1] = np.nan
    baseline[5, 0] = np.nan
    found = compare(filtered, baseline, classes="label", bootstrap=0, flips=0)
    for at, method in product(range(3), range(2)):
        wanted = slow(filtered[:, at, method].data, baseline[:, method].data, filtered["label"].data)
        for name, value in wanted.items():
            assert float(found[name][at, method]) == pytest.approx(value, rel=1e-10), name
    assert found["n"].to_numpy().tolist() == [[19, 20], [18, 19], [19, 20]]
    assert set(found["map"].to_numpy()) == {"k3/0", "k3/1", "k3/2"}


def test_compare__interval_is_that_of_samples_drawn_again():
    filtered, baseline = scores(15, 2)
    filtered[4, 0] = np.nan
    found = compare(filtered, baseline, bootstrap=200, flips=0, seed=3)
    generator, difference = np.random.default_rng(3), (filtered - baseline).to_numpy()
    means = [np.nanmean(difference[generator.integers(0, 15, 15)], axis=0) for _ in range(200)]
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(found["low"], low, rtol=1e-10)
    np.testing.assert_allclose(found["high"], high, rtol=1e-10)


def test_compare__class_interval_is_that_of_whole_classes_drawn_again():
    filtered, baseline = scores(15, 2)  # 15 samples in 4 classes: they differ in size
    filtered[4, 0] = np.nan
    found = compare(filtered, baseline, classes="label", bootstrap=200, flips=0, seed=3)
    generator, difference = np.random.default_rng(3), (filtered - baseline).to_numpy()
    label = filtered["label"].to_numpy()
    means = []
    for _ in range(200):
        rows = np.concatenate([np.flatnonzero(label == drawn) for drawn in generator.integers(0, 4, 4)])
        means.append(np.nanmean(difference[rows], axis=0))
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(found["class_low"], low, rtol=1e-10)
    np.testing.assert_allclose(found["class_high"], high, rtol=1e-10)


def test_compare__class_intervals_are_wider_where_classes_differ():
    filtered, baseline = scores(200, 1, classes=10)
    found = compare(filtered, baseline, classes="label", bootstrap=500, flips=500)
    wide, narrow = found["class_high"] - found["class_low"], found["high"] - found["low"]
    assert (wide > 1.5 * narrow).all()


def test_compare__flips_whole_classes_together():
    filtered, baseline = scores(9, 3, classes=3)
    found = compare(filtered, baseline, classes="label", bootstrap=0)
    difference, label = (filtered - baseline).to_numpy().reshape(9, -1), filtered["label"].to_numpy()
    sums = np.array([difference[label == c].sum(axis=0) for c in range(3)])

    def t(values):
        return np.abs(values.mean(axis=0)) / values.std(axis=0, ddof=1)

    largest = [t(sums * np.array(signs)[:, None]).max() for signs in product([1, -1], repeat=3)]
    p = (np.array(largest)[:, None] >= t(sums) - 1e-9).mean(axis=0)
    np.testing.assert_allclose(found["class_p_max_t"].to_numpy().ravel(), p)


def test_compare__says_nothing_of_what_there_is_not():
    filtered, baseline = scores(6, 4)
    filtered[:, 0] = np.nan
    filtered[1:, 1] = np.nan
    filtered[:, 2] = baseline
    filtered[:, 3] = baseline + 0.1
    found = compare(filtered, baseline, classes="label", bootstrap=100).isel(attribution=0)
    nothing, single, same, shifted = (found.isel(map=at) for at in range(4))
    assert nothing["n"] == nothing["n_classes"] == 0
    assert all(np.isnan(nothing[name]).all() for name in found.data_vars if name not in ("n", "n_classes"))
    assert single["n"] == 1
    assert np.isfinite(single["difference"])
    for name in ("t", "p_t", "d_z", "low", "high", "class_low", "p_max_t", "class_p_max_t"):
        assert np.isnan(single[name]), name
    assert np.isnan(same["t"])
    assert np.isnan(same["p_wilcoxon"])
    assert same["p_max_t"] == 1
    assert same["low"] == same["high"] == 0
    assert np.isnan(shifted["t"])
    assert shifted["p_max_t"] == 2 / 64
    assert shifted["p_wilcoxon"] < 0.05


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 9), st.permutations(range(4)))
def test_compare__follows_filters_and_signs(seed, samples, order):
    filtered, baseline = scores(samples, 4, seed)
    found = compare(filtered, baseline, bootstrap=50, flips=50, seed=seed)
    turned = compare(filtered.isel(map=list(order)), baseline, bootstrap=50, flips=50, seed=seed)
    xr.testing.assert_allclose(turned, found.isel(map=list(order)))
    swapped = compare(-filtered, -baseline, bootstrap=50, flips=50, seed=seed)
    for name in ("d_z", "t", "difference"):
        xr.testing.assert_allclose(swapped[name], -found[name])
    for name in ("p_t", "p_wilcoxon", "p_max_t", "p_bh"):
        xr.testing.assert_allclose(swapped[name], found[name])
    xr.testing.assert_allclose(swapped["low"], -found["high"])
    assert (found["p_bh"] >= found["p_t"]).all()


def test_compare__corrects_more_in_a_larger_grid():
    filtered, baseline = scores(30, 8)
    few = compare(filtered.isel(map=[7]), baseline, bootstrap=0, flips=500)
    all_ = compare(filtered, baseline, bootstrap=0, flips=500)
    assert (all_["p_max_t"].isel(map=[7]) >= few["p_max_t"]).all()
    assert float(few["p_max_t"].min()) == pytest.approx(1 / 501)


def test_compare__takes_a_lazy_table():
    filtered, baseline = scores(10, 3)
    lazy = compare(filtered.chunk(sample=3, map=2), baseline.chunk(sample=4), classes="label", bootstrap=20, flips=20)
    xr.testing.assert_identical(lazy, compare(filtered, baseline, classes="label", bootstrap=20, flips=20))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda f, b: (f, b), {"dim": "image"}, "samples along 'image' were needed"),
        (lambda f, b: (f, b), {"classes": "lable"}, "did you mean 'label'"),
        (lambda f, b: (f, b.isel(sample=slice(1, None))), {}, "bring them together with xarray.align"),
        (lambda f, b: (f.isel(attribution=0), b), {}, r"dims \['attribution'\] that the filtered ones lack"),
        (lambda f, b: (f.isel(sample=[]), b.isel(sample=[])), {}, "samples along 'sample' were needed"),
        (lambda f, b: (f, b), {"bootstrap": -1}, "bootstrap=-1"),
        (lambda f, b: (f, b), {"flips": -1}, "flips=-1"),
        (lambda f, b: (f, b), {"compat": "sead"}, "did you mean 'seed'"),
        (
            lambda f, b: (f.assign_coords(label=("sample", [np.nan, *range(11)])), b.drop_vars("label")),
            {"classes": "label"},
            "1 samples have no class",
        ),
    ],
)
def test_compare__errors_name_the_mend(change, options, message):
    with pytest.raises(SchemaError, match=message):
        compare(*change(*scores()), **options)


def test_compare__refuses_infinite_scores():
    filtered, baseline = scores()
    filtered[2, 0, 0] = np.inf
    with pytest.raises(NonFiniteError, match="found 1 infinite scores"):
        compare(filtered, baseline)


def test_held_out__tests_the_best_on_the_samples_that_did_not_choose_it():
    filtered, baseline = scores(41, 5, effect=1.0)
    found = held_out(filtered, baseline, bootstrap=50, seed=1)
    first = np.random.default_rng([1, 1]).permutation(41)[:20]
    second = np.setdiff1d(np.arange(41), first)
    means = (filtered - baseline)[first].mean("sample")
    place = np.unravel_index(int(means.data.argmax()), means.shape)
    assert (int(found["chosen_map"]), int(found["chosen_attribution"])) == place
    assert found["chosen_n"] == 20
    assert found["n"] == 21
    assert float(found["chosen_difference"]) == pytest.approx(float(means.max()))
    one = filtered.isel(map=place[0], attribution=place[1])
    alone = compare(one[second], baseline[second, place[1]], bootstrap=50, flips=0, seed=1)
    xr.testing.assert_allclose(found[["t", "low", "high", "p_wilcoxon"]], alone[["t", "low", "high", "p_wilcoxon"]])
    assert found["map"] == f"k3/{place[0]}"
    assert not {"p_max_t", "p_bh"} & set(found)


def test_held_out__keeps_classes_on_one_side():
    filtered, baseline = scores(40, 3, classes=8)
    found = held_out(filtered, baseline, classes="label", choose="smaller", bootstrap=20)
    assert found["n_classes"] == 4
    assert found["n"] == found["chosen_n"] == 20
    assert np.isfinite(found["class_low"])


def test_held_out__is_not_fooled_by_choosing():
    chosen, tested = [], []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        filtered = xr.DataArray(generator.normal(size=(20, 50)), dims=("sample", "map"))
        found = held_out(filtered, xr.zeros_like(filtered[:, 0]), bootstrap=0, seed=seed)
        chosen.append(float(found["chosen_difference"]))
        tested.append(float(found["difference"]))
    assert np.mean(chosen) > 0.5
    assert abs(np.mean(tested)) < 0.2


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda f, b: (f, b), {"choose": "largest"}, "did you mean 'larger'"),
        (lambda f, b: (f, b), {"share": 1.0}, "between 0 and 1"),
        (lambda f, b: (f, b), {"share": 0.01}, "found 12 samples"),
        (lambda f, b: (f, b), {"share": 0.1, "classes": "label"}, "found 4 classes"),
        (lambda f, b: (f[:, 0, 0], b[:, 0]), {}, "give a grid to choose from"),
        (lambda f, b: (f * np.nan, b), {}, "no filter has a score"),
    ],
)
def test_held_out__errors_name_the_mend(change, options, message):
    with pytest.raises(SchemaError, match=message):
        held_out(*change(*scores()), **options)
