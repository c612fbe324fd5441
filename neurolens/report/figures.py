"""The key figures of a run: few numbers, each with what it means."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from neurolens import samples, schema
from neurolens.errors import MissingMeasurementError
from neurolens.plot import RunPictures, Scores
from neurolens.report.attribution_figures import attribution_figures, attribution_section
from neurolens.report.cluster_figures import cluster_figures
from neurolens.report.concept_figures import concept_figures, functional_figures, threshold_table
from neurolens.report.pair_figures import pair_figures, pair_section
from neurolens.report.records import FigureTable, KeyFigure, Section
from neurolens.report.unit_figures import log_figures, unit_figures
from neurolens.study import Study

if TYPE_CHECKING:
    import pandas as pd


def all_figures(
    cubes: Mapping[str, xr.Dataset], drawn: RunPictures, metrics: "pd.DataFrame | None" = None
) -> list[KeyFigure]:
    """Gather the key figures of every cube that was drawn. **Eager**.

    Parameters
    ----------
    cubes : Dataset by name
        The cubes that the store holds.
    drawn : RunPictures
        What `neurolens.plot.run_pictures` returned for them.
    metrics : DataFrame, optional
        The training's ``metrics.csv``.
    """
    found = []
    if drawn.scores is not None:
        found += key_figures(cubes["samples"], drawn.scores, metrics)
    else:
        counted = _any_counts(drawn)
        if counted is None and drawn.pairs is not None and {*schema.SERIES_DIMS} & {*cubes["pools"].dims}:
            counted = cubes["pools"]
        found += [] if counted is None else [_checkpoints(counted)]
    if drawn.concepts is not None:
        found += concept_figures(drawn.concepts)
    if drawn.functional is not None:
        found += functional_figures(drawn.functional)
    if drawn.tallies is not None:
        found += concept_figures(drawn.tallies)
    if drawn.counts is not None:
        found += unit_figures(drawn.counts)
    if drawn.log is not None:
        found += log_figures(drawn.log)
    if drawn.clusters is not None:
        found += cluster_figures(drawn.clusters)
    if drawn.attributions is not None:
        found += attribution_figures(drawn.attributions)
    if drawn.pairs is not None:
        found += pair_figures(drawn.pairs)
    return found


def all_sections(drawn: RunPictures, study: Study | None = None) -> list[Section]:
    """Gather the parts of the page that stand by themselves: attributions by unit cluster, units and heads."""
    return [found for found in (attribution_section(drawn, study), pair_section(drawn)) if found is not None]


def all_tables(drawn: RunPictures) -> list[FigureTable]:
    """Gather the tables of what was drawn: how events of concepts depend on the threshold."""
    return [threshold_table(given) for given in (drawn.concepts, drawn.tallies) if given is not None]


def _any_counts(drawn: RunPictures) -> xr.Dataset | None:
    """Return something over the checkpoints of the run."""
    if drawn.counts is not None:
        return drawn.counts.by_tau
    given = drawn.concepts or drawn.tallies
    return drawn.log if given is None else given.detectors


def _checkpoints(cube: xr.Dataset) -> KeyFigure:
    series = schema.series_dim(cube)
    at = cube[series].values
    return KeyFigure(f"{cube.sizes[series]:,}", "checkpoints", f"{series} {at[0]} to {at[-1]}")


def key_figures(cube: xr.Dataset, given: Scores, metrics: "pd.DataFrame | None" = None) -> list[KeyFigure]:
    """Gather the numbers of a samples cube that say most about the run. **Eager**.

    Parameters
    ----------
    cube : (series, sample)
        The samples cube.
    given : Scores
        What `neurolens.plot.scores` returned for it.
    metrics : DataFrame, optional
        The training's ``metrics.csv``, for the validation accuracy.
    """
    series = schema.series_dim(cube)
    at = cube[series].values
    found = [
        _checkpoints(cube),
        KeyFigure(f"{cube.sizes['sample']:,}", "samples", f"in {cube.sizes.get('class', 0)} classes"),
    ]
    if metrics is not None and "val_acc" in metrics and np.isfinite(metrics["val_acc"].iloc[-1]):
        meaning = f"after epoch {int(metrics['epoch'].iloc[-1])}"
        found.append(KeyFigure(f"{metrics['val_acc'].iloc[-1]:.1%}", "validation accuracy", meaning))
    if "correct" in cube:
        last = float(cube["correct"].isel({series: -1}).mean())
        if np.isfinite(last):
            found.append(KeyFigure(f"{last:.1%}", "measured accuracy", f"at {series} {at[-1]}, on these samples"))
    loss = np.asarray(given.csl, np.float64)
    name = "median CSL" if given.csl.name == "csl" else "median of mean loss"
    high = np.nanquantile(loss, 0.95)
    found.append(KeyFigure(f"{np.nanmedian(loss):.3g} nat", name, f"5 % of the samples are above {high:.3g}"))
    if given.learning_time is not None:
        time = given.learning_time
        tau = np.asarray(time["learning_tau"], np.float64)
        median = float(np.nanmedian(time["learning_time"]))
        meaning = f"share of checkpoints; tau = {float(tau):.3g}" if tau.ndim == 0 else "share of checkpoints"
        found.append(KeyFigure(f"{median:.2f}", "median learning time", meaning))
    return found + _never_learned(cube) + _detection(cube, given.csl)


def _never_learned(cube: xr.Dataset) -> list[KeyFigure]:
    try:
        never = int(samples.forgetting(cube)["never_learned"].sum())
    except MissingMeasurementError:
        return []
    return [KeyFigure(f"{never:,}", "never learned", "samples that no checkpoint got right")]


def _detection(cube: xr.Dataset, csl: xr.DataArray) -> list[KeyFigure]:
    """Say how well the loss finds flipped labels, where it is known which they are."""
    if "is_mislabelled" not in cube.coords:
        return []
    flipped = np.asarray(cube.coords["is_mislabelled"], bool)
    if flipped.all() or not flipped.any():
        return []
    auroc = float(samples.evaluate_detection(csl, cube.coords["is_mislabelled"])["auroc"])
    return [KeyFigure(f"{auroc:.3f}", "AUROC of flipped labels", f"{int(flipped.sum()):,} labels were flipped")]
