"""Pictures: a Dataset, or what was reduced from one, in; matplotlib Axes out. Nothing here reads or writes files."""

from neurolens.plot.distributions import (
    binned_curves,
    csl_against_learning_time,
    csl_histogram,
    learning_time_histogram,
)
from neurolens.plot.images import gallery, hardest
from neurolens.plot.picture import Picture
from neurolens.plot.pictures import Scores, pictures, scores
from neurolens.plot.run_pictures import RunPictures, run_pictures
from neurolens.plot.series import training_curves, trajectories
from neurolens.plot.units import dormancy_curves, dormancy_evolution, dormancy_heatmap
from neurolens.plot.units_changes import threshold_curves, transition_ribbons
from neurolens.plot.units_pictures import (
    UnitCounts,
    drawable_spectra,
    log_pictures,
    spectra_pictures,
    unit_counts,
    unit_pictures,
)
from neurolens.plot.units_spectra import rank_curves, singular_values

__all__ = [
    "Picture",
    "RunPictures",
    "Scores",
    "UnitCounts",
    "binned_curves",
    "csl_against_learning_time",
    "csl_histogram",
    "dormancy_curves",
    "dormancy_evolution",
    "dormancy_heatmap",
    "drawable_spectra",
    "gallery",
    "hardest",
    "learning_time_histogram",
    "log_pictures",
    "pictures",
    "rank_curves",
    "run_pictures",
    "scores",
    "singular_values",
    "spectra_pictures",
    "threshold_curves",
    "training_curves",
    "trajectories",
    "transition_ribbons",
    "unit_counts",
    "unit_pictures",
]
