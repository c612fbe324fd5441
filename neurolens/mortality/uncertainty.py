"""How sure events are: over resampled images, over thresholds, over runs."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from neurolens import schema
from neurolens.dissection.draws import ImageDraws
from neurolens.errors import SchemaError
from neurolens.inference import percentile_interval, require_resampling
from neurolens.mortality import lives
from neurolens.mortality.events import about, concept_events, flags_of
from neurolens.mortality.inputs import PAIR, By, Scores, described, rule_of, trajectories_of
from neurolens.mortality.lifetimes import survival
from neurolens.mortality.resampled import COUNTS, Draws, counts_of, counts_of_images, each_of, in_strips, number_of
from neurolens.units.inputs import OnMissing

QUANTITIES = (*COUNTS, "share_died", "share_reborn", "median_lifetime")


def event_probability(
    scores: xr.DataArray,
    draws: Draws,
    *,
    n_draws: int | None = None,
    tolerance: int = 1,
    tau: float = 0.04,
    k: int = 3,
    hysteresis: float = 0.0,
    smoothing_window: int = 1,
    min_alive: int = 1,
    missing: OnMissing = "error",
    dim: str | None = None,
) -> pd.DataFrame:
    """Say of each event in how many resamples of the images it happens too. **Eager**, draw by draw.

    Parameters
    ----------
    scores : IoU, (series, unit, concept)
        Its events are looked at.
    draws : IoU with a further dim `draw`, or a function of the number of a draw that returns such an array without it
        Of resampled blocks of images; the same draw of blocks at all checkpoints. Of each, only the units and concepts
        that have events are read; of `neurolens.dissection.image_draws` their counts, once for all draws.
    n_draws : int, optional
        How many draws; needed with a plain function.
    tolerance : int, checkpoints
        How far from where it was an event may be in a draw.
    tau, k, hysteresis, smoothing_window, min_alive, missing, dim
        As for :func:`neurolens.concept_events`.

    Returns
    -------
    DataFrame
        The table of events, by unit and concept, and `p_birth` and `p_death`: the share of draws in which the concept
        is born in the unit, or dies, at most ``tolerance`` checkpoints from there. `p_death` is NaN where there is no
        death to look for. ``attrs["n_draws"]``.

    Raises
    ------
    SchemaError
        If draws are over other checkpoints, units or concepts, or there are none.
    MissingMeasurementError
        As for :func:`neurolens.concept_events`.

    References
    ----------
    Efron and Tibshirani 1993, "An Introduction to the Bootstrap".
    """
    if tolerance < 0:
        raise SchemaError(f"tolerance={tolerance!r} is no number of checkpoints; give 0 or more")
    rule = rule_of(tau, k, hysteresis, smoothing_window, min_alive)
    found = trajectories_of(scores, by=PAIR, missing=missing, dim=dim)
    options: dict[str, Any] = {"hysteresis": hysteresis, "smoothing_window": smoothing_window, "min_alive": min_alive}
    events = concept_events(found.score, tau=tau, k=k, **options, dim=found.series)
    n = number_of(draws, n_draws)
    numbers = {
        name: pd.Index(found.score.indexes.get(name, pd.RangeIndex(found.score.sizes[name]))) for name in found.dims
    }
    at = [numbers[name].get_indexer(events[name]) for name in ("unit", "concept")]
    pairs, which = np.unique(np.stack(at), axis=1, return_inverse=True)
    born, died = np.zeros(len(events)), np.zeros(len(events))
    birth = events["birth_position"].to_numpy()
    death = events["death_position"].to_numpy(np.float64, na_value=np.nan)
    known = (events["end"] == "death").to_numpy()
    which = which.ravel()
    for part, values in in_strips(draws, pairs, found, missing):
        inside = (which >= part.start) & (which < part.stop)
        dying = inside & known
        for i in range(n):
            flags = lives.flags_of(values(i), rule)
            born[inside] += _near(flags & lives.FLAG_BIRTH, tolerance)[which[inside] - part.start, birth[inside]]
            near = _near(flags & lives.FLAG_DEATH, tolerance)
            died[dying] += near[which[dying] - part.start, death[dying].astype(np.int64)]
    events["p_birth"], events["p_death"] = born / n, np.where(known, died / n, np.nan)
    events.attrs |= {"n_draws": n, "tolerance": tolerance}
    return events


def tau_sensitivity(
    scores: Scores,
    *,
    labels: xr.DataArray | None = None,
    tau: Sequence[float] = (0.02, 0.03, 0.04, 0.05, 0.06),
    k: int = 3,
    hysteresis: float = 0.0,
    by: Any = None,
    compat: Any = None,
    smoothing_window: int = 1,
    min_alive: int = 1,
    missing: OnMissing = "error",
    dim: str | None = None,
) -> xr.Dataset:
    """Count events under several thresholds; scores are read once.

    Parameters
    ----------
    tau : thresholds, at least one
    scores, labels, k, hysteresis, by, compat, smoothing_window, min_alive, missing, dim
        As for :func:`neurolens.concept_events`.

    Returns
    -------
    Dataset (tau, series), lazy if ``scores`` is
        `n_alive`, `n_births`, `n_rebirths`, `n_deaths`.

    Raises
    ------
    SchemaError, MissingMeasurementError
        As for :func:`neurolens.concept_events`.
    """
    thresholds = np.atleast_1d(np.asarray(tau, float))
    if not thresholds.size or thresholds.ndim > 1:
        raise SchemaError(f"tau={tau!r} is no list of thresholds; give several, e.g. (0.03, 0.04, 0.05)")
    rules = [rule_of(float(t), k, hysteresis, smoothing_window, min_alive, compat) for t in thresholds]
    found = trajectories_of(scores, labels, by, compat=compat, missing=missing, dim=dim)
    counted = []
    for rule in rules:
        flags = flags_of(found, rule)
        of = {"n_alive": lives.FLAG_ALIVE, "n_births": lives.FLAG_BIRTH, "n_rebirths": lives.FLAG_REBIRTH}
        of["n_deaths"] = lives.FLAG_DEATH
        counted.append(xr.Dataset({name: ((flags & flag) != 0).sum(found.dims) for name, flag in of.items()}))
    joined = xr.concat(counted, "tau").assign_coords(tau=thresholds)
    attrs = {name: value for name, value in about(found, rules[0]).items() if name != "iou_tau"}
    return described({str(name): array for name, array in joined.items()}, found.score, **attrs)


def event_counts(
    draws: Draws,
    *,
    n_draws: int | None = None,
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
    """Count lives, births, rebirths, deaths, and those alive at the end, in each resample of the images. **Eager.**

    Parameters
    ----------
    draws, n_draws
        As for :func:`neurolens.mortality.event_probability`.
    tau, k, hysteresis, by, compat, smoothing_window, min_alive, missing, dim
        As for :func:`neurolens.concept_events`.

    Returns
    -------
    DataFrame, one line per draw
        Their quantiles are intervals of the counts of the run. A threshold in the bulk of the scores biases them: more
        chance of crossing it, more events in every draw than in the run.

    Raises
    ------
    SchemaError, MissingMeasurementError
        As for :func:`neurolens.mortality.event_probability`.
    """
    options: dict[str, Any] = {"tau": tau, "k": k, "hysteresis": hysteresis, "by": by, "compat": compat}
    options |= {"smoothing_window": smoothing_window, "min_alive": min_alive, "missing": missing, "dim": dim}
    n = number_of(draws, n_draws)
    if isinstance(draws, ImageDraws) and by in (None, PAIR) and compat is None:
        return counts_of_images(draws, n, options)
    return pd.DataFrame([counts_of(concept_events(draw, **options)) for draw in each_of(draws, n)])


def compare(
    runs: Mapping[str, Scores | pd.DataFrame],
    *,
    draws: Mapping[str, Draws] | None = None,
    n_draws: int | None = None,
    confidence: float = 0.95,
    **options: Any,
) -> xr.Dataset:
    """Put events and survival of several runs side by side, with intervals. **Eager.**

    Runs may be seeds of one study, or other networks: units are counted, never matched.

    Parameters
    ----------
    runs : by name, what `neurolens.concept_events` takes, or a table that it returned
    draws : by name, resampled IoU as for :func:`neurolens.mortality.event_probability`, optional
        Of runs that have any, counts get intervals. Of a table, lives are looked for as its ``attrs`` say.
    n_draws : int, optional
        How many draws; needed where they are functions.
    confidence : float
        Coverage of the intervals.
    options
        Of `neurolens.concept_events`, for all runs that are not tables.

    Returns
    -------
    Dataset
        `value`, `low`, `high` (run, quantity): counts of `lives`, `births` (rebirths among them, births before the
        record not), `rebirths`, `deaths`, `alive_at_end`, with percentile intervals of the draws; `share_died` of all
        lives and `share_reborn` of all deaths, with Wilson's interval; `median_lifetime` in checkpoints, with the
        band's (NaN: not reached). `mean`, `mean_low`, `mean_high` and `sd` (quantity) over runs, with Student's
        interval, within what the quantity can be; NaN where a run has none, the interval for one run. `survival`,
        `lower`, `upper` (run, time): the Kaplan–Meier curves, NaN after the last life of a run.

    Raises
    ------
    SchemaError
        If there is no run, a run has no life, or options come with tables only.
    MissingMeasurementError
        As for :func:`neurolens.concept_events`.

    References
    ----------
    Wilson 1927; Brookmeyer and Crowley 1982 (median); Efron and Tibshirani 1993.
    """
    require_resampling(0, confidence)
    if not runs:
        raise SchemaError("there is no run to compare; give at least one, by name")
    if options and all(isinstance(run, pd.DataFrame) for run in runs.values()):
        raise SchemaError(f"tables of events are final; {next(iter(options))} goes with scores")
    unknown = [name for name in draws or {} if name not in runs]
    if unknown:
        raise SchemaError(f"there are draws of {unknown[0]!r}, which is no run here; known: {', '.join(runs)}")
    cells = np.full((3, len(runs), len(QUANTITIES)), np.nan)
    curves = []
    for i, (name, run) in enumerate(runs.items()):
        events = run if isinstance(run, pd.DataFrame) else concept_events(run, **options)
        if events.empty:
            raise SchemaError(f"run {name!r} has no life to look at; lower tau, or leave the run out")
        curve = survival(events, confidence=confidence).isel(group=0, drop=True)
        curves.append(curve[["survival", "lower", "upper"]])
        resampled = None
        if draws and name in draws:
            given = {key: value for key, value in options.items() if key != "labels"}
            of_draws = _as_counted(events) if isinstance(run, pd.DataFrame) else given
            resampled = event_counts(draws[name], n_draws=n_draws, **of_draws)
        cells[:, i] = _quantities(events, curve, resampled, confidence)
    return _side_by_side(list(runs), cells, curves, confidence)


def _as_counted(events: pd.DataFrame) -> dict[str, Any]:
    """Return the options that a table of events was made with; checkpoints that it left out are left out."""
    names = {"iou_tau": "tau", "series": "dim"}
    kept = ("iou_tau", "k", "hysteresis", "by", "compat", "smoothing_window", "min_alive", "series")
    return {names.get(key, key): events.attrs[key] for key in kept if key in events.attrs} | {"missing": "drop"}


def _quantities(events: pd.DataFrame, curve: xr.Dataset, resampled: pd.DataFrame | None, confidence: float) -> Any:
    from scipy.stats import binomtest

    counts = counts_of(events)
    out = np.full((3, len(QUANTITIES)), np.nan)
    out[0, : len(COUNTS)] = [counts[name] for name in COUNTS]
    if resampled is not None:
        out[1:, : len(COUNTS)] = percentile_interval(resampled[list(COUNTS)].to_numpy(), confidence)
    shares = {"share_died": ("deaths", "lives"), "share_reborn": ("rebirths", "deaths")}
    for name, (part, of) in shares.items():
        if counts[of] and counts[part] <= counts[of]:
            test = binomtest(counts[part], counts[of])
            interval = test.proportion_ci(confidence, "wilson")
            out[:, QUANTITIES.index(name)] = test.statistic, interval.low, interval.high
    time = curve["time"].data
    for row, name in enumerate(("survival", "lower", "upper")):  # the lower band falls to one half first
        below = time[curve[name].data <= 0.5]
        out[row, QUANTITIES.index("median_lifetime")] = below[0] if len(below) else np.nan
    return out


def _side_by_side(names: list[str], cells: Any, curves: list[xr.Dataset], confidence: float) -> xr.Dataset:
    from scipy.stats import t

    value, n = cells[0], len(names)
    # a run without the quantity, as one in which half of the lives never end, would be missing for what it is: NaN
    mean = value.mean(axis=0)
    sd = value.std(axis=0, ddof=1) if n > 1 else np.full(mean.shape, np.nan)
    reach = t.ppf((1 + confidence) / 2, max(n - 1, 1)) * sd / np.sqrt(n)
    most = np.where([name.startswith("share") for name in QUANTITIES], 1.0, np.inf)
    text = np.dtypes.StringDType()
    data = {name: (("run", "quantity"), cells[i]) for i, name in enumerate(("value", "low", "high"))}
    over = {
        "mean": mean,
        "sd": sd,
        "mean_low": np.maximum(mean - reach, 0),
        "mean_high": np.minimum(mean + reach, most),
    }
    out = xr.Dataset(
        data | {name: ("quantity", array) for name, array in over.items()},
        {"run": ("run", np.asarray(names, text)), "quantity": ("quantity", np.asarray(QUANTITIES, text))},
        attrs={"confidence": confidence},
    )
    joined = xr.concat(curves, "run", join="outer", combine_attrs="drop").assign_coords(run=out["run"])
    for name in joined.data_vars:
        out[name] = schema.label(joined[name], schema.MORTALITY_RESULTS[str(name)]).transpose("run", "time")
    return out


def _near(flags: Any, tolerance: int) -> Any:
    """Say where a flag is set at most so many checkpoints away, (trajectory, series)."""
    found = flags != 0
    out = found.copy()
    for lag in range(1, min(tolerance, found.shape[1] - 1) + 1):
        out[:, lag:] |= found[:, :-lag]
        out[:, :-lag] |= found[:, lag:]
    return out
