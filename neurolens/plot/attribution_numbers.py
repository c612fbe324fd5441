"""What the pictures and the report say of attributions: effects of filters, controls, classes, parts; computed."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.attribution.classwise import per_class
from neurolens.attribution.controlled import control, split_controls
from neurolens.attribution.decomposition import decompose
from neurolens.attribution.planner import WHOLE
from neurolens.attribution.reading import INTEGRAL, Level, accuracy, score_of, texts
from neurolens.attribution.statistics import compare
from neurolens.errors import MissingMeasurementError, SchemaError, nearest
from neurolens.plot.attribution_pixels import parts_of
from neurolens.units.layers_of import held

LEVEL: Level = "patch"
"""What is taken away to see how faithful maps are, unless there is none of it."""
RESAMPLES = 10_000
OVER = 1_000
"""Resamples of intervals at every checkpoint."""
SHOWN = 6
"""Up to how many sets are followed over checkpoints."""
_OF_MAP = ("kind", "cut", "clustering", "of", "cluster", "draw", "kept")
KINDS = {"without": ("without", "union"), "only": ("only",)}


@dataclass(frozen=True)
class AttributionNumbers:
    """What the sets of units of a run carry of its answers, computed, mostly at the last checkpoint.

    Attributes
    ----------
    series : str
    last : Dataset
        The cube at the last checkpoint that was measured, of the images that were; lazy.
    level : str
        What was taken away: ``patch``, or ``pixel``.
    top1, top5 : share
        Accuracy on these images; NaN without labels.
    effects : Dataset by kind, over (map, attribution)
        What `neurolens.attribution.compare` says of the drop of the probability: ``without`` of the sets without a
        cluster, ``only`` of clusters alone. A kind that was not measured is absent.
    focus : str
        Name of the set that is looked at closely; empty where there is none.
    clustering : (str, str)
        Its layer and clustering; empty where there is none.
    observed, draws : (map, attribution), (map, draw, attribution)
        Mean differences of the sets that have controls, and of these; None where there are none.
    control : Dataset (map, attribution)
        What `neurolens.attribution.control` returns of them, two-sided; None where there are none.
    classes : Dataset (class, attribution)
        What `neurolens.attribution.per_class` returns of the focus, classes by name; None without labels.
    curves : Dataset (sample, map, attribution, share)
        `deletion` and `insertion` of the whole, the focus and its cluster; None where they were not measured.
    shares : (sample, map)
        Share of the change of the output through each cluster of the clustering, by Integrated Gradients; None where
        these were not measured.
    gap, change : (sample)
        What the steps of the integral leave, and the change; None as above.
    norms : (sample, map, attribution), cosine : (map, other, attribution)
        Shares of the norms of the clusters, and cosines between their maps, mean over images; None where there is no
        clustering.
    over : Dataset (series, map, attribution)
        What `compare` says of the sets of the clustering at every checkpoint; None where there is one only.
    notes : tuple of str
        What is missing, in words.
    """

    series: str
    last: xr.Dataset
    level: Level = LEVEL
    top1: float = float("nan")
    top5: float = float("nan")
    effects: dict[str, xr.Dataset] = field(default_factory=dict)
    focus: str = ""
    clustering: tuple[str, str] = ("", "")
    observed: xr.DataArray | None = None
    draws: xr.DataArray | None = None
    control: xr.Dataset | None = None
    classes: xr.Dataset | None = None
    curves: xr.Dataset | None = None
    shares: xr.DataArray | None = None
    gap: xr.DataArray | None = None
    change: xr.DataArray | None = None
    norms: xr.DataArray | None = None
    cosine: xr.DataArray | None = None
    over: xr.Dataset | None = None
    notes: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Which checkpoint this is of."""
        return f"{self.series} {self.last[self.series].item()}" if self.series in self.last.coords else "the checkpoint"

    @property
    def by_class(self) -> bool:
        """Whether intervals are of whole classes too."""
        return any("class_low" in found for found in self.effects.values())


