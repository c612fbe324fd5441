"""Filtered attributions in the reference's files: ``export attributions``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neurolens.cli.console import Profile, Run, Seed, run_in, say, store_of
from neurolens.errors import MissingMeasurementError, NeurolensError, StudyError, nearest

if TYPE_CHECKING:
    import xarray as xr

    from neurolens.attribution.sets import UnitSet
    from neurolens.study import Study

SHOWN = 12
"""How many notes are printed; all are in the export."""


def export_attributions(
    run: Run,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    at: Annotated[int | None, typer.Option("--at", help="Epoch or step; default: the last one measured.")] = None,
    level: Annotated[
        str | None,
        typer.Option("--level", help="patch or pixel; default: as the reference, pixel for classes, patch elsewhere."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            help="Kinds of files: grid, maps, accuracy, classes, statistics, controls, decomposition. Default: all "
            "that were measured.",
        ),
    ] = None,
    focus: Annotated[
        str | None,
        typer.Option(
            "--focus",
            help="The filtered cluster that classes, statistics and decomposition are about, e.g. "
            "'features.denseblock1/without k3/0'. Default: the first layer's first of three.",
        ),
    ] = None,
    clustering: Annotated[
        list[str] | None, typer.Option("--clustering", help="Clusterings to write; default: those called k<number>.")
    ] = None,
    images: Annotated[int, typer.Option("--images", min=1, help="Images that are decomposed, evenly spaced.")] = 20,
    classes: Annotated[int, typer.Option("--classes", min=1, help="Classes in each of the files by class.")] = 200,
    missing: Annotated[
        str, typer.Option("--missing", help="Where an image was not measured: 'error', or 'drop' it.")
    ] = "error",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an export wrote there.")] = False,
    profile: Profile = None,
    seed: Seed = None,
) -> None:
    """Write attributions by unit cluster as the reference does: metrics, grid, classes, statistics, controls, maps."""
    from neurolens.attribution.exported_files import KINDS, one_checkpoint
    from neurolens.attribution.exported_files import export_attributions as export
    from neurolens.schema import series_dim

    kinds = None if only is None else [word.strip() for word in only.split(",")]
    for option, value, known in (
        ("--level", level, ("patch", "pixel")),
        ("--missing", missing, ("error", "drop")),
        *(("--only", kind, KINDS) for kind in kinds or ()),
    ):
        if value is not None and value not in known:
            raise StudyError(f"{option} {value!r} is unknown; {nearest(value, known)}")
    data = _cube_of(run, profile, seed)
    position = int(one_checkpoint(data, at)[series_dim(data)])
    options: dict[str, Any] = {}
    if run.endswith(".toml") and (kinds is None or {"controls", "maps"} & set(kinds)):
        options = _controls(run_in(Path(run), profile, None, seed), position)
    done = export(
        data,
        folder,
        at=position,
        level="pixel" if level == "pixel" else "patch" if level else None,
        only=kinds,  # type: ignore[arg-type]
        focus=focus,
        clusterings=clustering,
        images=images,
        classes=classes,
        missing="drop" if missing == "drop" else "error",
        overwrite=overwrite,
        **options,
    )
    for note in done.notes[:SHOWN]:
        say(note)
    if len(done.notes) > SHOWN:
        say(f"… {len(done.notes) - SHOWN} more notes, in export.json")
    say(f"wrote {len(done.files)} files of {series_dim(data)} {position}: {done.folder}")


def _cube_of(run: str, profile: str | None, seed: int | None) -> "xr.Dataset":
    from neurolens.backend import open_run

    place = store_of(run, profile, seed)
    tree = open_run(place.url, endpoint=place.endpoint, region=place.region)
    if "attributions" not in tree.children:
        raise MissingMeasurementError(
            f"{place.url}: there are no attributions in this run, which holds {', '.join(tree.children) or 'nothing'}; "
            "measure them: `neurolens run STUDY --only clusters,attributions`, with [clusters] and [attributions] in "
            "the study"
        )
    return tree["attributions"].to_dataset()


def _controls(study: "Study", position: int) -> dict[str, Any]:
    """Return what a study says of its controls: the seed, and the units of each at a checkpoint."""
    if study.attributions is None or not study.attributions.controlled:
        return {}
    table = study.attributions
    return {
        "control_seed": table.control_seed,
        "control_compat": table.control_compat,
        "units": _units(study, position),
    }


def _units(study: "Study", position: int) -> "tuple[UnitSet, ...]":
    from neurolens.rows import gather
    from neurolens.rows.asking_sets import asked_sets

    try:
        found = asked_sets(gather(study, "clusters"))
    except NeurolensError as error:  # checkpoints or data may be gone; what they gave is in the store
        say(f"the units of controls are not known: {error}")
        return ()
    return tuple(found.sets.get(position, ()))
