"""The pairs that stand for each of several classes."""

from typing import Any

import numpy as np
import xarray as xr

from neurolens.errors import SchemaError
from neurolens.pairs.text import text_scores, top_pairs
from neurolens.pairs.writing import directed, matched, required, vector_norms

_AT_ONCE = 2**20  # scores that are ranked at once


def class_pairs(
    factors: xr.Dataset,
    texts: Any,
    *,
    k: int = 20_000,
    centre: bool = True,
    sign: xr.DataArray | None = None,
    norms: xr.DataArray | None = None,
) -> xr.DataArray:
    """Choose the pairs whose direction is nearest to each class, after what all classes share is taken off. **Eager**.

    Parameters
    ----------
    factors
        As `factors` gives them.
    texts : (phrase, feature)
        Embeddings of the classes.
    k
        How many pairs of each class, by default what the reference takes of the 147 456 of RN50x16.
    centre
        Take the mean over the classes off their embeddings, then bring them to length 1, as the reference does. Without
        it, pairs near to all texts are among the best of every class.
    sign : (unit, head), optional
        Of `directions` with ``sign="majority"``, the reference's; by default that of u.
    norms : (unit, head), optional
        Of `vector_norms`, where they are computed already.

    Returns
    -------
    bool, (phrase, unit, head)
        k pairs of each class, equal scores by head and unit; fewer where dead or tied pairs have no score.

    Raises
    ------
    SchemaError
        If there are fewer pairs than ``k``, a vector is of another width, or two classes are alike so that nothing is
        left of them.

    References
    ----------
    Bu and Gandelsman 2025, arXiv 2509.19943, section 5.
    """
    fixed = required(factors)
    vectors = directed(texts, fixed)
    if set(vectors.dims) != {"phrase", "feature"}:
        raise SchemaError(f"found texts over {dict(vectors.sizes)}, and (phrase, feature) was needed, a row per class")
    vectors = vectors.transpose("phrase", "feature").astype(np.result_type(vectors.dtype, np.float32))
    if centre:
        vectors = _contrasted(vectors)
    norms = vector_norms(fixed) if norms is None else norms
    matched(norms, fixed, dims=("unit", "head"))
    plain = fixed.drop_vars([name for name in ("unit", "head") if name in fixed.coords])
    bare = norms.drop_vars([name for name in ("unit", "head") if name in norms.coords])
    signs = (
        None
        if sign is None
        else matched(sign, fixed, dims=("unit", "head"))[0].drop_vars(["unit", "head"], errors="ignore")
    )
    units, heads = fixed.sizes["unit"], fixed.sizes["head"]
    chosen = np.zeros((vectors.sizes["phrase"], heads, units), bool)
    step = max(1, _AT_ONCE // (units * heads))
    for start in range(0, len(chosen), step):
        rows = vectors[start : start + step]
        best = top_pairs(text_scores(plain, rows, norms=bare, sign=signs), k=k)
        row, rank = np.nonzero(best["score"].notnull().to_numpy())
        chosen[start + row, best["head"].to_numpy()[row, rank], best["unit"].to_numpy()[row, rank]] = True
    coords = {n: c.variable for n, c in fixed.coords.items() if c.dims in (("unit",), ("head",))}
    if "phrase" in vectors.coords:
        coords["phrase"] = vectors["phrase"].variable
    out = xr.DataArray(chosen.transpose(0, 2, 1), dims=("phrase", "unit", "head"), coords=coords, name="pairs")
    return out.assign_attrs(long_name="pairs nearest to each class")


def _contrasted(vectors: xr.DataArray) -> xr.DataArray:
    """Return the vectors less their mean; what is left must be more than rounding."""
    away: xr.DataArray = vectors - vectors.mean("phrase", dtype=np.float64).astype(vectors.dtype)
    eps = 8 * np.finfo(vectors.dtype).eps
    gone = (np.sqrt((away**2).sum("feature")) <= eps * np.sqrt((vectors**2).sum("feature"))).to_numpy()
    if gone.any():
        at = int(np.flatnonzero(gone)[0])
        raise SchemaError(
            f"class {at} of {len(gone)} is the mean of all, and nothing is left after that is taken off; give "
            "two or more different classes, or centre=False"
        )
    return away
