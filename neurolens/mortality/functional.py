"""Whether a unit whose concept died lost its use for the classes too."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from neurolens import schema
from neurolens.errors import SchemaError
from neurolens.inference import normal_interval, paired_interval, require_resampling
from neurolens.units.inputs import choice, labels_of, listed
from neurolens.units.layers_of import held

Array = npt.NDArray[Any]

_OF_CLASS = ("n_class", "class_correct", "class_logit")
_OF_UNIT = ("ablated_correct", "ablated_logit", "ablated_lost", "ablated_m2")


def asked_units(
    events: pd.DataFrame, positions: Sequence[Any] | Array, *, compat: Literal["seed"] | None = None
) -> dict[int, tuple[int, ...]]:
    """Say which units have to be taken away at which checkpoints, to tell which deaths are functional.

    Parameters
    ----------
    events : the table of `neurolens.concept_events`
        Its deaths are looked at; what is alive or censored is not.
    positions : labels of the checkpoints that were followed, in order
    compat : "seed" or None
        None: the checkpoint just before a death, and the death's own, the first below the threshold. The reference
        takes the death's own for *before*, and the next one for *after*; a death at the last checkpoint is left out.

    Returns
    -------
    units : label → numbers of units, ascending
        In order of the labels.

    Raises
    ------
    SchemaError
        If the checkpoints are not those that were followed.
    """
    stamps = np.asarray(positions)
    followed = events.attrs.get("checkpoints")
    if followed is not None and list(followed) != stamps.tolist():
        raise SchemaError(
            f"the events were followed over checkpoints {listed(np.asarray(followed))}, and {listed(stamps)} were "
            "given; pass those that were followed"
        )
    deaths = _deaths(events)
    before, after = _sides(deaths, len(stamps), compat)
    kept = (before >= 0) & (after >= 0)
    asked: dict[int, set[int]] = {}
    for side in (before, after):
        for at, unit in zip(side[kept].tolist(), deaths["unit"].to_numpy(np.int64)[kept].tolist(), strict=True):
            asked.setdefault(int(stamps[at]), set()).add(unit)
    return {stamp: tuple(sorted(asked[stamp])) for stamp in sorted(asked)}


def functional_death(
    effects: xr.Dataset,
    events: pd.DataFrame,
    *,
    ratio: float = 0.1,
    n_classes: int = 5,
    confidence: float = 0.95,
    compat: Literal["seed"] | None = None,
    threshold: float = 1e-4,
    dim: str | None = None,
) -> pd.DataFrame:
    """Say of each death whether the unit lost its use for the classes too. **Eager.**

    The classes that *used* a unit are those whose mean logit, over their own samples, falls without it at the
    checkpoint just before the death: the ``n_classes`` that fall most, fewer where fewer fall. What they lose without
    the unit is compared with what the same classes lose at the death's own checkpoint, all their samples together.

    Parameters
    ----------
    effects : the opened effects cube
        Only what is asked for is read.
    events : the table of `neurolens.concept_events`
        Made with the options of the study's [effects] table: units were taken away for those deaths.
    ratio : float
        A death is functional if less than this share of the fall of the logit is left.
    n_classes : int
        How many classes count as users at most.
    confidence : float
        Coverage of the intervals: over samples, the same with and without the unit; of given classes.
    compat : "seed" or None
        The reference's rule: the mean absolute conductance after the death is below ``threshold``, and smaller than
        before it. *Before* is the death's own checkpoint, *after* the next one.
    threshold : logit
        Of ``compat="seed"``; its meaning depends on the layer and the size of its maps.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever ``effects`` has.

    Returns
    -------
    DataFrame, one line per death, in order of the events
        Its columns are those of `neurolens.schema.FUNCTIONAL_DEATHS` that apply. `functional_dead` is missing (NA),
        never False, where a checkpoint was not measured or not there, and where no class used the unit before: what was
        of no use cannot lose it. `remaining` may be negative: the classes are better off without the unit.

    Raises
    ------
    SchemaError
        If an option is wrong, or the events are of other units or another series.
    MissingMeasurementError
        If the effects were measured without conductance, with ``compat="seed"``.

    References
    ----------
    Bau et al. 2020, "Understanding the role of individual units in a deep neural network", section 2.3 (ablation).
    Agresti and Min 2005 (interval of the accuracy drop).
    """
    if compat is not None:
        choice("compat", compat, "seed")
    require_resampling(0, confidence)
    if not (np.isfinite(ratio) and ratio > 0) or not (np.isfinite(threshold) and threshold > 0):
        raise SchemaError(f"found ratio={ratio!r}, threshold={threshold!r}; give numbers above 0, e.g. 0.1 and 1e-4")
    if int(n_classes) != n_classes or n_classes < 1:
        raise SchemaError(f"n_classes={n_classes!r} is no number of classes; give an integer of at least 1")
    series = schema.require(effects, "conductance" if compat else "ablated_logit", dim=dim)
    stamps = events.attrs.get("checkpoints")
    if stamps is None:
        raise SchemaError(
            "the events do not say which checkpoints were followed; pass the table as concept_events returned it"
        )
    if str(events.attrs.get("series", series)) != series:
        raise SchemaError(f"the events are by {events.attrs['series']}, and the effects by {series}; follow both alike")
    deaths = _deaths(events)
    sides = [_of(np.asarray(stamps), side) for side in _sides(deaths, len(stamps), compat)]
    units = _places(held(effects["unit"]) if "unit" in effects.coords else np.arange(effects.sizes["unit"]), deaths)
    labels = np.asarray(labels_of(effects, series))
    if compat:
        values = [_taken(effects, ("conductance",), series, labels, side, units)["conductance"] for side in sides]
        known = np.isfinite(values[0]) & np.isfinite(values[1])
        dead = (values[1] < threshold) & (values[1] < values[0])
        columns: dict[str, Any] = {"conductance_before": values[0], "conductance_after": values[1]}
    else:
        columns, known, dead = _by_ablation(effects, series, labels, sides, units, ratio, int(n_classes), confidence)
    columns |= {"before": sides[0], "after": sides[1]}
    columns["functional_dead"] = pd.arrays.BooleanArray(np.asarray(dead, np.bool_), ~np.asarray(known, np.bool_))
    columns |= {
        name: deaths[name] for name in ("unit", "layer", "index", "concept", "category", "death") if name in deaths
    }
    table = pd.DataFrame({v.name: columns[v.name] for v in schema.FUNCTIONAL_DEATHS if v.name in columns})
    table.attrs = dict(events.attrs) | {"functional_compat": compat, "confidence": confidence}
    table.attrs |= {"conductance_threshold": threshold} if compat else {"ratio": ratio, "n_classes": int(n_classes)}
    return table


def _by_ablation(
    effects: xr.Dataset,
    series: str,
    labels: Array,
    sides: Sequence[Any],
    units: Array,
    ratio: float,
    n_classes: int,
    confidence: float,
) -> tuple[dict[str, Any], Array, Array]:
    """Return columns of the table, which deaths are known about, and which are functional."""
    names = np.array([str(name) for name in held(effects["class"])] if "class" in effects.coords else [], object)
    if not len(names):
        names = np.array([str(c) for c in range(effects.sizes["class"])], object)
    found = [_taken(effects, (*_OF_CLASS, *_OF_UNIT), series, labels, side, units) for side in sides]
    falls = [values["class_logit"] - values["ablated_logit"] for values in found]
    known = np.logical_and(*(np.isfinite(fall).any(axis=1) for fall in falls))
    users = _largest(falls[0], n_classes) & known[:, None]
    used = users.sum(axis=1)
    columns: dict[str, Any] = {
        "used_by": pd.Series([tuple(names[line]) for line in users], dtype=object),
        "n_used": pd.arrays.IntegerArray(used.astype(np.int64), ~known),
    }
    some = used > 0
    for when, values, fall in zip(("before", "after"), found, falls, strict=True):
        n = np.where(users, values["n_class"], 0.0)
        total = np.where(some, n.sum(axis=1), np.nan)
        drop = np.where(users, fall * n, 0.0).sum(axis=1) / total
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = np.where(n > 1, values["ablated_m2"] / (n - 1), np.where(users, np.nan, 0.0))
        spread = np.sqrt((np.where(users, variance, 0.0) * n).sum(axis=1)) / total
        lost = np.where(users, values["ablated_lost"], 0.0).sum(axis=1)
        net = np.where(users, values["class_correct"] - values["ablated_correct"], 0.0).sum(axis=1)
        bounds = normal_interval(drop, spread, confidence), paired_interval(lost, lost - net, total, confidence)
        for name, value, (low, high) in zip(("logit", "accuracy"), (drop, net / total), bounds, strict=True):
            columns |= {f"{name}_drop_{when}": value, f"{name}_drop_{when}_low": low, f"{name}_drop_{when}_high": high}
        if when == "before":
            columns["n_samples"] = pd.arrays.IntegerArray(np.where(some, total, 0).astype(np.int64), ~known)
    columns["remaining"] = columns["logit_drop_after"] / columns["logit_drop_before"]
    return columns, known & some, columns["remaining"] < ratio


def _largest(falls: Array, n: int) -> Array:
    """Return where each line's ``n`` largest values above 0 are."""
    values = np.where(falls > 0, falls, 0.0)
    order = np.argsort(-values, axis=1, kind="stable")[:, :n]
    out = np.zeros(values.shape, np.bool_)
    np.put_along_axis(out, order, True, axis=1)
    return out & (values > 0)


