"""How long concepts live: Kaplan–Meier curves with confidence bands, and whether groups differ."""

import warnings
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from neurolens import schema
from neurolens.errors import SchemaError, nearest
from neurolens.inference import require_resampling
from neurolens.units.inputs import choice


def survival(
    events: pd.DataFrame,
    *,
    by: str | None = None,
    confidence: float = 0.95,
    method: Literal["log-log", "linear"] = "log-log",
    lives: Literal["all", "first"] = "all",
    unseen_births: Literal["include", "drop"] = "include",
) -> xr.Dataset:
    """Estimate the probability that a concept lives longer than so many checkpoints. **Eager.**

    A life that does not end in death is censored at its last alive checkpoint: it is known to last longer.

    Parameters
    ----------
    events : the table of `neurolens.concept_events`
    by : a column of it (`layer`, `category`, any coordinate of units or concepts), or one that was added; optional
        Estimate each group by itself.
    confidence : float
        Coverage of the band at each time (not of the whole curve at once).
    method : {"log-log", "linear"}
        Scale on which Greenwood's variance makes the band: the log-log one stays within 0 and 1.
    lives : {"all", "first"}
        Every life, rebirths as lives of their own, or the first of each unit and concept.
    unseen_births : {"include", "drop"}
        Lives that were alive when they were first seen are as old as we know, at least: count them from there, or
        leave them out.

    Returns
    -------
    Dataset
        `survival`, `lower`, `upper`, `at_risk`, `died` (group, time), with `time` in checkpoints since birth, from 0;
        bounds are NaN where the formula has none (nobody died yet, or nobody is left). `median` (NaN: never reached),
        `n_lives`, `n_censored`, `n_birth_unseen` (group). Without ``by`` there is one group, ``all``.

    Raises
    ------
    SchemaError
        If there is no life, a column is unknown, or an option is.

    References
    ----------
    Kaplan and Meier 1958; Greenwood 1926; by ``scipy.stats.ecdf``.
    """
    choice("method", method, "log-log", "linear")
    require_resampling(0, confidence)
    chosen = _chosen(events, lives, unseen_births)
    groups = _groups(chosen, by)
    times = np.arange(int(chosen["duration"].max()) + 1)
    curves = [_curve(group, times, confidence, method) for group in groups.values()]
    coords = {"group": ("group", np.asarray([str(name) for name in groups], np.dtypes.StringDType())), "time": times}
    data: dict[str, xr.DataArray] = {}
    for name, declared in schema.MORTALITY_RESULTS.items():
        if name in curves[0]:
            dims = ("group", "time") if "time" in declared.dims else ("group",)
            data[name] = schema.label(xr.DataArray(np.stack([c[name] for c in curves]), dims=dims), declared)
    kept = {key: events.attrs[key] for key in schema.PROVENANCE if key in events.attrs}
    attrs = kept | {"confidence": confidence, "method": method, "lives": lives, "unseen_births": unseen_births}
    out = xr.Dataset(data, coords, attrs=attrs | ({"grouped_by": by} if by else {}))
    out["time"].attrs = {"long_name": "time since birth", "units": "checkpoint"}
    return out


def logrank(
    events: pd.DataFrame,
    *,
    by: str,
    lives: Literal["all", "first"] = "all",
    unseen_births: Literal["include", "drop"] = "include",
) -> pd.DataFrame:
    """Test whether groups live equally long, all at once and pair by pair. **Eager.**

    Parameters
    ----------
    events, by, lives, unseen_births
        As for :func:`neurolens.survival`.

    Returns
    -------
    DataFrame
        First line: all groups (`group` and `other` are empty), chi-squared with G − 1 degrees of freedom. Then every
        pair: `statistic` is the normal score, positive where the first group dies more than equal hazards would have
        it; `p_value` two-sided; `p_adjusted` by Holm over the pairs. NaN where nobody died among those compared.

    Raises
    ------
    SchemaError
        As for :func:`neurolens.survival`, and if there are fewer than two groups.

    References
    ----------
    Mantel 1966; Peto and Peto 1972; Holm 1979. Pairs by ``scipy.stats.logrank``.
    """
    from scipy import stats

    groups = _groups(_chosen(events, lives, unseen_births), by)
    if len(groups) < 2:
        raise SchemaError(
            f"{by!r} has one group only, {next(iter(groups))!r}; a test needs two: group by another column"
        )
    statistic, p = _between_all(list(groups.values()))
    lines: list[dict[str, Any]] = [{"group": "", "other": "", "statistic": statistic, "p_value": p}]
    for (one, of_one), (other, of_other) in combinations(groups.items(), 2):
        values = (np.nan, np.nan)
        if np.isfinite(_between_all([of_one, of_other])[0]):  # at some death, both are at risk
            result = stats.logrank(_censored(of_one), _censored(of_other))
            values = (float(result.statistic), float(result.pvalue))
        lines.append({"group": str(one), "other": str(other), "statistic": values[0], "p_value": values[1]})
    table = pd.DataFrame(lines)
    table["p_adjusted"] = np.r_[table["p_value"].iloc[0], holm(table["p_value"].to_numpy()[1:])]
    return table


