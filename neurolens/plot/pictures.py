"""The pictures of training and of samples, drawn and captioned: what ``plot`` saves and the report shows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from neurolens import samples
from neurolens.errors import MissingMeasurementError
from neurolens.plot.distributions import (
    binned_curves,
    csl_against_learning_time,
    csl_histogram,
    learning_time_histogram,
)
from neurolens.plot.images import gallery, hardest
from neurolens.plot.picture import Picture
from neurolens.plot.series import training_curves, trajectories
from neurolens.plot.style import new_figure, styled

if TYPE_CHECKING:
    import pandas as pd

ImagesById = Callable[[Sequence[str]], Sequence[np.ndarray]]
GALLERY = 12


@dataclass(frozen=True)
class Scores:
    """The scores of a run's samples, computed.

    Attributes
    ----------
    csl : (sample), nat
        Cumulative sample loss; where rows are missing, the mean loss over those measured, named `csl_mean`.
    learning_time : Dataset or None
        What `neurolens.learning_time` returns; None where no gradient was measured.
    notes : tuple of str
        What is missing, in words.
    """

    csl: xr.DataArray
    learning_time: xr.Dataset | None
    notes: tuple[str, ...]


def scores(ds: xr.Dataset) -> Scores:
    """Compute cumulative sample loss and learning time, leaving out what was not measured, and say so. **Eager**.

    Raises
    ------
    MissingMeasurementError
        If no loss was measured.
    SchemaError
        If ``ds`` is not a samples cube.
    """
    notes = []
    try:
        csl = samples.csl(ds)["csl"].compute()
    except MissingMeasurementError as error:
        csl = samples.csl(ds, missing="drop")["csl_mean"].compute()
        notes.append(f"Mean loss stands here instead of cumulative loss, because {error}")
    time, note = _learning_time(ds)
    return Scores(csl, time, (*notes, note) if note else tuple(notes))


def _learning_time(ds: xr.Dataset) -> tuple[xr.Dataset | None, str]:
    """Compute learning time, if need be without what is missing, and say what was."""
    try:
        return samples.learning_time(ds).compute(), ""
    except MissingMeasurementError as error:
        try:
            return samples.learning_time(
                ds, missing="drop"
            ).compute(), f"Learning time leaves out what is missing: {error}"
        except MissingMeasurementError:
            return None, f"There is no learning time: {error}"


def pictures(
    ds: xr.Dataset,
    *,
    given: Scores | None = None,
    metrics: "pd.DataFrame | None" = None,
    images: ImagesById | None = None,
    external: Mapping[str, xr.DataArray] | None = None,
) -> list[Picture]:
    """Draw every picture that a samples cube allows. **Eager**.

    Parameters
    ----------
    ds : (series, sample)
        The samples cube. With the coordinate `is_mislabelled`, flipped labels are drawn apart.
    given : Scores, optional
        What `scores` returned, if it was computed already.
    metrics : DataFrame, optional
        The training's ``metrics.csv``.
    images : function, optional
        From sample ids to their (H, W, C) images; without it there is no gallery.
    external : mapping, optional
        Scores from elsewhere, (sample) each, that the run's own are compared with.
    """
    given = given or scores(ds)
    flipped = ds.coords["is_mislabelled"].astype(bool) if "is_mislabelled" in ds.coords else None
    with styled():
        drawn = [] if metrics is None else training_pictures(metrics)
        drawn.append(_distributions(given, flipped))
        if given.learning_time is not None:
            drawn.append(_plane(given.csl, given.learning_time))
        drawn.append(_trajectories(ds, given.csl))
        if images is not None:
            drawn.append(_gallery(ds, given.csl, images))
        for name, array in (external or {}).items():
            drawn.append(_external(given, array.rename(name)))
    return drawn


def training_pictures(metrics: "pd.DataFrame") -> list[Picture]:
    """Draw the curves of a training, from its ``metrics.csv``."""
    filled = {str(column).split("_")[-1] for column in metrics if metrics[column].notna().any()}
    has = [quantity for quantity in ("loss", "acc") if quantity in filled]
    if not has:
        return []
    figure = new_figure((4.6 * len(has), 3.3))
    for i, quantity in enumerate(has):
        training_curves(metrics, quantity=quantity, ax=figure.add_subplot(1, len(has), i + 1))
    last = metrics.iloc[-1]
    words = {"train_acc": "training accuracy", "val_acc": "validation accuracy"}
    final = [f"{words[c]} {last[c]:.1%}" for c in words if c in metrics and np.isfinite(last[c])]
    caption = f"{len(metrics)} epochs of training" + (f", ending at {' and '.join(final)}." if final else ".")
    return [Picture("training", "Training", caption, f"Curves of {' and '.join(has)} by epoch. {caption}", figure)]


def _distributions(given: Scores, flipped: xr.DataArray | None) -> Picture:
    panels = 1 if given.learning_time is None else 2
    figure = new_figure((4.6 * panels, 3.3))
    name = str(given.csl.name)
    ax = csl_histogram(given.csl, marked=flipped, ax=figure.add_subplot(1, panels, 1))
    if name == "csl_mean":
        ax.set_title("Mean sample loss")
    if given.learning_time is not None:
        learning_time_histogram(given.learning_time, marked=flipped, ax=figure.add_subplot(1, panels, 2))
    low, middle, high = np.nanquantile(np.asarray(given.csl, np.float64), (0.05, 0.5, 0.95))
    caption = f"Half of the samples have {name} below {middle:.3g} nat; nine in ten {low:.3g} to {high:.3g}."
    title = "How hard the samples are"
    return Picture("distributions", title, caption, f"Histograms of the scores. {caption}", figure)


def _plane(csl: xr.DataArray, time: xr.Dataset) -> Picture:
    figure = new_figure((5.6, 3.8))
    csl_against_learning_time(csl, time, ax=figure.add_subplot())
    rank = float(xr.corr(_ranks(csl), _ranks(time["learning_time"])))
    caption = f"Each hexagon is coloured by the samples in it. Rank correlation {rank:.2f}."
    title = "Loss against learning time"
    alt = f"Hexagonal bins of csl by learning time. {caption}"
    return Picture("csl_against_learning_time", title, caption, alt, figure)


def _ranks(array: xr.DataArray) -> xr.DataArray:
    from scipy.stats import rankdata

    return array.copy(data=rankdata(np.asarray(array, np.float64), nan_policy="omit"))


def _trajectories(ds: xr.Dataset, csl: xr.DataArray) -> Picture:
    figure = new_figure((5.6, 3.8))
    trajectories(ds, csl, ax=figure.add_subplot())
    caption = "Loss of the five easiest and the five hardest samples at every checkpoint, over the range of all others."
    return Picture("trajectories", "What single samples went through", caption, caption, figure)


def _gallery(ds: xr.Dataset, csl: xr.DataArray, images: ImagesById) -> Picture:
    chosen = hardest(ds, csl, count=GALLERY)
    ids = [str(i) for i in chosen["sample"].values]
    columns = 6
    rows = -(-len(ids) // columns)
    figure = new_figure((1.45 * columns, 2.05 * max(rows, 1)))
    gallery(images(ids), chosen, columns=columns, figure=figure)
    caption = f"The {len(ids)} images with the highest {csl.name}: their label, and what the last checkpoint said."
    return Picture("gallery", "The hardest images", caption, caption, figure)


def _external(given: Scores, reference: xr.DataArray) -> Picture:
    figure = new_figure((5.6, 3.6))
    own = {str(given.csl.name): given.csl}
    if given.learning_time is not None:
        own["learning_time"] = given.learning_time["learning_time"]
    binned_curves(own, reference, ax=figure.add_subplot())
    name = str(reference.name)
    caption = f"Mean score of the samples in equal bins of {name}, with 95 % intervals."
    return Picture(f"binned_{name}", f"Against {name.replace('_', ' ')}", caption, caption, figure)