def _deaths(events: pd.DataFrame) -> pd.DataFrame:
    lacking = [name for name in ("unit", "end", "death", "death_position") if name not in events]
    if lacking:
        raise SchemaError(f"the events have no column {lacking[0]!r}; pass the table of concept_events")
    return events[events["end"] == "death"].reset_index(drop=True)


def _sides(deaths: pd.DataFrame, n: int, compat: str | None) -> tuple[Array, Array]:
    """Return the positions of the checkpoints before and after each death; -1 for none."""
    at = deaths["death_position"].to_numpy(np.int64)
    before, after = (at, at + 1) if compat else (at - 1, at)
    return before, np.where(after < n, after, -1)


def _of(stamps: Array, positions: Array) -> Any:
    """Return the labels at these positions, missing where they are negative."""
    values = stamps[np.where(positions < 0, 0, positions)] if len(stamps) else np.zeros(len(positions))
    if stamps.dtype.kind in "iu":
        return pd.arrays.IntegerArray(values.astype(np.int64), positions < 0)
    return np.where(positions < 0, np.nan, values)


def _places(known: Array, deaths: pd.DataFrame) -> Array:
    """Return where the units of the deaths are among those of the effects."""
    place = {int(unit): at for at, unit in enumerate(np.asarray(known).tolist())}
    units = deaths["unit"].to_numpy(np.int64).tolist()
    lacking = sorted({unit for unit in units if unit not in place})
    if lacking:
        raise SchemaError(
            f"the events are of units {listed(lacking)}, which the effects have not; pass those of the same run"
        )
    return np.array([place[unit] for unit in units], dtype=np.int64)


