"""What a unit is known by when it is put into a cluster: how often it is high, its mean, its variance."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.clusters.matrices import layers_or_one
from neurolens.errors import MissingMeasurementError, SchemaError
from neurolens.schema.cluster_results import CLUSTER_RESULTS
from neurolens.units.inputs import OnMissing, kept_attrs, measured, series_of
from neurolens.units.layers_of import Layers, whole

THRESHOLD = 0.1
"""The reference's threshold, where neither a threshold nor a quantile is given."""


def unit_features(
    data: xr.Dataset | xr.DataArray | Any,
    *,
    threshold: float | None = None,
    quantile: float | None = None,
    dims: Sequence[str] | None = None,
    missing: OnMissing = "error",
    dim: str | None = None,
) -> xr.Dataset:
    """Rate above a threshold, mean and variance of each unit's activation.

    Parameters
    ----------
    data : activations (series, sample, unit) or (sample, unit), or the opened units cube
        An array, or a Dataset with `activation`. The reference's observations are means over a channel's map, one per
        image: the activations cube as it is pooled by default, or ``maps.mean(("y", "x"))``. Those of the units cube
        are the positions themselves: their mean is the same, rate and variance are not.
    threshold : float, optional
        `rate` counts observations above it; 0.1 by default, as the reference does. It is rounded to the precision of
        the activations: one of 0.1 is not above 0.1. The units cube counts above 0; for other thresholds it needs its
        histograms, and the rate is then linear inside the bin, up to 25 % wide, that the threshold is in.
    quantile : float, optional
        Take as threshold this quantile of all activations of the layer at the checkpoint, instead. (Above a quantile of
        its own, every unit would have the same rate.) Needs activations; those of a checkpoint are held in memory.
    dims : names of the dims of a bare array
        ("sample", "unit") by default.
    missing : {"error", "drop"}
        Raise where a checkpoint was not measured, or leave it out.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever ``data`` has.

    Returns
    -------
    features : Dataset over (series, unit), float64, lazy if ``data`` is
        `rate` in [0, 1]; `mean`, in units of the activation; `variance` (ddof 0), in their square. NaN where an
        observation is NaN, or there is none.

    Raises
    ------
    SchemaError
        If a dim is missing or too many, or threshold and quantile are both given or make no sense.
    MissingMeasurementError
        If a variable was not measured, or checkpoints were not, naming them.
    """
    if threshold is not None and quantile is not None:
        raise SchemaError(f"found threshold={threshold} and quantile={quantile}; give one of them")
    if quantile is not None and not 0 < quantile < 1:
        raise SchemaError(f"quantile={quantile} is no share of the activations; give a number between 0 and 1")
    level = THRESHOLD if threshold is None else float(threshold)
    if not np.isfinite(level):
        raise SchemaError(f"threshold={threshold} is no activation; give a finite number, e.g. {THRESHOLD}")
    if isinstance(data, xr.Dataset) and "activation" not in data:
        if quantile is not None:
            raise SchemaError(
                f"quantile={quantile} needs the activations themselves, and these are statistics of units; give the "
                "activations cube, or a threshold"
            )
        found = _of_statistics(data, level, missing, dim)
    else:
        activation, layers = _activation(data, dims, missing, dim)
        found = _of_activations(activation, layers, level, quantile)
    labelled = {name: schema.label(array, CLUSTER_RESULTS[name]) for name, array in found.items()}
    labelled["rate"].attrs |= {"threshold": level} if quantile is None else {"quantile": quantile}
    return xr.Dataset(labelled, attrs=kept_attrs(data) if isinstance(data, xr.Dataset | xr.DataArray) else {})


