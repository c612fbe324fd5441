"""Dissection: how far the masks of units coincide with concepts (measured), and what follows from the counts."""

from neurolens.dissection.draws import ImageDraws, image_draws
from neurolens.dissection.labels import Labels, PackedLabels, pack_labels
from neurolens.dissection.maps import token_maps
from neurolens.dissection.null import rotation_null
from neurolens.dissection.overlap import best_concept, detectors, iou, iou_interval
from neurolens.dissection.ranks import rank_of
from neurolens.dissection.tally import Tally, image_blocks, unit_mask
from neurolens.dissection.thresholds import Thresholds
from neurolens.dissection.upsampling import upsample

__all__ = [
    "ImageDraws",
    "Labels",
    "PackedLabels",
    "Tally",
    "Thresholds",
    "best_concept",
    "detectors",
    "image_blocks",
    "image_draws",
    "iou",
    "iou_interval",
    "pack_labels",
    "rank_of",
    "rotation_null",
    "token_maps",
    "unit_mask",
    "upsample",
]
