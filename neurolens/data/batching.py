"""Samples as normalised batches on a device: from memory where the set fits, else decoded as they are needed."""

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as images_to

from neurolens.data.samples import Indices, Pixels, SampleSet, in_threads
from neurolens.errors import DataError
from neurolens.study import Preprocessing

_GIB = 2.0**30
_resident: "weakref.WeakKeyDictionary[Any, dict[Any, torch.Tensor]]" = weakref.WeakKeyDictionary()
_lock = threading.RLock()


class Batch(NamedTuple):
    """Some samples: x float32 (B, C, H, W) normalised, y int64 (B,), both on the device, and positions in the set."""

    x: torch.Tensor
    y: torch.Tensor
    indices: Indices


def batches(
    samples: SampleSet,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    device: str | torch.device = "cpu",
    indices: npt.ArrayLike | None = None,
    workers: int | None = None,
    channels_last: bool = False,
) -> Iterator[Batch]:
    """Yield the samples in order, preprocessed, with no gradient attached and no augmentation.

    Where the preprocessed set is at most ``samples.resident_gib`` as uint8, it is kept on the device between calls and
    a batch is one gather, one multiplication and one addition; otherwise a DataLoader decodes batches ahead in
    ``workers`` threads (decoding and resizing release the interpreter lock, and threads, unlike forked workers, are
    safe beside numba and Prefect).

    Parameters
    ----------
    preprocessing : resolved, with mean and std
        Pixels are in [0, 1] before ``(pixel - mean) / std``. As many channels as ``mean`` has: grey images are
        repeated, colour images turned to luma (ITU-R 601) where they differ.
    indices : positions in the set, in the order wanted; all by default
    workers : decoding threads; by default the cores, at most 8
    channels_last : lay x out as (B, H, W, C) in memory

    Raises
    ------
    DataError
        If images differ in size after preprocessing, or one is smaller than the crop.
    """
    device = torch.device(device)
    at = np.arange(len(samples)) if indices is None else np.asarray(indices, dtype=np.int64)
    chunks = [at[i : i + batch_size] for i in range(0, len(at), batch_size)]
    labels = torch.from_numpy(np.ascontiguousarray(samples.labels)).to(device)
    scale, shift = normalisation(preprocessing, device)
    shown = _pixel_batches(samples, preprocessing, chunks, device=device, workers=workers, channels_last=channels_last)
    for chunk, pixels in zip(chunks, shown):
        x = normalise(pixels, scale, shift)
        yield Batch(x, labels[torch.from_numpy(chunk).to(device)], chunk)


def _pixel_batches(
    samples: SampleSet,
    preprocessing: Preprocessing,
    chunks: Sequence[Indices],
    *,
    device: torch.device,
    workers: int | None,
    channels_last: bool,
) -> Iterator[torch.Tensor]:
    """Yield uint8 (B, C, H, W) on the device for each chunk of positions, preprocessed but not normalised."""
    held = resident(samples, preprocessing, device, channels_last=channels_last)
    if held is not None:
        for chunk in chunks:
            pixels = held.index_select(0, torch.from_numpy(chunk).to(device))
            yield channels_first(pixels, channels_last=True) if channels_last else pixels
        return
    for array in decoded(samples, chunks, partial(prepare, preprocessing=preprocessing), workers=workers):
        yield channels_first(torch.from_numpy(array).to(device, non_blocking=True), channels_last=channels_last)


def decoded(
    samples: SampleSet, chunks: Sequence[Indices], prepare_one: Any, *, workers: int | None
) -> Iterator[Pixels]:
    """Yield uint8 (B, H, W, C) per chunk through a DataLoader, two batches ahead; ``prepare_one(image, index)``."""
    threads = workers or _threads()
    loader = torch.utils.data.DataLoader(
        _Decoding(samples, prepare_one, threads),
        batch_sampler=[chunk.tolist() for chunk in chunks],
        num_workers=0,
        collate_fn=_stack,
    )
    rest = iter(loader)
    ahead: deque[Any] = deque()
    with ThreadPoolExecutor(1) as pool:
        for _ in range(min(2, len(chunks))):
            ahead.append(pool.submit(next, rest))
        for done in range(len(chunks)):
            array = ahead.popleft().result()
            if done + 2 < len(chunks):
                ahead.append(pool.submit(next, rest))
            yield array


class _Decoding(torch.utils.data.Dataset[Pixels]):
    """Decodes a batch of positions at once, in threads."""

    def __init__(self, samples: SampleSet, prepare_one: Any, threads: int) -> None:
        self.samples, self.prepare_one, self.threads = samples, prepare_one, threads

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Pixels:
        image: Pixels = self.prepare_one(self.samples.images.load([index])[0], index=index)
        return image

    def __getitems__(self, indices: Sequence[int]) -> list[Pixels]:
        return in_threads(self.__getitem__, list(indices), threads=self.threads)


