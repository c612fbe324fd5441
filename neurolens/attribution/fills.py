"""What is put in the place of pixels that are taken away: a value, the mean, a blurred picture, noisy interpolation."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neurolens.errors import DataError, SchemaError, nearest

Fill = Literal["zero", "mean", "blur", "road"] | float | Tensor | Callable[[Tensor, Tensor], Tensor]

_AROUND = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
_NEIGHBOURS = [(dy, dx, 1 / 6 if 0 in (dy, dx) else 1 / 12) for dy, dx in _AROUND]


def filled(x: Tensor, masks: Tensor, fill: Fill = "zero") -> Tensor:
    """Return samples with something else in the place of some pixels.

    Parameters
    ----------
    x : (B, channel, y, x) or (B, input)
        Samples as the network takes them.
    masks : (B, y, x) or (B, input) bool
        True where something is taken away, in all channels.
    fill : {"zero", "mean", "blur", "road"}, number, tensor, or callable
        What comes there, in the values that the network is given: zero is the mean colour where pictures are
        normalised. A tensor is a value per channel, ``(channel, 1, 1)``, or a sample. The mean is that of each channel
        of the sample. "blur" and "road" are `blur_fill` and `road_fill`; for other settings give
        ``partial(road_fill, noise=0)``, or any function of samples and masks.

    Returns
    -------
    Tensor like ``x``
        Where a mask is False, what was there.

    Raises
    ------
    SchemaError
        If the fill is unknown, or does not fit the samples.
    DataError
        If samples and masks do not fit, or the fill needs pictures.
    """
    if x.ndim not in (2, 4) or masks.dtype != torch.bool or masks.shape != (len(x), *x.shape[1 + (x.ndim == 4) :]):
        raise DataError(
            f"found samples of shape {tuple(x.shape)} and masks of {masks.dtype} and shape {tuple(masks.shape)}, and "
            "(B, channel, y, x) with bool (B, y, x), or (B, input) with bool (B, input), were needed"
        )
    return torch.where(masks[:, None] if x.ndim == 4 else masks, _put(x, masks, fill), x)


def blur_fill(x: Tensor, masks: Tensor, *, sigma: float = 5.0) -> Tensor:
    """Return the pictures blurred by a Gaussian, for `filled`.

    Parameters
    ----------
    x : (B, channel, y, x)
    masks : (B, y, x) bool
        Not looked at: pixels that are taken away show in the blur.
    sigma
        Width of the Gaussian, in pixels. Beyond the border there is nothing: weights inside add up to 1.

    Returns
    -------
    Tensor like ``x``

    Raises
    ------
    SchemaError
        If the width is not above 0.
    DataError
        If these are no pictures.

    References
    ----------
    Petsiuk et al. 2018, "RISE", section 4.3 (the width; its kernel is cut off at 11 pixels).
    """
    _require_pictures(x, "blur")
    if not sigma > 0:
        raise SchemaError(f"sigma={sigma} is no width of a blur; give a number of pixels above 0, e.g. 5")
    rows, columns = (_smoothing(size, sigma, x) for size in x.shape[-2:])
    return rows @ x @ columns.mT


def road_fill(x: Tensor, masks: Tensor, *, noise: float = 0.01, seed: int = 0) -> Tensor:
    """Return the pictures interpolated where they are masked, with a little noise, for `filled`.

    Each masked pixel is the weighted mean of its eight neighbours, direct ones with weight 1/6, diagonal ones with
    1/12, which is one sparse linear system per mask. A mask's shape tells little from such a picture.

    Parameters
    ----------
    x : (B, channel, y, x)
    masks : (B, y, x) bool
    noise
        Standard deviation of what is added to masked pixels, in the values that the network is given.
    seed
        Decides the noise: one picture of it for all masks, so that no result depends on what is filled beside it.

    Returns
    -------
    Tensor like ``x``

    Raises
    ------
    DataError
        If these are no pictures, or of one nothing is left to interpolate from.

    References
    ----------
    Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods", section 4.2.
    """
    _require_pictures(x, "road")
    if bool(masks.flatten(1).all(dim=1).any()):
        raise DataError(
            "found a mask of a whole picture, and noisy interpolation needs a pixel that is left; take away less, or "
            "fill with the mean"
        )
    added = noise * np.random.default_rng(seed).standard_normal(tuple(x.shape[1:]))
    out = x.clone()
    for picture, mask in zip(out, masks.cpu().numpy(), strict=True):
        if not mask.any():
            continue
        values = _interpolated(picture.detach().double().cpu().numpy(), mask) + added[:, mask]
        picture[:, torch.as_tensor(mask, device=x.device)] = torch.as_tensor(values).to(x)
    return out


_NAMED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"blur": blur_fill, "road": road_fill}


def _put(x: Tensor, masks: Tensor, fill: Fill) -> Tensor:
    if isinstance(fill, str):
        if fill == "zero":
            return torch.zeros_like(x)
        if fill == "mean":
            return x.mean(dim=tuple(range(2 if x.ndim == 4 else 1, x.ndim)), keepdim=True).expand_as(x)
        if fill not in _NAMED:
            raise SchemaError(f"fill={fill!r} is unknown; {nearest(fill, ('zero', 'mean', *_NAMED))}")
        return _NAMED[fill](x, masks)
    put = fill(x, masks) if callable(fill) else torch.as_tensor(fill).to(x)
    try:
        return put.expand_as(x)
    except RuntimeError:
        raise SchemaError(
            f"found a fill of shape {tuple(put.shape)} for samples of shape {tuple(x.shape[1:])}; give a number, a "
            "value per channel as (channel, 1, 1), or one sample"
        ) from None


def _smoothing(size: int, sigma: float, like: Tensor) -> Tensor:
    """Return the matrix that blurs a line of pixels, (size, size)."""
    places = torch.arange(size, dtype=torch.float64)
    weights = torch.exp(-((places[:, None] - places) ** 2) / (2 * sigma**2))
    return (weights / weights.sum(dim=1, keepdim=True)).to(like)


def _interpolated(picture: npt.NDArray[Any], mask: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return what a picture (channel, y, x) is in masked pixels by its other ones, (channel, pixels) float64."""
    from scipy.sparse import csc_array
    from scipy.sparse.linalg import splu

    y, x = np.nonzero(mask)
    unknown = np.arange(len(y))
    number = np.zeros(mask.shape, dtype=np.int64)
    number[mask] = unknown
    total, right = np.zeros(len(y)), np.zeros((len(y), len(picture)))
    rows, columns, weights = [unknown], [unknown], [total]
    for dy, dx, weight in _NEIGHBOURS:
        inside = (y + dy >= 0) & (y + dy < mask.shape[0]) & (x + dx >= 0) & (x + dx < mask.shape[1])
        total[inside] += weight
        at, ny, nx = unknown[inside], y[inside] + dy, x[inside] + dx
        masked = mask[ny, nx]
        right[at[~masked]] += weight * picture[:, ny[~masked], nx[~masked]].T
        rows.append(at[masked])
        columns.append(number[ny[masked], nx[masked]])
        weights.append(np.full(int(masked.sum()), -weight))
    entries = np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))
    solved: npt.NDArray[Any] = splu(csc_array(entries, shape=(len(y), len(y)))).solve(right)
    return solved.T


def _require_pictures(x: Tensor, fill: str) -> None:
    if x.ndim != 4:
        raise DataError(
            f"found samples of shape {tuple(x.shape)}, and fill {fill!r} needs pictures, (B, channel, y, x); fill with "
            "zero, a number, or the mean"
        )
