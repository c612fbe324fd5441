"""Lightning's part of a training: the trainer, its device, its bar, and its silence."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import RichProgressBar

from neurolens.errors import StudyError
from neurolens.rows import device
from neurolens.study import Compute, Study
from neurolens.training_fit import Fit
from neurolens.training_schedule import Row

_PRECISION: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def fit_epochs(fit: Fit, study: Study, progress: bool | Callable[[Row], None]) -> None:
    """Train until the fit's last epoch, and leave torch and logging as they were.

    Raises
    ------
    StudyError
        If the device is absent, or cannot train in the precision that the study names.
    """
    fit.on_row = progress if callable(progress) else None
    accelerator, devices = _devices(study.compute, fit.table.precision)
    with _own_torch_state(study.compute.threads, cpu=accelerator == "cpu"), _quiet_lightning():
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=devices,
            precision=_PRECISION[fit.table.precision],
            max_epochs=fit.last,
            reload_dataloaders_every_n_epochs=1,  # an epoch's length changes with exposure, and after a resumption
            callbacks=[_Bar()] if progress is True else [],
            plugins=[LightningEnvironment()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=progress is True,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            benchmark=False,
        )
        done: Any = trainer.fit_loop.epoch_progress.current
        done.ready = done.started = done.processed = done.completed = fit.epoch
        trainer.fit(fit, fit.training_loader(), fit.validation_loader())


class _Bar(RichProgressBar):
    """Counts epochs from 1, as checkpoints are."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch + 1} of {self.trainer.max_epochs}"


def _devices(compute: Compute, precision: str) -> tuple[str, int | list[int]]:
    kind, _, index = device(compute).partition(":")
    if precision == "16" and kind == "cpu":
        raise StudyError("train.precision = '16' needs a GPU; use '32', or 'bf16' on a CPU")
    return kind, [int(index)] if index else 1


@contextmanager
def _own_torch_state(threads: int | None, *, cpu: bool) -> Iterator[None]:
    """Give back torch's random state and thread count as they were."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(() if cpu else range(torch.cuda.device_count())):
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.set_num_threads(before)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advice and banners for as long as it runs, and nothing else."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for module in (r"lightning\b.*", r"torch\.utils\._pytree", r"torchmetrics\b.*"):
            warnings.filterwarnings("ignore", module=module)
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
