"""Panels of images: what is drawn in one, what is coloured over it, and what is written below."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure, SubFigure

from neurolens.errors import SchemaError
from neurolens.plot.style import BLUE, INK, VERMILLION

Array = npt.NDArray[Any]


def ground_of(image: Array) -> Array:
    """Return the lightness of an image, pale enough to be coloured over, (H, W, 1) in [0, 1]."""
    light = rgb(image) @ np.array([0.299, 0.587, 0.114])
    ground: Array = (0.55 + 0.45 * light)[..., None]
    return ground


def over(ground: Array, values: Array, norm: Normalize, colours: Colormap) -> Array:
    """Colour a pale image (H, W, 1) by a map (H, W) of its size, (H, W, 3)."""
    if ground.shape[:2] != values.shape:
        raise SchemaError(
            f"the image has {ground.shape[:2]} pixels and its map {values.shape}; give it as the network is shown it"
        )
    coloured: Array = ground * np.asarray(colours(norm(values)))[..., :3]
    return coloured


def rgb(image: Array) -> Array:
    """Return an image as (H, W, 3) in [0, 1]."""
    image = image[..., None] if image.ndim == 2 else image
    pixels = image.astype(np.float64) / (255 if image.dtype == np.uint8 else 1)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]


def picture(ax: Axes, image: Array) -> None:
    """Show an image as it is."""
    ax.imshow(rgb(image), interpolation=smoothing(image))


def smoothing(image: Array) -> Any:
    """Return how an image is drawn at another size: small ones pixel by pixel."""
    return "nearest" if max(image.shape[:2]) <= 64 else "antialiased"


def below(ax: Axes, lines: Sequence[str]) -> None:
    """Write lines below a panel."""
    ax.set_xlabel("\n".join(lines), fontsize=8, color=INK)


def bare(ax: Axes) -> None:
    """Leave nothing of the Axes but what is drawn in them, and what is written beside them."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(visible=False)
    for side in ax.spines.values():
        side.set_visible(False)


def heat_colours() -> Colormap:
    """White where there is nothing, then light to dark in one hue: darkness alone tells how much."""
    return LinearSegmentedColormap.from_list("mass", ["white", "#f6c9a8", VERMILLION, "#6b2200"])


def signed_colours() -> Colormap:
    """White at 0, blue below, red above; the more, the darker."""
    return LinearSegmentedColormap.from_list(
        "signed", ["#003a5e", BLUE, "#a9cfe6", "white", "#f6c9a8", VERMILLION, "#6b2200"]
    )


def figure_of(figure: Figure | SubFigure | None, size: tuple[float, float]) -> Figure | SubFigure:
    """Return the figure that was given, or a new one of that size, of pyplot's."""
    if figure is not None:
        return figure
    import matplotlib.pyplot as plt

    return plt.figure(figsize=size, layout="constrained")
