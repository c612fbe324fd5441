"""IoU of images drawn again: what says how sure events are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens import schema
from neurolens.dissection.overlap import AREAS, Reading, category_codes, iou
from neurolens.dissection.sums import EPSILON
from neurolens.errors import SchemaError
from neurolens.inference import bootstrap_counts

Values = Callable[[int], npt.NDArray[np.float64]]
"""The number of a draw → IoU (pair, series)."""

_HELD = 2**23  # counts of pairs that are held at once (64 MiB per variable)
_STRIP = 2**20  # IoU of all draws that are held at once


@dataclass(frozen=True, eq=False)
class ImageDraws:
    """Blocks of images drawn again and again; a function of the number of a draw.

    Attributes
    ----------
    concepts : the concepts cube
    counts : (draw, block) int64
        How often each block is drawn; the same for all checkpoints, units and concepts.
    reading : {"paper", "lite"}
    """

    concepts: xr.Dataset
    counts: npt.NDArray[np.int64]
    reading: Reading

    def __len__(self) -> int:
        return len(self.counts)

    def __call__(self, draw: int) -> xr.DataArray:
        """Return IoU (series, unit, concept) of a draw, lazy if the cube is."""
        if not 0 <= draw < len(self):
            raise SchemaError(f"draw={draw}; there are draws 0 to {len(self) - 1}: make image_draws with a larger n")
        return iou(self.concepts, reading=self.reading, weights=self.counts[draw])

    def of_pairs(
        self, unit: npt.NDArray[np.int64], concept: npt.NDArray[np.int64], at: npt.NDArray[np.int64]
    ) -> Iterator[tuple[slice, Values]]:
        """Yield pairs of units and concepts in strips, whose counts are read once for all draws. **Eager**.

        Parameters
        ----------
        unit, concept : (pair,) positions
        at : positions along the series

        Yields
        ------
        part, values
            Which pairs, and what gives the IoU of a draw (pair, series).
        """
        series, codes, cube = self._counted(at, "unit_area", "intersection", AREAS[self.reading], "concept_area")
        fired = (
            (cube["unit_area"].sum(("block", "category"), skipna=False) > 0).transpose("unit", series).compute().data
        )
        step = max(1, _HELD // (len(at) * cube.sizes["block"]))
        for start in range(0, len(unit), step):
            part = slice(start, start + step)
            of_unit, of_concept, of_category = (
                xr.DataArray(places, dims="pair") for places in (unit[part], concept[part], codes[concept[part]])
            )
            wanted = {
                "common": cube["intersection"].isel(unit=of_unit, concept=of_concept),
                "mask": cube[AREAS[self.reading]].isel(unit=of_unit, category=of_category),
                "whole": cube["concept_area"].isel(concept=of_concept),
            }
            read = xr.Dataset(wanted).compute().transpose("pair", series, "block")
            common, mask, shown = (read[name].data for name in wanted)
            yield part, _Pairs(common, mask, shown, fired[unit[part]], self.counts)

    def reaching(self, tau: float, at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Find which pairs have an IoU of at least ``tau`` in any draw at any checkpoint. **Eager**, in one pass.

        The IoU of drawn blocks is a mean of the blocks' own, weighted by their unions, so that it does not exceed the
        largest of them. Few pairs remain to be drawn.

        Returns
        -------
        pairs : (2, pair) positions of units and of concepts, in order
        """
        names = ("intersection", AREAS[self.reading], "concept_area")
        series, codes, cube = self._counted(at, *names)
        dims = [["block", "concept"], ["block", "category"], ["block", "concept"]]
        whole = [
            cube[name].chunk(dict.fromkeys(core, -1)) if cube[name].chunks is not None else cube[name]
            for name, core in zip(names, dims)
        ]
        found = xr.apply_ufunc(
            _reaches,
            *whole,
            input_core_dims=dims,
            output_core_dims=[["concept"]],
            kwargs={"codes": codes, "counts": self.counts.astype(np.float64), "tau": tau},
            dask="parallelized",
            output_dtypes=[np.bool_],
        )
        some = found.any(series).transpose("unit", "concept").compute().data
        return np.stack(np.nonzero(some)).astype(np.int64)

    def _counted(self, at: npt.NDArray[np.int64], *names: str) -> tuple[str, npt.NDArray[np.int64], xr.Dataset]:
        """Return the series, the category of each concept, and the bare counts at some of its positions."""
        series = schema.series_dim(self.concepts)
        codes = category_codes(self.concepts, *names)
        cube = self.concepts[list(dict.fromkeys(names))]
        return series, codes, cube.drop_vars(list(cube.coords)).isel({series: at})


