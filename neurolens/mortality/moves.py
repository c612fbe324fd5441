"""Whether a concept that died in one unit lives on in others, and in which."""

from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from neurolens.errors import SchemaError
from neurolens.mortality.events import about, concept_events
from neurolens.mortality.inputs import PAIR, By, Scores, Trajectories, codes_of, coordinate, rule_of, trajectories_of
from neurolens.units.inputs import OnMissing, labels_of


def migrations(
    scores: Scores,
    *,
    labels: xr.DataArray | None = None,
    window: int = 3,
    min_delta: float = 0.01,
    lead: int = 0,
    tau: float = 0.04,
    k: int = 3,
    hysteresis: float = 0.0,
    by: By | None = None,
    compat: Literal["seed"] | None = None,
    smoothing_window: int = 1,
    min_alive: int = 1,
    missing: OnMissing = "error",
    dim: str | None = None,
) -> pd.DataFrame:
    """Say of each death whether its concept gained elsewhere, and which units took it up. **Eager.**

    Parameters
    ----------
    scores, labels, tau, k, hysteresis, by, compat, smoothing_window, min_alive, missing, dim
        As for :func:`neurolens.concept_events`, whose deaths are looked at. By unit, scores need labels.
    window : int
        How far before and after the death to look: in checkpoints, whatever their numbers. With ``compat="seed"``, as
        in the reference, in epochs or steps as the series counts them: by step, saved every 300, the windows are empty
        and nothing ever migrates.
    min_delta : float
        By how much the mean score must rise.
    lead : int, checkpoints
        Births so long before the death count as destinations too.

    Returns
    -------
    DataFrame, one line per death, in order of :func:`neurolens.concept_events`
        `unit`, `layer`, `concept`, `death`; over all units that hold the concept (score of at least ``tau``) in the
        window before the death and in the one after it, the death's own checkpoint in neither: `n_before`,
        `n_after` (unit × checkpoint), `mean_before`, `mean_after` (0 where there is none); `migrated`, the
        reference's flag: n_after > n_before and mean_after − mean_before ≥ ``min_delta``. Of our own reading also
        `destinations`, the other units that become alive for the concept from ``lead`` before to ``window`` after
        the death, those of the same layer first, then the earliest; `destination_births`, when; `same_layer`, whether
        each is; and `n_destinations`. ``explode(["destinations", "destination_births", "same_layer"])`` gives a line
        each.

    Raises
    ------
    SchemaError, MissingMeasurementError
        As for :func:`neurolens.concept_events`.
    """
    if not window >= 1 or not lead >= 0 or not np.isfinite(min_delta):
        raise SchemaError(
            f"found window={window!r}, lead={lead!r}, min_delta={min_delta!r}; needed: a window of at least 1, "
            "a lead of at least 0, a number"
        )
    rule = rule_of(tau, k, hysteresis, smoothing_window, min_alive, compat)
    found = trajectories_of(scores, labels, by, compat=compat, missing=missing, dim=dim)
    if found.by != PAIR and found.label is None:
        raise SchemaError("a migration is one of a concept, and the scores have no labels; pass labels=")
    options: dict[str, Any] = {"tau": tau, "k": k, "hysteresis": hysteresis, "compat": compat, "by": found.by}
    options |= {"smoothing_window": smoothing_window, "min_alive": min_alive, "dim": found.series}
    events = concept_events(found.score, labels=found.label, **options)
    deaths = events[events["end"] == "death"].reset_index(drop=True)
    kept = [c for c in ("unit", "layer", "index", "concept", "category", "death", "death_position") if c in deaths]
    table = pd.concat([deaths[kept], _held_around(found, deaths, rule.tau, window, compat)], axis=1)
    gain = table["mean_after"] - table["mean_before"]
    table["migrated"] = (table["n_after"] > table["n_before"]) & (gain >= min_delta)
    if compat is None:
        table = pd.concat([table, _destinations(deaths, _births(found, events, options), window, lead)], axis=1)
    table.attrs = about(found, rule) | {"window": window, "min_delta": min_delta, "lead": lead}
    return table


