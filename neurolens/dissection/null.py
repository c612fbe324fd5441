"""Detectors against chance: units against the same layers turned at random."""

from typing import Any, Literal

import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.dissection.overlap import TAU, Reading, best_concept
from neurolens.errors import MissingMeasurementError, SchemaError
from neurolens.inference import binomial_upper, require_resampling
from neurolens.schema.dissection_results import DISSECTION_RESULTS
from neurolens.units.inputs import choice, kept_attrs
from neurolens.units.layers_of import Layers, layers_of, whole

ROTATED = {"paper": "rotated_score", "lite": "rotated_score_lite"}
RESULTS = (
    *("unit_detectors", "rotated_detectors", "unit_share", "rotated_share", "rotated_share_low", "rotated_share_high"),
    *("p_rotation", "null_tau", "null_detectors"),
)


def rotation_null(
    concepts: xr.Dataset,
    *,
    tau: float = TAU,
    reading: Reading = "paper",
    by: Literal["layer"] | None = None,
    false_rate: float = 0.05,
    confidence: float = 0.95,
) -> xr.Dataset:
    """Compare the detectors among units with those among units of the same layers turned at random.

    A random rotation keeps all that a layer knows and how active it is; only that its axes are its units is lost. What
    rotated units detect is what detectors come to where single units mean nothing more than other directions do.

    Parameters
    ----------
    concepts : the opened concepts cube with `rotated_score` or, of "lite", `rotated_score_lite` (…, rotation, unit)
        Along the series, or at one checkpoint.
    tau : smallest IoU of a detector
    reading : {"paper", "lite"}
    by : {None, "layer"}
        None: all units together. "layer": each layer by itself, along the dim `layer` in natural order.
    false_rate : share of rotated units that may pass for detectors at `null_tau`
    confidence : coverage of the interval

    Returns
    -------
    Dataset (series[, layer]) float64, lazy if ``concepts`` is
        ``unit_detectors`` and ``unit_share``, of all units; ``rotated_detectors``, their mean number per rotation, and
        ``rotated_share`` of all rotated units, with the interval ``rotated_share_low``, ``rotated_share_high``
        (Wilson's, of as many units as would vary so much if they were independent: those of one rotation are not);
        ``p_rotation``, the share of the rotations, and the units themselves, that have as many detectors as the units
        or more; ``null_tau``, the smallest tau at which no more than ``false_rate`` of the rotated units are detectors,
        and ``null_detectors``, the units that are at it. Units without a mask detect nothing. NaN where counts or
        rotations were not measured, and of a layer that is silent as a whole.

    Raises
    ------
    SchemaError
        As `neurolens.detectors`, and if ``false_rate`` or ``confidence`` is no share.
    MissingMeasurementError
        If there are no rotations, or a count was not measured.

    References
    ----------
    Bau et al. 2017, "Network Dissection", section 3.2; Kish 1965, "Survey Sampling", section 8.2 (design effect).
    """
    choice("reading", reading, *ROTATED)
    if by is not None:
        choice("by", by, "layer")
    for name, value in (("tau", tau), ("false_rate", false_rate)):
        if not (np.ndim(value) == 0 and 0 < value < 1):
            raise SchemaError(f"{name}={value!r} is none; give a number between 0 and 1, e.g. 0.04")
    require_resampling(0, confidence)
    score = best_concept(concepts, reading=reading)["score"]
    if ROTATED[reading] not in concepts or not concepts.sizes.get("rotation"):
        raise MissingMeasurementError(
            "the cube has no rotations of its layers; measure at least one: rotations = 1 in the study's [concepts] "
            "table, then `neurolens run STUDY --only concepts`"
        )
    turned = concepts[ROTATED[reading]]
    layers = layers_of(concepts) if by else Layers(("",), np.zeros(concepts.sizes["unit"], np.int64))
    area = concepts["unit_area"].sum(("block", "category"), skipna=False)  # NaN where counts were not measured
    arrays = [_bare(whole(score)), *(whole(array).drop_vars(list(array.coords)) for array in (area, turned))]
    if arrays[2].chunks is not None:
        arrays[2] = arrays[2].chunk(rotation=-1)
    found = xr.apply_ufunc(
        _compared,
        *arrays,
        input_core_dims=[["unit"], ["unit"], ["rotation", "unit"]],
        output_core_dims=[["layer"]] * len(RESULTS),
        kwargs={"layers": layers, "tau": tau, "false_rate": false_rate, "confidence": confidence},
        dask="parallelized",
        output_dtypes=[np.float64] * len(RESULTS),
        dask_gufunc_kwargs={"output_sizes": {"layer": len(layers.names)}},
    )
    names = np.asarray(layers.names, dtype=np.dtypes.StringDType())
    results = {}
    for name, array in zip(RESULTS, found):
        one = array.assign_coords(layer=("layer", names)) if by else array.isel(layer=0, drop=True)
        results[name] = schema.label(one, DISSECTION_RESULTS[name])
    attrs = {"reading": reading, "iou_tau": tau, "false_rate": false_rate, "confidence": confidence}
    return xr.Dataset(results, attrs=kept_attrs(concepts) | attrs | {"rotations": concepts.sizes["rotation"]})


