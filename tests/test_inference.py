"""Bootstrap counts and percentile intervals."""

import numpy as np

from neurolens.inference import bootstrap_counts, percentile_interval


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


def test_percentile_interval__covers_the_mean_of_normal_samples():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(100):
        sample = rng.normal(size=80)
        low, high = percentile_interval([w @ sample / 80 for w in bootstrap_counts(80, 200, trial)], 0.9)
        hits += low < 0 < high
    assert 80 <= hits <= 97
