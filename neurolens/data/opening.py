"""From the study's [data] table to a SampleSet."""

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

from neurolens.data import draws, text
from neurolens.data.arrays import ArrayImages, Found, arrays, digits
from neurolens.data.cifar import cifar
from neurolens.data.exposure import class_schedule
from neurolens.data.folders import folder, places365
from neurolens.data.imagenet import imagenet
from neurolens.data.samples import SampleSet, sample_ids
from neurolens.data.selection import flip_labels, of_classes, select
from neurolens.data.texts import Texts, TextSet, tokenised
from neurolens.errors import DataError
from neurolens.study import OPEN_CLIP, Data, Study, Validation

SOURCES: dict[str, Callable[[Data], Found]] = {
    "digits": digits,
    "cifar10": cifar,
    "cifar100": cifar,
    "folder": folder,
    "imagenet": imagenet,
    "places365": places365,
    "arrays": arrays,
    **text.OPENERS,
}


def open_samples(table: Data) -> SampleSet:
    """Open the samples that the study's [data] table names: source, split, selection, label noise, exposure.

    Content ids are taken over the whole split where it is one array; where images are files, over the selected ones
    only (decoding the rest would cost hours), so that the occurrence number of an exact duplicate counts those.
    Of texts, blank ones are gone before anything is chosen, and ids are taken over the whole split.
    Label noise flips labels of the whole split, or of the selected classes among themselves, before ids, count and
    fraction choose: a part of the samples that a run was trained on has the labels that it was trained on.

    Raises
    ------
    DataError
        If the data is absent or malformed, or does not hold what the table names.
    """
    found = SOURCES[table.source](table)
    images = found.images
    names = images.names

    @cache
    def all_ids() -> npt.NDArray[np.str_]:
        return sample_ids(images.digests())

    @cache
    def keys() -> draws.Keys:
        return draws.keys(names if names is not None else all_ids())

    kept = select(table.select, found.labels, found.classes, ids=all_ids, keys=keys)
    whole = isinstance(images, ArrayImages | Texts) or table.select.ids is not None
    chosen = images.take(kept)
    ids = all_ids()[kept] if whole else sample_ids(chosen.digests())
    labels = found.labels[kept]
    coords = {name: values[kept] for name, values in found.coords.items()}
    if table.label_noise is not None:
        pool = of_classes(table.select, found.labels, found.classes)
        among = np.arange(len(found.classes)) if table.select.classes is None else np.unique(found.labels[pool])
        noisy, flipped = flip_labels(table.label_noise, found.labels[pool], keys()[pool], among)
        at = np.searchsorted(pool, kept)
        coords["true_label"], labels, coords["is_mislabelled"] = labels, noisy[at], flipped[at]
    exposure = class_schedule(table.exposure, len(found.classes)) if table.exposure is not None else None
    if isinstance(chosen, Texts):
        name, length = text.named(table), table.text.max_length
        return TextSet(ids, labels, found.classes, chosen.held(), name, coords, exposure, max_length=length)
    return SampleSet(
        ids, labels, found.classes, chosen, f"{table.source}:{table.split}", coords, exposure, table.resident_gib
    )


def study_samples(study: Study) -> SampleSet:
    """Open the samples of a study, as `open_samples`, and check that its network can mean them; tokenise texts.

    Raises
    ------
    DataError
        As `open_samples`; or if a label numbers folders, and there are not as many as the network has classes; or if
        texts have no tokenizer, one of them no token, or [samples] is to measure them.
    """
    samples, classes = open_samples(study.data), study.model.classes
    if isinstance(samples, TextSet):
        from neurolens.tokens import tokenizer_of

        if study.samples is not None:
            raise DataError(
                f"[samples] measures what a network makes of images, and {samples.name} holds texts; remove that "
                "table, and measure texts with [units] or [activations]"
            )
        tokenizer = None if study.model.transformers is None else tokenizer_of(study.model.transformers)
        if tokenizer is None:
            raise DataError(
                f"{samples.name} holds texts, and model {study.model.name!r} has no tokenizer; name a network of the "
                "transformers library, and model.transformers.tokenizer if its folder holds none"
            )
        return tokenised(samples, tokenizer)
    has_classes = not study.model.name.startswith(OPEN_CLIP)
    if has_classes and study.data.source in ("folder", "imagenet") and len(samples.classes) != classes:
        kind = "class folders" if study.data.source == "folder" else "classes"
        raise DataError(
            f"{samples.name} has {len(samples.classes)} {kind} and the network {classes} classes: a label is "
            f"the folder's number, so 0 would mean {samples.classes[0]!r} here and may have meant another class in "
            f"training; set model.classes = {len(samples.classes)}, or put the folders of all {classes} classes there"
        )
    return samples


def class_names(table: Data) -> tuple[str, ...]:
    """Return the names of the classes of the study's [data], by their labels; no image is decoded.

    Raises
    ------
    DataError
        If the data is absent or malformed.
    """
    return tuple(map(str, SOURCES[table.source](table).classes))


def validation_table(data: Data, validation: Validation) -> Data:
    """Return [data] with the differences that [train.validation] names; validation labels are never flipped."""
    changes = {"split": validation.split, "select": validation.select, "label_noise": None}
    return data.model_copy(update=changes | ({"root": validation.root} if validation.root is not None else {}))
