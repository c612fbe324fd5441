"""Compiled passes that keep of maps what may decide their masks: values above a bound, and those next to them.

A map is laid into rows filled up to whole groups, with -infinity where there is nothing. Of it are kept the places and
values within one step, also diagonally, of a value above the bound.
"""

from typing import Any

import numpy as np

from neurolens.dissection import lanes
from neurolens.dissection.kernels import inlined
from neurolens.dissection.lanes import GROUP
from neurolens.units.kernels import compiled

_U64 = np.uint64
_ONE, _ZERO, _LAST = np.uint64(1), np.uint64(0), np.uint64(63)


@inlined
def keep_near(one_map: Any, width: int, limit: Any, hot: Any, wide: Any, places: Any, values: Any, n: int) -> int:
    """Append the places and values of a map next to one above the limit; return how many there are now.

    ``hot`` and ``wide`` are bits (h + 2, words + 2), zero at their edges.
    """
    height, filled = one_map.shape
    words = hot.shape[1] - 2
    for i in range(height):
        for k in range(words):
            hot[i + 1, k + 1] = _ZERO
        for j in range(0, filled, GROUP):
            hot[i + 1, 1 + (j >> 6)] |= lanes.exceed(one_map, i * filled + j, limit) << _U64(j & 63)
    for i in range(1, height + 1):
        for k in range(1, words + 1):
            bits = hot[i, k]
            wide[i, k] = bits | (bits << _ONE) | (bits >> _ONE) | (hot[i, k - 1] >> _LAST) | (hot[i, k + 1] << _LAST)
    for i in range(height):
        for k in range(words):
            left = wide[i, k + 1] | wide[i + 1, k + 1] | wide[i + 2, k + 1]
            if width - 64 * k < 64:
                left &= (_ONE << _U64(width - 64 * k)) - _ONE
            while left:
                j = 64 * k + lanes.first_one(left)
                places[n] = i * width + j
                values[n] = one_map[i, j]
                n += 1
                left &= left - _ONE
    return n


@compiled
def pack_maps(start: int, maps: Any, high: Any, bound: Any, limit: Any, entries: Any, places: Any, values: Any) -> Any:
    """Keep what matters of ``maps`` (sample, unit, h, w) with a value above their unit's bound, from ``start`` on.

    Each has an entry (sample, unit, number of values). Stops before a sample that might not fit; returns its number,
    how many entries there are, and how many values.
    """
    samples, units, height, width = maps.shape
    filled = -(-width // GROUP) * GROUP
    one_map = np.full((height, filled), np.float32(-np.inf))
    hot = np.zeros((height + 2, -(-filled // 64) + 2), np.uint64)
    wide = np.zeros_like(hot)
    e, n, b = 0, 0, start
    while b < samples and e + units <= len(entries) and n + units * height * width <= len(values):
        for u in range(units):
            if high[b, u] <= bound[u]:
                continue
            for i in range(height):
                for j in range(width):
                    one_map[i, j] = maps[b, u, i, j]
            m = keep_near(one_map, width, limit[u], hot, wide, places, values, n)
            if m > n:
                entries[e, 0], entries[e, 1], entries[e, 2] = b, u, m - n
                e, n = e + 1, m
        b += 1
    return b, e, n


@compiled
def pack_again(shape: Any, limit: Any, entries: Any, places: Any, values: Any) -> Any:
    """Keep, of what was kept, what still matters with higher bounds, in place; return how many entries and values."""
    height, width = shape
    filled = -(-width // GROUP) * GROUP
    one_map = np.full((height, filled), np.float32(-np.inf))
    hot = np.zeros((height + 2, -(-filled // 64) + 2), np.uint64)
    wide = np.zeros_like(hot)
    e, n, at = 0, 0, 0
    for row in range(len(entries)):
        b, u, count = entries[row, 0], entries[row, 1], entries[row, 2]
        for k in range(at, at + count):
            one_map[places[k] // width, places[k] % width] = values[k]
        m = keep_near(one_map, width, limit[u], hot, wide, places, values, n)
        one_map[:] = np.float32(-np.inf)
        at += count
        if m > n:
            entries[e, 0], entries[e, 1], entries[e, 2] = b, u, m - n
            e, n = e + 1, m
    return e, n


@compiled
def lay_out(limit: Any, entries: Any, places: Any, values: Any, maps: Any, largest: Any) -> None:
    """Lay what was kept into ``maps`` (sample, unit, position), with the limit elsewhere, and write their largest."""
    at = 0
    for row in range(len(entries)):
        b, u, count = entries[row, 0], entries[row, 1], entries[row, 2]
        for i in range(maps.shape[2]):
            maps[b, u, i] = limit[u]
        top = np.float32(-np.inf)
        for k in range(at, at + count):
            maps[b, u, places[k]] = values[k]
            top = max(top, values[k])
        largest[b, u] = top
        at += count
