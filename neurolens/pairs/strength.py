"""How much a pair, or a unit through all its heads, contributes at each image, from the scalars alone."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import SchemaError, nearest
from neurolens.pairs.norms import top_of
from neurolens.pairs.writing import along, by_unit, matched, named, required, scalar_mean, vector_norms

Array = npt.NDArray[Any]
LEVELS, KINDS = ("pair", "unit"), ("signed", "norm")
_AT_ONCE = 2**21  # scalars that are widened at once


def strengths(
    scalar: xr.DataArray | xr.Dataset,
    factors: xr.Dataset,
    *,
    level: Literal["pair", "unit"] = "pair",
    kind: Literal["signed", "norm"] = "signed",
    centred: bool = False,
    bias: bool = False,
    mean: xr.DataArray | None = None,
) -> xr.DataArray:
    """Return how strong the contribution of each pair or unit is at each image; lazy if the scalars are.

    Parameters
    ----------
    scalar : (sample, unit, head)
        The scalars.
    factors
        Of the same pairs.
    level
        ``"pair"``, or ``"unit"``: a unit through all its heads.
    kind
        ``"signed"``: s·‖u‖ of a pair, and the sum of these of a unit; large where what the unit stands for is there.
        ``"norm"``: the length of the contribution, \\|s\\|·‖u‖ of a pair and ‖Σ_h s·u‖ of a unit, which is also large
        where s is far below 0.
    centred
        Take s − s̄ for s.
    bias
        Of ``"norm"``: with the shares of the biases, ‖s·u + β‖, as the reference retrieves images.
    mean : (unit, head), optional
        s̄, of other images; by default of these.

    Returns
    -------
    array (sample, unit, head), or (sample, unit), in the unit of the embedding

    Raises
    ------
    SchemaError
        If a level or kind is unknown, biases are asked for where they have no sense, or factors are of other pairs.

    References
    ----------
    Bu and Gandelsman 2025, arXiv 2509.19943: with ``kind="norm", bias=True``.
    """
    for name, value, known in (("level", level, LEVELS), ("kind", kind, KINDS)):
        if value not in known:
            raise SchemaError(f"{name}={value!r} is unknown; {nearest(str(value), known)}")
    if bias and (centred or kind == "signed"):
        raise SchemaError(
            "bias=True asks for ‖s·u + β‖, and β has no sign and no centre; pass kind='norm', centred=False"
        )
    cube, fixed = matched(scalar, factors)
    working = np.result_type(cube.dtype, fixed["value"].dtype)
    s = cube.astype(working)
    if centred:
        s = s - scalar_mean(cube, mean).astype(working)
    if level == "unit":
        found = _of_units(s, fixed, kind, bias)
    elif kind == "signed":
        found = s * vector_norms(fixed).astype(working)
    else:
        found = abs(s) * vector_norms(fixed).astype(working)
        if bias:
            inner, length = _against_bias(fixed, working)
            found = (found**2 + 2 * s * inner + length**2).clip(min=0) ** 0.5
    return found.rename("strength").assign_attrs(long_name=f"{kind} strength of each {level}", units="embedding")


def unit_norms(
    scalar: xr.DataArray | xr.Dataset, factors: xr.Dataset, *, top: int = 50, mean: xr.DataArray | None = None
) -> xr.DataArray:
    """Return the largest lengths of each unit's centred contributions through all heads; lazy if the scalars are.

    Parameters
    ----------
    scalar : (sample, unit, head)
        The scalars.
    factors
        Of the same pairs.
    top
        How many images.
    mean : (unit, head), optional
        s̄, of other images; by default of these.

    Returns
    -------
    array (unit, rank), increasing, in the unit of the embedding

    Raises
    ------
    SchemaError
        If there are fewer images than ``top``, or the factors are of other pairs.
    """
    lengths = strengths(scalar, factors, level="unit", kind="norm", centred=True, mean=mean)
    return top_of(lengths, top).transpose("unit", "rank").rename("norm")


def unit_gram(factors: xr.Dataset) -> xr.DataArray:
    """Return the inner products of the vectors of each unit, ⟨u^{n,h}, u^{n,h'}⟩. **Eager**.

    Parameters
    ----------
    factors
        As `factors` gives them.

    Returns
    -------
    float64, (unit, head, other)

    Raises
    ------
    SchemaError
        If ``factors`` are none.
    """
    fixed = required(factors)
    heads = fixed.sizes["head"]
    gram = np.empty((fixed.sizes["unit"], heads, heads))
    for part, u in by_unit(fixed):
        gram[part] = u @ u.transpose(0, 2, 1)
    return named(gram, ("unit", "head", "other"), fixed).rename("gram")


def _of_units(s: xr.DataArray, fixed: xr.Dataset, kind: str, bias: bool) -> xr.DataArray:
    if kind == "signed":
        return (s * vector_norms(fixed).astype(s.dtype)).sum("head")
    if s.chunks is not None:
        s = s.chunk({"head": -1})
    total = fixed["constant"].sum("head", dtype=np.float64)
    inner = along(fixed, total) if bias else xr.zeros_like(vector_norms(fixed))
    found: xr.DataArray = xr.apply_ufunc(
        _lengths,
        s,
        unit_gram(fixed),
        inner,
        kwargs={"constant": float((total**2).sum()) if bias else 0.0},
        input_core_dims=[["head"], ["head", "other"], ["head"]],
        dask="parallelized",
        output_dtypes=[s.dtype],
    )
    return found.transpose("sample", "unit")


def _lengths(s: Array, gram: Array, inner: Array, *, constant: float) -> Array:
    """Return √(sᵀGs + 2sᵀb + c) (N, C) of s (N, C, H), G (C, H, H) and b (C, H), a few units at a time."""
    out = np.empty(s.shape[:2], s.dtype)
    step = max(1, _AT_ONCE // max(1, s.shape[0] * s.shape[2]))
    for start in range(0, s.shape[1], step):
        part = slice(start, start + step)
        rows = np.ascontiguousarray(s[:, part].transpose(1, 0, 2), dtype=np.float64)
        squares = ((rows @ gram[part] + 2 * inner[part, None]) * rows).sum(axis=-1) + constant
        out[:, part] = np.sqrt(np.maximum(squares, 0)).T
    return out


def _against_bias(fixed: xr.Dataset, dtype: np.dtype[Any]) -> tuple[xr.DataArray, xr.DataArray]:
    """Return ⟨u, β⟩ (unit, head) and ‖β‖ (head,)."""
    constant = fixed["constant"].to_numpy().astype(np.float64)
    back = np.einsum("ohd,ho->hd", fixed["output"].to_numpy(), constant)
    inner = np.einsum("hd,hdc->ch", back, fixed["value"].to_numpy(), optimize=True)
    lengths = np.linalg.norm(constant, axis=1)
    return named(inner.astype(dtype), ("unit", "head"), fixed), named(lengths.astype(dtype), ("head",), fixed)
