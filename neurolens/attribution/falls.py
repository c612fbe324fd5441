"""What becomes of an answer without the highest pixels, the highest patches, and ever more patches: shared passes."""

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from torch import Tensor, nn

from neurolens.attribution.curves import SHARES, highest, steps_away
from neurolens.attribution.masked import answers
from neurolens.attribution.scores import Compat, masses
from neurolens.study import Attributions

Array = npt.NDArray[Any]

LEVELS = ("pixel", "patch")


def falls(
    module: nn.Module,
    x: Tensor,
    maps: xr.Dataset,
    table: Attributions,
    *,
    parts: Collection[str],
    scored: Tensor,
    batch_size: int,
    budget_mib: float,
) -> dict[str, Array]:
    """Show samples without what their maps choose, each distinct picture of a patch mask once.

    Parameters
    ----------
    module, x, batch_size, budget_mib
        As for `neurolens.attribution.faithfulness`.
    maps : Dataset
        ``pixel`` (sample, map, attribution, y, x), as `entries` gives it, and ``patch`` (…, patch_y, patch_x).
    table : study.Attributions
    parts
        Of the cube: "faithfulness", "curves", or both.
    scored : (sample,) int64
        The class that is followed.

    Returns
    -------
    values : variable of these parts → (sample, map, attribution, level or share) float64
        NaN of maps without mass.

    Raises
    ------
    SchemaError, DataError, NonFiniteError
        As `neurolens.attribution.faithfulness`.
    """

    def shown(entries: xr.DataArray, wanted: Collection[str], compat: Compat) -> tuple[Array, Array]:
        """Return logits and log-probabilities (sample, map, attribution, time)."""

        def chosen(row: Array) -> list[Array]:
            once = [highest(row, table.drop)] if "faithfulness" in wanted else []
            if "curves" in wanted:
                once += [*steps_away(row, kind="deletion"), *steps_away(row, kind="insertion")]
            return once

        found = answers(
            module,
            x,
            entries,
            chosen,
            times=("faithfulness" in wanted) + 2 * len(SHARES) * ("curves" in wanted),
            grid=None,
            fill=table.fill,
            target=scored,
            batch_size=batch_size,
            budget_mib=budget_mib,
            compat=compat,
        ).transpose("sample", "map", "attribution", "time")
        return found["masked_logit"].to_numpy(), found["masked_log_prob"].to_numpy()

    out: dict[str, Array] = {}
    curves: Array | None = None
    if "faithfulness" in parts:
        pixel = shown(maps["pixel"], ["faithfulness"], table.compat)
        # the reference gives maps without mass a fall, and has no curves: these then take passes of their own
        together = ["faithfulness", *(["curves"] if "curves" in parts and table.compat is None else [])]
        patch = shown(maps["patch"], together, table.compat)
        for name, *both in zip(("masked_logit", "masked_log_prob"), pixel, patch, strict=True):
            out[name] = np.stack([found[..., 0] for found in both], axis=-1)
        curves = patch[1][..., 1:] if len(together) > 1 else None
    if "curves" in parts:
        curves = shown(maps["patch"], ["curves"], None)[1] if curves is None else curves
        out["deletion"], out["insertion"] = np.split(np.exp(curves), 2, axis=-1)
    return out


def entries(maps: xr.DataArray, table: Attributions) -> dict[str, xr.DataArray]:
    """Return the mass of each pixel and of each patch of maps (…, channel, y, x), that `falls` ranks."""
    pixel, _ = masses(maps, compat=table.compat)
    patch, _ = masses(pixel, grid=table.grid, compat=table.compat)
    return {"pixel": pixel, "patch": patch}
