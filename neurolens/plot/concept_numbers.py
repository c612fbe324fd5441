"""What the pictures and the report say of concepts: detectors, events, lifetimes and migrations of a run, computed."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from neurolens import mortality, schema
from neurolens.dissection import best_concept, detectors, iou
from neurolens.dissection.adopted import from_cube, is_adopted
from neurolens.dissection.overlap import TAU, Reading
from neurolens.errors import MissingMeasurementError
from neurolens.plot.concepts import counted
from neurolens.units.inputs import labels_of, listed
from neurolens.units.layers_of import held

FACTORS = 0.5, 0.75, 1.0, 1.25, 1.5
"""Thresholds at which events are counted too, in terms of the one that is drawn."""
NODES = 14
"""Up to how many units on either side migrations are drawn from unit to unit."""
MEMORY = 2**30
"""Bytes of IoU that are kept; more is read again for each reduction."""
BEST = "score", "label", "label_category"
ROTATED = {"paper": "rotated_score", "lite": "rotated_score_lite"}


@dataclass(frozen=True)
class LifeRule:
    """By which reading and rule concepts live and die: arguments of `neurolens.iou` and `neurolens.concept_events`."""

    reading: Reading = "paper"
    tau: float = TAU
    k: int = 3
    hysteresis: float = 0.0
    by: Literal["unit-concept", "unit"] | None = None
    smoothing_window: int = 1
    min_alive: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `neurolens.concept_events`."""
        names = ("tau", "k", "hysteresis", "by", "smoothing_window", "min_alive")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        words = [f"tau = {self.tau:g}", f"k = {self.k}"]
        words += [f"hysteresis {self.hysteresis:g}"] if self.hysteresis else []
        words += [f"smoothed over {self.smoothing_window} checkpoints"] if self.smoothing_window > 1 else []
        words += [f"at least {self.min_alive} checkpoints alive"] if self.min_alive > 1 else []
        return ", ".join(words)


@dataclass(frozen=True)
class ConceptNumbers:
    """What a run's concepts went through, computed.

    Attributes
    ----------
    cube : str
        ``concepts``, or ``tallies`` of adopted ones.
    rule : LifeRule
        By which everything here was found; the reading of tallies is their own.
    series : str
    best : Dataset (series, unit)
        `score`, `label` and `label_category` of each unit's best concept.
    detectors : Dataset (series, category)
        What `neurolens.detectors` returns.
    events : DataFrame
        What `neurolens.concept_events` returns.
    moves : DataFrame
        What `neurolens.migrations` returns; None where there are no labels.
    survival : Dataset by what it is grouped by
        ``""`` for all lives; ``category`` and ``layer`` where there are several. Empty where there
        is no life, or one checkpoint only.
    sensitivity : DataFrame
        `tau`, `lives`, `rebirths`, `deaths`, `alive_at_end` at thresholds around the rule's.
    iou : DataArray (unit, concept)
        At the last checkpoint, of the concepts that came near the threshold anywhere; None where it is not known.
    rotated : DataArray (rotation, unit)
        Best IoU of rotated units at the last checkpoint; None where it was not measured.
    notes : tuple of str
        What is missing, in words.
    """

    cube: str
    rule: LifeRule
    series: str
    best: xr.Dataset
    detectors: xr.Dataset
    events: pd.DataFrame
    moves: pd.DataFrame | None
    survival: dict[str, xr.Dataset]
    sensitivity: pd.DataFrame
    iou: xr.DataArray | None
    rotated: xr.DataArray | None
    notes: tuple[str, ...]

    @property
    def reading(self) -> str:
        """How the reading is called."""
        return "as adopted" if self.cube == "tallies" else f"reading: {self.rule.reading}"

    @property
    def level(self) -> str:
        """What migrations are added up over: units where they are few, else layers."""
        if self.moves is None:
            return "layer"
        away = {unit for to in self.moves["destinations"] for unit in to}
        return "unit" if self.moves["unit"].nunique() <= NODES and len(away) <= NODES else "layer"


