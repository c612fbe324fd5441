"""Scores of the same samples with and without a filter, side by side."""

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from neurolens.errors import NonFiniteError, SchemaError, nearest

Array = npt.NDArray[Any]


class Pairs(NamedTuple):
    """Scores of the same samples, (sample, filters) float64, NaN in both where one is missing.

    ``groups``: the class of each sample by number, and ``names`` of them; None without classes. ``dims``, ``shape`` and
    ``coords`` are those of the filters.
    """

    filtered: Array
    baseline: Array
    groups: Array | None
    names: Array | None
    dims: tuple[Hashable, ...]
    shape: tuple[int, ...]
    coords: dict[Hashable, Any]

    @property
    def difference(self) -> Array:
        """Return filtered − baseline, (sample, filters)."""
        return self.filtered - self.baseline


def require_pairs(filtered: xr.DataArray, baseline: xr.DataArray, dim: str, classes: str | None) -> Pairs:
    """Return scores side by side, in memory.

    Raises
    ------
    SchemaError
        If the samples are not the same ones, or a dim or coordinate is missing.
    NonFiniteError
        If a score is infinite.
    """
    for name, scores in (("filtered", filtered), ("baseline", baseline)):
        if not scores.sizes.get(dim):
            raise SchemaError(
                f"{name} scores have {dict(scores.sizes)}; samples along {dim!r} were needed; name theirs"
            )
    if more := [d for d in baseline.dims if d not in filtered.dims]:
        raise SchemaError(f"baseline scores have dims {more} that the filtered ones lack; select along them")
    try:
        filtered, baseline = xr.align(filtered, baseline, join="exact", copy=False)
    except ValueError as error:
        raise SchemaError(
            "the two have scores of different samples or filters; bring them together with xarray.align"
        ) from error
    filtered = filtered.transpose(dim, ...)
    first, second = (
        np.asarray(scores.transpose(*filtered.dims).to_numpy(), dtype=np.float64).reshape(filtered.sizes[dim], -1)
        for scores in (filtered, baseline.broadcast_like(filtered))
    )
    if infinite := int(np.isinf(first).sum() + np.isinf(second).sum()):
        raise NonFiniteError(
            f"found {infinite} infinite scores, and numbers were needed; mask them with NaN or mend them"
        )
    missing = np.isnan(first) | np.isnan(second)
    groups, names = None, None
    if classes is not None:
        if classes not in filtered.coords or filtered[classes].dims != (dim,):
            along = [str(name) for name, coord in filtered.coords.items() if coord.dims == (dim,)]
            raise SchemaError(f"filtered scores have no coordinate {classes!r} of {dim!r}; {nearest(classes, along)}")
        groups, names = pd.factorize(filtered[classes].to_numpy(), sort=True)
        if (groups < 0).any():
            raise SchemaError(f"{int((groups < 0).sum())} samples have no class in {classes!r}; leave them out")
    return Pairs(
        np.where(missing, np.nan, first),
        np.where(missing, np.nan, second),
        groups,
        names,
        filtered.dims[1:],
        filtered.shape[1:],
        {name: coord for name, coord in filtered.coords.items() if dim not in coord.dims},
    )
