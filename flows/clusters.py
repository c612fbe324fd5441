"""Put the units of each layer into clusters, at each checkpoint."""

from typing import Any

from prefect import flow

from neurolens.flows.running import run_cube
from neurolens.study import Study


@flow(name="clusters", flow_run_name="clusters of {study.name}")
def clusters(study: Study) -> Any:
    """Bring the clusters cube up to date with the study: one row per checkpoint, and only what is missing.

    Returns
    -------
    The store's URL. The flow run ends Failed, with the list, if a row failed.
    """
    return run_cube(study, "clusters")
