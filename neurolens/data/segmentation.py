"""Any segmentation data set: a folder of images, one or more of label pictures, and a file of names."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from neurolens.data.concept_sets import ConceptSet
from neurolens.data.fitting import FittedImages, file_size
from neurolens.data.folders import SUFFIXES, natural
from neurolens.data.planes import LARGEST, LabelFiles
from neurolens.data.tables import rows_of, whole
from neurolens.errors import DataError, nearest

LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
_TOLD = 3


@dataclass(frozen=True)
class Layout:
    """Where a segmentation data set keeps what, below its root.

    Attributes
    ----------
    images
        Folder of the images; folders in it are searched too.
    labels
        Folders of label pictures, one plane of each: the picture of ``images/a/7.jpg`` is ``labels/a/7.png``. A pixel
        is an index into a palette, a grey value of 8 or 16 bits, or R + 256 G. Label 0 is no concept.
    names
        A table with the columns number, name and, where there are several, category; or a text file of one name a
        line, the first of which is label 1.
    category
        The category of names that have none of their own.
    fit
        How images and labels come to one size: the centred part (``crop``), or all of it (``squash``).
    ignored
        Numbers that mean no label, as the border of objects (255) in Pascal VOC.
    unlabelled
        Images without a label picture are an error, or are left out (``drop``).
    """

    images: str = "images"
    labels: tuple[str, ...] = ("labels",)
    names: str = "names.csv"
    category: str = "object"
    fit: Literal["crop", "squash"] = "crop"
    ignored: tuple[int, ...] = ()
    unlabelled: Literal["error", "drop"] = "error"


def segmentation(
    root: Path,
    layout: Layout | None = None,
    *,
    categories: Sequence[str] | None = None,
    size: int | tuple[int, int] | None = None,
    label_size: int | tuple[int, int] | None = None,
) -> ConceptSet:
    """Open a segmentation data set as concepts, and check its names and that every file is there.

    Parameters
    ----------
    root
        The folder that the layout starts from.
    categories
        Which categories of the names; all of them without it. Labels of others are no concepts.
    size : pixel
        Height and width that images are brought to, what the network is shown. Needed where they differ.
    label_size : pixel
        That of the labels, by the nearest pixel; half of ``size`` without it, as in Broden.

    Raises
    ------
    DataError
        If a folder or the file of names is missing or malformed; if a category has no name; if an image has no label
        picture; if images differ in size and ``size`` is not given. Numbers inside the label pictures are checked when
        they are decoded.
    """
    layout = layout or Layout()
    numbers, category_of = _names(root / layout.names, layout.category)
    known = tuple(dict.fromkeys(category_of.values()))
    for name in categories or ():
        if name not in known:
            raise DataError(f"{root / layout.names} has no category {name!r}; {nearest(name, known)}")
    chosen = tuple(name for name in known if categories is None or name in categories)
    labels = [number for number in sorted(numbers) if category_of[number] in chosen]
    if not labels:
        raise DataError(f"no category is chosen; {root / layout.names} has: {', '.join(known)}")
    names, cells = paired_files(root, layout)
    image_size = _pair(size) or _shared_size(root, names)
    others = tuple(number for number in sorted(numbers) if category_of[number] not in chosen)
    return ConceptSet(
        name=f"segmentation:{root.name}",
        images=FittedImages(root, names, image_size, layout.fit),
        image_size=image_size,
        files=LabelFiles(
            root,
            _pair(label_size) or (max(1, image_size[0] // 2), max(1, image_size[1] // 2)),
            layout.fit,
            tuple(sorted({*layout.ignored, *others})),
        ),
        cells=cells,
        labels=np.array(labels, dtype=np.int64),
        concepts=tuple(numbers[number] for number in labels),
        concept_category=tuple(category_of[number] for number in labels),
        categories=chosen,
        numbers=numbers,
        coords={"position": np.arange(len(names)), "path": np.array(names, dtype=np.str_)},
    )


def _names(path: Path, category: str) -> tuple[dict[int, str], dict[int, str]]:
    """Return the name and the category of every number."""
    if path.suffix.lower() == ".csv":
        rows = [
            (line, whole(path, line, row, "number"), row["name"].strip(), row.get("category", "").strip() or category)
            for line, row in rows_of(path, ("number", "name"))
        ]
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (FileNotFoundError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not a text file of names ({error}); write one name a line") from None
        rows = [(line, line, name.strip(), category) for line, name in enumerate(text.splitlines(), 1)]
    names: dict[int, str] = {}
    categories: dict[int, str] = {}
    for line, number, name, of in rows:
        if number == 0:  # no concept, whatever it is called
            continue
        if number > LARGEST or number in names or name in names.values() or not name:
            raise DataError(
                f"{path}, line {line}: {number} {name!r} must have a number up to {LARGEST} and a name that no other "
                "has; mend it"
            )
        names[number], categories[number] = name, of
    if not names:
        raise DataError(f"{path} names no label; write number,name,category a line, or one name a line")
    return names, categories


def paired_files(root: Path, layout: Layout) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return the images in natural order, and the label pictures of each."""
    images = _files(root, layout.images, SUFFIXES)
    planes = [_files(root, folder, LABEL_SUFFIXES) for folder in layout.labels]
    missing = {key: name for key, name in images.items() if not all(key in plane for plane in planes)}
    if missing and layout.unlabelled == "error":
        first = sorted(missing.values(), key=natural)[:_TOLD]
        raise DataError(
            f"{len(missing)} of {len(images)} images have no label picture in {', '.join(layout.labels)} of {root}: "
            f"{', '.join(first)}{', …' if len(missing) > _TOLD else ''}; add them, or leave such images out with "
            "unlabelled = 'drop'"
        )
    kept = sorted((key for key in images if key not in missing), key=natural)
    if not kept:
        raise DataError(f"no image of {root / layout.images} has a label picture in {', '.join(layout.labels)}")
    return tuple(images[key] for key in kept), tuple(tuple(plane[key] for plane in planes) for key in kept)


def _files(root: Path, folder: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Return the files below a folder: path in the folder without its suffix, to path below the root."""
    top = root / folder
    if not top.is_dir():
        inside = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
        raise DataError(f"{root} has no folder {folder!r}; {nearest(folder, inside)}")
    found: dict[str, str] = {}
    for where, _, names in os.walk(top, followlinks=True):
        for name in names:
            if name.lower().endswith(suffixes):
                path = Path(where, name)
                key = path.relative_to(top).with_suffix("").as_posix()
                if key in found:
                    raise DataError(
                        f"{found[key]} and {path.name} in {root} have one name; remove or rename one of them"
                    )
                found[key] = path.relative_to(root).as_posix()
    if not found:
        raise DataError(f"{top} holds no file of {' '.join(suffixes)}; put the pictures there")
    return found


def _shared_size(root: Path, names: tuple[str, ...]) -> tuple[int, int]:
    first = file_size(root / names[0])
    for name in names[1:]:
        size = file_size(root / name)
        if size != first:
            raise DataError(
                f"images of {root} differ in size: {names[0]} is {first[0]} x {first[1]} and {name} {size[0]} x "
                f"{size[1]} (h x w); give the size that the network is shown, as size = 224"
            )
    return first


def _pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size
