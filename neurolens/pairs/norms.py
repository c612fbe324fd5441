"""What the centred contributions of a pair are: one direction, a length per image, a mean."""

from typing import Any, Literal, TypeGuard

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import SchemaError, nearest
from neurolens.pairs.writing import (
    PAIRED,
    ROUNDING,
    matched,
    pair_vectors,
    required,
    scalar_mean,
    vector_norms,
)

Array = npt.NDArray[Any]
SIGNS = ("u", "majority")
_AT_ONCE = 2**22  # scalars that are centred at once


def directions(
    factors: xr.Dataset,
    *,
    sign: Literal["u", "majority"] = "u",
    scalar: xr.DataArray | xr.Dataset | None = None,
    top: int = 50,
) -> xr.Dataset:
    """Return the direction in which the contributions of each pair vary: ±u/‖u‖, their only principal component.

    Parameters
    ----------
    factors
        As `factors` gives them.
    sign
        ``"u"``: that of u, so that a positive direction is what the unit adds when it fires. ``"majority"``: the one on
        which more than half of the ``top`` images with the largest contributions lie, the reference's rule.
    scalar : (sample, unit, head), or a Dataset of `ScalarTotals`
        For ``"majority"``; by default those that ``factors`` has, as a Dataset of `at` does.
    top
        For ``"majority"``.

    Returns
    -------
    Dataset
        ``direction`` (unit, head, feature), lazy where large: select the pairs before computing them. NaN where
        it is not defined. ``sign`` (unit, head) int8: 1, −1, or 0 where the majority is tied. ``dead`` (unit, head)
        bool: u is 0.

    Raises
    ------
    SchemaError
        If the sign's rule is unknown or lacks its scalars, or ``top`` is more than there are images.

    Notes
    -----
    The first right singular vectors of the centred contributions are the same but for their sign, which in the
    reference is LAPACK's where the majority is tied or u is 0; and but for rounding, which drowns them where s hardly
    varies.

    References
    ----------
    Bu and Gandelsman 2025, arXiv 2509.19943; Gandelsman et al. 2024, arXiv 2406.04341.
    """
    fixed = required(factors)
    if sign not in SIGNS:
        raise SchemaError(f"sign={sign!r} is unknown; {nearest(str(sign), SIGNS)}")
    norms = vector_norms(fixed)
    dead = norms == 0
    signs = xr.ones_like(norms, dtype=np.int8)
    if sign == "majority":
        scalar = factors if scalar is None and {"scalar", "top"} & {*factors} else scalar
        if scalar is None:
            raise SchemaError("sign='majority' counts images, and there is no scalar; pass scalar=, or sign='u'")
        signs = majority(scalar, fixed, top=top)
        signs = signs if signs.chunks is None else signs.chunk(-1)
    scale = (signs / norms.where(~dead)).where(signs != 0).astype(fixed["value"].dtype)
    return xr.Dataset(
        {
            "direction": pair_vectors(fixed) * scale,
            "sign": signs.assign_attrs(long_name="sign of the direction against u; 0 is a tie", units="1"),
            "dead": dead.drop_attrs().assign_attrs(long_name="the vector is 0", units="1"),
        }
    )


def majority(scalar: xr.DataArray | xr.Dataset, factors: xr.Dataset, *, top: int = 50) -> xr.DataArray:
    """Return on which side of their mean more than half of the largest centred scalars are; lazy if they are.

    Parameters
    ----------
    scalar : (sample, unit, head), or a Dataset of `ScalarTotals`
        The scalars.
    factors
        Of the same pairs.
    top
        How many of the largest \\|s − s̄\\| are counted.

    Returns
    -------
    int8, (unit, head)
        1, −1, or 0 where neither side has more than half: then the reference's sign is arbitrary.

    Raises
    ------
    SchemaError
        If there are fewer images than ``top``.
    """
    largest = extremes(scalar, factors, top=top)
    more = (largest > 0).sum("rank") > top / 2
    fewer = (largest < 0).sum("rank") > top / 2
    return (more.astype(np.int8) - fewer.astype(np.int8)).rename("sign")


