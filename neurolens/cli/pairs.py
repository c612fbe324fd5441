"""Pairs of units and heads in the reference's files: ``export pairs`` and ``export texts``."""

from pathlib import Path
from typing import Annotated

import typer

from neurolens.cli.console import Profile, Run, Seed, say, store_of
from neurolens.errors import StudyError, nearest

SIGNS = ("majority", "u")


def export_pairs(
    run: Run,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    epoch: Annotated[int | None, typer.Option("--epoch", help="Default: the last one measured.")] = None,
    step: Annotated[int | None, typer.Option("--step", help="The same, of runs that go by step.")] = None,
    percentile: Annotated[
        float, typer.Option("--percentile", help="Of the mask: pairs at or above it are kept.")
    ] = 90.0,
    top: Annotated[int, typer.Option("--top", min=1, help="Images that count for norms and signs.")] = 50,
    sign: Annotated[
        str, typer.Option("--sign", help="'majority': the reference's rule; 'u': what a unit adds when it fires.")
    ] = "majority",
    words: Annotated[
        int | None, typer.Option("--words", min=1, help="Phrases of each pair in text_descs.json; default: all.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an export wrote there.")] = False,
    profile: Profile = None,
    seed: Seed = None,
) -> None:
    """Write pairs as the reference does: pc0, norms, means and mask; embeddings of phrases, and codes."""
    from neurolens.backend import open_run
    from neurolens.pairs import export_pairs as export

    if sign not in SIGNS:
        raise StudyError(f"--sign {sign!r} is unknown; {nearest(sign, SIGNS)}")
    place = store_of(run, profile, seed)
    done = export(
        open_run(place.url, endpoint=place.endpoint, region=place.region),
        folder,
        epoch=epoch,
        step=step,
        percentile=percentile,
        top=top,
        sign="u" if sign == "u" else "majority",
        words=words,
        overwrite=overwrite,
    )
    for note in done.notes:
        say(note)
    say(f"wrote {len(done.files)} files: {done.folder}")


def export_texts(
    run: Run,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write to.")],
    only: Annotated[str | None, typer.Option("--set", help="The set of phrases; default: all.")] = None,
    epoch: Annotated[int | None, typer.Option("--epoch", help="Default: the last one measured.")] = None,
    step: Annotated[int | None, typer.Option("--step", help="The same, of runs that go by step.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    profile: Profile = None,
    seed: Seed = None,
) -> None:
    """Write the embeddings of phrases as the reference does: a .pt file per set, and the phrases beside it."""
    from neurolens.backend import open_run
    from neurolens.pairs import write_text_files

    place = store_of(run, profile, seed)
    opened = open_run(place.url, endpoint=place.endpoint, region=place.region)
    for path in write_text_files(opened, folder, set=only, epoch=epoch, step=step, overwrite=overwrite):
        say(f"wrote {path}")
