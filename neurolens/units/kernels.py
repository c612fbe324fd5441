"""Compiled passes over live activations: one read of a tensor, every statistic of each (sample, unit) at once.

Two layouts are read as they lie in memory: maps (sample, unit, position), and rows (sample, position, unit), which is
what token models, dense layers and channels-last convolutions put out. Sums run in float64 on the differences from the
group's first value, so that nothing cancels; extremes and counts are exact. A group's numbers depend on that group
alone, whatever batch it lies in.

The kernels release the GIL and start no threads of their own: numba's thread pools abort when two threads enter them.
A NaN spreads to the sums of its own unit only.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

CHUNK = 1024
"""Values of a map that are read twice while they lie in the first cache."""

LANES = 512
"""Units (or repeated units) whose running sums stay in the first cache."""

_I32 = np.int32
_SIGN = np.int32(31)
_REST = np.int32(0x7FFFFFFF)
_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def compiled(kernel: _Kernel, **options: Any) -> _Kernel:
    """Compile a kernel that releases the GIL; kept between processes where there is a place to."""
    try:
        return cast(_Kernel, numba.njit(nogil=True, cache=True, **options)(kernel))
    except RuntimeError:  # nowhere to write the cache: compile in every process
        return cast(_Kernel, numba.njit(nogil=True, **options)(kernel))


def _reordering(kernel: _Kernel) -> _Kernel:
    return compiled(kernel, fastmath={"reassoc", "nsz"})


@_reordering
def _run_extremes(bits: Any) -> tuple[Any, Any, Any, Any]:
    """Smallest and largest key, and how many are above and other than zero.

    The key of a float32 is its bit pattern with the rest flipped where the sign is set: integers in the order of the
    floats, whose smallest and largest a compiler finds without being told that there are no NaNs.
    """
    low, high, positive, nonzero = _I32(0x7FFFFFFF), _I32(-0x80000000), _I32(0), _I32(0)
    for i in range(bits.size):
        pattern = bits[i]
        key = pattern ^ ((pattern >> _SIGN) & _REST)
        low, high = min(low, key), max(high, key)
        positive += _I32(pattern > _I32(0))
        nonzero += _I32((pattern & _REST) != _I32(0))
    return low, high, positive, nonzero


@_reordering
def _run_sums(values: Any, shift: float) -> tuple[float, float, float]:
    absolute, first, second = 0.0, 0.0, 0.0
    for i in range(values.size):
        value = np.float64(values[i])
        deviation = value - shift
        absolute += abs(value)
        first += deviation
        second += deviation * deviation
    return absolute, first, second


@compiled
def map_groups(
    first: int,
    last: int,
    values: Any,
    bits: Any,
    abs_sum: Any,
    mean: Any,
    m2: Any,
    low: Any,
    high: Any,
    positive: Any,
    nonzero: Any,
) -> None:
    """Write the statistics of every unit of maps (sample, unit, position), for samples ``first`` to ``last``.

    ``bits`` is the memory of ``values`` as int32, and ``low`` and ``high`` that of float32 arrays.
    """
    _, units, size = values.shape
    for b in range(first, last):
        for u in range(units):
            run, pattern = values[b, u], bits[b, u]
            shift = np.float64(run[0])
            a, s, q = 0.0, 0.0, 0.0
            lowest, highest, above, other = _I32(0x7FFFFFFF), _I32(-0x80000000), _I32(0), _I32(0)
            for start in range(0, size, CHUNK):
                stop = min(start + CHUNK, size)
                lowest_, highest_, above_, other_ = _run_extremes(pattern[start:stop])
                lowest, highest = min(lowest, lowest_), max(highest, highest_)
                above, other = _I32(above + above_), _I32(other + other_)
                a_, s_, q_ = _run_sums(run[start:stop], shift)
                a, s, q = a + a_, s + s_, q + q_
            squares = q - s * s / size
            abs_sum[b, u], mean[b, u], m2[b, u] = a, shift + s / size, 0.0 if squares < 0.0 else squares
            low[b, u] = lowest ^ ((lowest >> _SIGN) & _REST)
            high[b, u] = highest ^ ((highest >> _SIGN) & _REST)
            positive[b, u], nonzero[b, u] = above, other


@compiled
def _rows_extremes(v0: Any, v1: Any, v2: Any, v3: Any, low: Any, high: Any, positive: Any, nonzero: Any) -> None:
    for i in range(low.size):
        x0, x1, x2, x3 = v0[i], v1[i], v2[i], v3[i]
        lowest, highest = low[i], high[i]
        lowest = x0 if x0 < lowest else lowest
        lowest = x1 if x1 < lowest else lowest
        lowest = x2 if x2 < lowest else lowest
        lowest = x3 if x3 < lowest else lowest
        highest = x0 if x0 > highest else highest
        highest = x1 if x1 > highest else highest
        highest = x2 if x2 > highest else highest
        highest = x3 if x3 > highest else highest
        low[i], high[i] = lowest, highest
        positive[i] += _I32(x0 > 0) + _I32(x1 > 0) + _I32(x2 > 0) + _I32(x3 > 0)
        nonzero[i] += _I32(x0 != 0) + _I32(x1 != 0) + _I32(x2 != 0) + _I32(x3 != 0)


@compiled
def _row_extremes(values: Any, low: Any, high: Any, positive: Any, nonzero: Any) -> None:
    for i in range(values.size):
        x = values[i]
        low[i] = x if x < low[i] else low[i]
        high[i] = x if x > high[i] else high[i]
        positive[i] += _I32(x > 0)
        nonzero[i] += _I32(x != 0)


@compiled
def _rows_sums(v0: Any, v1: Any, v2: Any, v3: Any, shift: Any, a: Any, s: Any, q: Any) -> None:
    for i in range(a.size):
        x0, x1, x2, x3 = np.float64(v0[i]), np.float64(v1[i]), np.float64(v2[i]), np.float64(v3[i])
        k = shift[i]
        d0, d1, d2, d3 = x0 - k, x1 - k, x2 - k, x3 - k
        a[i] += (abs(x0) + abs(x1)) + (abs(x2) + abs(x3))
        s[i] += (d0 + d1) + (d2 + d3)
        q[i] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)


@compiled
def _row_sums(values: Any, shift: Any, a: Any, s: Any, q: Any) -> None:
    for i in range(values.size):
        x = np.float64(values[i])
        d = x - shift[i]
        a[i] += abs(x)
        s[i] += d
        q[i] += d * d


@compiled
def _single(values: Any, abs_sum: Any, mean: Any, m2: Any) -> None:
    for u in range(values.size):
        x = np.float64(values[u])
        abs_sum[u], mean[u], m2[u] = abs(x), x, x - x


@compiled
def _single_extremes(values: Any, low: Any, high: Any, positive: Any, nonzero: Any) -> None:
    for u in range(values.size):
        x = values[u]
        low[u], high[u], positive[u], nonzero[u] = x, x, x > 0, x != 0


@compiled
def _fold(rows: int, units: int) -> int:
    """How many rows are read as one wide one, where all are read: narrow rows leave the vector units idle."""
    return max(1, min(LANES // units, rows // 8))


@compiled
def row_groups(
    first: int,
    last: int,
    values: Any,
    at: Any,
    counts: Any,
    abs_sum: Any,
    mean: Any,
    m2: Any,
    low: Any,
    high: Any,
    positive: Any,
    nonzero: Any,
) -> None:
    """Write the statistics of every unit of rows (sample, position, unit), for samples ``first`` to ``last``.

    ``at[b, :counts[b]]`` are the positions that count; an ``at`` without columns: all. A group without positions gets
    zeros, and infinities for extremes.
    """
    _, size, units = values.shape
    masked = at.shape[1] > 0
    if size == 1 and not masked:
        for b in range(first, last):
            _single(values[b, 0], abs_sum[b], mean[b], m2[b])
            _single_extremes(values[b, 0], low[b], high[b], positive[b], nonzero[b])
        return
    repeats = 1 if masked else _fold(size, units)
    lanes = max(min(units, LANES), repeats * units)
    shifts, as_, ss, qs = np.empty(lanes), np.empty(lanes), np.empty(lanes), np.empty(lanes)
    lows, highs = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
    above, other = np.empty(lanes, np.int32), np.empty(lanes, np.int32)
    for b in range(first, last):
        flat = values[b].reshape(size * units)
        count = counts[b] if masked else size
        for left in range(0, units, LANES):
            width = min(LANES, units - left)
            wide = width * repeats
            start = (at[b, 0] if masked and count else 0) * units + left
            for i in range(wide):
                shifts[i] = flat[start + i % width] if count else 0.0
                as_[i], ss[i], qs[i] = 0.0, 0.0, 0.0
                lows[i], highs[i], above[i], other[i] = np.inf, -np.inf, 0, 0
            k, a, s, q = shifts[:wide], as_[:wide], ss[:wide], qs[:wide]
            low_, high_, p, n = lows[:wide], highs[:wide], above[:wide], other[:wide]
            step = repeats * units
            full = count // repeats
            for row in range(0, full - 3, 4):
                if masked:
                    o0, o1, o2, o3 = at[b, row], at[b, row + 1], at[b, row + 2], at[b, row + 3]
                else:
                    o0, o1, o2, o3 = row, row + 1, row + 2, row + 3
                o0, o1, o2, o3 = o0 * step + left, o1 * step + left, o2 * step + left, o3 * step + left
                v0, v1, v2, v3 = flat[o0 : o0 + wide], flat[o1 : o1 + wide], flat[o2 : o2 + wide], flat[o3 : o3 + wide]
                _rows_extremes(v0, v1, v2, v3, low_, high_, p, n)
                _rows_sums(v0, v1, v2, v3, k, a, s, q)
            for row in range(full - full % 4, full):
                o = (at[b, row] if masked else row) * step + left
                _row_extremes(flat[o : o + wide], low_, high_, p, n)
                _row_sums(flat[o : o + wide], k, a, s, q)
            for row in range(full * repeats, count):  # what no wide row took, where rows are read as wide ones
                o = row * units + left
                _row_extremes(flat[o : o + width], low_[:width], high_[:width], p[:width], n[:width])
                _row_sums(flat[o : o + width], k[:width], a[:width], s[:width], q[:width])
            for i in range(width):
                for again in range(i + width, wide, width):
                    a[i] += a[again]
                    s[i] += s[again]
                    q[i] += q[again]
                    low_[i], high_[i] = min(low_[i], low_[again]), max(high_[i], high_[again])
                    p[i] += p[again]
                    n[i] += n[again]
                divisor = max(count, 1)
                squares = q[i] - s[i] * s[i] / divisor
                u = left + i
                abs_sum[b, u], mean[b, u] = a[i], k[i] + s[i] / divisor
                m2[b, u] = 0.0 if squares < 0.0 else squares
                low[b, u], high[b, u], positive[b, u], nonzero[b, u] = low_[i], high_[i], p[i], n[i]


@compiled
def observations(count: Any, scale: float) -> float:
    """Return what a group counts for: n · (1 / n) is 1, which it need not be in floats."""
    return np.float64(count) if scale == 1.0 else 1.0


@compiled
def merge_groups(
    table: Any,
    counts: Any,
    scales: Any,
    abs_sum: Any,
    mean: Any,
    m2: Any,
    low: Any,
    high: Any,
    positive: Any,
    nonzero: Any,
) -> None:
    """Merge groups (sample, unit) into the statistics (8, unit), in order of the samples (Chan et al. 1979).

    A group has ``counts[b]`` observations, or is one where they are weighted alike by ``scales[b]`` = 1 / counts[b];
    what its units have summed is multiplied by that. All units have as many observations.
    """
    units = table.shape[1]
    n_, a_, mean_, m2_ = table[0], table[1], table[2], table[3]
    low_, high_, positive_, nonzero_ = table[4], table[5], table[6], table[7]
    for b in range(len(counts)):
        scale = scales[b]
        before, n = n_[0], observations(counts[b], scale)
        if n == 0.0:
            continue
        total = before + n
        towards, apart = n / total, before * n / total
        for u in range(units):
            deviation = mean[b, u] - mean_[u]
            mean_[u] += deviation * towards
            m2_[u] += m2[b, u] * scale + deviation * deviation * apart
            n_[u] = total
            a_[u] += abs_sum[b, u] * scale
        for u in range(units):
            lowest, highest = np.float64(low[b, u]), np.float64(high[b, u])
            low_[u] = lowest if lowest < low_[u] else low_[u]
            high_[u] = highest if highest > high_[u] else high_[u]
            positive_[u] += positive[b, u] * scale
            nonzero_[u] += nonzero[b, u] * scale


@_reordering
def _run_deviations(values: Any, centre: float) -> float:
    total = 0.0
    for i in range(values.size):
        total += abs(np.float64(values[i]) - centre)
    return total


@compiled
def map_deviations(first: int, last: int, values: Any, centres: Any, deviations: Any) -> None:
    """Write the summed absolute deviation from ``centres`` (unit,) of every (sample, unit) of maps."""
    for b in range(first, last):
        for u in range(values.shape[1]):
            deviations[b, u] = _run_deviations(values[b, u], centres[u])


@compiled
def row_deviations(first: int, last: int, values: Any, at: Any, counts: Any, centres: Any, deviations: Any) -> None:
    """Write the summed absolute deviation from ``centres`` (unit,) of every (sample, unit) of rows."""
    _, size, units = values.shape
    masked = at.shape[1] > 0
    for b in range(first, last):
        total = deviations[b]
        total[:] = 0.0
        for i in range(counts[b] if masked else size):
            row = values[b, at[b, i] if masked else i]
            for u in range(units):
                total[u] += abs(np.float64(row[u]) - centres[u])
