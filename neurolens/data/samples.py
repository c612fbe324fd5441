"""A set of samples: what a network is shown, each with an id that is a hash of its content."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from neurolens.data.exposure import ClassSchedule
from neurolens.fingerprints import sample_fingerprint

Indices = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


class ImageSource(Protocol):
    """Decoded images by position. Held by a SampleSet; pickles as a recipe, not as pixels, where it can be re-read."""

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels where all images share them and they are known without decoding."""
        ...

    @property
    def names(self) -> tuple[str, ...] | None:
        """Relative paths where the images are files."""
        ...

    def __len__(self) -> int: ...

    def load(self, indices: npt.ArrayLike) -> Pixels | list[Pixels]:
        """Return the images as uint8, (n, H, W, C), or a list of (H, W, C) where sizes may differ."""
        ...

    def digests(self) -> list[str]:
        """Return the content digest of every image."""
        ...

    def take(self, indices: npt.ArrayLike) -> "ImageSource":
        """Return the source restricted to these positions, in this order."""
        ...


@dataclass(frozen=True, eq=False)
class SampleSet:
    """Samples in order, with stable ids.

    Attributes
    ----------
    ids : (sample,) str
        Content-based and unique: 16 hex digits of a hash of the decoded pixels and their shape, and ``-1``, ``-2``, …
        for exact duplicates. Independent of order, label and subset (see :func:`sample_ids` for duplicates).
    labels : (sample,) int64
        The class the loss is taken at; after label noise.
    classes : (class,) names
        The name of each class; the label is an index into it.
    images : ImageSource
        ``images.load(positions)`` gives uint8 (n, H, W, C).
    coords : (sample,) each
        ``position`` in the data set's split; ``path`` where images are files; ``split`` where several are joined;
        ``true_label`` and ``is_mislabelled`` with label noise.
    exposure : ClassSchedule or None
        Which classes a class-incremental run trains on at which epoch.
    resident_gib : GiB
        Up to this size, the images are kept in memory as uint8.
    """

    ids: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    images: ImageSource
    name: str = "data"
    coords: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    exposure: ClassSchedule | None = None
    resident_gib: float = 4.0

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, indices: npt.ArrayLike) -> "SampleSet":
        """Return the samples at these positions, in this order, with the ids they have here."""
        at = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            ids=self.ids[at],
            labels=self.labels[at],
            images=self.images.take(at),
            coords={name: values[at] for name, values in self.coords.items()},
        )

    @property
    def reading(self) -> dict[str, Any]:
        """What decides the network's input besides the samples and the network; nothing for images."""
        return {}

    @property
    def fingerprint(self) -> str:
        """The sha256 of ids and labels, in order."""
        return sample_fingerprint(self.ids, self.labels)


def digest(image: Pixels) -> str:
    """Return 16 hex digits of the hash of a decoded image: its shape, then its pixels."""
    shape = "x".join(map(str, image.shape))
    return blake2b(np.ascontiguousarray(image).data, digest_size=8, salt=shape.encode()[:16]).hexdigest()


def sample_ids(digests: Iterable[str]) -> npt.NDArray[np.str_]:
    """Return unique ids: the digest, and an occurrence number from the second exact duplicate on.

    Occurrences are numbered in the order given, so which of two identical images is ``-1`` depends on it (nothing
    else could tell them apart).
    """
    seen: dict[str, int] = {}
    ids = []
    for value in digests:
        count = seen.get(value, 0)
        seen[value] = count + 1
        ids.append(f"{value}-{count}" if count else value)
    return np.array(ids, dtype=np.str_)


def in_threads(function: Any, items: Sequence[Any], *, threads: int) -> list[Any]:
    """Map in threads, in order; decoding and hashing release the interpreter lock."""
    if threads <= 1 or len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        return list(pool.map(function, items))