def pair_norms(scalar: xr.DataArray | xr.Dataset, factors: xr.Dataset, *, top: int = 50) -> xr.DataArray:
    """Return the largest lengths of each pair's centred contributions, \\|s − s̄\\|·‖u‖; lazy if the scalars are.

    Parameters
    ----------
    scalar : (sample, unit, head), or a Dataset of `ScalarTotals`
        The scalars.
    factors
        Of the same pairs.
    top
        How many images; the reference's masks are made of the mean over 50.

    Returns
    -------
    array (unit, head, rank), in the unit of the embedding, increasing
        NaN of a pair if one of its scalars is: leave out images that were not measured.

    Raises
    ------
    SchemaError
        If there are fewer images than ``top``, or the factors are of other pairs.
    """
    largest = abs(extremes(scalar, factors, top=top))
    norms = largest * vector_norms(factors).astype(largest.dtype)
    return norms.rename("norm").assign_attrs(long_name="largest centred contributions", units="embedding")


def pair_means(scalar: xr.DataArray | xr.Dataset, factors: xr.Dataset) -> xr.DataArray:
    """Return the mean contribution of each pair, s̄·u + β; over all pairs they add up to the mean embedding.

    Parameters
    ----------
    scalar : (sample, unit, head), or a Dataset of `ScalarTotals`
        The scalars.
    factors
        Of the same pairs.

    Returns
    -------
    array (unit, head, feature), lazy where large, a head at a time: select the pairs before computing it

    Raises
    ------
    SchemaError
        If the factors are of other pairs.
    """
    return contributions(mean_scalars(scalar, factors), required(factors)).rename("mean")


def mean_scalars(scalar: xr.DataArray | xr.Dataset, factors: xr.Dataset) -> xr.DataArray:
    """Return s̄ (unit, head) of scalars or totals; lazy if they are."""
    if are_totals(scalar):
        return matched(scalar["mean"], factors, dims=("unit", "head"))[0]
    return scalar_mean(matched(scalar, factors)[0])


def contributions(scalar: xr.DataArray, fixed: xr.Dataset) -> xr.DataArray:
    """Return s·u + β (unit, head, feature) of one scalar (unit, head) for each pair; lazy where large."""
    whole = scalar if scalar.chunks is None else scalar.chunk(-1)
    found = pair_vectors(fixed) * whole.astype(fixed["value"].dtype) + fixed["constant"]
    return found.transpose("unit", "head", "feature")


def dead_pairs(scalar: xr.DataArray | xr.Dataset, factors: xr.Dataset) -> xr.DataArray:
    """Tell which pairs say nothing of any image: u is 0, or s is the same for all but for rounding.

    Parameters
    ----------
    scalar : (sample, unit, head), or a Dataset of `ScalarTotals`
        The scalars.
    factors
        Of the same pairs.

    Returns
    -------
    bool, (unit, head), lazy if the scalars are

    Raises
    ------
    SchemaError
        If the factors are of other pairs.
    """
    if are_totals(scalar):
        std, fixed = matched(scalar["std"], factors, dims=("unit", "head"))
        top, bottom = (abs(scalar[name].isel(rank=0, drop=True)) for name in ("top", "bottom"))
        largest = np.maximum(top, bottom)
        eps = float(np.finfo(np.float32).eps)
    else:
        cube, fixed = matched(scalar, factors)
        eps = float(np.finfo(cube.dtype).eps)
        std, largest = xr.apply_ufunc(
            _spread,
            cube if cube.chunks is None else cube.chunk({"sample": -1}),
            input_core_dims=[["sample"]],
            output_core_dims=[[], []],
            dask="parallelized",
            output_dtypes=[np.float64, np.float64],
        )
    dead = (vector_norms(fixed) == 0) | (std <= ROUNDING * eps * largest)
    return dead.transpose("unit", "head").rename("dead")


def extremes(scalar: xr.DataArray | xr.Dataset, factors: xr.Dataset, *, top: int) -> xr.DataArray:
    """Return s − s̄ (unit, head, rank) of the images where it is largest, the largest last; lazy if the scalars are."""
    if are_totals(scalar):
        matched(scalar["mean"], factors, dims=("unit", "head"))
        return _from_totals(scalar, top)
    cube, _ = matched(scalar, factors)
    _enough(top, cube.sizes["sample"])
    if cube.chunks is not None:
        cube = cube.chunk({"sample": -1})
    largest: xr.DataArray = xr.apply_ufunc(
        _largest,
        cube,
        kwargs={"top": top},
        input_core_dims=[["sample"]],
        output_core_dims=[["rank"]],
        dask="parallelized",
        output_dtypes=[np.result_type(cube.dtype, np.float32)],
        dask_gufunc_kwargs={"output_sizes": {"rank": top}},
    )
    return largest.transpose(*PAIRED[1:], "rank")


