"""The grid of sets and methods in a table: how each scores, with intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neurolens import schema
from neurolens.attribution.reading import DROPS, SCORES, Level, origin, places, require_cube, score_of
from neurolens.errors import SchemaError, nearest
from neurolens.inference import require_resampling, student_interval


def filtered_summary(
    ds: xr.Dataset,
    *,
    scores: Sequence[str] = ("sparsity", *DROPS),
    level: Level = "patch",
    kinds: str | Sequence[str] = ("whole", "without"),
    confidence: float = 0.95,
    classes: str | None = None,
) -> xr.Dataset:
    """Describe the scores of each set of units and method, checkpoint by checkpoint: the reference's grid table.

    Along the series, a cluster's effect is followed through training.

    Parameters
    ----------
    ds : Dataset
        The opened attributions cube.
    scores
        Which, of those of `neurolens.attribution.map_scores`. Samples that lack one of them are left out.
    level : {"patch", "pixel"}
        What an entry of a map is.
    kinds
        Of the sets: whole, only, without, union, control.
    confidence
        Coverage of the intervals.
    classes : str, optional
        A coordinate of `sample`, e.g. ``label``. Samples of one class are alike, so intervals that take them for
        independent are too narrow: with this, only classes are taken to be.

    Returns
    -------
    Dataset over (series, map, attribution), lazy if ``ds`` is
        ``n`` samples that have all of the scores, and of each score ``…_mean``, ``…_std`` (ddof 0), and ``…_low``,
        ``…_high``, bounds of the mean by Student's t with the standard error over samples, or, with ``classes``, that
        of the sums of whole classes. NaN where there is no sample; bounds also where there is but one, or one class.
        ``to_dataframe()`` makes it a table with a line for each set and method.

    Raises
    ------
    SchemaError
        If it is no attributions cube, a name is unknown, or there is no set of these kinds.
    MissingMeasurementError
        If what a score is made from was not measured.

    References
    ----------
    Liang and Zeger 1986, "Longitudinal Data Analysis Using Generalized Linear Models" (errors by class).
    """
    require_cube(ds)
    require_resampling(0, confidence)
    if not scores or (unknown := [name for name in scores if name not in SCORES]):
        raise SchemaError(f"scores={list(scores)}: {nearest(str(unknown[0]) if scores else '', SCORES)}")
    chosen = ds.isel(map=places(ds, kinds))
    arrays = {name: score_of(chosen, name, level=level) for name in scores}
    known = xr.ones_like(arrays[scores[0]], dtype=bool)
    for values in arrays.values():
        known = known & values.notnull()
    members = None if classes is None else _members(ds, classes)
    n = known.sum("sample")
    out = {"n": schema.label(_plain(n), schema.GRID_STATISTICS["n"])}
    if members is not None:
        groups = (_sums(known.astype(np.float64), members) > 0).sum("class")
        out["n_classes"] = schema.label(_plain(groups), schema.GRID_STATISTICS["n_classes"])
    for name, values in arrays.items():
        mean = values.where(known).mean("sample")
        apart = (values - mean).where(known, 0.0)
        squares = (apart**2).sum("sample")
        found: dict[str, Any] = {"mean": mean, "std": np.sqrt(squares / n.where(n > 0))}
        if members is None:
            freedom, error = n - 1, np.sqrt(squares / (n * (n - 1)).where(n > 1))
        else:
            freedom, by_class = groups - 1, (_sums(apart, members) ** 2).sum("class")
            error = np.sqrt(by_class * (groups / (groups - 1).where(groups > 1))) / n.where(n > 0)
        found["low"], found["high"] = xr.apply_ufunc(
            student_interval,
            mean,
            error,
            freedom,
            kwargs={"confidence": confidence},
            output_core_dims=[[], []],
            dask="parallelized",
            output_dtypes=[np.float64] * 2,
        )
        declared = schema.ATTRIBUTION_SCORES[name]
        for statistic, array in found.items():
            one = _plain(array).rename(f"{name}_{statistic}")
            one.attrs = declared.attrs | {
                "long_name": f"{schema.GRID_STATISTICS[statistic].description}: {declared.description}"
            }
            out[f"{name}_{statistic}"] = one
    about = {"level": level, "confidence": confidence} | ({} if classes is None else {"classes": classes})
    return xr.Dataset(out, attrs=origin(ds) | about)


def _plain(array: xr.DataArray) -> xr.DataArray:
    return array.transpose(..., "map", "attribution")


def _members(ds: xr.Dataset, classes: str) -> xr.DataArray:
    """Return who is of which class, bool (sample, class)."""
    if classes not in ds.coords or ds[classes].dims != ("sample",):
        along = [str(name) for name, coord in ds.coords.items() if coord.dims == ("sample",)]
        raise SchemaError(f"there is no coordinate {classes!r} of 'sample'; {nearest(classes, along)}")
    codes, names = pd.factorize(ds[classes].to_numpy(), sort=True)
    if (codes < 0).any():
        raise SchemaError(f"{int((codes < 0).sum())} samples have no class in {classes!r}; leave them out")
    return xr.DataArray(codes[:, None] == np.arange(len(names)), dims=("sample", "class"))


def _sums(values: xr.DataArray, members: xr.DataArray) -> xr.DataArray:
    """Return the sums of values over the samples of each class."""
    values = values.reset_coords(drop=True)
    if values.chunks is not None:
        members = members.chunk(sample=values.chunksizes["sample"])
    out: xr.DataArray = xr.dot(values, members.astype(np.float64), dim="sample")
    return out
