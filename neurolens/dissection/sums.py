"""IoU of counts in blocks of images: one task per chunk of the counts, so that a cube need not fit in memory."""

from typing import Any, Literal

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

EPSILON = 1e-10

_PER_BLOCK = {"intersection": "concept", "unit_area": "category", "concept_area": "concept"}


def ratio(
    concepts: xr.Dataset,
    area: str,
    codes: Any,
    *,
    by: Literal["block"] | None = None,
    weights: xr.DataArray | None = None,
    silent: float = np.nan,
) -> xr.DataArray:
    """Return IoU, (series, unit, concept), with `block` or the other dims of ``weights``; lazy if the counts are.

    Parameters
    ----------
    concepts : the cube of counts
    area : name of the area of the units' masks
    codes : (concept,) position of each concept's category
    by : "block", to sum over none
    weights : (…, block), how often each block counts
    silent : what it is where a unit has no mask

    Returns
    -------
    NaN where a count is, and where no block that counts shows the concept.
    """
    names = ("intersection", area, "concept_area", "unit_area")
    arrays = _aligned([concepts[name] for name in names])
    core = [["block", _PER_BLOCK.get(name, "category")] for name in names]
    extra = [] if weights is None else [str(dim) for dim in weights.dims if dim != "block"]
    over = None if weights is None else weights.transpose(*extra, "block").to_numpy()
    out: list[str] = ["block", "concept"] if by else [*extra, "concept"]
    found: xr.DataArray = xr.apply_ufunc(
        _lazily if arrays[0].chunks is not None else _ratio,
        *arrays,
        input_core_dims=core,
        output_core_dims=[out],
        kwargs={"codes": codes, "weights": over, "summed": by is None, "silent": silent},
        dask="allowed",
    )
    if weights is not None:
        found = found.assign_coords({name: weights.coords[name] for name in extra if name in weights.coords})
    return found


def _aligned(arrays: list[xr.DataArray]) -> list[xr.DataArray]:
    """Cut the small counts where the first one is cut, blocks and concepts in one piece."""
    first = arrays[0]
    if first.chunks is None:
        return arrays
    whole = {"block": -1, "concept": -1, "category": -1}
    cuts = {dim: first.chunksizes[dim] for dim in first.dims if dim not in whole} | whole
    parts = (array.variable.chunk({dim: cuts[dim] for dim in array.dims}) for array in arrays)
    return [array.copy(data=part.data) for array, part in zip(arrays, parts)]  # coordinates stay as they are


def _lazily(*arrays: Any, codes: Any, weights: Any, summed: bool, silent: float) -> Any:
    """Do as `_ratio` does, chunk by chunk. ``dask="parallelized"`` would copy every chunk of the counts."""
    n = arrays[0].ndim - 2
    block, concept, category = n, n + 1, n + 2
    extra = () if weights is None else weights.shape[:-1]
    new = {category + 1 + i: size for i, size in enumerate(extra)}
    given: list[Any] = []
    for array, last in zip(arrays, (concept, category, concept, category), strict=True):
        given += [array, (*range(n)[n + 2 - array.ndim :], block, last)]

    def one(common: Any, mask: Any, shown: Any, any_mask: Any) -> Any:
        return _ratio(_whole(common), _whole(mask), _whole(shown), _whole(any_mask), codes, weights, summed, silent)

    return da.blockwise(  # type: ignore[no-untyped-call]
        one,
        (*range(n), *([] if summed else [block]), *new, concept),
        *given,
        new_axes=new,
        concatenate=False,
        dtype=np.float64,
        meta=np.empty((0,) * (n + 1 + len(new) + (not summed))),
        name="iou-" + tokenize(*arrays, codes, weights, summed, silent),
    )


def _whole(piece: Any) -> Any:
    """Take the only chunk along dims that the result does not have out of its lists."""
    while isinstance(piece, list):
        (piece,) = piece
    return piece


def _ratio(
    common: Any, mask: Any, shown: Any, any_mask: Any, codes: Any, weights: Any, summed: bool, silent: float
) -> Any:
    """IoU of (…, block, concept), (…, block, category), (…, block, concept) and (…, block, category)."""

    def over(counts: Any) -> Any:
        if not summed:
            return counts
        if weights is None:
            return counts.sum(axis=-2)
        drawn = weights.reshape(-1, weights.shape[-1]) @ counts
        return drawn.reshape(*counts.shape[:-2], *weights.shape[:-1], counts.shape[-1])

    both, whole = over(common), over(shown)
    fired = any_mask.sum(axis=-1) > 0 if not summed else any_mask.sum(axis=(-2, -1)) > 0
    extra = 0 if weights is None or not summed else weights.ndim - 1
    fired = fired.reshape(*fired.shape, *[1] * (extra + 1))
    union = over(mask)[..., codes] + whole
    union -= both
    union += EPSILON
    # where comparisons fail because nothing was measured, the counts are NaN already
    out = np.where(fired & (whole > 0), both / union, np.nan)
    return out if np.isnan(silent) else np.where(~fired & (whole > 0) & (both == 0), silent, out)
