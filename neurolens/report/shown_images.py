"""The images of a study as its network is shown them, for the panels of attributions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from neurolens.errors import DataError
from neurolens.plot import ShownImages
from neurolens.report.sources import images_of
from neurolens.study import Study


def shown_images_of(study: Study) -> ShownImages:
    """Return the study's images by sample id, resized and cropped as its network is shown them.

    Raises
    ------
    DataError
        If the study's data cannot be opened, or are texts; and by ``load``, if an id is not among its samples.
    NeurolensError
        If the network cannot be built.
    """
    from neurolens import models
    from neurolens.data.batching import prepare

    network = models.build(study.model)
    if network.tokenizer is not None:
        raise DataError(f"study {study.name!r} shows texts, and panels are of images; leave them out")
    preprocessing, decoded = network.preprocessing, images_of(study)

    def load(ids: Sequence[str]) -> list[np.ndarray]:
        return [prepare(np.asarray(image), preprocessing=preprocessing) for image in decoded(ids)]

    table = study.attributions
    given: dict[str, Any] = {} if table is None else {"fill": table.fill, "drop": table.drop}
    return ShownImages(load, tuple(preprocessing.mean or (0.5,)), **given)
