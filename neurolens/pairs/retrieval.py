"""The images that a unit, a pair or a phrase stands for, whether they are of one kind, and the sinks of heads."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import NonFiniteError, SchemaError
from neurolens.pairs.norms import are_totals
from neurolens.pairs.strength import strengths
from neurolens.pairs.text import text_scores, top_pairs
from neurolens.pairs.writing import matched, vector_norms

Array = npt.NDArray[Any]


def retrieve(
    scalar: xr.DataArray | xr.Dataset,
    factors: xr.Dataset,
    *,
    unit: Any = None,
    head: Any = None,
    text: Any = None,
    pairs: int = 5,
    k: int = 10,
    kind: Literal["signed", "norm"] = "signed",
    bias: bool = False,
) -> xr.Dataset:
    """Return the images at which a pair, a unit or a phrase is strongest. **Eager**.

    Parameters
    ----------
    scalar : (sample, unit, head), or a Dataset of `ScalarTotals`
        The scalars. Totals know the images of a pair, signed, and no others.
    factors
        Of the same pairs.
    unit, head : optional
        Labels, or positions where there are none. A unit alone is taken through all its heads.
    text : (feature,), optional
        The embedding of a phrase instead: the images at which the pairs nearest to it add most to its logit.
    pairs
        How many pairs of a phrase.
    k
        How many images.
    kind, bias
        Of `strengths`, for a unit or a pair: ``"signed"``, or ``"norm"`` with ``bias=True`` as the reference retrieves.

    Returns
    -------
    Dataset over ``rank``
        ``strength``, decreasing, equal ones in the order of the samples; ``position`` of the image; ``sample``, its
        label, where there is one.

    Raises
    ------
    SchemaError
        If there are fewer images than ``k``, not just one of a unit and a text is given, or totals do not know it.
    """
    if are_totals(scalar):
        if unit is None or head is None or text is not None or kind != "signed" or bias:
            raise SchemaError(
                "found totals, and they know the images of a pair by signed strength alone: pass unit= and head=, or "
                "give the scalars"
            )
        mean, _ = matched(scalar["mean"], factors, dims=("unit", "head"))
        place = {name: _position(mean, name, at) for name, at in (("unit", unit), ("head", head))}
        one = {name: [at] for name, at in place.items()}
        images = _of_totals(scalar.isel(one), factors.isel(one), k)
        return images.isel(unit=0, head=0, drop=True).drop_vars(["epoch", "step"], errors="ignore")
    cube, fixed = matched(scalar, factors)
    if (unit is None) == (text is None) or (text is not None and (head is not None or kind != "signed" or bias)):
        raise SchemaError("give a unit, a unit and a head, or a text alone; kind and bias are of units")
    if text is not None:
        strength = _of_text(cube, fixed, text, pairs)
    else:
        few = cube.isel({"unit": [_position(cube, "unit", unit)]})
        some = fixed.isel({"unit": [_position(cube, "unit", unit)]})
        if head is not None:
            at = _position(cube, "head", head)
            found = strengths(few.isel(head=[at]), some.isel(head=[at]), kind=kind, bias=bias)
            strength = found.isel(unit=0, head=0, drop=True)
        else:
            strength = strengths(few, some, level="unit", kind=kind, bias=bias).isel(unit=0, drop=True)
    return top_images(strength, k=k)


def top_images(strength: xr.DataArray | xr.Dataset, *, k: int = 10, factors: xr.Dataset | None = None) -> xr.Dataset:
    """Return the images with the largest values. **Eager**.

    Parameters
    ----------
    strength : (sample, …)
        Any; NaN is never among the largest. Or totals, as `ScalarTotals` has them: those of all pairs by signed
        strength, from the extremes that were kept.
    k
        How many.
    factors
        Of the same pairs; needed for totals.

    Returns
    -------
    Dataset over (…, rank)
        ``strength``, decreasing, equal ones in the order of the samples; ``position`` of the image, and ``sample``, its
        label, where there is one.

    Raises
    ------
    SchemaError
        If there are fewer images than ``k``, or totals come without factors.
    """
    if isinstance(strength, xr.Dataset):
        if factors is None or not are_totals(strength):
            raise SchemaError("found a Dataset; give strengths(…), or totals with factors=")
        return _of_totals(strength, factors, k)
    if "sample" not in strength.dims or not 1 <= k <= strength.sizes["sample"]:
        raise SchemaError(f"k={k} of {dict(strength.sizes)}: needed were samples, and k from 1 to as many as there are")
    rest = [d for d in strength.dims if d != "sample"]
    values = strength.transpose(*rest, "sample").to_numpy()
    at = np.argsort(np.where(np.isnan(values), np.inf, -values), axis=-1, kind="stable")[..., :k]
    coords = {name: c.variable for name, c in strength.coords.items() if set(c.dims) <= set(rest)}
    found = {
        "strength": ((*rest, "rank"), np.take_along_axis(values, at, axis=-1), strength.attrs),
        "position": ((*rest, "rank"), at),
    }
    out = xr.Dataset(found, coords=coords)
    if "sample" in strength.coords:
        out["sample"] = ((*rest, "rank"), strength["sample"].to_numpy()[at])
    return out


def inertia(strength: xr.DataArray, embedding: xr.DataArray, *, top: int = 10) -> xr.DataArray:
    """Return how far apart the images are that a unit is strongest at: low where it stands for one thing. **Eager**.

    Parameters
    ----------
    strength : (sample, …)
        Of `strengths`, of units or pairs; the reference takes ``level="unit", kind="norm", bias=True``.
    embedding : (sample, feature)
        Of the same images, from any network; each is brought to length 1.
    top
        How many images.

    Returns
    -------
    float64, (…)
        Σ‖ê − mean‖² over them, from 0 for images alike to nearly ``top``.

    Raises
    ------
    SchemaError
        If there are fewer images than ``top``, or the embeddings are of others.
    NonFiniteError
        If an embedding is 0, NaN or infinite.
    """
    if set(embedding.dims) != {"sample", "feature"} or embedding.sizes["sample"] != strength.sizes.get("sample"):
        raise SchemaError(
            f"found embeddings {dict(embedding.sizes)} and strengths {dict(strength.sizes)}; both of the same samples "
            "were needed, embeddings (sample, feature)"
        )
    rows = embedding.transpose("sample", "feature").to_numpy().astype(np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(rows).all() and (length > 0).all()):
        raise NonFiniteError("an embedding is 0, NaN or infinite and has no direction; leave its image out")
    rows = rows / length
    at = top_images(strength, k=top)["position"]
    # Σ‖ê − mean‖² of vectors of length 1 is their number less the squared length of their sum over it.
    sums = np.zeros((*at.shape[:-1], rows.shape[1]))
    for rank in range(top):
        sums += rows[at.to_numpy()[..., rank]]
    values = np.maximum(top - (sums**2).sum(axis=-1) / top, 0)
    found = at.isel(rank=0, drop=True).drop_vars("sample", errors="ignore").copy(data=values)
    return found.rename("inertia").assign_attrs(long_name="spread of the strongest images", units="1")


def sinks(attention: xr.DataArray, *, share: float = 0.5) -> xr.Dataset:
    """Find the tokens that heads attend to whatever the image shows. Lazy if the attention is.

    Parameters
    ----------
    attention : (sample, head, token)
        Of `scalars`; token 0 is the one that asks.
    share
        A head has a sink where one token has more than this share of its attention on average.

    Returns
    -------
    Dataset
        ``mean_attention`` (head, token); ``first`` (head, token), the share of images at which it has the most;
        ``entropy`` (head,) in nats, mean over images, log T where attention is even; ``sink`` (head, token) bool.

    Raises
    ------
    SchemaError
        If a dim is missing, or ``share`` is none.

    References
    ----------
    openai/CLIP, issue 237: heads of RN50x4 attend to the last token. Darcet et al. 2024, "Vision Transformers Need
    Registers".
    """
    if set(attention.dims) != {"sample", "head", "token"}:
        raise SchemaError(f"found attention over {attention.dims}, and ('sample', 'head', 'token') was needed")
    if not 0 < share < 1:
        raise SchemaError(f"share={share}, and a share of the attention was needed, such as 0.5")
    if attention.chunks is not None:
        attention = attention.chunk({"token": -1})
    mean = attention.mean("sample", dtype=np.float64)
    tokens = xr.DataArray(np.arange(attention.sizes["token"]), dims="token")
    first = (attention.argmax("token") == tokens).mean("sample")
    logs = np.log(attention.where(attention > 0, 1))
    return xr.Dataset(
        {
            "mean_attention": mean.transpose("head", "token"),
            "first": first.transpose("head", "token"),
            "entropy": -(attention * logs).sum("token").mean("sample", dtype=np.float64),
            "sink": (mean > share).transpose("head", "token"),
        }
    )


def without_sink(maps: npt.ArrayLike) -> Array:
    """Return maps with the last patch, at the bottom right, replaced by the mean of its west, north and north-west.

    Parameters
    ----------
    maps : (…, h, w)
        At least two by two.

    Returns
    -------
    array (…, h, w), a copy

    Raises
    ------
    SchemaError
        If a map has no such neighbours.

    References
    ----------
    Bu and Gandelsman 2025: their code repairs RN50x16 so before it segments.
    """
    given = np.asarray(maps)
    if given.ndim < 2 or min(given.shape[-2:]) < 2:
        raise SchemaError(f"found maps of shape {given.shape}, and at least two rows and columns were needed")
    out = np.array(given, dtype=np.result_type(given.dtype, np.float32))
    out[..., -1, -1] = (out[..., -1, -2] + out[..., -2, -1] + out[..., -2, -2]) / 3
    return out


def _of_totals(totals: xr.Dataset, factors: xr.Dataset, k: int) -> xr.Dataset:
    """Return the images of pairs from their largest scalars, which are in the order of their strengths."""
    mean, fixed = matched(totals["mean"], factors, dims=("unit", "head"))
    known = min(int(totals["count"]), totals.sizes["rank"])
    if not 1 <= k <= known:
        raise SchemaError(f"k={k}, and the totals know {known} images of each pair; pass k={known} or less, from 1 on")
    few = totals[["top", "top_sample"]].isel(rank=slice(0, k)).transpose("unit", "head", "rank")
    position, scalar = few["top_sample"].to_numpy().astype(np.intp), few["top"].to_numpy()
    length = vector_norms(fixed).transpose("unit", "head").to_numpy()[..., None]
    attrs = {"long_name": "signed strength of each pair", "units": "embedding"}
    dims = ("unit", "head", "rank")
    coords = {name: c.variable for name, c in mean.coords.items() if set(c.dims) <= {"unit", "head"}}
    found = {"strength": (dims, scalar * length.astype(scalar.dtype), attrs), "position": (dims, position)}
    out = xr.Dataset(found, coords=coords)
    return out.assign(sample=(dims, totals["sample"].to_numpy()[position])) if "sample" in totals.coords else out


def _of_text(cube: xr.DataArray, fixed: xr.Dataset, text: Any, pairs: int) -> xr.DataArray:
    """Return what the pairs nearest to a phrase add to its logit (sample,)."""
    scores = text_scores(fixed, text)
    if scores.ndim != 2:
        raise SchemaError(f"found texts over {dict(scores.sizes)}, and one vector (feature,) was needed; retrieve each")
    plain = scores.drop_vars([n for n in ("unit", "head") if n in scores.coords])
    best = top_pairs(plain, k=pairs)
    at = {name: xr.DataArray(best[name].to_numpy(), dims="pair") for name in ("unit", "head")}
    weight = text_scores(fixed, text, scale="dot").isel(at).reset_coords(drop=True)
    chosen = cube.isel(at).drop_vars(["unit", "head"], errors="ignore")
    strength: xr.DataArray = (chosen * weight).sum("pair")
    return strength.assign_attrs(long_name="what the nearest pairs add to the logit", units="embedding")


def _position(cube: xr.DataArray, dim: str, label: Any) -> int:
    if dim in cube.indexes:
        found = cube.indexes[dim].get_indexer([label])[0]
        if found >= 0:
            return int(found)
        shown = cube.indexes[dim][:3].tolist()
        raise SchemaError(f"there is no {dim} {label!r} among {cube.sizes[dim]} such as {shown}")
    if not isinstance(label, int | np.integer) or not 0 <= label < cube.sizes[dim]:
        raise SchemaError(f"there is no {dim} {label!r}; give a number from 0 to {cube.sizes[dim] - 1}")
    return int(label)
