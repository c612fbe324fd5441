"""Commands that keep: ``init``, ``tag``, ``export``, ``import``, ``doctor`` and ``maintain``."""

from pathlib import Path
from typing import Annotated

import typer

from neurolens.cli.console import BAD_INPUT, Run, console, say, store_of

exports = typer.Typer(no_args_is_help=True, help="Write a run's numbers for other programs.")
imports = typer.Typer(no_args_is_help=True, help="Adopt numbers that other programs wrote.")


def init(
    path: Annotated[Path, typer.Argument(help="The study file to write.")] = Path("study.toml"),
    template: Annotated[str, typer.Option("--template", "-t", help="digits, cifar10, cifar100, …")] = "digits",
) -> None:
    """Write a commented study file to start from."""
    from neurolens.study_files import init_study

    written = init_study(path, template)
    say(f"wrote {written}; next: neurolens run {written}")


def tag(run: Run, name: Annotated[str, typer.Argument(help="The tag, e.g. thesis-v1.")]) -> None:
    """Name the present state of a run for good."""
    from neurolens.store import open_store

    place = store_of(run)
    store = open_store(place.url, endpoint=place.endpoint, region=place.region)
    snapshot = store.tag(name)
    say(f"{name} is snapshot {snapshot}: neurolens.open_run({store.url!r}, tag={name!r})")


def doctor(
    run: Run,
) -> None:
    """Probe a store, or the place for one: can it be read, written, shared and trusted from here?"""
    from neurolens.store.doctor import doctor as probe

    place = store_of(run)
    checks = probe(place.url, endpoint=place.endpoint, region=place.region)
    for check in checks:
        console.print(f"[green]ok[/]      {check.name}: " if check.ok else f"[red]not ok[/]  {check.name}: ", end="")
        say(check.found if check.ok or not check.mend else f"{check.found}; {check.mend}")
    if not all(check.ok for check in checks):
        raise typer.Exit(BAD_INPUT)
