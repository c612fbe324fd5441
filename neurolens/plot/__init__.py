"""Pictures: a Dataset, or what was reduced from one, in; matplotlib Axes out. Nothing here reads or writes files."""

from neurolens.plot.distributions import (
    binned_curves,
    csl_against_learning_time,
    csl_histogram,
    learning_time_histogram,
)
from neurolens.plot.images import gallery, hardest
from neurolens.plot.pictures import Picture, Scores, pictures, scores
from neurolens.plot.series import training_curves, trajectories

__all__ = [
    "Picture",
    "Scores",
    "binned_curves",
    "csl_against_learning_time",
    "csl_histogram",
    "gallery",
    "hardest",
    "learning_time_histogram",
    "pictures",
    "scores",
    "training_curves",
    "trajectories",
]
