"""What a picture is: a figure, and the words that go with it."""

from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A drawn figure: a name fit for a file, a title, a caption, and a text for those who cannot see it."""

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure
