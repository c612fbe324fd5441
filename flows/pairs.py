"""Measure what each unit says through each head of an attention pool, at each checkpoint."""

from typing import Any

from prefect import flow

from neurolens.flows.running import run_cube
from neurolens.study import Study


@flow(name="pairs", flow_run_name="pairs of {study.name}")
def pairs(study: Study) -> Any:
    """Bring the pairs cube up to date with the study: a row per checkpoint and block of images; only what is missing.

    Returns
    -------
    The store's URL. The flow run ends Failed, with the list, if a row failed.
    """
    return run_cube(study, "pairs")
