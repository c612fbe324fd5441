"""Tell the direction of each pair of a unit and a head in few phrases, at each checkpoint."""

from typing import Any

from prefect import flow

from neurolens.flows.running import run_cube
from neurolens.study import Study


@flow(name="codes", flow_run_name="codes of {study.name}")
def codes(study: Study) -> Any:
    """Bring the codes cube up to date with the study: a row per checkpoint and block of pairs; only what is missing.

    Returns
    -------
    The store's URL. The flow run ends Failed, with the list, if a row failed.
    """
    return run_cube(study, "codes")
