"""Maps over images: what is highlighted with and without a filter, what is taken away, what each cluster adds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure

from neurolens.attribution.reading import INTEGRAL, texts
from neurolens.attribution.scores import count_of, order, sparsity
from neurolens.errors import MissingMeasurementError, SchemaError, nearest
from neurolens.plot.attribution_names import method_name
from neurolens.plot.attribution_pixels import mass_of, parts_of, signed_of
from neurolens.plot.panels import (
    bare,
    below,
    figure_of,
    ground_of,
    heat_colours,
    over,
    picture,
    rgb,
    signed_colours,
    smoothing,
)
from neurolens.plot.style import GREY, INK, cut, styled

Array = npt.NDArray[Any]

WHOLE = "whole"
OUTLINE, OUTLINED = "#ffd400", 64
"""What was taken away is outlined: patches, and single pixels of images that are no larger."""
TOP = 0.995
"""Share of the pixels that a colour scale tells apart: the few above share the last colour."""
_SIDE, _WORDS = 1.62, 0.45  # inches: of an image, and of what is said below it


@dataclass(frozen=True)
class ShownImages:
    """Images as the network is shown them, and what was put where something was taken away.

    Attributes
    ----------
    load : function
        From sample ids to images (H, W, C) uint8, C = 1 or 3, of the size of the maps.
    zero : (C,) in [0, 1]
        The colour that the network takes as 0; clipped where there is none.
    fill : str
        As ``fill`` of the study's [attributions]. What is neither zero nor mean is hatched.
    drop : share
        Of the entries that were taken away.
    """

    load: Callable[[Sequence[str]], Sequence[Array]]
    zero: tuple[float, ...] = (0.5,)
    fill: str = "zero"
    drop: float = 0.1


def attribution_panels(
    one: xr.Dataset, image: Array, shown: ShownImages, *, filtered: str, figure: Figure | SubFigure | None = None
) -> list[Axes]:
    """Show one image with its maps, of all units and of a filter, and what is left of it without their highest entries.

    A row per method: the image; the two maps over it; the image without the highest pixels of either; without the
    highest patches of either. Below it stand the sparsity of each map, the probability of the class, and how far it
    fell. Both maps of a row have one colour scale: scaled to its own range each, as the reference does it, a map in
    which little is left would look as strong as the whole.

    Parameters
    ----------
    one : Dataset over (map, attribution, …)
        The opened attributions cube at one checkpoint and one sample, with `full_map`, or `reduced_mass` and
        `reduced_scale`; `patch`, `log_prob` and `masked_log_prob` where there are any.
    image : (H, W, C) uint8
        As the network is shown it.
    shown : ShownImages
        What was put in the place of what was taken away, and how much of it.
    filtered : str
        Name of the map that is set against that of all units.
    figure
        Where to draw; absent: a new one.

    Returns
    -------
    Axes, row by row.

    Raises
    ------
    SchemaError
        If there is no such map.
    MissingMeasurementError
        If no pixels of the maps were kept of this sample. Methods that do not know the set are left out.
    """
    names = texts(one["map"])
    for name in (WHOLE, filtered):
        if name not in names:
            raise SchemaError(f"there is no map {name!r}; {nearest(name, names)}")
    one = one.isel(map=[names.index(WHOLE), names.index(filtered)]).load()
    heat = mass_of(one)
    both = np.asarray(heat.notnull().all([d for d in heat.dims if d != "attribution"]))
    if not both.any():
        raise MissingMeasurementError(f"no method has pixels of {filtered!r}; name another set")
    one, heat = one.isel(attribution=both), heat.isel(attribution=both)
    ground = ground_of(image)
    methods = one.sizes["attribution"]
    called = ("all units", _in_lines(filtered))
    titles = ("image", *(f"map of\n{name}" for name in called))
    titles += tuple(f"without the top {kind}\nof {name}" for kind in ("pixels", "patches") for name in called)
    with styled():
        figure = figure_of(figure, panels_size(one))
        grid = figure.subplots(methods, 7, squeeze=False)
        for row, axes in enumerate(grid):
            drawn = one.isel(attribution=row)
            values = [np.asarray(heat.isel(attribution=row, map=at), np.float64) for at in range(2)]
            norm = Normalize(0, _top(values))
            picture(axes[0], image)
            axes[0].set_ylabel(method_name(drawn["attribution"].item()), fontsize=10, fontweight="bold", color=INK)
            below(axes[0], [_probability(drawn)])
            for at in range(2):
                drawn_map = drawn.isel(map=at)
                axes[1 + at].imshow(over(ground, values[at], norm, heat_colours()), interpolation=smoothing(ground))
                below(axes[1 + at], _sparsities(drawn_map))
                for column, level in ((3 + at, "pixel"), (5 + at, "patch")):
                    away = _away(drawn_map, values[at], level, shown.drop)
                    _masked(axes[column], image, away, shown, level)
                    below(axes[column], _fall(drawn_map, level))
            bar = figure.colorbar(
                ScalarMappable(norm, heat_colours()),
                ax=axes[1:3].tolist(),
                location="right",
                shrink=0.72,
                aspect=14,
                pad=0.02,
                extend="max",
            )
            bar.ax.tick_params(labelsize=7)
            bar.outline.set_visible(False)
        for ax, title in zip(grid[0], titles):
            ax.set_title(title, fontsize=8.5, fontweight="normal", loc="center")
        for ax in grid.ravel():
            bare(ax)
        return list(grid.ravel())


def _in_lines(name: str) -> str:
    """Return the name of a set, the layer in a line of its own where it is long: a panel is narrow."""
    layer, line, rest = name.partition("/")
    return f"{cut(layer, 22)}/\n{cut(rest, 22)}" if line and len(name) > 20 else cut(name, 22)


def panels_size(one: xr.Dataset) -> tuple[float, float]:
    """Return width and height in inches that `attribution_panels` needs."""
    return 7 * _SIDE + 1.0, 0.9 + one.sizes["attribution"] * (_SIDE + _WORDS)


def cluster_overlays(
    one: xr.Dataset,
    image: Array,
    *,
    clustering: tuple[str, str],
    method: str = "integrated_gradients",
    figure: Figure | SubFigure | None = None,
) -> list[Axes]:
    """Show what each cluster of a clustering adds to the map of one image, their sum, the whole, and what differs.

    All maps are signed and summed over channels, in one colour scale around 0: red speaks for the class, blue against
    it. Maps of Integrated Gradients and of input × gradient add up; those of Saliency do not.

    Parameters
    ----------
    one : Dataset over (map, attribution, …)
        The opened attributions cube at one checkpoint and one sample, with `full_map`, or `reduced` and
        `reduced_scale`; `total`, `output` and `baseline_output` where there are any.
    image : (H, W, C) uint8
        As the network is shown it.
    clustering : (str, str)
        The layer and the clustering, e.g. ``("features.denseblock1", "k3")``.
    method
        Of the maps.
    figure
        Where to draw; absent: a new one.

    Returns
    -------
    Axes: image, whole, sum, difference; then one of each cluster.

    Raises
    ------
    SchemaError
        If there is no such method, or no clusters of such a clustering.
    MissingMeasurementError
        If no pixels of the maps were kept of this sample.
    """
    methods = texts(one["attribution"])
    if method not in methods:
        raise SchemaError(f"there is no method {method!r}; {nearest(method, methods)}")
    one = one.isel(attribution=methods.index(method))
    parts = parts_of(one, clustering)
    names = texts(one["map"])
    maps = np.asarray(signed_of(one.isel(map=[names.index(WHOLE), *parts]).load()), np.float64)
    whole, clusters = maps[0], maps[1:]
    total = clusters.sum(axis=0)
    ground = ground_of(image)
    top = _top([np.abs(values) for values in maps])
    norm = Normalize(-top, top)
    columns = max(4, len(clusters))
    with styled():
        figure = figure_of(figure, overlays_size(len(clusters)))
        grid = figure.subplots(2, columns, squeeze=False)
        picture(grid[0, 0], image)
        grid[0, 0].set_title("image", fontsize=9, fontweight="normal", loc="center")
        largest = float(np.abs(total - whole).max())
        peak = float(np.abs(whole).max())
        rest = f"at most {100 * largest / peak:.2g} % of\nthe largest of the whole" if peak > 0 else ""
        for ax, values, title, words in zip(
            grid[0, 1:],
            (whole, total, total - whole),
            ("all units", "sum of the clusters", "sum − all units"),
            ("", "", rest),
        ):
            _layer(ax, ground, values, norm, title, words)
        shares = _shares(one, parts)
        for ax, values, place, share in zip(grid[1], clusters, parts, shares):
            number, kept = (int(one[name].values[place]) for name in ("cluster", "kept"))
            words = f"{share:+.0%} of the change" if np.isfinite(share) else ""
            _layer(ax, ground, values, norm, f"cluster {number}" + (f": {kept:,} units" if kept >= 0 else ""), words)
        for ax in grid.ravel():
            bare(ax)
            if not ax.images:
                ax.set_axis_off()
        bar = figure.colorbar(
            ScalarMappable(norm, signed_colours()),
            ax=grid.ravel().tolist(),
            location="right",
            shrink=0.6,
            aspect=24,
            extend="both",
        )
        bar.set_label(f"{method_name(method)}, summed over channels", fontsize=9)
        bar.outline.set_visible(False)
        return [*grid[0, :4], *grid[1, : len(clusters)]]


def overlays_size(clusters: int) -> tuple[float, float]:
    """Return width and height in inches that `cluster_overlays` needs."""
    return max(4, clusters) * _SIDE + 1.1, 2 * (_SIDE + 0.55)


def _away(one: xr.Dataset, heat: Array, level: str, drop: float) -> Array | None:
    """Return which pixels were taken away, (y, x) bool; None where it is not known."""
    if level == "pixel":
        mask = np.zeros(heat.size, dtype=bool)
        mask[order(heat.ravel())[: count_of(drop, heat.size)]] = True
        return mask.reshape(heat.shape)
    if "patch" not in one:
        return None
    table = np.asarray(one["patch"].transpose("patch_y", "patch_x"), np.float64)
    if not np.isfinite(table).all():
        return None
    chosen = np.zeros(table.size, dtype=bool)
    chosen[order(table.ravel())[: count_of(drop, table.size)]] = True
    sides = [size // cells for size, cells in zip(heat.shape, table.shape)]
    cells = np.repeat(np.repeat(chosen.reshape(table.shape), sides[0], axis=0), sides[1], axis=1)
    mask = np.zeros(heat.shape, dtype=bool)
    mask[: cells.shape[0], : cells.shape[1]] = cells
    return mask


def _masked(ax: Axes, image: Array, away: Array | None, shown: ShownImages, level: str) -> None:
    """Show an image with what was put where something was taken away, hatched where that cannot be shown."""
    pixels = rgb(image)
    if away is None:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color=GREY, fontsize=8)
        return
    if max(away.shape) <= OUTLINED or level == "patch":
        ax.add_collection(LineCollection(list(_edges(away)), colors=OUTLINE, linewidths=0.9))
    if shown.fill in ("zero", "mean"):
        colour = np.broadcast_to(np.clip(shown.zero, 0, 1), 3) if shown.fill == "zero" else pixels.mean(axis=(0, 1))
        ax.imshow(np.where(away[..., None], colour, pixels), interpolation=smoothing(image))
        return
    ax.imshow(np.where(away[..., None], 0.88, pixels), interpolation=smoothing(image))
    ax.contourf(away.astype(float), levels=[0.5, 1.5], colors="none", hatches=["//////"])


def _edges(mask: Array) -> Array:
    """Return the lines between what is in a mask and what is not, (lines, 2, 2) as x and y."""
    framed = np.pad(mask, 1)
    y, x = np.nonzero(framed[1:, 1:-1] != framed[:-1, 1:-1])
    flat = np.stack([np.stack([x - 0.5, y - 0.5], 1), np.stack([x + 0.5, y - 0.5], 1)], 1)
    y, x = np.nonzero(framed[1:-1, 1:] != framed[1:-1, :-1])
    upright = np.stack([np.stack([x - 0.5, y - 0.5], 1), np.stack([x - 0.5, y + 0.5], 1)], 1)
    return np.concatenate([flat, upright])


def _probability(one: xr.Dataset) -> str:
    return f"p = {float(np.exp(one['log_prob'])):.3f}" if "log_prob" in one else ""


def _sparsities(one: xr.Dataset) -> list[str]:
    words = []
    if "pixel_sparsity" in one:
        words.append(f"sparsity {float(one['pixel_sparsity']):.2f} by pixel,")
    if "patch" in one:
        words.append(f"{float(sparsity(one['patch'])):.2f} by patch")
    return words


def _fall(one: xr.Dataset, level: str) -> list[str]:
    if "masked_log_prob" not in one or "log_prob" not in one:
        return []
    left = float(np.exp(one["masked_log_prob"].sel(level=level)))
    return (
        [f"p = {left:.3f},", f"drop {float(np.exp(one['log_prob'])) - left:+.3f}"] if np.isfinite(left) else ["no mass"]
    )


def _shares(one: xr.Dataset, parts: Sequence[int]) -> Array:
    """Return the share of the change that goes through each cluster; NaN where it is not known."""
    if (
        not {"total", "output", "baseline_output"} <= set(map(str, one.data_vars))
        or str(one["attribution"].item()) != INTEGRAL
    ):
        return np.full(len(parts), np.nan)
    change = float(one["output"] - one["baseline_output"])
    shares: Array = np.asarray(one["total"].isel(map=list(parts)), np.float64) / (change if change else np.nan)
    return shares


def _layer(ax: Axes, ground: Array, values: Array, norm: Normalize, title: str, words: str) -> None:
    ax.imshow(over(ground, values, norm, signed_colours()), interpolation=smoothing(ground))
    ax.set_title(title, fontsize=9, fontweight="normal", loc="center")
    below(ax, [words] if words else [])


def _top(maps: Sequence[Array]) -> float:
    """Return the end of a colour scale for several maps of one image."""
    found = float(np.quantile(np.concatenate([values.ravel() for values in maps]), TOP))
    largest = max(float(values.max()) for values in maps)
    return found or largest or 1.0
