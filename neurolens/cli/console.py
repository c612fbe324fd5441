"""What every command shares: the console, and how errors are told."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from neurolens.errors import NeurolensError, StudyError

if TYPE_CHECKING:
    from neurolens.study import StoreTable, Study

BAD_INPUT = 2
ROWS_FAILED = 1
STOPPED = 130
STOPPED_TEXT = "stopped; every row written so far is safe, and running again goes on from here"

console = Console(highlight=False, soft_wrap=True)
complaints = Console(stderr=True, highlight=False, soft_wrap=True)

Run = Annotated[str, typer.Argument(metavar="RUN", help="A store (folder or s3://…), or the study file that names it.")]
Profile = Annotated[str | None, typer.Option("--profile", "-p", help="Use this one of the study's profiles.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of a study that lists seeds, the run of this one.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one key.")]


class Commands(TyperGroup):
    """The commands; an error raised on purpose becomes one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command and tell of errors."""
        if ctx.params.get("debug"):
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except NeurolensError as error:
            complain(str(error))
            raise typer.Exit(BAD_INPUT) from None
        except BrokenPipeError:  # whoever read our output has gone: the framework ends quietly
            raise
        except OSError as error:  # a full disk, a folder that may not be written, a server that is gone
            complain(f"{error}; what was committed before is safe; `neurolens --debug …` shows where it happened")
            raise typer.Exit(BAD_INPUT) from None
        except KeyboardInterrupt:
            complain(STOPPED_TEXT)
            raise typer.Exit(STOPPED) from None


def live_console() -> Console:
    """Return the console for what is redrawn: plain where stdout is no terminal, whatever FORCE_COLOR says."""
    return console if sys.stdout.isatty() else Console(highlight=False, soft_wrap=True, force_terminal=False)


def listing(title: str, *names: str, wrapped: tuple[str, ...]) -> Table:
    """Return an empty table; the columns in ``wrapped`` share the room that the others leave, and these are whole."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=name not in wrapped, overflow="fold")
    return table


def print_whole(table: Table) -> None:
    """Print a table as wide as it is: of what is to be copied, such as a layer's name, nothing is cut off."""
    unbound = console.options.update(max_width=10_000)
    table.width = console.measure(table, options=unbound).maximum
    console.print(table, crop=False)


def say(text: str) -> None:
    """Print text as it is."""
    console.print(escape(text))


def complain(text: str) -> None:
    """Print an error to stderr."""
    complaints.print(f"[bold red]error[/]: {escape(text)}")


def require_picture(option: str, path: Path) -> None:
    """Refuse a file that no picture can be written to, before anything is computed for it.

    Raises
    ------
    StudyError
        If its ending is that of no kind of picture, or it is a folder.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    ending, known = path.suffix.removeprefix(".").lower(), FigureCanvasBase.get_supported_filetypes()
    if ending not in known or path.is_dir():
        raise StudyError(f"{option} {path} is no file of a picture; name one, e.g. {path.with_suffix('.png').name}")


def study_in(path: Path, profile: str | None = None, overrides: list[str] | None = None) -> "Study":
    """Load the study that a STUDY argument names.

    Raises
    ------
    StudyError
        If it is wrong, or a store is named in its place.
    """
    from neurolens.study import load_study

    if str(path).startswith("s3:") or (path / "refs").is_dir():
        raise StudyError(f"{path} is a store, and the file of a study was needed; `neurolens show` tells of a store")
    return load_study(path, profile=profile, overrides=tuple(overrides or ()))


def run_in(
    path: Path, profile: str | None = None, overrides: list[str] | None = None, seed: int | None = None
) -> "Study":
    """Load the study of one run: of a study that lists seeds, that of one of them.

    Raises
    ------
    StudyError
        If it is wrong, or lists seeds and none of them is named.
    """
    from neurolens.study.seeds import one_run

    return one_run(study_in(path, profile, overrides), seed)


def store_of(run: str, profile: str | None = None, seed: int | None = None) -> "StoreTable":
    """Return the store that a RUN argument means.

    Raises
    ------
    StudyError
        If it is neither a store nor the file of a study, or the study lists seeds and none of them is named.
    """
    from neurolens.study import StoreTable

    if run.endswith(".toml"):
        return run_in(Path(run), profile, None, seed).store
    for option, given in (("--profile", profile), ("--seed", seed)):
        if given is not None:
            raise StudyError(f"{option} goes with a study file, and {run} is a store; name the file, or leave it out")
    studies = sorted(Path(run).glob("*.toml")) if not (Path(run) / "refs").is_dir() else []
    if studies:
        raise StudyError(f"{run} is a folder and no store; name the study in it: {studies[0]}")
    return StoreTable(url=run)
