"""What the masks of units have in common with concepts: counts of pixels, from which every reading of IoU follows."""

from typing import Any

import numpy as np
import numpy.typing as npt

from neurolens.dissection import kernels
from neurolens.dissection.labels import Labels
from neurolens.dissection.maps import by_units, maps_of
from neurolens.dissection.upsampling import pixel_columns, pixel_rows, upsample
from neurolens.errors import SchemaError

BLOCKS = 32
"""Blocks of images that counts are kept for, so that images can be drawn again for an interval."""

_MOST = 2**32 - 2  # the largest uint32 stands for "not measured"


def image_blocks(images: int, blocks: int = BLOCKS) -> npt.NDArray[np.int64]:
    """Return the block of each image, (images,): dealt out in turn.

    Neighbours in a data set are alike (Broden is five data sets, one after the other). Dealt out, each block is a
    small copy of the whole, and blocks drawn again vary as images drawn again do.
    """
    return np.arange(images, dtype=np.int64) % blocks


class Tally:
    """Counts of one layer's masks against the labels of all images, over blocks of images.

    The mask of a unit on an image is where its map, brought to the size of the labels (`upsample`), exceeds its
    threshold; units whose largest activation does not exceed it have none, and are skipped.

    Parameters
    ----------
    labels : the concepts of every image
    units : U
    blocks : (image,) block of each image, from 0; None: `image_blocks`
    workers : threads to use; the counts do not depend on it

    Attributes
    ----------
    intersection : (block, unit, concept) uint32
        Pixels of the mask where the concept is.
    unit_area : (block, unit, category) int64
        Pixels of the mask on images that show anything of the category, in or outside the mask.
    unit_area_lite : (block, unit, category) int64
        Pixels of the mask on images that show anything of the category inside the mask.
    concept_area : (block, concept) int64
        Pixels of the concept.
    n_images : (block,) int64

    Raises
    ------
    SchemaError
        If blocks are not given for every image, or a block has more pixels than can be counted.

    References
    ----------
    Bau et al. 2017, "Network Dissection", section 2.3 and ``makeresult.py`` (``unit_area``); NetDissect-Lite,
    ``feature_operation.py`` (``unit_area_lite``). Label 0 is no concept in any reading, and where a unit has no mask
    there is none, also with a threshold of 0.
    """

    def __init__(self, labels: Labels, units: int, *, blocks: npt.ArrayLike | None = None, workers: int = 1) -> None:
        images = len(labels.indptr) - 1
        of = image_blocks(images) if blocks is None else np.asarray(blocks, dtype=np.int64)
        height, width = labels.label_size
        if of.shape != (images,) or (images and of.min() < 0):
            raise SchemaError(
                f"found blocks of shape {of.shape} for {images} images; one number from 0 on each is needed"
            )
        count = BLOCKS if blocks is None else int(of.max(initial=-1)) + 1
        largest = int(np.bincount(of, minlength=1).max())
        if largest * height * width > _MOST:
            raise SchemaError(
                f"a block of {largest} images of {height} × {width} has more pixels than 32 bits count; use more blocks"
            )
        self._labels, self._block, self._units, self._workers = labels, of, units, workers
        self._common = np.zeros((count, len(labels.category), units), dtype=np.uint32)
        self.unit_area = np.zeros((count, units, labels.n_categories), dtype=np.int64)
        self.unit_area_lite = np.zeros_like(self.unit_area)
        self.concept_area = np.zeros((count, len(labels.category)), dtype=np.int64)
        self.n_images = np.zeros(count, dtype=np.int64)

    def add(self, maps: npt.ArrayLike, thresholds: npt.ArrayLike, images: npt.ArrayLike) -> None:
        """Count a batch of maps.

        Parameters
        ----------
        maps : (B, U, h, w) float, channels first or last
        thresholds : (U,) float64
        images : (B,) positions of the images among the labels, each counted once

        Raises
        ------
        SchemaError
            If shapes do not fit, or there is no such image.
        NonFiniteError
            If an activation is NaN or infinite.
        """
        at = np.asarray(images, dtype=np.int64)
        limits = np.ascontiguousarray(thresholds, dtype=np.float64)
        batch = maps_of(maps, self._units, seen=int(at.min(initial=0)), workers=self._workers)
        if limits.shape != (self._units,) or at.shape != (len(batch.values),):
            raise SchemaError(
                f"found thresholds {limits.shape} and images {at.shape} for {len(batch.values)} maps of {self._units} "
                "units; one threshold per unit and one image per map are needed"
            )
        if len(at) and not 0 <= at.min() <= at.max() < len(self._block):
            raise SchemaError(f"images run from {at.min()} to {at.max()}; there are labels of {len(self._block)}")
        labels, block = self._labels, self._block[at]
        starts = np.stack([labels.indptr[at], labels.indptr[at + 1]], axis=1)
        rows = pixel_rows(batch.values.shape[2], labels.label_size)
        columns = pixel_columns(batch.values.shape[3], labels.label_size[1])
        given: Any = (batch.values, batch.largest, *_cut(limits), rows, columns, starts)
        concept, area = np.asarray(labels.concept), np.asarray(labels.area)
        planes = (concept, area, np.asarray(labels.words), np.asarray(labels.category))
        counts = (self._common, self.unit_area, self.unit_area_lite)
        rest: tuple[Any, ...] = (*given, *planes, block, *counts)
        by_units(lambda a, b: kernels.tally_units(a, b, *rest), self._units, self._workers)
        kernels.tally_concepts(starts, concept, area, block, self.concept_area)
        self.n_images += np.bincount(block, minlength=len(self.n_images))

    @property
    def intersection(self) -> npt.NDArray[np.uint32]:
        """Pixels of the mask where the concept is, (block, unit, concept); a view."""
        return self._common.transpose(0, 2, 1)

    def variables(self) -> dict[str, npt.NDArray[Any]]:
        """Return the counts by name, as the concepts cube has them without the series: uint32 and float64."""
        floats = ("unit_area", "unit_area_lite", "concept_area", "n_images")
        return {"intersection": self.intersection} | {name: getattr(self, name).astype(np.float64) for name in floats}


def _cut(thresholds: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Return the largest float32 that does not exceed each threshold, and the largest float64 that rounds to no more.

    A float32 exceeds the threshold where it exceeds the first; a float64 does once rounded where it exceeds the second.
    """
    with np.errstate(over="ignore"):
        limit = thresholds.astype(np.float32)
        limit = np.where(limit > thresholds, np.nextafter(limit, np.float32(-np.inf)), limit)
        above = np.nextafter(limit, np.float32(np.inf))
        half = (limit.astype(np.float64) + above) / 2
    to_even = above.view(np.int32) % 2 == 0  # then half the way is rounded up
    return limit, np.where(to_even, np.nextafter(half, -np.inf), half)


def unit_mask(maps: npt.ArrayLike, threshold: npt.ArrayLike, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return where units fire on images, as the tally sees it.

    Parameters
    ----------
    maps : (…, h, w)
    threshold : broadcasts against (…)
    shape : (height, width) of the mask

    Returns
    -------
    mask : (…, height, width) bool
        Strictly above the threshold, compared in float64.
    """
    limits = np.asarray(threshold, dtype=np.float64)[..., None, None]
    return np.asarray(upsample(maps, shape).astype(np.float64) > limits)
