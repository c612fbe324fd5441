"""Images that are one array: scikit-learn's digits, and .npz or .npy files."""

import os
import weakref
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neurolens.data.samples import Indices, Pixels, digest
from neurolens.errors import DataError, nearest
from neurolens.study import Data

_arrays: "weakref.WeakValueDictionary[Any, npt.NDArray[Any]]" = weakref.WeakValueDictionary()
_IMAGE_KEYS, _LABEL_KEYS = ("images", "x"), ("labels", "y")


@dataclass(frozen=True)
class Recipe:
    """How to read an array again in another process: a module-level function, its arguments, the files' stamps."""

    read: Callable[..., Pixels]
    args: tuple[Any, ...] = ()
    files: tuple[Path, ...] = ()
    stamps: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, read: Callable[..., Pixels], *args: Any, files: tuple[Path, ...] = ()) -> "Recipe":
        """Take the stamps of the files now."""
        return cls(read, args, files, _stamps(files))

    def pixels(self) -> Pixels:
        """Return the array, shared by all who hold it in this process; DataError if a file has changed since."""
        array = _arrays.get(self)
        if array is None:
            if _stamps(self.files) != self.stamps:
                raise DataError(
                    f"{', '.join(map(str, self.files))} changed while in use; start again and leave data alone"
                )
            array = _arrays[self] = self.read(*self.args)
        return array

    def hold(self, pixels: Pixels) -> Pixels:
        """Say that this is the array, so that it is not read a second time."""
        _arrays[self] = pixels
        return pixels


def _stamps(files: tuple[Path, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, files))


