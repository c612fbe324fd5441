"""What the rows of codes are asked of: pairs, and the phrases of each checkpoint that they are told in."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from neurolens.errors import StoreError

if TYPE_CHECKING:
    from neurolens.data import SampleSet
    from neurolens.store import Axis

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class AskedPhrases:
    """The pairs that are told, and the phrases that they are told in, in the order that the index counts in.

    Both are the same at all checkpoints.

    ``digests`` are those of the embeddings, by position in the series; ``read`` gives these (phrase, feature), as they
    were when they were asked for. ``note`` says what is waited for.
    """

    pairs: "SampleSet"
    phrases: tuple[str, ...]
    digests: Mapping[int, str]
    read: Callable[[int], Array]
    note: str = ""
    _held: dict[int, Array] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def settings(self) -> dict[str, str]:
        """What the index means: a digest of the phrases in their order."""
        return {"dictionary": hashlib.sha256("\n".join(self.phrases).encode()).hexdigest()}

    def axes(self) -> dict[str, "Axis"]:
        """Return the axis of the phrases."""
        from neurolens.store import Axis

        return {"phrase": Axis(np.array(self.phrases, dtype=np.dtypes.StringDType()))}

    def given(self, position: int, digest: str) -> dict[str, Any]:
        """Return what the row of a position is measured with. Those of one position are held for its other blocks.

        Raises
        ------
        StoreError
            If the embeddings are other ones than those that the row was planned with.
        """
        if self.digests.get(position) != digest:
            raise StoreError(
                f"the embeddings of {position} are others than when the row was planned: texts were run meanwhile; run "
                "again"
            )
        with self._lock:
            if position not in self._held:
                found = self.read(position)
                self._held.clear()
                self._held[position] = found
            return {"phrases": self._held[position]}


def digest_of(embeddings: Array) -> str:
    """Return the sha256, in hex, of embeddings (phrase, feature): their shape and numbers."""
    hashed = hashlib.sha256(repr((embeddings.shape, embeddings.dtype.str)).encode())
    hashed.update(np.ascontiguousarray(embeddings).data)
    return hashed.hexdigest()
