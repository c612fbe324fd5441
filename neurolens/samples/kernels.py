"""Compiled scans over a (series, sample) block: one read of the block, a carry per sample, float64 sums.

Every kernel walks strips of samples so that the carries stay in cache, and updates its carries in place; a series may
thus be fed block by block. The kernels release the GIL and start no threads of their own: numba's thread pools abort
when a dask worker enters them twice, or when a process forks after them.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

STRIP = 2048

_Kernel = TypeVar("_Kernel", bound=Callable[..., None])


def _compiled(kernel: _Kernel) -> _Kernel:
    return cast(_Kernel, numba.njit(nogil=True, cache=True)(kernel))


def _reordering(kernel: _Kernel) -> _Kernel:
    return cast(_Kernel, numba.njit(nogil=True, cache=True, fastmath={"reassoc", "nsz"})(kernel))


@_reordering
def row_sums(values: Any, sums: Any) -> None:
    """Write the sum of each row into ``sums``; NaN spreads."""
    rows, width = values.shape
    for row in range(rows):
        line = values[row]
        total = 0.0
        for i in range(width):
            total += np.float64(line[i])
        sums[row] = total


@_compiled
def add(values: Any, total: Any) -> None:
    """Add each sample's values to ``total``; NaN spreads."""
    rows, width = values.shape
    for low in range(0, width, STRIP):
        high = min(low + STRIP, width)
        t = total[low:high]
        for row in range(rows):
            v = values[row, low:high]
            for i in range(high - low):
                t[i] += v[i]


@_compiled
def add_present(values: Any, power: int, exposed: Any, codes: Any, total: Any, count: Any, lost: Any) -> None:
    """Add the powers of each sample's present, exposed values; ``lost[row]`` counts exposed NaNs."""
    rows, width = values.shape
    for low in range(0, width, STRIP):
        high = min(low + STRIP, width)
        t, n, c = total[low:high], count[low:high], codes[low:high]
        for row in range(rows):
            v, classes = values[row, low:high], exposed[row]
            gone = 0
            for i in range(high - low):
                value = np.float64(v[i])
                shown = classes[c[i]]
                here = shown and value == value
                gone += shown and not here
                if power == 2:
                    value *= value
                t[i] += value if here else 0.0
                n[i] += here
            lost[row] += gone


@_compiled
def moments(values: Any, exposed: Any, codes: Any, first: Any, shift: Any, square: Any, count: Any, lost: Any) -> None:
    """Sums of deviations from each sample's first value and of their squares: a stable one-pass variance."""
    rows, width = values.shape
    for low in range(0, width, STRIP):
        high = min(low + STRIP, width)
        f, s, q, n, c = first[low:high], shift[low:high], square[low:high], count[low:high], codes[low:high]
        for row in range(rows):
            v, classes = values[row, low:high], exposed[row]
            gone = 0
            for i in range(high - low):
                value = np.float64(v[i])
                shown = classes[c[i]]
                here = shown and value == value
                gone += shown and not here
                if here:
                    if n[i] == 0:
                        f[i] = value
                    deviation = value - f[i]
                    s[i] += deviation
                    q[i] += deviation * deviation
                    n[i] += 1
            lost[row] += gone


@_compiled
def running(values: Any, done: int, tau: float, total: Any, below: Any) -> None:
    """Count where the running mean is below ``tau``, every value being present; ``done`` rows came before."""
    rows, width = values.shape
    for low in range(0, width, STRIP):
        high = min(low + STRIP, width)
        t, b = total[low:high], below[low:high]
        for row in range(rows):
            v = values[row, low:high]
            limit = tau * (done + row + 1)
            for i in range(high - low):
                s = t[i] + v[i]
                t[i] = s
                b[i] += s < limit


@_compiled
def running_present(
    values: Any, exposed: Any, codes: Any, tau: Any, total: Any, count: Any, below: Any, means: Any, lost: Any
) -> None:
    """The same over present, exposed values, ``tau`` per sample; ``means`` adds up each sample's running means."""
    rows, width = values.shape
    for low in range(0, width, STRIP):
        high = min(low + STRIP, width)
        t, n, b, m = total[low:high], count[low:high], below[low:high], means[low:high]
        c, limit = codes[low:high], tau[low:high]
        for row in range(rows):
            v, classes = values[row, low:high], exposed[row]
            gone = 0
            for i in range(high - low):
                value = np.float64(v[i])
                shown = classes[c[i]]
                here = shown and value == value
                gone += shown and not here
                if here:
                    n[i] += 1
                    t[i] += value
                    mean = t[i] / n[i]
                    m[i] += mean
                    b[i] += mean < limit[i]
            lost[row] += gone


@_compiled
def running_seed(values: Any, losses: Any, done: int, tau: Any, total: Any, below: Any, means: Any, lost: Any) -> None:
    """The reference's way: the loss stands in for a missing gradient, and the running sum is float32."""
    rows, width = values.shape
    for low in range(0, width, STRIP):
        high = min(low + STRIP, width)
        t, b, m, limit = total[low:high], below[low:high], means[low:high], tau[low:high]
        for row in range(rows):
            v, stand_in = values[row, low:high], losses[row, low:high]
            n = np.float64(done + row + 1)
            gone = 0
            for i in range(high - low):
                value = np.float32(v[i])
                if value != value:
                    value = np.float32(stand_in[i])
                gone += value != value
                t[i] += value
                mean = np.float64(t[i]) / n
                m[i] += mean
                b[i] += mean < limit[i]
            lost[row] += gone


@_compiled
def presentations(
    correct: Any,
    exposed: Any,
    codes: Any,
    count: Any,
    right: Any,
    events: Any,
    first_right: Any,
    last_right: Any,
    last_wrong: Any,
    lost: Any,
) -> None:
    """Toneva et al.'s statistics; positions count from 0 over each sample's own presentations, -1 means never."""
    rows, width = correct.shape
    for row in range(rows):
        line, classes = correct[row], exposed[row]
        gone = 0
        for i in range(width):
            value = np.float64(line[i])
            shown = classes[codes[i]]
            here = shown and value == value
            gone += shown and not here
            if here:
                at = count[i]
                if value > 0.5:
                    if first_right[i] < 0:
                        first_right[i] = at
                    last_right[i] = at
                    right[i] += 1
                else:
                    events[i] += at > 0 and last_right[i] == at - 1
                    last_wrong[i] = at
                count[i] = at + 1
        lost[row] += gone
