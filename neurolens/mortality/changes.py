"""What units detect as training goes on: whose concept drifts, who gains and loses one, which die out, how diverse."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neurolens.errors import SchemaError
from neurolens.mortality.events import concept_events
from neurolens.mortality.inputs import (
    PAIR,
    UNIT,
    By,
    Scores,
    Trajectories,
    best_of,
    codes_of,
    described,
    opened,
    rule_of,
    trajectories_of,
    whole_series,
)
from neurolens.units.inputs import OnMissing, labels_of
from neurolens.units.layers_of import held


def label_drift(
    scores: Scores,
    *,
    labels: xr.DataArray | None = None,
    tau: float = 0.04,
    missing: OnMissing = "error",
    dim: str | None = None,
) -> xr.Dataset:
    """Count the units that stay detectors from checkpoint to checkpoint, but of another concept.

    Followed by unit, such a unit lives on; followed by unit and concept, one concept dies in it and another is born.

    Parameters
    ----------
    scores, labels, missing, dim
        As for :func:`neurolens.concept_events`: IoU, or scores with labels.
    tau : float
        Threshold of the score; reaching it is enough.

    Returns
    -------
    Dataset, lazy if ``scores`` are over concepts and lazy
        `changed` (transition, unit), `n_changes` (unit), `n_both`, `n_changed` and `drift`, their ratio (transition),
        with the ends of each transition as coordinates `from_epoch` and `to_epoch` (or step).

    Raises
    ------
    SchemaError, MissingMeasurementError
        As for :func:`neurolens.concept_events`.
    """
    found, codes, _ = _detected(scores, labels, tau, missing, dim)
    before, after = _ends(codes, found.series)
    both = (before >= 0) & (after >= 0)
    changed = both & (before != after)
    n_both, n_changed = both.sum("unit"), changed.sum("unit")
    results = {
        "changed": changed,
        "n_changes": changed.sum("transition"),
        "n_both": n_both,
        "n_changed": n_changed,
        "drift": (n_changed / np.maximum(n_both, 1)).where(n_both > 0),
    }
    out = described(results, found.score, series=found.series, iou_tau=tau)
    return _with_ends(out, found)


def churn(
    scores: Scores,
    *,
    labels: xr.DataArray | None = None,
    tau: float = 0.04,
    by: By | None = None,
    missing: OnMissing = "error",
    dim: str | None = None,
) -> xr.Dataset:
    """Count who reaches the threshold before and after each transition, without waiting for a confirmation.

    Parameters
    ----------
    scores, labels, by, missing, dim
        As for :func:`neurolens.concept_events`.
    tau : float
        Threshold of the score; reaching it is enough.

    Returns
    -------
    Dataset (transition), lazy if ``scores`` is
        `n_stay`, `n_gained`, `n_lost`, and `n_unknown`, those above the threshold on one side with no score on the
        other, which are in no other count; `turnover`, (gained + lost) / (before + after), and `jaccard`, the share
        that stays; NaN where there is nothing on either side. The ends of each transition are coordinates.

    Raises
    ------
    SchemaError, MissingMeasurementError
        As for :func:`neurolens.concept_events`.
    """
    rule_of(tau, 1, 0.0, 1, 1)
    found = trajectories_of(scores, labels, by, missing=missing, dim=dim)
    score = whole_series(found.score, found.series)
    before, after = _ends(score, found.series)
    was, comes = before >= tau, after >= tau
    stay, lost, gained = was & comes, was & (after < tau), (before < tau) & comes
    unknown = (was & after.isnull()) | (comes & before.isnull())
    results = {
        name: array.sum(found.dims)
        for name, array in (("n_stay", stay), ("n_gained", gained), ("n_lost", lost), ("n_unknown", unknown))
    }
    moved = results["n_gained"] + results["n_lost"]
    either, both_ends = results["n_stay"] + moved, 2 * results["n_stay"] + moved
    results["turnover"] = (moved / np.maximum(both_ends, 1)).where(both_ends > 0)
    results["jaccard"] = (results["n_stay"] / np.maximum(either, 1)).where(either > 0)
    return _with_ends(described(results, found.score, series=found.series, iou_tau=tau, by=found.by), found)


def diversity(
    scores: Scores,
    *,
    labels: xr.DataArray | None = None,
    tau: float = 0.04,
    missing: OnMissing = "error",
    dim: str | None = None,
) -> xr.Dataset:
    """Tell how many units detect how many different concepts at each checkpoint, and how evenly.

    Parameters
    ----------
    scores, labels, tau, missing, dim
        As for :func:`neurolens.label_drift`.

    Returns
    -------
    Dataset, lazy if ``scores`` are over concepts and lazy
        `holders` (series, concept), the detectors of each concept, a unit counting for its best one only;
        `total_detectors`, `total_unique`, `entropy` (nat; NaN without detectors), `effective` = exp(entropy),
        `evenness` (series). By category: `neurolens.dissection.detectors`.

    Raises
    ------
    SchemaError, MissingMeasurementError
        As for :func:`neurolens.concept_events`.

    References
    ----------
    Hill 1973, "Diversity and evenness: a unifying notation and its consequences"; Pielou 1966.
    """
    found, codes, names = _detected(scores, labels, tau, missing, dim)
    n, rows = len(names), max(1, 2**22 // max(1, codes.sizes["unit"]))
    holders: xr.DataArray = xr.apply_ufunc(
        _counted,
        codes.chunk({found.series: rows, "unit": -1}) if codes.chunks is not None else codes,
        input_core_dims=[["unit"]],
        output_core_dims=[["concept"]],
        kwargs={"n": n},
        dask="parallelized",
        output_dtypes=[np.int64],
        dask_gufunc_kwargs={"output_sizes": {"concept": n}},
    )
    holders = holders.assign_coords(concept=("concept", np.asarray(names, np.dtypes.StringDType())))
    total, total_unique = holders.sum("concept"), (holders > 0).sum("concept")
    share = holders / np.maximum(total, 1)
    entropy: xr.DataArray = -(share * np.log(share.where(share > 0, 1.0))).sum("concept").where(total > 0) + 0.0
    results: dict[str, xr.DataArray] = {
        "holders": holders,
        "total_detectors": total,
        "total_unique": total_unique,
        "entropy": entropy,
        "effective": xr.apply_ufunc(np.exp, entropy, dask="allowed"),
        "evenness": entropy.where(total_unique > 1) / np.log(total_unique.clip(2)),
    }
    return described(results, found.score, series=found.series, iou_tau=tau)


def extinctions(
    scores: Scores,
    *,
    labels: xr.DataArray | None = None,
    tau: float = 0.04,
    k: int = 3,
    hysteresis: float = 0.0,
    smoothing_window: int = 1,
    min_alive: int = 1,
    missing: OnMissing = "error",
    dim: str | None = None,
) -> pd.DataFrame:
    """List the lives of concepts in the network as a whole: one dies when no unit holds it any more. **Eager.**

    Parameters
    ----------
    scores, labels, tau, k, hysteresis, smoothing_window, min_alive, missing, dim
        As for :func:`neurolens.concept_events`; what is followed is the best score of each concept over all units. A
        unit without a score is passed over; but of adopted tallies, which know the best concepts only, a concept that
        no unit is known to hold is unknown, and its life ends as *displaced*.

    Returns
    -------
    DataFrame, one line per life
        As from :func:`neurolens.concept_events`, without units.

    Raises
    ------
    SchemaError, MissingMeasurementError
        As for :func:`neurolens.concept_events`.
    """
    rule_of(tau, k, hysteresis, smoothing_window, min_alive)
    found = trajectories_of(scores, labels, PAIR, missing=missing, dim=dim)
    best = found.score.max("unit")
    if found.absent == "displaced":
        best = best.where((best >= tau) | found.score.notnull().all("unit"))
    best = best.expand_dims(unit=1, axis=1).assign_attrs(found.score.attrs)
    pacing: dict[str, Any] = {"smoothing_window": smoothing_window, "min_alive": min_alive}
    table = concept_events(best.compute(), tau=tau, k=k, hysteresis=hysteresis, **pacing, dim=found.series)
    table.attrs["by"] = "concept"
    return table.drop(columns=[c for c in ("unit", "layer", "index") if c in table])


def _detected(
    scores: Scores, labels: xr.DataArray | None, tau: float, missing: OnMissing, dim: str | None
) -> tuple[Trajectories, xr.DataArray, list[str]]:
    """Return the number of each unit's concept where it is a detector, −1 elsewhere: (series, unit), and the names."""
    rule_of(tau, 1, 0.0, 1, 1)
    scores = opened(scores)
    labelled = labels is not None or (isinstance(scores, xr.Dataset) and {"score", "label"} <= set(scores))
    found = trajectories_of(scores, labels, UNIT if labelled else None, missing=missing, dim=dim)
    if found.by == PAIR:
        best = best_of(found.score)
        names = [str(name) for name in held(found.score.coords["concept"])]
        return found, best["position"].where(best["score"] >= tau, -1), names
    if found.label is None:
        raise SchemaError("there is no label to tell concepts apart; pass labels=, or IoU over concepts")
    names, codes = codes_of(found.label)
    return found, codes.where(found.score >= tau, -1), names


def _ends(data: xr.DataArray, series: str) -> tuple[xr.DataArray, xr.DataArray]:
    bare = data.drop_vars([name for name, coord in data.coords.items() if series in coord.dims])
    ends = bare.isel({series: slice(None, -1)}), bare.isel({series: slice(1, None)})
    before, after = (end.rename({series: "transition"}) for end in ends)
    return before, after


def _with_ends(out: xr.Dataset, found: Trajectories) -> xr.Dataset:
    stamps = labels_of(found.score, found.series)
    ends = {f"from_{found.series}": ("transition", stamps[:-1]), f"to_{found.series}": ("transition", stamps[1:])}
    return out.assign_coords(ends).set_xindex(f"to_{found.series}")


def _counted(codes: Any, n: int) -> Any:
    out = np.zeros((*codes.shape[:-1], n), np.int64)
    at = np.nonzero(codes >= 0)
    np.add.at(out, (*at[:-1], codes[at].astype(np.int64)), 1)
    return out