def _taken(
    effects: xr.Dataset, names: Sequence[str], series: str, labels: Array, side: Any, units: Array
) -> dict[str, Array]:
    """Read variables at a checkpoint and a unit for each death: (death[, class]); NaN where there is none."""
    place = {stamp: at for at, stamp in enumerate(labels.tolist())}
    at = np.array([place.get(stamp, -1) if not pd.isna(stamp) else -1 for stamp in side], dtype=np.int64)
    pairs, which = np.unique(np.stack([at, units]), axis=1, return_inverse=True)
    which = which.reshape(-1)
    where = {
        series: xr.DataArray(np.maximum(pairs[0], 0), dims="pair"),
        "unit": xr.DataArray(pairs[1], dims="pair"),
    }
    some = bool(len(labels)) and bool(pairs.size)
    out = {}
    read = effects[list(names)].isel(where).compute() if some else None
    for name in names:
        if read is None:
            shape = (len(units), effects.sizes["class"]) if "class" in effects[name].dims else (len(units),)
            out[name] = np.full(shape, np.nan)
            continue
        values = np.asarray(read[name].transpose("pair", ...).data, dtype=np.float64)[which]
        out[name] = np.where((at >= 0).reshape(-1, *[1] * (values.ndim - 1)), values, np.nan)
    return out
