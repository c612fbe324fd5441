"""Quantiles of activations from their histograms."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from neurolens.errors import SchemaError
from neurolens.units.inputs import OnMissing, measured, named
from neurolens.units.layers_of import whole

OVERFLOW = 65520.0
"""From here on float16 rounds to infinity: the upper edge of the last finite bin."""


def quantile(
    units: xr.Dataset, q: float | Sequence[float], *, missing: OnMissing = "error", dim: str | None = None
) -> xr.DataArray:
    """Estimate quantiles of each unit's activations, linear inside the bins of its histogram.

    Parameters
    ----------
    units : Dataset with `histogram` (series, unit, bin)
        Observations by the top 8 bits of their float16, 256 bins.
    q : float or several, in [0, 1]
    missing : {"error", "drop"}
        Raise where a checkpoint was not measured, or leave it out.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever ``units`` has.

    Returns
    -------
    quantile : (series, unit), or (quantile, series, unit) of several, activation, lazy if ``units`` is
        Right to a quarter of its size: a bin is up to 25 % wide, and those next to 0 reach to 1.5e-5. Infinite where
        the quantile overflows float16 (65520). NaN where an activation was NaN, or nothing was observed.

    Raises
    ------
    SchemaError
        If a share is outside [0, 1], or a dim is missing.
    MissingMeasurementError
        If histograms were not measured, or checkpoints were not, naming them.
    """
    from neurolens.units.histogram import bin_edges

    shares = np.asarray(q, dtype=np.float64)
    if shares.ndim > 1 or not shares.size or not ((shares >= 0) & (shares <= 1)).all():
        raise SchemaError(f"q={q!r} is no share of the observations; give a number between 0 and 1, or a list of them")
    low, high = bin_edges()
    counts = measured(units, "histogram", missing=missing, dim=dim, needs=("unit", "bin"))["histogram"]
    if counts.sizes["bin"] != len(low):
        raise SchemaError(f"`histogram` has {counts.sizes['bin']} bins; all {len(low)} are needed: do not select bins")
    found: xr.DataArray = xr.apply_ufunc(
        _of_bins,
        whole(counts, "bin"),
        input_core_dims=[["bin"]],
        output_core_dims=[["quantile"]],
        kwargs={"low": low, "high": high, "q": np.atleast_1d(shares)},
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"quantile": shares.size}},
    )
    found = found.assign_coords(quantile=np.atleast_1d(shares)).transpose("quantile", ...)
    return named(found if shares.ndim else found.isel(quantile=0), "quantile", units)


def _of_bins(counts: Any, low: NDArray[np.float64], high: NDArray[np.float64], q: NDArray[np.float64]) -> Any:
    nan = np.isnan(low)
    order = np.flatnonzero(~nan)[np.argsort(low[~nan], kind="stable")]
    edges = [np.where(np.isinf(low) & np.isinf(high), edge, np.clip(edge, -OVERFLOW, OVERFLOW)) for edge in (low, high)]
    found = interpolate(counts[..., order], edges[0][order], edges[1][order], q)
    lost = np.isnan(counts).any(axis=-1) | (counts[..., nan] > 0).any(axis=-1)
    return np.where(lost[..., None], np.nan, found)


def interpolate(counts: Any, low: NDArray[np.float64], high: NDArray[np.float64], q: NDArray[np.float64]) -> Any:
    """Return quantiles of binned observations, linear inside a bin.

    Parameters
    ----------
    counts : (…, bin), observations per bin; bins in increasing order
    low, high : (bin,), edges
    q : (quantile,), shares of the observations

    Returns
    -------
    (…, quantile)
        NaN where there is no observation.
    """
    below = np.cumsum(counts, axis=-1)
    total = below[..., -1]
    out = np.empty((*total.shape, len(q)))
    for i, share in enumerate(q):
        target = share * total
        at = ((below >= target[..., None]) & (counts > 0)).argmax(axis=-1)
        inside = np.take_along_axis(counts, at[..., None], axis=-1)[..., 0]
        before = np.take_along_axis(below, at[..., None], axis=-1)[..., 0] - inside
        with np.errstate(divide="ignore", invalid="ignore"):
            part = (target - before) / inside
            value = np.where(low[at] == high[at], low[at], low[at] + part * (high[at] - low[at]))
        out[..., i] = np.where(total > 0, value, np.nan)
    return out
