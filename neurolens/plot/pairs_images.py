"""Images of pairs: those at which a unit, a pair or a phrase is strongest, and where in an image a logit comes from."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure

from neurolens.errors import SchemaError
from neurolens.plot.panels import bare, below, figure_of, ground_of, over, picture, signed_colours, smoothing
from neurolens.plot.style import GREY, INK, cut, styled

Array = npt.NDArray[Any]
ImagesById = Callable[[Sequence[str]], Sequence[Array]]
COLUMNS = 10
_SIDE, _HEAD, _WORDS = 1.05, 0.3, 0.2  # inches: of an image, of the line above a strip and of that below an image


def retrieval_gallery(
    found: xr.Dataset | Mapping[str, xr.Dataset],
    images: ImagesById,
    *,
    columns: int = COLUMNS,
    figure: Figure | SubFigure | None = None,
) -> list[Axes]:
    """Show the images at which units, pairs or phrases are strongest, with the strength below each. **Eager**.

    Parameters
    ----------
    found : Dataset over ``rank``, or several by what is written above their strip
        What `neurolens.pairs.retrieve` returned: ``{"unit 37": …, "unit 37, head 2": …, "a dog": …}``.
    images : function
        From sample ids to their (H, W, C) images, or from positions where samples have no ids.
    columns : int
        Images per row.
    figure : Figure, optional
        Where to draw; absent: a new one.

    Returns
    -------
    Axes of the images, strip by strip.

    Raises
    ------
    SchemaError
        If something is not what `retrieve` returns.
    """
    strips = {"": found} if isinstance(found, xr.Dataset) else dict(found)
    for name, strip in strips.items():
        lacking = [n for n in ("strength", "position") if n not in strip or strip[n].dims != ("rank",)]
        if lacking:
            raise SchemaError(f"{name!r} has no {lacking[0]!r} over ('rank',); give what retrieve(…) returns")
    if not strips:
        raise SchemaError("there is nothing to show; give what retrieve(…) returns, or several by name")
    with styled():
        figure = figure_of(figure, gallery_size(strips, columns=columns))
        columns = min(columns, max(strip.sizes["rank"] for strip in strips.values()))
        rows = [_rows(strip, columns) for strip in strips.values()]
        parts = figure.subfigures(
            len(strips), 1, height_ratios=[_HEAD + n * (_SIDE + _WORDS) for n in rows], squeeze=False
        )
        axes: list[Axes] = []
        for part, (name, strip), n in zip(parts[:, 0], strips.items(), rows):
            if name:
                part.suptitle(name, x=0.01, ha="left", fontsize=9.5, color=INK)
            axes += _strip(part, strip, images, n, columns)
        return axes


def gallery_size(found: Mapping[str, xr.Dataset], *, columns: int = COLUMNS) -> tuple[float, float]:
    """Return width and height in inches that `retrieval_gallery` needs."""
    columns = min(columns, max(strip.sizes["rank"] for strip in found.values()))
    height = sum(_HEAD + _rows(strip, columns) * (_SIDE + _WORDS) for strip in found.values())
    return max(4.2, 0.15 + _SIDE * columns), height


def heat_panels(heat: xr.Dataset, images: Sequence[Array], *, figure: Figure | SubFigure | None = None) -> list[Axes]:
    """Show where in images the logit of each phrase comes from, patch by patch over the image. **Eager**.

    A row per image: the image, then a panel per phrase. All of a row have one colour scale around 0: red patches speak
    for the phrase, blue ones against it. Below stand the logit, and what of it is of no patch.

    Parameters
    ----------
    heat : Dataset over (sample, phrase, y, x)
        What `neurolens.pairs.heat_maps` returned of a few images, ``heat`` and ``rest``; or of one phrase, without its
        dim.
    images : one (H, W, C) per sample, in its order
        As the network is shown them.
    figure : Figure, optional
        Where to draw; absent: a new one.

    Returns
    -------
    Axes, row by row.

    Raises
    ------
    SchemaError
        If these are no such maps, or there are not as many images.
    """
    if "heat" not in heat or "rest" not in heat or not {"sample", "y", "x"} <= set(heat["heat"].dims):
        raise SchemaError(f"found {sorted(map(str, heat))}, and 'heat' and 'rest' were needed: heat_maps(…)")
    heat = heat if "phrase" in heat.dims else heat.expand_dims("phrase")
    maps = np.asarray(heat["heat"].transpose("sample", "phrase", "y", "x"), np.float64)
    rest = np.asarray(heat["rest"].transpose("sample", "phrase"), np.float64)
    if len(images) != len(maps):
        raise SchemaError(f"there are {len(images)} images for the maps of {len(maps)}; pass one per sample, in order")
    names = phrases_of(heat)
    with styled():
        figure = figure_of(figure, (1.6 * (1 + len(names)) + 0.9, 0.4 + 1.95 * len(maps)))
        grid = figure.subplots(len(maps), 1 + len(names), squeeze=False)
        for axes, image, of_phrases, left in zip(grid, images, maps, rest):
            top = float(np.abs(of_phrases).max()) or 1.0
            norm = Normalize(-top, top)
            picture(axes[0], image)
            below(axes[0], ["", ""])
            for ax, values, more in zip(axes[1:], of_phrases, left):
                ground = ground_of(image)
                ax.imshow(
                    over(ground, spread(values, ground.shape[:2]), norm, signed_colours()),
                    interpolation=smoothing(ground),
                )
                below(ax, [f"logit {values.sum() + more:+.3f}", f"of no patch {more:+.3f}"])
            bar = figure.colorbar(
                ScalarMappable(norm, signed_colours()),
                ax=axes.tolist(),
                location="right",
                shrink=0.8,
                aspect=14,
                pad=0.02,
            )
            bar.ax.tick_params(labelsize=7)
            bar.outline.set_visible(False)
        for ax, name in zip(grid[0], ("image", *(cut(name, 24) for name in names))):
            ax.set_title(name, fontsize=9, fontweight="normal", loc="center")
        for ax in grid.ravel():
            bare(ax)
        return list(grid.ravel())


def spread(values: Array, size: tuple[int, ...]) -> Array:
    """Return a map of patches (h, w) at the size of its image, each pixel with the number of its patch."""
    rows, columns = (np.arange(n) * cells // n for n, cells in zip(size, values.shape))
    found: Array = values[np.ix_(rows, columns)]
    return found


def phrases_of(ds: xr.Dataset | xr.DataArray) -> list[str]:
    """Return what phrases are called: their words, else their labels, else their numbers."""
    for name in ("words", "phrase"):
        if name in ds.coords:
            return [str(one) for one in np.atleast_1d(ds[name].to_numpy()).tolist()]
    return [f"phrase {i}" for i in range(ds.sizes["phrase"])]


def shown(ax: Axes, image: Array, words: str = "") -> None:
    """Show an image with a few words below it."""
    picture(ax, image)
    bare(ax)
    ax.set_anchor("N")
    if words:
        ax.set_xlabel(words, fontsize=8, color=GREY, labelpad=2)


def _rows(strip: xr.Dataset, columns: int) -> int:
    return max(1, -(-strip.sizes["rank"] // columns))


def _strip(part: SubFigure, strip: xr.Dataset, images: ImagesById, rows: int, columns: int) -> list[Axes]:
    names: Sequence[Any] = strip["sample" if "sample" in strip else "position"].to_numpy().tolist()
    strengths = np.asarray(strip["strength"], np.float64)
    grid: Any = part.subplots(rows, columns, squeeze=False)
    for ax in grid.ravel()[len(names) :]:
        ax.set_axis_off()
    used: list[Axes] = list(grid.ravel()[: len(names)])
    for ax, image, strength in zip(used, images(names), strengths, strict=True):
        shown(ax, image, f"{strength:.3g}")
    return used