def concept_numbers(ds: xr.Dataset, *, rule: LifeRule | None = None) -> ConceptNumbers:
    """Follow the concepts of a cube, leaving out checkpoints that were not measured, and say so. **Eager**.

    IoU is computed once, and kept where it takes no more than 1 GiB.

    Parameters
    ----------
    ds : the opened concepts cube or the cube of tallies, or what `neurolens.mortality.read_tallies` returned
    rule : LifeRule, optional
        Absent: the paper's reading, IoU of 0.04, k = 3.

    Raises
    ------
    MissingMeasurementError
        If no checkpoint was measured.
    SchemaError
        If ``ds`` is neither.
    """
    rule = rule or LifeRule()
    series = schema.series_dim(ds)
    ds, notes = _measured(ds, series)
    adopted = is_adopted(ds) or "score" in ds
    if adopted:
        known = from_cube(ds) if is_adopted(ds) else ds
        best, found = _at_once(known[list(BEST)], counted(known, rule.tau, rule.reading))
        scores: xr.Dataset | xr.DataArray = known
        score = known.get("iou")
    else:
        score = iou(ds, reading=rule.reading)
        peak = score.drop_vars(list(score.coords)).max([series, "unit"]).rename("peak").to_dataset()
        best, found, peak = _at_once(best_concept(score)[list(BEST)], detectors(score, tau=rule.tau), peak)
        score = score.isel(concept=np.flatnonzero(np.asarray(peak["peak"], np.float64) >= min(FACTORS) * rule.tau))
        scores = score = score.compute() if score.nbytes <= MEMORY else score
    events = mortality.concept_events(scores, **rule.options)
    labelled = score is not None or "label" in scores
    return ConceptNumbers(
        cube="tallies" if adopted else "concepts",
        rule=rule,
        series=series,
        best=best,
        detectors=found,
        events=events,
        moves=mortality.migrations(scores, **rule.options) if labelled else None,
        survival=_lifetimes(events),
        sensitivity=_sensitivity(scores, rule, series),
        iou=None if score is None else score.isel({series: -1}).compute(),
        rotated=_rotated(ds, rule, series),
        notes=notes,
    )


def _measured(ds: xr.Dataset, series: str) -> tuple[xr.Dataset, tuple[str, ...]]:
    """Leave out checkpoints that were not measured, and say which."""
    if not ds.sizes[series]:
        raise MissingMeasurementError(f"no {series} of concepts was measured; `neurolens run STUDY` measures them")
    if "measured" not in ds:
        return ds, ()
    done = np.asarray(held(ds["measured"]), bool)
    if done.all():
        return ds, ()
    lost = listed(labels_of(ds, series)[~done])
    if not done.any():
        raise MissingMeasurementError(f"concepts were not measured at {series} {lost}; `neurolens run STUDY` does it")
    note = f"Events of concepts leave out {series} {lost}, which were not measured: lives go on over the gap."
    return ds.isel({series: np.flatnonzero(done)}), (note,)


def _at_once(*parts: xr.Dataset) -> list[xr.Dataset]:
    """Compute Datasets in one pass over what they are of."""
    held = xr.merge([part.drop_attrs() for part in parts], compat="override", join="exact").compute()
    return [held[list(part.data_vars)].assign_attrs(part.attrs) for part in parts]


def _lifetimes(events: pd.DataFrame) -> dict[str, xr.Dataset]:
    if events.empty or len(events.attrs["checkpoints"]) < 2:
        return {}
    found = {"": mortality.survival(events)}
    for name in ("category", "layer"):
        if name in events and events[name].nunique() > 1:
            found[name] = mortality.survival(events, by=name)
    return found


def _sensitivity(scores: Any, rule: LifeRule, series: str) -> pd.DataFrame:
    taus = [float(f"{rule.tau * factor:.6g}") for factor in FACTORS]
    counts = mortality.tau_sensitivity(scores, **(rule.options | {"tau": taus})).compute()
    total = counts.sum(series)
    return pd.DataFrame(
        {
            "tau": taus,
            "lives": total["n_births"].values,
            "rebirths": total["n_rebirths"].values,
            "deaths": total["n_deaths"].values,
            "alive_at_end": counts["n_alive"].isel({series: -1}).values,
        }
    )


def _rotated(ds: xr.Dataset, rule: LifeRule, series: str) -> xr.DataArray | None:
    name = ROTATED[rule.reading]
    if name not in ds:
        return None
    found = ds[name].isel({series: -1}).transpose("rotation", "unit").compute()
    return found if found.notnull().any() else None
