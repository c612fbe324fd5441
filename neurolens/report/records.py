"""What the page shows first: a key figure."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KeyFigure:
    """One number, as it is shown, and what it is."""

    value: str
    name: str
    meaning: str
