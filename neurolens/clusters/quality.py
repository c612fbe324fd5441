"""What clusters of units are like, and whether other starts would have found them."""

from typing import Any

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from neurolens.clusters.fitting import Fit, fit_of
from neurolens.clusters.matrices import Array, feature_array, is_constant, layers_or_one, matrices, zscore
from neurolens.errors import SchemaError
from neurolens.schema.cluster_results import CLUSTER_RESULTS
from neurolens.units.inputs import kept_attrs
from neurolens.units.layers_of import held

WORKING_MEMORY_MIB = 64
"""What distances between units may take at once."""


def cluster_summary(
    features: xr.Dataset | xr.DataArray, clusters: xr.DataArray, *, dim: str | None = None
) -> xr.Dataset:
    """Sizes, centroids, inertia and silhouette of clusters of units. **Eager**.

    Parameters
    ----------
    features : Dataset of variables (series, unit), or array (series, unit, feature)
        What the clusters were made from.
    clusters : int, (series, k, unit)
        From `unit_clusters`, of all layers or some.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever ``features`` has.

    Returns
    -------
    Dataset over (series, k, layer), without `layer` where ``features`` has none
        `size` (…, cluster) and `centroid` (…, cluster, feature), the mean of the features as they are, in their own
        units; NaN beyond the k clusters, and a centroid where a cluster has no unit. `spread` (series, layer, feature),
        the standard deviation over the layer: 0 says that the feature took no part. `inertia`, the squared distances of
        standardised units to the mean of their cluster, added up. `silhouette`, in [-1, 1], of standardised units; a
        cluster of one counts 0, NaN where there is one cluster or none has two units.

    Raises
    ------
    SchemaError
        If the clusters are of other units, layers or checkpoints.
    NonFiniteError
        If a feature is NaN or infinite.

    References
    ----------
    Rousseeuw 1987, "Silhouettes". By ``sklearn.metrics.silhouette_score``.
    """
    array, labels, series = _matched(features, clusters, dim)
    layers, numbers = layers_or_one(array), [int(k) for k in labels["k"].to_numpy()]
    shape = (labels.shape[0], len(numbers), len(layers.names))
    most = max(*numbers, int(labels.max()) + 1)
    size = np.full((*shape, most), np.nan)
    centroid = np.full((*shape, most, array.sizes["feature"]), np.nan)
    spread = np.empty((shape[0], shape[2], array.sizes["feature"]))
    inertia, silhouette = np.empty(shape), np.empty(shape)
    for matrix in matrices(array, series):
        scaled = zscore(matrix.values)
        spread[matrix.place, matrix.layer] = np.where(is_constant(matrix.values), 0.0, matrix.values.std(axis=0))
        for i, k in enumerate(numbers):
            at, of_unit = (matrix.place, i, matrix.layer), labels.to_numpy()[matrix.place, i, matrix.units]
            inertia[at] = 0.0
            size[at][:k] = np.bincount(of_unit, minlength=k)
            for cluster in np.unique(of_unit).tolist():
                rows = of_unit == cluster
                centroid[at][cluster] = matrix.values[rows].mean(axis=0)
                inertia[at] += ((scaled[rows] - scaled[rows].mean(axis=0)) ** 2).sum()
            silhouette[at] = _silhouette(scaled, of_unit)
    lead = (array.dims[0], "k", "layer")
    found: dict[str, tuple[tuple[Any, ...], Array]] = {
        "size": ((*lead, "cluster"), size),
        "centroid": ((*lead, "cluster", "feature"), centroid),
        "spread": ((array.dims[0], "layer", "feature"), spread),
        "inertia": (lead, inertia),
        "silhouette": (lead, silhouette),
    }
    return _described(found, array, labels, series)


