"""Pictures: a Dataset, or what was reduced from one, in; matplotlib Axes out. Nothing here reads or writes files."""

from neurolens.plot.attribution_effects import (
    class_improvement,
    control_strip,
    effect_forest,
    effects_over_checkpoints,
)
from neurolens.plot.attribution_images import ShownImages, attribution_panels, cluster_overlays
from neurolens.plot.attribution_numbers import AttributionNumbers, attribution_numbers
from neurolens.plot.attribution_parts import (
    cluster_shares,
    completeness_shares,
    cosine_heatmap,
    gap_histogram,
    perturbation_lines,
)
from neurolens.plot.attribution_pictures import attribution_pictures
from neurolens.plot.clusters import cluster_map, cluster_quality, cluster_scatter, control_scatter
from neurolens.plot.clusters_page import cluster_page
from neurolens.plot.clusters_pictures import ClusterNumbers, cluster_numbers, cluster_pictures
from neurolens.plot.concept_effects import effects_of_deaths
from neurolens.plot.concept_heatmaps import iou_heatmap, score_heatmap
from neurolens.plot.concept_lifelines import lifelines
from neurolens.plot.concept_lives import births_and_deaths, cumulative_events, top_concepts
from neurolens.plot.concept_numbers import ConceptNumbers, LifeRule, concept_numbers
from neurolens.plot.concept_pictures import concept_pictures
from neurolens.plot.concept_sankey import migration_flows, migration_ribbons, migration_sankey
from neurolens.plot.concept_survival import survival_curves
from neurolens.plot.concepts import detector_curves, rotation_null
from neurolens.plot.distributions import (
    binned_curves,
    csl_against_learning_time,
    csl_histogram,
    learning_time_histogram,
)
from neurolens.plot.galleries import unit_gallery
from neurolens.plot.images import gallery, hardest
from neurolens.plot.pairs_card import unit_card
from neurolens.plot.pairs_curves import ablation_curves, norm_histogram, reconstruction_curve
from neurolens.plot.pairs_following import direction_turns, words_over_training
from neurolens.plot.pairs_images import heat_panels, retrieval_gallery
from neurolens.plot.pairs_numbers import PairNumbers, pair_numbers
from neurolens.plot.pairs_pictures import pair_pictures
from neurolens.plot.pairs_segmentation import segmentation_panels
from neurolens.plot.pairs_shift import shift_curves
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
    "AttributionNumbers",
    "ClusterNumbers",
    "ConceptNumbers",
    "LifeRule",
    "PairNumbers",
    "Picture",
    "RunPictures",
    "Scores",
    "ShownImages",
    "UnitCounts",
    "ablation_curves",
    "attribution_numbers",
    "attribution_panels",
    "attribution_pictures",
    "binned_curves",
    "births_and_deaths",
    "class_improvement",
    "cluster_map",
    "cluster_numbers",
    "cluster_overlays",
    "cluster_page",
    "cluster_pictures",
    "cluster_quality",
    "cluster_scatter",
    "cluster_shares",
    "completeness_shares",
    "concept_numbers",
    "concept_pictures",
    "control_scatter",
    "control_strip",
    "cosine_heatmap",
    "csl_against_learning_time",
    "csl_histogram",
    "cumulative_events",
    "detector_curves",
    "direction_turns",
    "dormancy_curves",
    "dormancy_evolution",
    "dormancy_heatmap",
    "drawable_spectra",
    "effect_forest",
    "effects_of_deaths",
    "effects_over_checkpoints",
    "gallery",
    "gap_histogram",
    "hardest",
    "heat_panels",
    "iou_heatmap",
    "learning_time_histogram",
    "lifelines",
    "log_pictures",
    "migration_flows",
    "migration_ribbons",
    "migration_sankey",
    "norm_histogram",
    "pair_numbers",
    "pair_pictures",
    "perturbation_lines",
    "pictures",
    "rank_curves",
    "reconstruction_curve",
    "retrieval_gallery",
    "rotation_null",
    "run_pictures",
    "score_heatmap",
    "scores",
    "segmentation_panels",
    "shift_curves",
    "singular_values",
    "spectra_pictures",
    "survival_curves",
    "threshold_curves",
    "top_concepts",
    "training_curves",
    "trajectories",
    "transition_ribbons",
    "unit_card",
    "unit_counts",
    "unit_gallery",
    "unit_pictures",
    "words_over_training",
]
