"""What would tell more of a run: commands and code to try next."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

import xarray as xr

from neurolens.report.ledger import LedgerTable
from neurolens.study import Study


@dataclass(frozen=True)
class Step:
    """Something to try next: what for, and the command or code."""

    purpose: str
    code: str


def next_steps(
    study: Study | None, url: str, study_file: str, ledgers: list[LedgerTable], cubes: Mapping[str, xr.Dataset]
) -> list[Step]:
    """Say what would tell more, most urgent first.

    Parameters
    ----------
    study
        The run's study, if it is known.
    url, study_file
        How commands name the store and the study.
    ledgers
        What was measured, and what failed.
    cubes : Dataset by name
        The cubes that the store holds.
    """
    steps = []
    if any(table.failed for table in ledgers):
        steps.append(Step("After mending what failed, compute only that:", f"neurolens run {study_file}"))
    if "loss" in cubes.get("samples", ()):
        code = f'{_opened(url, "samples")}\nneurolens.csl(ds)["csl"].to_series().nlargest(20)'
        steps.append(Step("Open the run in a notebook:", code))
    if "intersection" in cubes.get("concepts", ()):
        steps += _of_concepts(url, study_file if study is not None else url)
        if study is not None and study.concepts is not None and "top_sample" in cubes["concepts"]:
            purpose = "What did the strongest detectors look at? With --unit and --at, one unit over the training:"
            steps.append(Step(purpose, f"neurolens gallery {study_file}"))
    if "abs_sum" in cubes.get("units", ()):
        steps += _of_units(study, url, study_file)
    if "total" in cubes.get("attributions", ()):
        steps += _of_attributions(url, study_file if study is not None else url)
    if study is not None and "scalar" in cubes.get("pairs", ()) and "value" in cubes.get("pools", ()):
        steps += _of_pairs(study_file, cubes)
    return [*steps, *_of_study(study, study_file), _kept(study, url, study_file)]


def _opened(url: str, cube: str) -> str:
    return f'import neurolens\nds = neurolens.open_run({url!r})["{cube}"].to_dataset()'


def _of_concepts(url: str, run: str) -> list[Step]:
    code = (
        f"{_opened(url, 'concepts')}\nscores = neurolens.iou(ds)\n"
        "neurolens.concept_events(scores, tau=0.05).query(\"end == 'death'\")"
    )
    steps = [Step("Which concepts died in which units, at another threshold? Nothing is measured again.", code)]
    return [*steps, Step("Point at migrations, in a page of their own:", f"neurolens plot {run}")]


def _of_units(study: Study | None, url: str, study_file: str) -> list[Step]:
    code = (
        f'{_opened(url, "units")}\nmask = neurolens.dormant(ds, "redo", tau=0.1)\n'
        "found = neurolens.transitions(mask).compute()\n"
        'found["unit"][found["persistent"]], found["unit"][found["revived"].any("transition")]'
    )
    steps = [Step("Which units are dormant at every checkpoint, and which came back?", code)]
    run = study_file if study is not None else url
    steps.append(Step("Write the log that the reference's scripts write:", f"neurolens export dormancy {run} log.csv"))
    table = None if study is None else study.units
    if table is not None and not table.classes:
        command = f"neurolens run {study_file} --set units.classes=true"
        steps.append(Step("Find units that are silent for some classes only:", command))
    return steps


def _of_attributions(url: str, run: str) -> list[Step]:
    code = (
        f"{_opened(url, 'attributions')}\nds = ds.isel({{neurolens.schema.series_dim(ds): -1}})\n"
        "neurolens.attribution.held_out(ds)"
    )
    steps = [Step("Choose the filter with the largest effect on half of the classes, and test it on the others:", code)]
    panels = "Look at the maps of twenty images, evenly spaced:"
    return [*steps, Step(panels, f"neurolens plot {run} --only attributions --panels 20")]


def _of_pairs(study_file: str, cubes: Mapping[str, xr.Dataset]) -> list[Step]:
    steps = [
        Step("Look at the loudest units, or with --unit at one: heads, words, images:", f"neurolens card {study_file}")
    ]
    texts = cubes.get("texts")
    if texts is not None and texts.sizes.get("phrase"):
        words = str(texts["words"].to_numpy()[-1])
        code = f"neurolens retrieve {study_file} --phrase {shlex.quote(words)}"
        steps.append(Step("At which images do the pairs of a phrase say most?", code))
    return steps


def _of_study(study: Study | None, study_file: str) -> list[Step]:
    if study is None:
        return []
    run, steps = f"neurolens run {study_file}", []
    if study.units is not None and study.activations is None:
        steps.append(Step("Keep every activation, for spectra and ranks:", f"{run} --set activations.pool=mean"))
    if study.samples is not None and not study.samples.grand:
        steps.append(Step("Add parameter-gradient norms:", f"{run} --set samples.grand=true"))
    if study.samples is not None and not study.samples.curvature:
        steps.append(Step("Add input-loss curvature:", f"{run} --set samples.curvature=true"))
    if study.samples is not None and study.units is None:
        steps.append(Step("Add statistics of every unit:", f"{run} --set units.layers=auto"))
    if study.train is not None and study.samples is not None and study.data.label_noise is None:
        code = (
            f"{run} --set data.label_noise.fraction=0.05 "
            "--set checkpoints.folder=checkpoints-noisy --set store.url=store-noisy.icechunk"
        )
        steps.append(Step("Flip 5 % of the labels, and see whether cumulative loss finds them:", code))
    return steps


def _kept(study: Study | None, url: str, study_file: str) -> Step:
    run = study_file if study is not None else url
    return Step("Keep this state of the store for good:", f"neurolens tag {run} thesis-v1")
