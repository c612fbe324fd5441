"""Phrases in the place of samples: sets of them, each with the way in which its phrases are embedded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from neurolens.data.samples import SampleSet, sample_ids
from neurolens.data.texts import Texts
from neurolens.errors import DataError

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Phrases:
    """The phrases of one set, and how they are embedded: by templates, or as they are given, (phrase, feature)."""

    words: Sequence[str]
    templates: tuple[str, ...] = ("{}",)
    embeddings: Array | None = None


@dataclass(frozen=True, eq=False)
class PhraseSamples(SampleSet):
    """Phrases of several sets, in order.

    Ids are the name of the set, a slash, the phrase, an @, and 16 hex digits of a hash of all that its embedding
    depends on besides the network: the phrase and the templates, or the numbers that are given. What goes before the @
    is the phrase's name in an opened store; of a phrase that a set has twice, the second one's ends in ``-1``.

    Attributes
    ----------
    coords : (sample,) each
        ``set`` and ``words``; ``digest``, the hash.
    templates : set → templates
        Of sets that a text tower embeds.
    given : set → (phrase, feature)
        Embeddings of the others, in the order of ``place``.
    place : (sample,) int64
        Place of each phrase in its set.
    """

    templates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    given: Mapping[str, Array] = field(default_factory=dict)
    place: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def subset(self, indices: npt.ArrayLike) -> "PhraseSamples":
        """Return the phrases at these positions, in this order, with the ids that they have here."""
        taken = super().subset(indices)
        assert isinstance(taken, PhraseSamples)
        return replace(taken, place=self.place[np.asarray(indices, dtype=np.int64)])


def phrase_samples(sets: Mapping[str, Phrases]) -> PhraseSamples:
    """Return the phrases of all sets, set by set.

    Raises
    ------
    DataError
        If a set has no phrase, or two phrases of a set would go by one name.
    """
    ids: list[str] = []
    found: dict[str, list[str]] = {"set": [], "words": [], "digest": []}
    for name, phrases in sets.items():
        if not phrases.words:
            raise DataError(f"texts.sets.{name} has no phrase; name at least one")
        plain = sample_ids(f"{name}/{words}" for words in phrases.words).tolist()
        if len(set(plain)) < len(plain):
            twice = next(one for one in plain if plain.count(one) > 1)
            raise DataError(f"texts.sets.{name}: two phrases would go by the name {twice!r}; leave one of them out")
        digests = _digests(phrases)
        ids += [f"{one}@{digest}" for one, digest in zip(plain, digests, strict=True)]
        found["set"] += [name] * len(plain)
        found["words"] += list(phrases.words)
        found["digest"] += digests
    count = len(ids)
    return PhraseSamples(
        ids=np.array(ids, dtype=np.str_),
        labels=np.zeros(count, dtype=np.int64),
        classes=("phrase",),
        images=Texts(found["words"]),
        name=", ".join(f"{name}: {len(phrases.words)} phrases" for name, phrases in sets.items()),
        coords={key: np.array(values, dtype=np.str_) for key, values in found.items()},
        templates={name: phrases.templates for name, phrases in sets.items() if phrases.embeddings is None},
        given={name: phrases.embeddings for name, phrases in sets.items() if phrases.embeddings is not None},
        place=np.concatenate([np.arange(len(phrases.words), dtype=np.int64) for phrases in sets.values()]),
    )


def _digests(phrases: Phrases) -> list[str]:
    """Return a hash of what the embedding of each phrase depends on besides the network: 16 hex digits."""
    if phrases.embeddings is not None:
        rows = np.ascontiguousarray(phrases.embeddings, dtype=np.float32)
        return [
            blake2b(words.encode() + b"\0" + row.tobytes(), digest_size=8).hexdigest()
            for words, row in zip(phrases.words, rows, strict=True)
        ]
    way = blake2b(json.dumps(list(phrases.templates)).encode(), digest_size=32).digest()
    return [blake2b(words.encode() + b"\0", digest_size=8, key=way).hexdigest() for words in phrases.words]
