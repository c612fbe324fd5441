"""The clusters of each clustering in an attributions cube: how large their maps are, what they say, how alike."""

from typing import Any

import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.attribution.reading import INTEGRAL, origin, places, require_cube, score_of, texts
from neurolens.errors import SchemaError

_CONSTANT = 1e-10
"""A map whose variance is this share of its mean square, or less, does not vary but for rounding."""
_HELD = ("norm", "total", "dot", "reconstruction_error")


def decomposed(ds: xr.Dataset, *, entries: int | None = None) -> xr.Dataset:
    """Return what `neurolens.attribution.decompose` says of a cube; lazy if the cube is.

    Raises
    ------
    SchemaError
        If it is no attributions cube, holds no clusters, or there cannot be so many entries.
    MissingMeasurementError
        If maps, or the answers that shares are of, were not measured.
    """
    require_cube(ds)
    schema.present(ds, *_HELD)
    known = _entries(ds) if entries is None else entries
    if known is not None and known < 1:
        raise SchemaError(f"entries={entries} is no size of a map; give channels · height · width, e.g. 3 * 224 * 224")
    parts = ds.isel(map=places(ds, "only"))
    others = _others(parts)
    norm, total, dot = (parts[name].astype(np.float64) for name in ("norm", "total", "dot"))
    complete = ~(dot.notnull() & (others < 0)).any("mate")  # the maps of all mates are there
    found: dict[str, xr.DataArray] = {
        "norm": parts["norm"],
        "norm_share": _share(norm, others).where(complete),
        "cosine": _ratio(dot, norm**2, others),
        "reconstruction_error": parts["reconstruction_error"],
    }
    found["mean_abs_cosine"] = _mean_of_pairs(found["cosine"], norm, others).where(complete)
    if known is not None:
        spread = norm**2 - total**2 / known
        spread = spread.where(spread > _CONSTANT * norm**2, 0.0).where(norm.notnull())
        shared = dot - total * _beside(total, others) / known
        found["correlation"] = _ratio(shared, spread, others)
        found["mean_abs_correlation"] = _mean_of_pairs(found["correlation"], norm, others).where(complete)
    if INTEGRAL in texts(parts["attribution"]):
        integral = xr.DataArray([method == INTEGRAL for method in texts(parts["attribution"])], dims="attribution")
        found["conductance"] = parts["total"].where(integral)
        found["completeness_share"] = score_of(parts, "completeness_share")
    declared = {**schema.ATTRIBUTION_SCORES, **schema.ATTRIBUTION_RESULTS}
    lead = [dim for dim in norm.dims if dim not in ("map", "attribution")]
    out = {}
    for name, array in found.items():
        order = [*lead, "map", "attribution", *(["mate"] if "mate" in array.dims else [])]
        out[name] = array.transpose(*order)
        if name in declared:
            out[name] = schema.label(out[name], declared[name])
    return xr.Dataset(out, attrs=origin(ds) | ({} if known is None else {"entries": known}))


def _entries(ds: xr.Dataset) -> int | None:
    """Return how many numbers a map has, if the cube knows."""
    sizes = [ds.sizes.get(dim, 0) for dim in ("channel", "y", "x")]
    return int(np.prod(sizes)) or (int(ds.attrs["entries"]) if "entries" in ds.attrs else None)


def _others(parts: xr.Dataset) -> xr.DataArray:
    """Return the place of each cluster's mates along `map`, (map, mate); -1 where there is no such mate."""
    keys = list(zip(texts(parts["cut"]), texts(parts["clustering"]), parts["cluster"].to_numpy().tolist()))
    place = {key: at for at, key in enumerate(keys)}
    mates = parts["mate"].to_numpy().tolist() if "mate" in parts.coords else range(parts.sizes["mate"])
    found = [[place.get((cut, clustering, mate), -1) for mate in mates] for cut, clustering, _ in keys]
    if lost := [texts(parts["map"])[at] for at, row in enumerate(found) if at not in row]:
        raise SchemaError(
            f"{lost[0]!r} is cluster {keys[texts(parts['map']).index(lost[0])][2]}, which is not among the mates "
            f"{list(mates)}; keep all of `mate` when you select"
        )
    return xr.DataArray(found, dims=("map", "mate"))


def _beside(values: xr.DataArray, others: xr.DataArray) -> xr.DataArray:
    """Return the values of each cluster's mates, over (…, map, mate); NaN where there is none."""
    plain = values.drop_vars([name for name, coord in values.coords.items() if "map" in coord.dims])
    moved = plain.rename(map="part").isel(part=others.drop_vars(list(others.coords))).where(others >= 0)
    return moved.assign_coords({name: coord for name, coord in values.coords.items() if coord.dims == ("map",)})


def _share(norm: xr.DataArray, others: xr.DataArray) -> xr.DataArray:
    whole = _beside(norm, others).where(others >= 0, 0.0).sum("mate", skipna=False)
    return norm / whole.where(whole > 0)


def _ratio(shared: xr.DataArray, squares: xr.DataArray, others: xr.DataArray) -> xr.DataArray:
    """Return inner products over the product of lengths, within -1 and 1; NaN where a length is 0."""
    lengths: Any = np.sqrt(squares) * np.sqrt(_beside(squares, others))
    out: xr.DataArray = (shared / lengths.where(lengths > 0)).clip(-1.0, 1.0)
    return out


def _mean_of_pairs(alike: xr.DataArray, norm: xr.DataArray, others: xr.DataArray) -> xr.DataArray:
    """Return the mean of |…| over pairs of clusters of each clustering, at each of them.

    NaN where a map of the clustering is missing, or no pair has a number.
    """
    here = xr.DataArray(np.arange(others.sizes["map"]), dims="map")
    pairs = abs(alike).where((others >= 0) & (others != here))
    sums, n = pairs.sum("mate"), pairs.notnull().sum("mate")
    missing = _beside(norm, others).isnull() & (others >= 0)
    total, number = (_beside(values.astype(np.float64), others).sum("mate") for values in (sums, n))
    return (total / number.where(number > 0)).where(~missing.any("mate"))
