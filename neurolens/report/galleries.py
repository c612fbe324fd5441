"""Galleries of units: the images that excite them most, and where; made from the study's checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.checkpoint_files import spans
from neurolens.dissection.choosing import measured_positions, require_top, strongest_detectors, unit_positions
from neurolens.dissection.overlap import Reading, best_concept
from neurolens.errors import (
    MissingCheckpointError,
    MissingMeasurementError,
    ModelMismatchError,
    SchemaError,
    StudyError,
)
from neurolens.plot.galleries import unit_gallery, wide_figure
from neurolens.plot.picture import Picture
from neurolens.study import Study
from neurolens.units.layers_of import held

if TYPE_CHECKING:
    from torch import nn

    from neurolens.checkpoints import Checkpoint

SLACK = 0.02
"""Share by which the largest activations may differ from those in the store: of another device, or of bfloat16."""


def unit_galleries(
    study: Study,
    concepts: xr.Dataset,
    *,
    units: Sequence[int],
    at: Sequence[int] | None = None,
    top: int = 9,
    same: bool = False,
    resolution: Literal["label", "image"] = "label",
    reading: Reading = "paper",
) -> xr.Dataset:
    """Show what excites units most: images and masks, at one checkpoint or several. **Eager**.

    The images and thresholds are those in the store; the maps are made again, one forward a checkpoint over the few
    images that are asked for.

    Parameters
    ----------
    study : its checkpoints and its concept data are read
    concepts : the opened concepts cube of that study
    units : positions along `unit`
    at : epochs or steps, as the cube has them; None: the last one that was measured
    top : images of each unit, at most as many as were kept
    same
        Show the images of the last of the checkpoints at each of them, instead of each one's own.
    resolution : {"label", "image"}
        Of the masks: that of the labels, which is what was counted, or of the images.
    reading : {"paper", "lite"}
        Of the IoU that concepts are told by.

    Returns
    -------
    Dataset with a series dim, `unit` and `rank`
        ``image`` (series, unit, rank, y, x, channel) uint8; ``mask`` (series, unit, rank, row, column) bool;
        ``largest`` (series, unit, rank), the largest activation of each map, NaN where there is no image;
        ``threshold``, ``score``, ``label`` (series, unit) as `neurolens.best_concept` has them.

    Raises
    ------
    MissingMeasurementError
        If the cube does not hold top images, or a checkpoint was not measured.
    MissingCheckpointError, CheckpointError, DataError
        If a checkpoint, or the concept data, are not there any more.
    ModelMismatchError
        If a checkpoint does not give the activations that are in the store.
    """
    from neurolens import models, rows
    from neurolens.checkpoints import discover
    from neurolens.data.concepts import study_concepts
    from neurolens.dissection.cube import shown_to
    from neurolens.dissection.gallery import unit_masks

    if study.concepts is None:
        raise StudyError(f"study {study.name!r} has no [concepts] table, which says where the images are; add one")
    require_top(concepts)
    series, places = _places(concepts, at)
    given = concepts[["top_value", "top_sample", "threshold"]].isel(
        {series: places, "unit": list(units), "rank": slice(top)}
    )
    given = given.load()
    samples = study_concepts(study.concepts)
    assert samples.concepts is not None
    if list(map(str, samples.ids)) != list(map(str, held(concepts["sample"]).tolist())):
        raise SchemaError("the study's concept data are not those that were dissected; run the study again")
    best = best_concept(concepts.isel({series: places}), reading=reading).isel(unit=list(units)).compute()
    series_of = discover(study.checkpoints, source=study.model.transformers)
    files = {checkpoint.position(series_of.dim): checkpoint for checkpoint in series_of.checkpoints}
    network, image_size = models.build(study.model), samples.concepts.image_size
    shape = samples.concepts.label_size if resolution == "label" else image_size
    kept = np.asarray(given["top_sample"], dtype=np.float64)
    kept = np.broadcast_to(kept[-1], kept.shape) if same else kept
    images = np.zeros((*kept.shape, *image_size, 3), dtype=np.uint8)
    masks, largest = np.zeros((*kept.shape, *shape), dtype=np.bool_), np.full(kept.shape, np.nan, dtype=np.float32)
    for i, position in enumerate(given[series].values.tolist()):
        _fill(network.module, files, int(position), series, study)
        masks[i], largest[i] = unit_masks(
            shown_to(network, study.concepts),
            samples,
            layers=study.concepts.layers,
            units=units,
            thresholds=np.asarray(given["threshold"][i]),
            images=kept[i],
            shape=shape,
            batch_size=study.compute.batch_size,
            device=rows.device(study.compute),
            bf16=study.concepts.bf16,
        )
        if not same:
            _require_equal(largest[i], np.asarray(given["top_value"][i]), int(position), series)
        for place in np.argwhere(np.isfinite(kept[i])):
            images[(i, *place)] = samples.images.load([int(kept[(i, *place)])])[0]  # grey ones become RGB
    dims = (series, "unit", "rank")
    pictures = {"image": ((*dims, "y", "x", "channel"), images), "mask": ((*dims, "row", "column"), masks)}
    arrays: dict[str, Any] = pictures | {"largest": (dims, largest), "threshold": given["threshold"]}
    arrays |= {name: best[name] for name in ("score", "label")}
    attrs = {"run": study.name, "same": int(same), "reading": reading}
    return xr.Dataset(arrays, attrs=attrs)


def concepts_of(run: xr.DataTree) -> xr.Dataset:
    """Return the concepts cube of an opened run.

    Raises
    ------
    MissingMeasurementError
        If it has none.
    """
    if "concepts" not in run.children or "intersection" not in run["concepts"]:
        found = ", ".join(run.children) or "nothing"
        raise MissingMeasurementError(
            f"the run holds {found}, and no checkpoint has been dissected; add a [concepts] table to the study, and "
            "run it: `neurolens run STUDY --only concepts`"
        )
    return run["concepts"].to_dataset()


def galleries_of(study: Study | None) -> Callable[[xr.Dataset], Picture | None] | None:
    """Return what draws galleries of the strongest detectors of a study; None where it has no concepts."""
    if study is None or study.concepts is None or not study.concepts.top:
        return None
    return lambda concepts: detector_picture(study, concepts)


def detector_picture(study: Study, concepts: xr.Dataset, *, count: int = 4, top: int = 7) -> Picture | None:
    """Draw galleries of the strongest detectors at the last checkpoint; None where no unit has a concept. **Eager**.

    Parameters
    ----------
    study, concepts : as for `unit_galleries`
    count : units, each of another concept
    top : images of each

    Raises
    ------
    NeurolensError
        As `unit_galleries`: what it needs besides the store may be gone.
    """
    chosen = strongest_detectors(concepts, count=count)
    if not chosen.size:
        return None
    units = unit_positions(concepts, units=chosen["unit"].values.tolist())
    shown = unit_galleries(study, concepts, units=units, top=top)
    figure = wide_figure(shown)
    unit_gallery(shown, figure=figure)
    names = [f"{label} ({float(score):.2f})" for label, score in zip(chosen["label"].values, chosen.values)]
    caption = (
        f"The images that excite the strongest detectors most, bright where the unit fires: {', '.join(names)}; "
        "in brackets the IoU of unit and concept."
    )
    return Picture("unit_galleries", "What the strongest detectors see", caption, caption, figure)


def _places(concepts: xr.Dataset, at: Sequence[int] | None) -> tuple[str, list[int]]:
    """Return the series dim, and the positions along it that are asked for."""
    series = schema.series_dim(concepts)
    measured = measured_positions(concepts, series).tolist()
    if at is None:
        return series, measured[-1:]
    stamps = concepts[series].values.tolist()
    known = {int(stamps[place]): place for place in measured}
    missing = [position for position in at if position not in known]
    if missing:
        raise MissingMeasurementError(
            f"{series} {missing[0]} has not been dissected; dissected are {spans(sorted(known))}; name one of them, or "
            "run the study"
        )
    return series, [known[position] for position in at]


def _fill(module: "nn.Module", files: Mapping[int, "Checkpoint"], position: int, series: str, study: Study) -> None:
    """Fill the network with the checkpoint of a position."""
    from neurolens.checkpoints import load

    if position not in files:
        raise MissingCheckpointError(
            f"the checkpoint of {series} {position} was dissected and is not in {study.checkpoints.folder} now, and "
            "maps are made again from it; put it back, or ask for another one"
        )
    load(module, files[position].path, study.checkpoints, digest=files[position].digest)


def _require_equal(found: Any, stored: Any, position: int, series: str) -> None:
    """Check that largest activations are those in the store: another checkpoint, or network, would show other images.

    Raises
    ------
    ModelMismatchError
        If they are not.
    """
    scale = np.nanmax(np.abs(stored), axis=1, keepdims=True, initial=0.0, where=np.isfinite(stored))
    apart = np.abs(found - stored) > SLACK * scale
    if apart.any():
        unit, rank = np.argwhere(apart)[0]
        raise ModelMismatchError(
            f"at {series} {position} the largest activation of a unit is {found[unit, rank]:.4g}, and "
            f"{stored[unit, rank]:.4g} in the store: the checkpoint, the network or the images changed since; run the "
            "study again"
        )
