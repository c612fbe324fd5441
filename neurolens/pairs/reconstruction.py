"""Embeddings from a few directions of each pair, unit or head: how much these say."""

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import SchemaError
from neurolens.pairs.ablation import mean_embedding
from neurolens.pairs.writing import matched, scalar_mean

Array = npt.NDArray[Any]
ANGLE = 1e-3
"""Components may have a cosine as large as this, of rounding."""
_AT_ONCE = 2**22  # scalars and projections that are held at once


def reconstruct(
    scalar: xr.DataArray | xr.Dataset,
    factors: xr.Dataset,
    directions: xr.DataArray,
    *,
    mean: xr.DataArray | None = None,
    orthonormal: bool = True,
) -> xr.DataArray:
    """Project the centred contributions of each pair, unit or head on directions, and add them up. **Eager**.

    Parameters
    ----------
    scalar : (sample, unit, head)
        The scalars.
    factors
        Of the same pairs.
    directions : (unit, head, feature), (unit, component, feature), (head, component, feature), or with one component
        Of `directions`, `unit_components` or `head_components`, or others, such as sums of phrases. What has no
        ``unit`` or ``head`` is of all of them together. Scaled to length 1; NaN, or 0, says nothing. They may be lazy.
    mean : (unit, head), optional
        s̄, of other images; by default of these.
    orthonormal
        Refuse components of one unit or head that are not at right angles, whose projections do not add up.

    Returns
    -------
    array (sample, feature), not normalised
        ē + Σ P(r − r̄). The directions of pairs themselves give the embeddings back exactly, but for pairs whose
        direction is tied: that one number per pair and image suffices is an identity, and no finding.

    Raises
    ------
    SchemaError
        If the directions are of other pairs or of another width, or not at right angles.
    """
    cube, fixed = matched(scalar, factors)
    _check(directions, cube, fixed)
    if "component" not in directions.dims:
        directions = directions.expand_dims("component")
    values, average = cube.to_numpy(), scalar_mean(cube, mean).to_numpy()
    out = np.zeros((cube.sizes["sample"], fixed.sizes["feature"]))
    each_head, each_unit = "head" in directions.dims, "unit" in directions.dims
    for h in range(cube.sizes["head"]) if each_head else [None]:
        # A head at a time: directions of pairs are lazy, and large.
        part = directions if h is None else directions.isel(head=h)
        lead = ["unit"] if each_unit else []
        p = _unit(part.transpose(*lead, "component", "feature").to_numpy().astype(np.float64), orthonormal)
        heads = slice(None) if h is None else slice(h, h + 1)
        value, output = fixed["value"].to_numpy()[heads], fixed["output"].to_numpy()[:, heads]
        inner = np.tensordot(p, output, axes=([-1], [0]))  # ([unit,] component, head, d)
        weight = np.einsum("ckhd,hdc->ckh" if each_unit else "khd,hdc->ckh", inner, value)  # of s along p
        step = max(1, _AT_ONCE // max(1, len(values) * (value.shape[0] + p.shape[-2])))
        for start in range(0, values.shape[1], step):
            units = slice(start, start + step)
            s = values[:, units, heads].astype(np.float64) - average[units, heads]
            told = np.matmul(s.transpose(1, 0, 2), weight[units].transpose(0, 2, 1))  # (unit, sample, k)
            if each_unit:
                out += told.transpose(1, 0, 2).reshape(len(s), -1) @ p[units].reshape(-1, p.shape[-1])
            else:
                out += told.sum(axis=0) @ p
    made = xr.DataArray(out, dims=("sample", "feature")) + mean_embedding(cube, fixed, mean).compute()
    if "sample" in cube.coords:
        made = made.assign_coords(sample=cube["sample"].variable)
    return made.astype(np.result_type(cube.dtype, fixed["value"].dtype)).rename("embedding")


def _unit(p: Array, orthonormal: bool) -> Array:
    """Return directions (…, component, feature) of length 1, 0 where there is none, at right angles if they must be."""
    p = np.where(np.isfinite(p), p, 0.0)
    length = np.linalg.norm(p, axis=-1, keepdims=True)
    p = p / np.where(length > 0, length, 1.0)
    if orthonormal and p.shape[-2] > 1:
        products = np.matmul(p, np.swapaxes(p, -1, -2))
        worst = np.abs(products - np.eye(p.shape[-2]) * np.diagonal(products, axis1=-2, axis2=-1)[..., None]).max()
        if worst > ANGLE:
            raise SchemaError(
                f"found components with a cosine of {worst:.2f}, and right angles were needed for their projections to "
                "add up; pass those of unit_components or head_components, or orthonormal=False"
            )
    return p


def _check(directions: Any, cube: xr.DataArray, fixed: xr.Dataset) -> None:
    if isinstance(directions, xr.Dataset) or not isinstance(directions, xr.DataArray):
        raise SchemaError(
            f"found {type(directions).__name__}, and an array was needed: unit_components(…)['direction']"
        )
    own = {"unit", "head"} & {*directions.dims}
    if not own or {*directions.dims} - {"unit", "head", "component"} != {"feature"}:
        raise SchemaError(
            f"found directions over {directions.dims}, and 'feature' with 'unit', 'head' or both, and perhaps "
            "'component', were needed"
        )
    for dim, needed in (("feature", fixed.sizes["feature"]), *((d, cube.sizes[d]) for d in sorted(own))):
        if directions.sizes[dim] != needed:
            raise SchemaError(
                f"found directions of {directions.sizes[dim]} along {dim!r}, and {needed} were needed, those of the "
                "scalars and factors"
            )
        if dim in directions.indexes and dim in cube.indexes and not directions.indexes[dim].equals(cube.indexes[dim]):
            raise SchemaError(f"directions and scalars name other pairs along {dim!r}; select the same in both")
