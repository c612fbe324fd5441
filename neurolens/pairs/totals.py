"""Scalars summed up while images go by: mean, spread and extremes of every pair, for when the cube is not kept."""

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import NonFiniteError, SchemaError

Array = npt.NDArray[Any]
_LAST = np.uint64(0xFFFFFFFF)
_BLOCK = 16384  # pairs whose extremes are sorted at once


class ScalarTotals:
    """Running mean, spread and the largest and smallest scalars of every pair.

    Memory: 16·ranks bytes a pair, 118 MB for RN50x16 at 50 ranks; up to 50·ranks bytes while batches are taken in and
    when what is known is returned.

    Parameters
    ----------
    ranks : int
        How many of the largest and of the smallest are kept; the largest \\|s − s̄\\| are among them.
    """

    def __init__(self, *, ranks: int = 50) -> None:
        if ranks < 1:
            raise SchemaError(f"ranks={ranks} keeps nothing; pass how many extremes of each pair, 50 say")
        self._ranks, self._count = ranks, 0
        self._pairs: tuple[int, int] | None = None
        self._mean = self._m2 = np.empty(0)
        self._keys = np.empty((2, 0, 0), np.uint64)
        self._pending: list[tuple[Array, Array]] = []

    def add(self, scalar: xr.DataArray, positions: npt.ArrayLike | None = None) -> None:
        """Look at the scalars of a batch.

        Parameters
        ----------
        scalar : (sample, unit, head), finite
            As `scalars` gives them, of a batch; extremes are kept as float32.
        positions : (sample,) int, optional
            Of the images, each shown once; by default counted on.

        Raises
        ------
        SchemaError
            If the batch has other pairs than the ones before, or a position is no number from 0 on.
        NonFiniteError
            If a scalar is NaN or infinite.
        """
        if not isinstance(scalar, xr.DataArray) or set(scalar.dims) != {"sample", "unit", "head"}:
            found = scalar.dims if isinstance(scalar, xr.DataArray) else type(scalar).__name__
            raise SchemaError(f"found {found}, and scalars (sample, unit, head) were needed; give scalars(…)['scalar']")
        pairs = (scalar.sizes["unit"], scalar.sizes["head"])
        if self._pairs is None:
            self._pairs = pairs
            self._mean, self._m2 = np.zeros(pairs[0] * pairs[1]), np.zeros(pairs[0] * pairs[1])
            self._keys = np.zeros((2, pairs[0] * pairs[1], self._ranks), np.uint64)
        elif pairs != self._pairs:
            raise SchemaError(f"found a batch of {pairs} units by heads after {self._pairs}; use a total for each pool")
        values = scalar.transpose("sample", "head", "unit").to_numpy().reshape(-1, pairs[0] * pairs[1])
        seen = self._count + sum(len(v) for v, _ in self._pending)
        at = np.arange(seen, seen + len(values)) if positions is None else np.asarray(positions)
        if at.shape != (len(values),) or at.dtype.kind not in "iu" or (at < 0).any() or (at >= 2**32 - 1).any():
            raise SchemaError(f"found positions {at!r}, and {len(values)} whole numbers from 0 on were needed")
        if not np.isfinite(values).all():
            raise NonFiniteError(f"a scalar of the images at {at[:3].tolist()}… is NaN or infinite; measure them again")
        if len(values):
            self._pending.append((values.astype(np.result_type(values, np.float32)), at.astype(np.uint64)))
        if sum(len(v) for v, _ in self._pending) >= self._ranks:
            self._fold()

    def dataset(self) -> xr.Dataset:
        """Return what is known by now.

        Returns
        -------
        Dataset
            ``count``: images. ``mean``, ``std`` (unit, head) float64. ``top``, ``bottom`` (unit, head, rank) float32,
            the largest first and the smallest first, and ``top_sample``, ``bottom_sample`` int64, the positions of
            their images; equal ones in the order of the positions; NaN and -1 at ranks that there are not enough images
            for. Extremes do not depend on the order of the images, nor do the sums but for rounding.

        Raises
        ------
        SchemaError
            If there was no image.
        """
        if self._pending:
            self._fold()
        if self._pairs is None or not self._count:
            raise SchemaError("no image was added, and at least one was needed; add(scalars(…)['scalar'])")
        dims, shape = ("head", "unit"), (self._pairs[1], self._pairs[0])
        out = xr.Dataset({"count": self._count})
        out["mean"] = (dims, self._mean.reshape(shape), {"long_name": "mean scalar", "units": "activation"})
        std = np.sqrt(self._m2 / self._count).reshape(shape)
        out["std"] = (dims, std, {"long_name": "standard deviation of the scalar", "units": "activation"})
        for name, keys, flip in (("top", self._keys[0], False), ("bottom", self._keys[1], True)):
            values, samples = np.empty(keys.shape, np.float32), np.empty(keys.shape, np.int64)
            for start in range(0, len(keys), _BLOCK):
                part = slice(start, start + _BLOCK)
                values[part], samples[part] = _opened(np.sort(keys[part], axis=1)[:, ::-1], flip)
            values, samples = values.reshape(*shape, -1), samples.reshape(*shape, -1)
            out[name] = ((*dims, "rank"), values, {"long_name": f"{name} scalars", "units": "activation"})
            out[f"{name}_sample"] = ((*dims, "rank"), samples, {"long_name": "position of the image", "units": "1"})
        return out.transpose("unit", "head", "rank")

    def _fold(self) -> None:
        """Take in the batches that wait: sums by Chan's formula, extremes by one partial sort."""
        values = np.concatenate([v for v, _ in self._pending])
        at = np.concatenate([p for _, p in self._pending])
        self._pending = []
        mean = values.mean(axis=0, dtype=np.float64)
        m2 = np.zeros_like(mean)
        for row in values:
            m2 += (row - mean) ** 2
        n, more = self._count, len(values)
        gap = mean - self._mean
        self._m2 += m2 + gap**2 * (n * more / (n + more))
        self._mean += gap * (more / (n + more))
        self._count += more
        for start in range(0, values.shape[1], _BLOCK):
            part = slice(start, start + _BLOCK)
            ordered = _ordered(values[:, part].T)
            for keys, bits in ((self._keys[0], ordered), (self._keys[1], ordered ^ np.uint32(0xFFFFFFFF))):
                new = (bits.astype(np.uint64) << np.uint64(32)) | (_LAST - at)
                joined = np.concatenate([keys[part], new], axis=1)
                keys[part] = np.partition(joined, joined.shape[1] - self._ranks, axis=1)[:, -self._ranks :]


def _ordered(values: Array) -> Array:
    """Return float32 as uint32 in the same order: above all finite ones of either sign is nothing, and 0 is below."""
    bits = (np.ascontiguousarray(values, dtype=np.float32) + np.float32(0)).view(np.uint32)
    negative = (bits >> np.uint32(31)).astype(bool)
    return np.where(negative, ~bits, bits | np.uint32(0x80000000))


def _opened(keys: Array, flipped: bool) -> tuple[Array, Array]:
    """Return values and positions of keys."""
    bits = (keys >> np.uint64(32)).astype(np.uint32)
    bits = ~bits if flipped else bits
    raw = np.where(bits >> np.uint32(31), bits & np.uint32(0x7FFFFFFF), ~bits).astype(np.uint32)
    known = keys != 0
    samples = np.where(known, (_LAST - (keys & _LAST)).astype(np.int64), -1)
    return np.where(known, raw.view(np.float32), np.float32(np.nan)), samples
