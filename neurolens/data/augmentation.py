"""Training batches whose augmentation is a pure function of (seed, epoch, sample): the same on every resumption."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as images_to

from neurolens.data import draws
from neurolens.data.batching import (
    Batch,
    channels_first,
    cropped,
    decoded,
    fit_channels,
    normalisation,
    normalise,
    prepare,
    resident,
)
from neurolens.data.batching import resized as resize
from neurolens.data.samples import Indices, Pixels, SampleSet
from neurolens.study import Preprocessing

_AREA, _LOG_RATIO, _TRIES = (0.08, 1.0), (np.log(3 / 4), np.log(4 / 3)), 10


def training_batches(
    samples: SampleSet,
    preprocessing: Preprocessing,
    chunks: Sequence[Indices],
    *,
    augment: Sequence[str],
    keys: draws.Keys,
    seed: int,
    epoch: int,
    device: torch.device,
    workers: int | None = None,
    channels_last: bool = False,
) -> Iterator[Batch]:
    """Yield one augmented, normalised batch per chunk of positions.

    ``crop`` is a random crop of ``preprocessing.crop`` from the resized image, or, where the preprocessing crops
    nothing, of the image padded with black by an eighth of its side (4 pixels at 32). ``flip`` mirrors left and right
    with probability 1/2. ``random_resized_crop`` draws area (8–100 %) and aspect (3/4–4/3) as Szegedy et al. 2015 and
    scales to the preprocessing's crop, or else its resize, or else the image's own shorter side.

    Parameters
    ----------
    keys : (sample,) uint64
        ``draws.keys(samples.ids)``.
    """
    augmenter = _Augmenter(preprocessing, tuple(augment), keys, seed, epoch)
    labels = torch.from_numpy(np.ascontiguousarray(samples.labels)).to(device)
    scale, shift = normalisation(preprocessing, device)
    held = None if augmenter.per_image else resident(samples, preprocessing, device)
    arrays = iter(()) if held is not None else decoded(samples, chunks, augmenter.image, workers=workers)
    for chunk in chunks:
        at = torch.from_numpy(chunk).to(device)
        raw = held.index_select(0, at) if held is not None else torch.from_numpy(next(arrays)).to(device)
        pixels = channels_first(augmenter.batch(raw, chunk), channels_last=channels_last)
        yield Batch(normalise(pixels, scale, shift), labels[at], chunk)


class _Augmenter:
    """The augmentations of one epoch."""

    def __init__(
        self, preprocessing: Preprocessing, augment: tuple[str, ...], keys: draws.Keys, seed: int, epoch: int
    ) -> None:
        self.preprocessing, self.augment, self.keys, self.words = preprocessing, augment, keys, (seed, epoch)
        self.crops_image = "crop" in augment and preprocessing.crop is not None
        self.per_image = "random_resized_crop" in augment or self.crops_image

    def image(self, image: Pixels, index: int) -> Pixels:
        """Augment one decoded image, where that must happen before images share a size."""
        table = self.preprocessing
        if "random_resized_crop" in self.augment:
            image = self._random_resized_crop(image, self.keys[index : index + 1])
        elif self.crops_image and table.crop is not None:
            image = resize(image, table.resize, table.interpolation) if table.resize is not None else image
            room = np.maximum(np.array(image.shape[:2]) - table.crop, 0) + 1
            down, right = (self._draw(self.keys[index : index + 1], word)[0] for word in ("down", "right"))
            image = cropped(image, table.crop, int(down * room[0]), int(right * room[1]), index=index)
        else:
            return prepare(image, preprocessing=table, index=index)
        return fit_channels(image, len(table.mean or ()))

    def batch(self, pixels: torch.Tensor, chunk: Indices) -> torch.Tensor:
        """Augment uint8 (B, H, W, C) of one size."""
        keys, device = self.keys[chunk], pixels.device
        if "crop" in self.augment and not self.crops_image:
            _, height, width, _ = pixels.shape
            pad = max(1, min(height, width) // 8)
            down, right = (
                torch.from_numpy((self._draw(keys, word) * (2 * pad + 1)).astype(np.int64)).to(device)
                for word in ("down", "right")
            )
            padded = torch.nn.functional.pad(pixels, (0, 0, pad, pad, pad, pad))
            rows = (down[:, None] + torch.arange(height, device=device))[:, :, None]
            columns = (right[:, None] + torch.arange(width, device=device))[:, None, :]
            pixels = padded[torch.arange(len(pixels), device=device)[:, None, None], rows, columns]
        if "flip" in self.augment:
            mirrored = torch.from_numpy(self._draw(keys, "flip") < 0.5).to(device)
            pixels = torch.where(mirrored[:, None, None, None], pixels.flip(2), pixels)
        return pixels

    def _draw(self, keys: draws.Keys, *words: int | str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return draws.uniform(keys, *self.words, *words)

    def _random_resized_crop(self, image: Pixels, key: draws.Keys) -> Pixels:
        height, width, channels = image.shape
        side = self.preprocessing.crop or self.preprocessing.resize or min(height, width)
        h = w = min(height, width)
        top, left = (height - h) // 2, (width - w) // 2
        for attempt in range(_TRIES):
            area, ratio, down, right = (
                float(self._draw(key, attempt, word)[0]) for word in ("area", "ratio", "y", "x")
            )
            area = height * width * (_AREA[0] + area * (_AREA[1] - _AREA[0]))
            ratio = float(np.exp(_LOG_RATIO[0] + ratio * (_LOG_RATIO[1] - _LOG_RATIO[0])))
            new_w, new_h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if 0 < new_w <= width and 0 < new_h <= height:
                h, w = new_h, new_w
                top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
                break
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
        how = InterpolationMode(self.preprocessing.interpolation or "bilinear")
        out = np.asarray(images_to.resized_crop(picture, top, left, h, w, [side, side], how))
        return out.reshape(side, side, channels)
