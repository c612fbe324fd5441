"""CIFAR-10 and CIFAR-100 in the published on-disk format (pickled batches), as torchvision leaves it."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neurolens.data.arrays import ArrayImages, Found, Recipe
from neurolens.data.samples import Pixels
from neurolens.errors import DataError, nearest
from neurolens.study import Data

# folder, files of each split, file and key of the class names, key of the labels
_LAYOUT: dict[str, tuple[str, dict[str, tuple[str, ...]], str, str, str]] = {
    "cifar10": (
        "cifar-10-batches-py",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        "batches.meta",
        "label_names",
        "labels",
    ),
    "cifar100": (
        "cifar-100-python",
        {"train": ("train",), "test": ("test",)},
        "meta",
        "fine_label_names",
        "fine_labels",
    ),
}


def cifar(table: Data) -> Found:
    """Open CIFAR-10 or CIFAR-100: ``root`` holds ``cifar-10-batches-py`` or ``cifar-100-python``, or is that folder.

    Splits are ``train``, ``test`` and ``all``. Downloaded through torchvision where the study says ``download``. The
    pickles are read without running code: only numpy arrays and plain containers are rebuilt.

    Raises
    ------
    DataError
        If the folder or a batch is absent, truncated or foreign, or the split is unknown.
    """
    name, files_of, meta, names_key, label_key = _LAYOUT[table.source]
    splits = (*files_of, "all")
    if table.split not in splits:
        raise DataError(f"{table.source} has no split {table.split!r}; {nearest(table.split, splits)}")
    folder = _folder(table, name, meta)
    parts = ("train", "test") if table.split == "all" else (table.split,)
    files = tuple(folder / file for part in parts for file in files_of[part])
    absent = [file.name for file in (*files, folder / meta) if not file.exists()]
    if absent:
        raise DataError(f"{folder} lacks {', '.join(absent)}; unpack the archive again, or set [data] download = true")
    batches = [_unpickle(file) for file in files]
    lists = [_entry(batch, label_key, file) for batch, file in zip(batches, files)]
    labels = np.concatenate([np.asarray(each, dtype=np.int64) for each in lists])
    names = _entry(_unpickle(folder / meta), names_key, folder / meta)
    classes = tuple(each.decode() if isinstance(each, bytes) else str(each) for each in names)
    recipe = Recipe.of(_read_pixels, files, files=files)
    pixels = recipe.hold(_pixels(batches, files))
    images = ArrayImages(recipe)
    if len(pixels) != len(labels) or (len(labels) and not 0 <= labels.min() <= labels.max() < len(classes)):
        raise DataError(f"{folder} pairs {len(images)} images with {len(labels)} labels of {len(classes)} classes")
    coords: dict[str, npt.NDArray[Any]] = {"position": np.arange(len(labels))}
    if table.split == "all":
        train = sum(len(each) for each in lists[: len(files_of["train"])])
        coords["split"] = np.where(np.arange(len(labels)) < train, "train", "test")
        coords["position"] = np.where(coords["split"] == "train", coords["position"], coords["position"] - train)
    return Found(images, labels, classes, coords)


def _folder(table: Data, name: str, meta: str) -> Path:
    root = table.root
    if root is None:
        raise DataError(f"[data] source = {table.source!r} needs a root: the folder that holds {name}/")
    if (root / meta).exists():
        return root
    if not (root / name).is_dir():
        if not table.download:
            raise DataError(
                f"{root} holds no {name}/; put the unpacked python version there, or set [data] download = true"
            )
        from torchvision import datasets

        dataset = datasets.CIFAR10 if table.source == "cifar10" else datasets.CIFAR100
        dataset(str(root), train=True, download=True)
    return root / name


def _read_pixels(files: tuple[Path, ...]) -> Pixels:
    return _pixels([_unpickle(file) for file in files], files)


def _pixels(batches: list[dict[Any, Any]], files: tuple[Path, ...]) -> Pixels:
    planes = [np.asarray(_entry(batch, "data", file)) for batch, file in zip(batches, files)]
    for data, file in zip(planes, files):
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * 32 * 32:
            raise DataError(f"data of {file} is {data.dtype} {data.shape}; it must be uint8 (N, 3072)")
    pixels = np.empty((sum(map(len, planes)), 32, 32, 3), dtype=np.uint8)
    for channel in range(3):  # four times faster than one transposing copy
        first = 0
        for data in planes:
            pixels[first : first + len(data), ..., channel] = data.reshape(-1, 3, 32, 32)[:, channel]
            first += len(data)
    return pixels


def _entry(batch: dict[Any, Any], key: str, file: Path) -> Any:
    for name in (key, key.encode()):
        if name in batch:
            return batch[name]
    raise DataError(
        f"{file} has no {key!r}; found {', '.join(map(str, batch)) or 'nothing'}: is it the right data set?"
    )


class _DataOnly(pickle.Unpickler):
    """Rebuilds numpy arrays; refuses every other global."""

    def find_class(self, module: str, name: str) -> Any:
        multiarray = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if module in multiarray and name in {"_reconstruct", "scalar", "_frombuffer"}:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it wants {module}.{name}")


def _unpickle(file: Path) -> dict[Any, Any]:
    try:
        with file.open("rb") as stream:
            batch = _DataOnly(stream, encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is not a CIFAR batch ({error}); unpack the archive again") from None
    if not isinstance(batch, dict):
        raise DataError(f"{file} holds a {type(batch).__name__}, not a CIFAR batch; unpack the archive again")
    return batch
