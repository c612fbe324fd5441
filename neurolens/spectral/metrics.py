"""How many directions a matrix uses: one number per definition, from its singular values."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from neurolens.errors import SchemaError
from neurolens.schema.spectra import METRICS

Values = Any  # an array of float64
SHARE = 0.99  # of the sum, in the reference's counts


def spectrum_metrics(
    singular_values: xr.DataArray, *, dim: str = "component", tolerance: float | xr.DataArray = 0.0
) -> xr.Dataset:
    """Rank metrics of spectra that are known as a whole.

    Parameters
    ----------
    singular_values : (…, ``dim``), not negative, in any order
        NaN pads; a spectrum that is NaN throughout was not measured.
    dim : str
        The dim along which one spectrum lies.
    tolerance : float or (…), in units of the singular values
        Singular values above it count for `numerical_rank`.

    Returns
    -------
    Dataset over the other dims, lazy if ``singular_values`` is
        `effective_rank`, `stable_rank` (Frobenius), `srank99` and `approx99` (the reference's counts, on s and on s²),
        `participation_ratio` of s², `numerical_rank`. All are 0 for a matrix of zeros, and NaN where not measured.

    Raises
    ------
    SchemaError
        If ``dim`` is missing.

    References
    ----------
    Roy and Vetterli 2007, "The Effective Rank"; Dohare et al. 2024, "Loss of Plasticity in Deep Continual Learning"
    (`srank99` is its "stable rank", `approx99` its "approximate rank").
    """
    if dim not in singular_values.dims:
        raise SchemaError(
            f"there is no dim {dim!r}; found {tuple(map(str, singular_values.dims))}; pass the spectrum's own as dim="
        )
    if singular_values.chunks is not None:
        singular_values = singular_values.chunk({dim: -1})
    found = xr.apply_ufunc(
        measures,
        singular_values,
        tolerance,
        input_core_dims=[[dim], []],
        output_core_dims=[[]] * len(METRICS),
        dask="parallelized",
        output_dtypes=[np.float64] * len(METRICS),
    )
    return xr.Dataset({name: a.assign_attrs(METRICS[name].attrs) for name, a in zip(METRICS, found)})


def measures(values: Values, tolerance: Any = 0.0) -> tuple[Values, ...]:
    """The metrics of ``METRICS``, in its order, of spectra along the last axis."""
    known = ~np.isnan(values).all(axis=-1)
    s = -np.sort(-np.nan_to_num(values, nan=0.0), axis=-1)
    rules = (effective_rank, stable_rank, srank99, approx99, participation_ratio)
    found = [np.where(s.any(axis=-1), _scaled(rule, s), 0.0) for rule in rules]
    found.append((s > np.asarray(tolerance)[..., None]).sum(axis=-1).astype(np.float64))
    return tuple(np.where(known, metric, np.nan) for metric in found)


def effective_rank(s: Values) -> Values:
    """exp(−Σ p ln p) with p = s / Σ s (Roy and Vetterli 2007)."""
    p = s / s.sum(axis=-1, keepdims=True)
    return np.exp(-(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1))


def stable_rank(s: Values) -> Values:
    """‖A‖_F² / s_max²."""
    return (s**2).sum(axis=-1) / (s**2).max(axis=-1)


def srank99(s: Values) -> Values:
    """Count as the reference does: one more than the running sums of s that stay below 99 % of the sum."""
    return 1.0 + (np.cumsum(s, axis=-1) / s.sum(axis=-1, keepdims=True) < SHARE).sum(axis=-1)


def approx99(s: Values) -> Values:
    """The same count on s²."""
    return srank99(s**2)


def participation_ratio(s: Values) -> Values:
    """(Σ λ)² / Σ λ² with λ = s²."""
    return (s**2).sum(axis=-1) ** 2 / (s**4).sum(axis=-1)


def _scaled(rule: Callable[[Values], Values], s: Values) -> Values:
    """Apply a rule that is blind to scale where no square over- or underflows."""
    largest = s.max(axis=-1, keepdims=True, initial=0.0)
    return rule(s / np.where(largest > 0, largest, 1.0) + np.where(largest > 0, 0.0, 1.0))