def attribution_numbers(
    ds: xr.Dataset, *, filtered: str | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> AttributionNumbers:
    """Reduce an attributions cube to what is drawn and said of it. **Eager**.

    Parameters
    ----------
    ds : the opened attributions cube
    filtered : str, optional
        Name of the set that is looked at closely; absent: the first that has random controls, else the first without
        a cluster.
    resamples
        Of intervals, and flips of signs; 1 000 at most over checkpoints.
    seed
        Of both.

    Raises
    ------
    MissingMeasurementError
        If no checkpoint was measured.
    SchemaError
        If there is no such set.
    """
    series = schema.series_dim(ds)
    done = _measured(ds, series)
    places = np.flatnonzero(done.any(axis=1))
    last = ds.isel({series: int(places[-1])}).isel(sample=np.flatnonzero(done[places[-1]]))
    described = [name for name in ("map", "attribution", *_OF_MAP) if name in last.coords]
    last = last.assign_coords({name: (last[name].dims, held(last[name])) for name in described})
    notes: list[str] = []
    if len(places) < ds.sizes[series]:
        notes.append(
            f"Attributions are of {len(places)} of {ds.sizes[series]} checkpoints: the others were not measured."
        )
    focus, clustering = _focus(last, filtered)
    drops, level = _drops(last)
    given: dict[str, Any] = _accuracy(last)
    if drops is None:
        notes.append("There are no effects of filters: faithfulness was not measured (faithfulness = true).")
    else:
        drops = drops.load()
        given |= _effects(drops, resamples, seed) | _controls(drops) | _classes(drops, last, focus)
        if len(places) > 1 and clustering[0]:
            given["over"] = _over(ds.isel({series: places}), clustering, level, min(resamples, OVER), seed)
    given |= _parts(last, clustering)
    return AttributionNumbers(
        series=series,
        last=last,
        level=level,
        focus=focus,
        clustering=clustering,
        curves=_curves(last, focus),
        notes=tuple(notes),
        **given,
    )


def _measured(ds: xr.Dataset, series: str) -> np.ndarray:
    """Return of which images there are maps at each checkpoint, or answers where there are no maps; (series, sample).

    Raises
    ------
    MissingMeasurementError
        If there are neither.
    """
    for name in ("mass", "log_prob"):
        if name in ds:
            array = ds[name].isel(map=texts(ds["map"]).index(WHOLE)) if "map" in ds[name].dims else ds[name]
            known = array.notnull().any([d for d in array.dims if d not in (series, "sample")])
            done = np.asarray(known.transpose(series, "sample"))
            if done.any():
                return done
    raise MissingMeasurementError(
        "no checkpoint has attributions yet, neither maps nor answers; `neurolens run STUDY --only attributions` "
        "measures them"
    )


def _focus(last: xr.Dataset, filtered: str | None) -> tuple[str, tuple[str, str]]:
    """Return the set that is looked at closely, and the layer and clustering whose clusters are."""
    if "map" not in last.coords:
        return "", ("", "")
    names = texts(last["map"])
    kinds, cuts, clusterings, of = (texts(last[name]) for name in ("kind", "cut", "clustering", "of"))
    if filtered is not None and filtered not in names:
        raise SchemaError(f"there is no set of units {filtered!r}; {nearest(filtered, names)}")
    controlled = [name for name in names if name in set(of)]
    kept = [[n for n, kind in zip(names, kinds) if kind == wanted] for wanted in ("without", "only", "union")]
    focus = filtered or next(iter([*controlled, *(n for some in kept for n in some)]), "")
    groups = [(cut, of_cut) for cut, of_cut, kind in zip(cuts, clusterings, kinds) if kind == "only" and of_cut]
    own = (cuts[names.index(focus)], clusterings[names.index(focus)]) if focus else ("", "")
    return focus, own if own in groups else next(iter(groups), ("", ""))


def _accuracy(last: xr.Dataset) -> dict[str, float]:
    if "label_rank" not in last:
        return {}
    found = accuracy(last)["accuracy"]
    return {f"top{n}": float(found.sel(top=n)) for n in (1, 5)}


def _drops(ds: xr.Dataset) -> tuple[xr.DataArray | None, Level]:
    """Return how far the probability falls without the highest entries, (…, sample, map, attribution), and of which."""
    if not {"log_prob", "masked_log_prob"} <= set(map(str, ds.data_vars)):
        return None, LEVEL
    level: Level = LEVEL if LEVEL in texts(ds["level"]) else "pixel"
    return score_of(ds, "drop", level=level), level


def _of_kind(drops: xr.DataArray, kinds: tuple[str, ...]) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the drops of the sets of some kinds, and those of the whole."""
    names = texts(drops["map"])
    some = [i for i, kind in enumerate(texts(drops["kind"])) if kind in kinds]
    return drops.isel(map=some), drops.isel(map=names.index(WHOLE), drop=True)


def _by(drops: xr.DataArray) -> str | None:
    """Return the coordinate that whole classes are drawn by, where there are several."""
    return "label" if "label" in drops.coords and len(np.unique(drops["label"])) > 1 else None


def _effects(drops: xr.DataArray, resamples: int, seed: int) -> dict[str, Any]:
    found = {}
    for kind, kinds in KINDS.items():
        some, whole = _of_kind(drops, kinds)
        some = some.isel(attribution=np.asarray(some.notnull().any(["sample", "map"])))  # captum's know the whole only
        if some.sizes["map"] and some.sizes["attribution"]:
            whole = whole.sel({"attribution": some["attribution"]})
            options: dict[str, Any] = {"classes": _by(drops), "bootstrap": resamples, "flips": resamples, "seed": seed}
            found[kind] = compare(some, whole, **options)
    return {"effects": found}


def _controls(drops: xr.DataArray) -> dict[str, Any]:
    if "control" not in texts(drops["kind"]):
        return {}
    _, whole = _of_kind(drops, ())
    observed, draws = (array.mean("sample") for array in split_controls(drops - whole))
    known = np.asarray(observed.notnull().any("map"))
    if not known.any():
        return {}
    observed, draws = observed.isel(attribution=known), draws.isel(attribution=known)
    found = control(observed, draws, alternative="two-sided")
    return {"observed": observed, "draws": draws, "control": found}


def _classes(drops: xr.DataArray, last: xr.Dataset, focus: str) -> dict[str, Any]:
    if not focus or "label" not in drops.coords:
        return {}
    names = texts(drops["map"])
    _, whole = _of_kind(drops, ())
    one = drops.isel(map=names.index(focus))
    known = np.asarray(one.notnull().any("sample"))
    if not known.any():
        return {}
    found = per_class(one.isel(attribution=known), whole.isel(attribution=known))
    if "class" in last.coords:
        called = texts(last["class"])
        numbers = [int(number) for number in found["class"].values]
        if all(0 <= number < len(called) for number in numbers):
            found = found.assign_coords({"class": [called[number] for number in numbers]})
    return {"classes": found}


def _curves(last: xr.Dataset, focus: str) -> xr.Dataset | None:
    kinds = [name for name in ("deletion", "insertion") if name in last]
    if not kinds:
        return None
    names = texts(last["map"])
    wanted = [WHOLE, *([focus, focus.replace("/without ", "/", 1)] if focus else [])]
    at = [names.index(name) for name in dict.fromkeys(wanted) if name in names]
    found = last[kinds].isel(map=at).load()
    return found if bool(found.to_dataarray().notnull().any()) else None


def _parts(last: xr.Dataset, clustering: tuple[str, str]) -> dict[str, xr.DataArray]:
    if not clustering[0]:
        return {}
    parts = parts_of(last, clustering)
    found: dict[str, xr.DataArray] = {}
    variables = set(map(str, last.data_vars))
    if {"total", "output", "baseline_output"} <= variables and INTEGRAL in texts(last["attribution"]):
        at = {"map": parts, "attribution": texts(last["attribution"]).index(INTEGRAL)}
        found["shares"] = score_of(last, "completeness_share").isel(at, drop=True).load().transpose("sample", "map")
        found["gap"] = score_of(last, "gap").load()
        found["change"] = (last["output"] - last["baseline_output"]).load()
    if {"norm", "total", "dot", "reconstruction_error"} <= variables:
        made = decompose(last.isel(map=parts))[["norm_share", "cosine"]].load()
        mates = made["cosine"].sel(mate=held(last["cluster"])[parts].tolist())
        found["norms"] = made["norm_share"].transpose("sample", "map", "attribution")
        found["cosine"] = mates.mean("sample").rename(mate="other").transpose("map", "other", "attribution")
    return {name: array for name, array in found.items() if bool(array.notnull().any())}


def _over(ds: xr.Dataset, clustering: tuple[str, str], level: str, resamples: int, seed: int) -> xr.Dataset | None:
    """Compare the sets of one clustering at every checkpoint: those without a cluster, or the clusters alone."""
    known = list(zip(*(texts(ds[n]) for n in ("kind", "cut", "clustering"))))
    for kind in ("without", "only"):
        some = [i for i, one in enumerate(known) if one == (kind, *clustering)][:SHOWN]
        if some:
            names = texts(ds["map"])
            drops, _ = _drops(ds.isel(map=[names.index(WHOLE), *some]).sel(level=[level]))
            assert drops is not None
            drops = drops.load()
            drops = drops.isel(
                attribution=np.asarray(drops.isel(map=1).notnull().any(["sample", schema.series_dim(drops)]))
            )
            if not drops.sizes["attribution"]:
                return None
            rest, whole = drops.isel(map=slice(1, None)), drops.isel(map=0, drop=True)
            return compare(rest, whole, classes=_by(drops), bootstrap=resamples, flips=0, seed=seed)
    return None
