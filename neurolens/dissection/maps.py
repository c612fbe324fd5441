"""Maps as they lie in memory: channels first or last, read in place, and checked for what is not finite."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from neurolens.dissection import kernels
from neurolens.errors import NonFiniteError, SchemaError
from neurolens.samples.scan import share


class Maps(NamedTuple):
    """A batch of maps.

    Attributes
    ----------
    values : (B, U, h, w) float32, any strides
    high : (B, U) int32
        Key of the largest value of each map.
    """

    values: npt.NDArray[np.float32]
    high: npt.NDArray[np.int32]

    @property
    def in_rows(self) -> bool:
        """Whether channels lie last."""
        return not self.values.flags.c_contiguous

    @property
    def flat(self) -> npt.NDArray[np.float32]:
        """The values as they lie: (B, U, h w), or (B, h w, U) in rows; a view."""
        batch, units, height, width = self.values.shape
        if self.in_rows:
            return self.values.transpose(0, 2, 3, 1).reshape(batch, height * width, units)
        return self.values.reshape(batch, units, height * width)

    @property
    def largest(self) -> npt.NDArray[np.float32]:
        """The largest value of each map, (B, U)."""
        return floats(self.high)


def floats(keys: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Return the float32 that keys stand for."""
    return (keys ^ ((keys >> 31) & 0x7FFFFFFF)).view(np.float32)


def keys_of(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Return the keys of float32 that are not NaN."""
    return np.asarray(floats(values.view(np.int32)).view(np.int32))


def maps_of(maps: npt.ArrayLike | Maps, units: int, *, seen: int = 0, workers: int = 1) -> Maps:
    """Take a batch of maps (B, U, h, w), or of values (B, U); read where it lies if that is channels first or last.

    What was taken already is returned as it is, so that several who look at a batch check it once.

    Raises
    ------
    SchemaError
        If it is of another shape or kind.
    NonFiniteError
        If a value is NaN or infinite, naming the image (``seen`` came before) and the unit.
    """
    if isinstance(maps, Maps) and maps.values.shape[1] == units:
        return maps
    values = np.asarray(maps.values if isinstance(maps, Maps) else maps)
    if values.dtype.kind != "f" or values.ndim not in (2, 4) or values.shape[1] != units or not all(values.shape[1:]):
        raise SchemaError(
            f"found {values.dtype} of shape {values.shape}; maps (images, {units} units, h, w) of floats are needed; "
            "bring the tokens of a transformer to their grid with neurolens.dissection.token_maps first"
        )
    values = values.reshape(*values.shape[:2], 1, 1) if values.ndim == 2 else values
    values = values.astype(np.float32, copy=False)
    if not values.transpose(0, 2, 3, 1).flags.c_contiguous:
        values = np.ascontiguousarray(values)
    high = np.empty((len(values), units), dtype=np.int32)
    magnitude = np.empty_like(high)
    found = Maps(values, high)
    bits, maxima = found.flat.view(np.int32), kernels.row_maxima if found.in_rows else kernels.map_maxima
    by_units(lambda a, b: maxima(a, b, bits, high, magnitude), units, workers)
    wrong = np.argwhere(magnitude >= kernels.FIRST_NON_FINITE)
    if len(wrong):
        image, unit = wrong[0]
        raise NonFiniteError(
            f"the map of unit {unit} on image {seen + image} holds NaN or infinity ({len(wrong)} maps of this batch "
            "do); thresholds and masks need finite activations: leave the checkpoint or the layer out"
        )
    return found


def by_units(work: Callable[[int, int], Any], units: int, workers: int) -> Sequence[Any]:
    """Call ``work(first, last)`` on ranges of units, in up to so many threads."""
    edges = np.linspace(0, units, min(max(1, workers), units) + 1).astype(int).tolist()
    return share(lambda edge: work(*edge), list(itertools.pairwise(edges)), len(edges) - 1)


def token_maps(
    tokens: npt.ArrayLike, grid: tuple[int, int], *, skip_first: int | None = None
) -> npt.NDArray[np.floating[Any]]:
    """Lay the tokens of a vision transformer, (B, T, U), on their grid: (B, U, h, w), a view.

    Parameters
    ----------
    tokens : (B, T, U)
        Class and register tokens first, then the patches row by row.
    grid : (h, w) of the patches
    skip_first
        How many tokens come before the patches; None: as many as there are more than patches.

    Raises
    ------
    SchemaError
        If there are not as many tokens as the grid needs.
    """
    values, (height, width) = np.asarray(tokens), grid
    first = values.shape[1] - height * width if values.ndim == 3 and skip_first is None else skip_first or 0
    if values.ndim != 3 or first < 0 or values.shape[1] != first + height * width:
        raise SchemaError(
            f"found activations of shape {values.shape} for a grid of {height} × {width} patches; "
            f"(images, {first if first > 0 else 'extra'} + {height * width} tokens, units) are needed"
        )
    return values[:, first:].reshape(len(values), height, width, -1).transpose(0, 3, 1, 2)
