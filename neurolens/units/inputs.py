"""What every reduction asks of a Dataset of units: the quantities it reads, at checkpoints that were measured."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.errors import MissingMeasurementError, SchemaError, nearest
from neurolens.units.layers_of import held

OnMissing = Literal["error", "drop"]

ABOUT = ("definition", "normalize", "comparison", "dormancy_tau")
"""Attributes of a mask that say what it means."""


def choice(name: str, value: str, *known: str) -> None:
    """Raise SchemaError unless an option has one of the values it may have."""
    if value not in known:
        raise SchemaError(f"{name}={value!r} is unknown; {nearest(str(value), known)}")


def measured(
    units: xr.Dataset,
    *names: str,
    missing: OnMissing = "error",
    dim: str | None = None,
    needs: tuple[str, ...] = ("unit",),
) -> xr.Dataset:
    """Return the named variables of ``units`` at the checkpoints that were measured.

    Parameters
    ----------
    units : the opened units cube, or any Dataset with the same names
        Along the series, or at one checkpoint of it. Without the coordinate `measured` nothing is checked.
    names : variables that are needed.
    missing : {"error", "drop"}
        Raise where a checkpoint was not measured, or leave it out.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever ``units`` has.
    needs : dims that ``units`` must have.

    Raises
    ------
    SchemaError
        If ``units`` is no Dataset, a dim is missing, or a name is unknown.
    MissingMeasurementError
        If a variable was not measured at all, or some checkpoints were not, naming them.
    """
    choice("missing", missing, "error", "drop")
    if not isinstance(units, xr.Dataset):
        raise SchemaError(
            f"found a {type(units).__name__}; the Dataset of the units cube is needed: run['units'].to_dataset()"
        )
    schema.present(units, *names)
    lacking = [d for d in needs if d not in units.dims]
    if lacking:
        raise SchemaError(
            f"there is no dim {lacking[0]!r}; found {tuple(map(str, units.dims))}; select with lists to keep dims"
        )
    series = series_of(units, dim)
    if "measured" in units.coords:
        units = _kept(units, series, missing)
    return units[list(names)]


def series_of(data: xr.Dataset | xr.DataArray, dim: str | None = None) -> str | None:
    """Return the series dim of ``data``, or None if ``data`` is at one checkpoint."""
    if dim is None and not any(d in data.dims for d in schema.SERIES_DIMS):
        return None
    return schema.series_dim(data, dim)


def labels_of(data: xr.Dataset | xr.DataArray, series: str | None) -> Any:
    """Return the series' labels, or positions where it has none; of data at one checkpoint, its label."""
    if series is None:
        scalar = next((data.coords[d] for d in schema.SERIES_DIMS if d in data.coords), None)
        return np.asarray(0) if scalar is None else held(scalar)
    return held(data.coords[series]) if series in data.coords else np.arange(data.sizes[series])


def listed(labels: Any) -> str:
    """Write labels out, a dozen at most."""
    found = [str(label) for label in np.atleast_1d(labels)]
    return ", ".join(found[:12]) + (f", … ({len(found)} in all)" if len(found) > 12 else "")


def require_mask(mask: Any) -> None:
    """Raise SchemaError unless ``mask`` is a bool array over units, at least one of them."""
    if not isinstance(mask, xr.DataArray) or mask.dtype != bool:
        found = f"dtype {mask.dtype}" if isinstance(mask, xr.DataArray) else f"a {type(mask).__name__}"
        raise SchemaError(f"found {found}; a bool mask is needed: neurolens.dormant(units), or score <= 0.1")
    if not mask.sizes.get("unit"):
        raise SchemaError(f"the mask has {dict(mask.sizes)}; it needs at least one unit, along the dim 'unit'")


def described(results: Mapping[str, xr.DataArray], mask: xr.DataArray, **attrs: Any) -> xr.Dataset:
    """Put results of a mask together, named and described by the schema, with what the mask means and came from."""
    about = {key: mask.attrs[key] for key in ABOUT if key in mask.attrs}
    labelled = {name: schema.label(array, schema.UNIT_RESULTS[name]) for name, array in results.items()}
    return xr.Dataset(labelled, attrs=kept_attrs(mask) | about | attrs)


def kept_attrs(data: xr.Dataset | xr.DataArray) -> dict[str, Any]:
    """The attributes that say where numbers come from."""
    return {key: data.attrs[key] for key in schema.PROVENANCE if key in data.attrs}


def named(array: xr.DataArray, name: str, origin: xr.Dataset | xr.DataArray, **attrs: Any) -> xr.DataArray:
    """Name and describe a result of ``origin``: the schema's attributes, ``attrs``, and the provenance."""
    out = schema.label(array, schema.UNIT_RESULTS[name])
    out.attrs |= {key: value for key, value in attrs.items() if value is not None} | kept_attrs(origin)
    return out


def _kept(units: xr.Dataset, series: str | None, missing: OnMissing) -> xr.Dataset:
    done = held(units.coords["measured"]).astype(bool)
    if done.all():
        return units
    labels = labels_of(units, series)
    who = f"run {units.attrs['run']!r}" if units.attrs.get("run") else "the Dataset"
    where = f"{series}{'s' if (~done).sum() > 1 else ''} {listed(labels[~done])}" if series else f"checkpoint {labels}"
    mend = (
        "measure them: `neurolens run STUDY --only units` (`neurolens status STUDY` and ds.lens.provenance() say why "
        "they are missing)"
    )
    if missing == "error" or series is None:
        more = ', or pass missing="drop" to leave them out' if series else ""
        raise MissingMeasurementError(f"{who} has no statistics of units at {where}; {mend}{more}")
    if not done.any():
        raise MissingMeasurementError(f"{who} has no statistics of units at any checkpoint; {mend}")
    return units.isel({series: np.flatnonzero(done)})
