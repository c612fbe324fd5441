"""ImageNet (ILSVRC2012) as it lies on disk, in class folders or the flat validation folder. Nothing is moved."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from neurolens.data.arrays import Found
from neurolens.data.folders import SUFFIXES, files_found, images_below, root_of, split_of
from neurolens.data.imagenet_lists import CLASSES, WNID, class_names, ground_truth, ilsvrc_wnids
from neurolens.errors import DataError, nearest
from neurolens.study import Data

GROUND_TRUTH = ("ILSVRC2012_validation_ground_truth.txt",)
WNIDS = ("imagenet_classes.txt", "wnids.txt", "meta.mat")
CLASS_INDEX = ("imagenet_class_index.json", "class_index.json", "LOC_synset_mapping.txt", "synset_words.txt")

_DEVKITS = ("ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t3", "devkit")
_FLAT = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)
_FEW = 3


def imagenet(table: Data) -> Found:
    """Open ``root/<split>``, or the root itself where the split is ``all``: class folders, or a flat validation folder.

    **Class folders** are named by wnids (``n01440764``). **The flat folder** holds ``ILSVRC2012_val_00000001.JPEG``, …;
    line k of the ground truth is the ILSVRC id (1 to 1000) of image k, and line i of the list of wnids is the class of
    id i. Either way a label is the rank of the class's wnid among all, torchvision's index; and the samples are in the
    order in which torchvision's ImageFolder has class folders: by wnid, then by file name as text. The flat folder thus
    gives the same samples, in the same order, as its images sorted into class folders.

    The names of the classes come from a class list, where there is one. It must then name all the class folders that
    are there, and they must all be there: were one missing, the labels behind it would mean other classes.

    The lists are those of ``[data.imagenet]``; one that is not given is looked for by its usual names in the split, the
    root, the folder that holds the root, and the devkit in each.

    Raises
    ------
    DataError
        If there is no image, a list is missing or malformed, the ground truth has not one line for each image, or the
        class folders are not those of the class list.
    """
    root = root_of(table)
    base = split_of(table, root)
    with os.scandir(base) as entries:
        inside = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    folders = [name for name, is_folder in inside if is_folder]
    wnids = [name for name in folders if WNID.fullmatch(name)]
    pictures = [name for name, is_folder in inside if not is_folder and name.lower().endswith(SUFFIXES)]
    if wnids and pictures:
        raise DataError(
            f"{base} holds both class folders ({_few(wnids)}) and images beside them ({_few(pictures)}); a move was "
            "interrupted: keep all images in class folders, or all of them flat"
        )
    if not wnids and not pictures:
        hint = f"; its folders are {_few(folders)}: set [data] split, or source = 'folder'" if folders else ""
        raise DataError(f"{base} holds neither class folders such as n01440764 nor images of ILSVRC2012_val{hint}")
    return _flat(table, root, base, pictures) if pictures else _class_folders(table, root, base, folders)


def _class_folders(table: Data, root: Path, base: Path, folders: Sequence[str]) -> Found:
    classes = [name for name in folders if name not in _DEVKITS]
    odd = next((name for name in classes if not WNID.fullmatch(name)), None)
    if odd is not None:
        raise DataError(
            f"{base} has a folder {odd!r} among its class folders, which are named by wnids (n01440764); move it "
            "elsewhere, or set source = 'folder' for classes of other names"
        )
    named = _class_names(table, root, base)
    if named is not None:
        path, names = named
        missing, extra = sorted(names.keys() - set(classes)), sorted(set(classes) - names.keys())
        if missing:
            shown = ", ".join(f"{wnid} ({names[wnid]})" for wnid in missing[:_FEW])
            more = f" and {len(missing) - _FEW} more" if len(missing) > _FEW else ""
            raise DataError(
                f"{base} has {len(names) - len(missing)} of the {len(names)} class folders that {path} names; missing: "
                f"{shown}{more}. Put them there, or the labels behind would mean other classes; for a part of ImageNet "
                "give the list of its classes: data.imagenet.class_index"
            )
        if extra:
            raise DataError(
                f"{base} has a class folder {extra[0]}, which {path} does not name; {nearest(extra[0], names)} "
                "Remove it, or give a list that names it: data.imagenet.class_index"
            )
    files: list[str] = []
    labels: list[int] = []
    for label, wnid in enumerate(classes):
        inside = sorted(images_below(base / wnid, root), key=os.path.split)
        files += inside
        labels += [label] * len(inside)
    return files_found(root, files, labels, tuple(classes if named is None else named[1].values()))


def _flat(table: Data, root: Path, base: Path, pictures: Sequence[str]) -> Found:
    numbers: dict[int, str] = {}
    for name in pictures:
        match = _FLAT.fullmatch(name)
        if match is None:
            raise DataError(
                f"{base} has an image {name!r}, and those of the flat validation folder are named "
                "ILSVRC2012_val_00000001.JPEG; move it elsewhere, or set source = 'folder' for other images"
            )
        other = numbers.setdefault(int(match[1]), name)
        if other != name:
            raise DataError(f"{base} has image {int(match[1])} twice, {other!r} and {name!r}; remove one")
    places = _places(root, base)
    truth = _listed(places, table.imagenet.ground_truth, GROUND_TRUTH, "ground_truth", "the ILSVRC ids of the images")
    ids = ground_truth(truth)
    absent = next((k for k in range(1, len(ids) + 1) if k not in numbers), None)
    if len(ids) != len(numbers) or absent is not None:
        if absent is not None:
            which = f"ILSVRC2012_val_{absent:08d}.JPEG is not there: unpack the images again"
        else:
            which = f"{numbers[min(k for k in numbers if not 1 <= k <= len(ids))]!r} has no line: restore the file"
        raise DataError(f"{truth} has {len(ids)} lines and {base} {len(numbers)} images; {which}")
    listing = _listed(places, table.imagenet.wnids, WNIDS, "wnids", f"the wnids of the ILSVRC ids 1 to {CLASSES}")
    wnids = ilsvrc_wnids(listing)
    ranks = {wnid: rank for rank, wnid in enumerate(sorted(wnids))}
    classes = tuple(ranks)
    named = _class_names(table, root, base)
    if named is not None:
        path, names = named
        if differing := sorted(names.keys() ^ ranks.keys()):
            raise DataError(
                f"{path} and {listing} do not name the same classes: {_few(differing)} in one of them only; give the "
                "lists of the same data set, data.imagenet.class_index and wnids"
            )
        classes = tuple(names.values())
    labelled = sorted((ranks[wnids[ids[k - 1] - 1]], name) for k, name in numbers.items())
    files = [(base / name).relative_to(root).as_posix() for _, name in labelled]
    return files_found(root, files, [label for label, _ in labelled], classes)


def _class_names(table: Data, root: Path, base: Path) -> tuple[Path, dict[str, str]] | None:
    """Return the class list and what it says, if there is one."""
    path = _beside(_places(root, base), table.imagenet.class_index, CLASS_INDEX, "class_index")
    return None if path is None else (path, class_names(path))


def _places(root: Path, base: Path) -> list[Path]:
    """Return the folders in which lists are looked for, nearest first."""
    tops = dict.fromkeys((base, root, root.parent))
    return [
        top / inside for top in tops for inside in ("", *(f"{kit}/{sub}" for kit in _DEVKITS for sub in ("data", "")))
    ]


def _listed(places: Sequence[Path], given: Path | None, names: Sequence[str], field: str, what: str) -> Path:
    path = _beside(places, given, names, field)
    if path is None:
        raise DataError(
            f"there is no {' or '.join(names)} beside {places[0]}, and the flat validation folder needs {what}; copy "
            f"it there from the ILSVRC2012 devkit, or set data.imagenet.{field}"
        )
    return path


def _beside(places: Sequence[Path], given: Path | None, names: Sequence[str], field: str) -> Path | None:
    """Return the file that the study gives, else the first of these names in the places."""
    if given is not None:
        if not given.is_file():
            raise DataError(
                f"data.imagenet.{field} = {given} is not a file; correct it, or leave it out to look for one"
            )
        return given
    return next((path for place in places for name in names if (path := place / name).is_file()), None)


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_FEW]) + (", …" if len(names) > _FEW else "")
