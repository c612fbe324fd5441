"""Pairs of a unit and a head in the place of samples: rows of what is said of each pair are kept in blocks of them."""

from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from neurolens.data.samples import SampleSet
from neurolens.errors import DataError


class Unshown:
    """So many things that no network is shown, in the place that images have in a SampleSet."""

    shape: tuple[int, int, int] | None = None
    names: tuple[str, ...] | None = None

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def load(self, indices: npt.ArrayLike) -> NoReturn:
        """Refuse: pairs are no images."""
        raise DataError("these samples are pairs of a unit and a head, and images were needed; name images in [data]")

    def digests(self) -> NoReturn:
        """Refuse: pairs have no content."""
        raise DataError("these samples are pairs of a unit and a head, which have no content; go by their ids")

    def take(self, indices: npt.ArrayLike) -> "Unshown":
        """Return as many as these positions are."""
        return Unshown(len(np.asarray(indices)))


def pair_set(unit: npt.ArrayLike, head: npt.ArrayLike, *, name: str = "pairs") -> SampleSet:
    """Return pairs as samples, with ids such as ``u37/h2`` and coordinates `unit` and `head`.

    Parameters
    ----------
    unit, head : (pair,) int
        Both numbers of each pair.
    name
        Of the set.
    """
    coords: dict[str, npt.NDArray[Any]] = {
        key: np.asarray(values, dtype=np.int64) for key, values in (("unit", unit), ("head", head))
    }
    ids = [f"u{u}/h{h}" for u, h in zip(coords["unit"].tolist(), coords["head"].tolist(), strict=True)]
    return SampleSet(
        ids=np.array(ids, dtype=np.str_),
        labels=np.zeros(len(ids), dtype=np.int64),
        classes=("pair",),
        images=Unshown(len(ids)),
        name=name,
        coords=coords,
    )
