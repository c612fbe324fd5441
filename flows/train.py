"""Train the study's network, with checkpoints."""

from typing import Any

from prefect import flow

from neurolens.flows.running import run_training
from neurolens.study import Study


@flow(name="train", flow_run_name="training of {study.name}")
def train(study: Study) -> Any:
    """Train as the study says, from the last checkpoint on; nothing is done where training is complete.

    Returns
    -------
    The folder of the checkpoints.
    """
    return run_training(study)
