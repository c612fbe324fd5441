"""Commands that draw: ``plot`` and ``report``."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neurolens.cli.console import Profile, Run, Seed, run_in, say, store_of
from neurolens.errors import DataError, MissingExtraError, MissingMeasurementError, nearest

if TYPE_CHECKING:
    import xarray as xr

    from neurolens.plot import RunPictures
    from neurolens.study import Study

External = Annotated[
    list[Path] | None, typer.Option("--external", help="A score per sample from elsewhere (.npy, .npz, .csv).")
]


def plot(
    run: Run,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; default: plots beside the store.")] = None,
    external: External = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Cubes to draw, e.g. attributions.")] = None,
    panels: Annotated[int, typer.Option("--panels", min=0, help="Images with panels of attributions.")] = 2,
    filtered: Annotated[str | None, typer.Option("--filtered", help="The set of units in these panels.")] = None,
    profile: Profile = None,
    seed: Seed = None,
) -> None:
    """Save every picture that a run allows, of whatever its store holds.

    A study file as RUN adds training curves and images. Panels of attributions are drawn of evenly spaced images, a
    file each.
    """
    study, place = study_of(run, profile, seed)
    folder = out or Path("plots" if study is None else Path(run).parent / f"plots{ending(seed)}")
    for path in save_pictures(place, folder, study, external, only=only, panels=panels, filtered=filtered):
        say(f"wrote {path}")


def report(
    run: Run,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The page; default: report.html.")] = None,
    external: External = None,
    profile: Profile = None,
    seed: Seed = None,
) -> None:
    """Write one self-contained HTML page: pictures, key figures, ledger, provenance, what to try next."""
    study, place = study_of(run, profile, seed)
    page = out or Path("report.html" if study is None else Path(run).parent / f"report{ending(seed)}.html")
    say(f"wrote {save_report(place, page, study, run, external)}")


def study_of(run: str, profile: str | None, seed: int | None = None) -> "tuple[Study | None, Any]":
    """Return the study that a RUN argument names, if it is one, and the store."""
    if not run.endswith(".toml"):
        return None, store_of(run, profile, seed)
    study = run_in(Path(run), profile, None, seed)
    return study, study.store


def ending(seed: int | None) -> str:
    """Return what keeps the files of one seed apart from those of the others."""
    return "" if seed is None else f"-seed-{seed}"


def cubes_of(place: Any) -> "dict[str, xr.Dataset]":
    """Open the cubes of a store that hold rows, by name.

    Raises
    ------
    MissingMeasurementError
        If no row was measured yet.
    """
    from neurolens.backend import open_run
    from neurolens.plot.run_pictures import has_rows

    run = open_run(place.url, endpoint=place.endpoint, region=place.region)
    cubes = {name: cube for name in run.children if has_rows(cube := run[name].to_dataset())}
    if not cubes:
        raise MissingMeasurementError(f"{place.url}: no row has been measured yet; `neurolens run STUDY` measures them")
    return cubes


def _some(cubes: "dict[str, xr.Dataset]", only: list[str] | None) -> "dict[str, xr.Dataset]":
    """Return the cubes of these names; effects of deaths need concepts beside them.

    Raises
    ------
    MissingMeasurementError
        If there is no such cube.
    """
    for name in only or ():
        if name not in cubes:
            raise MissingMeasurementError(f"the run holds no rows of {name!r}; {nearest(name, cubes)}")
    return cubes if not only else {name: cube for name, cube in cubes.items() if name in only}


def externals(cubes: "dict[str, xr.Dataset]", files: list[Path] | None) -> "dict[str, xr.DataArray]":
    """Read scores from elsewhere, in the order of the cube's samples.

    Raises
    ------
    MissingMeasurementError
        If there are such scores, and no samples cube to set them against.
    """
    if not files:
        return {}
    if "samples" not in cubes:
        raise MissingMeasurementError(
            f"the run holds {', '.join(cubes)}, and --external is set against scores of samples; leave it out, or "
            "measure them: `neurolens run STUDY --only samples`, with a [samples] table in the study"
        )
    from neurolens.samples.external import align, load_scores

    return {path.stem: align(load_scores(path), cubes["samples"]) for path in files}


def save_pictures(
    place: Any,
    folder: Path,
    study: "Study | None",
    files: list[Path] | None = None,
    *,
    only: list[str] | None = None,
    panels: int = 2,
    filtered: str | None = None,
) -> list[Path]:
    """Draw every picture, or those of some cubes, into ``folder`` and return the paths."""
    import matplotlib as mpl

    mpl.use("agg")
    from neurolens.plot import run_pictures
    from neurolens.report import galleries_of, images_of, life_rule_of, metrics_of, shown_images_of

    cubes = _some(cubes_of(place), only)
    scores = externals(cubes, files)
    images = metrics = None
    if study is not None:
        try:
            metrics = metrics_of(study) if only is None else None
            images = images_of(study) if {"samples", "pools"} & set(cubes) else None
        except DataError as error:
            say(f"without images and training curves: {error}")
    drawn = run_pictures(
        cubes,
        metrics=metrics,
        images=images,
        external=scores,
        rule=life_rule_of(study),
        galleries=galleries_of(study),
        shown=None if study is None else partial(shown_images_of, study),
        panels=panels,
        filtered=filtered,
    )
    for note in drawn.notes:
        say(note)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for picture in drawn.pictures:
        path = folder / f"{picture.name}.png"
        picture.figure.savefig(path, dpi=150)
        written.append(path)
    return written + save_pages(drawn, folder)


def save_pages(drawn: "RunPictures", folder: Path) -> list[Path]:
    """Write what can be pointed at as pages: migrations of concepts, clusters of units. Return the paths."""
    from neurolens.plot import cluster_page, migration_sankey

    draw: dict[str, Callable[[], Any]] = {}
    for name, numbers in (("sankey", drawn.concepts), ("tallies_sankey", drawn.tallies)):
        if numbers is not None and numbers.moves is not None:
            draw[name] = partial(migration_sankey, numbers.moves, units=numbers.best, level=numbers.level)
    if drawn.clusters is not None:
        draw["clusters"] = partial(cluster_page, drawn.clusters.features, drawn.clusters.clusters)
    written = []
    for name, figure_of in draw.items():
        try:
            figure = figure_of()
        except MissingExtraError as error:
            say(f"without {name}.html: {error}")
            continue
        path = folder / f"{name}.html"
        figure.write_html(path, include_plotlyjs=True)
        written.append(path)
    return written


def save_report(place: Any, page: Path, study: "Study | None", run: str, files: list[Path] | None = None) -> Path:
    """Write the report of a run and return its path."""
    import matplotlib as mpl

    mpl.use("agg")
    from neurolens.report import write_report

    return write_report(
        place.url,
        page,
        study=study,
        study_file=run if study is not None else "study.toml",
        external=externals(cubes_of(place), files) if files else None,
        endpoint=place.endpoint,
        region=place.region,
    )
