"""The figures that the reference writes of filtered attributions, from the opened cube: with its keys, in its units."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens import schema
from neurolens.attribution.classwise import per_class
from neurolens.attribution.exported_names import BASELINE, METHODS, Control, Filtered, block_name
from neurolens.attribution.planner import WHOLE
from neurolens.attribution.reading import Level, accuracy, require_cube, score_of
from neurolens.attribution.statistics import PERCENTILES, compare
from neurolens.errors import MissingMeasurementError, SchemaError, nearest

Array = npt.NDArray[Any]
OnMissing = Literal["error", "drop"]
Line = dict[str, Any]

QUANTITIES = ("sparsity", "faithfulness")
GRID_COLUMNS = (
    "block",
    "k_clusters",
    "clusterId",
    "accuracy_top1",
    *(f"{m}_{q}_{of}" for m in METHODS for q in ("faithfulness", "sparsity") for of in ("mean", "std")),
)
CLASS_COLUMNS = (
    "class_id",
    "class_name",
    "method",
    *(f"{side}_{q}_{of}" for side in ("filtered", "baseline") for q in QUANTITIES for of in ("mean", "std")),
    "mean_diff",
)
_SEED = 42
"""Of the reference's resamples."""


def scored(data: xr.Dataset, *, missing: OnMissing = "error") -> xr.Dataset:
    """Return the scores that the reference's files are of, at one checkpoint. **Eager.**

    Parameters
    ----------
    data : the opened attributions cube at one checkpoint
    missing : {"error", "drop"}
        Raise where an image was not measured, or leave it out: its scores are NaN.

    Returns
    -------
    Dataset over (level, sample, map, attribution)
        ``sparsity``: share of entries that are not needed for most of the mass. ``faithfulness``: how far the
        probability of the class falls without the highest entries; absent where it was not measured. NaN where a map
        is zero everywhere. `attribution` is named as the reference has it: those of ig and saliency that were measured.

    Raises
    ------
    MissingMeasurementError
        If an image was not measured, saying how many, or neither method was.
    SchemaError
        If ``data`` has a series of checkpoints, or an option is unknown.
    """
    if missing not in ("error", "drop"):
        raise SchemaError(f"missing={missing!r} is unknown; {nearest(str(missing), ('error', 'drop'))}")
    if series := [d for d in schema.SERIES_DIMS if d in data.dims]:
        raise SchemaError(
            f"found checkpoints along {series[0]!r}, and one was needed; select it: data.sel({series[0]}=…)"
        )
    require_cube(data)
    schema.present(data, "patch", "pixel_sparsity", "mass")
    measured = [str(name) for name in data["attribution"].to_numpy()]
    names = {ours: theirs for theirs, ours in METHODS.items() if ours in measured}
    if not names:
        raise MissingMeasurementError(
            f"found the methods {measured}, and the reference's files are of {' and '.join(METHODS.values())}; name "
            "them in [attributions] and run: `neurolens run STUDY --only attributions`"
        )
    data = data.sel({"attribution": list(names)})
    out = xr.Dataset({"sparsity": _by_level(data, "sparsity")}).assign_coords(mass=data["mass"])
    if "masked_log_prob" in data and "log_prob" in data:
        out["faithfulness"] = _by_level(data, "drop")
    if "class" in data.coords:
        out = out.assign_coords({"class": data["class"]})
    out = out.assign_coords(attribution=list(names.values())).compute()
    _require_images(out, missing)
    return out.transpose("level", "sample", "map", "attribution", ...)


def _by_level(data: xr.Dataset, name: str) -> xr.DataArray:
    levels: tuple[Level, ...] = ("patch", "pixel")
    return xr.Dataset({level: score_of(data, name, level=level) for level in levels}).to_dataarray("level")


def _require_images(scores: xr.Dataset, missing: OnMissing) -> None:
    lacking = scores["mass"].isnull()
    if "faithfulness" in scores:
        lacking = lacking | (scores["faithfulness"].isnull() & (scores["mass"] > 0)).any("level")
    absent = int(lacking.any(("map", "attribution")).sum())
    if absent and (missing == "error" or bool(lacking.all())):
        at = next((f" at {d} {int(scores[d])}" for d in schema.SERIES_DIMS if d in scores.coords), "")
        raise MissingMeasurementError(
            f"attributions of {absent} of {scores.sizes['sample']} images are not all measured{at}; measure them: "
            "`neurolens run STUDY --only attributions`, or leave them out: missing='drop' (--missing drop)"
        )


