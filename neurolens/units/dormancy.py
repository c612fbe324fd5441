"""How dormant each unit is, and which units are dormant, under every definition in use."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from neurolens.errors import NonFiniteError, SchemaError
from neurolens.units.definitions import DEFINITIONS, Definition, definitions
from neurolens.units.inputs import OnMissing, choice, labels_of, listed, measured, named, series_of
from neurolens.units.layers_of import Layers, layers_of, whole

Normalize = Literal["mean", "median"]
NonFinite = Literal["error", "dormant", "alive"]

PER_CLASS = {"n": "class_n", "abs_sum": "class_abs_sum", "max": "class_max", "n_pos": "class_n_pos"}
"""Statistics per class, by the name of the statistic that they split up."""


def dormancy(
    units: xr.Dataset,
    definition: str | Sequence[str] = "redo",
    *,
    normalize: Normalize = "mean",
    per_class: bool = False,
    missing: OnMissing = "error",
    dim: str | None = None,
) -> xr.DataArray:
    """Score each unit by what a definition of dormancy holds against its threshold.

    | definition | score | dormant | tau | reads |
    |---|---|---|---|---|
    | `redo` | mean absolute activation over that of the layer | score ≤ tau | 0.025 | `n`, `abs_sum` |
    | `absolute` | mean absolute activation | score < tau | 0.1 | `n`, `abs_sum` |
    | `dead` | largest activation | score ≤ 0 | – | `max` |
    | `lop` | share of activations other than 0 | score < tau | 0.01 | `n`, `n_nonzero` |
    | `lop_rl` | share of activations above 0 | score ≤ tau | 0.01 | `n`, `n_pos` |
    | `redo_centred` | mean absolute deviation over that of the layer: 0 is constant | score ≤ tau | 0.025 | `abs_dev` |

    Where there is `abs_sum`, it is read by all of them: it alone tells that an activation was not finite.

    All six mean what they were made for after a ReLU; after GELU or SiLU hardly an activation is exactly 0, and ``lop``
    finds nothing. ``absolute`` does not compare across layers.

    Parameters
    ----------
    units : Dataset with the statistics that the definition reads, (series, unit), and coordinate `layer` (unit,)
        The opened units cube, or a selection of it, also at a single checkpoint. NaN is *not measured*.
    definition : one of the names above, or several
    normalize : {"mean", "median"}
        What of the layer the relative definitions divide by. A few units with huge activations raise the mean, and
        with it the number of dormant units; not the median.
    per_class : bool
        Score the activations on the samples of each class by themselves. Reads `class_n`, `class_abs_sum`, …
    missing : {"error", "drop"}
        Raise where a checkpoint was not measured, or leave it out.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever ``units`` has.

    Returns
    -------
    dormancy : (series, unit); with a dim `definition` of several, and `class` per class. Lazy if ``units`` is
        Dimensionless, but for ``absolute`` and ``dead`` in units of the activation. A layer that is silent as a whole
        scores 0 everywhere. By the median, a unit that fires in a layer whose median is 0 scores infinity. NaN where
        the unit's statistics are not finite, or nothing was observed, and throughout its layer if the definition is
        relative: the layer's mean is then unknown.

    Raises
    ------
    SchemaError
        If a definition or an option is unknown, or ``units`` lacks a dim or a coordinate.
    MissingMeasurementError
        If a statistic was not measured, saying what measures it, or checkpoints were not, naming them.

    References
    ----------
    Sokar et al. 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", eq. 1 (``redo``; its code for
    ``redo_centred``); Voita et al. 2023, "Neurons in Large Language Models: Dead, N-gram, Positional" (``dead``);
    Dohare et al. 2024, "Loss of plasticity in deep continual learning" (``lop``, ``lop_rl``).
    """
    names = definitions(definition)
    choice("normalize", normalize, "mean", "median")
    absolute = [name for name in names if not DEFINITIONS[name].relative]
    if normalize == "median" and absolute:
        raise SchemaError(f'{absolute[0]!r} is not relative to its layer; normalize="median" is for redo, redo_centred')
    scores = [_score(units, name, normalize, per_class, missing, dim) for name in names]
    if isinstance(definition, str):
        return scores[0]
    return _together(scores, names, origin=units)


def dormant(
    units: xr.Dataset,
    definition: str | Sequence[str] = "redo",
    tau: float | Sequence[float] | NDArray[np.float64] | None = None,
    *,
    normalize: Normalize = "mean",
    per_class: bool = False,
    non_finite: NonFinite = "error",
    missing: OnMissing = "error",
    dim: str | None = None,
) -> xr.DataArray:
    """Say which units are dormant at which checkpoint.

    Nothing but the statistics is read, and once, however many thresholds there are.

    Parameters
    ----------
    units, definition, normalize, per_class, missing, dim
        As for :func:`dormancy`, whose table says how each definition compares.
    tau : float, several, or None
        Threshold of the score; absent: that of the definition. ``dead`` has none.
    non_finite : {"error", "dormant", "alive"}
        What to make of a unit whose score is NaN, which only a measurement that allows non-finite activations, or one
        without an observation, leaves: refuse at compute time, or count it as said.

    Returns
    -------
    dormant : bool, (series, unit), after (definition,) and (tau,) of several. Lazy if ``units`` is
        At the definitions' own thresholds, `tau` is a coordinate of `definition` (NaN for ``dead``).

    Raises
    ------
    SchemaError
        As for :func:`dormancy`, and if ``tau`` is negative, not finite, empty, or given for ``dead``.
    MissingMeasurementError
        As for :func:`dormancy`.
    NonFiniteError
        If a score is NaN, naming checkpoints and layers; under dask, when it is computed.

    References
    ----------
    As for :func:`dormancy`.
    """
    names = definitions(definition)
    choice("non_finite", non_finite, "error", "dormant", "alive")
    thresholds = {name: _threshold(name, tau) for name in names}
    masks = []
    for name in names:
        score = dormancy(units, name, normalize=normalize, per_class=per_class, missing=missing, dim=dim)
        masks.append(_mask(score, name, thresholds[name], non_finite, dim))
    if isinstance(definition, str):
        return masks[0]
    mask = _together(masks, names, origin=units)
    if tau is None:
        own = [np.nan if DEFINITIONS[name].fixed else DEFINITIONS[name].tau for name in names]
        mask = mask.assign_coords(tau=("definition", own))
    elif np.ndim(tau) == 0:
        mask.attrs["dormancy_tau"] = float(np.asarray(tau))
    return mask


def _score(
    units: xr.Dataset, name: str, normalize: Normalize, per_class: bool, missing: OnMissing, dim: str | None
) -> xr.DataArray:
    rule = DEFINITIONS[name]
    reads, guard = rule.reads, "abs_sum"
    if per_class:
        unsplit = [read for read in reads if read not in PER_CLASS]
        if unsplit:
            able = [other for other, known in DEFINITIONS.items() if set(known.reads) <= PER_CLASS.keys()]
            raise SchemaError(f"{name!r} reads {unsplit[0]!r}, which is not kept per class; use {', '.join(able)}")
        reads, guard = tuple(PER_CLASS[read] for read in reads), PER_CLASS[guard]
    # counts stay finite when activations are not; their sum does not
    guards = () if guard in reads or guard not in units else (guard,)
    found = measured(units, *reads, *guards, missing=missing, dim=dim)
    layers = layers_of(found)
    arrays = [whole(found[read]) for read in (*reads, *guards)]
    score = xr.apply_ufunc(
        _quantity,
        *arrays,
        input_core_dims=[["unit"]] * len(arrays),
        output_core_dims=[["unit"]],
        kwargs={"rule": rule, "layers": layers, "normalize": normalize},
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    attrs = {"definition": name, "normalize": normalize if rule.relative else None}
    score = named(score, "dormancy", units, **attrs)
    score.attrs |= {"units": rule.units} | ({"source": rule.source} if rule.source else {})
    return score


def _quantity(*stats: Any, rule: Definition, layers: Layers, normalize: Normalize) -> Any:
    reads, guards = stats[: len(rule.reads)], stats[len(rule.reads) :]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quantity = np.asarray(rule.quantity(*(np.asarray(read, dtype=np.float64) for read in reads)))
        for known in (quantity, *guards):
            quantity = np.where(np.isfinite(known), quantity, np.nan)
        if not rule.relative:
            return quantity
        centre = (layers.mean(quantity) if normalize == "mean" else layers.median(quantity))[..., layers.codes]
        # a unit that does not fire scores 0, in a silent layer too, where it would be 0/0
        return np.where((quantity == 0) & (centre == 0), 0.0, quantity / centre)


def _threshold(name: str, tau: Any) -> float | NDArray[np.float64]:
    rule = DEFINITIONS[name]
    if tau is None:
        return rule.tau
    if rule.fixed:
        raise SchemaError(f"{name!r} has no threshold, and tau={tau!r} was given; leave tau out, or {name!r}")
    values = np.asarray(tau, dtype=np.float64)
    if values.ndim > 1 or not values.size or not np.isfinite(values).all() or (values < 0).any():
        raise SchemaError(f"tau={tau!r} is no threshold; give a number of at least 0, or a list of them")
    return values if values.ndim else float(values)


def _mask(
    score: xr.DataArray, name: str, tau: float | NDArray[np.float64], non_finite: NonFinite, dim: str | None
) -> xr.DataArray:
    rule, several = DEFINITIONS[name], isinstance(tau, np.ndarray)
    series = series_of(score, dim)
    labels = xr.DataArray(labels_of(score, series), dims=() if series is None else (series,))
    empty = (
        ", as in a class without samples (leave it out: units.sel({'class': [...]}))" if "class" in score.dims else ""
    )
    where = {"name": name, "layers": layers_of(score), "series": series or "checkpoint", "empty": empty}
    mask: xr.DataArray = xr.apply_ufunc(
        _below,
        score,
        labels,
        input_core_dims=[["unit"], []],
        output_core_dims=[["tau", "unit"] if several else ["unit"]],
        kwargs={"tau": tau, "strict": rule.strict, "non_finite": non_finite, "where": where},
        dask="parallelized",
        output_dtypes=[np.bool_],
        dask_gufunc_kwargs={"output_sizes": {"tau": np.size(tau)}} if several else {},
    )
    if several:
        mask = mask.assign_coords(tau=tau).transpose("tau", ...)
    threshold = None if several or rule.fixed else tau
    attrs = {"definition": name, "normalize": score.attrs.get("normalize"), "comparison": rule.comparison}
    return named(mask, "dormant", score, **attrs, dormancy_tau=threshold, source=rule.source or None)


def _below(
    score: Any,
    labels: Any,
    tau: float | NDArray[np.float64],
    strict: bool,
    non_finite: NonFinite,
    where: dict[str, Any],
) -> Any:
    if non_finite == "error":
        _require_known(score, labels, **where)
    if np.ndim(tau):
        score, tau = score[..., None, :], np.asarray(tau)[:, None]
    if non_finite == "dormant":
        return ~(score >= tau) if strict else ~(score > tau)
    return score < tau if strict else score <= tau


def _require_known(score: Any, labels: Any, name: str, layers: Layers, series: str, empty: str) -> None:
    lost = np.isnan(score)
    if not lost.any():
        return
    where = np.broadcast_to(np.asarray(labels)[..., None], score.shape)[lost]
    codes = np.broadcast_to(layers.codes, score.shape)[lost]
    inside = listed([layers.names[code] for code in np.unique(codes)])
    affected = len(np.unique(np.nonzero(lost)[-1]))
    raise NonFiniteError(
        f"{name!r} is NaN at {series} {listed(np.unique(where))}, for {affected} units of {inside}: their "
        f"statistics are not finite, were not measured there, or nothing was observed{empty}; "
        f'select others, or pass non_finite="dormant" or non_finite="alive" to say what they count as'
    )


def _together(arrays: Sequence[xr.DataArray], names: Sequence[str], *, origin: xr.Dataset) -> xr.DataArray:
    plain = [array.drop_attrs(deep=False) for array in arrays]
    joined = xr.concat(plain, "definition", join="exact", coords="minimal", compat="override")
    joined = joined.assign_coords(definition=np.asarray(names, dtype=np.dtypes.StringDType()))
    return named(joined, str(arrays[0].name), origin)