def cluster_stability(
    features: xr.Dataset | xr.DataArray, clusters: xr.DataArray, *, starts: int = 10, dim: str | None = None
) -> xr.Dataset:
    """Compare clusters of units with those that other seeds find, by adjusted Rand index. **Eager**.

    Parameters
    ----------
    features : Dataset of variables (series, unit), or array (series, unit, feature)
        What the clusters were made from.
    clusters : int, (series, k, unit)
        As `unit_clusters` returned them: they are found again in the same way, with the seeds that follow theirs.
    starts : int
        How many seeds.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever ``features`` has.

    Returns
    -------
    Dataset over (series, k, layer), without `layer` where ``features`` has none
        `ari` (…, start): 1 for the same clusters, about 0 for what chance alone would share. `stability`, its mean.
        NaN for what has no chance in it (``agglomerative``).

    Raises
    ------
    SchemaError
        If the clusters are of other units, layers or checkpoints, do not say how they were found, or there is no start.
    NonFiniteError
        If a feature is NaN or infinite.

    References
    ----------
    Hubert and Arabie 1985, "Comparing partitions". By ``sklearn.metrics.adjusted_rand_score``.
    """
    from sklearn.metrics import adjusted_rand_score

    if starts < 1:
        raise SchemaError(f"starts={starts} is no number of seeds; give 10, say")
    fit = fit_of(clusters)
    array, labels, series = _matched(features, clusters, dim)
    numbers = [int(k) for k in labels["k"].to_numpy()]
    ari = np.full((labels.shape[0], len(numbers), len(layers_or_one(array).names), starts), np.nan)
    if fit.method != "agglomerative":
        others = [Fit(fit.method, fit.n_init, fit.seed + 1 + start, fit.in_order) for start in range(starts)]
        with threadpool_limits(limits=1):
            for matrix in matrices(array, series):
                for i, k in enumerate(numbers):
                    of_unit = labels.to_numpy()[matrix.place, i, matrix.units]
                    again = [other.clusters(matrix, k) for other in others]
                    ari[matrix.place, i, matrix.layer] = [adjusted_rand_score(of_unit, other) for other in again]
    lead = (array.dims[0], "k", "layer")
    return _described({"ari": ((*lead, "start"), ari), "stability": (lead, ari.mean(axis=-1))}, array, labels, series)


def _silhouette(scaled: Array, labels: Array) -> float:
    from sklearn import config_context
    from sklearn.metrics import silhouette_score

    if not 2 <= len(np.unique(labels)) < len(labels):
        return float("nan")
    with config_context(working_memory=WORKING_MEMORY_MIB):
        return float(silhouette_score(scaled, labels))


def _matched(features: Any, clusters: Any, dim: str | None) -> tuple[xr.DataArray, xr.DataArray, str | None]:
    """Return features (series, unit, feature) of the units that have a cluster, and clusters (series, k, unit)."""
    array, series = feature_array(features, dim)
    needed = {"k", "unit"} | ({series} if series else set())
    if not isinstance(clusters, xr.DataArray) or set(clusters.dims) != needed or clusters.dtype.kind not in "iu":
        found = f"{clusters.dtype} over {clusters.dims}" if isinstance(clusters, xr.DataArray) else type(clusters)
        raise SchemaError(f"found {found}, and clusters over {tuple(sorted(needed))} were needed: unit_clusters(…)")
    labels = (clusters if series else clusters.expand_dims("series")).transpose(series or "series", "k", "unit")
    if "unit" in array.indexes and "unit" in labels.indexes:
        at = array.indexes["unit"].get_indexer(labels.indexes["unit"])
        if (at < 0).any():
            raise SchemaError(
                f"{(at < 0).sum()} units have a cluster and no features; give the features of all of them"
            )
        array = array.isel(unit=at)
    for name in (series, "unit", "layer"):
        if name is None:
            continue
        if name in array.dims and array.sizes[name] != labels.sizes[name]:
            raise SchemaError(
                f"found features of {array.sizes[name]} and clusters of {labels.sizes[name]} along {name!r}; give the "
                "features that the clusters were made from"
            )
        if (name in array.coords) != (name in labels.coords) or (
            name in array.coords and not np.array_equal(held(array.coords[name]), held(labels.coords[name]))
        ):
            raise SchemaError(
                f"features and clusters differ in {name!r}; give the features that the clusters were made from"
            )
    return array.compute(), labels.compute(), series


def _described(
    found: dict[str, tuple[tuple[Any, ...], Array]], array: xr.DataArray, labels: xr.DataArray, series: str | None
) -> xr.Dataset:
    """Put results together, with the coordinates of the series, k, layers and features."""
    coords: dict[Any, Any] = {"k": labels["k"].variable}
    used = {dim for dims, _ in found.values() for dim in dims}
    coords |= {name: c.variable for name, c in array.coords.items() if used.issuperset(c.dims) and name != "layer"}
    names = layers_or_one(array).names
    if "layer" in array.coords:
        coords["layer"] = ("layer", np.asarray(names, dtype=np.dtypes.StringDType()))
    variables = {name: (dims, values, CLUSTER_RESULTS[name].attrs) for name, (dims, values) in found.items()}
    attrs = {key: labels.attrs[key] for key in ("method", "n_init", "seed", "compat") if key in labels.attrs}
    out = xr.Dataset(variables, coords=coords, attrs=kept_attrs(labels) | attrs)
    if "layer" not in array.coords:
        out = out.isel(layer=0)
    return out if series is not None else out.isel(series=0)