def _bare(array: xr.DataArray) -> xr.DataArray:
    """Drop what lies along units and rotations: the layer of a unit is not that of a result."""
    gone = {"unit", "rotation"}
    return array.drop_vars([name for name, coord in array.coords.items() if gone & set(coord.dims)])


def _compared(
    score: Any, area: Any, turned: Any, layers: Layers, tau: float, false_rate: float, confidence: float
) -> tuple[Any, ...]:
    """Count over the layers: (…, unit), (…, unit) and (…, rotation, unit) to (…, layer) each."""
    sizes, rotations = layers.sizes, turned.shape[-2]
    known = (layers.total(np.isfinite(turned).any(axis=-2)) > 0) & (layers.total(np.isnan(area)) == 0)
    own, each = layers.total(score >= tau), layers.total(turned >= tau)  # NaN detects nothing
    shares, units = each / sizes, own / sizes
    share = shares.mean(axis=-2)
    low, high = _interval(share, shares, sizes, confidence)
    p = (1 + (each >= own[..., None, :]).sum(axis=-2)) / (rotations + 1)
    limit = np.empty(own.shape)
    for code, size in enumerate(sizes.tolist()):
        of_layer = turned[..., layers.codes == code].reshape(*turned.shape[:-2], -1)
        below = of_layer.shape[-1] - 1 - int(false_rate * rotations * size)  # the largest that must not be a detector
        ranked = np.partition(np.where(np.isfinite(of_layer), of_layer, 0.0), below, axis=-1)
        limit[..., code] = np.nextafter(ranked[..., below], np.inf)
    passing = layers.total(score >= limit[..., layers.codes])
    found = (own, each.mean(axis=-2), units, share, low, high, p, limit, passing)
    return tuple(np.where(known, values, np.nan) for values in found)


def _interval(share: Any, shares: Any, sizes: Any, confidence: float) -> tuple[Any, Any]:
    """Bound a share (…, layer) by Wilson's interval, of fewer units where it varies over rotations more than chance."""
    rotations = shares.shape[-2]
    trials = np.broadcast_to(rotations * sizes, share.shape).astype(np.float64)
    if rotations > 1:
        chance = share * (1 - share) / sizes
        effect = np.divide(shares.var(axis=-2, ddof=1), chance, out=np.ones_like(share), where=chance > 0)
        trials = trials / np.maximum(effect, 1.0)
    one_sided = (1 + confidence) / 2
    hits = np.minimum(share * trials, trials)
    high = binomial_upper(hits, trials, confidence=one_sided)
    return 1 - binomial_upper(trials - hits, trials, confidence=one_sided), high
