"""The sets of phrases that a study names: read, without blanks and repeats, with templates or embeddings."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from neurolens.errors import DataError, NonFiniteError
from neurolens.pairs.phrases import (
    PASCAL_CONTEXT,
    checked_templates,
    distinct,
    imagenet_classes,
    openai_templates,
    read_embeddings,
    read_phrases,
    read_templates,
)
from neurolens.study import Data, PhraseSet

if TYPE_CHECKING:
    from neurolens.data.phrase_sets import Phrases

Array = npt.NDArray[Any]

ROUNDING = 1e-3
"""How far a length may be off 1 for an embedding to be taken as it is: float16 is 5e-4 off."""


def study_phrases(name: str, table: PhraseSet, data: Data) -> "Phrases":
    """Read one set of phrases of a study.

    Blanks and tabs around phrases are stripped. What comes twice is refused, dropped or kept, as the table says; of the
    classes of ImageNet and of [data] it is kept by default, so that the phrases count as labels do.

    Parameters
    ----------
    name
        Of the set.
    table
        Its table.
    data
        Whose classes are meant where ``known = "classes"``.

    Returns
    -------
    Phrases
        ``embeddings`` are those of the file, if one is named: of the phrases in the file's order, and divided by their
        length where that is not 1.

    Raises
    ------
    DataError
        If a file is absent, damaged or empty, there is no phrase, one comes twice or is blank, or a file of embeddings
        has another number of rows than there are phrases.
    NonFiniteError
        If an embedding is NaN, infinite or 0.
    """
    from neurolens.data.phrase_sets import Phrases

    where = f"texts.sets.{name}"
    words = _words(where, table, data)
    kept = table.repeated or ("keep" if table.known in ("imagenet", "classes") else "refuse")
    chosen = distinct(words, kept, where, mend='set repeated = "drop", or "keep" where they are names of classes')
    if table.embeddings is None:
        return Phrases(chosen, _templates(where, table.templates))
    found = read_embeddings(table.embeddings).to_numpy()
    if len(found) != len(words):
        turned = "; save it transposed" if found.shape[1] == len(words) else ""
        raise DataError(
            f"{table.embeddings} has {len(found)} rows of {found.shape[1]} features, and {where} has {len(words)} "
            f"phrases; a row per phrase was needed, in their order{turned}"
        )
    if len(chosen) < len(words):
        at = {phrase: place for place, phrase in reversed(list(enumerate(words)))}
        found = found[[at[phrase] for phrase in chosen]]
    return Phrases(chosen, embeddings=_unit(found, chosen, table.embeddings))


def _words(where: str, table: PhraseSet, data: Data) -> list[str]:
    if table.file is not None:
        return read_phrases(table.file, duplicates="keep")
    if table.known == "imagenet":
        return imagenet_classes()
    if table.known == "pascal_context":
        return list(PASCAL_CONTEXT)
    if table.known == "classes":
        from neurolens.data.opening import class_names

        return [str(name).strip() for name in class_names(data)]
    words = [phrase.strip() for phrase in table.phrases]
    if "" in words:
        raise DataError(f"{where}.phrases has a blank phrase, number {words.index('') + 1}; leave it out")
    return words


def _templates(where: str, given: "str | Sequence[str] | Path") -> tuple[str, ...]:
    if isinstance(given, Path):
        return tuple(read_templates(given))
    if isinstance(given, str):
        return ("{}",) if given == "none" else tuple(openai_templates())
    return tuple(checked_templates(list(given), f"{where}.templates"))


def _unit(values: Array, words: Sequence[str], file: Path) -> Array:
    """Return embeddings of length 1 as float32; rows that have it, but for rounding, are as they were."""
    rows = values.astype(np.float32)
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    if (lengths == 0).any():
        word = words[int(np.flatnonzero(lengths[:, 0] == 0)[0])]
        raise NonFiniteError(f"{file}: the embedding of {word!r} is 0; embed the phrases again")
    out: Array = np.where(np.abs(lengths - 1) <= ROUNDING, rows, (rows / lengths).astype(np.float32))
    return out
