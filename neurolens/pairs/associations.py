"""Whether a number per image goes with what is known of the image: correlations, by chance or not, by group or not."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import SchemaError
from neurolens.inference import percentile_interval, require_resampling, student_interval, wilson_interval

Array = npt.NDArray[Any]
_AT_ONCE = 2**21  # numbers that are permuted at once
_SAME = 1e-12


def association(
    values: xr.DataArray,
    column: xr.DataArray,
    *,
    strata: xr.DataArray | Sequence[xr.DataArray] = (),
    permutations: int = 2000,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Correlate a number per image with a column of metadata; within strata, where confounders are given. **Eager**.

    Parameters
    ----------
    values : (sample, …)
        As `phrase_share` gives them.
    column : (sample,)
        Bool, for a point-biserial correlation, or numbers, as a year. Compare text first: ``colour == "yellow"``.
    strata : (sample,), or several of them
        What else images differ in, as their year and model. Both sides are then taken from the mean of their stratum:
        what is left is how they go together among images that are alike in these.
    permutations
        Of the column, within strata, for the p-value; 0 for none.
    bootstrap, confidence
        Resamples of images, within strata, for the percentile interval; 0 for none.
    seed
        Of both.

    Returns
    -------
    Dataset over the other dims of ``values``
        ``r``, Pearson's; NaN where either side is constant. ``p``, two-sided, at least 1/(1 + permutations): that
        an |r| as large comes about where the column is exchangeable within strata. ``low``, ``high``. ``n``, images
        without NaN in any; ``informative``, those of them in strata in which the column varies.

    Raises
    ------
    SchemaError
        If they are not of the same images, the column is text, or an option cannot be.

    Notes
    -----
    With many phrases, p-values are many too: see `neurolens.inference.benjamini_hochberg`.
    """
    _require_draws(permutations, bootstrap, confidence)
    matrix, y, codes, keep, rest = _aligned(values, column, [strata] if isinstance(strata, xr.DataArray) else strata)
    order = np.argsort(codes, kind="stable")
    x, y, codes = matrix[order], y[order], codes[order]
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]]) if len(codes) else np.zeros(0, np.intp)
    r = _correlation(x, y, starts)
    rng = np.random.default_rng(seed)
    p = _permutation_p(x, y, starts, r, permutations, rng)
    low, high = _interval(x, y, starts, bootstrap, confidence, rng)
    varies = np.abs(_centred(y[:, None], starts)[:, 0]) > _SAME * max(1.0, float(np.abs(y).max(initial=0)))
    groups = np.repeat(np.arange(len(starts)), _sizes(starts, len(y)))
    informative = int(np.isin(groups, groups[varies]).sum())
    shape, dims = tuple(values.sizes[d] for d in rest), rest
    out = xr.Dataset(coords={name: c.variable for name, c in values.coords.items() if set(c.dims) <= set(rest)})
    for name, found in {"r": r, "p": p, "low": low, "high": high}.items():
        out[name] = (dims, np.where(np.isnan(r), np.nan, found).reshape(shape))
    out["n"], out["informative"] = int(keep.sum()), informative
    out["r"].attrs = {"long_name": "correlation within strata", "units": "1"}
    out["p"].attrs = {"long_name": "two-sided permutation p-value", "units": "1"}
    return out


