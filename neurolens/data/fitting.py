"""Images of different sizes, and their labels, brought to one size alike."""

from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from neurolens.data.folders import FileImages, decode
from neurolens.data.samples import Pixels
from neurolens.errors import DataError

Fit = Literal["exact", "crop", "squash"]


class FittedImages:
    """Image files below a root as RGB of one size, decoded when asked for.

    Attributes
    ----------
    size : (h, w)
    fit
        ``crop``: the largest centred part of the same aspect; ``squash``: all of the image, its aspect given up.
        Pixels are interpolated bilinearly, over the area of a pixel where the image is made smaller.
    """

    def __init__(self, root: Path, names: tuple[str, ...], size: tuple[int, int], fit: Fit) -> None:
        self.root = root
        self.names: tuple[str, ...] = names
        self.size = size
        self.fit: Fit = fit

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return (*self.size, 3)

    def __len__(self) -> int:
        return len(self.names)

    def load(self, indices: npt.ArrayLike) -> Pixels:
        """Return the images, uint8 (n, h, w, 3)."""
        at = np.asarray(indices, dtype=np.int64)
        images = np.empty((len(at), *self.shape), dtype=np.uint8)
        for image, i in zip(images, at):
            pixels = decode(self.root / self.names[i])
            picture = Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
            image[...] = np.asarray(fitted(picture, self.size, self.fit, Image.Resampling.BILINEAR))
        return images

    def digests(self) -> list[str]:
        """Return the digest of every image: of its whole content, the size and the fit."""
        way = f"|{self.size[0]}x{self.size[1]}|{self.fit}"
        whole = FileImages(self.root, self.names).digests()
        return [blake2b((digest + way).encode(), digest_size=8).hexdigest() for digest in whole]

    def take(self, indices: npt.ArrayLike) -> "FittedImages":
        """Return the source restricted to these positions, in this order."""
        names = tuple(self.names[i] for i in np.asarray(indices, dtype=np.int64))
        return FittedImages(self.root, names, self.size, self.fit)


def fitted(picture: Image.Image, size: tuple[int, int], fit: Fit, resample: Image.Resampling) -> Image.Image:
    """Bring a picture to (h, w): the largest centred part of that aspect where ``fit`` is crop, all of it otherwise."""
    (h, w), (width, height) = size, picture.size
    box = (0.0, 0.0, float(width), float(height))
    if fit == "crop":
        scale = min(width / w, height / h)
        left, top = (width - w * scale) / 2, (height - h * scale) / 2
        box = (left, top, left + w * scale, top + h * scale)
    return picture.resize((w, h), resample, box)


def file_size(path: Path) -> tuple[int, int]:
    """Return (h, w) of an image file without decoding it; DataError where it is none."""
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except FileNotFoundError:
        raise DataError(f"{path} is not there; unpack the data set again") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be decoded ({error}); restore the file from the data set") from None
