"""What a network answers to samples: which classes are explained and scored, and what is explained at the two ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from neurolens.attribution.gradients import explained_of
from neurolens.effects.interventions import logits_of
from neurolens.errors import ModelMismatchError, NonFiniteError
from neurolens.study import Attributions

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Answered:
    """Classes of samples, (B,) int64 on the device of their logits, (B, classes) float64."""

    logits: Tensor
    target: Tensor
    predicted: Tensor
    scored: Tensor
    label_rank: Tensor


def answered(
    module: nn.Module, x: Tensor, labels: Tensor, table: Attributions, *, ids: Sequence[str], batch_size: int
) -> Answered:
    """Show samples as they are.

    Raises
    ------
    ModelMismatchError
        If the network does not give a row of logits per sample, or has fewer classes than the labels.
    NonFiniteError
        If a logit is NaN or infinite, naming the sample.
    """
    logits = _logits(module, x, ids, batch_size, "")
    classes = logits.shape[1]
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        at = int(wrong.nonzero()[0, 0])
        raise ModelMismatchError(
            f"sample {ids[at]!r} has label {int(labels[at])}, and the network has classes 0 to {classes - 1}; set "
            "classes in [model], or choose other samples"
        )
    predicted, own = logits.argmax(dim=1), logits.gather(1, labels[:, None])
    target = predicted if table.target == "predicted" else labels
    scored = predicted if table.scored == "predicted" else target
    return Answered(logits, target, predicted, scored, (logits > own).sum(dim=1))


def answer_values(
    module: nn.Module, found: Answered, start: Tensor, table: Attributions, *, ids: Sequence[str], batch_size: int
) -> dict[str, Array]:
    """Return the variables of the part "answers", (B,) each; ``start`` (1 or B, …) is where paths start.

    Raises
    ------
    ModelMismatchError
        If a margin is asked of a single class.
    NonFiniteError
        If a logit at the start is NaN or infinite, naming the sample.
    """
    begun = _logits(module, start, ids, batch_size, ", where its path starts")
    begun = begun.expand(len(found.logits), -1)
    values = {name: getattr(found, name) for name in ("target", "predicted", "scored", "label_rank")}
    values["output"] = explained_of(found.logits, found.target, table.explain)
    values["baseline_output"] = explained_of(begun, found.target, table.explain)
    values["logit"] = explained_of(found.logits, found.scored, "logit")
    values["log_prob"] = explained_of(found.logits, found.scored, "log_prob")
    return {name: np.asarray(value.cpu()) for name, value in values.items()}


def _logits(module: nn.Module, x: Tensor, ids: Sequence[str], batch_size: int, where: str) -> Tensor:
    """Return logits (B, classes) float64."""
    with torch.no_grad():
        batches = torch.split(x, batch_size)
        logits = torch.cat([logits_of(module(batch), len(batch), 1).double() for batch in batches])
    wrong = (~logits.isfinite().all(dim=1)).nonzero()
    if len(wrong):
        raise NonFiniteError(
            f"sample {ids[int(wrong[0, 0])]!r} has a logit of NaN or infinity{where}, and finite numbers were needed; "
            "leave it, or the checkpoint, out"
        )
    return logits
