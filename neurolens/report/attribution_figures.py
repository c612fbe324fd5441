"""The key figures of attributions by unit cluster, and a section that says how sure they are and of what they are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from neurolens.attribution.reading import accuracy
from neurolens.errors import NeurolensError
from neurolens.plot import AttributionNumbers, ClusterNumbers, RunPictures
from neurolens.plot.attribution_effects import ALPHA
from neurolens.plot.attribution_names import method_name
from neurolens.plot.attribution_pictures import remarkable, strongest
from neurolens.report.records import Fact, FigureTable, KeyFigure, Section
from neurolens.study import Study

SAME = (
    "It is stated once: a filter blocks gradients and leaves every number that goes forward as it is, to the bit, so "
    "logits, probabilities and the predicted class are the same under every filter."
)
PICTURES = ("attribution", "cluster")
"""How names of pictures begin that the section shows."""


def attribution_figures(given: AttributionNumbers) -> list[KeyFigure]:
    """Gather the numbers of an attributions cube that say most about the run.

    Parameters
    ----------
    given : AttributionNumbers
        What `neurolens.plot.attribution_numbers` returned for it.
    """
    images, sets = given.last.sizes.get("sample", 0), given.last.sizes.get("map", 0)
    found = [KeyFigure(f"{images:,}", "images explained", f"at {given.where}, through {sets:,} sets of units")]
    if np.isfinite(given.top1):
        meaning = f"top-5 {given.top5:.1%}; on these images, and the same under every filter"
        found.append(KeyFigure(f"{given.top1:.1%}", "top-1 accuracy", meaning))
    compared = given.effects.get("without", given.effects.get("only"))
    if compared is not None:
        sure, cells = remarkable(compared)
        name, method, difference = strongest(compared)
        found.append(
            KeyFigure(f"{sure} of {cells}", "effects of filters", f"below p = {ALPHA:g}, corrected for the whole grid")
        )
        meaning = f"the largest effect on the drop of the probability: {name}, {method_name(method)}"
        found.append(KeyFigure(f"{difference:+.3f}", "largest effect", meaning))
    if given.gap is not None and given.change is not None and images:
        size = _median_gap(given)
        meaning = "median over images, of the change of the output: what the steps of the integral leave"
        found.append(KeyFigure(f"{size:.2%}", "gap of completeness", meaning))
    return found


def attribution_section(drawn: RunPictures, study: Study | None = None) -> Section | None:
    """Say of what attributions are and how sure they are; None where there are neither clusters nor attributions.

    Parameters
    ----------
    drawn : RunPictures
        What `neurolens.plot.run_pictures` returned.
    study : Study, optional
        By which it is known which classes the statistics of units are of.
    """
    if drawn.clusters is None and drawn.attributions is None:
        return None
    facts: list[Fact] = []
    tables: list[FigureTable] = []
    if drawn.attributions is not None:
        facts += _accuracy(drawn.attributions)
    if drawn.clusters is not None:
        facts += [_statistics(drawn.clusters, study), _stability(drawn.clusters)]
    if drawn.attributions is not None:
        given = drawn.attributions
        facts += [*_correction(given), *_interval(given), *_control(given), *_completeness(given)]
        tables += [effect_table(given, kind) for kind in given.effects]
    shown = tuple(picture for picture in drawn.pictures if picture.name.startswith(PICTURES))
    return Section("Attributions", "attributions", tuple(facts), tuple(tables), shown)


def effect_table(given: AttributionNumbers, kind: str = "without") -> FigureTable:
    """Lay out what each set does to how faithful maps are, with every interval and p-value.

    Parameters
    ----------
    given : AttributionNumbers
        What `neurolens.plot.attribution_numbers` returned.
    kind : {"without", "only"}
        Of which sets.
    """
    compared = given.effects[kind]
    by_class = "class_low" in compared
    drawn = given.control is not None and bool(set(_values(given.control, "map")) & set(_values(compared, "map")))
    header = ["set", "units", "method", "unfiltered", "difference", "p, corrected", *(["p, random"] if drawn else [])]
    header += [*(["95 %, classes"] if by_class else []), "95 %, images", "d_z"]
    p = compared["class_p_max_t" if by_class else "p_max_t"]
    lines = []
    for row in range(compared.sizes["map"]):
        for column in range(compared.sizes["attribution"]):
            one = compared.isel(map=row, attribution=column)
            kept = int(one["kept"]) if "kept" in one.coords else -1
            cells = [str(one["map"].item()), f"{kept:,}" if kept >= 0 else "", method_name(one["attribution"].item())]
            cells += [f"{float(one['baseline_mean']):.4f}", f"{float(one['difference']):+.4f}"]
            cells += [_p(p.isel(map=row, attribution=column)), *([_random(given, one)] if drawn else [])]
            cells += [_range(one["class_low"], one["class_high"])] if by_class else []
            cells += [_range(one["low"], one["high"]), f"{float(one['d_z']):+.2f}"]
            lines.append(tuple(cells))
    images = int(compared["n"].max())
    what = "Units without a cluster" if kind == "without" else "Clusters alone"
    caption = (
        f"Drop of the probability without the top {given.level} entries of a map, {images:,} images at {given.where}: "
        "that of the unfiltered map, and filtered − unfiltered with intervals. "
        f"p is corrected for all {p.size} cells of the table by sign-flip max-T"
        + (", whole classes flipped" if by_class else "")
        + ("; against random sets it is two-sided, and not corrected." if drawn else ".")
    )
    return FigureTable(f"{what}: how faithful their maps are", caption, tuple(header), tuple(lines))


def _accuracy(given: AttributionNumbers) -> list[Fact]:
    if not np.isfinite(given.top1):
        return []
    found = accuracy(given.last)
    words = [
        f"top-{n} {float(one['accuracy']):.2%} (95 %: {float(one['accuracy_low']):.1%} to "
        f"{float(one['accuracy_high']):.1%})"
        for n, one in ((n, found.sel(top=n)) for n in (1, 5))
    ]
    return [Fact("accuracy", f"{', '.join(words)} of {int(found['n']):,} images at {given.where}. {SAME}")]


def _statistics(given: ClusterNumbers, study: Study | None) -> Fact:
    source = f"Units are told apart by statistics of {given.source}" if given.source else "Statistics are of the images"
    return Fact("statistics of units", f"{source}. {_classes(study)}")


def _classes(study: Study | None) -> str:
    """Say how many classes the images are of that units were told apart by."""
    unknown = "Of how many classes these are is known with the study at hand: `neurolens report STUDY`."
    if study is None or study.clusters is None:
        return unknown
    from neurolens.clusters.measure import chosen
    from neurolens.data import open_samples

    try:
        every = open_samples(study.data)
    except NeurolensError as error:
        return f"Of how many classes these are cannot be told: {error}"
    some = chosen(every, study.clusters)
    classes, all_classes = (len(np.unique(samples.labels)) for samples in (some, every))
    few = " Clusters say nothing of what units do on the others." if classes < all_classes else ""
    return f"They are {len(some):,} images of {classes:,} of {all_classes:,} classes.{few}"


def _stability(given: ClusterNumbers) -> Fact:
    known = given.quality["stability"]
    if not bool(known.notnull().any()):
        return Fact("stability of clusters", "There is no chance in how these clusters were found.")
    least = known.fillna(np.inf)
    place = np.unravel_index(int(np.argmin(np.asarray(least))), least.shape)
    one = known.isel({d: int(i) for d, i in zip(known.dims, place)})
    layer = f"{one['layer'].item()}, " if "layer" in one.coords else ""
    words = (
        f"Clusters that other seeds find agree with these by {float(known.min()):.2f} to {float(known.max()):.2f} "
        f"(mean adjusted Rand index; 1 is the same clusters, 0 chance), least for {layer}k = {int(one['k'])}. A "
        "cluster that other seeds do not find is no property of the network."
    )
    return Fact("stability of clusters", words)


def _correction(given: AttributionNumbers) -> list[Fact]:
    found = []
    for kind, compared in given.effects.items():
        sure, cells = remarkable(compared)
        p = compared["class_p_max_t" if "class_p_max_t" in compared else "p_max_t"]
        what = "sets without a cluster" if kind == "without" else "clusters alone"
        known = bool(p.notnull().any())
        least = f"; the smallest is {_p(p.min())}" if known else ""
        found.append(f"of {what}, {sure} of {cells} are below {ALPHA:g}{least}")
    if not found:
        return []
    how = "signs of whole classes are flipped" if given.by_class else "signs of images are flipped"
    words = f"Family-wise p-values hold for a whole grid at once (max-T, {how}): {', and '.join(found)}."
    return [Fact("p, corrected", words)]


def _interval(given: AttributionNumbers) -> list[Fact]:
    compared = next((found for found in given.effects.values() if given.focus in found["map"].values.tolist()), None)
    if compared is None:
        return []
    one = compared.isel(map=compared["map"].values.tolist().index(given.focus))
    words = []
    for column in range(one.sizes["attribution"]):
        cell = one.isel(attribution=column)
        whole = f", whole classes drawn {_range(cell['class_low'], cell['class_high'])}" if "class_low" in cell else ""
        words.append(
            f"{method_name(cell['attribution'].item())} {float(cell['difference']):+.4f}: images drawn "
            f"{_range(cell['low'], cell['high'])}{whole}"
        )
    why = " Images of one class are alike, so intervals that draw them one by one are too narrow." if whole else ""
    return [Fact(f"effect of {given.focus}", f"{'; '.join(words)} (95 %, bootstrap).{why}")]


def _control(given: AttributionNumbers) -> list[Fact]:
    if given.control is None or given.draws is None:
        return [Fact("random controls", "No set has random controls (controlled = […] in [attributions] draws some).")]
    draws = int(given.control["draws"].max())
    words = []
    for row in range(given.control.sizes["map"]):
        one = given.control.isel(map=row)
        each = [
            f"{method_name(one['attribution'].values[i])} p = {float(one['p'].isel(attribution=i)):.3g}"
            for i in range(one.sizes["attribution"])
        ]
        words.append(f"{one['map'].item()}: {', '.join(each)}")
    limit = f"With R = {draws} random sets of as many units no two-sided p is below {2 / (draws + 1):.2g}."
    return [Fact("random controls", f"{'; '.join(words)}. {limit}")]


def _completeness(given: AttributionNumbers) -> list[Fact]:
    if given.shares is None or given.gap is None or given.change is None or not given.gap.size:
        return []
    shares = ", ".join(
        f"{float(value):+.0%} through {name}"
        for name, value in zip(given.shares["map"].values.tolist(), given.shares.median("sample").values)
    )
    words = (
        f"Integrated Gradients add up to the change of the output with a gap of {_median_gap(given):.2%} (median "
        f"size). A filtered map no longer does: it lacks the conductance of what was left out. Medians: {shares}."
    )
    return [Fact("completeness", words)]


def _median_gap(given: AttributionNumbers) -> float:
    assert given.gap is not None
    assert given.change is not None
    share = np.asarray(abs(given.gap) / abs(given.change).where(given.change != 0), np.float64)
    known = share[np.isfinite(share)]
    return float(np.median(known)) if known.size else float("nan")


def _random(given: AttributionNumbers, one: xr.Dataset) -> str:
    """Return the p-value against random sets, where the set has any."""
    if given.control is None or one["map"].item() not in _values(given.control, "map"):
        return ""
    own = given.control["p"].sel(map=one["map"].item())
    if one["attribution"].item() not in _values(given.control, "attribution"):
        return ""
    return _p(own.sel({"attribution": one["attribution"].item()}))


def _values(ds: xr.Dataset, name: str) -> Sequence[Any]:
    found: Sequence[Any] = ds[name].values.tolist()
    return found


def _range(low: xr.DataArray, high: xr.DataArray) -> str:
    return f"{float(low):+.4f} to {float(high):+.4f}"


def _p(value: xr.DataArray) -> str:
    return f"{float(value):.3g}"
