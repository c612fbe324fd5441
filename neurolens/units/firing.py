"""How often units fire, which ever do, and how sure *never* is."""

from typing import Literal

import numpy as np
import xarray as xr

from neurolens.errors import SchemaError
from neurolens.inference import binomial_upper
from neurolens.units.inputs import OnMissing, measured, named


def firing_density(
    data: xr.Dataset, *, epsilon: float = 0.0, missing: OnMissing = "error", dim: str | None = None
) -> xr.DataArray:
    """Share of observations at which a unit's activation is other than zero, or beyond a small epsilon.

    Parameters
    ----------
    data : units with `n` and `n_nonzero` (series, unit), or activations with `activation` (series, sample, unit)
    epsilon : float
        An observation counts where its absolute value is larger. Statistics of units know of 0 only.
    missing : {"error", "drop"}
        Raise where a checkpoint was not measured, or leave it out.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever ``data`` has.

    Returns
    -------
    firing_density : (series, unit), in [0, 1], lazy if ``data`` is
        NaN where activations are not finite, or nothing was observed.

    Raises
    ------
    SchemaError
        If ``epsilon`` is negative, or not 0 for statistics of units.
    MissingMeasurementError
        If a variable was not measured, or checkpoints were not, naming them.

    References
    ----------
    Paulo et al. 2024, "Automatically Interpreting Millions of Features in Large Language Models" (its code: 1e-5).
    """
    _require_epsilon(epsilon)
    if "activation" in data:
        values = _activations(data, missing, dim)
        fires = (abs(values) > epsilon).astype(np.float32).where(np.isfinite(values))
        return named(fires.mean("sample", skipna=False, dtype=np.float64), "firing_density", data, epsilon=epsilon)
    if epsilon:
        raise SchemaError(
            f"epsilon={epsilon} needs the activations themselves, and these are statistics of units; give the "
            "activations cube, or epsilon=0"
        )
    guards = ("abs_sum",) if "abs_sum" in data else ()
    found = measured(data, "n", "n_nonzero", *guards, missing=missing, dim=dim)
    density = (found["n_nonzero"] / found["n"]).where(found["n"] > 0)
    for guard in guards:
        density = density.where(np.isfinite(found[guard]))
    return named(density, "firing_density", data, epsilon=epsilon)


def alive(
    data: xr.Dataset, *, epsilon: float = 0.0, missing: OnMissing = "error", dim: str | None = None
) -> xr.DataArray:
    """Say which units are ever beyond epsilon; ``alive(units).mean("unit")`` is the fraction alive.

    Parameters
    ----------
    data : units with `min` and `max` (series, unit), or activations with `activation` (series, sample, unit)
    epsilon : float
        A unit is alive where an absolute value is larger.
    missing, dim
        As for :func:`firing_density`.

    Returns
    -------
    alive : bool, (series, unit), lazy if ``data`` is
        A unit with infinite activations is alive; one whose extremes are NaN is not known to be.

    Raises
    ------
    SchemaError
        If ``epsilon`` is negative.
    MissingMeasurementError
        If a variable was not measured, or checkpoints were not, naming them.

    References
    ----------
    As for :func:`firing_density`.
    """
    _require_epsilon(epsilon)
    if "activation" in data:
        found = (abs(_activations(data, missing, dim)) > epsilon).any("sample")
    else:
        extremes = measured(data, "min", "max", missing=missing, dim=dim)
        found = (extremes["max"] > epsilon) | (extremes["min"] < -epsilon)
    return named(found, "alive", data, epsilon=epsilon)


def firing_bound(
    units: xr.Dataset,
    *,
    confidence: float = 0.95,
    method: Literal["wilson", "clopper_pearson"] = "wilson",
    observations: float | None = None,
    missing: OnMissing = "error",
    dim: str | None = None,
) -> xr.DataArray:
    """Upper confidence bound of the probability that a unit is above zero: what *never fired* can mean at most.

    *Dead* is a statement about the sample: a unit that never fired in N independent observations may still fire with a
    probability of about 3/N (95 %).

    Parameters
    ----------
    units : Dataset with `n` and `n_pos` (series, unit)
    confidence : float
        One-sided coverage of the bound.
    method : {"wilson", "clopper_pearson"}
        The score bound, whose coverage is about ``confidence``, or the exact one, whose coverage is at least that.
    observations : float, optional
        How many independent observations the data are worth; absent, `n`. Positions of a map and tokens of a text hang
        together: the number of images, or texts, is the cautious choice. The share that fired is kept.
    missing, dim
        As for :func:`firing_density`.

    Returns
    -------
    firing_bound : (series, unit), probability, lazy if ``units`` is
        1 where nothing was observed; NaN where counts are not finite.

    Raises
    ------
    SchemaError
        If the method is unknown, or the confidence or ``observations`` make no sense.
    MissingMeasurementError
        If a count was not measured, or checkpoints were not, naming them.

    References
    ----------
    Wilson 1927; Clopper and Pearson 1934; Hanley and Lippman-Hand 1983 (rule of three).
    """
    if observations is not None and not observations > 0:
        raise SchemaError(f"observations={observations} is no number of observations; give e.g. the number of images")
    found = measured(units, "n_pos", "n", missing=missing, dim=dim)
    worth = found["n"] if observations is None else xr.full_like(found["n"], observations, dtype=np.float64)
    share = (found["n_pos"] / found["n"]).where(found["n"] > 0, 0.0)
    fired = np.minimum(share, 1.0) * worth  # texts that count alike have weights, and sums of weights are rounded
    bound: xr.DataArray = xr.apply_ufunc(
        binomial_upper,
        fired,
        worth,
        kwargs={"confidence": confidence, "method": method},
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    return named(bound, "firing_bound", units, confidence=confidence, method=method)


def _require_epsilon(epsilon: float) -> None:
    if not 0 <= epsilon < np.inf:
        raise SchemaError(
            f"epsilon={epsilon} is no size of an activation; give 0 or a small positive number, e.g. 1e-5"
        )


def _activations(data: xr.Dataset, missing: OnMissing, dim: str | None) -> xr.DataArray:
    found = measured(data, "activation", missing=missing, dim=dim, needs=("unit", "sample"))
    return found["activation"].astype(np.float32)
