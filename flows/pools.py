"""Keep the attention pool of each checkpoint, and totals of its pairs over all images."""

from typing import Any

from prefect import flow

from neurolens.flows.running import run_cube
from neurolens.study import Study


@flow(name="pools", flow_run_name="pools of {study.name}")
def pools(study: Study) -> Any:
    """Bring the pools cube up to date with the study: one row per checkpoint, and only what is missing.

    Returns
    -------
    The store's URL. The flow run ends Failed, with the list, if a row failed.
    """
    return run_cube(study, "pools")
