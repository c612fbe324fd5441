"""The scalar of every pair at every image, from the last maps of the network: all that has to be measured."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import ModelMismatchError, NonFiniteError, SchemaError
from neurolens.pairs.pool import Pool, as_array, checked_maps, image_embeddings, softmax, tokens_of
from neurolens.pairs.writing import factors, write

Array = npt.NDArray[Any]
PARTS = ("patch", "mean_token", "positional")
TOLERANCE = 1e-5


def scalars(
    pool: Pool,
    maps: Any,
    *,
    embedding: Any = None,
    split: bool = False,
    dtype: Literal["float32", "float64", "float16"] | None = None,
    batch: int = 16,
    check_every: int = 1,
    tolerance: float = TOLERANCE,
) -> xr.Dataset:
    """Measure s = Σ_m a(m)·x(m) of every unit and head: the attention of the head over what the unit is at the tokens.

    Parameters
    ----------
    pool
        Of maps of this size; see `resampled`.
    maps : (sample, C, h, w)
        Of the last block, as they go into the pool: an array, a tensor of any device, or an xarray, whose ``sample``
        coordinate is kept.
    embedding : (sample, O), optional
        What the network put out, not normalised: all images are checked against it. By default the pool is run in its
        textbook form, which takes about ten times as long as the scalars.
    split
        Also keep the parts that add up to s: of the patches, of token 0 and of the positions.
    dtype
        Of the scalars kept; float16 halves them at 5e-4 of each. By default float32, or float64 where a pool and maps
        are of it.
    batch
        Images at once. Beyond the result, and the textbook form, no more than batch·C·(2·T + 4·H) numbers are held, and
        batch·C·(T + 3·H) more for ``split``: with 16 images of RN50x16 95 MB, and 57 MB more.
    check_every
        Without ``embedding``, every so many-th image is checked, the first one always.
    tolerance
        Of the residual, of a pool in float32.

    Returns
    -------
    Dataset
        ``scalar`` (sample, unit, head), laid out with the units of a head beside each other, in the unit of the maps.
        ``embedding`` (sample, feature): Σ (s·u + β) over all pairs. ``completeness`` (sample,): its distance to the
        pool's own, over the length of that, from the scalars before they are rounded to ``dtype``; NaN where it was not
        checked. ``attention`` (sample, head, token), adding up to 1. With ``split``: ``patch``, ``mean_token``,
        ``positional`` like ``scalar``; ``mean_token`` is that of the learned token where the pool has one.

    Raises
    ------
    SchemaError
        If the maps or embeddings are not those of the pool, or an option is no number that it can be.
    ModelMismatchError
        If the contributions do not add up to the embedding: it is another pool's, or it was normalised.
    NonFiniteError
        If a map has NaN or infinity, or a scalar is too large for float16.

    References
    ----------
    Bu and Gandelsman 2025, arXiv 2509.19943, with token 0 and the positions inside s, as their code has it: only
    then do the contributions add up to the embedding.
    """
    given = checked_maps(pool, maps)
    working = np.result_type(pool.dtype, given.dtype)
    kept = np.dtype(dtype or working)
    _check_options(kept, batch, check_every, tolerance)
    count = len(given)
    reference = None if embedding is None else _checked_embedding(pool, embedding, count)
    names = ("scalar", *(PARTS if split else ()))
    cubes = {name: np.empty((count, pool.heads, pool.units), kept) for name in names}
    total = np.empty((count, pool.features), working)
    attention = np.empty((count, pool.heads, pool.tokens), working)
    residual = np.full(count, np.nan)
    fixed = factors(pool)
    value, output, constant = (fixed[name].to_numpy() for name in ("value", "output", "constant"))
    bias = constant.sum(axis=0, dtype=np.float64) * pool.units
    for start in range(0, count, batch):
        part = slice(start, min(start + batch, count))
        x = tokens_of(pool, given[part])
        if not np.isfinite(x).all():
            image = _called(maps, start + int(np.flatnonzero(~np.isfinite(x).all(axis=(1, 2)))[0]))
            raise NonFiniteError(f"the maps of image {image} have NaN or infinity; see which layer put it out first")
        attention[part] = attend(pool, x)
        s = np.matmul(attention[part], x)
        total[part] = write(s.transpose(0, 2, 1), value, output) + bias
        rows = np.arange(part.start, part.stop)
        rows = rows if reference is not None else rows[rows % check_every == 0]
        exact = image_embeddings(pool, given[rows]) if reference is None else reference[rows]
        residual[rows] = distance(total[rows], exact)
        _require_complete(residual[part], tolerance, start, total[rows], exact, maps)
        with np.errstate(over="ignore"):
            cubes["scalar"][part] = s
            if split:
                for name, values in _parts(pool, attention[part], given[part]).items():
                    cubes[name][part] = values
        for name in names:
            if kept == np.float16 and not np.isfinite(cubes[name][part]).all():
                raise NonFiniteError(f"{name} is beyond 65504, the end of float16; keep it as float32")
    return _labelled(pool, cubes, {"embedding": total, "completeness": residual, "attention": attention}, maps)


def attend(pool: Pool, x: Array) -> Array:
    """Return the attention (B, H, T) of token 0 to tokens (B, T, C), with the keys folded into the query.

    b_k shifts all logits of a head alike, and is left out.
    """
    query = (x[:, 0] @ pool.W_q.T + pool.b_q) / x.dtype.type(np.sqrt(pool.head_dim))
    query = query.reshape(len(x), pool.heads, pool.head_dim).transpose(1, 0, 2)
    folded = np.matmul(query, pool.W_k.reshape(pool.heads, pool.head_dim, pool.units))
    folded = np.ascontiguousarray(folded.transpose(1, 0, 2))
    return softmax(np.matmul(folded, x.transpose(0, 2, 1)))


def distance(found: Array, exact: Array) -> Array:
    """Return ‖found − exact‖/‖exact‖ of rows in float64; where ``exact`` is 0, the length of what was found."""
    size = np.linalg.norm(exact.astype(np.float64), axis=1)
    return np.asarray(np.linalg.norm(found.astype(np.float64) - exact, axis=1) / np.where(size > 0, size, 1.0))


def _parts(pool: Pool, attention: Array, maps: Array) -> dict[str, Array]:
    """Return what patches, token 0 and positions are in the scalars, each (B, H, C)."""
    z = maps.reshape(len(maps), pool.units, -1).transpose(0, 2, 1)
    first = z.mean(axis=1) if pool.class_token is None else np.broadcast_to(pool.class_token, (len(z), pool.units))
    return {
        "patch": np.matmul(attention[:, :, 1:], z),
        "mean_token": attention[:, :, :1] * first[:, None],
        "positional": attention @ pool.positions,
    }


def _check_options(kept: np.dtype[Any], batch: int, check_every: int, tolerance: float) -> None:
    if kept not in (np.float16, np.float32, np.float64):
        raise SchemaError(f"dtype={kept.name!r} is no dtype of scalars; pass 'float32', 'float64' or 'float16'")
    if batch < 1 or check_every < 1:
        raise SchemaError(f"batch={batch} and check_every={check_every}: both count images, from 1 on")
    if not 0 < tolerance < 1:
        raise SchemaError(f"tolerance={tolerance} is no share of an embedding; pass {TOLERANCE}, or a little more")


def _checked_embedding(pool: Pool, embedding: Any, count: int) -> Array:
    found = as_array(embedding)
    if found.shape != (count, pool.features):
        raise SchemaError(
            f"found embeddings of shape {found.shape}, and {(count, pool.features)} was needed: one per image, as the "
            "pool puts them out"
        )
    return found


def _called(maps: Any, image: int) -> str:
    """Return the name of an image: its number, where it has no other."""
    named = isinstance(maps, xr.DataArray) and maps.dims[0] == "sample" and "sample" in maps.coords
    return repr(str(maps["sample"].values[image])) if named else str(image)


def _require_complete(residual: Array, tolerance: float, start: int, total: Array, exact: Array, maps: Any) -> None:
    worst = int(np.argmax(np.nan_to_num(residual, nan=-1.0))) if len(residual) else 0
    if not len(residual) or np.isnan(residual[worst]) or residual[worst] < tolerance:
        if np.isfinite(exact).all():
            return
        raise NonFiniteError(
            f"the embeddings of images from {_called(maps, start)} on have NaN or infinity; read the weights again"
        )
    lengths = np.linalg.norm(exact, axis=1)
    alike = np.allclose(lengths, 1, atol=1e-3) and not np.allclose(np.linalg.norm(total, axis=1), 1, atol=1e-2)
    mend = (
        "they have length 1: give them before they are normalised"
        if alike
        else "give the maps and embeddings of the network whose pool this is, run in float32 and with these images"
    )
    raise ModelMismatchError(
        f"the contributions at image {_called(maps, start + worst)} add up to something else than its embedding: the "
        f"difference is {residual[worst]:.1e} of it, and less than {tolerance:.0e} was needed; {mend}"
    )


def _labelled(pool: Pool, cubes: dict[str, Array], others: dict[str, Array], maps: Any) -> xr.Dataset:
    dims = {"embedding": ("sample", "feature"), "completeness": ("sample",), "attention": ("sample", "head", "token")}
    attrs = {
        "scalar": {"long_name": "attention of a head over a unit's tokens", "units": "activation"},
        "patch": {"long_name": "part of the scalar from the patches", "units": "activation"},
        "mean_token": {"long_name": "part of the scalar from token 0", "units": "activation"},
        "positional": {"long_name": "part of the scalar from the positions", "units": "activation"},
        "embedding": {"long_name": "contributions of all pairs, added up", "units": "embedding"},
        "completeness": {"long_name": "their distance to the embedding, over its length", "units": "1"},
        "attention": {"long_name": "attention of token 0", "units": "1"},
    }
    out = xr.Dataset(attrs={"grid": list(pool.grid), "token": "mean" if pool.class_token is None else "learned"})
    for name, values in cubes.items():
        out[name] = (("sample", "unit", "head"), values.transpose(0, 2, 1), attrs[name])
    for name, values in others.items():
        out[name] = (dims[name], values, attrs[name])
    if isinstance(maps, xr.DataArray):
        first = maps.dims[0]
        named = {n: c.variable for n, c in maps.coords.items() if c.dims == (first,) and first == "sample"}
        out = out.assign_coords(named)
    return out
