"""What excites a unit most: its top images, dark where it does not fire, and outlined where it does."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from neurolens import schema
from neurolens.errors import SchemaError
from neurolens.plot.style import GREY, INK, new_figure, styled
from neurolens.units.layers_of import held

OUTLINE = "#ffd400"
"""Yellow: seen on dark and on light images, by the colour-blind too."""
DIMMED = 0.4
"""Share of its light that an image keeps outside the mask."""
COLUMNS = 9
_SIDE, _HEAD = 1.15, 0.34  # inches: of an image, and of the line above a strip


def unit_gallery(
    shown: xr.Dataset, *, columns: int = COLUMNS, dim: str | None = None, figure: Figure | SubFigure | None = None
) -> list[Axes]:
    """Show the images that excite units most, with the mask of each: dark outside it, and outlined. **Eager**.

    One strip of images for each unit at each checkpoint, told above it: its layer and number, the checkpoint, its best
    concept and their IoU. Checkpoints of one unit come one below the other: what it looked at, over training.

    Parameters
    ----------
    shown : Dataset
        What `neurolens.report.unit_galleries` returns, or a selection of it: ``image`` (…, rank, y, x, channel),
        ``mask`` (…, rank, row, column), and `score` and `label` (…), over a series dim, `unit`, both or neither. Ranks
        without an image (``largest`` is NaN) are left out.
    columns : int
        Images per row.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever there is.
    figure : Figure, optional
        Where to draw; absent: a new one.

    Returns
    -------
    Axes of the images, strip by strip.

    Raises
    ------
    SchemaError
        If images or masks are missing, or there is nothing to show.
    """
    lacking = [name for name in ("image", "mask", "largest", "score", "label") if name not in shown]
    if lacking:
        raise SchemaError(f"found {sorted(map(str, shown.data_vars))}, and {lacking[0]!r} is drawn; {_MEND}")
    known = [d for where in (shown.dims, shown.coords) for d in schema.SERIES_DIMS if d in where]
    series = dim or next(iter(known), None)  # along a series of steps, epochs are a coordinate
    dims = [d for d in ("unit", series) if d is not None]
    strips = _strips(shown.expand_dims([d for d in dims if d not in shown.dims and d in shown.coords]), dims)
    if not strips:
        raise SchemaError(f"there is no unit and no checkpoint to show; {_MEND}")
    columns = max(1, min(columns, max(len(strip["rank"]) for strip in strips)))
    rows = [max(1, -(-strip.sizes["rank"] // columns)) for strip in strips]
    with styled():
        if figure is None:
            import matplotlib.pyplot as plt

            figure = plt.figure(figsize=_size(shown, columns), layout="constrained")
        parts = figure.subfigures(len(strips), 1, height_ratios=[_HEAD + _SIDE * n for n in rows], squeeze=False)
        axes: list[Axes] = []
        for part, strip, n in zip(parts[:, 0], strips, rows):
            part.suptitle(_title(strip, series), x=0.01, ha="left", fontsize=9.5, color=INK)
            grid = part.subplots(n, columns, squeeze=False)
            for i, ax in enumerate(grid.ravel()):
                if i < strip.sizes["rank"]:
                    _show(ax, strip.isel(rank=i))
                    axes.append(ax)
                else:
                    ax.set_axis_off()
            if not strip.sizes["rank"]:
                grid[0, 0].text(0, 0.5, "no image excites it", color=GREY, fontsize=9, va="center")
        return axes


def wide_figure(shown: xr.Dataset, *, columns: int = COLUMNS) -> Figure:
    """Return an empty figure of the size that `unit_gallery` needs for what is shown; pyplot does not know of it."""
    return new_figure(_size(shown, max(1, min(columns, shown.sizes.get("rank", 1)))))


_MEND = "give what neurolens.report.unit_galleries returns"


def _size(shown: xr.Dataset, columns: int) -> tuple[float, float]:
    """Return width and height in inches."""
    strips = int(np.prod([shown.sizes[d] for d in ("unit", *schema.SERIES_DIMS) if d in shown.dims], dtype=int))
    rows = max(1, -(-shown.sizes.get("rank", 1) // columns))
    return max(4.2, 0.15 + _SIDE * columns), strips * (_HEAD + _SIDE * rows)


def _strips(shown: xr.Dataset, dims: list[str]) -> list[xr.Dataset]:
    """Split into one Dataset per unit and checkpoint, of the ranks that have an image."""
    strips = [shown]
    for dim in dims:
        if dim in shown.dims:
            strips = [one.isel({dim: i}) for one in strips for i in range(one.sizes[dim])]
    return [one.isel(rank=np.flatnonzero(np.isfinite(np.asarray(one["largest"])))) for one in strips]


def _title(strip: xr.Dataset, series: str | None) -> str:
    words = []
    if "layer" in strip.coords and "index" in strip.coords:
        words.append(f"{held(strip['layer']).item()} · {int(strip['index'])}")
    if "unit" in strip.coords:
        words.append(f"unit {int(strip['unit'])}")
    if series is not None and series in strip.coords:
        words.append(f"{series} {int(strip[series])}")
    label, score = str(strip["label"].item()), float(strip["score"])
    what = f"{label}, IoU {score:.3f}" if label and np.isfinite(score) else "no concept"
    return " · ".join(words[:1]) + (f" ({', '.join(words[1:])})" if words[1:] else "") + f": {what}"


def _show(ax: Axes, one: xr.Dataset) -> None:
    image: Any = np.asarray(one["image"].transpose("y", "x", "channel"), dtype=np.float64) / 255
    mask = np.asarray(one["mask"].transpose("row", "column"), dtype=bool)
    (height, width), (rows, columns) = image.shape[:2], mask.shape
    at = np.arange(height) * rows // height, np.arange(width) * columns // width
    inside = mask[np.ix_(*at)][..., None]
    small = max(height, width) <= 64
    ax.imshow(
        np.where(inside, image, DIMMED * image),
        interpolation="nearest" if small else "antialiased",
        extent=(0, width, height, 0),
    )
    if mask.any():
        framed = np.pad(mask.astype(float), 1)  # so that the outline closes where the mask ends with the image
        x = (np.arange(columns + 2) - 0.5) * width / columns
        y = (np.arange(rows + 2) - 0.5) * height / rows
        ax.contour(x, y, framed, levels=[0.5], colors=OUTLINE, linewidths=1.1)
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)
