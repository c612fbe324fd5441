"""What was followed, in the reference's files: its names, its columns, its units that count from 1."""

import csv
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from neurolens import schema
from neurolens.dissection.overlap import AREAS, best_concept, iou
from neurolens.errors import DataError, SchemaError
from neurolens.mortality.inputs import opened, trajectories_of
from neurolens.mortality.tally_files import COLUMNS, FIGURES, FILE
from neurolens.units.inputs import OnMissing, labels_of, listed
from neurolens.units.layers_of import held
from neurolens.units.seed_log import natural

METRICS = ("epoch", "train_loss", "train_acc", "val_loss", "val_acc", "lr")

Line = Mapping[str, Any]


def export_tallies(
    data: xr.Dataset,
    folder: str | os.PathLike[str],
    *,
    reading: Literal["paper", "lite"] = "paper",
    missing: OnMissing = "error",
) -> list[Path]:
    """Write ``<checkpoint>/<layer>/tally.csv``, as the reference's dissection does, and return the paths. **Eager.**

    Lines are in order of falling scores. A unit without a best concept has an empty label.

    Parameters
    ----------
    data : the opened cube of concepts, or of adopted tallies, or what `neurolens.mortality.read_tallies` returned
    folder
        Checkpoints are called as their coordinate `checkpoint` says, else ``epoch_<n>``, ``iter_<n>`` or
        ``epoch_<n>_iter_<n>``. Tables that are there are replaced, each as a whole.
    reading : {"paper", "lite"}
        Of the concepts cube; tallies have their own.
    missing : {"error", "drop"}
        Raise where a checkpoint was not measured, or leave it out.

    Raises
    ------
    SchemaError
        If there are neither counts nor tallies in the Dataset.
    DataError
        If a file cannot be written.
    MissingMeasurementError
        If checkpoints were not measured, naming them.
    """
    data = opened(data)
    tallies = _best_per_category(data, reading, missing) if "intersection" in data else data
    lacking = [name for name in ("best_label", "best_iou", "truth", "activation", "intersect") if name not in tallies]
    if lacking:
        raise SchemaError(f"there is no {lacking[0]!r}; pass the concepts cube, or tallies with columns per category")
    series = schema.series_dim(tallies)
    tallies = tallies.drop_vars("iou", errors="ignore").compute()
    layers, index = _layers(tallies), _index(tallies)
    categories = [str(c) for c in held(tallies["category"])]
    paths = []
    for t, name in enumerate(_names(tallies, series)):
        here = tallies.isel({series: t}).transpose("unit", "category", ...)
        for layer in dict.fromkeys(layers.tolist()):
            at = np.flatnonzero(layers == layer)
            lines = [_line(here, int(u), int(index[u]) + 1, categories) for u in at]
            lines.sort(key=lambda line: -line["score"] if line["score"] == line["score"] else np.inf)
            path = Path(folder) / name / layer / FILE
            columns = (*COLUMNS, *(f"{c}-{f}" for c in categories for f in ("label", *FIGURES)))
            replace_csv(path, columns, lines)
            paths.append(path)
    return paths


def export_trajectories(
    data: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    reading: Literal["paper", "lite"] = "paper",
    missing: OnMissing = "error",
) -> Path:
    """Write ``trajectories.csv``: the best concept of every unit at every checkpoint. **Eager.**

    Parameters
    ----------
    data : the opened cube of concepts, or of adopted tallies, or `score`, `label`, `label_category` (series, unit)
        The last from `neurolens.mortality.read_tallies` or `neurolens.best_concept`. By epoch, columns are
        ``epoch,layer,unit,label,score,category``; by step, ``step,checkpoint,layer,unit,label,score,category``.
    path
        The file, which is replaced as a whole.
    reading : {"paper", "lite"}
        Of the concepts cube; tallies have their own.
    missing : {"error", "drop"}
        Of the concepts cube: raise where a checkpoint was not measured, or leave it out.

    Raises
    ------
    SchemaError
        If a variable is missing.
    DataError
        If the file cannot be written.
    MissingMeasurementError
        If checkpoints were not measured, naming them.
    """
    data = opened(data)
    if "intersection" in data:
        data = best_concept(_measured(data, reading, missing), reading=reading)
    for name in ("score", "label", "label_category"):
        schema.present(data, name)
    series = schema.series_dim(data)
    data = data[["score", "label", "label_category"]].compute().transpose(series, "unit")
    layers, index, names = _layers(data), _index(data), _names(data, series)
    checkpoint = () if series == "epoch" else ("checkpoint",)
    lines = [
        {
            series: stamp,
            "checkpoint": names[t],
            "layer": str(layers[u]),
            "unit": int(index[u]) + 1,
            "label": str(data["label"].data[t, u]),
            "score": float(data["score"].data[t, u]),
            "category": str(data["label_category"].data[t, u]),
        }
        for t, stamp in enumerate(np.asarray(labels_of(data, series)).tolist())
        for u in range(data.sizes["unit"])
    ]
    columns = (series, *checkpoint, "layer", "unit", "label", "score", "category")
    return replace_csv(Path(path), columns, lines)


