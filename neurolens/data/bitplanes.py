"""Labels as packed bitplanes: decoded once per data set, shared by every checkpoint and every process."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import platformdirs
from filelock import FileLock

from neurolens.data.planes import Plane
from neurolens.data.samples import in_threads
from neurolens.errors import DataError

PACKING_VERSION = 1
TOLD = 10
"""How many of the things that are wrong with a data set one error names."""

_CHUNK = 256
_MANIFEST, _BITS = "masks.json", "bits.u64"


class Present(NamedTuple):
    """The concepts of one image: which, (k,) int32 ascending, and where, (k, ceil(h w / 8)) uint8."""

    concepts: npt.NDArray[np.int32]
    bits: npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ConceptMasks:
    """Where each concept is in each image, one bit a pixel, memory-mapped.

    Pixel (y, x) of a plane (h, w) is bit ``p % 8`` of byte ``p // 8``, the lowest bit first, with p = y w + x; as
    64-bit words, bit ``p % 64`` of word ``p // 64``. Bits after the last pixel are 0. A label of the whole image is
    a plane of ones (its area is h w). A concept that several planes of an image show is there once, where any does.

    Attributes
    ----------
    folder
        Where the arrays lie. Pickled is the folder, not the arrays.
    label_size : (h, w) of every plane
    category : (concept,) int64
        Index of the concept's primary category.
    n_categories
    indptr : (image + 1,) int64
        Rows ``indptr[i]`` to ``indptr[i + 1]`` of the next three are those of image i.
    concept : (row,) int32, ascending in an image
    area : (row,) int64, pixel
    words : (row, ceil(h w / 64)) uint64, read-only
    """

    folder: Path
    label_size: tuple[int, int]
    category: npt.NDArray[np.int64]
    n_categories: int
    indptr: npt.NDArray[np.int64]
    concept: npt.NDArray[np.int32]
    area: npt.NDArray[np.int64]
    words: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.folder, self.category, self.n_categories)

    @property
    def n_concepts(self) -> int:
        """How many concepts the data set has, those in no image included."""
        return len(self.category)

    def present(self, image: int) -> Present:
        """Return the concepts of an image and their bits; views, nothing is copied."""
        rows = slice(self.indptr[image], self.indptr[image + 1])
        pixels = self.label_size[0] * self.label_size[1]
        return Present(self.concept[rows], self.words[rows].view(np.uint8)[:, : -(-pixels // 8)])

    def planes(self, image: int) -> npt.NDArray[np.bool_]:
        """Return the concepts of an image as (k, h, w), in the order of ``present(image).concepts``."""
        h, w = self.label_size
        bits = np.unpackbits(self.present(image).bits, axis=1, count=h * w, bitorder="little")
        return bits.reshape(-1, h, w).astype(np.bool_)

    def concept_area(self, images: slice | npt.NDArray[np.int64] = slice(None)) -> npt.NDArray[np.int64]:
        """Return the area of every concept over these images: (concept,) int64, pixel."""
        counted = np.zeros(len(self), dtype=np.bool_)
        counted[images] = True
        rows = counted[self.image]
        return np.bincount(self.concept[rows], self.area[rows], self.n_concepts).astype(np.int64)

    def image_categories(self) -> npt.NDArray[np.bool_]:
        """Return (image, category): whether the image shows any concept of that primary category."""
        shown = np.zeros((len(self), self.n_categories), dtype=np.bool_)
        shown[self.image, self.category[self.concept]] = True
        return shown

    @cached_property
    def image(self) -> npt.NDArray[np.int64]:
        """The image of every row: (row,) int64."""
        return np.repeat(np.arange(len(self)), np.diff(self.indptr))


def pack(
    planes: Sequence[Plane | int], index: npt.NDArray[np.int32], size: tuple[int, int]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint64]]:
    """Pack the labels of one image.

    Parameters
    ----------
    planes : planes (h, w) of label numbers, and numbers of labels that the whole image has
    index : (number,) int32
        The concept that a number means; -1 where it means none.
    size : (h, w)

    Returns
    -------
    concepts : (k,) int32, ascending
    words : (k, ceil(h w / 64)) uint64
    """
    pixels = size[0] * size[1]
    which = [np.zeros(0, dtype=np.int32)]
    where = [np.zeros((0, _words(size) * 8), dtype=np.uint8)]
    for plane in planes:
        if isinstance(plane, int):
            numbers, found = np.array([plane]), np.ones((1, pixels), dtype=np.bool_)
        else:
            numbers = np.flatnonzero(np.bincount(plane.ravel()))
            numbers = numbers[index[numbers] >= 0]
            found = plane.reshape(1, -1) == numbers[:, None].astype(np.uint16)
        known = index[numbers] >= 0
        bits = np.zeros((known.sum(), _words(size) * 8), dtype=np.uint8)
        bits[:, : -(-pixels // 8)] = np.packbits(found[known], axis=1, bitorder="little")
        which.append(index[numbers[known]])
        where.append(bits)
    every = np.concatenate(which)
    order = np.argsort(every, kind="stable")
    concepts, first = np.unique(every[order], return_index=True)
    words = np.concatenate(where)[order].view(np.uint64)
    return concepts, np.bitwise_or.reduceat(words, first, axis=0) if len(concepts) else words


def packed_masks(
    key: str,
    images: int,
    planes: Callable[[int], Sequence[Plane | int]],
    *,
    index: npt.NDArray[np.int32],
    category: npt.NDArray[np.int64],
    n_categories: int,
    label_size: tuple[int, int],
    cache: Path | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ConceptMasks:
    """Open the masks known by a key, or decode and pack them first: a few images at a time, in threads.

    Two processes that ask for the same masks decode them once; a decoding that is killed leaves nothing behind that
    would be taken for whole.

    Parameters
    ----------
    key
        Of all that decides the masks: the content of the label files, not their place or age.
    planes
        The labels of an image: planes (h, w) of label numbers, and numbers of labels that the whole image has.
    index : (number,) int32, the concept that a number means; -1: none
    category : (concept,) int64
    cache
        Folder that the masks are kept in; the user's cache without it.
    threads
        As many as there are processors without it.
    progress
        Told (images done, images in all).

    Raises
    ------
    DataError
        If labels cannot be decoded or are not what was promised: the first few are named, all are counted. Or if the
        cache cannot be written.
    """
    home = cache or platformdirs.user_cache_path("neurolens", appauthor=False) / "concepts"
    folder = home / f"{PACKING_VERSION}-{key}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / f"{folder.name}.lock"):
            if not _is_whole(folder, images, label_size):
                for killed in home.glob(f".{folder.name}-*"):  # by others than this process: it holds the lock
                    shutil.rmtree(killed, ignore_errors=True)
                made = Path(tempfile.mkdtemp(dir=home, prefix=f".{folder.name}-"))
                try:
                    _write(made, images, planes, index, label_size, threads or os.cpu_count() or 1, progress)
                    shutil.rmtree(folder, ignore_errors=True)
                    made.rename(folder)
                finally:
                    shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"decoded labels are kept in {home}, which cannot be written ({error.strerror or error}); make room there, "
            "or name another folder"
        ) from error
    return _reopened(folder, category, n_categories)


def _write(
    folder: Path,
    images: int,
    planes: Callable[[int], Sequence[Plane | int]],
    index: npt.NDArray[np.int32],
    size: tuple[int, int],
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    def one(image: int) -> Any:
        try:
            return pack(planes(image), index, size)
        except DataError as error:
            return str(error)

    counts = np.zeros(images + 1, dtype=np.int64)
    concepts, areas = [np.zeros(0, dtype=np.int32)], [np.zeros(0, dtype=np.int64)]
    wrong: list[str] = []
    with open(folder / _BITS, "wb") as file:
        for start in range(0, images, _CHUNK):
            chunk = range(start, min(start + _CHUNK, images))
            found = in_threads(one, chunk, threads=threads)
            wrong += [packed for packed in found if isinstance(packed, str)]
            sound = {image: packed for image, packed in zip(chunk, found) if not isinstance(packed, str)}
            for image, (which, words) in sound.items():
                counts[image + 1] = len(which)
                file.write(words.data)
            concepts.append(np.concatenate([concepts[0], *(which for which, _ in sound.values())]))
            ones = [np.bitwise_count(words).sum(axis=1, dtype=np.int64) for _, words in sound.values()]
            areas.append(np.concatenate([areas[0], *ones]))
            if progress is not None:
                progress(chunk.stop, images)
        file.flush()
        os.fsync(file.fileno())
    if wrong:
        more = f"; and {len(wrong) - TOLD} more" if len(wrong) > TOLD else ""
        raise DataError(f"{len(wrong)} of {images} images have wrong labels: " + "; ".join(wrong[:TOLD]) + more)
    indptr = np.cumsum(counts)
    np.save(folder / "indptr.npy", indptr)
    np.save(folder / "concept.npy", np.concatenate(concepts))
    np.save(folder / "area.npy", np.concatenate(areas))
    manifest = {"images": images, "rows": int(indptr[-1]), "label_size": list(size)}
    (folder / _MANIFEST).write_text(json.dumps(manifest))


def _is_whole(folder: Path, images: int, size: tuple[int, int]) -> bool:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        rows = manifest["rows"]
        lengths = {name: len(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ("indptr", "concept", "area")}
        told = (manifest["images"], tuple(manifest["label_size"]), (folder / _BITS).stat().st_size)
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return False
    return told == (images, size, rows * _words(size) * 8) and lengths == {
        "indptr": images + 1,
        "concept": rows,
        "area": rows,
    }


def _reopened(folder: Path, category: npt.NDArray[np.int64], n_categories: int) -> ConceptMasks:
    manifest = json.loads((folder / _MANIFEST).read_text())
    size = (manifest["label_size"][0], manifest["label_size"][1])
    shape = (manifest["rows"], _words(size))
    words: npt.NDArray[np.uint64] = (
        np.memmap(folder / _BITS, dtype=np.uint64, mode="r", shape=shape)
        if manifest["rows"]
        else np.zeros(shape, dtype=np.uint64)  # an empty file cannot be mapped
    )
    indptr, concept, area = (np.load(folder / f"{name}.npy") for name in ("indptr", "concept", "area"))
    return ConceptMasks(folder, size, category, n_categories, indptr, concept, area, words)


def _words(size: tuple[int, int]) -> int:
    return -(-size[0] * size[1] // 64)
