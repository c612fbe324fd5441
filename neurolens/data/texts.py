"""A set of texts: read once, tokenised once per tokenizer and length, each with an id that is a hash of the text."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from neurolens.data.samples import SampleSet
from neurolens.errors import DataError
from neurolens.fingerprints import sample_fingerprint

if TYPE_CHECKING:
    from neurolens.tokens import Ids, Tokenizer

_CHUNK = 65_536  # texts hashed at once: bounds the memory of a column that is read where it lies


class Texts:
    """Texts by position, in the place that images have in a SampleSet; a network that wants images is refused them.

    Parameters
    ----------
    column
        The texts of a whole source: a list, or a pyarrow column that is read where it lies.
    rows : positions in it; all by default
    """

    shape: tuple[int, int, int] | None = None
    names: tuple[str, ...] | None = None

    def __init__(self, column: Any, rows: npt.ArrayLike | None = None) -> None:
        self._column = column
        self._rows = np.arange(len(column)) if rows is None else np.asarray(rows, dtype=np.int64)
        self._tokens: dict[tuple[str, int], list[Ids]] = {}  # of the whole column; shared by what is taken from it
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return Texts, (self.strings(),)

    def strings(self, indices: npt.ArrayLike | None = None) -> list[str]:
        """Return the texts at these positions; all by default."""
        rows = self._rows if indices is None else self._rows[np.asarray(indices, dtype=np.int64)]
        if isinstance(self._column, list):
            return [self._column[row] for row in rows]
        texts: list[str] = self._column.take(rows).to_pylist()
        return texts

    def load(self, indices: npt.ArrayLike) -> NoReturn:
        """Refuse: texts are no images."""
        raise DataError(
            "these samples are texts, and images were needed; measure texts with [units] or [activations], or name "
            "images in [data]"
        )

    def digests(self) -> list[str]:
        """Return the content digest of every text: 16 hex digits of the hash of its UTF-8 bytes."""
        found = []
        for start in range(0, len(self), _CHUNK):
            texts = self.strings(np.arange(start, min(start + _CHUNK, len(self))))
            found += [blake2b(t.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest() for t in texts]
        return found

    def take(self, indices: npt.ArrayLike) -> "Texts":
        """Return the texts at these positions, in this order; tokens that are known are known there too."""
        taken = Texts(self._column, self._rows[np.asarray(indices, dtype=np.int64)])
        taken._tokens, taken._lock = self._tokens, self._lock
        return taken

    def held(self) -> "Texts":
        """Return these texts alone, in memory, so that no others are tokenised with them."""
        return Texts(self.strings())

    def tokens(self, tokenizer: "Tokenizer", max_length: int) -> "list[Ids]":
        """Return the tokens of every text, int32, special ones included; tokenised at the first call."""
        key = (tokenizer.digest, max_length)
        with self._lock:
            if key not in self._tokens:
                self._tokens[key] = tokenizer.encode(Texts(self._column).strings(), max_length=max_length)
        known = self._tokens[key]
        return [known[row] for row in self._rows]

    def longest(self, tokenizer: "Tokenizer", max_length: int) -> int:
        """Return how many tokens the longest text of the whole source has; tokenised at the first call."""
        self.tokens(tokenizer, max_length)
        return max(map(len, self._tokens[tokenizer.digest, max_length]), default=0)


@dataclass(frozen=True, eq=False)
class TextSet(SampleSet):
    """Texts in order, with stable ids; a `SampleSet` whose ``images`` are `Texts`.

    Ids are 16 hex digits of a hash of the text, and ``-1``, ``-2``, … for exact duplicates: they depend neither on
    order or subset, nor on the tokenizer. Without a label column, labels are 0 and the one class is ``text``.

    Attributes
    ----------
    coords : (sample,) each
        ``position``, the row or line of the source, blank ones counted; ``path`` where the source is several files;
        ``tokens``, how many tokens the text has for its network, special ones included, once it is `tokenised`.
    max_length : tokens
        What longer texts are cut to.
    tokenizer : str
        The digest of the tokenizer they were counted with; empty if none has been.
    """

    max_length: int = 512
    tokenizer: str = ""

    @property
    def texts(self) -> list[str]:
        """The texts."""
        return self._source.strings()

    @property
    def _source(self) -> Texts:
        assert isinstance(self.images, Texts)
        return self.images

    @property
    def reading(self) -> dict[str, Any]:
        """What decides the tokens besides the text; part of the key of every measurement of texts."""
        return {"max_length": self.max_length, "tokenizer": self.tokenizer}

    @property
    def fingerprint(self) -> str:
        """The sha256 of ids, labels, tokenizer and max_length."""
        reading = f"tokens {self.max_length} {self.tokenizer}"
        return sample_fingerprint([*self.ids.tolist(), reading], self.labels)

    def tokens(self, tokenizer: "Tokenizer") -> "list[Ids]":
        """Return the tokens of every text, int32, tokenised once per tokenizer."""
        return self._source.tokens(tokenizer, self.max_length)

    def longest(self, tokenizer: "Tokenizer") -> int:
        """Return how many tokens the longest text has, of the set that these texts were taken from by `subset`.

        So what has a place for each token has as many for every block of a set.
        """
        return self._source.longest(tokenizer, self.max_length)


def tokenised(samples: TextSet, tokenizer: "Tokenizer") -> TextSet:
    """Return the texts with their number of tokens as a coordinate, and with what they were read by in the name.

    Raises
    ------
    DataError
        If a text has no tokens, or none but padding and begin and end marks; it names the first such texts.
    """
    tokens = samples.tokens(tokenizer)
    silent = np.array(sorted(tokenizer.silent), dtype=np.int32)
    empty = [i for i, ids in enumerate(tokens) if np.isin(ids, silent).all()]
    if empty:
        raise DataError(
            f"{len(empty)} of the {len(samples)} texts have no token for the network, only padding or nothing, with "
            f"the tokenizer of {tokenizer.name!r}: {_named(samples, empty)}; remove them, or choose others with "
            "data.select"
        )
    counts = np.array([len(ids) for ids in tokens], dtype=np.int64)
    name = (
        f"{samples.name}: {len(samples)} texts, {counts.sum()} tokens of at most {samples.max_length} a text, "
        f"tokenizer {tokenizer.digest[:12]}"
    )
    coords = {**samples.coords, "tokens": counts}
    return replace(samples, name=name, coords=coords, tokenizer=tokenizer.digest)


def _named(samples: TextSet, at: Sequence[int], shown: int = 3) -> str:
    texts = samples._source.strings(at[:shown])
    where = samples.coords["position"]
    named = [f"{text[:40]!r} (position {where[i]})" for i, text in zip(at, texts)]
    return ", ".join(named) + (f" and {len(at) - shown} more" if len(at) > shown else "")