def holm(p_values: Any) -> Any:
    """Adjust p-values for their number, by Holm's step-down method; NaN stays, and does not count."""
    p = np.asarray(p_values, float)
    out = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    out[order] = np.minimum(np.maximum.accumulate(p[order] * (len(order) - np.arange(len(order)))), 1.0)
    return out


def _chosen(events: pd.DataFrame, lives: str, unseen_births: str) -> pd.DataFrame:
    choice("lives", lives, "all", "first")
    choice("unseen_births", unseen_births, "include", "drop")
    lacking = [c for c in ("duration", "censored", "birth_seen", "life") if c not in events]
    if lacking:
        raise SchemaError(f"the table has no column {lacking[0]!r}; pass what neurolens.concept_events returns")
    chosen = events[events["life"] == 0] if lives == "first" else events
    chosen = chosen[chosen["birth_seen"]] if unseen_births == "drop" else chosen
    if chosen.empty:
        raise SchemaError(
            f"no life is left to look at, of {len(events)}; lower tau, or include lives whose birth was unseen"
        )
    return chosen


def _groups(events: pd.DataFrame, by: str | None) -> dict[Any, pd.DataFrame]:
    if by is None:
        return {"all": events}
    if by not in events:
        raise SchemaError(f"the table has no column {by!r}; {nearest(by, map(str, events.columns))}")
    return dict(iter(events.groupby(by, sort=False, dropna=False)))


def _curve(group: pd.DataFrame, times: Any, confidence: float, method: str) -> dict[str, Any]:
    from scipy import stats

    durations, censored = group["duration"].to_numpy(), group["censored"].to_numpy()
    at_risk = np.array([(durations >= t).sum() for t in times])
    died = np.bincount(durations[~censored], minlength=len(times))
    estimate = stats.ecdf(_censored(group)).sf
    curve = np.asarray(estimate.evaluate(times), float)
    lower, upper = (np.full(len(times), np.nan) for _ in range(2))
    if died.any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it says which bounds are undefined: those are NaN
            band = estimate.confidence_interval(confidence, method=method)
        at = np.searchsorted(estimate.quantiles, times, side="right") - 1
        for bound, of in ((lower, band.low), (upper, band.high)):
            bound[at >= 0] = np.asarray(of.probabilities)[at[at >= 0]]
    half = times[curve <= 0.5]
    return {
        "survival": curve,
        "lower": lower,
        "upper": upper,
        "at_risk": at_risk,
        "died": died,
        "median": float(half[0]) if len(half) else np.nan,
        "n_lives": len(group),
        "n_censored": int(censored.sum()),
        "n_birth_unseen": int((~group["birth_seen"]).sum()),
    }


def _censored(group: pd.DataFrame) -> Any:
    from scipy import stats

    durations, censored = group["duration"].to_numpy(float), group["censored"].to_numpy()
    return stats.CensoredData(uncensored=durations[~censored], right=durations[censored])


def _between_all(groups: list[pd.DataFrame]) -> tuple[float, float]:
    """Chi-squared of the observed deaths of each group against those expected of equal hazards."""
    from scipy.stats import chi2

    durations = [g["duration"].to_numpy() for g in groups]
    deaths = [g["duration"].to_numpy()[~g["censored"].to_numpy()] for g in groups]
    times = np.unique(np.concatenate(deaths))
    risk = np.array([[(d >= t).sum() for t in times] for d in durations], float)
    dead = np.array([[(d == t).sum() for t in times] for d in deaths], float)
    n, d = risk.sum(axis=0), dead.sum(axis=0)
    share = risk / np.maximum(n, 1)
    excess = (dead - share * d).sum(axis=1)
    spread = d * (n - d) / np.maximum(n - 1, 1)
    covariance = np.diag(share @ spread) - np.einsum("gt,ht,t->gh", share, share, spread)
    if not len(times) or np.trace(covariance) <= 1e-12:
        return np.nan, np.nan
    statistic = float(excess @ np.linalg.pinv(covariance, hermitian=True) @ excess)
    freedom = int(np.linalg.matrix_rank(covariance, hermitian=True))
    return statistic, float(chi2.sf(statistic, freedom))
