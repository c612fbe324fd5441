"""Clusters of the units of each layer, in an order that does not depend on chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from neurolens import schema
from neurolens.clusters.matrices import Array, Matrix, chosen, feature_array, matrices, zscore
from neurolens.errors import SchemaError
from neurolens.schema.cluster_results import CLUSTER_RESULTS
from neurolens.units.inputs import choice, kept_attrs

Method = Literal["kmeans", "agglomerative", "gmm"]

STARTS = 10
"""Starts of which the best is kept, where no number is given."""


@dataclass(frozen=True)
class Fit:
    """How clusters are found.

    ``in_order`` sorts units by their features first, so that their order has no say, and puts the clusters in order;
    without it everything is left as scikit-learn has it.
    """

    method: str
    n_init: int
    seed: int
    in_order: bool = True

    def clusters(self, matrix: Matrix, k: int) -> Array:
        """Return the cluster of each unit of a layer: int64 (n,).

        Raises
        ------
        SchemaError
            If there are fewer units, or units that differ, than clusters.
        """
        values = matrix.values
        order = np.lexsort(values.T[::-1]) if self.in_order else np.arange(len(values))
        rows = values[order]
        scaled = zscore(rows)
        _require(k, len(rows), len(np.unique(scaled.round(8), axis=0)), matrix.name)
        found = self._fitted(scaled, k)
        labels = np.empty(len(rows), dtype=np.int64)
        labels[order] = canonical(found, rows) if self.in_order else found
        return labels

    def _fitted(self, scaled: Array, k: int) -> Array:
        model: Any
        if self.method == "kmeans":
            from sklearn.cluster import KMeans

            model = KMeans(k, n_init=self.n_init, random_state=self.seed)
        elif self.method == "gmm":
            from sklearn.mixture import GaussianMixture

            model = GaussianMixture(k, n_init=self.n_init, random_state=self.seed)
        else:
            from sklearn.cluster import AgglomerativeClustering

            model = AgglomerativeClustering(k)
        labels: Array = model.fit_predict(scaled)
        return labels


def unit_clusters(
    features: xr.Dataset | xr.DataArray,
    k: int | Sequence[int] = (2, 3, 4, 5),
    *,
    layers: str | Sequence[str] | None = None,
    method: Method = "kmeans",
    n_init: int | None = None,
    seed: int | None = None,
    compat: Literal["seed"] | None = None,
    dim: str | None = None,
) -> xr.DataArray:
    """Put the units of each layer into clusters by their standardised features, at each checkpoint. **Eager**.

    The order of the units has no say in which of them go together, and clusters have an order of their own: the largest
    is 0; of two of one size, the one whose mean of the first feature (then of the next) is larger comes first.

    Parameters
    ----------
    features : Dataset of variables (series, unit), or array (series, unit, feature)
        From `unit_features`; each is a column. Without the coordinate `layer` all units are one layer.
    k : int or several
        Numbers of clusters.
    layers : names or patterns (``"features.denseblock*"``), optional
        The layers to take; all of them by default.
    method : {"kmeans", "agglomerative", "gmm"}
        k-means; Ward's merging, which has no chance in it; the likelier component of a Gaussian mixture with full
        covariances, of which some may be nobody's.
    n_init, seed : int, optional
        Starts, of which the best is kept (10 by default), and what decides them (0).
    compat : {"seed"}, optional
        The reference's clusters: k-means from one start, ``random_state=42``, on the units in their order, with the
        labels as scikit-learn leaves them.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever ``features`` has.

    Returns
    -------
    unit_cluster : int64, (series, k, unit)
        The cluster of each unit among those of its layer, from 0. Its attributes say how it was found.

    Raises
    ------
    SchemaError
        If a layer is not there, or has fewer units, or units that differ, than clusters; if an option is unknown, or
        comes with ``compat``.
    NonFiniteError
        If a feature is NaN or infinite.

    References
    ----------
    Arthur and Vassilvitskii 2007, "k-means++"; Ward 1963. By ``sklearn.cluster`` and ``sklearn.mixture``.
    """
    numbers, fit = _numbers(k), _fit(method, n_init, seed, compat)
    array, series = feature_array(features, dim)
    array = chosen(array, layers).compute()
    found = np.empty((array.sizes[array.dims[0]], len(numbers), array.sizes["unit"]), dtype=np.int64)
    with threadpool_limits(limits=1):  # sums over threads come in any order, and layers are small
        for matrix in matrices(array, series):
            for i, number in enumerate(numbers):
                found[matrix.place, i, matrix.units] = fit.clusters(matrix, number)
    bare = array.isel(feature=0, drop=True)
    out = bare.expand_dims(k=list(numbers), axis=1).copy(data=found)
    out = schema.label(out, CLUSTER_RESULTS["unit_cluster"])
    out.attrs |= {"method": fit.method, "n_init": fit.n_init, "seed": fit.seed, "compat": compat or ""}
    out.attrs |= kept_attrs(features)
    return out if series is not None else out.isel(series=0)


def canonical(labels: Array, rows: Array) -> Array:
    """Number clusters anew, from 0: by decreasing size, then by decreasing means of their rows, column by column.

    Parameters
    ----------
    labels : (n,) int
    rows : (n, feature)
    """
    names, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.stack([rows[codes == number].mean(axis=0) for number in range(len(names))])
    order = np.lexsort((*-means.T[::-1], -sizes))
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(names))
    return rank[codes]


def fit_of(clusters: xr.DataArray) -> Fit:
    """Return how clusters were found, from their attributes.

    Raises
    ------
    SchemaError
        If the attributes are not there.
    """
    lacking = [name for name in ("method", "n_init", "seed", "compat") if name not in clusters.attrs]
    if lacking:
        raise SchemaError(f"the clusters have no attribute {lacking[0]!r}; take them as unit_clusters returned them")
    attrs = clusters.attrs
    return Fit(str(attrs["method"]), int(attrs["n_init"]), int(attrs["seed"]), in_order=attrs["compat"] != "seed")


def _fit(method: str, n_init: int | None, seed: int | None, compat: str | None) -> Fit:
    choice("method", method, *get_args(Method))
    if compat is not None:
        choice("compat", compat, "seed")
        if method != "kmeans" or n_init is not None or seed is not None:
            raise SchemaError("compat='seed' is k-means with n_init=1 and seed=42; leave out method, n_init and seed")
        return Fit("kmeans", 1, 42, in_order=False)
    if n_init is not None and n_init < 1:
        raise SchemaError(f"n_init={n_init} is no number of starts; give 1 or more")
    return Fit(method, STARTS if n_init is None else n_init, 0 if seed is None else seed)


def _numbers(k: Any) -> tuple[int, ...]:
    numbers = (k,) if isinstance(k, Integral) else tuple(k)
    wrong = [n for n in numbers if not isinstance(n, Integral) or n < 2]
    if wrong or not numbers:
        raise SchemaError(f"k={wrong[0] if wrong else k} is no number of clusters; give whole numbers from 2 on")
    if len(set(numbers)) < len(numbers):
        raise SchemaError(f"k={list(numbers)} names a number of clusters twice; name each once")
    return tuple(int(n) for n in numbers)


def _require(k: int, units: int, distinct: int, name: str) -> None:
    if k > units:
        raise SchemaError(f"{name} has {units} units, and k={k} needs as many at least; lower k, or choose layers=")
    if k > distinct:
        raise SchemaError(
            f"{name} has {units} units but only {distinct} that differ in their features, and k={k} needs as many at "
            "least; lower k, choose layers=, or select checkpoints"
        )