def top_of(values: xr.DataArray, top: int) -> xr.DataArray:
    """Return the largest by magnitude over the samples (…, rank), in rising order; lazy if the values are."""
    _enough(top, values.sizes["sample"])
    if values.chunks is not None:
        values = values.chunk({"sample": -1})
    found: xr.DataArray = xr.apply_ufunc(
        _of_largest,
        values,
        kwargs={"top": top},
        input_core_dims=[["sample"]],
        output_core_dims=[["rank"]],
        dask="parallelized",
        output_dtypes=[values.dtype],
        dask_gufunc_kwargs={"output_sizes": {"rank": top}},
    )
    return found


def are_totals(scalar: Any) -> TypeGuard[xr.Dataset]:
    """Tell totals from scalars: of a Dataset that has both, as of `at`, it is the scalars, of the images selected."""
    return isinstance(scalar, xr.Dataset) and "scalar" not in scalar and {"mean", "std", "top", "bottom"} <= {*scalar}


def _from_totals(totals: xr.Dataset, top: int) -> xr.DataArray:
    count, ranks = int(totals["count"]), totals.sizes["rank"]
    _enough(top, count)
    if top > ranks:
        raise SchemaError(f"top={top} and {ranks} extremes were kept; pass top={ranks}, or ScalarTotals(ranks={top})")
    # The smallest are not counted again where there are so few images that they are among the largest.
    small = totals["bottom"].isel(rank=slice(0, max(0, min(ranks, count - ranks))))
    both = xr.concat([totals["top"].isel(rank=slice(0, min(ranks, count))), small], "rank")
    centred = (both - totals["mean"]).drop_vars("rank", errors="ignore")
    centred = centred if centred.chunks is None else centred.chunk({"rank": -1})
    largest: xr.DataArray = xr.apply_ufunc(
        _of_largest,
        centred,
        kwargs={"top": top},
        input_core_dims=[["rank"]],
        output_core_dims=[["rank"]],
        exclude_dims={"rank"},
        dask="parallelized",
        output_dtypes=[centred.dtype],
        dask_gufunc_kwargs={"output_sizes": {"rank": top}},
    )
    return largest.transpose("unit", "head", "rank")


def _largest(values: Array, *, top: int) -> Array:
    """Return (…, N) centred, and of these the ``top`` largest by magnitude, in rising order."""
    lead = values.shape[:-1]
    out = np.empty((*lead, top), np.result_type(values.dtype, np.float32))
    step = max(1, _AT_ONCE // max(1, values[:1].size))
    for start in range(0, len(values), step):
        part = np.array(values[start : start + step], dtype=out.dtype, order="C")
        part -= part.mean(axis=-1, dtype=np.float64, keepdims=True).astype(out.dtype)
        out[start : start + step] = _of_largest(part, top)
    return out


def _spread(values: Array) -> tuple[Array, Array]:
    """Return standard deviation and largest magnitude of (…, N), in float64."""
    lead = values.shape[:-1]
    std, largest = np.empty(lead), np.empty(lead)
    step = max(1, _AT_ONCE // max(1, values[:1].size))
    for start in range(0, len(values), step):
        part = values[start : start + step]
        std[start : start + step] = part.std(axis=-1, dtype=np.float64)
        largest[start : start + step] = np.abs(part).max(axis=-1)
    return std, largest


def _of_largest(values: Array, top: int) -> Array:
    """Return the ``top`` largest by magnitude of float (…, N), in rising order.

    Their bits are turned by one place, so that magnitudes come first and signs last, and are sorted as whole numbers:
    a partial sort of numbers is several times as fast as one of places.
    """
    kind = np.dtype(f"u{values.dtype.itemsize}")
    one, rest = kind.type(1), kind.type(8 * kind.itemsize - 1)
    bits = np.ascontiguousarray(values).view(kind)
    keys = (bits << one) | (bits >> rest)
    if top < keys.shape[-1]:
        keys.partition(keys.shape[-1] - top, axis=-1)
    largest = np.sort(keys[..., keys.shape[-1] - top :], axis=-1)
    return np.asarray(((largest >> one) | (largest << rest)).view(values.dtype))


def _enough(top: int, count: int) -> None:
    if not 1 <= top <= count:
        raise SchemaError(f"top={top} of {count} images; measure more, or pass top={count} or less")
