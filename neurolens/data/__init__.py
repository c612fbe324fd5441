"""What a network is shown: samples with stable ids, selected, preprocessed and batched."""

from typing import TYPE_CHECKING, Any

from neurolens.data.exposure import ClassSchedule, class_schedule, exposure_table
from neurolens.data.opening import open_samples, study_samples, validation_table
from neurolens.data.samples import ImageSource, SampleSet, sample_ids
from neurolens.data.texts import Texts, TextSet, tokenised

if TYPE_CHECKING:
    from neurolens.data.batching import Batch, batches
    from neurolens.data.showing import Shown, shown

__all__ = [
    "Batch",
    "ClassSchedule",
    "ImageSource",
    "SampleSet",
    "Shown",
    "TextSet",
    "Texts",
    "batches",
    "class_schedule",
    "exposure_table",
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
