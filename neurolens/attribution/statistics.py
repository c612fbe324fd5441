"""Whether filtered maps score otherwise than unfiltered ones: paired tests and intervals, for a whole grid at once."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.attribution.paired import Pairs, require_pairs
from neurolens.attribution.reading import Level, each_checkpoint, pair_needed
from neurolens.errors import SchemaError, nearest
from neurolens.inference import (
    benjamini_hochberg,
    bootstrap_counts,
    percentile_interval,
    require_resampling,
    sign_flip_max_t,
)

Array = npt.NDArray[Any]

PERCENTILES = (5, 25, 50, 75, 95)
"""Of the differences, in `compare`."""


def compare(
    filtered: xr.DataArray | xr.Dataset,
    baseline: xr.DataArray | None = None,
    *,
    score: str = "drop",
    level: Level = "patch",
    kinds: str | Sequence[str] = "without",
    dim: str = "sample",
    classes: str | None = None,
    bootstrap: int = 10_000,
    flips: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    compat: Literal["seed"] | None = None,
) -> xr.Dataset:
    """Compare the scores of the same samples with and without a filter, for a whole grid of filters at once.

    **Eager.** Of each filter, samples that have no score in one of the two are left out. The sign is that of
    ``filtered − baseline``, throughout.

    Parameters
    ----------
    filtered : Dataset of the opened attributions cube, or scores (sample, …)
        Of a cube, sets of some kinds are compared with the whole, checkpoint by checkpoint. Scores are e.g. the drop of
        the probability. All filters in it are one family: the p-values that hold for the whole grid hold for these. Of
        a cube they are all sets and methods of a checkpoint; for a smaller family, select maps (and the whole) first.
    baseline : (sample, …), with scores
        Those of the unfiltered maps of the same samples; dims that it lacks are those over which it is the same.
    score, level, kinds : with a cube
        Which of the scores of `neurolens.attribution.map_scores`, of which entries (patch or pixel), and of which kinds
        of sets (only, without, union, control).
    dim
        That of the samples.
    classes : str, optional
        A coordinate along ``dim``, e.g. ``label``, which is taken of a cube that has it. Samples of one class are
        alike, so intervals that draw them one by one are too narrow: with this, whole classes are drawn and flipped as
        well.
    bootstrap
        Resamples of the intervals; 0 for none.
    flips
        Of signs, for ``p_max_t``; 0 for none. All 2ⁿ are taken where that is no more.
    confidence
        Coverage of the intervals.
    seed
        Decides the resamples and the flips. They do not depend on which filters are looked at.
    compat : {"seed"}, optional
        Draw the samples of ``low`` and ``high`` by ``numpy.random.RandomState(seed)``, as the reference does (of seed
        42).

    Returns
    -------
    Dataset over the other dims of ``filtered``: of a cube (series, map, attribution)
        ``n`` pairs of scores; where there is none, the rest is NaN. ``filtered_mean``, ``baseline_mean``,
        ``difference``: means, in the unit of the scores. ``std`` of the differences (ddof 0), ``percentile`` of them
        along ``percent``, ``improved``: share above 0. ``t``, ``p_t``: paired t test, two-sided, and ``d_z``, mean over
        standard deviation (ddof 1) of the differences; NaN where these do not vary. ``w``, ``p_wilcoxon``: signed
        ranks, zeros left out; NaN where all are 0. ``low``, ``high``: percentile bootstrap over samples; NaN for fewer
        than two. ``p_max_t``: corrected for the whole grid (`neurolens.inference.sign_flip_max_t`); ``p_bh``: of
        ``p_t``, by false discovery rate. With ``classes``: ``n_classes`` that have pairs, and ``class_low``,
        ``class_high``, ``class_p_max_t`` by drawing, and flipping the sums of, whole classes.

    Raises
    ------
    SchemaError
        If samples are not the same, a dim or the coordinate is missing, an option is out of range, or a cube has no
        whole, or no sets of the kinds.
    MissingMeasurementError
        If the score of a cube was not measured.
    NonFiniteError
        If a score is infinite.

    References
    ----------
    Lakens 2013 (d_z); Efron and Tibshirani 1993, section 13.3; Field and Welsh 2007 (whole classes are drawn);
    Westfall and Young 1993; Benjamini and Hochberg 1995.
    """
    if isinstance(filtered, xr.Dataset):
        options: Any = {
            "bootstrap": bootstrap,
            "flips": flips,
            "confidence": confidence,
            "seed": seed,
            "compat": compat,
        }
        return each_checkpoint(
            filtered,
            baseline,
            lambda one, whole, named: compare(one, whole, dim=dim, classes=named, **options),
            score=score,
            level=level,
            kinds=kinds,
            classes=classes,
        )
    if baseline is None:
        raise pair_needed("compare")
    require_resampling(bootstrap, confidence)
    if flips < 0:
        raise SchemaError(f"flips={flips} is no number of random signs; give 0 for none, or e.g. 10000")
    if compat not in (None, "seed"):
        raise SchemaError(f"compat={compat!r} is unknown; {nearest(str(compat), ('seed',))}")
    pairs = require_pairs(filtered, baseline, dim, classes)
    out, difference = _described(pairs), pairs.difference
    if bootstrap:
        counts = _reference_counts if compat == "seed" else bootstrap_counts
        known = np.isfinite(difference)
        out["low"], out["high"] = _interval(
            np.where(known, difference, 0.0), known, counts(len(known), bootstrap, seed), bootstrap, confidence
        )
    if flips:
        out["p_max_t"] = sign_flip_max_t(difference, flips=flips, seed=seed)
    out["p_bh"] = benjamini_hochberg(out["p_t"])
    if pairs.groups is not None:
        sums, sizes = _by_group(pairs)
        out["n_classes"] = (sizes > 0).sum(axis=0)
        if bootstrap:
            out["class_low"], out["class_high"] = _interval(
                sums, sizes, bootstrap_counts(len(sizes), bootstrap, seed), bootstrap, confidence
            )
        if flips:
            out["class_p_max_t"] = sign_flip_max_t(np.where(sizes > 0, sums, np.nan), flips=flips, seed=seed)
    percentile = out.pop("percentile").reshape(len(PERCENTILES), *pairs.shape)
    found = xr.Dataset(
        {name: (pairs.dims, np.reshape(values, pairs.shape)) for name, values in out.items()}, pairs.coords
    )
    return found.assign(percentile=(("percent", *pairs.dims), percentile)).assign_coords(percent=list(PERCENTILES))


def held_out(
    filtered: xr.DataArray | xr.Dataset,
    baseline: xr.DataArray | None = None,
    *,
    score: str = "drop",
    level: Level = "patch",
    kinds: str | Sequence[str] = "without",
    choose: Literal["larger", "smaller"] = "larger",
    share: float = 0.5,
    dim: str = "sample",
    classes: str | None = None,
    bootstrap: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Choose the best filter of a grid by some samples, and test it on the others.

    **Eager.** What is tested on the samples that it was chosen by looks better than it is.

    Parameters
    ----------
    filtered, baseline, score, level, kinds, dim, bootstrap, confidence
        As for `compare`. Of a cube, each checkpoint chooses for itself, by the same samples.
    choose : {"larger", "smaller"}
        By the largest mean of ``filtered − baseline``, or the smallest. The first of equal ones.
    share
        Of the samples, or with ``classes`` of the classes, by which it is chosen.
    classes : str, optional
        As for `compare`, also with a cube; whole classes are on one side.
    seed
        Decides who is on which side, and the resamples.

    Returns
    -------
    Dataset
        As from `compare`, of the samples held out, without ``p_max_t`` and ``p_bh``: it is one test. The filter is told
        by the coordinates, and, of scores, by its position along each dim as ``chosen_<dim>``. ``chosen_difference``,
        ``chosen_n``: mean difference of, and how many, the samples it was chosen by.

    Raises
    ------
    SchemaError, MissingMeasurementError, NonFiniteError
        As for `compare`; also if there is nothing to choose from, or a side would have no sample.
    """
    if isinstance(filtered, xr.Dataset):
        options: Any = {
            "choose": choose,
            "share": share,
            "bootstrap": bootstrap,
            "confidence": confidence,
            "seed": seed,
        }
        found = each_checkpoint(
            filtered,
            baseline,
            lambda one, whole, named: held_out(one, whole, dim=dim, classes=named, **options),
            score=score,
            level=level,
            kinds=kinds,
            classes=classes,
        )
        kept = ("chosen_difference", "chosen_n")  # places along dims are those among the sets of the kinds
        return found.drop_vars([n for n in found.data_vars if str(n).startswith("chosen_") and n not in kept])
    if baseline is None:
        raise pair_needed("held_out")
    if choose not in ("larger", "smaller"):
        raise SchemaError(f"choose={choose!r} is unknown; {nearest(str(choose), ('larger', 'smaller'))}")
    if not 0 < share < 1:
        raise SchemaError(f"share={share} leaves a side without samples; give a number between 0 and 1, e.g. 0.5")
    pairs = require_pairs(filtered, baseline, dim, classes)
    if not pairs.dims:
        raise SchemaError(f"found one filter, scored over {dim!r} alone; compare it, or give a grid to choose from")
    groups = np.arange(len(pairs.difference)) if pairs.groups is None else pairs.groups
    number = int(groups.max()) + 1
    chosen_by = round(share * number)
    if not 0 < chosen_by < number:
        raise SchemaError(
            f"found {number} {'samples' if classes is None else 'classes'}, and share={share} of them leaves a side "
            "without; give more of them, or another share"
        )
    chosen = np.isin(groups, np.random.default_rng([seed, 1]).permutation(number)[:chosen_by])
    difference = pairs.difference[chosen]
    known = np.isfinite(difference)
    if not known.any():
        raise SchemaError("no filter has a score on the samples to choose by; give more samples, or another seed")
    n = known.sum(axis=0)
    means = np.where(known, difference, 0.0).sum(axis=0) / np.where(n, n, 1)
    rank = np.where(n, means if choose == "larger" else -means, -np.inf)
    best = int(rank.argmax())
    place = dict(zip(pairs.dims, (int(at) for at in np.unravel_index(best, pairs.shape)), strict=True))
    rest = np.flatnonzero(~chosen)
    shared = {d: at for d, at in place.items() if d in baseline.dims}
    found = compare(
        filtered.isel({**place, dim: rest}),
        baseline.isel({**shared, dim: rest}),
        dim=dim,
        classes=classes,
        bootstrap=bootstrap,
        flips=0,
        confidence=confidence,
        seed=seed,
    ).drop_vars("p_bh")
    chosen_place: dict[str, Any] = {f"chosen_{d}": at for d, at in place.items()}
    return found.assign({"chosen_difference": means[best], "chosen_n": n[best], **chosen_place})


