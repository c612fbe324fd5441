"""What the page shows first: key figures, and small tables of them; and sections of its own."""

from dataclasses import dataclass

from neurolens.plot import Picture


@dataclass(frozen=True)
class KeyFigure:
    """One number, as it is shown, and what it is."""

    value: str
    name: str
    meaning: str


@dataclass(frozen=True)
class FigureTable:
    """A small table, as it is shown: lines of text under a header, and what they are."""

    title: str
    caption: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Fact:
    """Something to know before numbers are believed: what it is about, and a sentence or two."""

    name: str
    text: str


@dataclass(frozen=True)
class Section:
    """A part of the page about one thing: facts, tables and pictures; ``slug`` is its anchor."""

    title: str
    slug: str
    facts: tuple[Fact, ...]
    tables: tuple[FigureTable, ...]
    pictures: tuple[Picture, ...]
