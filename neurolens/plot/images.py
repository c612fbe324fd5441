"""The samples themselves: the images with the highest score, what they are called and what the network said."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from neurolens import schema
from neurolens.errors import SchemaError
from neurolens.plot.style import GREEN, GREY, INK, VERMILLION, pick, styled


def hardest(ds: xr.Dataset, score: xr.DataArray | xr.Dataset, *, count: int = 12) -> xr.Dataset:
    """Return the samples with the highest score, highest first, with the score as coordinate `score`.

    Parameters
    ----------
    ds : (series, sample)
        A samples cube.
    score : (sample)
        Matched by ids; usually what `neurolens.csl` returns. NaN is never chosen. **Eager** in the score.
    count : int
        How many, at most.
    """
    ds, score = xr.align(ds, pick(score, "csl"), join="inner")
    values = np.asarray(score, np.float64)
    order = np.argsort(-values, kind="stable")[: min(count, int(np.isfinite(values).sum()))]
    chosen = score.isel(sample=order)
    described = {**chosen.attrs, "name": chosen.name or "score"}
    return ds.isel(sample=order).assign_coords(score=("sample", values[order], described))


def gallery(
    images: Sequence[np.ndarray],
    chosen: xr.Dataset,
    *,
    columns: int = 6,
    dim: str | None = None,
    figure: Figure | SubFigure | None = None,
) -> list[Axes]:
    """Show images with their label, what the network said last, and their score. **Eager**.

    Parameters
    ----------
    images : one (H, W, C) uint8 or [0, 1] array per sample of ``chosen``, C = 1, 3 or 4, in its order
        Or one array (sample, H, W, C).
    chosen : (series, sample)
        The samples shown, e.g. what `hardest` returns: coordinate `label`, and where there are any `class`, `score`,
        `true_label`, and the variable `predicted` (series, sample), of which the last measured counts.
    columns : int
        Images per row.
    figure : Figure, optional
        Where to draw; absent: a new one.

    Raises
    ------
    SchemaError
        If there are not as many images as samples.
    """
    n = chosen.sizes["sample"]
    if len(images) != n:
        raise SchemaError(f"there are {len(images)} images for {n} samples; pass one per sample of `chosen`, in order")
    columns = max(1, min(columns, n))
    rows = max(1, -(-n // columns))
    said = _last_prediction(chosen, dim)
    with styled():
        if figure is None:
            import matplotlib.pyplot as plt

            figure = plt.figure(figsize=(1.45 * columns, 2.05 * rows), layout="constrained")
        axes = []
        for i in range(n):
            ax = figure.add_subplot(rows, columns, i + 1)
            _show(ax, np.asarray(images[i]))
            label = chosen["label"].values[i] if "label" in chosen.coords else None
            lines = [(f"label: {_name(chosen, label)}", INK)]
            if np.isfinite(said[i]):
                right = label is not None and int(said[i]) == int(label)
                mark, colour = ("✓", GREEN) if right else ("✗", VERMILLION)
                lines.append((f"said: {_name(chosen, said[i])} {mark}", colour))
            if "score" in chosen.coords:
                name = str(chosen["score"].attrs.get("name") or "score").replace("_", " ")
                lines.append((f"{name} {float(chosen['score'].values[i]):.3g}", GREY))
            for line, (text, colour) in enumerate(lines):
                # one line below another, in points, so that no size of image makes them overlap
                ax.annotate(
                    text,
                    (0.5, 0),
                    (0, -4 - 11 * line),
                    xycoords="axes fraction",
                    textcoords="offset points",
                    ha="center",
                    va="top",
                    fontsize=8,
                    color=colour,
                )
            axes.append(ax)
        return axes


def _show(ax: Axes, image: np.ndarray) -> None:
    image = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    top = 255 if image.dtype == np.uint8 else 1.0
    small = max(image.shape[:2]) <= 64
    ax.imshow(image, cmap="gray", vmin=0, vmax=top, interpolation="nearest" if small else "antialiased")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)


def _name(chosen: xr.Dataset, index: object) -> str:
    """Return the name of a class, shortened, or its number where there are no names."""
    if index is None:
        return "?"
    number = int(float(str(index)))
    names = chosen.coords["class"].values if "class" in chosen.coords else ()
    name = str(names[number]) if 0 <= number < len(names) else str(number)
    return name if len(name) <= 16 else name[:15] + "…"


def _last_prediction(chosen: xr.Dataset, dim: str | None) -> np.ndarray:
    """Return the class said at the last checkpoint that measured it, NaN where none did."""
    if "predicted" not in chosen:
        return np.full(chosen.sizes["sample"], np.nan)
    said = np.asarray(chosen["predicted"].transpose(schema.series_dim(chosen["predicted"], dim), "sample"), np.float64)
    out = np.full(said.shape[1], np.nan)
    for row in said:
        out = np.where(np.isfinite(row), row, out)
    return out
