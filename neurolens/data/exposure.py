"""Which classes a class-incremental run has been trained on, by epoch.

Epochs are counted as checkpoints are: checkpoint 0 is the untrained network, and checkpoint *e* was saved after the
training epochs 1 … *e*. A task that starts at *s* therefore trains the epochs *s* + 1, *s* + 2, …, and its classes are
**exposed at checkpoint e if and only if e > s**: at checkpoint 0 no class has been introduced; with 200 epochs per
task, checkpoint 200 has seen the first task only, and checkpoint 201 has seen the second one too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neurolens.errors import DataError
from neurolens.study import Exposure


@dataclass(frozen=True)
class ClassSchedule:
    """The classes trained on from each task's start (a checkpoint epoch) on."""

    starts: tuple[int, ...]
    active: tuple[tuple[int, ...], ...]

    def task(self, epoch: int) -> int:
        """Return the task that training epoch ``epoch`` (1, 2, …) belongs to."""
        return int(np.searchsorted(self.starts, epoch, side="left")) - 1

    def trained_in(self, epoch: int) -> tuple[int, ...]:
        """Return the classes whose samples are shown in training epoch ``epoch`` (1, 2, …)."""
        return self.active[self.task(epoch)]

    def introduced(self, epoch: int) -> tuple[int, ...]:
        """Return the classes exposed at checkpoint ``epoch``: all that were trained on in epochs 1 … ``epoch``."""
        tasks = self.active[: self.task(epoch) + 1] if epoch > 0 else ()
        return tuple(sorted({c for classes in tasks for c in classes}))

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-able form: start -> classes."""
        return {str(start): list(classes) for start, classes in zip(self.starts, self.active)}


def class_schedule(table: Exposure, classes: int) -> ClassSchedule:
    """Resolve the study's exposure table for a data set of ``classes`` classes.

    Raises
    ------
    DataError
        If the order is not a permutation of the classes, its file is absent or foreign, or the schedule names an
        unknown class or does not begin at epoch 0.
    """
    if table.schedule is not None:
        starts = tuple(sorted(table.schedule))
        if not starts or starts[0] != 0:
            raise DataError(
                f"[data.exposure] schedule begins at epoch {starts[0] if starts else '(none)'}; the first task must "
                "begin at 0 (its classes are trained from epoch 1 on)"
            )
        for start in starts:
            chosen = table.schedule[start]
            unknown = [c for c in chosen if not 0 <= c < classes]
            if unknown or not chosen:
                raise DataError(
                    f"[data.exposure] schedule at epoch {start} names {unknown or 'no'} classes; "
                    f"the data has classes 0 to {classes - 1}"
                )
        return ClassSchedule(starts, tuple(tuple(sorted(set(table.schedule[s]))) for s in starts))
    order = _order(table.order, classes)
    counts = [*range(min(table.start, classes), classes, table.step), classes]
    return ClassSchedule(
        tuple(table.every * i for i in range(len(counts))), tuple(tuple(sorted(order[:n])) for n in counts)
    )


def exposure_table(
    exposure: ClassSchedule | Exposure, classes: int, epochs: Sequence[int] | npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.bool_]:
    """Return which class had been introduced at which checkpoint.

    Parameters
    ----------
    exposure : ClassSchedule or study.Exposure
    classes : number of classes
    epochs : (epoch,) checkpoint epochs, 0 is the untrained network

    Returns
    -------
    (epoch, class) bool
        True where training up to and including that epoch has shown the class (``epoch > start of its task``);
        all False at epoch 0.

    Raises
    ------
    DataError
        If an epoch is negative, which stands for unknown.
    """
    schedule = class_schedule(exposure, classes) if isinstance(exposure, Exposure) else exposure
    table = np.zeros((len(epochs), classes), dtype=np.bool_)
    for row, epoch in enumerate(np.asarray(epochs, dtype=np.int64)):
        if epoch < 0:
            raise DataError(
                f"checkpoint number {row} has no epoch, which a class schedule needs; "
                "put {epoch} in checkpoints.pattern, or drop [data.exposure]"
            )
        table[row, list(schedule.introduced(int(epoch)))] = True
    return table


def _order(order: tuple[int, ...] | Path | None, classes: int) -> list[int]:
    if order is None:
        return list(range(classes))
    where = "[data.exposure] order"
    if isinstance(order, Path):
        where = f"{where} ({order})"
        try:
            loaded = np.load(order, allow_pickle=False)
        except FileNotFoundError:
            raise DataError(f"{where} is not there; give the class-order .npy file of the run, or a list") from None
        except ValueError as error:
            raise DataError(f"{where} is not a plain .npy array ({error}); save the order with numpy.save") from None
        order = tuple(int(c) for c in np.asarray(loaded).ravel())
    if sorted(order) != list(range(classes)):
        raise DataError(
            f"{where} has {len(order)} entries, {len(set(order))} distinct; "
            f"it must hold each of the classes 0 to {classes - 1} once"
        )
    return list(order)