def export_events(
    events: pd.DataFrame,
    folder: str | os.PathLike[str],
    *,
    migrations: pd.DataFrame | None = None,
    functional_dead: Sequence[Any] | None = None,
) -> tuple[Path, Path, Path]:
    """Write ``mortality_events.csv``, ``summary.csv`` and ``concept_death_counts.csv``, and return their paths.

    Parameters
    ----------
    events : the table of `neurolens.concept_events`, in any reading; deaths are written
    folder
        Files that are there are replaced, each as a whole.
    migrations : the table of `neurolens.migrations` on the same scores and options, optional
        Absent: the column ``migrated`` is empty, and so is its count.
    functional_dead : one per death, in order, optional
        As in the table of `neurolens.functional_death`. What is missing (NA) is empty, and so are all without it, where
        the reference writes False whether it looked or not.

    Raises
    ------
    SchemaError
        If events have no concept, or the migrations, or ``functional_dead``, are of other deaths.
    DataError
        If a file cannot be written.
    """
    if "concept" not in events:
        raise SchemaError("the events have no concept; follow scores with labels")
    series = str(events.attrs.get("series", "epoch"))
    deaths = events[events["end"] == "death"].reset_index(drop=True)
    migrated = _flags(deaths, None if migrations is None else migrations["migrated"].tolist(), "migrations")
    if migrations is not None and (migrations["death"].tolist() != deaths["death"].tolist()):
        raise SchemaError("the migrations are of other deaths; make both with the same scores and options")
    functional = _flags(deaths, functional_dead, "functional_dead")
    unit = deaths["index"] if "index" in deaths else deaths.get("unit", pd.Series(-1, deaths.index))
    layer = deaths.get("layer", pd.Series("", deaths.index))
    lines = [
        {
            "unit": int(unit[i]) + 1,
            "layer": str(layer[i]),
            "label": line["concept"],
            f"{series}_birth": line["birth"],
            f"{series}_death": line["death"],
            "score_birth": line["score_birth"],
            "score_death": line["score_death"],
            "migrated": migrated[i],
            "functional_dead": functional[i],
        }
        for i, line in enumerate(deaths.to_dict("records"))
    ]
    ends = (f"{series}_birth", f"{series}_death")
    columns = ("unit", "layer", "label", *ends, "score_birth", "score_death", "migrated", "functional_dead")
    total: list[tuple[str, Any]] = [("total_events", len(deaths))]
    total.append(("migrated_events", "" if migrations is None else sum(migrated)))
    known = [flag for flag in functional if flag != ""]
    total.append(
        ("functional_dead_events", sum(known) if known or (not functional and functional_dead is not None) else "")
    )
    stamps = deaths["death"].value_counts().sort_index()
    total += [(f"{series}_{stamp}_deaths", int(n)) for stamp, n in stamps.items()]
    counts = layer.value_counts()
    total += [(f"layer_{name}_deaths", int(counts[name])) for name in sorted(counts.index, key=natural) if name]
    by_concept = deaths["concept"].value_counts()
    root = Path(folder)
    return (
        replace_csv(root / "mortality_events.csv", columns, lines),
        replace_csv(root / "summary.csv", ("metric", "value"), [{"metric": m, "value": v} for m, v in total]),
        replace_csv(
            root / "concept_death_counts.csv",
            ("label", "count"),
            [{"label": name, "count": int(n)} for name, n in by_concept.items()],
        ),
    )