def resident(
    samples: SampleSet, preprocessing: Preprocessing, device: torch.device, *, channels_last: bool = True
) -> torch.Tensor | None:
    """Return the whole preprocessed set as uint8 on the device, or None where it is too large.

    (N, H, W, C), or (N, C, H, W) without ``channels_last``: as batches are wanted, since turning bytes around costs
    more than normalising them. Kept for as long as ``samples.images`` lives, so that measuring many checkpoints decodes
    the images once.
    """
    resizing = (preprocessing.resize, preprocessing.crop, preprocessing.interpolation)
    key = (*resizing, _channels(preprocessing), str(device), channels_last)
    with _lock:
        held = _resident.setdefault(samples.images, {}).get(key)
        if held is not None or not len(samples):
            return held
        source = samples.images
        as_is = preprocessing.resize is None and preprocessing.crop is None
        if source.shape is not None and as_is and source.shape[2] == _channels(preprocessing):
            if len(samples) * np.prod(source.shape) > samples.resident_gib * _GIB:
                return None
            pixels = np.asarray(source.load(np.arange(len(samples))))
        else:
            first = prepare(source.load([0])[0], preprocessing=preprocessing)
            if len(samples) * first.nbytes > samples.resident_gib * _GIB:
                return None
            decoding = _Decoding(samples, partial(prepare, preprocessing=preprocessing), _threads())
            pixels = np.empty((len(samples), *first.shape), dtype=np.uint8)
            for start in range(0, len(samples), 1024):
                stop = min(start + 1024, len(samples))
                pixels[start:stop] = _stack(decoding.__getitems__(range(start, stop)), like=first.shape)
        turned = torch.from_numpy(np.ascontiguousarray(pixels))
        held = turned if channels_last else channels_first(turned, channels_last=False)
        held = _resident[samples.images][key] = held.to(device)
        return held


def prepare(image: Pixels, *, preprocessing: Preprocessing, index: int = 0) -> Pixels:
    """Resize the shorter side (Pillow), centre-crop, and fit the channels; uint8 (H, W, C) in and out."""
    if preprocessing.resize is not None:
        image = resized(image, preprocessing.resize, preprocessing.interpolation)
    if preprocessing.crop is not None:
        top, left = ((side - preprocessing.crop) / 2 for side in image.shape[:2])
        image = cropped(image, preprocessing.crop, round(top), round(left), index=index)
    return fit_channels(image, _channels(preprocessing))


def resized(image: Pixels, shorter: int, interpolation: str | None = None) -> Pixels:
    """Resize to a shorter side, keeping the aspect, as torchvision's Resize does on Pillow images; None: bilinear."""
    if min(image.shape[:2]) == shorter:
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    out = np.asarray(images_to.resize(picture, [shorter], InterpolationMode(interpolation or "bilinear")))
    return out.reshape(*out.shape[:2], image.shape[2])


def cropped(image: Pixels, side: int, top: int, left: int, *, index: int) -> Pixels:
    """Return the square with this corner; DataError where the image is smaller."""
    height, width = image.shape[:2]
    if min(height, width) < side:
        raise DataError(
            f"image {index} is {height} x {width}, smaller than the crop of {side}; "
            "set model.preprocessing.resize to at least the crop"
        )
    return image[top : top + side, left : left + side]


def fit_channels(image: Pixels, channels: int) -> Pixels:
    """Repeat grey images, or turn colour ones to luma, where the network wants it."""
    if image.shape[2] == channels:
        return image
    if image.shape[2] == 1:
        return np.repeat(image, channels, axis=2)
    if channels == 1:
        return np.asarray(Image.fromarray(image).convert("L"))[..., None]
    raise DataError(f"images have {image.shape[2]} channels and the network takes {channels}; convert the images first")


def normalisation(preprocessing: Preprocessing, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and shift, (1, C, 1, 1) float32: ``x * scale + shift`` is (x / 255 - mean) / std."""
    _channels(preprocessing)
    mean = torch.tensor(preprocessing.mean, dtype=torch.float64).reshape(1, -1, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=torch.float64).reshape(1, -1, 1, 1)
    return (1 / (255 * std)).to(device, torch.float32), (-mean / std).to(device, torch.float32)


def channels_first(pixels: torch.Tensor, *, channels_last: bool) -> torch.Tensor:
    """Return (B, H, W, C) as (B, C, H, W): the same memory where it is to be ``channels_last``, else turned around."""
    turned = pixels.permute(0, 3, 1, 2)
    return turned if channels_last else turned.contiguous()


def normalise(pixels: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Turn uint8 (B, C, H, W) into float32, normalised; in place, which on CPUs is thrice as fast as addcmul."""
    with torch.no_grad():
        return pixels.float().mul_(scale).add_(shift)


def _stack(arrays: list[Pixels], like: tuple[int, ...] | None = None) -> Pixels:
    shape = like or arrays[0].shape
    odd = next((array.shape for array in arrays if array.shape != shape), None)
    if odd is not None:
        raise DataError(
            f"images differ in size: {shape[0]} x {shape[1]} and {odd[0]} x {odd[1]}; "
            "set model.preprocessing.resize and crop"
        )
    return np.stack(arrays)


def _channels(preprocessing: Preprocessing) -> int:
    if preprocessing.mean is None or preprocessing.std is None or len(preprocessing.mean) != len(preprocessing.std):
        raise DataError(
            f"preprocessing has mean {preprocessing.mean} and std {preprocessing.std}; need one per channel "
            "(models.build resolves them)"
        )
    return len(preprocessing.mean)


def _threads() -> int:
    return min(8, os.cpu_count() or 1)
