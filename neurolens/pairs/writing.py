"""Scalar times fixed vector: the fixed part of what pairs write, for any path that writes linearly.

A pair of a unit n and a head h contributes r = s·u + β to an embedding: s is a number per image, u = Wo_h Wv_h[:, n]
and β are fixed. Of attention pools, `factors` alone knows: another path has a Dataset of its own, as `DIMS` says. The
vectors of all pairs, u (unit, head, feature), are never built whole: they go through the dims of a head, or are lazy.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import SchemaError

if TYPE_CHECKING:
    from neurolens.pairs.pool import Pool

Array = npt.NDArray[Any]
DIMS = {"value": ("head", "d", "unit"), "output": ("feature", "head", "d"), "constant": ("head", "feature")}
PAIRED = ("sample", "unit", "head")
BLOCK = 256  # samples that are copied at once
EAGER = 2**21  # bytes of all vectors that are built right away: less work than a graph of dask
CHUNK = 2**24  # bytes of vectors that are built at once, or those of a head
ROUNDING = 8
"""So many units in the last place are nothing: of a vector against its matrices, of scalars against the largest."""


def factors(pool: "Pool") -> xr.Dataset:
    """Return the fixed part of every pair of an attention pool.

    Parameters
    ----------
    pool
        Its matrices.

    Returns
    -------
    Dataset
        ``value`` (head, d, unit): rows of W_v; ``output`` (feature, head, d): columns of W_o; ``constant`` (head,
        feature): β = Wo_h b_v / C + b_o / (C·H), the share of the biases that each pair of the head gets, so that the
        contributions of all pairs add up to the embedding.

    References
    ----------
    Bu and Gandelsman 2025, arXiv 2509.19943; biases are shared out as their code does.
    """
    value = pool.W_v.reshape(pool.heads, pool.head_dim, pool.units)
    output = pool.W_o.reshape(pool.features, pool.heads, pool.head_dim)
    bias = pool.b_v.reshape(pool.heads, pool.head_dim)
    constant = np.einsum("ohd,hd->ho", output, bias) / pool.units + pool.b_o / (pool.units * pool.heads)
    return xr.Dataset(
        {
            "value": (DIMS["value"], value, {"long_name": "from a unit to the dims of a head", "units": "1"}),
            "output": (DIMS["output"], output, {"long_name": "from the dims of a head to the embedding", "units": "1"}),
            "constant": (
                DIMS["constant"],
                constant.astype(pool.dtype),
                {"long_name": "share of the biases of each pair of a head", "units": "embedding"},
            ),
        }
    )


def required(factors: xr.Dataset) -> xr.Dataset:
    """Check that a Dataset holds factors, and return these with their dims in order.

    Raises
    ------
    SchemaError
        If a variable or a dim is missing.
    """
    if not isinstance(factors, xr.Dataset):
        raise SchemaError(f"found {type(factors).__name__}, and a Dataset of factors was needed: factors(pool)")
    for name, dims in DIMS.items():
        if name not in factors:
            raise SchemaError(f"found no {name!r} among {sorted(map(str, factors))}; give factors(pool)")
        if set(factors[name].dims) != set(dims):
            raise SchemaError(
                f"{name!r} has dims {factors[name].dims}, and {dims} were needed; select by lists, as in "
                "factors(pool).isel(unit=[624], head=[21])"
            )
        if any(len(sizes) > 1 for sizes in factors[name].chunks or ()):
            factors = factors.assign({name: factors[name].chunk(-1)})  # small beside what they are multiplied with
    if [*factors] == [*DIMS] and all(factors[name].dims == dims for name, dims in DIMS.items()):
        return factors
    return factors[list(DIMS)].assign({name: factors[name].transpose(*dims) for name, dims in DIMS.items()})


def matched(scalar: Any, factors: xr.Dataset, *, dims: Sequence[str] = PAIRED) -> tuple[xr.DataArray, xr.Dataset]:
    """Return what is known of pairs, and the factors of the same pairs, or say what does not fit.

    Parameters
    ----------
    scalar : array over ``dims``, or a Dataset that holds it as ``scalar``
    factors
        As `factors` gives them.
    dims
        Those needed, in the order to be returned.

    Raises
    ------
    SchemaError
        If a dim is missing, they have other numbers of units or heads or name other ones, or there is no sample.
    """
    fixed = required(factors)
    if isinstance(scalar, xr.Dataset) and "scalar" in scalar:
        scalar = scalar["scalar"]
    if not isinstance(scalar, xr.DataArray) or set(scalar.dims) != set(dims):
        found = scalar.dims if isinstance(scalar, xr.DataArray) else type(scalar).__name__
        more = ""
        if isinstance(scalar, xr.Dataset):
            found = f"a Dataset without 'scalar' but {sorted(map(str, scalar))[:4]}"
            more = "; measure the scalars: `neurolens run STUDY --only pairs`, with [pairs] in the study"
        raise SchemaError(f"found {found}, and an array over {tuple(dims)} was needed, of one checkpoint{more}")
    for dim in ("unit", "head"):
        if dim not in dims:
            continue
        if scalar.sizes[dim] != fixed.sizes[dim]:
            raise SchemaError(
                f"found {scalar.sizes[dim]} along {dim!r}, and factors of {fixed.sizes[dim]}; select the same pairs in "
                "both, and give the factors of the pool that was measured"
            )
        if dim in scalar.indexes and dim in fixed.indexes and not scalar.indexes[dim].equals(fixed.indexes[dim]):
            raise SchemaError(f"scalars and factors name other pairs along {dim!r}; select the same in both")
    if "sample" in dims and not scalar.sizes["sample"]:
        raise SchemaError("found no sample, and at least one was needed; measure images first")
    return scalar.transpose(*dims), fixed


def directed(texts: Any, fixed: xr.Dataset) -> xr.DataArray:
    """Return vectors (…, feature) of the embedding, or say what does not fit; those of numpy are (phrase, feature).

    Raises
    ------
    SchemaError
        If there is none, or they have another width than the embedding.
    """
    if not isinstance(texts, xr.DataArray):
        plain = np.asarray(texts)
        texts = xr.DataArray(plain, dims=("phrase", "feature")[2 - plain.ndim :] if 1 <= plain.ndim <= 2 else None)
    found: xr.DataArray = texts
    if not found.size:
        raise SchemaError("found no phrase, and at least one was needed; the list of phrases is empty")
    if "feature" not in found.dims or found.sizes["feature"] != fixed.sizes["feature"]:
        raise SchemaError(
            f"found vectors {dict(found.sizes)}, and {fixed.sizes['feature']} along 'feature' were needed, as wide as "
            "the embedding of the pool; take the text encoder of the same network"
        )
    return found if found.chunks is None else found.chunk({"feature": -1})


def vector_norms(factors: xr.Dataset) -> xr.DataArray:
    """Return the length of the fixed vector of every pair, ‖u‖, without building it. **Eager**.

    Parameters
    ----------
    factors
        As `factors` gives them.

    Returns
    -------
    float64, (unit, head), in the unit of the embedding per unit of the activation
        0 where it is no more than rounding of its matrices: the pair is dead, it writes nothing at any image.

    Raises
    ------
    SchemaError
        If ``factors`` are none.
    """
    fixed = required(factors)
    eps = np.finfo(fixed["value"].dtype).eps
    value, output = (fixed[name].to_numpy().astype(np.float64) for name in ("value", "output"))
    norms = np.linalg.norm(_triangles(output) @ value, axis=1)
    scale = np.linalg.norm(value, axis=1) * np.linalg.norm(output, axis=(0, 2))[:, None]
    norms[norms <= ROUNDING * eps * scale] = 0
    array = named(norms.T, ("unit", "head"), fixed)
    return array.rename("vector_norm").assign_attrs(long_name="length of the fixed vector of a pair", units="embedding")


def along(factors: xr.Dataset, texts: Any) -> xr.DataArray:
    """Return ⟨u, t⟩ of every pair and every vector, through the dims of the heads.

    Parameters
    ----------
    factors
        As `factors` gives them.
    texts : (…, feature)
        Vectors of the embedding, as a phrase's.

    Returns
    -------
    array (…, unit, head)

    Raises
    ------
    SchemaError
        If a vector has another width than the embedding, or there is none.
    """
    fixed = required(factors)
    vectors = directed(texts, fixed)
    if {"unit", "head"} & set(vectors.dims):
        raise SchemaError(f"found vectors over {vectors.dims}, and the same ones for all pairs were needed")
    found: xr.DataArray = xr.apply_ufunc(
        _along,
        vectors,
        fixed["value"],
        fixed["output"],
        input_core_dims=[["feature"], list(DIMS["value"]), list(DIMS["output"])],
        output_core_dims=[["unit", "head"]],
        dask="parallelized",
        output_dtypes=[np.result_type(vectors.dtype, fixed["value"].dtype)],
    )
    return found.rename("along")


def written(scalar: xr.DataArray, fixed: xr.Dataset) -> xr.DataArray:
    """Return Σ s·u (…, feature) over all pairs of scalars (…, unit, head); lazy if they are."""
    if scalar.chunks is not None:
        scalar = scalar.chunk({"unit": -1, "head": -1, "sample": "auto"} if "sample" in scalar.dims else -1)
    found: xr.DataArray = xr.apply_ufunc(
        write,
        scalar,
        fixed["value"],
        fixed["output"],
        input_core_dims=[["unit", "head"], list(DIMS["value"]), list(DIMS["output"])],
        output_core_dims=[["feature"]],
        dask="parallelized",
        output_dtypes=[np.result_type(scalar.dtype, fixed["value"].dtype)],
    )
    return found


def write(scalar: Array, value: Array, output: Array) -> Array:
    """Return Σ s·u (…, O) of scalars (…, C, H): into the dims of the heads, then out of them."""
    lead, (units, heads) = scalar.shape[:-2], scalar.shape[-2:]
    rows = scalar.reshape(-1, units, heads)
    out = np.empty((len(rows), output.shape[0]), np.result_type(scalar.dtype, value.dtype))
    for start in range(0, len(rows), BLOCK):
        block = np.ascontiguousarray(rows[start : start + BLOCK].transpose(2, 0, 1), dtype=out.dtype)
        inner = np.matmul(block, value.transpose(0, 2, 1))  # (head, row, d)
        inner = inner.transpose(1, 0, 2).reshape(inner.shape[1], -1)
        out[start : start + BLOCK] = inner @ output.reshape(output.shape[0], -1).T
    return out.reshape(*lead, output.shape[0])


def pair_vectors(factors: xr.Dataset) -> xr.DataArray:
    """Return the fixed vectors themselves; lazy, a few heads at a time, where they are many: select pairs first then.

    Parameters
    ----------
    factors
        As `factors` gives them.

    Returns
    -------
    array (unit, head, feature), of dask where it takes more than 2 MiB or the factors are lazy

    Raises
    ------
    SchemaError
        If ``factors`` are none.
    """
    fixed = required(factors)
    size = fixed.sizes["unit"] * fixed.sizes["feature"] * fixed["value"].dtype.itemsize
    if size * fixed.sizes["head"] > EAGER or fixed["value"].chunks is not None or fixed["output"].chunks is not None:
        fixed = fixed.chunk({"head": max(1, CHUNK // max(1, size))})
    lazy: xr.DataArray = xr.apply_ufunc(
        lambda value, output: np.matmul(np.swapaxes(value, -1, -2), np.swapaxes(output, -1, -2)),
        fixed["value"],
        fixed["output"],
        input_core_dims=[["d", "unit"], ["feature", "d"]],
        output_core_dims=[["unit", "feature"]],
        dask="parallelized",
        output_dtypes=[fixed["value"].dtype],
    )
    return lazy.transpose("unit", "head", "feature")


def by_unit(fixed: xr.Dataset, units: int = 64) -> Iterator[tuple[slice, Array]]:
    """Yield the vectors (unit, head, feature) of a few units after another, float64."""
    value = fixed["value"].to_numpy().astype(np.float64)
    output = fixed["output"].to_numpy().astype(np.float64).transpose(1, 2, 0)  # (head, d, feature)
    for start in range(0, value.shape[2], units):
        part = slice(start, min(start + units, value.shape[2]))
        yield part, np.matmul(value[:, :, part].transpose(0, 2, 1), output).transpose(1, 0, 2)


def scalar_mean(scalar: xr.DataArray, mean: xr.DataArray | None = None) -> xr.DataArray:
    """Return s̄ (unit, head) in float64: over the samples, or the one given, checked."""
    if mean is None:
        return scalar.mean("sample", dtype=np.float64, skipna=False).transpose("unit", "head")
    if not isinstance(mean, xr.DataArray) or dict(mean.sizes) != {d: scalar.sizes[d] for d in ("unit", "head")}:
        found = dict(mean.sizes) if isinstance(mean, xr.DataArray) else type(mean).__name__
        raise SchemaError(
            f"found a mean over {found}, and one of {scalar.sizes['unit']} units by {scalar.sizes['head']} heads was "
            "needed: that of these pairs over other images"
        )
    for dim in ("unit", "head"):
        if dim in mean.indexes and dim in scalar.indexes and not mean.indexes[dim].equals(scalar.indexes[dim]):
            raise SchemaError(f"mean and scalars name other pairs along {dim!r}; select the same in both")
    return mean.transpose("unit", "head").astype(np.float64)


def _along(vectors: Array, value: Array, output: Array) -> Array:
    lead = vectors.shape[:-1]
    inner = vectors.reshape(-1, vectors.shape[-1]) @ output.reshape(len(output), -1)  # (row, head·d)
    inner = inner.reshape(len(inner), *output.shape[1:]).transpose(1, 0, 2)
    return np.moveaxis(np.matmul(inner, value).reshape(len(value), *lead, value.shape[2]), 0, -1)


def _triangles(output: Array) -> Array:
    """Return R (head, ≤ d, d) of Wo_h = QR: lengths after R are those after Wo_h, without squares that cancel."""
    return np.stack([np.linalg.qr(output[:, h], mode="r") for h in range(output.shape[1])])


def named(values: Array, dims: tuple[str, ...], fixed: xr.Dataset) -> xr.DataArray:
    """Return an array over units and heads with the coordinates that factors have."""
    coords = {name: c.variable for name, c in fixed.coords.items() if set(c.dims) <= set(dims)}
    return xr.DataArray(values, dims=dims, coords=coords)
