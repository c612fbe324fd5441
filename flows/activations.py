"""Keep every unit's activation on every sample, at every checkpoint."""

from typing import Any

from prefect import flow

from neurolens.flows.running import run_cube
from neurolens.study import Study


@flow(name="activations", flow_run_name="activations of {study.name}")
def activations(study: Study) -> Any:
    """Bring the activations cube up to date with the study: a row per checkpoint and block of samples.

    Returns
    -------
    The store's URL. The flow run ends Failed, with the list, if a row failed.
    """
    return run_cube(study, "activations")
