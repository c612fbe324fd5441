"""Embed the phrases of a study by the text tower of each checkpoint."""

from typing import Any

from prefect import flow

from neurolens.flows.running import run_cube
from neurolens.study import Study


@flow(name="texts", flow_run_name="texts of {study.name}")
def texts(study: Study) -> Any:
    """Bring the texts cube up to date with the study: a row per checkpoint and block of phrases; only what is missing.

    Returns
    -------
    The store's URL. The flow run ends Failed, with the list, if a row failed.
    """
    return run_cube(study, "texts")
