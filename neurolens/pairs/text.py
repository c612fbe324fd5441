"""Phrases and pairs: which pairs write a phrase, what a pair writes, and which pairs made an image's logit."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import SchemaError, nearest
from neurolens.pairs.ablation import checked_mask
from neurolens.pairs.pool import as_array
from neurolens.pairs.writing import along, directed, matched, required, vector_norms, written

Array = npt.NDArray[Any]
SCALES = ("cosine", "dot")


def text_scores(
    factors: xr.Dataset,
    texts: Any,
    *,
    scale: Literal["cosine", "dot"] = "cosine",
    sign: xr.DataArray | None = None,
    norms: xr.DataArray | None = None,
) -> xr.DataArray:
    """Score every pair for every phrase, by the angle between what it writes and the phrase; through the heads' dims.

    Parameters
    ----------
    factors
        As `factors` gives them; of some pairs, select them first.
    texts : (phrase, feature), or (feature,)
        Embeddings of phrases.
    scale
        ``"cosine"``, or ``"dot"``: ⟨u, t⟩ with t of length 1, what a scalar of 1 adds to the phrase's logit.
    sign : (unit, head), optional
        Of `directions` with ``sign="majority"``, by which scores are multiplied; by default that of u.
    norms : (unit, head), optional
        Of `vector_norms`, for a cosine: computed once, a phrase then takes milliseconds.

    Returns
    -------
    array (…, unit, head)
        NaN of a cosine where u is 0, and where the sign is tied.

    Raises
    ------
    SchemaError
        If a vector has another width than the embedding, or there is none.

    Notes
    -----
    Those of phrases to which all pairs are near are alike for all; take the mean over phrases off the embeddings before
    pairs are chosen by phrase, as the reference does for segmentation.
    """
    if scale not in SCALES:
        raise SchemaError(f"scale={scale!r} is unknown; {nearest(str(scale), SCALES)}")
    fixed = required(factors)
    found = along(fixed, _unit(directed(texts, fixed)))
    if scale == "cosine":
        norms = vector_norms(fixed) if norms is None else norms
        matched(norms, fixed, dims=("unit", "head"))
        found = found / norms.where(norms > 0).astype(found.dtype)
    if sign is not None:
        matched(sign, fixed, dims=("unit", "head"))
        found = found * sign.where(sign != 0).astype(found.dtype)
    return found.transpose(..., "unit", "head").rename("score")


def top_pairs(scores: xr.DataArray, *, k: int = 10) -> xr.Dataset:
    """Return the pairs with the highest scores of each phrase. **Eager**.

    Parameters
    ----------
    scores : (…, unit, head)
        Of `text_scores`, or any others; NaN is never among the best.
    k
        How many.

    Returns
    -------
    Dataset over (…, rank)
        ``score``, decreasing, equal ones by head and unit; ``unit`` and ``head``, the positions of the pair, or its
        labels where the scores have them.

    Raises
    ------
    SchemaError
        If a dim is missing, or there are fewer scores than ``k``.
    """
    if not {"unit", "head"} <= {*scores.dims}:
        raise SchemaError(f"found scores over {scores.dims}, and 'unit' and 'head' among them were needed")
    lead = [d for d in scores.dims if d not in ("unit", "head")]
    values = scores.transpose(*lead, "head", "unit").to_numpy()
    units = values.shape[-1]
    flat = values.reshape(*values.shape[:-2], -1)
    at, best = _best(flat, k, "pairs")
    named = {d: scores[d].variable for d in lead if d in scores.coords}
    out = xr.Dataset({"score": ((*lead, "rank"), best)}, coords=named)
    for name, index in (("unit", at % units), ("head", at // units)):
        labels = scores[name].to_numpy() if name in scores.coords else np.arange(scores.sizes[name])
        out[name] = ((*lead, "rank"), labels[index])
    return out


def top_phrases(scores: xr.DataArray, *, k: int = 10) -> xr.Dataset:
    """Return the phrases with the highest scores of each pair: the other way round. **Eager**.

    Parameters
    ----------
    scores : (…, phrase, unit, head)
        Of `text_scores`, of a few pairs: ``text_scores(factors.isel(unit=[624], head=[21]), texts)``; or of
        `text_history`, over checkpoints.
    k
        How many.

    Returns
    -------
    Dataset over (…, unit, head, rank)
        ``score``, decreasing; ``phrase``, its position, or its label where the scores have them. A dead pair has NaN,
        and the phrases in their order.

    Raises
    ------
    SchemaError
        If a dim is missing, or there are fewer phrases than ``k``.
    """
    if not {"phrase", "unit", "head"} <= set(scores.dims):
        raise SchemaError(f"found scores over {scores.dims}, and ('phrase', 'unit', 'head') was needed: text_scores(…)")
    dims = (*(d for d in scores.dims if d not in ("phrase", "unit", "head")), "unit", "head", "rank")
    at, best = _best(scores.transpose(*dims[:-1], "phrase").to_numpy(), k, "phrases")
    labels = scores["phrase"].to_numpy() if "phrase" in scores.coords else np.arange(scores.sizes["phrase"])
    named = {d: scores[d].variable for d in dims[:-1] if d in scores.coords}
    return xr.Dataset({"score": (dims, best), "phrase": (dims, labels[at])}, coords=named)


def logit_attribution(
    scalar: xr.DataArray | xr.Dataset, factors: xr.Dataset, texts: Any, *, scale: Literal["cosine", "dot"] = "cosine"
) -> xr.Dataset:
    """Split the logit of each image and phrase over the pairs: s·⟨u, t⟩, and what the biases add. Lazy if s is.

    Parameters
    ----------
    scalar : (sample, unit, head)
        The scalars, all pairs of the pool; of a few images, for the result has a number per image, phrase and pair.
    factors
        Of the same pairs.
    texts : (phrase, feature), or (feature,)
        Embeddings of phrases.
    scale
        ``"cosine"``: the parts add up to the cosine of image and phrase. ``"dot"``: to ⟨e, t⟩ with t of length 1.

    Returns
    -------
    Dataset
        ``contribution`` (sample, …, unit, head); ``constant`` (sample, …), the biases of all pairs together; ``logit``
        (sample, …), the sum of all these. In the scale asked for; CLIP multiplies cosines by 100. NaN cosines where the
        embedding is 0.

    Raises
    ------
    SchemaError
        If the factors are of other pairs, or a vector is of another width.

    Notes
    -----
    This takes the attention as given: how a unit moved the attention of the heads is not attributed to it.
    """
    if scale not in SCALES:
        raise SchemaError(f"scale={scale!r} is unknown; {nearest(str(scale), SCALES)}")
    cube, fixed = matched(scalar, factors)
    vectors = _unit(directed(texts, fixed))
    working = np.result_type(cube.dtype, fixed["value"].dtype)
    offset = fixed["constant"].sum("head", dtype=np.float64) * fixed.sizes["unit"]
    whole = written(cube.astype(working), fixed) + offset.astype(working)
    constant, logit = (xr.dot(v, vectors, dim="feature").astype(working) for v in (offset, whole))
    length = (whole**2).sum("feature") ** 0.5 if scale == "cosine" else xr.ones_like(whole.isel(feature=0))
    length = length.where(length > 0)
    contribution = cube.astype(working) * along(fixed, vectors).astype(working) / length
    lead = [d for d in vectors.dims if d != "feature"]
    return xr.Dataset(
        {
            "contribution": contribution.transpose("sample", *lead, "unit", "head"),
            "constant": (constant / length).transpose("sample", *lead),
            "logit": (logit / length).transpose("sample", *lead),
        }
    )


def heat_maps(
    maps: Any,
    measured: xr.Dataset,
    factors: xr.Dataset,
    texts: Any,
    *,
    mask: xr.DataArray | None = None,
) -> xr.Dataset:
    """Split the dot product of each image and phrase over the patches of the image. **Eager**.

    Parameters
    ----------
    maps : (sample, C, h, w)
        Those that were measured, of a few images.
    measured
        From `scalars` of these maps.
    factors
        Of the same pool, all pairs.
    texts : (phrase, feature), or (feature,)
        Embeddings of phrases, brought to length 1.
    mask : bool, (unit, head), (unit,) or (head,), optional
        The pairs that count; by default all.

    Returns
    -------
    Dataset
        ``heat`` (sample, …, y, x): Σ over pairs of w(m)·z(m)·⟨u, t⟩ at patch m, where w(m) = a(m) + a(0)/L gives the
        mean token back to the patches. ``rest`` (sample, …): what is of the positions, the biases and the pairs masked
        out. Heat and rest add up to ⟨e, t⟩.

    Raises
    ------
    SchemaError
        If the maps are not those that were measured, the mask does not fit, or token 0 of the pool is learned, and so
        of no patch.
    """
    given = as_array(maps)
    missing = [name for name in ("scalar", "attention", "embedding") if name not in measured]
    if missing:
        raise SchemaError(f"found no {missing[0]!r} in what was measured; give all that scalars(…) returned")
    cube, fixed = matched(measured, factors)
    if measured.attrs.get("token") != "mean":
        raise SchemaError(
            "token 0 is learned, or not known to be the mean of the patches; give scalars(…) of such a pool"
        )
    wanted = (cube.sizes["sample"], cube.sizes["unit"], measured.sizes["token"] - 1)
    if given.ndim != 4 or (*given.shape[:2], given.shape[2] * given.shape[3]) != wanted:
        raise SchemaError(
            f"found maps of shape {given.shape}, and {wanted[0]} samples of {wanted[1]} units and {wanted[2]} patches "
            "were measured; give the same maps"
        )
    vectors = _unit(directed(texts, fixed))
    lead = [d for d in vectors.dims if d != "feature"]
    rows = vectors.transpose(*lead, "feature").to_numpy().reshape(-1, fixed.sizes["feature"])
    weight = along(fixed, rows).transpose("phrase", "head", "unit").to_numpy()
    if mask is not None:
        keep = checked_mask(mask, cube).broadcast_like(cube.isel(sample=0, drop=True)).transpose("head", "unit")
        weight = np.where(keep.to_numpy(), weight, 0).astype(weight.dtype)
    attention = measured["attention"].transpose("sample", "head", "token").to_numpy()
    shares = attention[:, :, 1:] + attention[:, :, :1] / wanted[2]
    heat = np.empty((wanted[0], len(rows), wanted[2]), np.result_type(given.dtype, weight.dtype))
    for i, image in enumerate(given.reshape(wanted)):
        per_head = weight @ image  # (phrase, head, patch)
        heat[i] = (per_head * shares[i]).sum(axis=1)
    logit = measured["embedding"].to_numpy() @ rows.T
    named = {d: vectors[d].variable for d in lead if d in vectors.coords}
    if "sample" in measured.coords:
        named["sample"] = measured["sample"].variable
    shape = (wanted[0], *(vectors.sizes[d] for d in lead))
    found = {
        "heat": (("sample", *lead, "y", "x"), heat.reshape(*shape, *given.shape[2:])),
        "rest": (("sample", *lead), (logit - heat.sum(axis=-1)).reshape(shape)),
    }
    return xr.Dataset(found, coords=named)


def _unit(vectors: xr.DataArray) -> xr.DataArray:
    """Return vectors of length 1; NaN where one is 0."""
    length = (vectors**2).sum("feature") ** 0.5
    return vectors / length.where(length > 0)


def _best(values: Array, k: int, what: str) -> tuple[Array, Array]:
    """Return places and values of the k largest along the last axis, in falling order; NaN comes last."""
    if not 1 <= k <= values.shape[-1]:
        raise SchemaError(f"k={k} of {values.shape[-1]} {what}; pass k={values.shape[-1]} or less, from 1 on")
    ranked = np.where(np.isnan(values), -np.inf, values)
    if k < values.shape[-1]:
        # Ties with the last of the best are settled by a sort of all that reach it.
        least = np.partition(ranked, values.shape[-1] - k, axis=-1)[..., -k]
        at = np.empty((*values.shape[:-1], k), np.intp)
        for place in np.ndindex(*values.shape[:-1]):
            reached = np.flatnonzero(ranked[place] >= least[place])
            at[place] = reached[np.argsort(-ranked[place][reached], kind="stable")][:k]
    else:
        at = np.argsort(-ranked, axis=-1, kind="stable")
    return at, np.take_along_axis(values, at, axis=-1)