def accuracy_of(data: xr.Dataset) -> dict[str, float | None]:
    """Return ``top1`` and ``top5`` of the images that were measured; None without labels, or where it was not measured.

    There is one accuracy: blocking a gradient leaves every logit as it is.
    """
    if "label_rank" not in data:
        return {"top1": None, "top5": None}
    found = accuracy(data)["accuracy"].to_numpy()
    return {f"top{n}": number(value) for n, value in zip((1, 5), found, strict=True)}


def metrics_of(scores: xr.Dataset, name: str, *, level: Level = "patch") -> Line:
    """Return what ``metrics.json`` says of a map: {ig: {sparsity_mean, …}, saliency: {…}}.

    Means and standard deviations (ddof 0) are over the images that have a score; None where none has, or the method or
    quantity was not measured.
    """
    out: Line = {}
    for method in METHODS:
        out[method] = {}
        for quantity in QUANTITIES:
            values = _values(scores, quantity, name, method, level)
            out[method][f"{quantity}_mean"], out[method][f"{quantity}_std"] = moments(values)
    return out


def filtered_metrics(scores: xr.Dataset, data: xr.Dataset, one: Filtered, *, level: Level = "patch") -> Line:
    """Return what ``metrics.json`` says of a filtered cluster: `metrics_of`, and ``accuracy_top1``."""
    return metrics_of(scores, one.map, level=level) | {"accuracy_top1": accuracy_of(data)["top1"]}


def grid_lines(scores: xr.Dataset, data: xr.Dataset, sets: Sequence[Filtered], *, level: Level = "patch") -> list[Line]:
    """Return the lines of ``mask_grid_summary.csv``: one for each filtered cluster, the baseline (k 0, id 0) last.

    The accuracy is that of the same images in all lines.
    """
    rows = [(one.block, one.k, one.cluster, one.map) for one in sets] + [(BASELINE, 0, 0, WHOLE)]
    top1, lines = accuracy_of(data)["top1"], []
    for block, k, cluster, name in rows:
        line: Line = {"block": block, "k_clusters": k, "clusterId": cluster, "accuracy_top1": top1}
        for method, found in metrics_of(scores, name, level=level).items():
            line |= {f"{method}_{key}": value for key, value in found.items()}
        lines.append({key: line[key] for key in GRID_COLUMNS})
    return lines


def accuracy_line(data: xr.Dataset, one: Filtered) -> Line:
    """Return what ``acc_<block>_c<cluster>_k<k>.json`` says: both accuracies are the same, as no logit changes."""
    found = accuracy_of(data)
    told = {f"{top}_{side}": found[top] for side in ("baseline", "filtered") for top in ("top1", "top5")}
    return {"block": one.block, "cluster": one.cluster} | told


def class_lines(scores: xr.Dataset, one: Filtered, *, level: Level = "pixel") -> list[Line]:
    """Return the lines of ``class_analysis_metrics_complete.csv``, by class and method.

    ``mean_diff`` is of faithfulness, baseline − filtered, as the reference has it. A class is named by the coordinate
    `class`, or by its number. What was not measured is None.

    Raises
    ------
    SchemaError
        If images have no labels.
    """
    if "label" not in scores.coords or bool((scores["label"].isnull() | (scores["label"] < 0)).any()):
        raise SchemaError("not all images have a label, and classes were needed; name data with labels in [data]")
    names = [str(name) for name in scores["class"].to_numpy()] if "class" in scores.coords else []
    lines: dict[tuple[int, str], Line] = {}
    for method in METHODS:
        for quantity in QUANTITIES:
            if quantity not in scores or method not in scores["attribution"]:
                continue
            both = scores[quantity].sel({"level": level, "attribution": method})
            found = per_class(both.sel(map=one.map), both.sel(map=WHOLE))
            for at, label in enumerate(int(n) for n in found["class"].to_numpy()):
                called = names[label] if label < len(names) else str(label)
                start: Line = {"class_id": label, "class_name": called, "method": method}
                line = lines.setdefault((label, method), dict.fromkeys(CLASS_COLUMNS) | start)
                for side in ("filtered", "baseline"):
                    for of in ("mean", "std"):
                        line[f"{side}_{quantity}_{of}"] = number(found[f"{side}_{of}"].to_numpy()[at])
                if quantity == "faithfulness":
                    line["mean_diff"] = number(-found["difference_mean"].to_numpy()[at])
    return [lines[key] for key in sorted(lines)]


