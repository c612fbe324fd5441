"""All that is known of one unit: how loud it is through each head, what it says there, and of which images."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import SchemaError
from neurolens.pairs.norms import dead_pairs, pair_norms
from neurolens.pairs.retrieval import retrieve
from neurolens.pairs.text import text_scores, top_phrases
from neurolens.pairs.writing import matched

Array = npt.NDArray[Any]
WHOLE = "all heads"


def describe_unit(
    scalar: xr.DataArray,
    factors: xr.Dataset,
    unit: Any,
    *,
    texts: Any = None,
    heads: int = 4,
    phrases: int = 5,
    images: int = 6,
    top: int = 50,
    kind: Literal["signed", "norm"] = "signed",
    bias: bool = False,
) -> xr.Dataset:
    """Describe a unit: its norm through each head, and of its loudest heads the nearest phrases and top images.

    **Eager** in the scalars of this unit, and in those of no other.

    Parameters
    ----------
    scalar : (sample, unit, head)
        The scalars.
    factors
        Of the same pairs.
    unit
        Its label, or its position where units have none.
    texts : (phrase, feature), optional
        Embeddings of phrases.
    heads, phrases, images
        How many of each, at most.
    top
        How many images a norm is the mean over, at most.
    kind, bias
        Of `strengths`, by which images are ranked.

    Returns
    -------
    Dataset
        ``norm`` (head,), the mean of the ``top`` largest centred contributions, and ``dead`` (head,). Over ``row``,
        whose labels are "all heads" and then the loudest live heads: ``row_head``, the position of the head, -1 of all;
        ``strength`` (row, rank), ``position`` and, where samples have labels, ``sample``; with texts ``phrase`` (row,
        place), their words where they have any, and ``score``, the cosine with u; ``""`` and NaN for all heads
        together, which have no one direction. The unit's label is the coordinate ``unit``.

    Raises
    ------
    SchemaError
        If there is no such unit, or factors or texts are of others.
    """
    cube, fixed = matched(scalar, factors)
    at = _position(cube, unit)
    few, some = cube.isel(unit=[at]).compute(), fixed.isel(unit=[at]).compute()
    count = min(top, cube.sizes["sample"])
    norms = pair_norms(few, some, top=count).mean("rank").isel(unit=0, drop=True).to_numpy()
    dead = dead_pairs(few, some).isel(unit=0, drop=True).to_numpy()
    loudest = [int(h) for h in np.argsort(-np.where(dead, -1, norms), kind="stable")[:heads] if not dead[h]]
    own = few["unit"].to_numpy()[0] if "unit" in few.coords else 0
    labels = cube["head"].to_numpy() if "head" in cube.coords else np.arange(cube.sizes["head"])
    k = min(images, cube.sizes["sample"])
    found = [retrieve(few, some, unit=own, k=k, kind=kind, bias=bias)]
    found += [retrieve(few, some, unit=own, head=labels[h], k=k, kind=kind, bias=bias) for h in loudest]
    out = xr.Dataset(
        {
            "norm": ("head", norms, {"long_name": "mean of the largest centred contributions", "units": "embedding"}),
            "dead": ("head", dead, {"long_name": "says nothing of any image", "units": "1"}),
            "row_head": ("row", [-1, *loudest]),
        },
        coords={"head": labels, "row": [WHOLE, *(f"head {labels[h]}" for h in loudest)]},
        attrs={"top": count, "kind": kind},
    ).assign_coords(unit=own if "unit" in few.coords else at)
    for name in ("strength", "position", "sample"):
        if name in found[0]:
            out[name] = (("row", "rank"), np.stack([one[name].to_numpy() for one in found]))
    return out if texts is None else _worded(out, some, texts, loudest, phrases)


def _worded(out: xr.Dataset, some: xr.Dataset, texts: Any, loudest: list[int], phrases: int) -> xr.Dataset:
    """Add the phrases nearest to what the unit writes through each of some heads."""
    scores = text_scores(some.isel(head=loudest), texts)
    if "phrase" not in scores.dims:
        raise SchemaError(f"found texts over {dict(scores.sizes)}, and (phrase, feature) was needed")
    if "words" in getattr(texts, "coords", {}):
        scores = scores.assign_coords(phrase=texts["words"].to_numpy())
    k = min(phrases, scores.sizes["phrase"])
    words, nearest = np.full((1 + len(loudest), k), "", object), np.full((1 + len(loudest), k), np.nan)
    if loudest:
        best = top_phrases(scores.compute(), k=k).isel(unit=0)
        words[1:], nearest[1:] = best["phrase"].to_numpy().astype(object), best["score"].to_numpy()
    out["phrase"], out["score"] = (("row", "place"), words), (("row", "place"), nearest)
    return out


def _position(cube: xr.DataArray, unit: Any) -> int:
    if "unit" in cube.indexes:
        at = int(cube.indexes["unit"].get_indexer([unit])[0])
    else:
        at = int(unit) if isinstance(unit, int | np.integer) and 0 <= unit < cube.sizes["unit"] else -1
    if at < 0:
        raise SchemaError(f"there is no unit {unit!r} among {cube.sizes['unit']}; name one that was measured")
    return at
