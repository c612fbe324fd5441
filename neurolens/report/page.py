"""The page: what a run's store holds, gathered, drawn and filled into one template."""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import xarray as xr

from neurolens import __version__, schema
from neurolens.backend import open_run
from neurolens.errors import DataError, MissingMeasurementError, StoreError
from neurolens.plot import Picture, pictures, scores
from neurolens.report.figures import KeyFigure, key_figures
from neurolens.report.ledger import LedgerTable, ledger_table
from neurolens.report.sources import images_of, metrics_of
from neurolens.store import open_store
from neurolens.study import Study

if TYPE_CHECKING:
    import pandas as pd

    from neurolens.plot.pictures import ImagesById

DPI = 170
TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Step:
    """Something to try next: what for, and the command or code."""

    purpose: str
    code: str


def write_report(
    url: str | Path,
    path: str | Path,
    *,
    study: Study | None = None,
    study_file: str | Path = "study.toml",
    metrics: "pd.DataFrame | None" = None,
    images: "ImagesById | None" = None,
    external: Mapping[str, xr.DataArray] | None = None,
    endpoint: str | None = None,
    region: str | None = None,
) -> Path:
    """Write a run's report: one static HTML page that needs nothing else, and return its path.

    Parameters
    ----------
    url
        The run's store.
    path
        The page to write; one that is there is replaced. Missing folders are made.
    study : Study, optional
        Shown on the page; metrics and images not given are found through it, and the page says where it could not.
    study_file
        How the commands on the page call the study.
    metrics : DataFrame, optional
        The training's ``metrics.csv``.
    images : function, optional
        From sample ids to (H, W, C) images.
    external : mapping, optional
        Scores from elsewhere, (sample) each, to compare the run's with.
    endpoint, region
        Of an S3-compatible server; absent: the study's.

    Raises
    ------
    StoreError
        If there is no store at this URL, or the page cannot be written.
    """
    path = Path(path)
    if study is not None:
        endpoint, region = endpoint or study.store.endpoint, region or study.store.region
    store = open_store(str(url), endpoint=endpoint, region=region, readonly=True)
    notes: list[str] = []
    if study is not None:
        metrics, images = _found(study, metrics, images, notes)
    ledgers = [ledger_table(store.ledger(name)) for name in schema.CUBES if store.ledger(name).exists]
    tree = open_run(str(url), endpoint=endpoint, region=region)
    cube = tree["samples"].to_dataset() if "samples" in tree.children else None
    for table in ledgers:
        if any("stale" in strip.counts for strip in table.strips):
            notes.append(
                f"Rows of the {table.cube} cube were measured under other settings than the study's now, and are left "
                "out until the study is run again."
            )
        if table.failed:
            lost = ", ".join(str(p) for p in sorted({failure.position for failure in table.failed}))
            notes.append(
                f"Rows of the {table.cube} cube failed at {table.series} {lost}: every number here leaves them out."
            )
    drawn, figures = _science(cube, metrics, images, external, notes)
    text = (
        _environment()
        .get_template(TEMPLATE)
        .render(
            run=str(store.attributes().get("run") or "run"),
            url=str(url),
            version=__version__,
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            snapshot=store.snapshot_id,
            tags=store.tags(),
            figures=figures,
            pictures=[{"picture": picture, "source": _data_uri(picture)} for picture in drawn],
            ledgers=ledgers,
            notes=notes,
            study=None if study is None else study.model_dump_json(indent=2, exclude_none=True),
            steps=_steps(study, str(url), str(study_file), ledgers, cube),
        )
    )
    return _write(path, text)


def _found(
    study: Study, metrics: "pd.DataFrame | None", images: "ImagesById | None", notes: list[str]
) -> "tuple[pd.DataFrame | None, ImagesById | None]":
    """Look for what was not given, and note what cannot be had."""
    try:
        metrics = metrics_of(study) if metrics is None else metrics
    except DataError as error:
        notes.append(f"There are no training curves: {error}")
    try:
        images = images_of(study) if images is None else images
    except DataError as error:
        notes.append(f"There are no images: {error}")
    return metrics, images


def _science(
    cube: xr.Dataset | None,
    metrics: "pd.DataFrame | None",
    images: "ImagesById | None",
    external: Mapping[str, xr.DataArray] | None,
    notes: list[str],
) -> tuple[list[Picture], list[KeyFigure]]:
    if cube is None or "loss" not in cube or not cube["loss"].size:
        notes.append("No checkpoint has been measured yet.")
        return [], []
    try:
        given = scores(cube)
    except MissingMeasurementError as error:
        notes.append(f"There is nothing to draw: {error}")
        return [], []
    notes += given.notes
    try:
        drawn = pictures(cube, given=given, metrics=metrics, images=images, external=external)
    except DataError as error:
        notes.append(f"There are no images: {error}")
        drawn = pictures(cube, given=given, metrics=metrics, external=external)
    return drawn, key_figures(cube, given, metrics)


def _steps(
    study: Study | None, url: str, study_file: str, ledgers: list[LedgerTable], cube: xr.Dataset | None
) -> list[Step]:
    """Say what would tell more, most urgent first."""
    steps = []
    if any(table.failed for table in ledgers):
        steps.append(Step("After mending what failed, compute only that:", f"neurolens run {study_file}"))
    if cube is not None and "loss" in cube:
        opened = f'import neurolens\nds = neurolens.open_run({url!r})["samples"].ds'
        code = f'{opened}\nneurolens.csl(ds)["csl"].to_series().nlargest(20)'
        steps.append(Step("Open the run in a notebook:", code))
    table = None if study is None else study.samples
    if table is not None and not table.grand:
        steps.append(Step("Add parameter-gradient norms:", f"neurolens run {study_file} --set samples.grand=true"))
    if table is not None and not table.curvature:
        steps.append(Step("Add input-loss curvature:", f"neurolens run {study_file} --set samples.curvature=true"))
    if study is not None and study.train is not None and study.data.label_noise is None:
        code = (
            f"neurolens run {study_file} --set data.label_noise.fraction=0.05 "
            "--set checkpoints.folder=checkpoints-noisy --set store.url=store-noisy.icechunk"
        )
        steps.append(Step("Flip 5 % of the labels, and see whether cumulative loss finds them:", code))
    steps.append(Step("Keep this state of the store for good:", f"neurolens tag {study_file} thesis-v1"))
    return steps


def _data_uri(picture: Picture) -> str:
    buffer = io.BytesIO()
    picture.figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("neurolens.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pretty"] = _pretty
    return environment


def _pretty(value: Any) -> str:
    """Write settings as indented JSON, or text as it is."""
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def _write(path: Path, text: str) -> Path:
    """Replace the page as a whole, so that a reader never sees half of one."""
    draft = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror}); name a folder you may write to") from error
    return path
