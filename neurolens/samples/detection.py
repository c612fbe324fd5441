"""How well a score finds mislabelled samples."""

from typing import Any

import numpy as np
import xarray as xr

from neurolens.errors import DataError, SchemaError
from neurolens.inference import bootstrap_counts, percentile_interval, require_resampling

METRICS = {
    "auroc": "area under the receiver operating characteristic",
    "aupr": "area under the precision-recall curve, by trapezoids",
    "fpr95": "false positive rate at the first threshold with a true positive rate of at least 0.95",
}


def evaluate_detection(
    score: xr.DataArray,
    is_mislabelled: xr.DataArray,
    *,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """AUROC, AUPR and FPR95 of a score that should be high for mislabelled samples.

    Parameters
    ----------
    score : (sample,), any units
        Higher is more suspect: negate `aum` or `confidence`. Samples with NaN are left out.
    is_mislabelled : (sample,), bool, or numbers with NaN where it is not known
    bootstrap : int
        Resamples of the samples for percentile intervals; 0 for none.
    confidence : float
        Coverage of the intervals.
    seed : int
        Seed of the resampling.

    Returns
    -------
    Dataset, lazy if an input is
        `auroc`, `aupr`, `fpr95` (), 1; with ``bootstrap`` also `<metric>_interval` (bound) with `low` and `high`;
        `n_scored` and `n_mislabelled`, the samples that count.

    Raises
    ------
    SchemaError
        If the two are not both over `sample`, or cover different samples, or an option is out of its range.
    DataError
        If all or none of the scored samples are mislabelled.

    References
    ----------
    AUPR by trapezoids over (recall, precision), from (0, 1), as the CSL authors compute it.
    """
    require_resampling(bootstrap, confidence)
    for name, array in (("score", score), ("is_mislabelled", is_mislabelled)):
        if array.dims != ("sample",):
            raise SchemaError(f"{name} has dims {array.dims}; it needs ('sample',)")
    if score.sizes["sample"] != is_mislabelled.sizes["sample"]:
        raise SchemaError(
            f"score has {score.sizes['sample']} samples and is_mislabelled {is_mislabelled.sizes['sample']}; align them"
        )
    if "sample" in score.indexes and "sample" in is_mislabelled.indexes:
        is_mislabelled = is_mislabelled.reindex_like(score) if not _same(score, is_mislabelled) else is_mislabelled
    width = 5 + 2 * len(METRICS)
    table = xr.apply_ufunc(
        _evaluate,
        score.reset_coords(drop=True).drop_vars("sample", errors="ignore"),
        is_mislabelled.reset_coords(drop=True).drop_vars("sample", errors="ignore"),
        kwargs={"bootstrap": bootstrap, "confidence": confidence, "seed": seed},
        input_core_dims=[["sample"], ["sample"]],
        output_core_dims=[["entry"]],
        dask="parallelized",
        dask_gufunc_kwargs={"allow_rechunk": True, "output_sizes": {"entry": width}},
        output_dtypes=[float],
    )
    results = {}
    for k, (name, meaning) in enumerate(METRICS.items()):
        results[name] = table.isel(entry=k).assign_attrs(long_name=meaning, units="1")
        if bootstrap:
            bounds = table.isel(entry=[3 + 2 * k, 4 + 2 * k]).rename(entry="bound")
            results[f"{name}_interval"] = bounds.assign_coords(bound=["low", "high"]).assign_attrs(
                long_name=f"{confidence:.0%} bootstrap interval of {name}", units="1"
            )
    results["n_scored"] = table.isel(entry=9).assign_attrs(long_name="samples with a score", units="1")
    results["n_mislabelled"] = table.isel(entry=10).assign_attrs(long_name="of them, mislabelled", units="1")
    attrs = {"bootstrap": bootstrap, "confidence": confidence, "seed": seed} if bootstrap else {}
    return xr.Dataset(results, attrs=attrs)


def _same(score: xr.DataArray, flags: xr.DataArray) -> bool:
    mine, theirs = score.indexes["sample"], flags.indexes["sample"]
    if mine.equals(theirs):
        return True
    if not (mine.is_unique and theirs.is_unique and mine.isin(theirs).all()):
        raise SchemaError("score and is_mislabelled cover different samples; select the same ones in both")
    return False


def _evaluate(score: Any, flags: Any, *, bootstrap: int, confidence: float, seed: int) -> Any:
    here = ~(np.isnan(score) | np.isnan(flags.astype(float)))
    score, flags = score[here], flags[here].astype(bool)
    if not 0 < flags.sum() < len(flags):
        raise DataError(
            f"{flags.sum()} of {len(flags)} scored samples are mislabelled; detection needs both kinds: "
            "flip some labels with data.label_noise, or give the known mislabelled samples"
        )
    order = np.argsort(-score, kind="stable")
    flags = flags[order].astype(float)
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # equal scores share one threshold
    best = _metrics(flags, np.ones(len(flags)), ends)
    draws = [_metrics(flags, weights[order], ends) for weights in bootstrap_counts(len(flags), bootstrap, seed)]
    bounds = np.full((3, 2), np.nan)
    if draws:
        bounds[:] = np.stack(percentile_interval(draws, confidence), axis=-1)
    return np.array([*best, *bounds.ravel(), len(flags), flags.sum()])


def _metrics(flags: Any, weights: Any, ends: Any) -> tuple[float, float, float]:
    """AUROC, AUPR and FPR95 of samples in falling order of score, ``ends`` closing each run of equal scores."""
    true = np.cumsum(weights * flags)[ends]
    false = np.cumsum(weights * (1 - flags))[ends]
    if not true[-1] or not false[-1]:
        return float("nan"), float("nan"), float("nan")
    shown = true + false > 0  # a resample may leave the top scores out
    true, false = true[shown], false[shown]
    tpr, fpr, precision = true / true[-1], false / false[-1], true / (true + false)
    auroc = np.trapezoid(np.append(0.0, tpr), np.append(0.0, fpr))
    aupr = np.trapezoid(np.append(1.0, precision), np.append(0.0, tpr))
    return float(auroc), float(aupr), float(fpr[np.argmax(tpr >= 0.95)])
