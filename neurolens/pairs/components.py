"""Principal components of what a unit says through all heads, or a head of all units, without the arrays of either."""

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import NonFiniteError, SchemaError
from neurolens.pairs.writing import ROUNDING, by_unit, matched, scalar_mean

Array = npt.NDArray[Any]


def unit_components(
    scalar: xr.DataArray | xr.Dataset, factors: xr.Dataset, *, k: int = 4, mean: xr.DataArray | None = None
) -> xr.Dataset:
    """Return the principal components of each unit's centred contributions through all its heads. **Eager**.

    Parameters
    ----------
    scalar : (sample, unit, head)
        The scalars.
    factors
        Of the same pairs.
    k
        How many, up to the number of heads; a unit has no more than that.
    mean : (unit, head), optional
        s̄, of other images; by default of these.

    Returns
    -------
    Dataset over (unit, component)
        ``direction`` (unit, component, feature), of length 1, its largest number positive; NaN where the component is
        none, as of dead units. ``singular_value``, decreasing, 0 there. ``share``: of the unit's squared length.

    Raises
    ------
    SchemaError
        If ``k`` is no number of components, or the factors are of other pairs.
    NonFiniteError
        If a scalar is NaN or infinite.

    Notes
    -----
    From the H × H problem: with S (sample, head) centred and U (head, feature), SᵀS = LLᵀ, and the eigenvectors q of
    LᵀUUᵀL give the right singular vectors UᵀLq of SU.
    """
    cube, fixed = matched(scalar, factors)
    _check(k, cube.sizes["head"], "heads")
    average = scalar_mean(cube, mean).transpose("unit", "head").to_numpy()
    values = cube.to_numpy()
    out = _Components.empty(cube.sizes["unit"], k, fixed.sizes["feature"])
    for part, u in by_unit(fixed):
        s = _centred(values[:, part], average[part])
        gram = np.matmul(s.transpose(1, 2, 0), s.transpose(1, 0, 2))  # (unit, head, head)
        for place, i in enumerate(range(part.start, part.stop)):
            out.take(i, gram[place], u[place])
    return out.dataset("unit", cube)


def head_components(
    scalar: xr.DataArray | xr.Dataset, factors: xr.Dataset, *, k: int = 4, mean: xr.DataArray | None = None
) -> xr.Dataset:
    """Return the principal components of each head's centred contributions over all units. **Eager**.

    Parameters
    ----------
    scalar : (sample, unit, head)
        The scalars, of all units of the head.
    factors
        Of the same pairs.
    k
        How many, up to the dims of a head, in whose column space they all lie.
    mean : (unit, head), optional
        s̄, of other images; by default of these.

    Returns
    -------
    Dataset over (head, component)
        As `unit_components` gives it.

    Raises
    ------
    SchemaError
        If ``k`` is no number of components, or the factors are of other pairs.
    NonFiniteError
        If a scalar is NaN or infinite.
    """
    cube, fixed = matched(scalar, factors)
    _check(k, fixed.sizes["d"], "dims of a head")
    average = scalar_mean(cube, mean).transpose("unit", "head").to_numpy()
    out = _Components.empty(cube.sizes["head"], k, fixed.sizes["feature"])
    for h in range(cube.sizes["head"]):
        s = _centred(cube.isel(head=h).to_numpy(), average[:, h])
        inner = s @ fixed["value"][h].to_numpy().astype(np.float64).T  # (sample, d)
        out.take(h, inner.T @ inner, fixed["output"][:, h].to_numpy().astype(np.float64).T)
    return out.dataset("head", cube)


class _Components:
    """Results that fill up: directions (n, k, O), singular values (n, k) and shares (n, k)."""

    def __init__(self, directions: Array, values: Array, shares: Array) -> None:
        self.directions, self.values, self.shares = directions, values, shares

    @classmethod
    def empty(cls, n: int, k: int, features: int) -> "_Components":
        return cls(np.full((n, k, features), np.nan, np.float32), np.zeros((n, k)), np.full((n, k), np.nan))

    def take(self, i: int, gram: Array, u: Array) -> None:
        """Solve for SU of rank ≤ r, from SᵀS (r, r) and U (r, O)."""
        weights, basis = np.linalg.eigh(gram)
        root = basis * np.sqrt(np.maximum(weights, 0))  # SᵀS = root rootᵀ
        small = root.T @ u  # has the singular values and right vectors of SU
        _, values, vectors = np.linalg.svd(small, full_matrices=False)
        k = min(self.values.shape[1], len(values))
        total = (values**2).sum()
        # The eigenvalues are right to rounding of the largest, and so their roots to its root.
        floor = np.sqrt(max(weights[-1], 0) * np.finfo(np.float64).eps * len(gram)) * np.linalg.norm(u)
        known = values[:k] > floor
        vectors = vectors[:k][known]
        vectors *= np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1))
        self.values[i, :k][known] = values[:k][known]
        self.directions[i, :k][known] = vectors
        if total > 0:
            self.shares[i] = self.values[i] ** 2 / total

    def dataset(self, dim: str, cube: xr.DataArray) -> xr.Dataset:
        """Return what was found, with the labels of units or heads."""
        coords = {name: c.variable for name, c in cube.coords.items() if c.dims == (dim,)}
        dims = (dim, "component")
        return xr.Dataset(
            {
                "direction": (
                    (*dims, "feature"),
                    self.directions,
                    {"long_name": "right singular vector of the centred contributions", "units": "1"},
                ),
                "singular_value": (dims, self.values, {"long_name": "its singular value", "units": "embedding"}),
                "share": (dims, self.shares, {"long_name": "of the squared length of all", "units": "1"}),
            },
            coords=coords,
        )


def _centred(values: Array, average: Array) -> Array:
    """Return scalars (sample, …) less their mean in float64, 0 where they are the same for all but for rounding."""
    centred = values.astype(np.float64) - average
    if not np.isfinite(centred).all():
        raise NonFiniteError("a scalar or a mean is NaN or infinite; leave out images that were not measured")
    floor = ROUNDING * np.finfo(values.dtype).eps * np.abs(values).max(axis=0)
    centred[:, np.abs(centred).max(axis=0) <= floor] = 0
    return centred


def _check(k: int, most: int, what: str) -> None:
    if not 1 <= k <= most:
        raise SchemaError(f"k={k}, and there are {most} {what}: pass 1 to {most}")
