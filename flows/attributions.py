"""Measure what each cluster of units carries of the answer to each image."""

from typing import Any

from prefect import flow

from neurolens.flows.running import run_cube
from neurolens.study import Study


@flow(name="attributions", flow_run_name="attributions of {study.name}")
def attributions(study: Study) -> Any:
    """Bring the attributions cube up to date with the study: one row per checkpoint and block of
    images, and only what is missing.

    Returns
    -------
    The store's URL. The flow run ends Failed, with the list, if a row failed.
    """
    return run_cube(study, "attributions")