def statistics_of(scores: xr.Dataset, one: Filtered, *, level: Level = "patch", bootstrap: int = 10_000) -> Line:
    """Return what ``statistical_results.json`` says: of each method, faithfulness with the filter against without.

    Differences are filtered − baseline; intervals are the reference's, of its seed. None where a number is not
    defined, e.g. of differences that do not vary.

    Raises
    ------
    MissingMeasurementError
        If faithfulness was not measured.
    """
    if "faithfulness" not in scores:
        schema.present(xr.Dataset(), "masked_log_prob")
    out: Line = {}
    for method in METHODS:
        if method not in scores["attribution"]:
            out[method] = None
            continue
        both = scores["faithfulness"].sel({"level": level, "attribution": method})
        out[method] = paired_statistics(both.sel(map=one.map), both.sel(map=WHOLE), bootstrap=bootstrap)
    return out


def paired_statistics(filtered: xr.DataArray, baseline: xr.DataArray, *, bootstrap: int = 10_000) -> Line:
    """Return the reference's statistics of scores of the same samples, with its keys.

    Parameters
    ----------
    filtered, baseline : (sample,)
        Scores; samples without one in either are left out.
    bootstrap
        Resamples of the interval, drawn by ``numpy.random.RandomState(42)``.
    """
    drop = [name for name in filtered.coords if name not in filtered.dims]
    filtered, baseline = filtered.drop_vars(drop), baseline.drop_vars(drop, errors="ignore")
    both = filtered.notnull() & baseline.notnull()
    filtered, baseline = filtered[both.to_numpy()], baseline[both.to_numpy()]
    if not filtered.sizes["sample"]:
        return {"n_samples": 0} | dict.fromkeys(STATISTICS[1:])
    found = compare(filtered, baseline, bootstrap=bootstrap, flips=0, seed=_SEED, compat="seed").drop_vars("p_bh")
    percentile = found["percentile"].to_numpy()
    values = [
        found["baseline_mean"],
        baseline.to_numpy().std(),
        found["filtered_mean"],
        filtered.to_numpy().std(),
        found["difference"],
        found["std"],
        found["t"],
        found["p_t"],
        found["d_z"],
        found["low"],
        found["high"],
        100 * found["improved"],
        *percentile,
    ]
    return {"n_samples": int(found["n"])} | {
        key: number(float(value)) for key, value in zip(STATISTICS[1:], values, strict=True)
    }


STATISTICS = (
    "n_samples",
    "baseline_mean",
    "baseline_std",
    "filtered_mean",
    "filtered_std",
    "mean_difference",
    "std_difference",
    "ttest_statistic",
    "ttest_pvalue",
    "cohens_d",
    "bootstrap_ci_lower",
    "bootstrap_ci_upper",
    "percent_improved",
    *(f"percentile_{p}" for p in PERCENTILES),
)


def control_metrics(scores: xr.Dataset, one: Control, *, level: Level = "patch", seed: int | None = None) -> Line:
    """Return what ``metrics.json`` says of a random control; ``random_seed`` is None where it is not known."""
    return metrics_of(scores, one.map, level=level) | {
        "experiment_type": "control_random",
        "block_filtered": block_name(one.cut),
        "neurons_filtered": one.filtered,
        "neurons_total": one.total,
        "random_seed": seed,
        "metric_type": level,
    }


def control_summary(one: Control, *, by_cluster: Mapping[int, int] | None = None) -> Line:
    """Return what ``control_summary.json`` says; ``filtered_by_cluster``: blocked units of each cluster, if known."""
    return {
        "block": block_name(one.cut),
        "total_neurons": one.total,
        "filtered_neurons": one.filtered,
        "kept_neurons": one.kept,
        "filtered_percentage": one.filtered / one.total * 100,
        "n_random": one.filtered,
        "filtered_by_cluster": None if by_cluster is None else {str(c): int(n) for c, n in by_cluster.items()},
    }


def _values(scores: xr.Dataset, quantity: str, name: str, method: str, level: Level) -> Array:
    if quantity not in scores or method not in scores["attribution"]:
        return np.empty(0)
    values: Array = scores[quantity].sel({"level": level, "map": name, "attribution": method}).to_numpy()
    return values[np.isfinite(values)]


def moments(values: Iterable[float]) -> tuple[float | None, float | None]:
    """Return mean and standard deviation (ddof 0) of the numbers that are known; None where none is."""
    known = np.asarray([value for value in values if np.isfinite(value)])
    return (number(known.mean()), number(known.std())) if len(known) else (None, None)


def number(value: Any) -> float | None:
    """Return a number as JSON has it: None where it is not known."""
    return float(value) if np.isfinite(value) else None