def image_draws(concepts: xr.Dataset, *, n: int, seed: int = 0, reading: Reading = "paper") -> ImageDraws:
    """Draw the images of a concepts cube again, with replacement: a function of the number of a draw.

    For `neurolens.mortality.event_probability`, `event_counts` and `compare`, which ask in how many draws an event
    happens too. Blocks of images are drawn, as in `iou_interval`; all checkpoints see the same draw, so that what moves
    in one is the images and not the network.

    Parameters
    ----------
    concepts : the concepts cube as for `neurolens.iou`, along its series
    n : how many draws
    seed : of the draws
    reading : {"paper", "lite"}

    Returns
    -------
    draws : number of a draw, from 0 to n - 1 → IoU (series, unit, concept)
        Lazy if ``concepts`` is. NaN as `iou`, and where a draw has no image that shows the concept. The functions above
        read the counts of those pairs of units and concepts that matter to them, once for all draws.

    Raises
    ------
    SchemaError
        As `iou`, and if there are no draws, or no series.
    MissingMeasurementError
        As `iou`.

    References
    ----------
    Efron and Tibshirani 1993, "An Introduction to the Bootstrap".
    """
    if n < 1:
        raise SchemaError(f"n={n} gives no draw; give e.g. 200")
    iou(concepts, reading=reading)
    schema.series_dim(concepts)
    if "intersection" not in concepts:
        raise SchemaError("tallies hold sums over all images, which cannot be drawn again; take the concepts cube")
    counts = np.array(list(bootstrap_counts(concepts.sizes["block"], n, seed)), dtype=np.int64)
    return ImageDraws(concepts, counts, reading)


class _Pairs:
    """Counts of a strip of pairs, (pair, series, block), in memory; gives their IoU in a draw."""

    def __init__(self, common: Any, mask: Any, whole: Any, fired: Any, counts: Any) -> None:
        self._common, self._mask, self._whole, self._fired = common, mask, whole, fired
        self._counts = counts.astype(np.float64)

    def __call__(self, draw: int) -> npt.NDArray[np.float64]:
        common, mask, whole = (array @ self._counts[draw] for array in (self._common, self._mask, self._whole))
        return np.where(self._fired & (whole > 0), common / (mask + whole - common + EPSILON), np.nan)


def _reaches(common: Any, mask: Any, whole: Any, codes: Any, counts: Any, tau: float) -> Any:
    """Tell for (…, block, concept), (…, block, category) and (…, block, concept): (…, concept) bool."""
    shape = np.broadcast_shapes(common.shape[:-2], mask.shape[:-2], whole.shape[:-2])
    arrays = [np.broadcast_to(array, (*shape, *array.shape[-2:])) for array in (common, mask, whole)]
    out = np.zeros((*shape, common.shape[-1]), dtype=np.bool_)
    step = max(1, _STRIP // len(counts))
    for place in np.ndindex(shape):
        both, some, all_ = (array[place] for array in arrays)
        met = np.flatnonzero(both.any(axis=0))
        each = [both[:, met], some[:, codes[met]], all_[:, met]]
        met = met[(each[0] >= tau * (1 - 1e-9) * (each[1] + each[2] - each[0])).any(axis=0, where=each[0] > 0)]
        for start in range(0, len(met), step):
            few = met[start : start + step]
            one, two, three = counts @ both[:, few], counts @ some[:, codes[few]], counts @ all_[:, few]
            out[(*place, few)] = (one / (two + three - one + EPSILON) >= tau).any(axis=0)
    return out
