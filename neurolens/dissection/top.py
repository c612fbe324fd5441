"""The images that excite each unit most, found while images go by."""

from typing import Any

import numpy as np
import numpy.typing as npt

_NONE = 2**31 - 1  # after every position of an image


class Top:
    """The largest activations of each unit over the images, each image counted by the maximum of its map.

    Parameters
    ----------
    units : U
    ranks : how many images are kept of each
    """

    def __init__(self, units: int, ranks: int) -> None:
        self._values = np.full((units, ranks), -np.inf, dtype=np.float32)
        self._images = np.full((units, ranks), _NONE, dtype=np.int32)

    def add(self, largest: npt.ArrayLike, images: npt.ArrayLike) -> None:
        """Look at the largest activations of a batch.

        Parameters
        ----------
        largest : (B, U) float32, finite
        images : (B,) positions of the images, each shown once
        """
        ranks = self._values.shape[1]
        values, at = np.asarray(largest, dtype=np.float32), np.asarray(images, dtype=np.int32)
        if not ranks or not len(at):
            return
        rising = np.flatnonzero(values.max(axis=0) >= self._values[:, -1])
        joined = np.concatenate([self._values[rising], values[:, rising].T], axis=1)
        places = np.concatenate([self._images[rising], np.broadcast_to(at, (len(rising), len(at)))], axis=1)
        order = np.lexsort((places, -joined), axis=1)[:, :ranks]
        self._values[rising] = np.take_along_axis(joined, order, axis=1)
        self._images[rising] = np.take_along_axis(places, order, axis=1)

    def variables(self) -> dict[str, npt.NDArray[Any]]:
        """Return the top by name, as the concepts cube has it without the series.

        ``top_value`` (unit, rank) float32, decreasing, equal ones in the order of the images, and ``top_sample`` (unit,
        rank) int32, their positions; NaN and -1 at ranks that there are not enough images for. They are the same
        whatever the order of the images and the batches.
        """
        known = self._images != _NONE
        return {
            "top_value": np.where(known, self._values + np.float32(0), np.float32(np.nan)),  # -0 becomes 0
            "top_sample": np.where(known, self._images, np.int32(-1)),
        }
