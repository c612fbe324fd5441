"""Segmentation: what an image shows, what pairs and baselines make of it, and how right they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch

from neurolens.errors import SchemaError
from neurolens.plot.panels import bare, figure_of, picture
from neurolens.plot.style import COLOURS, GREY, INK, PALE, cut, styled

Array = npt.NDArray[Any]
IGNORED = 255
_SIDE = 1.75
_SHADES = (*COLOURS, "#332288", "#882255", "#117733", "#999933", "#88CCEE", "#AA4499", "#DDCC77", "#44AA99")
"""Okabe and Ito's, then Tol's muted ones."""


def segmentation_panels(
    image: Array,
    truth: npt.ArrayLike,
    predictions: Mapping[str, npt.ArrayLike],
    *,
    classes: Sequence[str],
    scores: Mapping[str, float] | None = None,
    ignore: int = IGNORED,
    reduce_zero_label: bool = False,
    figure: Figure | SubFigure | None = None,
) -> list[Axes]:
    """Show an image, its true labels, and those that pairs and baselines give it, with their scores. **Eager**.

    Parameters
    ----------
    image : (H, W, C)
    truth : whole numbers, (H, W)
        Of a label picture.
    predictions : whole numbers (H, W), by name
        ``label`` of what `neurolens.pairs.segment` returned: ``{"pairs": …, "MaskCLIP": …}``.
    classes
        Names of the classes.
    scores : mapping, optional
        Of each prediction its mIoU, written below it; of the whole data set, or of this image, as the caller says.
    ignore, reduce_zero_label
        As for `neurolens.pairs.confusion`: what does not count is hatched.
    figure : Figure, optional
        Where to draw; absent: a new one.

    Returns
    -------
    Axes: image, truth, and one per prediction.

    Raises
    ------
    SchemaError
        If sizes differ, or a label is no class.
    """
    exact = np.asarray(truth).astype(np.int64)
    gone = exact == ignore
    if reduce_zero_label:
        gone |= exact == 0
        exact = exact - 1
    labels = {"truth": np.where(gone, -1, exact)} | {n: np.asarray(p).astype(np.int64) for n, p in predictions.items()}
    for name, label in labels.items():
        if label.shape != np.asarray(image).shape[:2]:
            raise SchemaError(
                f"{name!r} has {label.shape} pixels and the image {np.asarray(image).shape[:2]}; bring both to one size"
            )
        if label.max(initial=0) >= len(classes) or label.min(initial=0) < -1:
            raise SchemaError(f"{name!r} has the label {label.max()}, and there are {len(classes)} classes; name all")
    seen = np.unique(np.concatenate([label.ravel() for label in labels.values()]))
    seen = seen[seen >= 0]
    place = {int(number): i for i, number in enumerate(seen)}  # colours go to the classes that are there
    colours = ListedColormap([_SHADES[i % len(_SHADES)] for i in range(max(1, len(seen)))])
    with styled():
        figure = figure_of(figure, segmentation_size(len(predictions), len(seen)))
        axes = list(np.ravel(figure.subplots(1, 1 + len(labels))))
        picture(axes[0], np.asarray(image))
        axes[0].set_title("image", fontsize=9, fontweight="normal", loc="center")
        for ax, (name, label) in zip(axes[1:], labels.items()):
            ax.patch.set(facecolor="white", hatch="////", edgecolor=GREY, linewidth=0)
            coded = np.ma.masked_less(np.vectorize(lambda n: place.get(int(n), -1), otypes=[int])(label), 0)
            ax.imshow(coded, cmap=colours, vmin=-0.5, vmax=max(1, len(seen)) - 0.5, interpolation="nearest")
            ax.set_title(cut(name, 22), fontsize=9, fontweight="bold" if name == "truth" else "normal", loc="center")
            if scores and name in scores:
                ax.set_xlabel(f"mIoU {scores[name]:.3f}", fontsize=9, color=INK)
        for ax in axes:
            bare(ax)
        handles = [Patch(color=colours(place[int(number)]), label=cut(classes[int(number)], 24)) for number in seen]
        if gone.any():
            handles.append(Patch(facecolor="white", hatch="////", edgecolor=PALE, label="does not count"))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), handlelength=1.2)
        return axes


def segmentation_size(predictions: int, classes: int) -> tuple[float, float]:
    """Return width and height in inches that `segmentation_panels` needs."""
    return _SIDE * (2 + predictions) + 0.2, _SIDE + 0.6 + 0.2 * -(-(classes + 1) // 5)