def _activation(
    data: Any, dims: Sequence[str] | None, missing: OnMissing, dim: str | None
) -> tuple[xr.DataArray, Layers]:
    if not isinstance(data, xr.Dataset | xr.DataArray):
        names = tuple(dims) if dims is not None else ("sample", "unit")
        values = data if hasattr(data, "dtype") else np.asarray(data)
        if len(names) != values.ndim:
            raise SchemaError(
                f"found an array of shape {values.shape}, and dims={names}; name each of its dims, and average "
                "positions first: maps.mean(axis=(2, 3))"
            )
        data = xr.DataArray(values, dims=names)
    if isinstance(data, xr.DataArray):
        data = data.to_dataset(name="activation")
    array = measured(data, "activation", missing=missing, dim=dim, needs=("sample", "unit"))["activation"]
    series = series_of(array, dim)
    needed = {"sample", "unit"} | ({series} if series else set())
    if set(array.dims) != needed or not (array.sizes["sample"] and array.sizes["unit"]):
        raise SchemaError(
            f"found dims {dict(array.sizes)}, and exactly {tuple(sorted(needed))} were needed, none of them empty; "
            'average positions first: maps.mean(("y", "x")), or name the series as dim='
        )
    return array, layers_or_one(array)


def _of_activations(
    array: xr.DataArray, layers: Layers, threshold: float, quantile: float | None
) -> dict[str, xr.DataArray]:
    exact = array.astype(np.float64)
    mean = exact.mean("sample", skipna=False)
    if quantile is None:
        kind = array.dtype if array.dtype.kind == "f" else np.dtype(np.float64)
        high = exact > float(kind.type(threshold))
        rate = high.astype(np.float64).where(exact.notnull()).mean("sample", skipna=False)
    else:
        counted: xr.DataArray = xr.apply_ufunc(
            _above_quantile,
            whole(whole(array), "sample"),
            input_core_dims=[["sample", "unit"]],
            output_core_dims=[["unit"]],
            kwargs={"layers": layers, "quantile": quantile},
            dask="parallelized",
            output_dtypes=[np.float64],
        )
        rate = mean.copy(data=counted.transpose(*mean.dims).data)  # chunked coordinates would be compared
    return {
        "rate": rate,
        "mean": mean,
        "variance": exact.var("sample", ddof=0, skipna=False),
    }


def _above_quantile(values: Any, layers: Layers, quantile: float) -> Any:
    values = np.asarray(values, dtype=np.float64)
    rate = np.empty((*values.shape[:-2], values.shape[-1]))
    for number in range(len(layers.names)):
        units = np.flatnonzero(layers.codes == number)
        for place in np.ndindex(values.shape[:-2]):
            of_layer = values[place][:, units]
            known = np.isfinite(of_layer).all(axis=0)
            level = np.quantile(of_layer[:, known], quantile) if known.any() else np.nan
            rate[place][units] = np.where(known, (of_layer > level).mean(axis=0), np.nan)
    return rate


def _of_statistics(units: xr.Dataset, threshold: float, missing: OnMissing, dim: str | None) -> dict[str, xr.DataArray]:
    if threshold != 0 and "histogram" not in units:
        schema.present(units, "mean")
        raise MissingMeasurementError(
            f"the rate above {threshold} is not in these statistics of units, which count above 0; give the "
            f"activations cube, pass threshold=0, or measure histograms: {schema.UNITS.mend('histogram')}"
        )
    counts = "n_pos" if threshold == 0 else "histogram"
    found = measured(units, "n", "mean", "m2", counts, missing=missing, dim=dim)
    known = (found["n"] > 0) & np.isfinite(found["mean"])
    rate = found["n_pos"] / found["n"] if threshold == 0 else _above(found["histogram"], threshold)
    return {
        "rate": rate.where(known),
        "mean": found["mean"].where(found["n"] > 0),
        "variance": (found["m2"] / found["n"]).where(found["n"] > 0),
    }


def _above(histogram: xr.DataArray, threshold: float) -> xr.DataArray:
    """Return the share of observations above a threshold, with those of its own bin shared out in proportion.

    Histograms count each observation once, also where `n` adds up weights of texts that count alike.
    """
    from neurolens.units.histogram import bin_edges

    low, high = bin_edges()
    if histogram.sizes.get("bin") != len(low):
        raise SchemaError(f"`histogram` has {dict(histogram.sizes)}; all {len(low)} bins are needed: select none")
    with np.errstate(invalid="ignore"):
        share = np.where(np.isfinite(low), (high - threshold) / (high - low), low > threshold)
    weight = xr.DataArray(np.nan_to_num(np.clip(share, 0.0, 1.0)), dims="bin")
    rate: xr.DataArray = xr.dot(histogram, weight, dim="bin") / histogram.sum("bin", skipna=False)
    return rate
