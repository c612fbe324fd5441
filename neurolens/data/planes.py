"""Label files: pictures whose pixels are numbers of labels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from neurolens.data.fitting import Fit, fitted
from neurolens.errors import DataError

Plane = npt.NDArray[np.uint16]
LARGEST = 65535
"""The largest number that a label may have: R + 256 G."""


@dataclass(frozen=True)
class LabelFiles:
    """Label files below a root, and how they become planes of one size.

    Attributes
    ----------
    size : (h, w) of every plane
    fit
        ``exact``: a file of another size is an error. ``crop``: the largest centred part of the same aspect is taken,
        then the nearest pixel; ``squash``: the nearest pixel, the aspect given up.
    ignored : numbers that mean no label, besides 0
    """

    root: Path
    size: tuple[int, int]
    fit: Fit = "exact"
    ignored: tuple[int, ...] = ()

    def plane(self, name: str) -> Plane:
        """Return one file as (h, w) numbers of labels, 0 where there is none.

        Raises
        ------
        DataError
            If it is not there, is no picture of labels, or has another size where ``fit`` is exact.
        """
        path = self.root / name
        plane = label_plane(path)
        if self.fit != "exact":
            picture = fitted(Image.fromarray(plane), self.size, self.fit, Image.Resampling.NEAREST)
            plane = np.asarray(picture, dtype=np.uint16)
        elif plane.shape != self.size:
            (h, w), (sh, sw) = plane.shape, self.size
            raise DataError(f"{path} is {h} x {w} pixels, and labels of {sh} x {sw} were needed (h x w); make it anew")
        if self.ignored:
            plane = np.where(np.isin(plane, self.ignored), np.uint16(0), plane)
        return plane


def label_plane(path: Path) -> Plane:
    """Read a picture of labels as (h, w) uint16.

    The number of a pixel is its index in a palette, its grey value (8 or 16 bits), or R + 256 G of colours without
    blue, as Broden writes them.

    Raises
    ------
    DataError
        If the file is not there, cannot be decoded, or is a picture in colours.
    """
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            values = np.asarray(picture.convert("RGB") if mode in ("RGBA", "RGBX") else picture)
    except FileNotFoundError:
        raise DataError(f"{path} is not there; unpack the labels again") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be decoded ({error}); restore the file from the data set") from None
    if values.ndim == 2:
        if values.dtype.kind not in "biu" or values.min(initial=0) < 0 or values.max(initial=0) > LARGEST:
            raise DataError(f"{path} holds {values.dtype} values, and labels are whole numbers from 0 to {LARGEST}")
        return values.astype(np.uint16)
    if values.shape[2] != 3:
        raise DataError(f"{path} is a picture of mode {mode}; labels are a palette, grey values, or R + 256 G")
    if values[..., 2].any():
        raise DataError(
            f"{path} is a picture in colours (some pixels have blue), and the number of a label is R + 256 G; write "
            "the labels as a palette picture, as grey values of 8 or 16 bits, or as R + 256 G"
        )
    return values[..., 0] + np.uint16(256) * values[..., 1]
