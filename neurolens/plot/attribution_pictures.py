"""The pictures of attributions by unit cluster, drawn and captioned."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from neurolens.attribution.reading import measured_with, texts
from neurolens.plot.attribution_effects import (
    ALPHA,
    class_improvement,
    control_strip,
    effect_forest,
    effects_over_checkpoints,
    forest_height,
)
from neurolens.plot.attribution_images import (
    ShownImages,
    attribution_panels,
    cluster_overlays,
    overlays_size,
    panels_size,
)
from neurolens.plot.attribution_names import method_name, short_sets
from neurolens.plot.attribution_numbers import AttributionNumbers, attribution_numbers
from neurolens.plot.attribution_parts import (
    cluster_shares,
    completeness_shares,
    cosine_heatmap,
    gap_histogram,
    lines_size,
    perturbation_lines,
)
from neurolens.plot.attribution_pixels import has_pixels
from neurolens.plot.picture import Picture
from neurolens.plot.style import GREY, new_figure, styled

PANELS = 2
"""Of how many images panels are drawn, if nothing else is said."""
HEAD: dict[str, Any] = {"x": 0.05, "ha": "left", "fontsize": 9, "fontweight": "normal", "color": GREY}
ADDITIVE = ("integrated_gradients", "input_x_gradient")


def attribution_pictures(
    ds: xr.Dataset, *, given: AttributionNumbers | None = None, shown: ShownImages | None = None, panels: int = PANELS
) -> list[Picture]:
    """Draw every picture that an attributions cube allows. **Eager**.

    Parameters
    ----------
    ds : the opened attributions cube
    given : AttributionNumbers, optional
        What `attribution_numbers` returned, if it was computed already.
    shown : ShownImages, optional
        The images as the network is shown them; without it there are no panels.
    panels : int
        Of how many images panels are drawn, evenly spaced among those whose maps were kept pixel by pixel.
    """
    given = given or attribution_numbers(ds)
    with styled():
        return [
            *_grids(given),
            *_controls(given),
            *_classes(given),
            *_over(given),
            *_curves(given),
            *_completeness(given),
            *_decomposition(given),
            *([] if shown is None else image_pictures(given, shown, panels)),
        ]


def drop_label(given: AttributionNumbers) -> str:
    """Say what differences are of, for an axis."""
    kind = {"patch": "patches", "pixel": "pixels"}.get(given.level, given.level)
    return f"drop of the probability without the top {kind}, filtered − unfiltered map"


def strongest(compared: xr.Dataset) -> tuple[str, str, float]:
    """Return the set, the method and the difference that is the largest either way."""
    size = abs(compared["difference"]).fillna(-1.0)
    place = np.unravel_index(int(np.argmax(np.asarray(size))), size.shape)
    one = compared.isel({d: int(i) for d, i in zip(size.dims, place)})
    return str(one["map"].item()), str(one["attribution"].item()), float(one["difference"])


def remarkable(compared: xr.Dataset) -> tuple[int, int]:
    """Return in how many cells of the grid the corrected p-value is below 0.05, and how many there are."""
    p = compared["class_p_max_t" if "class_p_max_t" in compared else "p_max_t"]
    return int((p < ALPHA).sum()), int(p.notnull().sum())


def _grids(given: AttributionNumbers) -> list[Picture]:
    drawn = []
    for kind, compared in given.effects.items():
        figure = new_figure((9.6, forest_height(compared)))
        effect_forest(compared, draws=given.draws, label=drop_label(given), figure=figure)
        sure, cells = remarkable(compared)
        name, method, difference = strongest(compared)
        how = "whole classes flipped" if given.by_class else "images flipped"
        what = (
            "Filters by how faithful their maps are"
            if kind == "without"
            else "Clusters alone by how faithful their maps are"
        )
        images = f"{int(compared['n'].max()):,} images"
        caption = (
            f"At {given.where}, {images}. {sure} of {cells} differences are below p = {ALPHA:g} "
            f"after correction for all of this picture (max-T, {how}). The largest: {name}, {method_name(method)}, "
            f"{difference:+.3f}."
        )
        suffix = "" if kind == "without" else f"_{kind}"
        alt = f"Forest plot, a row per set of units. {caption}"
        drawn.append(Picture(f"attribution_grid{suffix}", what, caption, alt, figure))
    return drawn


def _controls(given: AttributionNumbers) -> list[Picture]:
    if given.observed is None or given.draws is None or given.control is None:
        return []
    figure = new_figure((9.6, 1.7 + 0.5 * given.observed.sizes["map"]))
    control_strip(
        given.observed,
        given.draws,
        p=given.control["p"],
        p_label="two-sided p",
        label=drop_label(given),
        figure=figure,
    )
    least = 2 / (given.draws.sizes["draw"] + 1)
    caption = (
        f"Mean difference of each set against those of random sets of as many units ({given.where}). p is two-sided: "
        f"twice (1 + as far) / (R + 1), with {given.draws.sizes['draw']} draws {least:.2g} at least."
    )
    title = "Filters against random sets of units"
    return [Picture("attribution_controls", title, caption, f"Dots. {caption}", figure)]


def _classes(given: AttributionNumbers) -> list[Picture]:
    if given.classes is None or given.classes.sizes["class"] < 2:
        return []
    figure = new_figure((9.6, 4.4))
    _headed(figure, given.focus, given)
    class_improvement(given.classes, label=drop_label(given), ax=figure.add_subplot())
    mean = float(given.classes["difference_mean"].mean())
    caption = f"{given.focus}, at {given.where}; {mean:+.3g} in the mean over classes and methods, computed from them."
    title = "What the filter does to each class"
    return [Picture("attribution_classes", title, caption, f"Bars, sorted. {caption}", figure)]


def _over(given: AttributionNumbers) -> list[Picture]:
    if given.over is None:
        return []
    figure = new_figure((4.4 * given.over.sizes["attribution"] + 2.2, 3.6))
    effects_over_checkpoints(given.over, label=drop_label(given), figure=figure)
    figure.suptitle("/".join(given.clustering), **HEAD)
    whose = "whole classes" if "class_low" in given.over else "images"
    caption = (
        f"Each set of {'/'.join(given.clustering)} at {given.over.sizes[given.series]} checkpoints. Bands are of 95 %, "
        f"{whose} drawn, at each checkpoint by itself."
    )
    title = "Effects of clusters over the training"
    return [Picture("attribution_training", title, caption, f"Lines with bands. {caption}", figure)]


def _curves(given: AttributionNumbers) -> list[Picture]:
    if given.curves is None:
        return []
    figure = new_figure(lines_size(given.curves))
    perturbation_lines(given.curves, figure=figure)
    _headed(figure, "/".join(given.clustering), given)
    caption = (
        f"Mean probability over {given.curves.sizes['sample']:,} images as patches go, highest first, at "
        f"{given.where}; bands are of 95 % (normal)."
    )
    return [Picture("attribution_curves", "Deletion and insertion", caption, f"Curves. {caption}", figure)]


def _completeness(given: AttributionNumbers) -> list[Picture]:
    if given.shares is None or given.gap is None or given.change is None:
        return []
    figure = new_figure((11.4, 3.7))
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
    completeness_shares(given.shares, ax=left)
    gap_histogram(given.gap, given.change, ax=right)
    _headed(figure, "/".join(given.clustering), given)
    middle = given.shares.median("sample")
    names = zip(short_sets(given.shares), middle.values)
    named = ", ".join(f"{float(value):+.0%} through {name}" for name, value in names)
    caption = f"Integrated Gradients through {'/'.join(given.clustering)} at {given.where}; medians: {named}."
    title = "What adds up to the answer"
    return [Picture("attribution_completeness", title, caption, f"Stacked bars and a histogram. {caption}", figure)]


def _decomposition(given: AttributionNumbers) -> list[Picture]:
    if given.norms is None:
        return []
    methods = [str(name) for name in given.norms["attribution"].values]
    method = next((name for name in (*ADDITIVE, *methods) if name in methods), methods[0])
    at = methods.index(method)
    figure = new_figure((10.6, 3.7))
    cosine = given.cosine
    ratios = [1.4, 1] if cosine is not None else [1]
    grid = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
    cluster_shares(
        given.norms.isel(attribution=at, drop=True),
        given.shares if method == "integrated_gradients" else None,
        ax=grid[0],
    )
    if cosine is not None:
        cosine_heatmap(cosine.isel(attribution=at, drop=True), ax=grid[1])
    _headed(figure, f"{'/'.join(given.clustering)}, {method_name(method)}", given)
    caption = (
        f"Maps of {method_name(method)} through {'/'.join(given.clustering)} at {given.where}. A large norm is no "
        "large contribution: norms do not add up, completeness does."
    )
    title = "How the map is made of its clusters"
    return [Picture("attribution_decomposition", title, caption, f"Bars and a matrix. {caption}", figure)]


def _headed(figure: Figure, what: str, given: AttributionNumbers) -> None:
    """Say above a picture of which sets it is, and where: its file has no caption."""
    figure.suptitle(f"{what}, {given.where}", **HEAD)


def panel_samples(given: AttributionNumbers, count: int) -> list[int]:
    """Return positions of samples, evenly spaced among those whose maps were kept pixel by pixel."""
    last = given.last
    if not has_pixels(last):
        return []
    if "reduced_scale" in last:
        known = last["reduced_scale"].isel(map=0, attribution=0).notnull()
    else:
        known = last["full_map"].isel(map=0, attribution=0, channel=0, y=0, x=0).notnull()
    kept = np.flatnonzero(np.asarray(known))
    taken = np.linspace(0, max(len(kept) - 1, 0), min(count, len(kept)), dtype=int)
    return [int(place) for place in kept[taken]]


def image_pictures(given: AttributionNumbers, shown: ShownImages, count: int = PANELS) -> list[Picture]:
    """Draw panels and overlays of some images, evenly spaced among those whose maps were kept; none if there are none.

    Raises
    ------
    NeurolensError
        As ``shown.load`` does.
    """
    used = measured_with(given.last, "faithfulness")
    shown = replace(shown, **{name: used[name] for name in ("fill", "drop") if name in used})
    places = panel_samples(given, count)
    ids = [str(given.last["sample"].values[place]) for place in places]
    images = shown.load(ids) if places else []
    drawn = []
    for place, name, image in zip(places, ids, images):
        one = given.last.isel(sample=place)
        said = _said(one)
        if given.focus:
            figure = new_figure(panels_size(one))
            attribution_panels(one, np.asarray(image), shown, filtered=given.focus, figure=figure)
            caption = (
                f"Image {name}, {said}at {given.where}: maps of all units and of {given.focus}, both in one scale "
                "(each scaled to itself, a map in which little is left would look as strong as the whole), and the "
                f"image without the top {shown.drop:.0%} of each ({shown.fill} put in{_how_exact(one)})."
            )
            title = f"Maps with and without the filter, image {place}"
            drawn.append(Picture(f"attribution_panels_{place}", title, caption, f"Images. {caption}", figure))
        methods = [str(method) for method in one["attribution"].values]
        method = next((m for m in ADDITIVE if m in methods), "")
        if given.clustering[0] and method:
            number = 0 if given.norms is None else given.norms.sizes["map"]
            figure = new_figure(overlays_size(number))
            cluster_overlays(one, np.asarray(image), clustering=given.clustering, method=method, figure=figure)
            _headed(figure, "/".join(given.clustering), given)
            caption = (
                f"Image {name}, {said}at {given.where}: {method_name(method)} through each cluster of "
                f"{'/'.join(given.clustering)}, signed, all in one scale; their sum is the map of all "
                f"units{_how_exact(one)}."
            )
            title = f"Clusters add up to the map, image {place}"
            drawn.append(Picture(f"attribution_clusters_{place}", title, caption, f"Images. {caption}", figure))
    return drawn


def _how_exact(one: xr.Dataset) -> str:
    return "" if "full_map" in one and _has_full(one) else "; pixels from maps that were kept as float16"


def _has_full(one: xr.Dataset) -> bool:
    return bool(one["full_map"].isel(map=0, attribution=0, channel=0, y=0, x=0).notnull())


def _said(one: xr.Dataset) -> str:
    """Say what the image is and what was explained."""
    names: Sequence[str] = texts(one["class"]) if "class" in one.coords else ()

    def called(number: Any) -> str:
        value = float(number)
        if not np.isfinite(value):
            return "?"
        return names[int(value)] if 0 <= int(value) < len(names) else str(int(value))

    words = [f"{name} {called(one[key])}" for name, key in (("label", "label"), ("explained:", "target")) if key in one]
    return ", ".join(words) + ", " if words else ""
