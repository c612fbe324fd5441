"""Units on a plane, near those that they are like: for the eye, not for measuring."""

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from neurolens import schema
from neurolens.clusters.matrices import Array, chosen, feature_array, matrices, zscore
from neurolens.errors import SchemaError
from neurolens.schema.cluster_results import CLUSTER_RESULTS
from neurolens.units.inputs import kept_attrs

PERPLEXITY = 30.0
"""The reference's, and scikit-learn's."""


def unit_embedding(
    features: xr.Dataset | xr.DataArray,
    *,
    layers: str | list[str] | None = None,
    scaled: bool = True,
    perplexity: float = PERPLEXITY,
    seed: int = 0,
    dim: str | None = None,
) -> xr.DataArray:
    """Lay the units of each layer out on a plane by t-SNE of their features, at each checkpoint. **Eager**.

    Distances and sizes on the plane mean little; who is whose neighbour does.

    Parameters
    ----------
    features : Dataset of variables (series, unit), or array (series, unit, feature)
        From `unit_features`. Without the coordinate `layer` all units are one layer.
    layers : names or patterns, optional
        The layers to take; all of them by default.
    scaled : bool
        Put features on one scale first, as for clusters. False: take them as they are, as the reference does, so that
        the one of the largest numbers decides.
    perplexity : float
        How many neighbours count, about. It is at most a third of the other units of a layer.
    seed : int
    dim : str, optional
        The series dim; `epoch` or `step`, whichever ``features`` has.

    Returns
    -------
    embedding : float64, (series, unit, coordinate), dimensionless
        Of two coordinates; 0 for units of a layer that do not differ at all.

    Raises
    ------
    SchemaError
        If a layer is not there, or the perplexity is no positive number.
    NonFiniteError
        If a feature is NaN or infinite.

    References
    ----------
    van der Maaten and Hinton 2008, "Visualizing Data using t-SNE". By ``sklearn.manifold.TSNE``.
    """
    if not (np.isfinite(perplexity) and perplexity > 0):
        raise SchemaError(f"perplexity={perplexity} is no number of neighbours; give {PERPLEXITY:g}, say")
    array, series = feature_array(features, dim)
    array = chosen(array, layers).compute()
    found = np.zeros((*array.shape[:2], 2))
    with threadpool_limits(limits=1):  # sums over threads come in any order
        for matrix in matrices(array, series):
            values = zscore(matrix.values) if scaled else matrix.values
            found[matrix.place, matrix.units] = _laid_out(values, perplexity, seed)
    dims = (*array.dims[:2], "coordinate")
    coords = {name: coord.variable for name, coord in array.coords.items() if set(coord.dims) <= set(dims[:2])}
    out = schema.label(xr.DataArray(found, coords=coords, dims=dims), CLUSTER_RESULTS["embedding"])
    out.attrs |= {"scaled": int(scaled), "perplexity": float(perplexity), "seed": seed} | kept_attrs(features)
    return out if series is not None else out.isel(series=0)


def _laid_out(values: Array, perplexity: float, seed: int) -> Array:
    from sklearn.manifold import TSNE

    units, features = values.shape
    if units < 2 or (values == values[0]).all():
        return np.zeros((units, 2))
    most = max(1.0, (units - 1) / 3)
    start = "pca" if features > 1 else "random"
    model = TSNE(2, perplexity=min(perplexity, most), init=start, random_state=seed)
    found: Array = model.fit_transform(values)
    return found
