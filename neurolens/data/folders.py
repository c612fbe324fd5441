"""Images that are files: class folders, and the Places365 layout."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from neurolens.data.arrays import Found
from neurolens.data.digests import remembered_digests
from neurolens.data.samples import Pixels, digest
from neurolens.errors import DataError, nearest
from neurolens.study import Data

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
_PLACES = {
    "train": ("train-standard", "places365_train_standard.txt", ("data_256_standard", "data_large_standard")),
    "challenge": ("train-challenge", "places365_train_challenge.txt", ("data_256_challenge", "data_large_challenge")),
    "val": ("val", "places365_val.txt", ("val_256", "val_large")),
}
_UNDECODABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_PLACES_ALIASES = {"train-standard": "train", "train-challenge": "challenge"}


class FileImages:
    """Image files below a root, decoded when asked for: grey files as one channel, all others as RGB."""

    shape: tuple[int, int, int] | None = None

    def __init__(self, root: Path, names: tuple[str, ...]) -> None:
        self.root = root
        self._names = names

    @property
    def names(self) -> tuple[str, ...]:
        """Paths relative to the root, with forward slashes."""
        return self._names

    def __len__(self) -> int:
        return len(self._names)

    def load(self, indices: npt.ArrayLike) -> list[Pixels]:
        """Return the images, each uint8 (H, W, 1 or 3)."""
        return [decode(self.root / self._names[i]) for i in np.asarray(indices, dtype=np.int64)]

    def digests(self) -> list[str]:
        """Return the content digest of every image; remembered by path, size, times and inode."""
        return remembered_digests([self.root / name for name in self._names], _content)

    def take(self, indices: npt.ArrayLike) -> "FileImages":
        """Return the source restricted to these positions, in this order."""
        return FileImages(self.root, tuple(self._names[i] for i in np.asarray(indices, dtype=np.int64)))


def decode(path: Path) -> Pixels:
    """Decode one image file to uint8 (H, W, 1 or 3), with the pixels of torchvision's loader, ``convert("RGB")``.

    CMYK and palettes become RGB, alpha is dropped, and an orientation in EXIF is not followed, all as there. Grey stays
    one channel, which `batches` repeats where the network takes three.

    Raises
    ------
    DataError
        If it is broken or no image; or grey of more than 8 bits, which ``convert`` would clip to white.
    """
    try:
        with Image.open(path) as image:
            mode, grey = image.mode, image.mode in ("1", "L")
            if mode == "P":
                image.info.pop("transparency", None)  # Pillow would warn of it, and give the same pixels
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except _UNDECODABLE as error:
        raise DataError(f"{path} cannot be decoded ({error}); repair or remove the file") from None
    if mode[0] in "IF":
        raise DataError(
            f"{path} has more than 8 bits per value (Pillow's mode {mode!r}), which torchvision's loader clips; "
            "save it with 8 bits: numpy.uint8(pixels // 256) for grey of 16"
        )
    return pixels[..., None] if grey else pixels


def _content(path: Path) -> str:
    return digest(decode(path))


def natural(text: str) -> tuple[tuple[int, str], ...]:
    """Sort key in which ``2`` comes before ``10``."""
    return tuple((int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"(\d+)", text))


def folder(table: Data) -> Found:
    """Open ``root/<split>/<class>/<image>``, or ``root/<class>/<image>`` where the split is ``all``.

    Classes are in the order of their names as text, as torchvision's ImageFolder numbers them, so that labels mean
    what they meant in training; images of a class are in natural order (``2.png`` before ``10.png``).

    Raises
    ------
    DataError
        If the root, the split, or any class folder is absent, or a class has no image.
    """
    root = root_of(table)
    base = split_of(table, root)
    classes = tuple(sorted(path.name for path in base.iterdir() if path.is_dir() and not path.name.startswith(".")))
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(images_below(base / name, root), key=natural)
        names += files
        labels += [label] * len(files)
    if not names:
        raise DataError(f"{base} holds no class folder; images lie in {base}/<class>/<image>")
    return files_found(root, names, labels, classes)


def root_of(table: Data) -> Path:
    """Return the root of a data set; DataError if it is not a folder."""
    if table.root is None or not table.root.is_dir():
        raise DataError(f"[data] root = {table.root} is not a folder; give the folder of the {table.source} data set")
    return table.root


def split_of(table: Data, root: Path) -> Path:
    """Return the folder of a split: the root itself for ``all``; DataError if it is not there."""
    base = root if table.split == "all" else root / table.split
    if not base.is_dir():
        found = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise DataError(
            f"{root} has no split {table.split!r}; {nearest(table.split, found)} "
            "(set [data] split = 'all' where the classes or images lie in the root itself)"
        )
    return base


def images_below(top: Path, root: Path) -> list[str]:
    """Return the images in a folder and its folders, as paths below the root, in no order; DataError if it has none."""
    files = [
        Path(where, file).relative_to(root).as_posix()
        for where, _, inside in os.walk(top, followlinks=True)
        for file in inside
        if file.lower().endswith(SUFFIXES)
    ]
    if not files:
        raise DataError(f"{top} holds no image ({' '.join(SUFFIXES)}); put some there, or remove the folder")
    return files


def files_found(root: Path, names: list[str], labels: list[int], classes: tuple[str, ...]) -> Found:
    """Return image files below a root, with their labels, as what a source finds."""
    coords: dict[str, npt.NDArray[Any]] = {"position": np.arange(len(names)), "path": np.array(names, dtype=np.str_)}
    return Found(FileImages(root, tuple(names)), np.asarray(labels, dtype=np.int64), classes, coords)


def places365(table: Data) -> Found:
    """Open Places365 as torchvision lays it out: label lists and categories in ``root``, images below it.

    Splits are ``train`` (= ``train-standard``), ``challenge`` (= ``train-challenge``) and ``val``; the small (256)
    images are used where they are there, else the large ones.

    Raises
    ------
    DataError
        If a list or the image folder is absent, a line is malformed, or the split is unknown.
    """
    split = _PLACES_ALIASES.get(table.split, table.split)
    if split not in _PLACES:
        raise DataError(f"places365 has no split {table.split!r}; {nearest(table.split, _PLACES)}")
    root = root_of(table)
    official, listing, folders = _PLACES[split]
    if table.download and not (root / listing).exists():
        from torchvision import datasets

        datasets.Places365(str(root), split=official, small=True, download=True)
    categories = dict(_lines(root / "categories_places365.txt"))
    if sorted(categories.values()) != list(range(len(categories))):
        raise DataError(f"{root}/categories_places365.txt must number its classes 0, 1, 2, …")
    classes = tuple(sorted(categories, key=lambda name: categories[name]))
    images = next((name for name in folders if (root / name).is_dir()), None)
    if images is None:
        raise DataError(f"{root} has neither {' nor '.join(folders)}; unpack the {official} images there")
    pairs = list(_lines(root / listing))
    wrong = next(((n, label) for n, label in pairs if not 0 <= label < len(classes)), None)
    if wrong:
        raise DataError(f"{root / listing} gives {wrong[0]} the label {wrong[1]}; there are {len(classes)} classes")
    names = [f"{images}/{name.lstrip('/')}" for name, _ in pairs]
    return files_found(root, names, [label for _, label in pairs], classes)


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise DataError(f"{path} is not there; unpack the Places365 filelists into that folder") from None
    for number, line in enumerate(text.splitlines(), 1):
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdigit():
            raise DataError(f"{path}, line {number}: {line!r} is not '<name> <label>'")
        yield name, int(label)
