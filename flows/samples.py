"""Measure every checkpoint on every sample."""

from typing import Any

from prefect import flow

from neurolens.flows.running import run_cube
from neurolens.study import Study


@flow(name="samples", flow_run_name="samples of {study.name}")
def samples(study: Study) -> Any:
    """Bring the samples cube up to date with the study: one row per checkpoint, and only what is missing.

    Returns
    -------
    The store's URL. The flow run ends Failed, with the list, if a row failed.
    """
    return run_cube(study, "samples")
