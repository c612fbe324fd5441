"""What each patch of an image says of each class: from pairs, from value features, from self-self attention."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import SchemaError, nearest
from neurolens.pairs.measure import attend
from neurolens.pairs.pool import Pool, checked_maps, softmax, tokens_of
from neurolens.pairs.retrieval import without_sink
from neurolens.pairs.writing import directed

Array = npt.NDArray[Any]
DIMS = ("sample", "phrase", "y", "x")
ATTENTIONS = ("q", "k", "v")


def head_similarity(
    pool: Pool, maps: npt.ArrayLike, texts: Any, *, bias: bool = True, repair: bool = True
) -> xr.DataArray:
    """Return the cosine of each class with what each head writes at each patch; through the heads' dims. **Eager**.

    A head writes c(m) = a(m)·Wo_h v(m) + b_o/(T·H) at patch m. Without the bias the attention a(m) is a positive scale,
    which no cosine sees: what is left are the value features of each head.

    Parameters
    ----------
    pool
        Of maps of this size; see `resampled`.
    maps : (sample, C, h, w)
        Of the last block, as they go into the pool.
    texts : (phrase, feature)
        Embeddings of the classes.
    bias
        With the share of the output bias, as the reference does. Without it no attention is computed.
    repair
        What is written at the last patch, an attention sink, is the mean of what is at its west, north and north-west.

    Returns
    -------
    array (sample, phrase, head, y, x), from −1 to 1
        0 where a head writes nothing.

    Raises
    ------
    SchemaError
        If the maps are not those of the pool, or the texts are of another width.

    References
    ----------
    Bu and Gandelsman 2025, arXiv 2509.19943, section 5.
    """
    given = checked_maps(pool, maps)
    vectors = _vectors(pool, texts)
    toward, triangles = _heads(pool, vectors.to_numpy(), bias)
    patches = pool.tokens - 1
    working = np.result_type(pool.dtype, given.dtype, toward.dtype)
    out = np.empty((len(given), pool.heads, len(vectors), patches), working)
    for i in range(len(given)):
        x = tokens_of(pool, given[i : i + 1])
        inner = (pool.W_v @ x[0, 1:].T + pool.b_v[:, None]).reshape(pool.heads, pool.head_dim, patches)
        if bias:
            inner = inner * attend(pool, x)[0, :, None, 1:]
        if repair:
            inner = _repaired(inner, pool.grid)
        if bias:
            inner = np.concatenate([inner, np.ones((pool.heads, 1, patches), inner.dtype)], axis=1)
        length = np.linalg.norm(np.matmul(triangles, inner), axis=1)
        out[i] = np.matmul(toward, inner) / np.where(length > 0, length, 1)[:, None]
    values = np.clip(out, -1, 1).reshape(*out.shape[:3], *pool.grid).swapaxes(1, 2)
    found = xr.DataArray(values, dims=("sample", "phrase", "head", "y", "x"), coords=_named(vectors), name="similarity")
    return found.assign_attrs(long_name="cosine of a class and what a head writes at a patch", units="1")


def pair_logits(
    similarity: xr.DataArray, maps: npt.ArrayLike, pairs: xr.DataArray, *, repair: bool = True
) -> xr.DataArray:
    """Return the mean over the pairs of each class of activation times similarity, at each patch. **Eager**.

    Parameters
    ----------
    similarity : (sample, phrase, head, y, x)
        Of `head_similarity`.
    maps : (sample, C, h, w)
        The same maps: the activations.
    pairs : bool, (phrase, unit, head)
        Of `class_pairs`.
    repair
        The activations of the last patch are the mean of those at its west, north and north-west.

    Returns
    -------
    array (sample, phrase, y, x), in the unit of the activation

    Raises
    ------
    SchemaError
        If they do not fit each other, or a class has no pair.

    Notes
    -----
    (1/k) Σ_h sim(h, m) · (Σ_n M[h, n] z^n(m)): activations are summed over the units of a head first, so that no array
    over pairs and patches is made.
    """
    if set(similarity.dims) != {"sample", "phrase", "head", "y", "x"}:
        raise SchemaError(f"found similarities over {similarity.dims}; give head_similarity(pool, maps, texts)")
    given, mask = np.asarray(maps), _checked_pairs(similarity, pairs)
    sim = similarity.transpose("phrase", "head", "sample", "y", "x").to_numpy()
    wanted = (sim.shape[2], mask.shape[2], *sim.shape[3:])
    if given.shape != wanted:
        raise SchemaError(f"found maps of shape {given.shape}, and {wanted} was needed: the maps of the similarities")
    working = np.result_type(sim.dtype, given.dtype, np.float32)
    z = without_sink(given) if repair else given
    z = np.ascontiguousarray(z.astype(working, copy=False).swapaxes(0, 1)).reshape(mask.shape[2], -1)
    out = np.empty((len(mask), *wanted[:1], *wanted[2:]), working)
    for phrase, (keep, cosines) in enumerate(zip(mask, sim, strict=True)):
        sums = (keep.astype(working) @ z).reshape(cosines.shape)  # (head, sample, y, x)
        out[phrase] = (sums * cosines).sum(axis=0) / np.count_nonzero(keep)
    coords = {name: c.variable for name, c in similarity.coords.items() if set(c.dims) <= set(DIMS)}
    found = xr.DataArray(out.swapaxes(0, 1), dims=DIMS, coords=coords, name="logit")
    return found.assign_attrs(long_name="activation times similarity, mean over pairs", units="activation")


def value_logits(
    pool: Pool,
    maps: npt.ArrayLike,
    texts: Any,
    *,
    attention: Sequence[Literal["q", "k", "v"]] = (),
    positions: bool = True,
    repair: bool = False,
) -> xr.DataArray:
    """Return the cosine of each class with each patch where the pool's attention is left out: baselines. **Eager**.

    Parameters
    ----------
    pool
        Of maps of this size; see `resampled`.
    maps : (sample, C, h, w)
        Of the last block.
    texts : (phrase, feature)
        Embeddings of the classes.
    attention
        None: the values of each patch alone, as MaskCLIP. Else patches attend to tokens like themselves:
        softmax(q·q/√D) for ``("q",)``, and the sum of several, as ``("q", "k")`` in SCLIP and in the reference.
    positions
        Values with the positions, as the reference has them; MaskCLIP takes them without in its ResNets.
    repair
        Mend the last patch, as for pairs.

    Returns
    -------
    array (sample, phrase, y, x), from −1 to 1
        0 where nothing is written.

    Raises
    ------
    SchemaError
        If the maps are not those of the pool, the texts are of another width, or an attention is unknown.

    References
    ----------
    Zhou, Loy and Dai 2022, "Extract Free Dense Labels from CLIP" (MaskCLIP); Wang, Mei and Yuille 2024, "SCLIP".
    """
    for name in attention:
        if name not in ATTENTIONS:
            raise SchemaError(f"attention {name!r} is unknown; {nearest(str(name), ATTENTIONS)}")
    given = checked_maps(pool, maps)
    vectors = _vectors(pool, texts)
    rows = vectors.to_numpy()
    out = np.empty((len(given), len(rows), pool.tokens - 1), np.result_type(pool.dtype, given.dtype, rows.dtype))
    for i in range(len(given)):
        x = tokens_of(pool, given[i : i + 1])[0]
        if not positions:
            x = x - pool.positions
        inner = _mixed(pool, x, attention)[..., 1:]
        if repair:
            inner = _repaired(inner, pool.grid)
        feature = pool.W_o @ inner.reshape(-1, inner.shape[-1]) + pool.b_o[:, None]
        length = np.linalg.norm(feature, axis=0)
        out[i] = rows @ (feature / np.where(length > 0, length, 1))
    values = np.clip(out, -1, 1).reshape(*out.shape[:2], *pool.grid)
    found = xr.DataArray(values, dims=DIMS, coords=_named(vectors), name="logit")
    return found.assign_attrs(long_name="cosine of a class and a patch", units="1")


def _heads(pool: Pool, vectors: Array, bias: bool) -> tuple[Array, Array]:
    """Return ⟨t, c⟩ (head, phrase, d) of the columns c of each head, and R (head, row, d) of their QR.

    Lengths after R are those after the columns. With the bias, its share at a token is a last column.
    """
    share = (pool.b_o / (pool.tokens * pool.heads))[:, None]
    toward, triangles = [], []
    for head in range(pool.heads):
        columns = pool.W_o[:, head * pool.head_dim : (head + 1) * pool.head_dim]
        if bias:
            columns = np.concatenate([columns, share.astype(pool.dtype)], axis=1)
        toward.append(vectors @ columns)
        triangles.append(np.linalg.qr(columns, mode="r"))
    return np.stack(toward), np.stack(triangles)


def _mixed(pool: Pool, x: Array, attention: Sequence[str]) -> Array:
    """Return values (head, d, token) of tokens x (token, unit), mixed by the attentions of tokens to their like."""
    split = (pool.heads, pool.head_dim, len(x))
    made = {
        name: (weight @ x.T + bias[:, None]).reshape(split)
        for name, weight, bias in (
            ("q", pool.W_q, pool.b_q),
            ("k", pool.W_k, pool.b_k),
            ("v", pool.W_v, pool.b_v),
        )
        if name == "v" or name in attention
    }
    if not attention:
        return made["v"]
    root = x.dtype.type(np.sqrt(pool.head_dim))
    weights = sum(softmax(np.matmul(made[name].swapaxes(1, 2), made[name]) / root) for name in attention)
    mixed: Array = np.matmul(made["v"], np.swapaxes(weights, 1, 2))
    return mixed


def _repaired(inner: Array, grid: tuple[int, int]) -> Array:
    return without_sink(inner.reshape(*inner.shape[:2], *grid)).reshape(inner.shape)


def _vectors(pool: Pool, texts: Any) -> xr.DataArray:
    """Return texts (phrase, feature) of length 1."""
    sizes = xr.Dataset(coords={"feature": np.arange(pool.features)})
    vectors = directed(texts, sizes)
    if set(vectors.dims) != {"phrase", "feature"}:
        raise SchemaError(f"found texts over {dict(vectors.sizes)}, and (phrase, feature) was needed, a row per class")
    vectors = vectors.transpose("phrase", "feature").astype(np.result_type(vectors.dtype, np.float32))
    length = np.sqrt((vectors**2).sum("feature"))
    if not (np.isfinite(length) & (length > 0)).all():
        raise SchemaError("an embedding of a class is 0, NaN or infinite and has no direction; embed that phrase again")
    return vectors / length


def _named(vectors: xr.DataArray) -> dict[str, Any]:
    return {"phrase": vectors["phrase"].variable} if "phrase" in vectors.coords else {}


def _checked_pairs(similarity: xr.DataArray, pairs: xr.DataArray) -> Array:
    """Return the mask (phrase, head, unit), or say what does not fit."""
    if not isinstance(pairs, xr.DataArray) or pairs.dtype != bool or set(pairs.dims) != {"phrase", "unit", "head"}:
        found = f"{pairs.dtype} over {pairs.dims}" if isinstance(pairs, xr.DataArray) else type(pairs).__name__
        raise SchemaError(f"found pairs of {found}, and bool over (phrase, unit, head) was needed: class_pairs(…)")
    for dim in ("phrase", "head"):
        if pairs.sizes[dim] != similarity.sizes[dim]:
            raise SchemaError(
                f"found pairs with {pairs.sizes[dim]} along {dim!r}, and similarities {similarity.sizes[dim]}; give "
                "those of the same classes and pool"
            )
    shared = [d for d in ("phrase", "head") if d in pairs.indexes and d in similarity.indexes]
    for dim in shared:
        if not pairs.indexes[dim].equals(similarity.indexes[dim]):
            raise SchemaError(f"pairs and similarities name other ones along {dim!r}; give the same, in one order")
    mask: Array = pairs.transpose("phrase", "head", "unit").to_numpy()
    empty = np.flatnonzero(~mask.any(axis=(1, 2)))
    if empty.size:
        name = pairs["phrase"].to_numpy()[empty[0]].item() if "phrase" in pairs.coords else int(empty[0])
        raise SchemaError(f"class {name!r} has no pair; choose k of 1 or more for each with class_pairs(…)")
    return mask
