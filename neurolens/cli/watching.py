"""Progress of a run on the terminal, and what came of it."""

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.table import Column
from rich.text import Text

from neurolens.cli.console import live_console

if TYPE_CHECKING:
    from neurolens.rows import Plan, Result


@dataclass
class Outcome:
    """What a run of a study did: rows by outcome over all cubes, and who failed for which reasons, each said once.

    ``notes`` say why a cube has no rows at all, where nothing was to be done.
    """

    computed: int = 0
    reused: int = 0
    epochs: int = 0
    failed: int = 0
    reasons: dict[tuple[str, str], None] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def failure(self, who: str, why: str) -> None:
        """Count a failure; the same checkpoint may fail for the same reason in several cubes and blocks."""
        self.failed += 1
        self.reasons[who, why] = None

    def add(self, other: "Outcome") -> None:
        """Count what another run did too."""
        self.computed += other.computed
        self.reused += other.reused
        self.epochs += other.epochs
        self.failed += other.failed
        self.reasons |= other.reasons
        self.notes |= other.notes

    @property
    def summary(self) -> str:
        """One line for people."""
        trained = f"{self.epochs} epochs trained, " if self.epochs else ""
        return f"{trained}{self.computed} rows computed, {self.reused} up to date, {self.failed} failed"


class Rate(ProgressColumn):
    """Rows (or epochs) per second."""

    def render(self, task: Task) -> Text:
        """Show the speed of a task."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


def columns(width: int) -> list[ProgressColumn]:
    """Return the columns that fit a terminal: the figures go first, then the bar, then the rate."""
    found: list[ProgressColumn] = [_column("{task.description}")]
    if width >= 60:
        found.append(BarColumn(bar_width=max(10, min(40, width - 68))))
    found.append(MofNCompleteColumn(table_column=Column(no_wrap=True)))
    if width >= 48:
        found.append(Rate(table_column=Column(no_wrap=True)))
    found.append(TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(no_wrap=True)))
    if width >= 80:
        found.append(_column("{task.fields[note]}"))
    return found


def _column(text: str) -> TextColumn:
    return TextColumn(text, table_column=Column(no_wrap=True))


class Watch:
    """Listens to the flows and shows them: a bar per flow with its rows, rate and time left.

    ``run`` is the name of the run that they work on, where there are several.
    """

    def __init__(self) -> None:
        self.run = ""
        self.outcome = Outcome()
        self.status: Status | None = None
        self.console = live_console()
        self.progress = Progress(*columns(self.console.width), console=self.console)
        self._bar: TaskID | None = None
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def planned(self, plan: "Plan") -> None:
        """Start a bar for the rows of a cube."""
        for note in plan.notes:
            if note not in self._said:  # of the same checkpoints, cube after cube
                self._said.add(note)
                self.console.print(f"[dim]{escape(note)}[/]")
        self.outcome.reused += plan.count("done")
        self._start(plan.cube, len(plan.todo))

    def finished(self, result: "Result") -> None:
        """Count a row."""
        if result.outcome == "io_error":
            return
        with self._lock:
            if result.outcome == "failed":
                self.outcome.failure(f"{self.run} {result.row.path.name}".strip(), result.why)
            elif result.outcome == "computed":
                self.outcome.computed += 1
            else:
                self.outcome.reused += 1
        if self._bar is not None:
            self.progress.advance(self._bar)

    def trained(self, epoch: int, epochs: int, figures: dict[str, float]) -> None:
        """Show a finished epoch of training, the first of which starts a bar."""
        if self._bar is None:
            self._start("train", epochs)
        self.outcome.epochs += 1
        if self._bar is not None:
            shown = {"loss": figures.get("train_loss"), "accuracy": figures.get("val_acc", figures.get("train_acc"))}
            note = "  ".join(f"{name} {value:.3f}" for name, value in shown.items() if value is not None)
            self.progress.update(self._bar, completed=epoch, note=note)

    def close(self) -> None:
        """End the bar of a flow."""
        self._bar = None

    def _start(self, name: str, total: int) -> None:
        if self.status is not None:
            self.status.stop()
        self._bar = self.progress.add_task(f"{self.run} {name}".strip(), total=total, note="") if total else None
