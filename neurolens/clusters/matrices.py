"""Features of units as matrices (unit, feature), one per layer and checkpoint, and what makes columns comparable."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens import schema
from neurolens.errors import NonFiniteError, SchemaError, nearest
from neurolens.schema.cluster_results import CLUSTER_RESULTS
from neurolens.units.inputs import kept_attrs, labels_of, listed, series_of
from neurolens.units.layers_of import Layers, layers_of, whole

Array = npt.NDArray[Any]

ROUNDING = 4 * float(np.finfo(np.float64).eps)
"""Values of a column that differ by no more than this share of their size are one value."""


class Matrix(NamedTuple):
    """The features of one layer's units at one checkpoint.

    ``place`` and ``layer`` are positions along the series and the layers, ``units`` (n,) along the units; ``values`` is
    (n, feature) float64, in order of its rows in memory; ``name`` says which it is in messages.
    """

    place: int
    layer: int
    units: Array
    values: Array
    name: str


def standardised(features: xr.Dataset | xr.DataArray, *, dim: str | None = None) -> xr.DataArray:
    """Put features of units on one scale: in each layer, at each checkpoint, mean 0 and standard deviation 1.

    Parameters
    ----------
    features : Dataset of variables (series, unit), or array (series, unit, feature)
        From `unit_features`. Without the coordinate `layer` all units are one layer.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever ``features`` has.

    Returns
    -------
    standardised : (series, unit, feature), dimensionless, lazy if ``features`` is
        With the population's standard deviation (ddof 0). A feature that is the same for all units of a layer, up to
        rounding, is 0 there: it takes no part. NaN in a unit makes its layer's feature NaN.

    Raises
    ------
    SchemaError
        If a dim is missing or too many, or these are statistics of units rather than features.
    """
    array, series = feature_array(features, dim)
    found: xr.DataArray = xr.apply_ufunc(
        _by_layer,
        whole(whole(array), "feature"),
        input_core_dims=[["unit", "feature"]],
        output_core_dims=[["unit", "feature"]],
        kwargs={"layers": layers_or_one(array)},
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    out = schema.label(found, CLUSTER_RESULTS["standardised"])
    out.attrs |= kept_attrs(features)
    return out if series is not None else out.isel(series=0)


def zscore(values: Array) -> Array:
    """Return (n, feature) with each column at mean 0 and population standard deviation 1; constant columns are 0."""
    with np.errstate(invalid="ignore"):
        constant = is_constant(values)
        out: Array = (values - values.mean(axis=0)) / np.where(constant, 1.0, values.std(axis=0))
    out[:, constant] = 0.0
    return out


def is_constant(values: Array) -> Array:
    """Say which columns of (n, feature) hold one value only, up to rounding: bool (feature,)."""
    constant: Array = np.ptp(values, axis=0) <= ROUNDING * np.abs(values).max(axis=0)
    return constant


def _by_layer(values: Any, layers: Layers) -> Any:
    out = np.empty(values.shape, dtype=np.float64)
    for number in range(len(layers.names)):
        units = np.flatnonzero(layers.codes == number)
        for place in np.ndindex(values.shape[:-2]):
            out[place][units] = zscore(np.asarray(values[place][units], dtype=np.float64))
    return out


def feature_array(features: Any, dim: str | None) -> tuple[xr.DataArray, str | None]:
    """Return features as (series, unit, feature), and the name of the series dim; ``series`` where there is none.

    Raises
    ------
    SchemaError
        If it is no Dataset or array of such dims, or statistics of units, or there is no unit.
    """
    if isinstance(features, xr.Dataset):
        if "m2" in features or "activation" in features:
            raise SchemaError("found a cube, and features of its units were needed; make them: unit_features(units)")
        wide = [str(name) for name, array in features.data_vars.items() if "unit" not in array.dims or array.ndim > 2]
        if wide or not features.data_vars:
            raise SchemaError(
                f"found {'variables ' + listed(wide) if wide else 'no variable'}, and (series, unit) was needed of "
                "each; select them: features[['rate', 'mean', 'variance']]"
            )
        array = features.to_dataarray("feature")
    elif isinstance(features, xr.DataArray):
        array = features
    else:
        raise SchemaError(f"found a {type(features).__name__}, and features of units were needed; use unit_features")
    series = series_of(array, dim)
    needed = {"unit", "feature"} | ({series} if series else set())
    if set(array.dims) != needed or not array.sizes["unit"]:
        raise SchemaError(
            f"found dims {dict(array.sizes)}, and {tuple(sorted(needed))} with at least one unit were needed; select "
            "one position of other dims, or name the series as dim="
        )
    if array.dtype.kind not in "fiub":
        raise SchemaError(f"found features of type {array.dtype}, and real numbers were needed; encode them as numbers")
    if series is None:
        array = array.expand_dims("series")
    return array.transpose(series or "series", "unit", "feature"), series


def layers_or_one(array: xr.DataArray | xr.Dataset) -> Layers:
    """Return the layers of the units, all of them in one without a name where there is no coordinate `layer`."""
    if "layer" not in array.coords:
        return Layers(("",), np.zeros(array.sizes["unit"], dtype=np.int64))
    if array.coords["layer"].ndim == 0:
        return Layers((str(array.coords["layer"].item()),), np.zeros(array.sizes["unit"], dtype=np.int64))
    return layers_of(array)


def chosen(array: xr.DataArray, wanted: str | Sequence[str] | None) -> xr.DataArray:
    """Return the units of the layers wanted, by name or pattern, in the order that they have.

    Raises
    ------
    SchemaError
        If there are no layers, or none that is wanted; the nearest are named.
    """
    if wanted is None:
        return array
    if "layer" not in array.coords:
        raise SchemaError("layers= needs the coordinate `layer` (unit,), and there is none; add it, or leave it out")
    layers = layers_or_one(array)
    taken = np.zeros(len(layers.names), dtype=np.bool_)
    for pattern in [wanted] if isinstance(wanted, str) else wanted:
        matches = [name == pattern or fnmatchcase(name, pattern) for name in layers.names]
        if not any(matches):
            raise SchemaError(f"there is no layer {pattern!r}; {nearest(pattern, layers.names)}")
        taken |= matches
    return array.isel(unit=np.flatnonzero(taken[layers.codes]))


def matrices(array: xr.DataArray, series: str | None) -> Iterator[Matrix]:
    """Yield the features of each layer at each checkpoint, of (series, unit, feature) in memory.

    Raises
    ------
    NonFiniteError
        If a feature is NaN or infinite, naming the layer and its units.
    """
    layers, labels = layers_or_one(array), np.atleast_1d(labels_of(array, series))
    names = [str(name) for name in np.asarray(array["feature"])] if "feature" in array.coords else []
    for place, features in enumerate(np.asarray(array.data)):
        for number, layer in enumerate(layers.names):
            units = np.flatnonzero(layers.codes == number)
            values = np.ascontiguousarray(features[units], dtype=np.float64)
            name = " at ".join(
                [f"layer {layer!r}" if layer else "the layer", *([f"{series} {labels[place]}"] if series else [])]
            )
            if not (finite := np.isfinite(values)).all():
                column = int(np.argmin(finite.all(axis=0)))
                raise NonFiniteError(
                    f"{name} has no finite {names[column] if names else f'feature {column}'} of units "
                    f"{listed(np.flatnonzero(~finite[:, column]))} of {len(units)}; measure them again, or leave them "
                    "out: features.isel(unit=…)"
                )
            yield Matrix(place, number, units, values, name)
