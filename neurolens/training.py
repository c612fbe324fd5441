"""Train a study's network with checkpoints, on Lightning: seeded, and resumable after a kill, bit for bit."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurolens import models
from neurolens.data import SampleSet, open_samples, study_samples, validation_table
from neurolens.errors import DataError, ModelMismatchError, StudyError
from neurolens.study import Study, Train
from neurolens.study.seeds import one_run
from neurolens.tensor_names import RENAMES, as_in_network
from neurolens.training_schedule import Row, resolved_milestones
from neurolens.training_state import Folder, settings_text


@dataclass(frozen=True)
class TrainingResult:
    """What a training left, and what this call added.

    Attributes
    ----------
    checkpoints : paths, in order of training
    metrics : path of metrics.csv
    epoch, step : epochs and optimizer steps trained in all
    resumed_from : epoch that this call went on from, or None where it began anew
    trained_epochs : epochs that this call finished; 0 where the training was complete already
    """

    checkpoints: tuple[Path, ...]
    metrics: Path
    epoch: int
    step: int
    resumed_from: int | None
    trained_epochs: int

    @property
    def message(self) -> str:
        """One sentence that says what happened."""
        where = self.metrics.parent
        if self.trained_epochs == 0 and self.resumed_from is not None:
            return (
                f"already trained to epoch {self.epoch}: {len(self.checkpoints)} checkpoints in {where}; nothing to do"
            )
        since = f", from epoch {self.resumed_from}" if self.resumed_from else ""
        return f"trained to epoch {self.epoch}{since}: {len(self.checkpoints)} checkpoints in {where}"


def train(study: Study, *, progress: bool | Callable[[Row], None] = True, until: int | None = None) -> TrainingResult:
    """Train the study's network, or go on from the last checkpoint.

    Checkpoint 0 is the untrained network and checkpoint *e* the one after *e* epochs, also where the initial state is
    not kept; a checkpoint taken within an epoch has the epochs finished so far. The last state is always saved.
    ``metrics.csv`` beside the checkpoints has one row per finished epoch. The weights are drawn from
    ``train.seed``; shuffling, augmentation and dropout are functions of the seed, the epoch and the sample (or batch),
    so that a resumed run ends with the same bytes as an undisturbed one at the same number of threads. More epochs
    may be asked for later: the run goes on, unless a milestone moved with them.

    With ``data.exposure``, an epoch shows the samples of its task's classes, the loss is taken over the logits of all
    classes introduced so far, and lr's milestones count from the start of the task.

    Parameters
    ----------
    progress
        True for a progress bar; a callable is given each epoch's row of the metrics instead.
    until
        Stop after this epoch.

    Raises
    ------
    StudyError
        If the study has no [train] or lists seeds, its device is absent, or its settings differ from those of the
        checkpoints.
    DataError
        If training and validation share samples, or name classes differently.
    CheckpointError
        If the folder holds another run, is incomplete, or is being written by another process.
    NonFiniteError
        If the loss of an epoch is NaN or infinite; what was saved before stays.
    """
    study = one_run(study)
    if study.train is None:
        raise StudyError("the study has no [train] table, so its checkpoints are only read; add one to train")
    table = study.train
    folder = Folder(study.checkpoints.folder, study.checkpoints)
    last = table.epochs if until is None else min(until, table.epochs)
    with folder.held():
        samples, validation = _data(study, table)
        network = models.build(study.model, seed=table.seed)
        settings = _settings(study, table, network, samples, validation)
        state = folder.read_resume(settings)
        resumed_from = None if state is None else int(state["epoch"])
        if state is None or state["epoch"] < last:
            from neurolens.training_fit import Fit  # Lightning takes seconds to import
            from neurolens.training_loop import fit_epochs

            if state is None and table.pretrained:
                _load_pretrained(network.module, study.model.name)
            fit = Fit(study, network, samples, validation, folder, settings_text(settings), state, last)
            fit_epochs(fit, study, progress)
            state = fit.resume_state()
        written = tuple(folder.path / name for name in state["written"])
        epoch = int(state["epoch"])
        return TrainingResult(
            written, folder.metrics, epoch, int(state["step"]), resumed_from, epoch - (resumed_from or 0)
        )


def _data(study: Study, table: Train) -> tuple[SampleSet, SampleSet | None]:
    samples = study_samples(study)
    if len(samples.classes) > study.model.classes:
        raise DataError(
            f"{samples.name} has {len(samples.classes)} classes and the network {study.model.classes}; "
            f"set model.classes = {len(samples.classes)}"
        )
    if table.validation is None:
        return samples, None
    validation = open_samples(validation_table(study.data, table.validation))
    if validation.classes != samples.classes:
        raise DataError(
            f"{validation.name} and {samples.name} name different classes, so their labels do not mean the same; "
            "give both splits the same class folders"
        )
    shared = np.intersect1d(samples.ids, validation.ids)
    if len(shared) and not table.validation.allow_overlap:
        raise DataError(
            f"{len(shared)} of the {len(validation)} validation samples ({validation.name}) are trained on as well "
            f"({samples.name}), first {shared[0]}; choose another split or selection, or set "
            "train.validation.allow_overlap = true"
        )
    return samples, validation


def _settings(
    study: Study, table: Train, network: models.Network, samples: SampleSet, validation: SampleSet | None
) -> dict[str, Any]:
    """Return all that the weights and the metrics depend on; more epochs may be added to a training."""
    train = table.model_dump(mode="json", exclude={"epochs", "validation", "milestones"})
    return {
        "train": train | {"milestones": list(resolved_milestones(table, samples))},
        "model": network.description,
        "data": {"name": samples.name, "fingerprint": samples.fingerprint},
        "exposure": samples.exposure.as_dict() if samples.exposure is not None else None,
        "validation": validation.fingerprint if validation is not None else None,
        "checkpoints": {"pattern": study.checkpoints.pattern, "fields": study.checkpoints.fields},
    }


def _load_pretrained(module: torch.nn.Module, name: str) -> None:
    """Fill in torchvision's weights, all but a head with another number of classes."""
    from torchvision import models as torchvision_models

    try:
        weights = torchvision_models.get_model_weights(name).DEFAULT
    except ValueError:
        raise StudyError(
            f"train.pretrained needs a torchvision model, and model.name is {name!r}; set pretrained = false"
        ) from None
    own = module.state_dict()
    state = as_in_network(weights.get_state_dict(progress=False, check_hash=True), renames=RENAMES)
    fitting = {key: tensor for key, tensor in state.items() if key in own and own[key].shape == tensor.shape}
    missing, _ = module.load_state_dict(fitting, strict=False)
    owners = {key.rpartition(".")[0] for key in missing}
    heads = {n for n, part in module.named_modules() if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)}
    if len(owners) > 1 or not owners <= heads:
        raise ModelMismatchError(
            f"torchvision's weights of {name} lack {len(missing)} tensors of this network, first {missing[0]}; "
            "only the classification layer may differ: remove model.options, or set pretrained = false"
        )
