"""Do scores rank the samples alike?"""

from typing import Any, Literal

import numpy as np
import xarray as xr

from neurolens.errors import SchemaError
from neurolens.inference import bootstrap_counts, percentile_interval, require_resampling
from neurolens.samples.inputs import choice


def agreement(
    scores: xr.Dataset,
    *,
    method: Literal["spearman", "pearson"] = "spearman",
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Correlations between every two scores, with bootstrap intervals over the samples.

    Parameters
    ----------
    scores : Dataset of variables over `sample`, any units
        E.g. ``xr.merge([csl(ds).csl, learning_time(ds).learning_time, aum(ds)])``. Variables without `sample` are left
        aside. A sample counts where every score is there.
    method : {"spearman", "pearson"}
        Rank correlation with mid-ranks for ties, or linear correlation.
    bootstrap : int
        Resamples for percentile intervals, each ranked anew; 0 for none.
    confidence : float
        Coverage of the intervals.
    seed : int
        Seed of the resampling.

    Returns
    -------
    Dataset, lazy if ``scores`` is
        `correlation` (score, other) in [−1, 1]; with ``bootstrap`` also `low` and `high`; `n_samples`, those counted.
        NaN for a score that is constant or, with ``pearson``, infinite somewhere.

    Raises
    ------
    SchemaError
        If fewer than two scores are over `sample` alone, or an option is not one of its values.

    References
    ----------
    Spearman 1904; Efron and Tibshirani 1993, section 13.3.
    """
    choice("method", method, "spearman", "pearson")
    require_resampling(bootstrap, confidence)
    names = [str(name) for name, array in scores.data_vars.items() if array.dims == ("sample",)]
    if len(names) < 2:
        raise SchemaError(f"agreement needs two scores over 'sample', found {names}; merge them into one Dataset")
    arrays = [
        scores[name].astype("float64").reset_coords(drop=True).drop_vars("sample", errors="ignore") for name in names
    ]
    table = xr.apply_ufunc(
        _correlate,
        *arrays,
        kwargs={"ranks": method == "spearman", "bootstrap": bootstrap, "confidence": confidence, "seed": seed},
        input_core_dims=[["sample"]] * len(names),
        output_core_dims=[["entry", "score", "other"]],
        dask="parallelized",
        dask_gufunc_kwargs={
            "allow_rechunk": True,
            "output_sizes": {"entry": 4, "score": len(names), "other": len(names)},
        },
        output_dtypes=[float],
    ).assign_coords(score=names, other=names)
    results = {"correlation": table.isel(entry=0).assign_attrs(long_name=f"{method} correlation", units="1")}
    if bootstrap:
        for k, name in ((1, "low"), (2, "high")):
            results[name] = table.isel(entry=k).assign_attrs(
                long_name=f"{name} bound of the {confidence:.0%} bootstrap interval", units="1"
            )
    results["n_samples"] = table.isel(entry=3, score=0, other=0, drop=True).assign_attrs(
        long_name="samples with every score", units="1"
    )
    return xr.Dataset(results, attrs={"method": method, "bootstrap": bootstrap, "seed": seed})


def _correlate(*columns: Any, ranks: bool, bootstrap: int, confidence: float, seed: int) -> Any:
    values = np.stack(columns, axis=-1)
    values = values[~np.isnan(values).any(axis=1)]
    n, k = values.shape
    result = np.full((4, k, k), np.nan)
    result[3] = n
    if n < 2:
        return result
    ties = [_ties(values[:, c]) for c in range(k)] if ranks else []

    def once(weights: Any) -> Any:
        moved = np.stack([_mid_ranks(*t, weights) for t in ties], axis=-1) if ranks else values
        with np.errstate(invalid="ignore"):  # an infinite score has no linear correlation
            return _weighted_correlation(moved, weights)

    result[0] = once(np.ones(n))
    if bootstrap:
        draws = np.stack([once(weights) for weights in bootstrap_counts(n, bootstrap, seed)])
        constant = np.isnan(draws).all(axis=0)
        bounds = percentile_interval(np.where(constant, 0.0, draws), confidence)
        result[1:3] = np.where(constant, np.nan, np.stack(bounds))
    return result


def _ties(column: Any) -> tuple[Any, int]:
    _, codes = np.unique(column, return_inverse=True)
    return codes, int(codes.max()) + 1


def _mid_ranks(codes: Any, distinct: int, weights: Any) -> Any:
    """Mid-ranks of the samples where each counts ``weights`` times: no sorting per resample."""
    size = np.bincount(codes, weights=weights, minlength=distinct)
    return (np.cumsum(size) - (size - 1) / 2)[codes]


def _weighted_correlation(values: Any, weights: Any) -> Any:
    total = weights.sum()
    centred = values - (weights @ values) / total
    covariance = (centred * weights[:, None]).T @ centred
    spread = np.sqrt(np.diag(covariance))
    flat = spread <= 1e-12 * np.abs(values).max(axis=0, initial=0.0) * np.sqrt(total)
    spread = np.where(flat, np.nan, spread)
    return np.clip(covariance / spread[:, None] / spread, -1.0, 1.0)
