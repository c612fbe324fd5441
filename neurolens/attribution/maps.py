"""Maps from those of a plan's basis: every cluster, what is left without it, every control."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import xarray as xr

from neurolens.attribution.planner import WHOLE, Plan
from neurolens.errors import MissingMeasurementError, SchemaError, nearest

Method = Literal["integrated_gradients", "saliency", "input_x_gradient"]

METHODS = ("integrated_gradients", "saliency", "input_x_gradient")


def combined(basis: xr.DataArray, plan: Plan, *, maps: Sequence[str] | None = None) -> xr.DataArray:
    """Return the maps that follow from those of the basis; lazy if they are.

    Parameters
    ----------
    basis : (…, vector, …)
        Signed maps through the vectors of the plan. Absolute values are taken of what is returned, never before.
    plan : Plan
    maps
        Names of those wanted, in this order; all by default.

    Returns
    -------
    maps : (…, map, …)
        In the dtype of ``basis``, ``map`` in the place of ``vector``.

    Raises
    ------
    SchemaError
        If these are not the vectors of the plan, or it has no such map.
    """
    wanted = [str(name) for name in plan.combine["vector"].to_numpy()]
    given = [str(name) for name in basis["vector"].to_numpy()] if "vector" in basis.coords else []
    if given != wanted:
        raise SchemaError(
            f"found maps through vectors {given[:4]} …, and {wanted[:4]} … of the plan were needed; combine maps with "
            "the plan that they were measured with"
        )
    known = [str(name) for name in plan.combine["map"].to_numpy()]
    for name in maps or ():
        if name not in known:
            raise SchemaError(f"the plan has no map {name!r}; {nearest(name, known)}")
    chosen = plan.combine if maps is None else plan.combine.sel(map=list(maps))
    out: xr.DataArray = xr.dot(chosen, basis, dim="vector").astype(basis.dtype)
    return out.transpose(*("map" if dim == "vector" else dim for dim in basis.dims))


def attributions(
    basis: xr.Dataset,
    plan: Plan,
    *,
    methods: Sequence[Method] = ("integrated_gradients", "saliency"),
    maps: Sequence[str] | None = None,
) -> xr.Dataset:
    """Return attribution maps, as captum computes them for a network with its gradient blocked; lazy if ``basis`` is.

    Parameters
    ----------
    basis : Dataset over (sample, vector, …)
        From `basis_gradients`.
    plan : Plan
        That it was measured with.
    methods : of "integrated_gradients", "saliency", "input_x_gradient"
        Integrated Gradients and input times gradient are signed, and those of clusters add up to those of all units.
        Saliency is \\|gradient\\|, of the combined gradient: it does not add up.
    maps
        Names of those wanted; all by default.

    Returns
    -------
    maps : Dataset over (sample, map, …)
        A variable for each method, in the dtype of ``basis``, and ``target``.

    Raises
    ------
    SchemaError
        If a method or a map is unknown, or the plan is another.
    MissingMeasurementError
        If the integral was left out.
    """
    out: dict[str, xr.DataArray] = {}
    for method in methods:
        if method not in METHODS:
            raise SchemaError(f"there is no method {method!r}; {nearest(str(method), METHODS)}")
        if method == "integrated_gradients":
            out[method] = combined(_integral(basis), plan, maps=maps)
            continue
        gradient = combined(basis["gradient"], plan, maps=maps)
        product: xr.DataArray = gradient * basis["input"] if method == "input_x_gradient" else abs(gradient)
        out[method] = product.transpose(*gradient.dims)
    return xr.Dataset({**out, "target": basis["target"]}, attrs=basis.attrs)


def completeness(basis: xr.Dataset, plan: Plan) -> xr.Dataset:
    """Return how much of the change from baseline to sample goes through each set of units; lazy if ``basis`` is.

    Parameters
    ----------
    basis : Dataset over (sample, vector, …)
        From `basis_gradients`, with the integral.
    plan : Plan
        That it was measured with.

    Returns
    -------
    Dataset
        ``conductance`` (sample, map) float64: sum of the Integrated Gradients map, which is the conductance of its
        units. ``share`` (sample, map): of ``output − baseline_output``; NaN where nothing changes. ``gap`` (sample,):
        sum of the map through all units minus that change, which the steps of the integral leave; NaN where the plan
        has no such map.

    Raises
    ------
    SchemaError
        If the plan is another.
    MissingMeasurementError
        If the integral was left out.

    References
    ----------
    Sundararajan et al. 2017, proposition 1; Dhamdhere et al. 2019, equation 1.
    """
    integral = _integral(basis)
    dims = [dim for dim in integral.dims if dim not in ("sample", "vector")]
    sums = integral.sum(dims, dtype=np.float64)
    change = basis["output"] - basis["baseline_output"]
    conductance = combined(sums, plan)
    share = conductance / change.where(change != 0)
    gap = sums.sel(vector=WHOLE, drop=True) - change if plan.whole else xr.full_like(change, np.nan)
    return xr.Dataset({"conductance": conductance, "share": share, "gap": gap})


def _integral(basis: xr.Dataset) -> xr.DataArray:
    if "integrated_gradients" not in basis:
        raise MissingMeasurementError(
            "'integrated_gradients' was not measured; measure the basis with steps, e.g. basis_gradients(…, steps=50)"
        )
    return basis["integrated_gradients"]