def export_metrics(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Write ``metrics.csv`` of a training with the reference's columns, figure by figure as the training wrote them.

    Parameters
    ----------
    source
        The ``metrics.csv`` that a training keeps beside its checkpoints.
    path
        The file, which is replaced as a whole.

    Raises
    ------
    DataError
        If there is no such table, columns are missing, or the file cannot be written.
    """
    origin = Path(source)
    try:
        with origin.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except FileNotFoundError:
        raise DataError(f"{origin}: there are no metrics; they are written by `neurolens run` as it trains") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{origin} is not a table of metrics ({error}); remove it, or train again") from error
    lacking = [name for name in METRICS if lines and name not in lines[0]]
    if lacking or not lines:
        found = f"lacks {listed(lacking)}" if lacking else "has no line"
        raise DataError(f"{origin} {found}; needed: {', '.join(METRICS)}, as `neurolens run` writes them; train again")
    return replace_csv(Path(path), METRICS, lines)


def replace_csv(path: Path, columns: Sequence[str], lines: Iterable[Line]) -> Path:
    """Write a CSV in the place of what is there: killed at any time, the file is the old one or the new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", newline="", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as draft:
            writer = csv.DictWriter(draft, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(lines)
        os.chmod(draft.name, 0o644)
        os.replace(draft.name, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); name a folder you may write to") from error
    return path


def _flags(deaths: pd.DataFrame, flags: Sequence[Any] | None, name: str) -> list[Any]:
    if flags is None:
        return [""] * len(deaths)
    if len(flags) != len(deaths):
        raise SchemaError(f"{name} has {len(flags)} lines, and there are {len(deaths)} deaths; give one for each")
    return ["" if pd.isna(flag) else bool(flag) for flag in flags]


def _line(here: xr.Dataset, unit: int, number: int, categories: Sequence[str]) -> dict[str, Any]:
    iou = here["best_iou"].data[unit]
    known = np.isfinite(iou)
    best = int(np.where(known, iou, -np.inf).argmax()) if known.any() else -1
    labels = [str(name) for name in here["best_label"].data[unit]]
    line: dict[str, Any] = {"unit": number, "category": "", "label": "", "score": float("nan")}
    if best >= 0:
        line |= {"category": categories[best] if labels[best] else "", "label": labels[best], "score": float(iou[best])}
    if "score" in here:  # as it was read: a nameless best concept included
        line["score"] = float(here["score"].data[unit])
        line |= {"label": str(here["label"].data[unit]), "category": str(here["label_category"].data[unit])}
    for i, category in enumerate(categories):
        line[f"{category}-label"] = labels[i]
        for name in FIGURES:
            value = float(here["best_iou" if name == "iou" else name].data[unit, i])
            line[f"{category}-{name}"] = int(value) if name != "iou" and value.is_integer() else value
    return line


def _measured(concepts: xr.Dataset, reading: Literal["paper", "lite"], missing: OnMissing) -> xr.Dataset:
    score = iou(concepts, reading=reading)
    kept = trajectories_of(score, missing=missing)
    whole = kept.score.sizes[kept.series] == score.sizes[kept.series]
    return concepts if whole else concepts.sel({kept.series: kept.score[kept.series]})


def _best_per_category(concepts: xr.Dataset, reading: Literal["paper", "lite"], missing: OnMissing) -> xr.Dataset:
    concepts = _measured(concepts, reading, missing)
    best = best_concept(concepts, reading=reading, by="category").compute()
    at = best["position"]
    some, concept = at >= 0, at.clip(0)
    totals = concepts[["intersection", AREAS[reading], "concept_area"]].sum("block", skipna=False).compute()
    bare = totals.drop_vars(["concept", "label", "concept_category"], errors="ignore")
    out = best.drop_vars("position").rename(label="best_label", score="best_iou").drop_vars("label_category")
    out["truth"] = bare["concept_area"].isel(concept=concept).where(some, 0.0)
    out["intersect"] = bare["intersection"].isel(concept=concept).where(some, 0.0)
    out["activation"] = bare[AREAS[reading]]
    return out


def _names(data: xr.Dataset, series: str) -> list[str]:
    if "checkpoint" in data.coords and data["checkpoint"].dims == (series,):
        names = [str(name) for name in held(data["checkpoint"])]
    else:
        stamps = [str(int(stamp)) for stamp in np.asarray(labels_of(data, series))]
        names = [f"{'epoch' if series == 'epoch' else 'iter'}_{stamp}" for stamp in stamps]
        if series == "step" and "epoch" in data.coords and data["epoch"].dims == (series,):
            epochs = held(data["epoch"])
            if np.isfinite(epochs).all():
                names = [f"epoch_{int(epoch)}_{name}" for epoch, name in zip(epochs, names)]
    if len(set(names)) < len(names):
        raise SchemaError(f"checkpoints share names: {listed(names)}; give them distinct ones")
    return names


def _layers(data: xr.Dataset) -> Any:
    if "layer" not in data.coords:
        raise SchemaError("there is no coordinate `layer` along `unit`; add it: assign_coords(layer=('unit', names))")
    return np.asarray(held(data["layer"]).tolist(), str)


def _index(data: xr.Dataset) -> Any:
    return held(data["index"]) if "index" in data.coords else np.arange(data.sizes["unit"])
