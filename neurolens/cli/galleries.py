"""The command ``gallery``."""

from pathlib import Path
from typing import Annotated

import typer

from neurolens.cli.console import Overrides, Profile, Seed, require_picture, run_in, say
from neurolens.errors import StudyError

STRONGEST = 6
"""How many detectors are shown where no unit is named."""


def gallery(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file.")],
    unit: Annotated[list[int] | None, typer.Option("--unit", "-u", help="A unit, by its number in the cube.")] = None,
    layer: Annotated[str | None, typer.Option("--layer", help="Or its layer, with --index.")] = None,
    index: Annotated[list[int] | None, typer.Option("--index", help="Its number in the layer.")] = None,
    at: Annotated[
        list[str] | None,
        typer.Option("--at", metavar="EPOCH", help="Epochs or steps, e.g. 1,5,20. Default: the last one dissected."),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Images of each unit; as many as were kept.")] = 9,
    same: Annotated[
        bool, typer.Option("--same", help="At every checkpoint the images of the last one, not each one's own.")
    ] = False,
    fine: Annotated[
        bool, typer.Option("--fine", help="Masks at the size of the images, not of the labels, where they are counted.")
    ] = False,
    lite: Annotated[bool, typer.Option("--lite", help="Tell IoU as NetDissect-Lite reads it.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The picture; default: gallery.png by STUDY.")] = None,
    profile: Profile = None,
    overrides: Overrides = None,
    seed: Seed = None,
) -> None:
    """Show what excites units most: their top images, with the mask of each, at one checkpoint or several.

    Without a unit, the strongest detectors are shown, each of another concept.
    """
    loaded = run_in(study, profile, overrides, seed)
    positions = _positions(at)
    page = out or study.parent / "gallery.png"
    require_picture("--out", page)
    from neurolens.backend import open_run
    from neurolens.dissection.choosing import strongest_detectors, unit_positions
    from neurolens.report.galleries import concepts_of, unit_galleries

    place = loaded.store
    concepts = concepts_of(open_run(place.url, endpoint=place.endpoint, region=place.region))
    reading = "lite" if lite else "paper"
    if unit or layer or index:
        units = unit_positions(concepts, units=unit or (), layer=layer, index=index or ())
    else:
        strongest = strongest_detectors(concepts, count=STRONGEST, reading=reading)  # type: ignore[arg-type]
        units = unit_positions(concepts, units=strongest["unit"].values.tolist())
    if not units:
        raise StudyError("no unit has a concept yet; name one with --unit")
    import matplotlib as mpl

    mpl.use("agg")
    from neurolens.plot.galleries import unit_gallery, wide_figure

    shown = unit_galleries(
        loaded,
        concepts,
        units=units,
        at=positions,
        top=top,
        same=same,
        resolution="image" if fine else "label",
        reading=reading,  # type: ignore[arg-type]
    )
    figure = wide_figure(shown)
    unit_gallery(shown, figure=figure)
    page.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(page, dpi=150)
    say(f"wrote {page}")


def _positions(at: list[str] | None) -> list[int] | None:
    words = [word.strip() for text in at or () for word in text.split(",")]
    wrong = [word for word in words if not word.isdigit()]
    if wrong:
        raise StudyError(f"--at {wrong[0]!r} is no epoch or step; give numbers, e.g. --at 1,5,20")
    return [int(word) for word in words] or None
