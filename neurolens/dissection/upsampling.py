"""Maps brought to the size of the labels: bilinear between the centres of pixels, the edge held beyond the last."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from neurolens.dissection.lanes import GROUP
from neurolens.errors import SchemaError

Array = npt.NDArray[Any]


class Axis(NamedTuple):
    """How one axis of a map is spread over the pixels of the labels.

    Attributes
    ----------
    starts : (size + 1,) int64
        The pixels ``starts[i]`` to ``starts[i + 1]`` lie between values i and i + 1 (the last: at or beyond it).
    first, second : (length,) float64
        Weights of the two values at each pixel; they sum to 1.
    """

    starts: npt.NDArray[np.int64]
    first: npt.NDArray[np.float64]
    second: npt.NDArray[np.float64]


def axis(size: int, length: int) -> Axis:
    """Return how ``size`` values are spread over ``length`` pixels, half a pixel in from either edge.

    Pixel x lies at (x + ½) size / length - ½ among the values 0, 1, …; before the first and beyond the last, these
    hold. With more values than pixels, values are picked, not averaged, as torch does it without ``antialias``.
    """
    centre = (np.arange(length) + 0.5) * (size / length)
    lower = np.clip(np.floor(centre - 0.5), 0, size - 1).astype(np.int64)
    outside = (centre < 0.5) | (lower == size - 1)
    first = np.where(outside, 1.0, 1.0 - np.abs(lower - centre + 0.5))
    second = np.where(outside, 0.0, 1.0 - np.abs(1 + lower - centre + 0.5))
    total = first + second
    return Axis(np.searchsorted(lower, np.arange(size + 1)), first / total, second / total)


@lru_cache(16)
def pixel_rows(height: int, shape: tuple[int, int]) -> tuple[Array, Array, Array, int]:
    """Return what `kernels.draw_mask` needs of rows: `Axis.starts`, weights of either value, and pixels of a line."""
    return *axis(height, shape[0]), shape[1]


@lru_cache(16)
def pixel_columns(width: int, across: int) -> tuple[Array, Array, Array, Array, Array, int]:
    """Return what `kernels.draw_mask` needs of columns.

    Returns
    -------
    left, right, first, second : (pixel,)
        The two values that each pixel of a line lies between, and their weights; filled up to whole groups.
    need : (group,) uint64
        The bits of the values that the pixels of a group lie between.
    shared : how many values share a bit; 0: each has its own
    """
    along = axis(width, across)
    pixels = np.minimum(np.arange(-(-across // GROUP) * GROUP), across - 1)
    left = np.repeat(np.arange(width), np.diff(along.starts))[pixels]
    right = np.minimum(left + 1, width - 1)
    shared = 0 if width <= 64 else GROUP * -(-width // (64 * GROUP))
    bits = np.uint64(1) << (np.stack([left, right]) // max(shared, 1)).astype(np.uint64)
    need = np.bitwise_or.reduce(np.bitwise_or(*bits).reshape(-1, GROUP), axis=1)
    return left, right, along.first[pixels], along.second[pixels], need, shared


def upsample(maps: npt.ArrayLike, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Bring maps to the size of the labels; what the tally compares with thresholds, bit for bit.

    Parameters
    ----------
    maps : (…, h, w), floating point
    shape : (height, width) of the labels

    Returns
    -------
    upsampled : (…, height, width) float32
        Interpolated across, then down, each in float64 and rounded to float32: equal to Pillow's ``resize`` of images
        of floats with ``BILINEAR`` where nothing shrinks, hence to NetDissect-Lite, and to torch's ``interpolate``
        with ``align_corners=False`` up to rounding.

    Raises
    ------
    SchemaError
        If ``maps`` has no two axes of positions, or a size is 0.

    References
    ----------
    Bau et al. 2017, "Network Dissection", section 2.3, interpolates at the centres of receptive fields; half-pixel
    centres are the reading of NetDissect-Lite.
    """
    values = np.asarray(maps, dtype=np.float32)
    if values.ndim < 2 or not all((*values.shape[-2:], *shape)):
        raise SchemaError(
            f"found maps of shape {values.shape} for labels of {shape}; (…, h, w) of at least 1 is needed"
        )
    rows, columns = axis(values.shape[-2], shape[0]), axis(values.shape[-1], shape[1])
    wide = _between(values, columns)
    return np.swapaxes(_between(np.swapaxes(wide, -1, -2), rows), -1, -2)


def _between(values: Any, along: Axis) -> Any:
    """Interpolate along the last axis."""
    lower = np.repeat(np.arange(values.shape[-1]), np.diff(along.starts))
    upper = np.minimum(lower + 1, values.shape[-1] - 1)
    exact = values.astype(np.float64)
    return (exact[..., lower] * along.first + exact[..., upper] * along.second).astype(np.float32)
