"""Concepts of a few images as the tally reads them: one bit a pixel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from neurolens.errors import SchemaError


class Labels(Protocol):
    """What the tally reads: `neurolens.data.bitplanes.ConceptMasks`, or `PackedLabels`.

    Pixel (y, x) is bit ``p % 64`` of word ``p // 64`` of its plane, with p = y w + x; bits after the last are 0.
    Rows ``indptr[i]`` to ``indptr[i + 1]`` of concept, area and words are the planes of image i.
    """

    @property
    def label_size(self) -> tuple[int, int]:
        """Height and width of every plane."""

    @property
    def category(self) -> npt.NDArray[np.int64]:
        """Primary category of each concept, (concept,)."""

    @property
    def n_categories(self) -> int:
        """How many categories there are."""

    @property
    def indptr(self) -> npt.NDArray[np.int64]:
        """(image + 1,)."""

    @property
    def concept(self) -> npt.NDArray[np.int32]:
        """Concept of each plane, (row,)."""

    @property
    def area(self) -> npt.NDArray[np.int64]:
        """Pixels of each plane, (row,)."""

    @property
    def words(self) -> npt.NDArray[np.uint64]:
        """Bits of each plane, (row, ceil(h w / 64))."""


@dataclass(frozen=True, eq=False)
class PackedLabels:
    """Labels in memory; the attributes are those of `Labels`."""

    label_size: tuple[int, int]
    category: npt.NDArray[np.int64]
    n_categories: int
    indptr: npt.NDArray[np.int64]
    concept: npt.NDArray[np.int32]
    area: npt.NDArray[np.int64]
    words: npt.NDArray[np.uint64]


def pack_labels(
    images: Sequence[Mapping[int, npt.ArrayLike]],
    label_size: tuple[int, int],
    category: npt.ArrayLike,
    n_categories: int | None = None,
) -> PackedLabels:
    """Pack where each concept is in each image.

    Parameters
    ----------
    images
        Per image: concept (position, from 0) → bool (h, w), or True where the label is of the whole image.
    label_size : (h, w)
    category : (concept,) primary category of each concept, as a position
    n_categories
        None: the largest and one.

    Raises
    ------
    SchemaError
        If a mask is of another size, or a concept or a category is unknown.
    """
    height, width = label_size
    of = np.asarray(category, dtype=np.int64)
    known = int(of.max(initial=-1)) + 1 if n_categories is None else n_categories
    if len(of) and not 0 <= of.min() <= of.max() < known:
        raise SchemaError(f"categories run from {of.min()} to {of.max()}; give numbers from 0 to {known - 1}")
    planes: list[Any] = []
    concepts: list[int] = []
    for number, shown in enumerate(images):
        for concept in sorted(shown):
            mask = np.asarray(shown[concept], dtype=np.bool_)
            if not 0 <= concept < len(of) or mask.shape not in ((), label_size):
                raise SchemaError(
                    f"image {number} has concept {concept} of shape {mask.shape}; concepts 0 to {len(of) - 1} and "
                    f"masks of shape {label_size}, or True for the whole image, are needed"
                )
            concepts.append(concept)
            planes.append(np.broadcast_to(mask, label_size).ravel())
    size = 64 * -(-height * width // 64)
    bits = np.zeros((len(planes), size), dtype=np.bool_)
    for row, plane in enumerate(planes):
        bits[row, : height * width] = plane
    return PackedLabels(
        label_size,
        of,
        known,
        np.concatenate([[0], np.cumsum([len(shown) for shown in images])]).astype(np.int64),
        np.array(concepts, dtype=np.int32),
        bits.sum(axis=1, dtype=np.int64),
        np.packbits(bits, axis=1, bitorder="little").view("<u8").astype(np.uint64).reshape(len(planes), size // 64),
    )
