"""What is kept of attribution maps: where their mass lies, how they relate to those of the same clustering, pixels."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.attribution.scores import patch_table, sparsity
from neurolens.study import Attributions

Array = npt.NDArray[Any]

PIXELS = ("channel", "y", "x")


def map_values(
    maps: xr.DataArray, pixel: xr.DataArray, table: Attributions, *, parts: Collection[str]
) -> dict[str, Array]:
    """Describe maps of one method, each by itself.

    Parameters
    ----------
    maps : (sample, map, channel, y, x) float32
    pixel : (sample, map, y, x)
        Their mass by pixel, as `neurolens.attribution.falls.entries` gives it.
    table : study.Attributions
    parts
        Of the cube: "maps", "reduced".

    Returns
    -------
    values : variable of these parts → (sample, map, …)
        Without ``dot`` and ``reconstruction_error``, see `clustering_values`. ``pixel_sparsity`` is NaN of a map
        that is zero everywhere (with the table's compat, 0), of which ``reduced`` is zero.
    """
    out: dict[str, Array] = {}
    array = maps.transpose("sample", "map", *PIXELS).to_numpy()
    if "maps" in parts:
        spread = (
            sparsity(maps, mass=table.mass, compat=table.compat) if table.compat else sparsity(pixel, mass=table.mass)
        )
        out["patch"] = patch_table(pixel, grid=table.grid).to_numpy()
        out["total"] = array.sum(axis=(2, 3, 4), dtype=np.float64)
        out["mass"] = pixel.sum(("y", "x"), dtype=np.float64).to_numpy()
        out["norm"] = np.sqrt(np.einsum("smcyx,smcyx->sm", array, array, dtype=np.float64))
        out["pixel_sparsity"] = spread.to_numpy()
    if "reduced" in parts:
        mass = pixel.to_numpy().astype(np.float64)
        scale = mass.max(axis=(2, 3))
        divisor = np.where(scale > 0, scale, 1.0)[..., None, None]
        out["reduced"] = array.sum(axis=2, dtype=np.float64) / divisor
        out["reduced_mass"] = mass / divisor
        out["reduced_scale"] = scale
    return out


def clustering_values(
    maps: xr.DataArray, whole: xr.DataArray, clusters: Sequence[int], *, mates: int
) -> dict[str, Array]:
    """Relate the maps of all clusters of one clustering, by one method.

    Parameters
    ----------
    maps : (sample, map, channel, y, x)
    whole : (sample, channel, y, x)
        Through all units.
    clusters : (map,)
        Number of each cluster.
    mates
        How many entries ``dot`` has.

    Returns
    -------
    ``dot`` (sample, map, mate) float64
        Inner product with the map of cluster ``mate``; NaN where there is none.
    ``reconstruction_error`` (sample, map) float64
        Mean absolute difference between the sum of the maps and the whole, the same for all.
    """
    array = maps.transpose("sample", "map", *PIXELS).to_numpy()
    rest = whole.transpose("sample", *PIXELS).to_numpy()
    dot = np.full((*array.shape[:2], mates), np.nan)
    error = np.empty(array.shape[:2])
    for sample in range(len(array)):
        rows = array[sample].reshape(len(clusters), -1).astype(np.float64)
        dot[sample][:, list(clusters)] = rows @ rows.T
        error[sample] = np.abs(rows.sum(axis=0) - rest[sample].reshape(-1)).mean()
    return {"dot": dot, "reconstruction_error": error}
