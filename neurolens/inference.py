"""How sure an estimate is: bootstrap weights and percentile intervals."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from neurolens.errors import SchemaError


def require_resampling(bootstrap: int, confidence: float) -> None:
    """Raise SchemaError unless there can be so many resamples and such an interval."""
    if bootstrap < 0:
        raise SchemaError(f"bootstrap={bootstrap} is no number of resamples; give 0 for none, or e.g. 1000")
    if not 0 < confidence < 1:
        raise SchemaError(f"confidence={confidence} is no coverage; give a number between 0 and 1, e.g. 0.95")


def bootstrap_counts(n: int, resamples: int, seed: int) -> Iterator[Any]:
    """Yield, per resample, how often each of ``n`` samples is drawn (int64 (n,), summing to n).

    Counts let a statistic of sorted data be recomputed without sorting again.
    """
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(generator.integers(0, n, n), minlength=n)


def percentile_interval(values: Any, confidence: float) -> tuple[Any, Any]:
    """Return the bounds that hold the middle ``confidence`` of ``values`` along their first axis; NaNs are left out.

    References
    ----------
    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3.
    """
    tail = (1 - confidence) / 2
    values = np.asarray(values, dtype=float)
    low, high = np.nanquantile(values, [tail, 1 - tail], axis=0)
    return low, high
