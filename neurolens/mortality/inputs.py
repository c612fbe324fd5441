"""What is followed: scores per unit, or per unit and concept, along the series, whatever they are handed in as."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from dask import config

from neurolens import schema
from neurolens.dissection import best_concept
from neurolens.dissection.adopted import from_cube, is_adopted, spread_codes
from neurolens.errors import MissingMeasurementError, SchemaError
from neurolens.mortality.lives import Rule
from neurolens.units.inputs import OnMissing, choice, labels_of, listed
from neurolens.units.layers_of import held, in_chunks

By = Literal["unit-concept", "unit"]
Scores = xr.DataArray | xr.Dataset

PAIR: Literal["unit-concept"] = "unit-concept"
UNIT: Literal["unit"] = "unit"
ABSENT_NAMES = ("absent", "displaced")

_BLOCK = 2**23  # bytes of scores that lives are found in at once: where most are alive, it takes some ten times as much


@dataclass(frozen=True)
class Trajectories:
    """Scores to follow: ``score`` (series, unit[, concept]), ``label`` (series, unit) of those by unit, if known."""

    score: xr.DataArray
    label: xr.DataArray | None
    series: str
    by: By

    @property
    def dims(self) -> tuple[str, ...]:
        """The dims of a trajectory: ("unit", "concept") or ("unit",)."""
        return tuple(str(d) for d in self.score.dims if d != self.series)

    @property
    def absent(self) -> str:
        """What it is called where a life ends because there is no score any more."""
        name = str(self.score.attrs.get("absent", "absent"))
        return name if name in ABSENT_NAMES else "absent"


def trajectories_of(
    scores: Scores,
    labels: xr.DataArray | None = None,
    by: str | None = None,
    *,
    compat: str | None = None,
    missing: OnMissing = "error",
    dim: str | None = None,
) -> Trajectories:
    """Take scores as what they can be followed as.

    Raises
    ------
    SchemaError
        If dims are missing, or the scores cannot be followed that way.
    MissingMeasurementError
        If checkpoints were not measured, naming them.
    """
    choice("missing", missing, "error", "drop")
    if by is not None:
        choice("by", by, PAIR, UNIT)
    score, label = _taken(scores, labels, by, compat)
    series = schema.series_dim(score, dim)
    if "unit" not in score.dims:
        raise SchemaError(f"found dims {score.dims}; scores over units are needed, along the dim 'unit'")
    extra = [d for d in score.dims if d not in (series, "unit", "concept")]
    if extra:
        mend = f"select one: scores.isel({extra[0]}=0)"
        mend += ", or see event_probability" if extra[0] == "draw" else ""
        raise SchemaError(f"there is a dim {extra[0]!r} that cannot be followed; {mend}")
    score, label = _measured(score, label, series, missing)
    per_pair = "concept" in score.dims
    by = by or (UNIT if compat == "seed" or not per_pair else PAIR)
    if compat == "seed" and by != UNIT:
        raise SchemaError('the reference follows units, whatever their label; pass by="unit", or leave compat out')
    if by == UNIT and per_pair:
        found = best_of(score)
        score, label, per_pair = found["score"], found["label"], False
    if by == PAIR and not per_pair:
        score = spread(score, label)
    dims = (series, "unit", "concept") if by == PAIR else (series, "unit")
    score = score.transpose(*dims)
    if label is not None:
        label = label.transpose(series, "unit")
    return Trajectories(score, None if by == PAIR else label, series, PAIR if by == PAIR else UNIT)


def rule_of(
    tau: float, k: int, hysteresis: float, smoothing_window: int, min_alive: int, compat: str | None = None
) -> Rule:
    """Check what decides life and death, and return it."""
    if compat is not None:
        choice("compat", compat, "seed")
    if not np.isfinite(tau) or tau <= 0:
        raise SchemaError(f"tau={tau!r} is no threshold of a score; give a number above 0, e.g. 0.04")
    if not 0 <= hysteresis < 1:
        raise SchemaError(f"hysteresis={hysteresis!r} is no share of tau; give a number from 0 to below 1, e.g. 0.1")
    if compat and hysteresis:
        raise SchemaError('the reference knows no hysteresis; leave it out, or leave out compat="seed"')
    for name, value in (("k", k), ("smoothing_window", smoothing_window), ("min_alive", min_alive)):
        if int(value) != value or value < 1:
            raise SchemaError(f"{name}={value!r} is no number of checkpoints; give an integer of at least 1")
    return Rule(
        float(tau), int(k), float(hysteresis), int(smoothing_window), int(min_alive), "seed" if compat else None
    )


def best_of(iou: xr.DataArray) -> xr.Dataset:
    """Return `score`, `label` and `position` of each unit's best concept, in categories or none: (series, unit)."""
    if "concept_category" not in iou.coords:
        iou = iou.assign_coords(concept_category=("concept", [""] * iou.sizes["concept"]))
    return best_concept(iou)[["score", "label", "position"]]


