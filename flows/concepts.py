"""Hold the masks of all units against labelled pixels, at every checkpoint."""

from typing import Any

from prefect import flow

from neurolens.flows.running import run_cube
from neurolens.study import Study


@flow(name="concepts", flow_run_name="concepts of {study.name}")
def concepts(study: Study) -> Any:
    """Bring the concepts cube up to date with the study: one row per checkpoint, and only what is missing.

    Returns
    -------
    The store's URL. The flow run ends Failed, with the list, if a row failed.
    """
    return run_cube(study, "concepts")
