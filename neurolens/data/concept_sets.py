"""A set of images whose pixels are labelled with concepts."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neurolens.data.bitplanes import PACKING_VERSION, ConceptMasks, packed_masks
from neurolens.data.digests import remembered_digests
from neurolens.data.fitting import FittedImages, file_size
from neurolens.data.folders import FileImages
from neurolens.data.planes import LARGEST, LabelFiles, Plane
from neurolens.data.samples import ImageSource, SampleSet, sample_ids
from neurolens.errors import DataError
from neurolens.study import Preprocessing

_OPENING = threading.Lock()

Cell = tuple[str | int, ...]
"""The labels of one image: files of planes, and numbers of labels that the whole image has."""


@dataclass(frozen=True, eq=False)
class ConceptSet:
    """Images with the labels of their pixels, decoded when asked for.

    Attributes
    ----------
    images : ImageSource
        ``images.load(positions)`` gives uint8 images of ``image_size``.
    image_size : (h, w) of every image
    files : LabelFiles
        Reads label files; ``files.size`` is (h, w) of every plane of labels, which covers the image whole.
    cells : (image,)
        The labels of each image, in the order of the categories.
    labels : (concept,) int64, ascending
        The number of each concept; label 0 is no concept.
    concepts : (concept,) unique names
    concept_category : (concept,) the primary category of each
    categories : (category,) in the order of the data set
    numbers : names of all labels of the data set by number, those of other categories included
    coords : (image,) each
        ``position`` in the data set, ``path``, ``split`` where it has splits.
    """

    name: str
    images: ImageSource
    image_size: tuple[int, int]
    files: LabelFiles
    cells: tuple[Cell, ...]
    labels: npt.NDArray[np.int64]
    concepts: tuple[str, ...]
    concept_category: tuple[str, ...]
    categories: tuple[str, ...]
    numbers: dict[int, str]
    coords: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def label_size(self) -> tuple[int, int]:
        """Height and width of every plane of labels."""
        return self.files.size

    @cached_property
    def ids(self) -> npt.NDArray[np.str_]:
        """Content ids of the images, (image,), as of a SampleSet; the first time, every image is decoded."""
        return sample_ids(self.images.digests())

    @cached_property
    def category(self) -> npt.NDArray[np.int64]:
        """Index of each concept's primary category: (concept,)."""
        return np.array([self.categories.index(name) for name in self.concept_category], dtype=np.int64)

    @cached_property
    def key(self) -> str:
        """The sha256 of all that decides the masks: label numbers, primary categories, content of the label files."""
        names = sorted({cell for cells in self.cells for cell in cells if isinstance(cell, str)})
        digests = dict(zip(names, remembered_digests([self.files.root / n for n in names], _bytes, kind="bytes|")))
        hashed = sha256(repr((PACKING_VERSION, self.files.size, self.files.fit, self.files.ignored)).encode())
        hashed.update(repr((self.labels.tolist(), self.category.tolist())).encode())
        for cells in self.cells:
            hashed.update(repr([digests[c] if isinstance(c, str) else c for c in cells]).encode())
        return hashed.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the images, their labels and the names of the concepts, in order."""
        hashed = sha256("\n".join([self.key, *map(str, self.ids)]).encode())
        hashed.update(repr((self.image_size, self.concepts, self.categories)).encode())
        return hashed.hexdigest()

    def samples(self) -> "ConceptSamples":
        """Return the images as samples of one class, to be shown to a network with ``data.shown``."""
        return ConceptSamples(
            self.ids,
            np.zeros(len(self), dtype=np.int64),
            ("image",),
            self.images,
            self.name,
            dict(self.coords),
            concepts=self,
        )

    @property
    def masks(self) -> ConceptMasks:
        """The labels as bitplanes, in the user's cache: `packed`, opened once; wrong labels are looked for once too."""
        with _OPENING:
            found = self._masks
        if isinstance(found, DataError):
            raise found
        return found

    @cached_property
    def _masks(self) -> ConceptMasks | DataError:
        try:
            return self.packed()
        except DataError as error:
            if isinstance(error.__cause__, OSError):  # of the cache: it may pass
                raise
            return error

    def require_whole(self, preprocessing: Preprocessing) -> None:
        """Check that a network's preprocessing shows it all of every image, since labels cover all of it.

        Raises
        ------
        DataError
            If a crop cuts the images: a map of the network would be laid on labels of another part.
        """
        h, w = self.image_size
        if preprocessing.resize is not None:
            shorter, longer = preprocessing.resize, int(preprocessing.resize * max(h, w) / min(h, w))
            h, w = (shorter, longer) if h <= w else (longer, shorter)
        if preprocessing.crop is not None and (h, w) != (preprocessing.crop, preprocessing.crop):
            crop = preprocessing.crop
            what = f"is shown {crop} x {crop} of" if crop <= min(h, w) else f"needs {crop} x {crop}, more than"
            square = self.image_size[0] == self.image_size[1]
            raise DataError(
                f"the network {what} the {h} x {w} pixels of each image of {self.name}, and labels cover all of them; "
                "set concepts.whole = true to show these images as they are, or model.preprocessing.resize = "
                + (f"{crop}" if square else f"{min(self.image_size)} and no crop")
                + ", so that none is cut"
            )

    def require_sizes(self, images: int) -> None:
        """Check that the first images have the size that was announced.

        Raises
        ------
        DataError
            If one has not.
        """
        for image in range(min(images, len(self))):
            self._check_size(image)

    def planes(self, image: int) -> list[Plane | int]:
        """Return the labels of one image: planes (h, w) uint16 of label numbers, and numbers that all of it has.

        Raises
        ------
        DataError
            If a label file is missing, is damaged, has another size, or holds a number that no concept has.
        """
        found: list[Plane | int] = []
        for cell in self.cells[image]:
            plane = cell if isinstance(cell, int) else self.files.plane(cell)
            present = [plane] if isinstance(plane, int) else np.flatnonzero(np.bincount(plane.ravel()))
            strange = [int(n) for n in present if n and self.index[n] < 0]
            if strange:
                raise DataError(f"{self._place(image, cell)} has {self._what_is(strange[0])}")
            found.append(plane)
        return found

    def packed(
        self,
        *,
        cache: Path | None = None,
        threads: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ConceptMasks:
        """Return the labels of all images as bitplanes, decoded and checked once and kept in the user's cache.

        Parameters
        ----------
        cache
            Folder to keep them in instead.
        threads
            That decode; as many as there are processors without it.
        progress
            Told (images done, images in all); not called where they are there already.

        Raises
        ------
        DataError
            As `planes`, or if an image has another size: the first few are named, all are counted.
        """

        def checked(image: int) -> list[Plane | int]:
            self._check_size(image)
            return self.planes(image)

        return packed_masks(
            self.key,
            len(self),
            checked,
            index=self.index,
            category=self.category,
            n_categories=len(self.categories),
            label_size=self.files.size,
            cache=cache,
            threads=threads,
            progress=progress,
        )

    @cached_property
    def index(self) -> npt.NDArray[np.int32]:
        """The concept that each number of a label means, (65536,) int32; -1: none."""
        index = np.full(LARGEST + 1, -1, dtype=np.int32)
        index[self.labels] = np.arange(len(self.labels))
        return index

    def _check_size(self, image: int) -> None:
        """Compare the size that the image's file has with the announced one, or with those of its label files."""
        if not isinstance(self.images, FileImages | FittedImages):
            return
        path = self.images.root / self.images.names[image]
        h, w = file_size(path)
        if self.files.fit == "exact":
            if (h, w) != self.image_size:
                ih, iw = self.image_size
                raise DataError(f"{path} is {h} x {w} pixels, and {ih} x {iw} were announced (h x w); restore the file")
            return
        for cell in self.cells[image]:
            if isinstance(cell, str):
                sh, sw = file_size(self.files.root / cell)
                if abs(sh * w - sw * h) > max(h, w):
                    raise DataError(
                        f"{self.files.root / cell} is {sh} x {sw} pixels, and its image {h} x {w} (h x w), so they "
                        "cannot lie on each other; one of the two was cut or turned: make it anew"
                    )

    def _place(self, image: int, cell: str | int) -> str:
        if isinstance(cell, str):
            return str(self.files.root / cell)
        return self.images.names[image] if self.images.names is not None else f"image {image}"

    def _what_is(self, number: int) -> str:
        if number in self.numbers:
            return (
                f"label {number} ({self.numbers[number]}), which belongs to none of the categories "
                f"{', '.join(self.categories)}; list it in the table of its category"
            )
        named = f"{len(self.numbers)} labels from {min(self.numbers)} to {max(self.numbers)} have"
        return (
            f"label {number}, which has no name ({named}); give it one in the table of labels, or make it 0 where it "
            "means nothing"
        )


@dataclass(frozen=True, eq=False)
class ConceptSamples(SampleSet):
    """The images of a concept set as samples; ``concepts`` is that set, whole."""

    concepts: ConceptSet | None = None

    @property
    def fingerprint(self) -> str:
        """The sha256 of the images, their labels and the names of the concepts, in order."""
        assert self.concepts is not None
        return self.concepts.fingerprint


def _bytes(path: Path) -> str:
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()