def spread(score: xr.DataArray, label: xr.DataArray | None) -> xr.DataArray:
    """Return (series, unit, concept): the score where the concept is the unit's label, NaN elsewhere. Lazy."""
    if label is None:
        raise SchemaError('there is no label to tell concepts apart; pass labels=, or by="unit"')
    series = schema.series_dim(score)
    names, codes = codes_of(label)
    return spread_codes(
        score.transpose(series, "unit").expand_dims(category=1, axis=2),
        codes.transpose(series, "unit").expand_dims(category=1, axis=2),
        names,
    )


def codes_of(label: xr.DataArray) -> tuple[list[str], xr.DataArray]:
    """Return the names that occur, sorted, and their numbers (…); −1 where the label is empty. **Eager.**"""
    names, codes = np.unique(np.asarray(held(label).tolist(), str), return_inverse=True)
    codes = codes.reshape(label.shape) - int(bool(len(names)) and names[0] == "")
    return [str(name) for name in names if name != ""], label.copy(data=codes)


def coordinate(data: xr.DataArray, name: str, dim: str) -> Any:
    """Return a coordinate along ``dim`` as a list of text or numbers; None where there is none."""
    if name not in data.coords or data.coords[name].dims != (dim,):
        return None
    return np.asarray(held(data.coords[name]).tolist())


def whole_series(score: xr.DataArray, series: str) -> xr.DataArray:
    """Chunk lazy scores so that the series is in one piece, in blocks of about 8 MiB."""
    if score.chunks is None:
        return score
    per_unit = score.sizes[series] * score.sizes.get("concept", 1) * score.dtype.itemsize
    chunks = {series: -1, "unit": max(1, _BLOCK // max(1, per_unit))}  # where no unit has a concept, there is none
    with config.set({"array.chunk-size": _BLOCK}):
        return score.chunk(chunks) if per_unit < _BLOCK else in_chunks(score, series)


def described(results: Mapping[str, xr.DataArray], origin: xr.DataArray, **attrs: Any) -> xr.Dataset:
    """Put results together, named and described by the schema, with where they come from and what they mean."""
    labelled = {name: schema.label(array, schema.MORTALITY_RESULTS[name]) for name, array in results.items()}
    kept = {key: origin.attrs[key] for key in schema.PROVENANCE if key in origin.attrs}
    return xr.Dataset(labelled, attrs=kept | {key: value for key, value in attrs.items() if value is not None})


def opened(scores: Any) -> Any:
    """Return scores as they are followed: the node of a tree as its Dataset, an adopted cube as what it tells."""
    if isinstance(scores, xr.DataTree):
        scores = scores.to_dataset()
    return from_cube(scores) if is_adopted(scores) else scores


def _taken(
    scores: Scores, labels: xr.DataArray | None, by: str | None, compat: str | None
) -> tuple[xr.DataArray, xr.DataArray | None]:
    scores = opened(scores)
    if isinstance(scores, xr.DataArray):
        return scores, labels
    if not isinstance(scores, xr.Dataset):
        raise SchemaError(
            f"found a {type(scores).__name__}; scores are a DataArray, or a Dataset of `score` and `label`"
        )
    provenance = {key: scores.attrs[key] for key in schema.PROVENANCE if key in scores.attrs}
    by_unit = by == UNIT or compat == "seed"
    for name in ("score", "iou") if by_unit else ("iou", "score"):
        if name in scores:
            found = scores[name].assign_attrs(provenance | scores[name].attrs)
            return found, labels if labels is not None else (scores.get("label") if name == "score" else None)
    mend = "take the cube of concepts, or of tallies"
    if "intersection" in scores:
        mend = "pass the IoU of its counts, neurolens.iou(ds), or call it as a method of ds.lens"
    raise SchemaError(f"there is neither `iou` nor `score` among {listed([str(n) for n in scores.data_vars])}; {mend}")


def _measured(
    score: xr.DataArray, label: xr.DataArray | None, series: str, missing: OnMissing
) -> tuple[xr.DataArray, xr.DataArray | None]:
    if label is not None and (set(label.dims) != {series, "unit"} or label.sizes[series] != score.sizes[series]):
        raise SchemaError(f"labels have {dict(label.sizes)}; they need ({series}, unit) as the scores have")
    if not score.sizes[series]:
        raise SchemaError(f"the scores have no {series} left to follow; select at least one")
    if "measured" not in score.coords:
        return score, label
    done = held(score.coords["measured"]).astype(bool)
    if done.all():
        return score, label
    where = listed(labels_of(score, series)[~done])
    if missing == "error" or not done.any():
        adopted = score.attrs.get("cube") == schema.TALLIES.name
        mend = (
            f"import them: {schema.TALLIES.adopted}"
            if adopted
            else "measure them: `neurolens run STUDY --only concepts`"
        )
        raise MissingMeasurementError(
            f'concepts were not measured at {series} {where}; {mend}, or pass missing="drop" to leave them out'
        )
    at = {series: np.flatnonzero(done)}
    return score.isel(at), None if label is None else label.isel(at)
