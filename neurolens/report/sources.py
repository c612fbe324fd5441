"""What a report shows that is not in the store: the training's metrics and the images, found through the study."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurolens.errors import DataError
from neurolens.plot import LifeRule
from neurolens.study import Study

if TYPE_CHECKING:
    import pandas as pd

    from neurolens.plot.pictures import ImagesById

METRICS = "metrics.csv"


def metrics_of(study: Study) -> "pd.DataFrame | None":
    """Return what training reported, from ``metrics.csv`` beside the checkpoints; None where there is none.

    Raises
    ------
    DataError
        If the file is not a table with a column `epoch`.
    """
    import pandas as pd

    path = Path(study.checkpoints.folder) / METRICS
    if not path.is_file():
        return None
    try:
        metrics = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a table of metrics ({error}); remove it, or train again") from error
    if "epoch" not in metrics:
        raise DataError(f"{path} has columns {list(metrics.columns)}, and needs 'epoch'; remove it, or train again")
    return metrics if len(metrics) else None


def life_rule_of(study: Study | None) -> LifeRule | None:
    """Return by which reading and rule the study's concepts live and die: that of its [effects], if it has them."""
    table = None if study is None else study.effects
    if table is None:
        return None
    return LifeRule(
        reading=table.reading,
        tau=table.tau,
        k=table.k,
        hysteresis=table.hysteresis,
        by=table.by,
        smoothing_window=table.smoothing_window,
        min_alive=table.min_alive,
    )


def images_of(study: Study) -> "ImagesById":
    """Return a function from sample ids to their images, (H, W, C) uint8 each.

    Raises
    ------
    DataError
        If the study's data cannot be opened; and by the function, if an id is not among its samples.
    """
    from neurolens.data import open_samples

    samples = open_samples(study.data)
    where = {str(name): i for i, name in enumerate(samples.ids)}

    def load(ids: Sequence[str]) -> Sequence[np.ndarray]:
        lost = [name for name in ids if name not in where]
        if lost:
            raise DataError(
                f"{len(lost)} of {len(ids)} samples of the store are not in the study's data, e.g. {lost[0]}; "
                "was the data changed since? Run the study again"
            )
        return [samples.images.load(np.array([where[name]]))[0] for name in ids]

    return load