def association_by_group(
    values: xr.DataArray,
    column: xr.DataArray,
    group: xr.DataArray,
    *,
    permutations: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Compare the mean of a number per image with the rate of what it should show, group by group. **Eager**.

    Parameters
    ----------
    values : (sample,)
        As `phrase_share` gives them, of one phrase.
    column : (sample,)
        Bool, or numbers.
    group : (sample,)
        Labels, as years. Images without one (NaN) are left out.
    permutations
        Of the groups' rates, for the p-value; 0 for none.
    confidence
        Of the intervals.
    seed
        Of the permutations.

    Returns
    -------
    Dataset over ``group``
        ``n``, images; ``mean``, ``mean_low``, ``mean_high`` (Student) of the values; ``rate``, ``rate_low``,
        ``rate_high`` of the column (Wilson's where it is 0 or 1, else Student); ``r``, the correlation inside the
        group, NaN where a side is constant. Without dim: ``correlation`` of mean and rate over the groups, each counted
        once, and its ``p``.

    Raises
    ------
    SchemaError
        If they are not of the same images, or an option cannot be.

    Notes
    -----
    A correlation of group means says less of single images than `association` does, and may be far higher.
    """
    _require_draws(permutations, 0, confidence)
    if values.dims != ("sample",):
        raise SchemaError(f"found values over {values.dims}, and ('sample',) was needed; select one phrase")
    matrix, y, codes, keep, _ = _aligned(values, column, [group])
    x = matrix[:, 0]
    labels, codes = np.unique(group.to_numpy()[keep], return_inverse=True)
    n = np.bincount(codes, minlength=len(labels))
    found: dict[str, Array] = {"n": n}
    for name, side in (("mean", x), ("rate", y)):
        mean = np.bincount(codes, side, len(labels)) / n
        spread = np.bincount(codes, (side - mean[codes]) ** 2, len(labels)) / np.where(n > 1, n - 1, np.nan)
        if name == "rate" and np.isin(y, (0, 1)).all():
            low, high = wilson_interval(np.bincount(codes, y, len(labels)), n, confidence)
        else:
            low, high = student_interval(mean, np.sqrt(spread / n), n - 1, confidence)
        found |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    whole = np.zeros(1, np.intp)
    found["r"] = np.array(
        [_correlation(x[codes == g][:, None], y[codes == g], whole)[0] for g in range(len(labels))], dtype=float
    )
    means, rates = found["mean"][:, None], found["rate"]
    correlation = _correlation(means, rates, whole) if len(labels) else np.array([np.nan])
    p = _permutation_p(means, rates, whole, correlation, permutations, np.random.default_rng(seed))
    out = xr.Dataset({name: ("group", array) for name, array in found.items()}, coords={"group": labels})
    out["correlation"], out["p"] = float(correlation[0]), float(p[0])
    return out


def _aligned(
    values: xr.DataArray, column: xr.DataArray, strata: Sequence[xr.DataArray]
) -> tuple[Array, Array, Array, Array, tuple[Any, ...]]:
    """Return values (n, rest), column (n,) and strata codes (n,) of images without NaN, which those are, other dims."""
    if "sample" not in values.dims:
        raise SchemaError(f"found values over {values.dims}, and 'sample' among them was needed")
    for name, other in (("column", column), *(("strata", one) for one in strata)):
        if not isinstance(other, xr.DataArray) or other.dims != ("sample",):
            found = other.dims if isinstance(other, xr.DataArray) else type(other).__name__
            raise SchemaError(f"found {name} {found}, and an array over ('sample',) was needed, one of metadata")
        same = "sample" not in other.indexes or "sample" not in values.indexes
        if other.sizes["sample"] != values.sizes["sample"] or not (
            same or other.indexes["sample"].equals(values.indexes["sample"])
        ):
            raise SchemaError(
                f"values and {name} are of other samples ({values.sizes['sample']} and {other.sizes['sample']}); "
                "select the same in both, in one order: xr.align(values, column)"
            )
    if column.dtype.kind not in "buif":
        raise SchemaError(
            f"found a column of {column.dtype}, and bool or numbers were needed; compare it: column == '…'"
        )
    rest = tuple(d for d in values.dims if d != "sample")
    matrix = values.transpose("sample", *rest).to_numpy().astype(np.float64)
    matrix = matrix.reshape(len(matrix), math.prod(values.sizes[d] for d in rest))
    y = column.to_numpy().astype(np.float64)
    keep = np.isfinite(matrix).all(axis=1) & np.isfinite(y)
    for one in strata:
        keep &= one.notnull().to_numpy()
    codes = np.zeros(int(keep.sum()), np.intp)
    for one in strata:
        inner = np.unique(one.to_numpy()[keep], return_inverse=True)[1]
        codes = np.unique(codes * (inner.max(initial=0) + 1) + inner, return_inverse=True)[1]
    return matrix[keep], y[keep], codes, keep, rest


def _require_draws(permutations: int, bootstrap: int, confidence: float) -> None:
    require_resampling(bootstrap, confidence)
    if permutations < 0:
        raise SchemaError(f"permutations={permutations} is no number of them; give 0 for none, or e.g. 2000")


def _sizes(starts: Array, n: int) -> Array:
    return np.diff(np.r_[starts, n])


def _centred(x: Array, starts: Array) -> Array:
    """Return x (n, …) less the mean of its stratum; strata are runs that begin at ``starts``."""
    if not len(x):
        return x
    sizes = _sizes(starts, len(x))
    means = np.add.reduceat(x, starts, axis=0) / sizes[:, None]
    away: Array = x - np.repeat(means, sizes, axis=0)
    return away


def _lengths(x: Array, away: Array) -> Array:
    """Return the lengths of centred columns, NaN where they are rounding."""
    length = np.linalg.norm(away, axis=0)
    return np.where(length > _SAME * np.linalg.norm(x, axis=0), length, np.nan)


def _correlation(x: Array, y: Array, starts: Array) -> Array:
    """Return Pearson's r (rest,) of x (n, rest) and y (n,), both less the means of their strata."""
    one, two = _centred(x, starts), _centred(y[:, None], starts)
    found: Array = np.clip((one * two).sum(axis=0) / _lengths(x, one) / _lengths(y[:, None], two), -1, 1)
    return found


def _permutation_p(x: Array, y: Array, starts: Array, r: Array, permutations: int, rng: np.random.Generator) -> Array:
    """Return the share of permutations of y within strata with an |r| as large, the one seen among them."""
    if not permutations or not len(y):
        return np.full(r.shape, np.nan)
    one, two = _centred(x, starts), _centred(y[:, None], starts)
    one = one / _lengths(x, one) / _lengths(y[:, None], two)
    strata = np.repeat(np.arange(len(starts)), _sizes(starts, len(y)))
    reached = np.zeros(r.shape, np.int64)
    step = max(1, _AT_ONCE // len(y))
    for start in range(0, permutations, step):
        keys = rng.random((min(step, permutations - start), len(y))) + strata
        drawn = two[np.argsort(keys, axis=1), 0] @ one
        reached += (np.abs(drawn) >= np.abs(r) - _SAME).sum(axis=0)
    return np.where(np.isnan(r), np.nan, (1 + reached) / (1 + permutations))


def _interval(
    x: Array, y: Array, starts: Array, bootstrap: int, confidence: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return the bounds (rest,) of r of images drawn anew within their strata; NaN where no draw has one."""
    found = np.full((bootstrap, x.shape[1]), np.nan)
    sizes = np.repeat(_sizes(starts, len(y)), _sizes(starts, len(y)))
    first = np.repeat(starts, _sizes(starts, len(y)))
    for i in range(bootstrap if len(y) else 0):
        at = first + (rng.random(len(y)) * sizes).astype(np.intp)
        found[i] = _correlation(x[at], y[at], starts)
    none = np.isnan(found).all(axis=0)
    low, high = percentile_interval(np.where(none, 0, found), confidence)
    return np.where(none, np.nan, low), np.where(none, np.nan, high)