def _described(pairs: Pairs) -> dict[str, Any]:
    """Return what is computed filter by filter, (filters,), and ``percentile`` (percent, filters)."""
    from scipy.special import stdtr
    from scipy.stats import wilcoxon

    filters = pairs.filtered.shape[1]
    names = ("filtered_mean", "baseline_mean", "difference", "std", "d_z", "t", "p_t", "w", "p_wilcoxon", "improved")
    out: dict[str, Any] = {"n": np.zeros(filters, dtype=np.int64)} | {name: np.full(filters, np.nan) for name in names}
    out["percentile"] = np.full((len(PERCENTILES), filters), np.nan)
    for at in range(filters):
        known = np.isfinite(pairs.filtered[:, at])
        one, other = pairs.filtered[known, at], pairs.baseline[known, at]
        values, n = one - other, len(one)
        if not n:
            continue
        out["n"][at], out["filtered_mean"][at], out["baseline_mean"][at] = n, one.mean(), other.mean()
        out["difference"][at], out["std"][at], out["improved"][at] = values.mean(), values.std(), (values > 0).mean()
        out["percentile"][:, at] = np.percentile(values, PERCENTILES)
        if values.any():
            out["w"][at], out["p_wilcoxon"][at] = wilcoxon(values)
        # differences of scores are equal if they differ by no more than the scores were rounded
        if n > 1 and np.ptp(values) > 4 * np.finfo(np.float64).eps * max(np.abs(one).max(), np.abs(other).max()):
            out["d_z"][at] = values.mean() / values.std(ddof=1)
            out["t"][at] = out["d_z"][at] * np.sqrt(n)
            out["p_t"][at] = 2 * stdtr(n - 1, -abs(out["t"][at]))
    return out


