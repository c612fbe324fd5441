"""When lr falls, and which task an epoch is of."""

from neurolens.data import SampleSet
from neurolens.study import Train

Row = dict[str, float | int | None]
"""What the metrics say of an epoch."""


def learning_rate(table: Train, epoch: int, length: int) -> float:
    """Return lr in an epoch (0, 1, …) of a task of ``length`` epochs, dropped by ``gamma`` at each milestone."""
    if table.step_size is not None:
        return table.lr * table.gamma ** (epoch // table.step_size)
    drops = sum(epoch >= milestone for milestone in _milestones(table, length))
    return table.lr * table.gamma**drops


def resolved_milestones(table: Train, samples: SampleSet) -> tuple[float, ...]:
    """Return the milestones in epochs of the first task, or of the whole training where there are no tasks."""
    return _milestones(table, task_of(samples, 1, table.epochs)[1])


def _milestones(table: Train, length: int) -> tuple[float, ...]:
    return tuple(m * length if m < 1 else m for m in table.milestones)


def task_of(samples: SampleSet, epoch: int, epochs: int) -> tuple[int, int]:
    """Return the start of the task of training epoch ``epoch`` (1, 2, …) and its length.

    The last task, which may end at any time, counts as long as the one before it.
    """
    if samples.exposure is None or len(samples.exposure.starts) == 1:
        return 0, epochs
    starts = samples.exposure.starts
    task = samples.exposure.task(epoch)
    start, end = (starts[task], starts[task + 1]) if task + 1 < len(starts) else starts[-2:]
    return starts[task], end - start
