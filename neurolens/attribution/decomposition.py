"""How a map is made of those of clusters: how large each is, what it says, how alike they are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.attribution.parts import decomposed
from neurolens.errors import SchemaError

Array = npt.NDArray[Any]


def decompose(
    maps: xr.DataArray | xr.Dataset,
    *,
    entries: int | None = None,
    whole: xr.DataArray | None = None,
    change: xr.DataArray | None = None,
    over: Sequence[str] | None = None,
    dim: str = "map",
) -> xr.Dataset:
    """Describe the maps of the clusters of one clustering; lazy if they are.

    Parameters
    ----------
    maps : Dataset of the opened attributions cube, or (…, map, …)
        Signed maps through each cluster: of Integrated Gradients they add up to the map through all units, of Saliency
        they do not. Of a cube all clusterings are described, from what was measured of their maps.
    entries : with a cube
        Numbers of a map, channels · height · width, which correlations need; absent: by the dims `channel`, `y` and `x`
        of the cube, where it has all three.
    whole : (…), optional
        The map through all units, to see what the clusters leave of it.
    change : (sample,), optional
        Output minus that at the baseline of the integral, of which Integrated Gradients give each cluster its share.
    over
        Dims of a map; by default all but ``dim`` and ``sample``.
    dim
        That of the clusters.

    Returns
    -------
    Dataset of float64, over the dims that are left
        ``norm`` (…, map): Euclidean, in the unit of the maps. ``norm_share`` (…, map): of the sum of all norms; norms
        do not add up, so this is a size, not a part. ``cosine`` (…, map, other). ``mean_abs_correlation`` (…): mean
        over pairs of clusters of \\|Pearson\\|; the higher, the less independent they are. With ``whole``:
        ``reconstruction_error`` (…): mean \\|sum of the maps − whole\\|. With ``change``: ``conductance`` (…, map): sum
        of a map, and ``completeness_share`` (…, map): of the change, signed; adds up to 1, but for the steps of the
        integral.
        NaN where it is not defined: the share where all maps are 0 or nothing changes, the cosine of a map of zeros,
        the correlation where no pair of maps varies; a map with NaN.

        Of a cube all are over (series, sample, map, attribution), with the clusters of all clusterings along `map`, and
        what is of a clustering is said of each of its clusters. ``cosine`` and ``correlation`` are over (…, mate), the
        number of the other cluster; there is ``mean_abs_cosine`` too, and ``correlation`` and ``mean_abs_correlation``
        where ``entries`` is known. What is of a clustering is NaN where maps of its clusters were left out of the cube.
        ``conductance`` and ``completeness_share`` are NaN for methods other than
        Integrated Gradients.

    Raises
    ------
    SchemaError
        If a dim is missing, ``whole`` or ``change`` has other dims, or there are no clusters.
    MissingMeasurementError
        If maps of a cube were not measured.

    References
    ----------
    Sundararajan et al. 2017, proposition 1 (completeness); Dhamdhere et al. 2019 (conductance).
    """
    if isinstance(maps, xr.Dataset):
        if given := [
            name for name, value in (("whole", whole), ("change", change), ("over", over)) if value is not None
        ]:
            raise SchemaError(f"{' and '.join(given)} go with maps; a cube holds what they are: leave them out")
        return decomposed(maps, entries=entries)
    if entries is not None:
        raise SchemaError(f"entries={entries} goes with a cube; maps have as many as they have: leave it out")
    if not maps.sizes.get(dim):
        raise SchemaError(f"found maps over {dict(maps.sizes)}, and clusters along {dim!r} were needed; name theirs")
    over = [str(d) for d in maps.dims if d not in (dim, "sample")] if over is None else list(over)
    if not over or (missing := [d for d in over if d not in maps.dims]):
        raise SchemaError(
            f"found maps over {maps.dims}, and the dims of a map ({missing if over else 'at least one'}) were needed; "
            "give them as over"
        )
    lead = [d for d in maps.dims if d not in (dim, *over)]
    for name, array, allowed in (("whole", whole, {*lead, *over}), ("change", change, set(lead))):
        if array is not None and not set(array.dims) <= allowed:
            raise SchemaError(
                f"{name} has dims {array.dims}, and some of {sorted(map(str, allowed))} were needed; sum over others"
            )
    maps = _in_one(maps, [dim, *over])
    norm, share, cosine, correlation = xr.apply_ufunc(
        _likeness,
        maps,
        kwargs={"axes": len(over)},
        input_core_dims=[[dim, *over]],
        output_core_dims=[[dim], [dim], [dim, "other"], []],
        dask="parallelized",
        output_dtypes=[np.float64] * 4,
        dask_gufunc_kwargs={"output_sizes": {"other": maps.sizes[dim]}},
    )
    if dim in maps.coords:
        cosine = cosine.assign_coords(other=maps[dim].to_numpy())
    out = {"norm": norm, "norm_share": share, "cosine": cosine, "mean_abs_correlation": correlation}
    if whole is not None:
        error = abs(maps.sum(dim, dtype=np.float64, skipna=False) - whole)
        out["reconstruction_error"] = error.mean(over, skipna=False).reset_coords(drop=True)
    if change is not None:
        sums = maps.sum(over, dtype=np.float64, skipna=False)
        out["conductance"] = sums
        out["completeness_share"] = (sums / change.where(change != 0)).transpose(*sums.dims).reset_coords(drop=True)
    return xr.Dataset(out)


def _in_one(maps: xr.DataArray, dims: Sequence[str]) -> xr.DataArray:
    return maps if maps.chunks is None else maps.chunk(dict.fromkeys(dims, -1))


def _likeness(maps: Array, *, axes: int) -> tuple[Array, Array, Array, Array]:
    """Return norms, shares, cosines and mean |correlation| of (…, map, *over)."""
    shape = maps.shape[: maps.ndim - axes]
    lead, clusters = shape[:-1], shape[-1]
    norm, cosine = np.empty(shape), np.empty((*shape, clusters))
    correlation = np.empty(lead)
    for at in np.ndindex(*lead):
        rows = maps[at].reshape(clusters, -1).astype(np.float64)  # one sample at a time: maps are large, and float32
        norm[at], cosine[at] = _cosines(rows)
        spread = np.ptp(rows, axis=1)
        rounded = 4 * np.finfo(np.result_type(maps.dtype, np.float32)).eps * np.abs(rows).max(axis=1)
        varies = ~(spread <= rounded)
        _, pearson = _cosines(rows[varies] - rows[varies].mean(axis=1, keepdims=True))
        pairs = np.abs(pearson[np.triu_indices(len(pearson), 1)])
        correlation[at] = pairs.mean() if len(pairs) else np.nan
    total = norm.sum(axis=-1, keepdims=True)
    share = np.where(total > 0, norm / np.where(total > 0, total, 1.0), np.nan)
    return norm, share, cosine, correlation


def _cosines(rows: Array) -> tuple[Array, Array]:
    """Return norms (n,) and cosines (n, n) of rows, NaN of those that are 0."""
    norm = np.sqrt((rows**2).sum(axis=1))
    unit = rows / np.where(norm > 0, norm, np.nan)[:, None]
    return norm, np.clip(unit @ unit.T, -1.0, 1.0)
