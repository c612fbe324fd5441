"""Histograms of activations over 256 logarithmic bins that need no range: the top 8 bits of a float16.

A value is rounded to the nearest float16 (ties to even) and counted under its sign, its 5 bits of exponent and the
upper 2 of its mantissa, so a bin is at most 25 % wide. Bin 0 holds +0 and what is smaller than 2⁻¹⁶, bin 128 −0 and the
same below zero; what rounds to infinity (65520 and more) is in bins 124 and 252, NaN in 126 and 254.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from neurolens.units.kernels import compiled

BINS = 256
LIMIT = 2**32 - 2
"""Most observations that one bin of the store holds; one more means *not measured*."""


def bin_edges() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the lower and upper edge of each bin, (256,) each, in the order of the bins.

    A bin holds the float16 numbers from ``low`` to just below ``high`` (above zero), or from just above ``low`` to
    ``high`` (below); 65520 is where float16 rounds to infinity. Bins 124 and 252 hold the infinities alone: both edges
    are infinite; those of NaN are NaN.
    """
    patterns = np.arange(128, dtype=np.uint32) << 8
    magnitude = patterns.astype(np.uint16).view(np.float16).astype(np.float64)
    upper = np.append(magnitude[1:], np.nan)
    finite = patterns < 0x7C00
    upper[patterns == 0x7C00] = np.inf
    magnitude[patterns > 0x7C00] = upper[patterns > 0x7C00] = np.nan
    upper[np.flatnonzero(finite)[-1]] = 65520.0
    return np.concatenate([magnitude, -upper]), np.concatenate([upper, -magnitude])


@compiled
def _bin(pattern: Any) -> Any:
    """Return the bin of a float32 by its bits: round to float16 in integers, then drop the low 8 bits."""
    sign = (pattern >> 24) & 0x80
    magnitude = pattern & 0x7FFFFFFF
    if magnitude > 0x7F800000:
        return sign | 0x7E
    if magnitude >= 0x477FF000:  # 65520: halfway to what would follow 65504
        return sign | 0x7C
    if magnitude < 0x38800000:  # below 2⁻¹⁴: a float16 without leading one
        exponent = magnitude >> 23
        if exponent < 102:  # below 2⁻²⁵
            return sign
        mantissa = (magnitude & 0x7FFFFF) | 0x800000
        drop = 126 - exponent
        half = mantissa >> drop
        rest, tie = mantissa & ((1 << drop) - 1), 1 << (drop - 1)
        half += rest > tie or (rest == tie and half & 1)
        return sign | (half >> 8)
    half = (magnitude - 0x38000000 + 0xFFF + ((magnitude >> 13) & 1)) >> 13
    return sign | (half >> 8)


@compiled
def count_maps(bits: Any, totals: Any) -> None:
    """Add maps (sample, unit, position), the bits of float32, to ``totals`` (unit, 256)."""
    for b in range(bits.shape[0]):
        for u in range(bits.shape[1]):
            line = totals[u]
            for value in bits[b, u]:
                line[_bin(value)] += 1


@compiled
def count_rows(bits: Any, at: Any, counts: Any, totals: Any) -> None:
    """Add rows (sample, position, unit), the bits of float32, to ``totals`` (unit, 256)."""
    masked = at.shape[1] > 0
    for b in range(bits.shape[0]):
        for i in range(counts[b] if masked else bits.shape[1]):
            row = bits[b, at[b, i] if masked else i]
            for u in range(row.size):
                totals[u, _bin(row[u])] += 1
