"""What a network is shown: samples with stable ids, selected, preprocessed and batched."""

from typing import TYPE_CHECKING, Any

from neurolens.data.exposure import ClassSchedule, class_schedule, exposure_table
from neurolens.data.opening import open_samples, study_samples, validation_table
from neurolens.data.samples import ImageSource, SampleSet, sample_ids

if TYPE_CHECKING:
    from neurolens.data.batching import Batch, batches

__all__ = [
    "Batch",
    "ClassSchedule",
    "ImageSource",
    "SampleSet",
    "batches",
    "class_schedule",
    "exposure_table",
    "open_samples",
    "sample_ids",
    "study_samples",
    "validation_table",
]


def __getattr__(name: str) -> Any:
    """Import torch only when batches are asked for."""
    if name in ("Batch", "batches"):
        import importlib

        return getattr(importlib.import_module("neurolens.data.batching"), name)
    raise AttributeError(f"module 'neurolens.data' has no attribute {name!r}")
