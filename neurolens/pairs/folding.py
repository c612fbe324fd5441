"""Edits that persist: pairs held at their mean by other weights, in a network that anyone can run."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import SchemaError
from neurolens.pairs.ablation import checked_mask
from neurolens.pairs.adapters import NAMES, PREFIXES
from neurolens.pairs.norms import mean_scalars
from neurolens.pairs.pool import Pool
from neurolens.pairs.writing import factors, write

Array = npt.NDArray[Any]


def fold_mask(pool: Pool, mask: xr.DataArray, scalar: xr.DataArray | xr.Dataset | None = None) -> Pool:
    """Return the pool whose embeddings are those of `ablate`: what is masked out is at its mean, at every image.

    Parameters
    ----------
    pool
        As `pool_of` gives it of the network.
    mask : bool, (unit, head), (unit,) or (head,)
        True is kept; see `percentile_mask`.
    scalar : (sample, unit, head), or a Dataset of `ScalarTotals` or of `at`, optional
        Where the means are from. Absent: what is masked out writes nothing instead, but for its share of the biases.

    Returns
    -------
    Pool
        With other values and another bias of the output. Queries and keys are the same: all units are still seen by the
        attention.

    Raises
    ------
    SchemaError
        If the mask or the scalars are of other pairs.

    Notes
    -----
    Exact: a pair writes through one column of one head's values, Wv_h[:, n], and through nothing else. With these 0,
    and Σ s̄·u of the pairs masked out added to b_o, e = Σ_keep s·u + Σ_drop s̄·u + biases.
    """
    fixed = factors(pool)
    keep = checked_mask(mask, xr.DataArray(np.empty((0, pool.units, pool.heads)), dims=("sample", "unit", "head")))
    plain = keep.drop_vars(list(keep.coords)).broadcast_like(fixed["value"].isel(d=0)).transpose("head", "unit")
    dropped = ~plain.to_numpy()
    value, output = fixed["value"].to_numpy(), fixed["output"].to_numpy()
    bias = pool.b_o.astype(np.float64)
    if scalar is not None:
        _require_same(keep, scalar)
        average = mean_scalars(scalar, fixed).transpose("unit", "head").to_numpy()
        bias = bias + write(np.where(dropped.T, average, 0.0), value.astype(np.float64), output.astype(np.float64))
    left = np.where(dropped[:, None], value.dtype.type(0), value)
    return replace(pool, W_v=left.reshape(pool.W_v.shape), b_o=bias.astype(pool.dtype))


def pool_state(pool: Pool, *, prefix: str = "visual.attnpool.") -> dict[str, Array]:
    """Return a pool's arrays under OpenAI's names: the other way round of `state_pool`.

    Parameters
    ----------
    pool
        Any, such as one of `fold_mask`.
    prefix
        Path of the pool's module, with a dot.

    Returns
    -------
    arrays by name
        To be put into the network: ``model.load_state_dict({name: torch.from_numpy(array.copy()) for …},
        strict=False)``.

    Raises
    ------
    SchemaError
        If the pool has a class token, for which OpenAI's has no place, or the prefix has no dot at its end.
    """
    if pool.class_token is not None:
        raise SchemaError("the pool has a learned class token, and OpenAI's pools have none; write its weights by hand")
    if prefix and not prefix.endswith("."):
        raise SchemaError(f"prefix={prefix!r} ends in no dot; pass one such as {', '.join(map(repr, PREFIXES))}")
    return {prefix + theirs: getattr(pool, ours) for ours, theirs in NAMES.items()}


def _require_same(mask: xr.DataArray, scalar: xr.DataArray | xr.Dataset) -> None:
    for dim in mask.dims:
        one, other = mask.indexes.get(dim), scalar.indexes.get(dim)
        if one is not None and other is not None and not one.equals(other):
            raise SchemaError(f"mask and scalars name other pairs along {dim!r}; make it of the norms of these pairs")
