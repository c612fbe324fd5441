"""Which units, and which checkpoints, of a concepts cube: what galleries are made of. Needs no torch."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens import schema
from neurolens.dissection.overlap import Reading, best_concept
from neurolens.errors import MissingMeasurementError, SchemaError, nearest
from neurolens.units.layers_of import held


def strongest_detectors(
    concepts: xr.Dataset, *, count: int = 6, reading: Reading = "paper", dim: str | None = None
) -> xr.DataArray:
    """Return the units with the highest IoU at the last measured checkpoint, each of another concept. **Eager**.

    Parameters
    ----------
    concepts : the opened concepts cube
    count : how many, at most
    reading : {"paper", "lite"}
    dim : the series dim; `epoch` or `step`, whichever the cube has

    Returns
    -------
    score : (unit,) float64, highest first
        With `label`, the concept, as a coordinate. Units without a concept are left out.

    Raises
    ------
    MissingMeasurementError
        If no checkpoint was measured.
    SchemaError
        As `neurolens.best_concept`.
    """
    series = schema.series_dim(concepts, dim)
    last = concepts.isel({series: measured_positions(concepts, series)[-1]})
    best = best_concept(last, reading=reading).compute()
    score, label = np.asarray(best["score"]), np.asarray(best["label"]).astype(str)
    order = np.argsort(-np.where(label != "", score, -np.inf), kind="stable")
    order = order[label[order] != ""]
    _, first = np.unique(label[order], return_index=True)
    kept = order[np.sort(first)[:count]]
    chosen = best["score"].isel(unit=kept)
    return chosen.assign_coords(label=("unit", label[kept].astype(object)))


def unit_positions(
    concepts: xr.Dataset,
    *,
    units: Sequence[int] = (),
    layer: str | None = None,
    index: Sequence[int] = (),
) -> list[int]:
    """Return the positions of units along `unit`: named by their number, or by their layer and number in it.

    Raises
    ------
    SchemaError
        If there is no such unit or layer, or a layer is given without the number in it, or the other way round.
    """
    known = np.asarray(held(concepts["unit"]), dtype=np.int64)
    missing = sorted(set(units) - set(known.tolist()))
    if missing:
        raise SchemaError(f"there is no unit {missing[0]}; the cube has units {known.min()} to {known.max()}")
    found = [int(np.flatnonzero(known == unit)[0]) for unit in units]
    if layer is None and not index:
        return found
    if layer is None or not index:
        raise SchemaError("a layer and the number of a unit in it go together; give both, e.g. 'layer4' and 37")
    names = np.asarray(held(concepts["layer"]).tolist(), str)
    if layer not in names:
        raise SchemaError(f"there is no layer {layer!r}; {nearest(layer, set(names.tolist()))}")
    numbers = np.asarray(held(concepts["index"]), dtype=np.int64)
    for number in index:
        at = np.flatnonzero((names == layer) & (numbers == number))
        if not len(at):
            raise SchemaError(f"layer {layer!r} has units 0 to {numbers[names == layer].max()}, and no {number}")
        found.append(int(at[0]))
    return found


def require_top(concepts: xr.Dataset) -> None:
    """Check that a cube knows the images that excite each unit most.

    Raises
    ------
    MissingMeasurementError
        If it does not.
    """
    if "top_sample" not in concepts or not concepts.sizes.get("rank"):
        raise MissingMeasurementError(
            "the images that excite each unit most were not kept; set e.g. top = 9 in [concepts], and run the study: "
            "`neurolens run STUDY --only concepts`"
        )


def measured_positions(concepts: xr.Dataset, series: str) -> npt.NDArray[np.int64]:
    """Return the positions of measured checkpoints along the series."""
    size = concepts.sizes[series]
    measured = np.asarray(concepts["measured"], bool) if "measured" in concepts.coords else np.ones(size, bool)
    if not measured.any():
        raise MissingMeasurementError("no checkpoint has been dissected; run: `neurolens run STUDY --only concepts`")
    return np.flatnonzero(measured)
