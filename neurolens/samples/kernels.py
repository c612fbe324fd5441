"""Compiled scans over a (series, sample) block: one read of the block, a carry per sample, float64 sums.

Every kernel walks strips of samples so that the carries stay in cache, and updates its carries in place; a series may
thus be fed block by block. The plain ones take 16 rows at a time, so that the carries pass through registers once for
all of them; the order of the sums stays. Arguments ``values, at`` are a block and the column where its samples
start: a slice of columns would hide from the compiler that a row lies in one piece. The kernels release the GIL and
start no threads of their own: numba's thread pools abort when a dask worker enters them twice, or when a process forks
after them.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

STRIP = 16384
ROWS = 16

_Kernel = TypeVar("_Kernel", bound=Callable[..., None])


def _compiled(kernel: _Kernel, **options: Any) -> _Kernel:
    try:
        return cast(_Kernel, numba.njit(nogil=True, cache=True, **options)(kernel))
    except RuntimeError:  # nowhere to write the cache: compile in every process
        return cast(_Kernel, numba.njit(nogil=True, **options)(kernel))


def _reordering(kernel: _Kernel) -> _Kernel:
    return _compiled(kernel, fastmath={"reassoc", "nsz"})


@_reordering
def row_sums(values: Any, at: int, width: int, sums: Any) -> None:
    """Write the sum of each row into ``sums``; NaN spreads."""
    for row in range(len(values)):
        line = values[row, at : at + width]
        total = 0.0
        for i in range(width):
            total += np.float64(line[i])
        sums[row] = total


@_compiled
def _add_rows(values: Any, row: int, at: int, total: Any) -> None:
    for i in range(len(total)):
        t = total[i]
        for k in range(ROWS):
            t += values[np.uint64(row + k), np.uint64(at + i)]  # unsigned: no check for counting from the end
        total[i] = t


@_compiled
def add(values: Any, at: int, total: Any) -> None:
    """Add each sample's values to ``total``, in order of the rows; NaN spreads."""
    rows, width = len(values), len(total)
    for low in range(0, width, STRIP):
        high = min(low + STRIP, width)
        t = total[low:high]
        for row in range(0, rows - ROWS + 1, ROWS):
            _add_rows(values, row, at + low, t)
        for row in range(rows - rows % ROWS, rows):
            v = values[row, at + low : at + high]
            for i in range(high - low):
                t[i] += v[i]


@_compiled
def add_present(values: Any, at: int, power: int, exposed: Any, codes: Any, total: Any, count: Any, lost: Any) -> None:
    """Add the powers of each sample's present, exposed values; ``lost[row]`` counts exposed NaNs."""
    rows, width = len(values), len(total)
    for low in range(0, width, STRIP):
        high = min(low + STRIP, width)
        t, n, c = total[low:high], count[low:high], codes[low:high]
        for row in range(rows):
            v, classes = values[row, at + low : at + high], exposed[row]
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
def moments(
    values: Any, at: int, exposed: Any, codes: Any, first: Any, shift: Any, square: Any, count: Any, lost: Any
) -> None:
    """Sums of deviations from each sample's first value and of their squares: a stable one-pass variance."""
    rows, width = len(values), len(count)
    for low in range(0, width, STRIP):
        high = min(low + STRIP, width)
        f, s, q, n, c = first[low:high], shift[low:high], square[low:high], count[low:high], codes[low:high]
        for row in range(rows):
            v, classes = values[row, at + low : at + high], exposed[row]
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
def _run_rows(values: Any, row: int, at: int, before: int, tau: float, total: Any, below: Any) -> None:
    for i in range(len(total)):
        t, b = total[i], below[i]
        for k in range(ROWS):
            t += values[np.uint64(row + k), np.uint64(at + i)]
            b += t < tau * (before + k + 1)
        total[i], below[i] = t, b


@_compiled
def running(values: Any, at: int, done: int, tau: float, total: Any, below: Any) -> None:
    """Count where the running mean is below ``tau``, every value being present; ``done`` rows came before."""
    rows, width = len(values), len(total)
    for low in range(0, width, STRIP):
        high = min(low + STRIP, width)
        t, b = total[low:high], below[low:high]
        for row in range(0, rows - ROWS + 1, ROWS):
            _run_rows(values, row, at + low, done + row, tau, t, b)
        for row in range(rows - rows % ROWS, rows):
            v = values[row, at + low : at + high]
            limit = tau * (done + row + 1)
            for i in range(high - low):
                s = t[i] + v[i]
                t[i] = s
                b[i] += s < limit


@_compiled
def running_present(
    values: Any, at: int, exposed: Any, codes: Any, tau: Any, total: Any, count: Any, below: Any, means: Any, lost: Any
) -> None:
    """The same over present, exposed values, ``tau`` per sample; ``means`` adds up each sample's running means."""
    rows, width = len(values), len(total)
    for low in range(0, width, STRIP):
        high = min(low + STRIP, width)
        t, n, b, m = total[low:high], count[low:high], below[low:high], means[low:high]
        c, limit = codes[low:high], tau[low:high]
        for row in range(rows):
            v, classes = values[row, at + low : at + high], exposed[row]
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
def running_seed(
    values: Any,
    at: int,
    losses: Any,
    losses_at: int,
    done: int,
    tau: Any,
    total: Any,
    below: Any,
    means: Any,
    lost: Any,
) -> None:
    """The reference's way: the loss stands in for a missing gradient, and the running sum is float32."""
    rows, width = len(values), len(total)
    for low in range(0, width, STRIP):
        high = min(low + STRIP, width)
        t, b, m, limit = total[low:high], below[low:high], means[low:high], tau[low:high]
        for row in range(rows):
            v, stand_in = values[row, at + low : at + high], losses[row, losses_at + low : losses_at + high]
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
    at: int,
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
    rows, width = len(correct), len(count)
    for row in range(rows):
        line, classes = correct[row, at : at + width], exposed[row]
        gone = 0
        for i in range(width):
            value = np.float64(line[i])
            shown = classes[codes[i]]
            here = shown and value == value
            gone += shown and not here
            if here:
                turn = count[i]
                if value > 0.5:
                    if first_right[i] < 0:
                        first_right[i] = turn
                    last_right[i] = turn
                    right[i] += 1
                else:
                    events[i] += turn > 0 and last_right[i] == turn - 1
                    last_wrong[i] = turn
                count[i] = turn + 1
        lost[row] += gone
