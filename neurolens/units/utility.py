"""How much units contribute, and how large weights are."""

import numpy as np
import xarray as xr

from neurolens.units.inputs import OnMissing, measured, named


def contribution_utility(units: xr.Dataset, *, missing: OnMissing = "error", dim: str | None = None) -> xr.DataArray:
    """Return the contribution of each unit to what reads it: mean absolute activation times mean absolute weight out.

    Parameters
    ----------
    units : Dataset with `abs_sum`, `n` and `out_weight` (series, unit)
    missing : {"error", "drop"}
        Raise where a checkpoint was not measured, or leave it out.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever ``units`` has.

    Returns
    -------
    contribution_utility : (series, unit), activation, lazy if ``units`` is
        0 for a unit that is silent or that nothing listens to. NaN where no layer that reads the unit is known, or its
        statistics are not finite.

    Raises
    ------
    SchemaError
        If a dim is missing.
    MissingMeasurementError
        If weights were not measured, or checkpoints were not, naming them.

    References
    ----------
    Dohare et al. 2024, "Loss of plasticity in deep continual learning", contribution utility (its instantaneous value,
    over all observations instead of a running average).
    """
    found = measured(units, "abs_sum", "n", "out_weight", missing=missing, dim=dim)
    strength = (found["abs_sum"] / found["n"]).where(found["n"] > 0)
    utility = strength * found["out_weight"]
    return named(utility.where(np.isfinite(utility)), "contribution_utility", units)
