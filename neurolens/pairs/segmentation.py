"""From what patches say to a label for every pixel: windows that slide over an image of any size, without mmcv."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import NonFiniteError, SchemaError

Array = npt.NDArray[Any]
Box = tuple[int, int, int, int]
Size = tuple[int, int]


def segment(
    image: npt.ArrayLike,
    logits_of: Callable[[Array], xr.DataArray],
    *,
    crop: int | Size = 384,
    stride: int | Size = 192,
    short: int | None = 384,
    batch: int = 4,
    scale: float = 40.0,
    threshold: float = 0.0,
    background: int | None = None,
    classes: Sequence[int] | None = None,
) -> xr.Dataset:
    """Give every pixel of an image a class, from windows that slide over it. **Eager**.

    The image is resized so that its short side is ``short``; windows are cut from it, the logits of their patches are
    brought to the size of the window and averaged where windows overlap, and the whole to the size of the image, all
    bilinearly; then a softmax over the classes. Classes are gone through one after another, so that no array over
    classes and pixels is made.

    Parameters
    ----------
    image : (channel, y, x)
        As the network takes it, normalised, in its own size.
    logits_of
        From windows (sample, channel, y, x) to the logits of their patches (sample, phrase, y, x): the network to the
        maps that go into the pool, then `pair_logits` or `value_logits`.
    crop, stride
        Size of a window and the step between two; a number, or one for y and one for x.
    short
        Short side of the resized image; None leaves it as it is.
    batch
        Windows at once.
    scale
        By which logits are multiplied before the softmax.
    threshold
        Pixels whose largest probability is below it are ``background``.
    background
        The class of such pixels; needed where there is a threshold.
    classes : (phrase,), optional
        The class of each phrase, where some have several; by default each phrase is a class. A class has the
        probability of its likeliest phrase.

    Returns
    -------
    Dataset over (y, x), of the size of the image
        ``label``, int64: the class; ``probability``, of the phrase that won.

    Raises
    ------
    SchemaError
        If an option cannot be, the image is smaller than a window, or the logits are of other windows.
    NonFiniteError
        If a logit is NaN or infinite.

    References
    ----------
    Bu and Gandelsman 2025, arXiv 2509.19943: 384, 192, 40 and no threshold.
    """
    given = np.asarray(image)
    if given.ndim != 3 or given.dtype.kind not in "fiu" or not given.size:
        raise SchemaError(f"found an image of {given.dtype} and shape {given.shape}, and (channel, y, x) was needed")
    if threshold > 0 and background is None:
        raise SchemaError(f"threshold={threshold} needs a class for pixels below it; pass background=0, or its number")
    if not 0 <= threshold <= 1 or scale <= 0:
        raise SchemaError(f"threshold={threshold} is a probability, from 0 to 1, and scale={scale} is above 0")
    working = np.result_type(given.dtype, np.float32)
    size = (given.shape[1], given.shape[2])
    fitted = size if short is None else shortened(size, short)
    resized = bilinear(given.astype(working), fitted)
    boxes = windows(fitted, _pair(crop), _pair(stride))
    logits = _of_windows(resized, boxes, logits_of, batch)
    of_class = np.arange(logits.shape[1]) if classes is None else np.asarray(classes)
    if of_class.shape != (logits.shape[1],) or of_class.dtype.kind not in "iu":
        raise SchemaError(f"found classes {of_class.shape} and {logits.shape[1]} phrases; give a class for each phrase")
    best, probability = _likeliest(_phrase_maps(logits, boxes, fitted, size), scale)
    label = of_class.astype(np.int64)[best]
    if background is not None:
        label = np.where(probability < threshold, np.int64(background), label)
    return xr.Dataset({"label": (("y", "x"), label), "probability": (("y", "x"), probability)})


def windows(size: Size, crop: Size, stride: Size) -> list[Box]:
    """Return the windows (top, bottom, left, right) that cover an image, row by row; the last ones end at its edge.

    Raises
    ------
    SchemaError
        If the image is smaller than a window, or windows would leave pixels out.
    """
    if any(s < c for s, c in zip(size, crop, strict=True)):
        raise SchemaError(
            f"found an image of {size[0]} by {size[1]}, and a window takes {crop[0]} by {crop[1]}; resize it with "
            f"short={max(crop)}, or take smaller windows and a pool of that size: resampled(pool, …)"
        )
    if any(not 1 <= step <= c for step, c in zip(stride, crop, strict=True)):
        raise SchemaError(f"stride={stride} with crop={crop} leaves pixels out; pass a stride from 1 to the crop")
    starts = [
        [min(i * step, s - c) for i in range(-(-(s - c) // step) + 1)]
        for s, c, step in zip(size, crop, stride, strict=True)
    ]
    return [(y, y + crop[0], x, x + crop[1]) for y in starts[0] for x in starts[1]]


def shortened(size: Size, short: int) -> Size:
    """Return the size (y, x) with a short side of ``short`` and the same aspect, rounded half up.

    Raises
    ------
    SchemaError
        If a side is not above 0.
    """
    if min(size) < 1 or short < 1:
        raise SchemaError(f"found a size of {size[0]} by {size[1]} and short={short}, and all must be 1 or more")
    factor = short / min(size)
    return int(size[0] * factor + 0.5), int(size[1] * factor + 0.5)


def bilinear(values: Array, size: Size) -> Array:
    """Return maps (…, y, x) of another size: linear between the centres of cells, constant beyond the outer ones.

    As ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``: no smoothing where it shrinks.
    """
    if values.shape[-2:] == size:
        return values
    for axis, new in ((-2, size[0]), (-1, size[1])):
        old = values.shape[axis]
        centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(centres).astype(np.intp)
        share = (centres - low).astype(values.dtype).reshape((-1, 1) if axis == -2 else -1)
        before, after = (np.take(values, at, axis=axis) for at in (low, np.minimum(low + 1, old - 1)))
        values = before + (after - before) * share
    return values


def _pair(size: int | Size) -> Size:
    pair = (size, size) if isinstance(size, int | np.integer) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise SchemaError(f"found a size of {size}, and a number of pixels, or two, was needed, from 1 on")
    return int(pair[0]), int(pair[1])


def _of_windows(image: Array, boxes: list[Box], logits_of: Callable[[Array], xr.DataArray], batch: int) -> Array:
    """Return the logits of the patches of all windows, (window, phrase, y, x)."""
    if batch < 1:
        raise SchemaError(f"batch={batch} counts windows, from 1 on")
    parts: list[Array] = []
    for start in range(0, len(boxes), batch):
        some = boxes[start : start + batch]
        found = logits_of(np.stack([image[:, top:bottom, left:right] for top, bottom, left, right in some]))
        if not isinstance(found, xr.DataArray) or set(found.dims) != {"sample", "phrase", "y", "x"}:
            kind = found.dims if isinstance(found, xr.DataArray) else type(found).__name__
            raise SchemaError(f"logits_of returned {kind}, and an array over (sample, phrase, y, x) was needed")
        values = found.transpose("sample", "phrase", "y", "x").to_numpy()
        if len(values) != len(some) or not values.size:
            raise SchemaError(f"logits_of returned logits {values.shape} of {len(some)} windows; return those of each")
        if not np.isfinite(values).all():
            raise NonFiniteError("a logit of a patch is NaN or infinite; see what the network puts out for this image")
        parts.append(values)
    return np.concatenate(parts)


def _phrase_maps(logits: Array, boxes: list[Box], fitted: Size, size: Size) -> Iterator[Array]:
    """Yield the map of each phrase in the size of the image, windows averaged."""
    cover = np.zeros(fitted, logits.dtype)
    for top, bottom, left, right in boxes:
        cover[top:bottom, left:right] += 1
    for phrase in range(logits.shape[1]):
        total = np.zeros(fitted, logits.dtype)
        for (top, bottom, left, right), patches in zip(boxes, logits[:, phrase], strict=True):
            total[top:bottom, left:right] += bilinear(patches, (bottom - top, right - left))
        yield bilinear(total / cover, size)


def _likeliest(maps: Iterator[Array], scale: float) -> tuple[Array, Array]:
    """Return the first largest of maps at each pixel, and its softmax, with a running sum of powers."""
    largest = next(maps) * scale
    best, powers = np.zeros(largest.shape, np.intp), np.ones_like(largest)
    for number, found in enumerate(maps, 1):
        logit = found * scale
        higher = logit > largest
        smaller = np.exp(-np.abs(logit - largest))
        powers = np.where(higher, powers * smaller + 1, powers + smaller)
        best[higher] = number
        largest = np.maximum(largest, logit)
    return best, 1 / powers
