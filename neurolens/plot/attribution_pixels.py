"""Maps pixel by pixel, from whole ones where they were kept, else from those that were summed over channels."""

from collections.abc import Callable

import xarray as xr

from neurolens.attribution.reading import texts
from neurolens.errors import MissingMeasurementError, SchemaError, nearest


def parts_of(ds: xr.Dataset, clustering: tuple[str, str]) -> list[int]:
    """Return the positions of the clusters of a clustering, each alone, in their order.

    Raises
    ------
    SchemaError
        If there are none.
    """
    known = list(zip(*(texts(ds[name]) for name in ("kind", "cut", "clustering"))))
    found = [i for i, one in enumerate(known) if one == ("only", *clustering)]
    if not found:
        given = sorted({f"{layer}/{name}" for kind, layer, name in known if kind == "only"})
        raise SchemaError(
            f"there are no clusters of {'/'.join(clustering)!r} alone; {nearest('/'.join(clustering), given)}"
        )
    return sorted(found, key=lambda i: int(ds["cluster"].values[i]))


def has_pixels(ds: xr.Dataset) -> bool:
    """Tell whether a cube holds maps by pixel."""
    return "full_map" in ds or {"reduced_mass", "reduced", "reduced_scale"} <= set(map(str, ds.data_vars))


def mass_of(one: xr.Dataset) -> xr.DataArray:
    """Return the absolute attribution of each pixel, summed over channels: exact where the whole map was kept.

    NaN where nothing was kept, e.g. of a method that does not know the set.

    Raises
    ------
    MissingMeasurementError
        If it was not kept.
    """
    return _pixels(one, lambda maps: abs(maps).sum("channel", dtype=float, skipna=False), "reduced_mass")


def signed_of(one: xr.Dataset) -> xr.DataArray:
    """Return the attribution of each pixel, summed over channels: exact where the whole map was kept.

    NaN where nothing was kept, e.g. of a method that does not know the set.

    Raises
    ------
    MissingMeasurementError
        If it was not kept.
    """
    return _pixels(one, lambda maps: maps.sum("channel", dtype=float, skipna=False), "reduced")


def _pixels(one: xr.Dataset, summed: Callable[[xr.DataArray], xr.DataArray], name: str) -> xr.DataArray:
    found = []
    if "full_map" in one:
        found.append(summed(one["full_map"]))
    if name in one and "reduced_scale" in one:
        found.append((one[name].astype(float) * one["reduced_scale"]).transpose(..., "y", "x"))
    best = found[0].fillna(found[1]) if len(found) > 1 else next(iter(found), None)
    if best is None or not bool(best.notnull().any()):
        raise MissingMeasurementError(
            "no map was kept of this sample pixel by pixel; set attributions.reduced = true, or attributions.full to "
            "how many images whole maps are kept of, and run the study again"
        )
    return best
