"""How much of an image's embedding a phrase's pairs carry: what is compared with metadata to see a data set shift."""

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import SchemaError
from neurolens.pairs.text import text_scores, top_pairs
from neurolens.pairs.writing import matched, written

Array = npt.NDArray[Any]


def phrase_share(
    scalar: xr.DataArray | xr.Dataset,
    factors: xr.Dataset,
    texts: Any = None,
    *,
    pairs: xr.Dataset | None = None,
    k: int = 5,
    bias: bool = False,
    embedding: xr.DataArray | None = None,
) -> xr.DataArray:
    """Return the share of each image's norm that the pairs of a phrase carry: ‖Σ r‖ / ‖e‖. Lazy if the scalars are.

    Parameters
    ----------
    scalar : (sample, unit, head)
        The scalars; of all pairs of the pool, or with ``embedding``.
    factors
        Of the same pairs.
    texts : (phrase, feature), or (feature,)
        Embeddings of phrases; a phrase has the ``k`` pairs whose directions are nearest to it.
    pairs : Dataset over (…, rank), instead of texts
        ``unit`` and ``head``, as `top_pairs` gives them.
    k
        How many pairs of a phrase.
    bias
        With the shares of the biases that these pairs have, as the reference does. By default without: they are the
        same at every image, and how biases are shared out is arbitrary.
    embedding : (sample, feature), optional
        Of the same images, not normalised, as `scalars` gives it; by default the sum over all pairs.

    Returns
    -------
    array (sample, …), 0 or more
        No share of a whole: contributions may cancel, and several phrases together be above 1. It has no sign, and is
        also large where the pairs write against the phrase. NaN where the embedding is 0.

    Raises
    ------
    SchemaError
        If not just one of texts and pairs is given, there are fewer live pairs than ``k``, a pair is not among the
        scalars, or the embeddings are of other images.

    References
    ----------
    Bu and Gandelsman 2025, arXiv 2509.19943, section 6: five pairs, with ``bias=True``.
    """
    cube, fixed = matched(scalar, factors)
    if (texts is None) == (pairs is None):
        raise SchemaError("give the embeddings of phrases, or pairs=top_pairs(…); one of the two")
    if pairs is None:
        plain = fixed.drop_vars([name for name in ("unit", "head") if name in fixed.coords])
        best = top_pairs(text_scores(plain, texts), k=k)
        if best["score"].isnull().any():
            raise SchemaError(f"fewer than k={k} pairs write anything; pass a smaller k")
        at = {name: best[name] for name in ("unit", "head")}
    else:
        at = {name: _positions(cube, pairs, name) for name in ("unit", "head")}
    lead = [d for d in at["unit"].dims if d != "rank"]
    triangles = _triangles(fixed, {n: a.transpose(*lead, "rank").to_numpy() for n, a in at.items()}, bias)
    working = np.result_type(cube.dtype, fixed["value"].dtype)
    bare = {name: index.drop_vars(list(index.coords)) for name, index in at.items()}
    chosen = cube.isel(bare).drop_vars(["unit", "head"], errors="ignore").astype(working)
    weights = xr.DataArray(triangles.astype(working), dims=(*lead, "row", "rank"))
    inner = xr.dot(chosen, weights[..., : chosen.sizes["rank"]], dim="rank")
    if bias:
        inner = inner + weights[..., -1]
    share = (inner**2).sum("row") ** 0.5 / _lengths(cube, fixed, embedding, working)
    named = {d: at["unit"][d].variable for d in lead if d in at["unit"].coords}
    found: xr.DataArray = share.transpose("sample", *lead).assign_coords(named).rename("share")
    return found.assign_attrs(long_name="share of an image's norm in the pairs of a phrase", units="1")


def _positions(cube: xr.DataArray, pairs: xr.Dataset, dim: str) -> xr.DataArray:
    if dim not in pairs or "rank" not in pairs[dim].dims:
        raise SchemaError(f"found no {dim!r} over 'rank' in the pairs; give top_pairs(text_scores(…))")
    given = pairs[dim]
    if dim not in cube.indexes:
        at, labels = given.to_numpy(), range(cube.sizes[dim])
        known = np.isin(at, np.arange(len(labels)))
    else:
        at = cube.indexes[dim].get_indexer(given.to_numpy().ravel()).reshape(given.shape)
        known = at >= 0
    if not known.all():
        raise SchemaError(
            f"there is no {dim} {given.to_numpy()[~known][0].item()!r} among the {cube.sizes[dim]} of the scalars; "
            "choose pairs by the factors of the same pool"
        )
    return given.copy(data=at.astype(np.intp))


def _triangles(fixed: xr.Dataset, at: dict[str, Array], bias: bool) -> Array:
    """Return R (…, row, rank) with ‖R s‖ = ‖Σ s·u‖; with biases a last column, their sum, and ‖R (s, 1)‖."""
    value, output, constant = (fixed[name].to_numpy() for name in ("value", "output", "constant"))
    lead, rank = at["unit"].shape[:-1], at["unit"].shape[-1]
    columns = np.empty((*lead, output.shape[0], rank + bias))
    for place in np.ndindex(*lead):
        for i, (unit, head) in enumerate(zip(at["unit"][place], at["head"][place], strict=True)):
            columns[(*place, slice(None), i)] = output[:, head].astype(np.float64) @ value[head, :, unit]
        if bias:
            columns[(*place, slice(None), rank)] = constant[at["head"][place]].sum(axis=0, dtype=np.float64)
    return np.asarray(np.linalg.qr(columns, mode="r"))


def _lengths(cube: xr.DataArray, fixed: xr.Dataset, embedding: xr.DataArray | None, working: Any) -> xr.DataArray:
    """Return ‖e‖ (sample,), NaN where it is 0."""
    if embedding is None:
        offset = fixed["constant"].sum("head", dtype=np.float64) * fixed.sizes["unit"]
        embedding = written(cube.astype(working), fixed) + offset.astype(working)
    wanted = {"sample": cube.sizes["sample"], "feature": fixed.sizes["feature"]}
    if not isinstance(embedding, xr.DataArray) or dict(embedding.sizes) != wanted:
        found = dict(embedding.sizes) if isinstance(embedding, xr.DataArray) else type(embedding).__name__
        raise SchemaError(f"found embeddings {found}, and {wanted} was needed: scalars(…)['embedding'] of these images")
    index = embedding.indexes.get("sample"), cube.indexes.get("sample")
    if index[0] is not None and index[1] is not None and not index[0].equals(index[1]):
        raise SchemaError("scalars and embeddings name other samples; select the same in both, in one order")
    length = (embedding.astype(working) ** 2).sum("feature") ** 0.5
    return length.where(length > 0)
