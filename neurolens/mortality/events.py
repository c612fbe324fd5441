"""When concepts are born, die and come back: per unit and concept, or per unit."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from dask import base
from dask.delayed import delayed

from neurolens import schema
from neurolens.mortality import lives
from neurolens.mortality.inputs import (
    PAIR,
    By,
    Scores,
    Trajectories,
    coordinate,
    described,
    rule_of,
    trajectories_of,
    whole_series,
)
from neurolens.units.inputs import OnMissing, labels_of
from neurolens.units.layers_of import held

FLAGS = {
    "known": lives.FLAG_KNOWN,
    "alive": lives.FLAG_ALIVE,
    "birth": lives.FLAG_BIRTH,
    "rebirth": lives.FLAG_REBIRTH,
    "death": lives.FLAG_DEATH,
}


def concept_events(
    scores: Scores,
    *,
    labels: xr.DataArray | None = None,
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
    """List the lives of concepts: births, deaths, rebirths, and lives whose end was not seen. **Eager.**

    A life begins at the first checkpoint with a score of at least ``tau``, and ends at the first one below ``tau``
    (with hysteresis: below ``tau * (1 - hysteresis)``) that is followed by such checkpoints only, ``k`` with itself.
    A shorter dip is bridged. A life of the same unit and concept after a death is a rebirth.

    Parameters
    ----------
    scores : DataArray (series, unit, concept) or (series, unit), or a Dataset with `iou` or `score` and `label`
        IoU, or the score of each unit's best concept. NaN: there is no score. Of an array over concepts, blocks are
        reduced one by one: what must fit is the table.
    labels : (series, unit), text, optional
        The concept of each unit at each checkpoint, for scores by unit; empty for none.
    tau : float
        Threshold of the score; reaching it is enough.
    k : int
        Checkpoints below the threshold that confirm a death.
    hysteresis : float, share of ``tau``
        How far below ``tau`` a score must fall to be dead; 0 for no difference.
    by : {"unit-concept", "unit"}, optional
        Follow each concept of each unit, or each unit whatever its concept. Absent: by unit with ``compat`` or where
        the scores have no concepts, else by both.
    compat : "seed" or None
        The reference's single event per unit: the death is the first checkpoint below ``tau`` after which no score
        reaches it again; the *birth* is the first alive checkpoint from which k + 1 scores do not rise. There are no
        rebirths, and nothing is censored.
    smoothing_window : int
        Checkpoints of a trailing mean of the scores, shorter at the start; 1 for none.
    min_alive : int
        Alive checkpoints that a life (with ``compat``: the whole record of a unit) needs in order to count.
    missing : {"error", "drop"}
        Raise where a checkpoint was not measured, or leave it out.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever the scores have.

    Returns
    -------
    DataFrame, one line per life, in order of unit, concept and birth
        Its columns are those of `neurolens.schema.EVENTS` that apply, and further coordinates of units and concepts, to
        group by. `end` is ``death``; ``alive``, at the end of the
        record; ``unconfirmed``, where the record ends fewer than k checkpoints after the fall; ``absent``, where there
        is no score any more; or ``displaced``, of adopted tallies, where another concept of the category became the
        best. All but ``death`` are censored. ``attrs`` tell the series, its labels and the options.

    Raises
    ------
    SchemaError
        If an option or a dim is wrong, or concepts are to be followed without labels.
    MissingMeasurementError
        If checkpoints were not measured, naming them.

    References
    ----------
    Bau et al. 2017, "Network Dissection", section 2.3 (IoU and its threshold).
    """
    rule = rule_of(tau, k, hysteresis, smoothing_window, min_alive, compat)
    found = trajectories_of(scores, labels, by, compat=compat, missing=missing, dim=dim)
    return table_of(found, _all_lives(found, rule), rule)


def concept_lives(
    scores: Scores,
    *,
    labels: xr.DataArray | None = None,
    tau: float = 0.04,
    k: int = 3,
    hysteresis: float = 0.0,
    by: By | None = None,
    compat: Literal["seed"] | None = None,
    smoothing_window: int = 1,
    min_alive: int = 1,
    missing: OnMissing = "error",
    dim: str | None = None,
) -> xr.Dataset:
    """Say where concepts are alive, born, dead and reborn, and count them.

    Parameters
    ----------
    scores, labels, tau, k, hysteresis, by, compat, smoothing_window, min_alive, missing, dim
        As for :func:`neurolens.concept_events`, which lists what is counted here.

    Returns
    -------
    Dataset, lazy if ``scores`` is
        `alive`, `birth`, `rebirth`, `death`, `known` (series, unit[, concept]), bool. A life is alive from its birth
        to its last alive checkpoint, dips that were bridged included; where nothing is `known`, nothing is alive.
        `births`, `rebirths`, `deaths` (unit[, concept]); `n_alive`, `n_known`, `n_births`, `n_rebirths`, `n_deaths`
        (series).

    Raises
    ------
    SchemaError, MissingMeasurementError
        As for :func:`neurolens.concept_events`.
    """
    rule = rule_of(tau, k, hysteresis, smoothing_window, min_alive, compat)
    found = trajectories_of(scores, labels, by, compat=compat, missing=missing, dim=dim)
    flags = flags_of(found, rule)
    here = {name: (flags & flag) != 0 for name, flag in FLAGS.items()}
    per_pair = {f"{name}s": here[name].sum(found.series) for name in ("birth", "rebirth", "death")}
    counted = {"alive": "alive", "known": "known", "births": "birth", "rebirths": "rebirth", "deaths": "death"}
    per_checkpoint = {f"n_{name}": here[of].sum(found.dims) for name, of in counted.items()}
    return described(here | per_pair | per_checkpoint, found.score, **about(found, rule))


def flags_of(found: Trajectories, rule: lives.Rule) -> xr.DataArray:
    """Return the flags of `neurolens.mortality.lives` at each checkpoint: uint8, dims as the scores. Lazy."""
    score = whole_series(found.score, found.series)
    flags: xr.DataArray = xr.apply_ufunc(
        _flags_of_block,
        score,
        input_core_dims=[[found.series]],
        output_core_dims=[[found.series]],
        kwargs={"rule": rule},
        dask="parallelized",
        output_dtypes=[np.uint8],
    )
    return flags.transpose(*found.score.dims)


def about(found: Trajectories, rule: lives.Rule) -> dict[str, Any]:
    """Return the attributes that say what events mean."""
    options: dict[str, Any] = {
        "k": rule.k,
        "hysteresis": rule.hysteresis,
        "compat": rule.compat,
        "by": found.by,
        "iou_tau": rule.tau,
    }
    options |= {"smoothing_window": rule.smoothing_window, "min_alive": rule.min_alive, "compat": rule.compat}
    return options | {"series": found.series}


def table_of(found: Trajectories, of: lives.Lives, rule: lives.Rule) -> pd.DataFrame:
    """Write lives out as the table that :func:`neurolens.concept_events` returns."""
    sizes = [found.score.sizes[d] for d in found.dims]
    places = dict(zip(found.dims, np.unravel_index(of.trajectory, sizes)))
    stamps = labels_of(found.score, found.series)
    died, fell = of.end == lives.DEATH, of.death >= 0
    names = np.array([*lives.ENDS[:-1], found.absent], dtype=object)
    columns = _identity(found, places, of) | {
        "life": of.life,
        "birth": _stamped(stamps, of.birth),
        "last_alive": _stamped(stamps, of.last),
        "death": _stamped(stamps, of.death),
        "decline_start": _stamped(stamps, of.decline),
        "end": names[of.end].astype(object) if len(of.end) else np.array([], object),
        "censored": ~died,
        "birth_seen": of.birth_seen,
        "rebirth": of.gap >= 0,
        "gap": _nullable(of.gap),
        "n_alive": of.n_alive,
        "duration": np.where(died, of.death, of.last) - of.birth,
        "score_birth": of.score_birth,
        "score_death": of.score_death,
        "score_max": of.score_max,
        "birth_position": of.birth,
        "last_position": of.last,
        "death_position": _nullable(np.where(fell, of.death, -1)),
    }
    declared = {v.name: columns[v.name] for v in schema.EVENTS if v.name in columns}
    table = pd.DataFrame(declared | _further(found, places, {v.name for v in schema.EVENTS}))
    text = [v.name for v in schema.EVENTS if v.dtype == "str" and v.name in columns]
    table = table.astype(dict.fromkeys(text, "str"))
    table.attrs = about(found, rule) | {"checkpoints": np.asarray(stamps).tolist()}
    table.attrs |= {key: found.score.attrs[key] for key in schema.PROVENANCE if key in found.score.attrs}
    return table


def by_block(found: Trajectories, reduce: Callable[[Any], Any]) -> list[tuple[Any, Any]]:
    """Reduce blocks of (trajectory, series) one by one: [(positions of its trajectories, result), …]. **Eager.**"""
    score = found.score
    sizes = [score.sizes[d] for d in found.dims]
    positions = np.arange(int(np.prod(sizes))).reshape(sizes)
    if score.chunks is None:
        return [(positions.ravel(), reduce(_rows(np.asarray(score.data))))]
    score = whole_series(score, found.series)
    blocks = score.data.to_delayed().reshape(score.data.numblocks[1:])
    where = list(np.ndindex(blocks.shape))
    task = delayed(lambda block: reduce(_rows(block)), pure=False)
    results = base.compute(*(task(blocks[at]) for at in where))  # type: ignore[no-untyped-call]
    edges = [np.cumsum((0, *sizes)) for sizes in score.data.chunks[1:]]
    parts = [tuple(slice(e[i], e[i + 1]) for e, i in zip(edges, at)) for at in where]
    return [(positions[part].ravel(), result) for part, result in zip(parts, results)]


def _all_lives(found: Trajectories, rule: lives.Rule) -> lives.Lives:
    parts = by_block(found, lambda rows: lives.lives_of(rows, rule))
    return lives.joined([lives.moved(part, positions) for positions, part in parts])


def _rows(block: Any) -> Any:
    return np.moveaxis(block, 0, -1).reshape(-1, block.shape[0])


def _flags_of_block(values: Any, rule: lives.Rule) -> Any:
    return lives.flags_of(values.reshape(-1, values.shape[-1]), rule).reshape(values.shape)


def _identity(found: Trajectories, places: dict[str, Any], of: lives.Lives) -> dict[str, Any]:
    unit = places["unit"]
    units = coordinate(found.score, "unit", "unit")
    columns: dict[str, Any] = {"unit": units[unit] if units is not None else unit}
    for name in ("layer", "index"):
        values = coordinate(found.score, name, "unit")
        if values is not None:
            columns[name] = values[unit]
    if found.by == PAIR:
        columns["concept"] = coordinate(found.score, "concept", "concept")[places["concept"]]
        category = coordinate(found.score, "concept_category", "concept")
        if category is not None:
            columns["category"] = category[places["concept"]]
    elif found.label is not None:
        label = np.asarray(held(found.label).tolist(), str)
        columns["concept"] = label[of.last, unit] if label.size else np.array([], str)
        columns["concept_birth"] = label[of.birth, unit] if label.size else np.array([], str)
    return columns


def _further(found: Trajectories, places: dict[str, Any], taken: set[str]) -> dict[str, Any]:
    """Return the other coordinates of units and concepts, to group by."""
    out = {}
    for name, coord in found.score.coords.items():
        dim = coord.dims[0] if coord.ndim == 1 else None
        if dim in places and name not in (*found.dims, "concept_category") and str(name) not in taken:
            values = coordinate(found.score, str(name), str(dim))[places[str(dim)]]
            out[str(name)] = pd.array(values, dtype="str") if values.dtype.kind in "US" else values
    return out


def _stamped(stamps: Any, positions: Any) -> Any:
    stamps, missing = np.asarray(stamps), positions < 0
    values = stamps[np.where(missing, 0, positions)]
    if stamps.dtype.kind not in "iu":
        return np.where(missing, np.nan, values) if stamps.dtype.kind == "f" else pd.array(values).copy()
    return pd.arrays.IntegerArray(values.astype(np.int64), missing)


def _nullable(values: Any) -> Any:
    return pd.arrays.IntegerArray(np.asarray(values, np.int64), np.asarray(values) < 0)