def _by_group(pairs: Pairs) -> tuple[Array, Array]:
    """Return sum and number of the differences of each class, (classes, filters)."""
    difference, groups = pairs.difference, pairs.groups
    assert groups is not None
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(groups.max() + 1))
    known = np.isfinite(difference)[order]
    values = np.where(known, difference[order], 0.0)
    return np.add.reduceat(values, starts, axis=0), np.add.reduceat(known.astype(np.float64), starts, axis=0)


def _interval(sums: Any, sizes: Any, counts: Iterator[Any], resamples: int, confidence: float) -> tuple[Any, Any]:
    """Return the bounds of the mean, where rows with such sums, of so many values, are drawn so often; (filters,)."""
    means = np.full((resamples, sums.shape[1]), np.nan)
    block = max(1, 2**22 // len(sums))
    for start in range(0, resamples, block):
        drawn = np.stack([next(counts) for _ in range(min(block, resamples - start))]).astype(np.float64)
        weight = drawn @ sizes
        means[start : start + block] = np.where(weight > 0, drawn @ sums, np.nan) / np.where(weight > 0, weight, 1.0)
    low, high = np.full((2, sums.shape[1]), np.nan)
    known = ((sizes > 0).sum(axis=0) > 1) & np.isfinite(means).any(axis=0)
    low[known], high[known] = percentile_interval(means[:, known], confidence)
    return low, high


def _reference_counts(n: int, resamples: int, seed: int) -> Iterator[Any]:
    state = np.random.RandomState(seed)
    for _ in range(resamples):
        yield np.bincount(state.choice(n, n, replace=True), minlength=n)
