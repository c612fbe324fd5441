"""Take away units whose concepts died, at the checkpoints just before and after."""

from typing import Any

from prefect import flow

from neurolens.flows.running import run_cube
from neurolens.study import Study


@flow(name="effects", flow_run_name="effects of {study.name}")
def effects(study: Study) -> Any:
    """Bring the effects cube up to date with the study: one row per checkpoint next to a death, and only
    what is missing.

    Returns
    -------
    The store's URL. The flow run ends Failed, with the list, if a row failed.
    """
    return run_cube(study, "effects")
