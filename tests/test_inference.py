"""Bootstrap counts, percentile intervals, bounds of a proportion, corrections for many tests."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp

from neurolens.errors import SchemaError
from neurolens.inference import (
    benjamini_hochberg,
    binomial_upper,
    bootstrap_counts,
    percentile_interval,
    sign_flip_max_t,
    student_interval,
    wilson_interval,
)


def test_bootstrap_counts__draw_n_samples_with_replacement_by_seed():
    one, two = (np.stack(list(bootstrap_counts(50, 200, seed))) for seed in (4, 4))
    np.testing.assert_array_equal(one, two)
    assert (one.sum(axis=1) == 50).all()
    assert abs(one.mean() - 1) < 1e-12
    assert 0.9 < one.var() < 1.1  # Poisson-like


def test_percentile_interval__holds_the_middle_share():
    low, high = percentile_interval(np.arange(101.0), 0.9)
    np.testing.assert_allclose([low, high], [5, 95])
    low, high = percentile_interval(np.append(np.arange(101.0), np.nan)[:, None], 0.9)
    np.testing.assert_allclose([low, high], [[5], [95]])


def test_percentile_interval__of_no_columns_has_none():
    low, high = percentile_interval(np.empty((20, 0)), 0.95)
    assert low.shape == high.shape == (0,)


def test_wilson_interval__is_that_of_scipy_and_knows_nothing_of_no_trials():
    successes, trials = np.array([0, 3, 7, 7]), np.array([7, 7, 7, 9])
    low, high = wilson_interval(successes, trials, 0.9)
    for at, (k, n) in enumerate(zip(successes, trials)):
        wanted = binomtest(int(k), int(n)).proportion_ci(0.9, "wilson")
        np.testing.assert_allclose([low[at], high[at]], [wanted.low, wanted.high], atol=1e-12)
    assert np.isnan(wilson_interval([0, np.nan], [0, 3])).all()
    with pytest.raises(SchemaError, match="confidence=95"):
        wilson_interval(1, 2, 95)


def test_student_interval__is_that_of_scipy_and_knows_nothing_of_one_sample():
    sample = np.random.default_rng(0).normal(size=6)
    wanted = ttest_1samp(sample, 0).confidence_interval(0.9)
    error = sample.std(ddof=1) / np.sqrt(6)
    np.testing.assert_allclose(student_interval(sample.mean(), error, 5, 0.9), [wanted.low, wanted.high])
    assert np.isnan(student_interval(1.0, [0.1, np.nan], [0, 5])).all()


def test_percentile_interval__covers_the_mean_of_normal_samples():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(100):
        sample = rng.normal(size=80)
        low, high = percentile_interval([w @ sample / 80 for w in bootstrap_counts(80, 200, trial)], 0.9)
        hits += low < 0 < high
    assert 80 <= hits <= 97


@pytest.mark.parametrize(("method", "scipys"), [("wilson", "wilson"), ("clopper_pearson", "exact")])
@given(n=st.integers(1, 5000), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=50, deadline=None)
def test_binomial_upper__is_that_of_scipy(method, scipys, n, share, confidence):
    k = round(share * n)
    expected = binomtest(k, n, alternative="less").proportion_ci(confidence, scipys).high
    assert float(binomial_upper(k, n, confidence=confidence, method=method)) == pytest.approx(expected, rel=1e-9)


def test_binomial_upper__of_never_follows_the_rule_of_three():
    n = np.array([100, 1000, 1_000_000])
    exact, wilson = (binomial_upper(0, n, method=method) for method in ("clopper_pearson", "wilson"))
    np.testing.assert_allclose(exact, 1 - 0.05 ** (1 / n))
    np.testing.assert_allclose(exact * n, 3, rtol=0.02)
    np.testing.assert_allclose(wilson * n, 2.7055, rtol=0.03)


def test_binomial_upper__covers_the_true_probability_as_often_as_it_says():
    rng, n = np.random.default_rng(0), 40
    for p in (0.01, 0.05, 0.3):
        seen = rng.binomial(n, p, 20_000)
        covered = (binomial_upper(seen, n, method="clopper_pearson") >= p).mean()
        assert covered >= 0.945
    spread = rng.random(20_000)
    assert abs((binomial_upper(rng.binomial(n, spread), n) >= spread).mean() - 0.95) < 0.01


def test_binomial_upper__knows_nothing_without_trials():
    found = binomial_upper([0, 5, np.nan, 0], [0, 5, 5, np.nan])
    np.testing.assert_array_equal(found, [1, 1, np.nan, np.nan])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"successes": 6}, "more successes than trials"),
        ({"successes": -1}, "fewer than none"),
        ({"confidence": 95}, "confidence=95"),
        ({"method": "wald"}, "method='wald' is unknown; known|did you mean"),
    ],
)
def test_binomial_upper__errors_name_the_mend(options, message):
    with pytest.raises(SchemaError, match=message):
        binomial_upper(**{"successes": 0, "trials": 5} | options)


def test_benjamini_hochberg__is_the_step_up_of_the_paper():
    p = np.array([[0.01, 0.04, 0.03], [np.nan, 0.005, 0.5]])
    # sorted .005 .01 .03 .04 .5, times 5 / rank: .025 .025 .05 .05 .5, and no later one is smaller
    np.testing.assert_allclose(benjamini_hochberg(p), [[0.025, 0.05, 0.05], [np.nan, 0.025, 0.5]])
    assert np.isnan(benjamini_hochberg([np.nan])).all()


def t_statistic(values):
    """Return |t| of each column, NaN left out."""
    n = np.isfinite(values).sum(axis=0)
    return np.abs(np.nanmean(values, axis=0)) / (np.nanstd(values, axis=0, ddof=1) / np.sqrt(n))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(3, 7), st.integers(1, 5))
def test_sign_flip_max_t__of_few_pairs_is_the_share_of_all_flips(seed, n, tests):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(n, tests)) + generator.normal(size=tests) * 2
    values[0, 1:] = np.nan  # tests of different size
    largest = [t_statistic(values * np.array(signs)[:, None]).max() for signs in product([1, -1], repeat=n)]
    wanted = (np.array(largest)[:, None] >= t_statistic(values) * (1 - 1e-9)).mean(axis=0)
    np.testing.assert_allclose(sign_flip_max_t(values), wanted)


def test_sign_flip_max_t__of_many_pairs_draws_flips():
    generator = np.random.default_rng(0)
    values = generator.normal([0, 0.4, 3], size=(30, 3))
    found = sign_flip_max_t(values, flips=4000, seed=1)
    largest = [t_statistic(values * generator.choice([1, -1], (30, 1))).max() for _ in range(4000)]
    wanted = (1 + (np.array(largest)[:, None] >= t_statistic(values)).sum(axis=0)) / 4001
    np.testing.assert_allclose(found, wanted, atol=0.035)
    assert found[2] == 1 / 4001
    np.testing.assert_array_equal(sign_flip_max_t(values, flips=4000, seed=1), found)


def test_sign_flip_max_t__has_no_false_alarm_in_a_grid_more_often_than_said():
    alarms, singly = 0, 0
    for seed in range(300):
        values = np.random.default_rng(seed).normal(size=(20, 30))
        alarms += bool((sign_flip_max_t(values, flips=199, seed=seed) <= 0.05).any())
        singly += bool((ttest_1samp(values, 0).pvalue <= 0.05).any())
    assert alarms <= 28  # 15 expected; more than 28 once in 1000
    assert singly > 200


def test_sign_flip_max_t__knows_ties_and_what_cannot_be_told():
    values = np.array([[0.0, 0.1, np.nan, 1e-200], [0.0, 0.1, 1.0, 3e-200], [0.0, 0.1, np.nan, -2e-200]])
    np.testing.assert_allclose(sign_flip_max_t(values), [1, 2 / 8, np.nan, 1])
    np.testing.assert_allclose(sign_flip_max_t(values[:, 3:]), [6 / 8])


def test_sign_flip_max_t__needs_flips():
    with pytest.raises(SchemaError, match="flips=0 is no number of random signs"):
        sign_flip_max_t(np.ones((3, 1)), flips=0)
