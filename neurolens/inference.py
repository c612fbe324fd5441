"""How sure an estimate is: bootstrap weights and percentile intervals, bounds of a proportion."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from neurolens.errors import SchemaError, nearest


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


def binomial_upper(
    successes: Any, trials: Any, *, confidence: float = 0.95, method: Literal["wilson", "clopper_pearson"] = "wilson"
) -> Any:
    """Return the upper bound of a probability, of which so many successes in so many trials were seen; one-sided.

    Parameters
    ----------
    successes, trials : arrays that broadcast
        Counts, or weights; 0 ≤ successes ≤ trials.
    confidence : float
        Coverage of [0, bound].
    method : {"wilson", "clopper_pearson"}
        Wilson's score bound, whose coverage is ``confidence`` on average, or the exact one, never below it.

    Returns
    -------
    array of float64
        1 where all trials succeeded, or there was none; with no success in N, at 95 %, about 3/N exact (rule of three)
        and 2.7/N by Wilson. NaN where a count is NaN.

    Raises
    ------
    SchemaError
        If the confidence is no coverage, the method is unknown, or there are more successes than trials.

    References
    ----------
    Wilson 1927; Clopper and Pearson 1934; Brown, Cai and DasGupta 2001.
    """
    from scipy.special import betaincinv, ndtri

    require_resampling(0, confidence)
    if method not in ("wilson", "clopper_pearson"):
        raise SchemaError(f"method={method!r} is unknown; {nearest(str(method), ('wilson', 'clopper_pearson'))}")
    k, n = np.broadcast_arrays(np.asarray(successes, dtype=float), np.asarray(trials, dtype=float))
    if ((k < 0) | (k > n)).any():
        raise SchemaError("found more successes than trials, or fewer than none; count both over the same observations")
    known, partial = np.isfinite(k) & np.isfinite(n), k < n
    bound = np.where(known, 1.0, np.nan)
    k, n = np.where(partial, k, 0.0), np.where(partial, n, 1.0)
    if method == "clopper_pearson":
        upper = betaincinv(k + 1, n - k, confidence)
    else:
        z, p = ndtri(confidence), k / n
        upper = (p + z**2 / (2 * n) + z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))) / (1 + z**2 / n)
    return np.where(known & partial, upper, bound)


def normal_interval(mean: Any, error: Any, confidence: float = 0.95) -> tuple[Any, Any]:
    """Return the bounds mean ± z · standard error; NaN where either is."""
    from scipy.special import ndtri

    require_resampling(0, confidence)
    reach = ndtri(1 - (1 - confidence) / 2) * np.asarray(error, dtype=float)
    mean = np.asarray(mean, dtype=float)
    return mean - reach, mean + reach


def paired_interval(lost: Any, gained: Any, n: Any, confidence: float = 0.95) -> tuple[Any, Any]:
    """Return the bounds of a difference of two shares of the same samples, (lost − gained) / n.

    Parameters
    ----------
    lost, gained : arrays that broadcast
        Samples that have it the first time only, and the second time only.
    n : array
        All samples.
    confidence : float
        Coverage.

    Returns
    -------
    low, high : arrays of float64
        Wald's bounds after half a sample was added to each of the four cells. NaN where a count is.

    References
    ----------
    Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions".
    """
    b, c = np.asarray(lost, dtype=float) + 0.5, np.asarray(gained, dtype=float) + 0.5
    size = np.asarray(n, dtype=float) + 2
    gap = (b - c) / size
    low, high = normal_interval(gap, np.sqrt(b + c - (b - c) ** 2 / size) / size, confidence)
    return np.maximum(low, -1.0), np.minimum(high, 1.0)
