"""A small study of codes on untrained networks of CLIP's kind: 64 pairs, told in ten words."""

from pathlib import Path

import pairs_study

WORDS = ("zero", "one", "two", "three", "four", "even", "odd", "small", "prime", "curved")
TEXT = pairs_study.TEXT.partition("[pools]")[0] + (
    """[texts]
block = 4
[texts.sets.classes]
known = "classes"
[texts.sets.words]
phrases = ["zero", "one", "two", "three", "four", "even", "odd", "small", "prime", "curved"]
[pools]
ranks = 3
[codes]
atoms = 3
block = 24
"""
)


def write_study(home: Path, *, checkpoints: int = 2, text: str = TEXT) -> Path:
    """Write the study with its data and checkpoints."""
    return pairs_study.write_study(home, checkpoints=checkpoints, text=text)


def words(*phrases: str) -> str:
    """The setting of other words."""
    return f"texts.sets.words={{phrases={list(phrases)}}}"
