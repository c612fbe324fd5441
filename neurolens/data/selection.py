"""Which samples of a split are used, and which of their labels are flipped."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from neurolens.data import draws
from neurolens.data.samples import Indices
from neurolens.errors import DataError, nearest
from neurolens.study import LabelNoise, Selection


def select(
    table: Selection,
    labels: npt.NDArray[np.int64],
    classes: tuple[str, ...],
    *,
    ids: Callable[[], npt.NDArray[np.str_]],
    keys: Callable[[], draws.Keys],
) -> Indices:
    """Return the positions that a selection keeps, in ascending order.

    Classes are applied first, then ids, then count or fraction (rounded to the nearest whole sample, at least one).
    Three rules take n of N positions at equal distances: ``even`` takes floor(i N / n), the first of each of n equal
    parts; ``strided`` takes i floor(N / n), a whole step, which never reaches the last N mod n samples; ``spaced``
    takes ``numpy.linspace(0, N - 1, n)`` rounded down, the first and the last among them. The first two agree where n
    divides N.
    ``random`` takes the samples with the lowest draws of (seed, key), so that the choice does not depend on the order;
    ``stratified`` does so within each class, with class sizes in proportion (largest remainders, and of equal ones the
    lowest draws of (seed, class): a few samples of many classes are not those of the first classes).

    Parameters
    ----------
    labels : (sample,) int64
    ids, keys : called only where needed
        Content ids; and what a sample's draw hangs on (the id, or the relative path where images are files).

    Raises
    ------
    DataError
        If a class or an id is unknown, both count and fraction are given, or more samples are asked for than there are.
    """
    kept = of_classes(table, labels, classes)
    if table.ids is not None:
        kept = kept[np.isin(ids()[kept], _read_ids(table, ids()))]
    if table.count is not None and table.fraction is not None:
        raise DataError("[data.select] has both count and fraction; keep one of them")
    wanted = table.count
    if table.fraction is not None:
        wanted = max(1, round(table.fraction * len(kept)))
    if len(kept) == 0:
        raise DataError(f"[data.select] keeps none of the {len(labels)} samples; widen classes or ids")
    if wanted is None:
        return kept
    if wanted > len(kept):
        raise DataError(
            f"[data.select] count = {wanted}, and only {len(kept)} samples are left to choose from; lower it"
        )
    if table.how == "first":
        return kept[:wanted]
    if table.how == "even":
        return kept[np.arange(wanted) * len(kept) // wanted]
    if table.how == "strided":
        return kept[np.arange(wanted) * (len(kept) // wanted)]
    if table.how == "spaced":
        return kept[np.linspace(0, len(kept) - 1, wanted, dtype=np.int64)]
    score = draws.bits(keys()[kept], "select", table.seed)
    groups = labels[kept] if table.how == "stratified" else np.zeros(len(kept), dtype=np.int64)
    turns = draws.bits(draws.keys(map(str, range(len(classes)))), "select classes", table.seed)
    return kept[_lowest(score, groups, wanted, turns)]


def of_classes(table: Selection, labels: npt.NDArray[np.int64], classes: tuple[str, ...]) -> Indices:
    """Return the positions of the classes that a selection keeps, in ascending order; DataError if one is unknown."""
    if table.classes is None:
        return np.arange(len(labels))
    return np.flatnonzero(np.isin(labels, [_class_index(each, classes) for each in table.classes]))


def flip_labels(
    table: LabelNoise, labels: npt.NDArray[np.int64], keys: draws.Keys, among: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Flip exactly ``round(fraction * N)`` labels, each to a uniformly drawn different class.

    The flipped samples are those with the lowest draws of (seed, key), and the new class is another draw of (seed,
    key): neither depends on the order.

    Parameters
    ----------
    keys : (sample,) uint64, what a sample's draw hangs on
    among : (class,) the classes that labels may be flipped to, ascending

    Returns
    -------
    labels : (sample,) int64, after the flips
    is_mislabelled : (sample,) bool
    """
    count = round(table.fraction * len(labels))
    if count and len(among) < 2:
        raise DataError(f"[data.label_noise] needs two classes to flip between; the selection has {len(among)}")
    flipped = np.zeros(len(labels), dtype=np.bool_)
    flipped[draws.order(keys, "noise", table.seed)[:count]] = True
    step = 1 + np.floor(draws.uniform(keys, "noise class", table.seed) * (len(among) - 1)).astype(np.int64)
    other = among[(np.searchsorted(among, labels) + step) % len(among)]
    return np.where(flipped, other, labels), flipped


def _lowest(score: draws.Keys, groups: npt.NDArray[np.int64], wanted: int, turns: draws.Keys) -> Indices:
    names, sizes = np.unique(groups, return_counts=True)
    exact = sizes * (wanted / len(groups))
    quota = np.floor(exact).astype(np.int64)
    remainders = np.lexsort((turns[names], -(exact - quota)))
    quota[remainders[: wanted - quota.sum()]] += 1
    chosen = []
    for name, size in zip(names, quota):
        members = np.flatnonzero(groups == name)
        chosen.append(members[np.argsort(score[members], kind="stable")[:size]])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _class_index(which: int | str, classes: tuple[str, ...]) -> int:
    if isinstance(which, int):
        if 0 <= which < len(classes):
            return which
        raise DataError(f"[data.select] classes has {which}; the data has classes 0 to {len(classes) - 1}")
    if classes.count(which) > 1:  # ImageNet has two cranes
        named = [i for i, name in enumerate(classes) if name == which]
        raise DataError(f"[data.select] classes has {which!r}, the name of classes {named}; name one by its number")
    if which in classes:
        return classes.index(which)
    raise DataError(f"[data.select] classes has {which!r}, which the data has not; {nearest(which, classes)}")


def _read_ids(table: Selection, known: npt.NDArray[np.str_]) -> list[str]:
    path = table.ids
    if path is None or not path.is_file():
        raise DataError(f"[data.select] ids = {path} is not a file; write one sample id a line")
    wanted = path.read_text().split()
    unknown: Any = sorted(set(wanted) - set(known.tolist()))
    if unknown:
        raise DataError(
            f"{path} names {len(unknown)} ids that the data has not, first {unknown[0]!r}; "
            "ids are hashes of image content: take them from a store's `sample` coordinate"
        )
    return wanted
