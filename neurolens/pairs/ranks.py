"""What embeddings made of a few components of each unit still recognise."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import SchemaError
from neurolens.pairs.ablation import zero_shot
from neurolens.pairs.components import unit_components
from neurolens.pairs.reconstruction import reconstruct
from neurolens.pairs.writing import matched, scalar_mean, written

RANKS = (1, 2, 4, 8)


def rank_curve(
    scalar: xr.DataArray,
    factors: xr.Dataset,
    texts: Any,
    labels: npt.ArrayLike,
    *,
    ranks: Sequence[int] = RANKS,
    mean: xr.DataArray | None = None,
    confidence: float = 0.95,
) -> xr.Dataset:
    """Return the zero-shot accuracy of embeddings made of the first components of each unit. **Eager**.

    Parameters
    ----------
    scalar : (sample, unit, head)
        The scalars.
    factors
        Of the same pairs.
    texts : (class, feature)
        One vector per class.
    labels : int, (sample,)
        The row of ``texts`` that is right.
    ranks
        How many components of each unit; a unit has no more than there are heads.
    mean : (unit, head), optional
        s̄, of other images; by default of these.
    confidence
        Coverage of the intervals, Wilson's.

    Returns
    -------
    Dataset over ``rank``
        ``accuracy`` with ``low`` and ``high``; ``share``, of the squared length of all units' centred contributions
        that is in their components. Without dim: ``whole``, the accuracy of the embeddings as they are, which is also
        that of the one direction of each pair, by identity; ``whole_low``, ``whole_high``; ``count``, images.

    Raises
    ------
    SchemaError
        If a rank is none, or something is of other pairs, widths or images.

    References
    ----------
    Bu and Gandelsman 2025, arXiv 2509.19943, table 1.
    """
    cube, fixed = matched(scalar, factors)
    heads = cube.sizes["head"]
    if not len(ranks) or any(not 1 <= rank <= heads for rank in ranks):
        raise SchemaError(f"ranks={tuple(ranks)}, and units have 1 to {heads} components, one for each head")
    average = scalar_mean(cube, mean).compute()
    offset = fixed["constant"].sum("head", dtype=np.float64) * fixed.sizes["unit"]
    whole = zero_shot(written(cube, fixed) + offset, texts, labels, confidence=confidence)
    parts = unit_components(cube, fixed, k=max(ranks), mean=average)
    lengths = (parts["singular_value"] ** 2).fillna(0)
    # A unit's share of its first components is known; its whole squared length follows from any of them.
    total = (lengths.isel(component=0) / parts["share"].isel(component=0)).fillna(0).sum("unit")
    found: dict[str, list[float]] = {"accuracy": [], "low": [], "high": [], "share": []}
    for rank in ranks:
        some = parts["direction"].isel(component=slice(rank))
        answers = zero_shot(reconstruct(cube, fixed, some, mean=average), texts, labels, confidence=confidence)
        for name in ("accuracy", "low", "high"):
            found[name].append(float(answers[name]))
        found["share"].append(float(lengths.isel(component=slice(rank)).sum() / total) if total > 0 else np.nan)
    out = xr.Dataset({name: ("rank", values) for name, values in found.items()}, coords={"rank": list(ranks)})
    for name in ("accuracy", "low", "high"):
        out["whole" if name == "accuracy" else f"whole_{name}"] = float(whole[name])
    return out.assign(count=int(whole["count"]))
