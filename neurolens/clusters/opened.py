"""Clusters as a store holds them, turned to what `unit_clusters` returns."""

import json
from typing import Any

import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.clusters.fitting import STARTS
from neurolens.errors import MissingMeasurementError, SchemaError
from neurolens.schema.cluster_results import CLUSTER_RESULTS
from neurolens.units.inputs import OnMissing, choice, kept_attrs, labels_of, listed, series_of


def clusters_of(ds: xr.Dataset, *, missing: OnMissing = "error", dim: str | None = None) -> xr.DataArray:
    """Return the clusters of the opened clusters cube as `unit_clusters` returns them. **Eager**.

    With them `cluster_summary` and `cluster_stability` take the cube's own features:
    ``cluster_stability(ds[["rate", "mean", "variance"]], clusters_of(ds))``.

    Parameters
    ----------
    ds : the opened clusters cube, or one checkpoint of it
    missing : {"error", "drop"}
        Raise where a checkpoint has no clusters, or leave it out.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever ``ds`` has.

    Returns
    -------
    unit_cluster : int64, (series, k, unit)
        Its attributes say how it was found, where the cube knows.

    Raises
    ------
    SchemaError
        If there are no clusters over (k, unit).
    MissingMeasurementError
        If clusters were not measured at a checkpoint, or at none.
    """
    choice("missing", missing, "error", "drop")
    schema.present(ds, "unit_cluster")
    array, series = ds["unit_cluster"], series_of(ds, dim)
    needed = {"k", "unit"} | ({series} if series else set())
    if set(array.dims) != needed:
        raise SchemaError(
            f"found clusters over {dict(array.sizes)}, and {tuple(sorted(needed))} were needed; select with lists to "
            "keep dims"
        )
    array = array.transpose(*([series] if series else []), "k", "unit").compute()
    known = np.isfinite(array.to_numpy()).all(axis=(-2, -1))
    if not known.all():
        where = f"at {series} {listed(labels_of(array, series)[~known])}" if series else "here"
        if missing == "error" or not known.any():
            more = ', or pass missing="drop" to leave them out' if known.any() else ""
            raise MissingMeasurementError(
                f"there are no clusters {where}; measure them: `neurolens run STUDY --only clusters` (`neurolens "
                f"status STUDY` says why they are missing){more}"
            )
        array = array.isel({series: np.flatnonzero(known)})
    out = schema.label(array.astype(np.int64), CLUSTER_RESULTS["unit_cluster"])
    out.attrs |= kept_attrs(ds) | _found_by(ds)
    return out


def _found_by(ds: xr.Dataset) -> dict[str, Any]:
    """Return how clusters were found, as the cube's settings have it."""
    told = json.loads(ds.attrs.get("settings", "{}")).get("parts", {}).get("clusters", {})
    if told.get("compat"):
        return {"method": "kmeans", "n_init": 1, "seed": 42, "compat": told["compat"]}
    if "method" not in told:
        return {key: ds["unit_cluster"].attrs[key] for key in ("method", "n_init", "seed", "compat")
                if key in ds["unit_cluster"].attrs}  # fmt: skip
    return {
        "method": told["method"],
        "n_init": told.get("starts", STARTS),
        "seed": told.get("start_seed", 0),
        "compat": "",
    }
