"""Commands that draw: ``plot`` and ``report``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neurolens.cli.console import Profile, Run, say, store_of, study_in
from neurolens.errors import DataError, MissingMeasurementError

if TYPE_CHECKING:
    import xarray as xr

    from neurolens.study import Study

External = Annotated[
    list[Path] | None, typer.Option("--external", help="A score per sample from elsewhere (.npy, .npz, .csv).")
]


def plot(
    run: Run,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; default: plots beside the store.")] = None,
    external: External = None,
    profile: Profile = None,
) -> None:
    """Save every picture that a run allows. A study file as RUN adds training curves and images."""
    study, place = study_of(run, profile)
    folder = out or Path("plots" if study is None else Path(run).parent / "plots")
    for path in save_pictures(place, folder, study, external):
        say(f"wrote {path}")


def report(
    run: Run,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The page; default: report.html.")] = None,
    external: External = None,
    profile: Profile = None,
) -> None:
    """Write one self-contained HTML page: pictures, key figures, ledger, provenance, what to try next."""
    study, place = study_of(run, profile)
    page = out or Path("report.html" if study is None else Path(run).parent / "report.html")
    say(f"wrote {save_report(place, page, study, run, external)}")


def study_of(run: str, profile: str | None) -> "tuple[Study | None, Any]":
    """Return the study that a RUN argument names, if it is one, and the store."""
    if not run.endswith(".toml"):
        return None, store_of(run, profile)
    study = study_in(Path(run), profile)
    return study, study.store


def cube_of(place: Any) -> "xr.Dataset":
    """Open the samples cube of a store.

    Raises
    ------
    MissingMeasurementError
        If no row was measured yet.
    """
    import xarray as xr

    options = {"endpoint": place.endpoint, "region": place.region}
    ds = xr.open_dataset(place.url, group="samples", engine="neurolens", chunks={}, backend_kwargs=options)
    if not ds.sizes.get("sample") or "loss" not in ds or not ds["loss"].size:
        raise MissingMeasurementError(f"{place.url}: no row has been measured yet; `neurolens run STUDY` measures them")
    return ds


def externals(ds: "xr.Dataset", files: list[Path] | None) -> "dict[str, xr.DataArray]":
    """Read scores from elsewhere, in the order of the cube's samples."""
    from neurolens.samples.external import align, load_scores

    return {path.stem: align(load_scores(path), ds) for path in files or ()}


def save_pictures(place: Any, folder: Path, study: "Study | None", files: list[Path] | None = None) -> list[Path]:
    """Draw every picture into ``folder`` and return the paths."""
    import matplotlib as mpl

    mpl.use("agg")
    from neurolens.plot import pictures, scores
    from neurolens.report import images_of, metrics_of

    ds = cube_of(place)
    images = metrics = None
    if study is not None:
        try:
            images, metrics = images_of(study), metrics_of(study)
        except DataError as error:
            say(f"without images and training curves: {error}")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    given = scores(ds)
    for note in given.notes:
        say(note)
    for picture in pictures(ds, given=given, metrics=metrics, images=images, external=externals(ds, files)):
        path = folder / f"{picture.name}.png"
        picture.figure.savefig(path, dpi=150)
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
        external=externals(cube_of(place), files) if files else None,
        endpoint=place.endpoint,
        region=place.region,
    )
