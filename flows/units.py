"""Keep statistics of every unit's activations, at every checkpoint."""

from typing import Any

from prefect import flow

from neurolens.flows.running import run_cube
from neurolens.study import Study


@flow(name="units", flow_run_name="units of {study.name}")
def units(study: Study) -> Any:
    """Bring the units cube up to date with the study: one row per checkpoint, and only what is missing.

    Returns
    -------
    The store's URL. The flow run ends Failed, with the list, if a row failed.
    """
    return run_cube(study, "units")
