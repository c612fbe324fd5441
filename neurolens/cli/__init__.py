"""Command line: ``neurolens``. Exit codes: 0 done, 1 a row failed, 2 bad input, 130 stopped by Ctrl-C."""

from typing import Annotated

import typer

from neurolens import __version__
from neurolens.cli import (
    attributions,
    clusters,
    comparing,
    demo,
    drawing,
    galleries,
    keeping,
    layers,
    looking,
    making,
    pair_pictures,
    pairs,
    running,
    tallies,
)
from neurolens.cli.console import Commands, say

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The longitudinal microscope for neural networks: point it at a run's checkpoints and a data set.",
)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"neurolens {__version__}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options that come before the command."""


app.command("init")(keeping.init)
app.command("run")(running.run)
app.command("demo")(demo.demo)
app.command("status")(looking.status)
app.command("show")(looking.show)
app.command("layers")(layers.layers)
app.command("plot")(drawing.plot)
app.command("report")(drawing.report)
app.command("gallery")(galleries.gallery)
app.command("card")(pair_pictures.card)
app.command("retrieve")(pair_pictures.retrieve)
app.command("compare")(comparing.compare)
app.command("tag")(keeping.tag)
app.command("doctor")(keeping.doctor)
app.command("maintain")(keeping.maintain)
keeping.exports.command("tallies")(tallies.export_tallies)
keeping.exports.command("trajectories")(tallies.export_trajectories)
keeping.exports.command("events")(tallies.export_events)
keeping.exports.command("metrics")(tallies.export_metrics)
keeping.exports.command("clusters")(clusters.export_clusters)
keeping.exports.command("attributions")(attributions.export_attributions)
keeping.exports.command("pairs")(pairs.export_pairs)
keeping.exports.command("images")(pair_pictures.export_images)
keeping.exports.command("texts")(pairs.export_texts)
keeping.imports.command("tallies")(tallies.import_tallies)
app.add_typer(keeping.exports, name="export")
app.add_typer(keeping.imports, name="import")
app.add_typer(making.makes, name="make")