class ArrayImages:
    """Rows of a uint8 array (N, H, W, C), held in memory or memory-mapped."""

    names: tuple[str, ...] | None = None

    def __init__(self, pixels: Pixels | Recipe, rows: Indices | None = None) -> None:
        self._recipe = pixels if isinstance(pixels, Recipe) else None
        self._pixels = pixels.pixels() if isinstance(pixels, Recipe) else pixels  # held: the recipes' memory is weak
        self._rows = np.arange(len(self._pixels)) if rows is None else rows

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        _, height, width, channels = self._pixels.shape
        return height, width, channels

    def __len__(self) -> int:
        return len(self._rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrayImages, (self._recipe or self._pixels[self._rows], self._rows if self._recipe else None)

    def load(self, indices: npt.ArrayLike) -> Pixels:
        """Return the images, uint8 (n, H, W, C)."""
        return self._pixels[self._rows[np.asarray(indices, dtype=np.int64)]]

    def digests(self) -> list[str]:
        """Return the content digest of every image."""
        return [digest(self._pixels[row]) for row in self._rows]

    def take(self, indices: npt.ArrayLike) -> "ArrayImages":
        """Return the source restricted to these positions, without copying pixels."""
        return ArrayImages(self._recipe or self._pixels, self._rows[np.asarray(indices, dtype=np.int64)])


@dataclass(frozen=True)
class Found:
    """What a source finds before selection: images, labels, class names, and further coordinates."""

    images: Any
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    coords: dict[str, npt.NDArray[Any]]


def digits(table: Data) -> Found:
    """Open scikit-learn's bundled digits: 1797 images 8 x 8 of 0 … 16, scaled to 0 … 255.

    Every fifth image of the file (positions 0, 5, 10, …) is ``test``, the others ``train``; ``all`` is both.
    """
    from sklearn.datasets import load_digits

    labels = np.asarray(load_digits().target, dtype=np.int64)
    is_test = np.arange(len(labels)) % 5 == 0
    rows = {"train": ~is_test, "test": is_test, "all": np.ones(len(labels), dtype=bool)}
    if table.split not in rows:
        raise DataError(f"digits has no split {table.split!r}; {nearest(table.split, rows)}")
    kept = np.flatnonzero(rows[table.split])
    images = ArrayImages(Recipe.of(_digits_pixels)).take(kept)
    coords: dict[str, npt.NDArray[Any]] = {"position": kept}
    if table.split == "all":
        coords["split"] = np.where(is_test, "test", "train")
    return Found(images, labels[kept], tuple(map(str, range(10))), coords)


def _digits_pixels() -> Pixels:
    from sklearn.datasets import load_digits

    pixels: Pixels = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
    return pixels


def arrays(table: Data) -> Found:
    """Open an .npz file, or a folder with ``images.npy`` and ``labels.npy``.

    Images are uint8 (N, H, W) or (N, H, W, C) under ``images`` or ``x``, labels integers under ``labels`` or ``y``. A
    split other than ``all`` is a prefix (``train_images``, ``train_labels``); unprefixed arrays are the split ``all``.
    ``classes`` (names) is optional.

    Raises
    ------
    DataError
        If a file, an array or the split is absent, or an array has the wrong dtype or shape.
    """
    root = table.root
    if root is None or not root.exists():
        raise DataError(
            f"[data] root = {root} is not there; give an .npz file, or a folder with images.npy, labels.npy"
        )
    known = _array_names(root)
    prefix = "" if table.split == "all" else f"{table.split}_"
    splits = sorted({k[: -len(f"_{name}")] for k in known for name in _IMAGE_KEYS if k.endswith(f"_{name}")})
    if prefix and not splits and any(k in known for k in _IMAGE_KEYS):
        raise DataError(f"{root} has no split {table.split!r}: its arrays have no prefix; set [data] split = 'all'")
    image_key = next((prefix + k for k in _IMAGE_KEYS if prefix + k in known), None)
    label_key = next((prefix + k for k in _LABEL_KEYS if prefix + k in known), None)
    if image_key is None or label_key is None:
        missing = prefix + ("images" if image_key is None else "labels")
        hint = f"its splits are {', '.join(splits)}" if splits else f"found {', '.join(sorted(known)) or 'no array'}"
        raise DataError(f"{root} has no array {missing!r}; {hint}; {nearest(missing, known)}")
    labels = _read_array(root, label_key)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{label_key} of {root} is {labels.dtype} {labels.shape}; it must be integers (N,)")
    images = ArrayImages(Recipe.of(_read_pixels, root, image_key, files=(_array_file(root, image_key),)))
    if len(images) != len(labels) or not len(labels):
        raise DataError(f"{root} has {len(images)} {image_key} and {len(labels)} {label_key}; they must pair up")
    top = int(labels.max())
    names = tuple(map(str, _read_array(root, "classes"))) if "classes" in known else tuple(map(str, range(top + 1)))
    if labels.min() < 0 or top >= len(names):
        raise DataError(
            f"{label_key} of {root} spans {labels.min()} to {top}; with {len(names)} classes it must be 0 up"
        )
    return Found(images, labels.astype(np.int64), names, {"position": np.arange(len(labels))})


def _array_file(root: Path, key: str) -> Path:
    return root / f"{key}.npy" if root.is_dir() else root


def _array_names(root: Path) -> set[str]:
    if root.is_dir():
        return {path.stem for path in root.glob("*.npy")}
    try:
        with zipfile.ZipFile(root) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except zipfile.BadZipFile:
        raise DataError(f"{root} is not an .npz archive; write it with numpy.savez(images=…, labels=…)") from None


def _read_array(root: Path, key: str) -> npt.NDArray[Any]:
    path = _array_file(root, key)
    try:
        if root.is_dir():
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive[key])
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{key} of {root} cannot be read ({error}); save it as a plain array with numpy.save") from None


def _read_pixels(root: Path, key: str) -> Pixels:
    pixels = _read_array(root, key)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
        raise DataError(
            f"{key} of {root} is {pixels.dtype} {pixels.shape}; it must be uint8 (N, H, W) or (N, H, W, 1 or 3): "
            "numpy.rint(255 * x).astype('uint8') for floats in [0, 1], x.transpose(0, 2, 3, 1) for channels first"
        )
    return pixels
