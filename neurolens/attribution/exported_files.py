"""Filtered attributions in the reference's files: its folders, names, keys and columns, all written or none."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.attribution import exported as figures
from neurolens.attribution.exported import Line, OnMissing
from neurolens.attribution.exported_decomposition import aggregate_stats, cluster_analyses, spaced_images
from neurolens.attribution.exported_folder import ABOUT, draft_of, folder_at, require_free
from neurolens.attribution.exported_names import (
    BASELINE,
    METHODS,
    Filtered,
    blocked_by_cluster,
    control_folders,
    filtered_sets,
    focus_of,
    random_sets,
)
from neurolens.attribution.planner import WHOLE
from neurolens.attribution.reading import Level, measured_with
from neurolens.attribution.sets import UnitSet
from neurolens.errors import MissingMeasurementError, SchemaError, nearest

Kind = Literal["grid", "maps", "accuracy", "classes", "statistics", "controls", "decomposition"]
KINDS: tuple[Kind, ...] = get_args(Kind)

IMAGES = 64
"""Of so many images a whole map is held at a time: 39 MB of 224 × 224 pixels."""


class Exported(NamedTuple):
    """What was written: the folder, its files, and what was left out or is not known."""

    folder: Path
    files: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Given:
    """What all kinds of files are made from."""

    data: xr.Dataset
    scores: xr.Dataset
    sets: tuple[Filtered, ...]
    focus: Filtered
    level: Level | None
    images: int
    classes: int
    control_seed: int | None
    control_compat: str | None
    units: Sequence[UnitSet]
    folder: Path
    notes: list[str] = field(default_factory=list)

    def json(self, path: str, content: Line) -> None:
        target = self._made(path)
        target.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def csv(self, path: str, columns: Sequence[str], lines: Iterable[Line]) -> None:
        with self._made(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(lines)

    def npy(self, path: str, values: Any) -> None:
        np.save(self._made(path), np.ascontiguousarray(values, dtype=np.float32), allow_pickle=False)

    def _made(self, path: str) -> Path:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def export_attributions(
    data: xr.Dataset,
    folder: str | os.PathLike[str],
    *,
    at: int | None = None,
    level: Level | None = None,
    only: Sequence[Kind] | None = None,
    focus: str | None = None,
    clusterings: Sequence[str] | None = None,
    images: int = 20,
    classes: int = 200,
    missing: OnMissing = "error",
    control_seed: int | None = None,
    control_compat: Literal["seed"] | None = None,
    units: Sequence[UnitSet] = (),
    overwrite: bool = False,
) -> Exported:
    """Write filtered attributions in the reference's files, all at once or not at all. **Eager.**

    Parameters
    ----------
    data : the opened attributions cube
    folder
        The folder to make. ``export.json`` in it tells where the numbers are from, what was left out, and why.
    at : int, optional
        The epoch or step; by default the last one measured.
    level : {"patch", "pixel"}, optional
        What scores are of; by default what the reference takes: pixels for classes, patches elsewhere.
    only
        Kinds of files: grid, maps, accuracy, classes, statistics, controls, decomposition. By default all that were
        measured; of kinds that are named, what was not measured is an error.
    focus : name of a map, e.g. ``features.denseblock1/without k3/0``, optional
        The filtered cluster that classes and statistics are of, and whose clustering is decomposed. By default the
        reference's choice: the first cluster of the first layer, of three clusters where there are.
    clusterings
        Whose clusters are written; by default those called ``k<number>``.
    images
        How many are decomposed, evenly spaced.
    classes
        How many go into each of the files by class.
    missing : {"error", "drop"}
        Raise where an image was not measured, or leave it out.
    control_seed, control_compat
        As in the study's [attributions], for the names of controls; without the seed they have the draw's number.
    units
        The sets that were measured, for what controls block of each cluster.
    overwrite
        Replace a folder that this wrote.

    Returns
    -------
    Exported
        The folder, the files in it, and notes on what was left out.

    Raises
    ------
    MissingMeasurementError
        If checkpoints, images or maps that are needed were not measured.
    SchemaError
        If a name or an option is unknown.
    DataError
        If there is something at the folder already, or it cannot be written.
    """
    kinds = _kinds(only)
    if level not in (None, "patch", "pixel"):
        raise SchemaError(f"level={level!r} is unknown; {nearest(str(level), ('patch', 'pixel'))}")
    for name, count in (("images", images), ("classes", classes)):
        if count < 1:
            raise SchemaError(f"{name}={count} is no number of {name}; give 1 or more")
    target = folder_at(folder)
    require_free(target, overwrite)
    here = one_checkpoint(data, at)
    sets = filtered_sets(here, clusterings)
    chosen = focus_of(sets, focus)
    scores = figures.scored(here, missing=missing)
    with draft_of(target) as draft:
        given = _Given(here, scores, sets, chosen, level, images, classes, control_seed, control_compat, units, draft)
        given.notes.extend(_notes(here, scores, sets))
        for kind in kinds:
            _written(kind, given, demanded=only is not None)
        files = sorted(str(path.relative_to(draft).as_posix()) for path in draft.rglob("*") if path.is_file())
        if not files:
            raise MissingMeasurementError(f"there is nothing to write: {'; '.join(given.notes)}")
        given.json(ABOUT, _about(given, files))
    return Exported(target, (*files, ABOUT), tuple(given.notes))


def one_checkpoint(data: xr.Dataset, at: int | None = None) -> xr.Dataset:
    """Return the cube at one checkpoint: that of an epoch or step, or the last one measured.

    Raises
    ------
    MissingMeasurementError
        If there is no such checkpoint, or it was not measured; those that were are named.
    """
    series = schema.series_dim(data)
    positions = data[series].to_numpy().astype(int).tolist()
    done = data["measured"].to_numpy().astype(bool) if "measured" in data.coords else np.ones(len(positions), bool)
    known = [position for position, ok in zip(positions, done, strict=True) if ok]
    if at is None and known:
        at = known[-1]
    if at is None or at not in positions:
        told = f"found attributions at {series} {', '.join(map(str, positions))}" if positions else "found none"
        raise MissingMeasurementError(
            f"{told}, and {'one that is done' if at is None else at} was needed; measure it: `neurolens run STUDY "
            "--only attributions`"
        )
    return data.isel({series: positions.index(at)})


def _written(kind: Kind, given: _Given, *, demanded: bool) -> None:
    """Write the files of a kind; what was not measured is noted, or an error where it was asked for by name."""
    try:
        _WRITERS[kind](given)
    except (MissingMeasurementError, SchemaError) as error:
        if demanded:
            raise
        given.notes.append(f"{kind}: left out, as {error}")


def _grid(given: _Given) -> None:
    level, data, scores = given.level or "patch", given.data, given.scores
    top1 = figures.accuracy_of(data)["top1"]
    if top1 is not None:
        given.json(f"{BASELINE}/accuracy.json", {"top1": top1})
    given.json(f"{BASELINE}/metrics.json", figures.metrics_of(scores, WHOLE, level=level))
    for one in given.sets:
        given.json(f"{one.folder}/metrics.json", figures.filtered_metrics(scores, data, one, level=level))
    lines = figures.grid_lines(scores, data, given.sets, level=level)
    given.csv("mask_grid_summary.csv", figures.GRID_COLUMNS, lines)


def _maps(given: _Given) -> None:
    controls = control_folders(random_sets(given.data, given.units), given.control_seed, given.control_compat)
    folders = {WHOLE: BASELINE} | {one.map: one.folder for one in given.sets} | controls
    for name, method, image, values in full_maps(given.data, list(folders)):
        given.npy(f"{folders[name]}/attributions/{method}_{image}.npy", values)


def full_maps(data: xr.Dataset, names: Sequence[str]) -> Iterator[tuple[str, str, int, Any]]:
    """Yield name, method (ig or saliency), position of the image and map (channel, y, x) of the maps that were kept.

    They are read map by map, of 64 images at most.

    Raises
    ------
    MissingMeasurementError
        If no full map was kept.
    """
    schema.present(data, "full_map")
    methods = {theirs: ours for theirs, ours in METHODS.items() if ours in data["attribution"].to_numpy().tolist()}
    maps = data["full_map"].sel({"map": list(names), "attribution": list(methods.values())})
    corner = maps.sel(map=WHOLE).isel(attribution=0, channel=0, y=0, x=0, drop=True)
    kept = np.flatnonzero(corner.notnull().to_numpy())
    if not len(kept):
        raise MissingMeasurementError(
            "no image has full maps; give full = 20 in the study's [attributions] and run: `neurolens run STUDY --only "
            "attributions`"
        )
    for start in range(0, len(kept), IMAGES):
        images = kept[start : start + IMAGES]
        some = maps.isel(sample=images).transpose("map", "attribution", "sample", "channel", "y", "x")
        for at, name in enumerate(names):
            for number, method in enumerate(methods):
                for image, values in zip(images, some.isel(map=at, attribution=number).to_numpy(), strict=True):
                    if np.isfinite(values).any():
                        yield name, method, int(image), values


def _accuracy(given: _Given) -> None:
    if figures.accuracy_of(given.data)["top1"] is None:
        raise MissingMeasurementError(
            "accuracy needs labels, and the rank of the label was not measured; name data with labels in [data] and "
            "run: `neurolens run STUDY --only attributions`"
        )
    for one in given.sets:
        path = f"accuracy/acc_{one.block}_c{one.cluster}_k{one.k}.json"
        given.json(path, figures.accuracy_line(given.data, one))


def _classes(given: _Given) -> None:
    lines = figures.class_lines(given.scores, given.focus, level=given.level or "pixel")
    known = given.data.sizes.get("class", 1 + max(line["class_id"] for line in lines))
    for start in range(0, known, given.classes):
        end = min(start + given.classes, known)
        some = [line for line in lines if start <= line["class_id"] < end]
        if some:
            given.csv(f"class_analysis_metrics_{start}_{end}.csv", figures.CLASS_COLUMNS, some)
    given.csv("class_analysis_metrics_complete.csv", figures.CLASS_COLUMNS, lines)


def _statistics(given: _Given) -> None:
    found = figures.statistics_of(given.scores, given.focus, level=given.level or "patch")
    given.json("statistical_results.json", found)


def _controls(given: _Given) -> None:
    found = random_sets(given.data, given.units)
    if not found:
        raise MissingMeasurementError(
            "no random control was measured; name sets in controlled of the study's [attributions], e.g. "
            "['*/without k3/0'], and run: `neurolens run STUDY --only attributions`"
        )
    if given.control_seed is None:
        given.notes.append("controls: random_seed is null; the store does not tell it, name the study instead")
    folders = control_folders(found, given.control_seed, given.control_compat)
    summaries: dict[str, Line] = {}
    for one in found:
        seed = one.seed(given.control_seed, given.control_compat)
        line = figures.control_metrics(given.scores, one, level=given.level or "patch", seed=seed)
        given.json(f"{folders[one.map]}/metrics.json", line)
        if one.summary not in summaries:
            blocked = blocked_by_cluster(one, given.units)
            summaries[one.summary] = figures.control_summary(one, by_cluster=blocked)
    for folder, summary in summaries.items():
        given.json(f"{folder}/control_summary.json", summary)
    if any(summary["filtered_by_cluster"] is None for summary in summaries.values()):
        given.notes.append("controls: filtered_by_cluster is null; the store does not tell which units a control has")


def _decomposition(given: _Given) -> None:
    chosen = spaced_images(given.data.sizes["sample"], given.images)
    for method, ours in METHODS.items():
        if ours not in given.data["attribution"].to_numpy().tolist():
            continue
        lines = cluster_analyses(given.data, given.focus, method, chosen)
        for image, line in lines.items():
            given.json(f"cluster_analysis/cluster_analysis_{method}_{image}.json", line)
        given.json(f"cluster_analysis/aggregate_stats_{method}.json", aggregate_stats(list(lines.values())))
        if any(line["cluster_independence"] is None for line in lines.values()):
            given.notes.append(
                f"decomposition: cluster_independence of {method} is null where maps do not vary, or their number of "
                "entries is not known; it is known where a full map is kept (full = 1 in [attributions])"
            )


_WRITERS: Mapping[Kind, Callable[[_Given], None]] = {
    "grid": _grid,
    "maps": _maps,
    "accuracy": _accuracy,
    "classes": _classes,
    "statistics": _statistics,
    "controls": _controls,
    "decomposition": _decomposition,
}


def _kinds(only: Sequence[Kind] | None) -> tuple[Kind, ...]:
    for kind in only or ():
        if kind not in KINDS:
            raise SchemaError(f"there are no files of kind {kind!r}; {nearest(str(kind), KINDS)}")
    return KINDS if only is None else tuple(kind for kind in KINDS if kind in only)


def _notes(data: xr.Dataset, scores: xr.Dataset, sets: Sequence[Filtered]) -> Iterator[str]:
    found = [str(name) for name in data["attribution"].to_numpy()]
    for theirs, ours in METHODS.items():
        if ours not in found:
            yield f"{theirs} was not measured: its figures are null; name {ours} in methods of [attributions]"
    if more := [name for name in found if name not in METHODS.values()]:
        yield f"methods {', '.join(more)} have no place in the reference's files and are left out"
    clusterings = {
        str(name) for name, kind in zip(data["clustering"].to_numpy(), data["kind"].to_numpy()) if kind == "without"
    }
    if more := sorted(clusterings - {one.clustering for one in sets}):
        yield f"clusterings {', '.join(more)} are left out; name them (--clustering)"
    if "faithfulness" not in scores:
        yield "faithfulness was not measured: its figures are null; give faithfulness = true in [attributions]"
    lacking = int(scores["mass"].isnull().any(("map", "attribution")).sum())
    if lacking:
        yield f"{lacking} of {scores.sizes['sample']} images were not measured, or not all of their maps"
    if silent := int((scores["mass"] == 0).sum()):
        yield f"{silent} maps are zero everywhere and have no scores; means are over the others"


def _about(given: _Given, files: Sequence[str]) -> Line:
    data = given.data
    series = next((d for d in schema.SERIES_DIMS if d in data.coords), None)
    return {
        **{key: data.attrs[key] for key in schema.PROVENANCE if key in data.attrs},
        **({} if series is None else {series: int(data[series])}),
        "level": given.level or "as the reference: pixels for classes and decompositions, patches elsewhere",
        "focus": given.focus.map,
        "settings": {part: found for part in ("maps", "faithfulness") if (found := measured_with(data, part))},
        "images": data.sizes["sample"],
        "accuracy": "of these images; blocking a gradient changes no logit, so it is the same with every filter",
        "notes": given.notes,
        "files": list(files),
    }