def _held_around(found: Trajectories, deaths: pd.DataFrame, tau: float, window: int, compat: str | None) -> Any:
    """Count and average, per death, the scores of its concept in the windows before and after it."""
    names, number, total = _holdings(found, tau)
    of = {name: i for i, name in enumerate(names)}
    at = deaths["death_position"].to_numpy(np.int64)
    stamps = np.asarray(labels_of(found.score, found.series)) if compat else np.arange(len(number))
    stamps = stamps.astype(np.float64)
    column = np.array([of.get(str(name), -1) for name in deaths["concept"]], np.int64)
    here = stamps[at]
    away = stamps[None, :] - here[:, None]
    out = {}
    for name, inside in (("before", (away >= -window) & (away < 0)), ("after", (away > 0) & (away <= window))):
        n = (number.T[column] * inside).sum(axis=1) if len(names) else np.zeros(len(at), np.int64)
        s = (total.T[column] * inside).sum(axis=1) if len(names) else np.zeros(len(at))
        n, s = np.where(column < 0, 0, n), np.where(column < 0, 0.0, s)
        out[f"n_{name}"], out[f"mean_{name}"] = n, s / np.maximum(n, 1)
    return pd.DataFrame(out)


def _holdings(found: Trajectories, tau: float) -> tuple[list[str], Any, Any]:
    """Return names of concepts, and how many units hold each at each checkpoint, with what score in sum."""
    score = found.score
    if found.by == PAIR:
        names = [str(name) for name in coordinate(score, "concept", "concept")]
        held = score >= tau
        both = xr.Dataset({"n": held.sum("unit"), "total": score.where(held, 0.0).sum("unit")}).compute()
        return names, both["n"].data, both["total"].data
    if found.label is None:
        return [], np.zeros((0, 0)), np.zeros((0, 0))
    names, codes = codes_of(found.label)
    values, of = np.asarray(score.compute().data), codes.data
    rows, units = np.nonzero((values >= tau) & (of >= 0))
    cells = rows * max(len(names), 1) + of[rows, units]
    shape = (len(values), max(len(names), 1))
    number = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
    total = np.bincount(cells, values[rows, units], minlength=shape[0] * shape[1]).reshape(shape)
    return names, number, total


def _births(found: Trajectories, events: pd.DataFrame, options: dict[str, Any]) -> pd.DataFrame:
    """Births of concepts in units: those of the events, or by unit, those of each label that a unit takes on."""
    if found.by == PAIR:
        return events
    return concept_events(found.score, labels=found.label, **(options | {"by": PAIR}))


def _destinations(deaths: pd.DataFrame, births: pd.DataFrame, window: int, lead: int) -> pd.DataFrame:
    # a concept that a unit has from the first checkpoint on did not come from anywhere
    births = births[births["birth_position"] > 0]
    of_concept = dict(iter(births.groupby("concept")))
    lines: list[tuple[object, ...]] = []
    for death in deaths.to_dict("records"):
        near = of_concept.get(death["concept"])
        if near is not None:
            away = near["birth_position"] - death["death_position"]
            near = near[(away >= -lead) & (away <= window) & (near["unit"] != death["unit"])]
        if near is None or near.empty:
            lines.append(((), (), (), 0))
            continue
        same = near["layer"] == death["layer"] if "layer" in near else pd.Series(True, near.index)
        near = near.assign(same=same).sort_values(["same", "birth_position", "unit"], ascending=[False, True, True])
        near = near.drop_duplicates("unit")
        lines.append((*(tuple(near[c].tolist()) for c in ("unit", "birth", "same")), len(near)))
    columns = ["destinations", "destination_births", "same_layer", "n_destinations"]
    return pd.DataFrame(lines, columns=columns).astype({"n_destinations": np.int64})
