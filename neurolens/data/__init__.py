"""What a network is shown: samples with stable ids, selected, preprocessed and batched; and concepts in images."""

from typing import TYPE_CHECKING, Any

from neurolens.data.bitplanes import ConceptMasks
from neurolens.data.concept_sets import ConceptSet
from neurolens.data.concepts import open_concepts
from neurolens.data.exposure import ClassSchedule, class_schedule, exposure_table
from neurolens.data.opening import open_samples, study_samples, validation_table
from neurolens.data.samples import ImageSource, SampleSet, sample_ids
from neurolens.data.segmentation import Layout
from neurolens.data.shapes import make_concepts
from neurolens.data.texts import Texts, TextSet, tokenised

if TYPE_CHECKING:
    from neurolens.data.batching import Batch, batches
    from neurolens.data.showing import Shown, shown

__all__ = [
    "Batch",
    "ClassSchedule",
    "ConceptMasks",
    "ConceptSet",
    "ImageSource",
    "Layout",
    "SampleSet",
    "Shown",
    "TextSet",
    "Texts",
    "batches",
    "class_schedule",
    "exposure_table",
    "make_concepts",
    "open_concepts",
    "open_samples",
    "sample_ids",
    "shown",
    "study_samples",
    "tokenised",
    "validation_table",
]


def __getattr__(name: str) -> Any:
    """Import torch only when batches are asked for."""
    home = {"Batch": "batching", "batches": "batching", "Shown": "showing", "shown": "showing"}
    if name in home:
        import importlib

        return getattr(importlib.import_module(f"neurolens.data.{home[name]}"), name)
    raise AttributeError(f"module 'neurolens.data' has no attribute {name!r}")
