"""How maps are made of those of clusters, as the reference writes it: of chosen images, and over them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens import schema
from neurolens.attribution.exported import Line, moments, number
from neurolens.attribution.exported_names import METHODS, Filtered, parts_of

Array = npt.NDArray[Any]

_BY_CLUSTER = ("cluster_magnitudes", "cluster_percentages", "cluster_sparsity")
_SCALARS = {"reconstruction_error": "reconstruction_errors", "cluster_independence": "cluster_independence"}
"""Keys of an image, and of all images."""


def spaced_images(images: int, count: int) -> list[int]:
    """Return the positions of ``count`` images, evenly spaced from first to last, as the reference takes them."""
    return sorted({int(at) for at in np.linspace(0, images - 1, min(count, images), dtype=int)}) if images else []


def cluster_analyses(data: xr.Dataset, one: Filtered, method: str, images: Sequence[int]) -> dict[int, Line]:
    """Return what ``cluster_analysis_<method>_<image>.json`` says, by position of the image. **Eager.**

    Parameters
    ----------
    data : the opened attributions cube at one checkpoint
    one : any cluster of the clustering that is meant.
    method : ig or saliency.
    images : positions along `sample`.

    Returns
    -------
    by image
        ``cluster_magnitudes``: L2 norms by cluster. ``cluster_percentages``: of the sum of the norms.
        ``cluster_sparsity``: of pixels. ``reconstruction_error``: mean \\|sum of the clusters' maps − whole map\\|.
        ``cluster_independence``: mean \\|Pearson\\| over pairs of clusters; the higher, the *less* independent. None
        where the store does not know the size of a map; so are percentages where all maps are zero, a sparsity of a
        map of zeros, a correlation where no pair of maps varies. Images that were not measured are absent.

    Raises
    ------
    MissingMeasurementError
        If no cluster is measured alone, or the method was not measured.
    """
    schema.present(data, "norm", "total", "dot", "pixel_sparsity", "reconstruction_error")
    names = parts_of(data, one)
    wanted = ["norm", "total", "dot", "pixel_sparsity", "reconstruction_error"]
    chosen = data[wanted].sel({"map": names, "attribution": METHODS[method]}).isel(sample=list(images)).compute()
    clusters = [int(cluster) for cluster in chosen["cluster"].to_numpy()]
    sizes = [data.sizes.get(dim, 0) for dim in ("channel", "y", "x")]
    entries = int(np.prod(sizes)) or None
    out: dict[int, Line] = {}
    for at, image in enumerate(images):
        here = chosen.isel(sample=at)
        norm = here["norm"].to_numpy()
        if not np.isfinite(norm).all():
            continue
        share = 100 * norm / norm.sum() if norm.sum() > 0 else np.full(len(norm), np.nan)
        told = zip(_BY_CLUSTER, (norm, share, here["pixel_sparsity"].to_numpy()), strict=True)
        line: Line = {
            key: {str(c): number(value) for c, value in zip(clusters, values, strict=True)} for key, values in told
        }
        line["reconstruction_error"] = number(here["reconstruction_error"].to_numpy()[0])
        dots = here["dot"].transpose("map", "mate").sel(mate=clusters).to_numpy()
        likeness = np.nan if entries is None else _mean_correlation(dots, norm, here["total"].to_numpy(), entries)
        line["cluster_independence"] = number(likeness)
        out[image] = line
    return out


def aggregate_stats(lines: Sequence[Line]) -> Line:
    """Return what ``aggregate_stats_<method>.json`` says of several images: mean and std (ddof 0), by cluster."""
    out: Line = {}
    for key in _BY_CLUSTER:
        clusters = lines[0][key] if lines else {}
        out[key] = {cluster: _spread([line[key][cluster] for line in lines]) for cluster in clusters}
    for key, plural in _SCALARS.items():
        out[plural] = _spread([line[key] for line in lines])
    return out


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    mean, std = moments([value for value in values if value is not None])
    return {"mean": mean, "std": std}


def _mean_correlation(dots: Array, norm: Array, total: Array, entries: int) -> float:
    """Return the mean |Pearson| over pairs of maps that vary, from inner products, norms and sums over the entries."""
    spread = norm**2 - total**2 / entries
    varies = np.flatnonzero(spread > 1e-12 * norm**2)  # less is rounding, of maps in single precision
    if len(varies) < 2:
        return float("nan")
    covariance = (dots - np.outer(total, total) / entries)[np.ix_(varies, varies)]
    pearson = np.abs(covariance / np.sqrt(np.outer(spread[varies], spread[varies])))
    return float(np.clip(pearson[np.triu_indices(len(varies), 1)], 0, 1).mean())
