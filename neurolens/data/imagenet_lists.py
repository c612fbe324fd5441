"""The lists of ImageNet: ground truth of the validation images, wnids of the ILSVRC ids, names of the classes."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from neurolens.errors import DataError

CLASSES = 1000
"""The classes of ILSVRC2012, which are its ids 1 to 1000; higher ids are synsets above those."""

WNID = re.compile(r"n\d{8}")


def ground_truth(path: Path) -> list[int]:
    """Return the ILSVRC id of each validation image, 1 to 1000, in the order of their numbers.

    Raises
    ------
    DataError
        If a line is not such an id.
    """
    ids = []
    for number, line in _lines(path):
        if not line.isdecimal() or not 1 <= int(line) <= CLASSES:
            raise DataError(
                f"{path}, line {number}: {line!r} is not an ILSVRC id, 1 to {CLASSES}; restore the file from the devkit"
            )
        ids.append(int(line))
    return ids


def ilsvrc_wnids(path: Path) -> list[str]:
    """Return the wnids of the ILSVRC ids 1 to 1000, in the order of the ids.

    Read from lines of one wnid each, those above the thousandth left aside, or from the devkit's ``meta.mat``.

    Raises
    ------
    DataError
        If there are fewer than 1000, one is no wnid or there twice, or they are in the order of their text, which is
        that of torchvision's indices and not of ids: read so, nearly every label would be wrong.
    """
    wnids = _of_devkit(path) if path.suffix == ".mat" else _of_lines(path)
    if len(wnids) < CLASSES:
        raise DataError(
            f"{path} has {len(wnids)} wnids, and there are {CLASSES} ILSVRC ids; restore it, or give another"
        )
    wnids = wnids[:CLASSES]
    if len(set(wnids)) < CLASSES:
        twice = next(wnid for wnid in wnids if wnids.count(wnid) > 1)
        raise DataError(f"{path} has {twice} more than once; line i must be the wnid of ILSVRC id i: restore it")
    if wnids == sorted(wnids):
        raise DataError(
            f"{path} lists wnids in the order of their text, which is that of torchvision's indices; line i must be "
            "the wnid of ILSVRC id i: give the devkit's meta.mat or a list in its order, data.imagenet.wnids"
        )
    return wnids


def class_names(path: Path) -> dict[str, str]:
    """Return the name of each class by its wnid, in the order of wnids, which is that of torchvision's indices.

    Read from ``imagenet_class_index.json``, as ``{"0": ["n01440764", "tench"], …}``, the names as they are; or from
    lines of a wnid and its name, ``n01440764 tench, Tinca tinca``, of which the first of several names is taken.

    Raises
    ------
    DataError
        If it is neither, names a wnid twice, or numbers the classes in another order than that of their wnids.
    """
    pairs = _of_json(path) if path.suffix == ".json" else list(_of_words(path))
    names = dict(sorted(pairs))
    if len(names) < len(pairs) or not names:
        raise DataError(f"{path} has {len(names)} classes in {len(pairs)} entries; it must name each class once")
    return names


def _of_lines(path: Path) -> list[str]:
    wnids = []
    for number, line in _lines(path):
        if number > CLASSES:
            break
        if not WNID.fullmatch(line):
            raise DataError(
                f"{path}, line {number}: {line!r} is not a wnid such as n01440764; line i must be that of ILSVRC id i: "
                "give such a list, or the devkit's meta.mat, as data.imagenet.wnids"
            )
        wnids.append(line)
    return wnids


def _of_devkit(path: Path) -> list[str]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        synsets: Any = loadmat(path, squeeze_me=True, variable_names=["synsets"])["synsets"]
        found = {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    except (MatReadError, NotImplementedError, OSError, ValueError, TypeError, LookupError) as error:
        raise DataError(f"{path} is not the meta.mat of the ILSVRC2012 devkit ({error}); restore it") from None
    wnids = [found[number] for number in range(1, CLASSES + 1) if number in found]
    if odd := next((wnid for wnid in wnids if not WNID.fullmatch(wnid)), None):
        raise DataError(f"{path} has {odd!r} where a wnid such as n01440764 was needed; restore it from the devkit")
    return wnids


def _of_json(path: Path) -> Sequence[tuple[str, str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pairs = [content[str(index)] for index in range(len(content))]
        found = [(str(wnid), str(name)) for wnid, name in pairs]
    except (ValueError, TypeError, LookupError) as error:
        raise DataError(
            f'{path} is not a class index, {{"0": ["n01440764", "tench"], "1": …}} ({type(error).__name__}: {error}); '
            "restore it, or give another: data.imagenet.class_index"
        ) from None
    for index, (wnid, _) in enumerate(found):
        if not WNID.fullmatch(wnid):
            raise DataError(f"{path}: class {index} has {wnid!r} where a wnid such as n01440764 was needed; correct it")
        if index and wnid < found[index - 1][0]:
            raise DataError(
                f"{path} numbers {wnid} {index}, behind {found[index - 1][0]}; torchvision's index is the rank of a "
                "wnid in the order of their text: give a class index that numbers them so"
            )
    return found


def _of_words(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in _lines(path):
        wnid, *rest = line.split(maxsplit=1)
        if not WNID.fullmatch(wnid) or not rest:
            raise DataError(f"{path}, line {number}: {line!r} is not a wnid and a name, 'n01440764 tench'; correct it")
        yield wnid, rest[0].partition(",")[0].strip()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text with their numbers, blank ones at the end left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as text ({error}); restore it") from None
    for number, line in enumerate(text.rstrip().splitlines(), 1):
        yield number, line.strip()
