"""The command ``make``: data that are generated."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from neurolens.cli.console import live_console, say

makes = typer.Typer(no_args_is_help=True, help="Make data whose truth is known.")


@makes.command()
def concepts(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write; new or empty.")],
    kind: Annotated[str, typer.Option("--kind", help="What to draw: shapes.")] = "shapes",
    n: Annotated[int, typer.Option("--n", help="How many pictures.")] = 600,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the pictures.")] = 0,
    size: Annotated[int, typer.Option("--size", help="Side of the pictures, in pixels; labels have half of it.")] = 64,
) -> None:
    """Write pictures with labelled colours, textures, objects, parts and scenes, in the layout of Broden.

    A network can be trained on them to tell the scenes apart.
    """
    from neurolens.data.broden import broden
    from neurolens.data.shapes import make_concepts

    console = live_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("pictures", total=n)
        made = make_concepts(
            folder, kind=kind, n=n, seed=seed, size=size, progress=lambda done, _: bar.update(task, completed=done)
        )
    found = broden(made)
    counts = (f"{found.concept_category.count(category)} of {category}" for category in found.categories)
    say(f"wrote {len(found)} pictures of {size} x {size} pixels with {len(found.concepts)} concepts to {made}")
    say(f"concepts: {', '.join(counts)}")
    say(f"to train on their scenes: [data] source = 'folder', root = '{made / 'images'}', split = 'train' (or 'val')")
