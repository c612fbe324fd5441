"""How much units contribute, and how large weights are."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from neurolens import schema
from neurolens.errors import SchemaError
from neurolens.units.inputs import OnMissing, kept_attrs, measured, named
from neurolens.units.layers_of import Layers, held, whole


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


def weight_magnitude(units: xr.Dataset, *, missing: OnMissing = "error", dim: str | None = None) -> xr.Dataset:
    """Return how large weights are, per module and in all.

    Parameters
    ----------
    units : Dataset with `parameter_mean_abs` and `parameter_norm` (series, parameter), and `size` (parameter)
        Parameters are weights: matrices, kernels and embeddings, named by module and name.
    missing, dim
        As for :func:`contribution_utility`.

    Returns
    -------
    Dataset, lazy if ``units`` is
        Per module, in order of the network: `weight_mean_abs` (mean over its weights), `weight_norm` (L2) (series,
        module) and `n_weights` (module). In all: `total_weight_mean_abs` and `total_weight_norm` (series), every weight
        counting the same.

    Raises
    ------
    SchemaError
        If a dim or the coordinate `size` is missing.
    MissingMeasurementError
        If weights were not measured, or checkpoints were not, naming them.

    References
    ----------
    Dohare et al. 2024, "Loss of plasticity in deep continual learning" (mean weight magnitude over all parameters).
    """
    names = ("parameter_mean_abs", "parameter_norm")
    found = measured(units, *names, missing=missing, dim=dim, needs=("parameter",))
    if not {"parameter", "size"} <= set(found.coords):
        raise SchemaError(
            "names (`parameter`) and `size` of the parameters are needed as coordinates; give those of the opened cube"
        )
    paths = [str(name).rpartition(".")[0] for name in held(found["parameter"]).tolist()]
    modules = list(dict.fromkeys(paths))
    groups = Layers(tuple(modules), np.array([modules.index(path) for path in paths], dtype=np.int64))
    size = held(found["size"]).astype(np.int64)
    weighed = size / size.sum()
    mean, norm = (whole(found[name], "parameter").reset_coords(drop=True) for name in names)
    results = {
        "weight_mean_abs": _by_module(mean, _weighted_mean, groups, size),
        "weight_norm": _by_module(norm, _joint_norm, groups, size),
        "n_weights": xr.DataArray(groups.total(size), dims="module"),
        "total_weight_mean_abs": (mean * xr.DataArray(weighed, dims="parameter")).sum("parameter", skipna=False),
        "total_weight_norm": (norm**2).sum("parameter", skipna=False) ** 0.5,
    }
    labelled = {name: schema.label(array, schema.UNIT_RESULTS[name]) for name, array in results.items()}
    return xr.Dataset(labelled, coords={"module": modules}, attrs=kept_attrs(units))


def _by_module(array: xr.DataArray, rule: Any, groups: Layers, size: NDArray[np.int64]) -> xr.DataArray:
    out: xr.DataArray = xr.apply_ufunc(
        rule,
        array,
        input_core_dims=[["parameter"]],
        output_core_dims=[["module"]],
        kwargs={"groups": groups, "size": size},
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"module": len(groups.names)}},
    )
    return out


def _weighted_mean(values: Any, groups: Layers, size: NDArray[np.int64]) -> Any:
    return groups.total(values * size) / groups.total(size)


def _joint_norm(values: Any, groups: Layers, size: NDArray[np.int64]) -> Any:
    return np.sqrt(groups.total(values**2))
