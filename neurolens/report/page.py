"""The page: what a run's store holds, gathered, drawn and filled into one template."""

import base64
import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import xarray as xr

from neurolens import __version__, schema
from neurolens.backend import open_run
from neurolens.errors import DataError, StoreError
from neurolens.plot import Picture, run_pictures
from neurolens.plot.run_pictures import has_rows
from neurolens.report.figures import all_figures, all_sections, all_tables
from neurolens.report.galleries import galleries_of
from neurolens.report.ledger import ledger_table
from neurolens.report.next_steps import next_steps
from neurolens.report.shown_images import shown_images_of
from neurolens.report.sources import images_of, life_rule_of, metrics_of
from neurolens.store import open_store
from neurolens.study import Study

if TYPE_CHECKING:
    import pandas as pd

    from neurolens.plot.pictures import ImagesById

DPI = 170
TEMPLATE = "report.html.j2"


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
    ledgers = [ledger_table(store.ledger(name)) for name in schema.CUBES if store.ledger(name).exists]
    tree = open_run(str(url), endpoint=endpoint, region=region)
    cubes = {name: tree[name].to_dataset() for name in tree.children}
    if study is not None:
        metrics, images = _found(study, metrics, images, notes, shown=bool({"samples", "pools"} & set(cubes)))
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
    drawn = run_pictures(
        cubes,
        metrics=metrics,
        images=images,
        external=external,
        rule=life_rule_of(study),
        galleries=galleries_of(study),
        shown=None if study is None else partial(shown_images_of, study),
    )
    notes += drawn.notes
    if not any(map(has_rows, cubes.values())):
        notes.append("No checkpoint has been measured yet.")
    sections = all_sections(drawn, study)
    apart = {picture.name for section in sections for picture in section.pictures}
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
            figures=all_figures(cubes, drawn, metrics),
            tables=all_tables(drawn),
            pictures=[_shown(picture) for picture in drawn.pictures if picture.name not in apart],
            sections=[{"section": one, "pictures": [_shown(p) for p in one.pictures]} for one in sections],
            ledgers=ledgers,
            notes=notes,
            study=None if study is None else study.model_dump_json(indent=2, exclude_none=True),
            steps=next_steps(study, str(url), str(study_file), ledgers, cubes),
        )
    )
    return _write(path, text)


def _found(
    study: Study, metrics: "pd.DataFrame | None", images: "ImagesById | None", notes: list[str], *, shown: bool
) -> "tuple[pd.DataFrame | None, ImagesById | None]":
    """Look for what was not given, and note what cannot be had; for images only if they are ``shown``."""
    try:
        metrics = metrics_of(study) if metrics is None else metrics
    except DataError as error:
        notes.append(f"There are no training curves: {error}")
    try:
        images = images_of(study) if images is None and shown else images
    except DataError as error:
        notes.append(f"There are no images: {error}")
    return metrics, images


def _shown(picture: Picture) -> dict[str, Any]:
    return {"picture": picture, "source": _data_uri(picture)}


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
