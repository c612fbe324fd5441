"""Largest values per unit, sums per class, firing per token: by hand."""

import numpy as np
import torch

from neurolens.units import observing, per_sample
from neurolens.units.observing import kept_tokens


def test_keep_top__prefers_the_earlier_sample_in_any_order() -> None:
    maxima = np.array([[1, 5], [3, 5], [3, -1], [2, 7], [np.nan, 9]], dtype=np.float32)
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        values, samples = np.full((2, 3), np.nan, np.float32), np.full((2, 3), -1, np.int32)
        at, counts = np.array(order), np.array([1, 1, 1, 1, 0])[order]
        per_sample.keep_top(maxima[order][:2], counts[:2], at[:2], values, samples)
        per_sample.keep_top(maxima[order][2:], counts[2:], at[2:], values, samples)
        assert samples.tolist() == [[1, 2, 3], [3, 0, 1]]
        assert values.tolist() == [[3, 3, 2], [7, 5, 5]]


def test_keep_top__fewer_samples_than_ranks() -> None:
    values, samples = np.full((1, 4), np.nan, np.float32), np.full((1, 4), -1, np.int32)
    per_sample.keep_top(np.float32([[-2.0], [np.nan], [-1.0]]), np.ones(3, int), np.arange(3), values, samples)
    assert samples.tolist() == [[2, 0, -1, -1]]
    assert values[0, :2].tolist() == [-1, -2]
    assert np.isnan(values[0, 2:]).all()


def test_fired__counts_by_rank_of_the_token() -> None:
    x = torch.tensor([[[1.0], [0], [2], [5]], [[1], [-1], [3], [4]]])
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)
    assert observing.fired(x, kept_tokens(mask, tokens="token")).tolist() == [[1], [1], [1]]


def test_add_classes__sums_by_hand() -> None:
    groups = observing.groups(torch.tensor([[1.0, -2], [3, 0], [-5, 4]]), 1)
    n, sums = np.zeros(3), [np.zeros((3, 2)), np.zeros((3, 2)), np.full((3, 2), -np.inf), np.zeros((3, 2))]
    of_group = (groups.abs_sum, groups.mean, groups.high, groups.positive)
    per_sample.add_classes(np.array([2, 0, 2]), groups.counts, groups.scales, *of_group, n, *sums)
    assert n.tolist() == [1, 0, 2]
    abs_sum, total, largest, positive = (s.tolist() for s in sums)
    assert abs_sum == [[3, 0], [0, 0], [6, 6]]
    assert total == [[3, 0], [0, 0], [-4, 2]]
    assert largest == [[3, 0], [-np.inf, -np.inf], [1, 4]]
    assert positive == [[1, 0], [0, 0], [1, 1]]
