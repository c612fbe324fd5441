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
    if not values.size:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
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


def wilson_interval(successes: Any, trials: Any, confidence: float = 0.95) -> tuple[Any, Any]:
    """Return the bounds of a probability, of which so many successes in so many trials were seen; two-sided.

    NaN where there was no trial, or a count is NaN.

    References
    ----------
    Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".
    """
    require_resampling(0, confidence)
    one_sided = (1 + confidence) / 2
    k, n = np.broadcast_arrays(np.asarray(successes, dtype=float), np.asarray(trials, dtype=float))
    k = np.where(n > 0, k, np.nan)
    high = binomial_upper(k, n, confidence=one_sided)
    return 1 - binomial_upper(n - k, n, confidence=one_sided), high


def student_interval(mean: Any, error: Any, freedom: Any, confidence: float = 0.95) -> tuple[Any, Any]:
    """Return the bounds mean ± t · standard error, with such degrees of freedom; NaN where there are none."""
    from scipy.special import stdtrit

    require_resampling(0, confidence)
    freedom = np.asarray(freedom, dtype=float)
    t = stdtrit(np.where(freedom > 0, freedom, np.nan), (1 + confidence) / 2)
    mean, reach = np.asarray(mean, dtype=float), t * np.asarray(error, dtype=float)
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


def benjamini_hochberg(p: Any) -> Any:
    """Return p-values adjusted so that those at most α have a false discovery rate of at most α.

    Parameters
    ----------
    p : array of any shape
        All are one family. NaN is left out, and does not count.

    Returns
    -------
    array of float64, of the same shape
        NaN where ``p`` is.

    References
    ----------
    Benjamini and Hochberg 1995, "Controlling the False Discovery Rate", for independent or positively dependent tests.
    """
    from scipy.stats import false_discovery_control

    p = np.asarray(p, dtype=float)
    out, known = np.full(p.shape, np.nan), np.isfinite(p)
    if known.any():
        out[known] = false_discovery_control(p[known])
    return out


def sign_flip_max_t(differences: Any, *, flips: int = 10_000, seed: int = 0) -> Any:
    """Return p-values of paired t statistics that hold for a whole family: signs are flipped, of all tests together.

    A p-value of at most α is had by chance, in any of the tests, with a probability of at most α, however the tests
    depend on each other.

    Parameters
    ----------
    differences : (n, tests)
        Of n pairs, symmetric about 0 if there is no effect. NaN is left out, test by test.
    flips : int
        Random flips of the n signs. All 2ⁿ are taken instead where that is no more.
    seed : int
        Decides the flips, which are the same for all tests.

    Returns
    -------
    (tests,) float64
        (1 + flips whose largest \\|t\\| reaches that of the test) / (flips + 1); the share of all where all are taken.
        1 where all differences are 0, NaN where there are fewer than two.

    Raises
    ------
    SchemaError
        If there is no flip.

    References
    ----------
    Westfall and Young 1993, "Resampling-Based Multiple Testing", single-step maxT; Nichols and Holmes 2002.
    """
    if flips < 1:
        raise SchemaError(f"flips={flips} is no number of random signs; give e.g. 10000")
    values = np.asarray(differences, dtype=float)
    known = np.isfinite(values)
    pairs, n = known.sum(axis=0), len(values)
    values = np.where(known, values, 0.0)
    scale = np.abs(values).max(axis=0, initial=0.0)
    values = values / np.where(scale > 0, scale, 1.0)  # or squares of small ones would be 0
    squares = (values**2).sum(axis=0)

    def statistic(sums: Any) -> Any:
        """Return t² / (1 + t²): grows with |t|, and is 1 where all differences are equal."""
        share = sums**2 / np.where(squares > 0, squares * pairs, 1.0)
        return share * np.maximum(pairs - 1, 0) / (1 + share * np.maximum(pairs - 2, 0))

    observed = statistic(values.sum(axis=0)) * (1 - 1e-9)  # sums of the same numbers in another order are ties
    exact = n < 63 and 2**n <= flips
    reached, total = np.zeros(values.shape[1], dtype=np.int64), 2**n if exact else flips
    generator, block = np.random.default_rng(seed), max(1, 2**22 // max(n, 1))
    for start in range(0, total, block):
        size = min(block, total - start)
        if exact:
            bits: Any = np.arange(start, start + size)[:, None] >> np.arange(n) & 1
        else:
            drawn = generator.integers(0, 256, (size, -(-n // 8)), dtype=np.uint8)
            bits = np.unpackbits(drawn, axis=1, count=n)
        largest = statistic((1.0 - 2.0 * bits) @ values).max(axis=1, initial=0.0)
        reached += (largest[:, None] >= observed).sum(axis=0)
    p = reached / total if exact else (1 + reached) / (total + 1)
    return np.where(pairs > 1, p, np.nan)
