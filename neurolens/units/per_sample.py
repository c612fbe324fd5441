"""Compiled sums over the groups of a batch: per class, per position of a text, and the largest values of each unit."""

from typing import Any

import numpy as np

from neurolens.units.kernels import compiled, observations


@compiled
def add_classes(
    labels: Any,
    counts: Any,
    scales: Any,
    abs_sum: Any,
    mean: Any,
    high: Any,
    positive: Any,
    class_n: Any,
    class_abs_sum: Any,
    class_sum: Any,
    class_max: Any,
    class_n_pos: Any,
) -> None:
    """Add groups (sample, unit) to the sums of their samples' classes, (class, unit); ``class_n`` is (class,)."""
    for b in range(len(labels)):
        c, n, scale = labels[b], observations(counts[b], scales[b]), scales[b]
        if n == 0.0:
            continue
        class_n[c] += n
        for u in range(abs_sum.shape[1]):
            class_abs_sum[c, u] += abs_sum[b, u] * scale
            class_sum[c, u] += mean[b, u] * n
            class_n_pos[c, u] += positive[b, u] * scale
            largest = np.float64(high[b, u])
            if largest > class_max[c, u] or largest != largest:
                class_max[c, u] = largest


@compiled
def add_fired(values: Any, at: Any, counts: Any, times: Any) -> None:
    """Add to ``times`` (i, unit) where a unit of rows is above zero at a text's i-th token, ``at[b, i]``."""
    units = values.shape[2]
    for b in range(len(counts)):
        for i in range(counts[b]):
            row, line = values[b, at[b, i]], times[i]
            for u in range(units):
                line[u] += row[u] > 0


@compiled
def keep_top(maxima: Any, counts: Any, at: Any, values: Any, samples: Any) -> None:
    """Insert maxima (sample, unit) of the samples ``at`` into the largest ones yet, (unit, rank), decreasing.

    Of equal values that of the earlier sample is kept, and stands first; a NaN is never kept, nor a sample without
    observations. A place is free where ``samples`` is -1.
    """
    ranks = values.shape[1]
    for b in range(len(at)):
        if counts[b] == 0:
            continue
        sample = at[b]
        for u in range(maxima.shape[1]):
            value = maxima[b, u]
            if value != value:
                continue
            place = ranks
            while place > 0:
                other = samples[u, place - 1]
                kept = values[u, place - 1]
                if other >= 0 and (value < kept or (value == kept and sample > other)):
                    break
                place -= 1
                if place + 1 < ranks:
                    values[u, place + 1], samples[u, place + 1] = kept, other
            if place < ranks:
                values[u, place], samples[u, place] = value, sample
