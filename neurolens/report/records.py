"""What the page shows first: key figures, and small tables of them."""

from dataclasses import dataclass


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
