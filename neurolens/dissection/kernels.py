"""Compiled passes over maps: the largest of each, candidates for the top quantile, and masks against bitplanes.

Floats are compared by keys: the bit pattern of a float32 with the rest flipped where the sign is set is an int32 in the
order of the floats, so that a compiler finds the largest of many at once, and digits of it can be counted.

The kernels release the GIL and start no threads of their own: numba's thread pools abort when two threads enter them.
Each works on the units ``first`` to ``last`` and writes to theirs alone, so that threads may share a batch by units.
"""

from typing import Any

import numpy as np

from neurolens.dissection import lanes
from neurolens.dissection.lanes import GROUP
from neurolens.units.kernels import compiled

LOWEST = -0x7F800001
"""The key of -infinity, below that of every finite float."""

FIRST_NON_FINITE = 0x7F800000
"""Magnitude of the bits of infinity; those of NaNs are larger."""

_I32, _U64 = np.int32, np.uint64
_SIGN, _REST = np.int32(31), np.int32(0x7FFFFFFF)
_ONE, _ZERO = np.uint64(1), np.uint64(0)


def inlined(kernel: Any) -> Any:
    """Compile a kernel into those that call it: references to arrays handed over are counted, which takes as long."""
    return compiled(kernel, inline="always")


@compiled
def map_maxima(first: int, last: int, bits: Any, high: Any, magnitude: Any) -> None:
    """Write the largest key and magnitude of each map of ``bits`` (sample, unit, position), as (sample, unit)."""
    samples, _, size = bits.shape
    for b in range(samples):
        for u in range(first, last):
            run = bits[b, u]
            top, worst = _I32(-0x80000000), _I32(0)
            for i in range(size):
                pattern = run[i]
                top = max(top, pattern ^ ((pattern >> _SIGN) & _REST))
                worst = max(worst, pattern & _REST)
            high[b, u], magnitude[b, u] = top, worst


@compiled
def row_maxima(first: int, last: int, bits: Any, high: Any, magnitude: Any) -> None:
    """The same for ``bits`` (sample, position, unit)."""
    samples, size, _ = bits.shape
    for b in range(samples):
        top, worst = high[b, first:last], magnitude[b, first:last]
        top[:] = _I32(-0x80000000)
        worst[:] = _I32(0)
        for i in range(size):
            run = bits[b, i, first:last]
            for u in range(last - first):
                pattern = run[u]
                top[u] = max(top[u], pattern ^ ((pattern >> _SIGN) & _REST))
                worst[u] = max(worst[u], pattern & _REST)


@compiled
def collect_maps(
    first: int, last: int, values: Any, bits: Any, high: Any, bound: Any, limit: Any, kept: Any, fill: Any, start: int
) -> int:
    """Append the keys of ``values`` (sample, unit, position) above each unit's bound to its row of ``kept``.

    ``bits`` are the values as patterns, ``limit`` is the bound as a float. Goes on from sample ``start``, and returns
    the sample before which it stopped since a row might not hold what it has; the number of all without.
    """
    samples: int = values.shape[0]
    units, size = values.shape[1:]
    whole = size - size % GROUP
    for b in range(start, samples):
        if not has_room(first, last, size, high, bound, kept, fill, b):
            return b
        for u in range(first, last):
            if high[b, u] <= bound[u]:
                continue
            at, floor = fill[u], limit[u]
            for i in range(0, whole, GROUP):
                some = lanes.exceed(values, (b * units + u) * size + i, floor)
                while some:
                    pattern = bits[b, u, i + lanes.first_one(some)]
                    kept[u, at] = pattern ^ ((pattern >> _SIGN) & _REST)
                    at += 1
                    some &= some - _ONE
            for i in range(whole, size):
                pattern = bits[b, u, i]
                kept[u, at] = pattern ^ ((pattern >> _SIGN) & _REST)
                at += values[b, u, i] > floor
            fill[u] = at
    return samples


@compiled
def collect_rows(
    first: int, last: int, values: Any, bits: Any, high: Any, bound: Any, limit: Any, kept: Any, fill: Any, start: int
) -> int:
    """The same for ``values`` (sample, position, unit)."""
    samples: int = values.shape[0]
    size, units = values.shape[1:]
    whole = last - (last - first) % GROUP
    for b in range(start, samples):
        if not has_room(first, last, size, high, bound, kept, fill, b):
            return b
        for i in range(size):
            for u in range(first, whole, GROUP):
                some = lanes.exceed_each(values, (b * size + i) * units + u, limit, u)
                while some:
                    v = u + lanes.first_one(some)
                    pattern = bits[b, i, v]
                    kept[v, fill[v]] = pattern ^ ((pattern >> _SIGN) & _REST)
                    fill[v] += 1
                    some &= some - _ONE
            for u in range(whole, last):
                if values[b, i, u] > limit[u]:
                    pattern = bits[b, i, u]
                    kept[u, fill[u]] = pattern ^ ((pattern >> _SIGN) & _REST)
                    fill[u] += 1
    return samples


@inlined
def has_room(first: int, last: int, size: int, high: Any, bound: Any, kept: Any, fill: Any, b: int) -> bool:
    """Tell whether each row of ``kept`` holds the map of sample ``b``, if it has anything above its bound."""
    most, full = kept.shape[1] - size, False
    for u in range(first, last):
        full |= (high[b, u] > bound[u]) & (fill[u] > most)
    return not full


@compiled
def count_digits(keys: Any, shift: int, width: int, prefix: int, counts: Any) -> None:
    """Count the next ``width`` bits above ``shift`` of the keys, as unsigned, that begin with ``prefix``."""
    mask = (1 << width) - 1
    for i in range(keys.size):
        unsigned = np.int64(keys[i]) + 0x80000000
        if unsigned >> (shift + width) == prefix:
            counts[(unsigned >> shift) & mask] += 1


@compiled
def digit_of(counts: Any, rank: int) -> tuple[int, int]:
    """Return the digit that the ``rank``-th largest key has (from 1), and its rank among the keys with that digit."""
    digit = counts.size - 1
    while rank > counts[digit]:
        rank -= counts[digit]
        digit -= 1
    return digit, rank


@compiled
def sift(keys: Any, bound: int, ties: int) -> tuple[int, int]:
    """Move the keys above the bound, and the first so many equal to it, to the front: how many, and ties left."""
    at = 0
    for i in range(keys.size):
        key = keys[i]
        if key > bound:
            keys[at] = key
            at += 1
        elif key == bound and ties > 0:
            keys[at] = key
            at += 1
            ties -= 1
    return at, ties


@compiled
def _bits(low: int, high: int) -> Any:
    """Return the word with bits ``low`` to ``high`` set, 64 at most."""
    if high <= low:
        return _ZERO
    return (~_ZERO >> _U64(64 - (high - low))) << _U64(low)


@inlined
def draw_mask(
    values: Any,
    limit: Any,
    bound: float,
    starts: Any,
    one: Any,
    two: Any,
    across: int,
    left: Any,
    right: Any,
    first: Any,
    second: Any,
    need: Any,
    shared: int,
    hot: Any,
    upper: Any,
    lower: Any,
    mask: Any,
) -> tuple[int, int]:
    """Set the pixels of an upsampled map that exceed the threshold, in a mask of zeros.

    ``values`` (h, w) has rows filled up to whole groups; ``starts`` to ``across`` are those of
    `neurolens.dissection.upsampling.pixel_rows`, and ``left`` to ``shared`` those of ``pixel_columns``. A pixel is a
    mean, so only groups of pixels with a value above the ``limit`` around them are computed: across, rounded to
    float32, then down, rounded to float32, as Pillow does for images of floats. The last rounding is left out: what it
    brings above the limit is above the ``bound``.
    Returns the first word of the mask that may not be 0, and the last.
    """
    height, width = values.shape
    for i in range(height):
        word = _ZERO
        for j in range(0, width, GROUP):
            some = lanes.exceed(values, i * width + j, limit)
            word |= _U64(some != _ZERO) << _U64(j // shared) if shared else some << _U64(j)
        hot[i] = word
    hot[height] = hot[height - 1]
    low, high = mask.size, -1
    for i in range(height):
        seen = hot[i] | hot[i + 1]
        if seen == _ZERO or starts[i] == starts[i + 1]:
            continue
        above, below = i * width, min(i + 1, height - 1) * width
        low, high = min(low, (starts[i] * across) >> 6), max(high, (starts[i + 1] * across - 1) >> 6)
        g = 0
        while g < need.size:
            if seen & need[g] == _ZERO:
                g += 1
                continue
            x0, size = g * GROUP, 0
            while g < need.size and size < 64 and seen & need[g] != _ZERO:
                lanes.across(values, above, left, right, first, second, x0 + size, upper, size)
                lanes.across(values, below, left, right, first, second, x0 + size, lower, size)
                size += GROUP
                g += 1
            inside = _bits(0, min(size, across - x0))
            for y in range(starts[i], starts[i + 1]):
                run = _ZERO
                for k in range(0, size, GROUP):
                    run |= lanes.down(upper, lower, k, one[y], two[y], bound) << _U64(k)
                run &= inside
                at = y * across + x0
                place, shift = at >> 6, _U64(at & 63)
                mask[place] |= run << shift
                mask[place + 1] |= (run >> _ONE) >> (_U64(63) - shift)  # by 64 - shift, which may be 64
    return low, high


@compiled
def tally_units(
    first: int,
    last: int,
    values: Any,
    high: Any,
    limit: Any,
    bound: Any,
    rows: Any,
    columns: Any,
    starts: Any,
    concept: Any,
    area: Any,
    words: Any,
    category: Any,
    block: Any,
    intersection: Any,
    unit_area: Any,
    unit_area_lite: Any,
) -> None:
    """Add what the masks of ``values`` (sample, unit, h, w) have in common with the bitplanes of each sample.

    The planes of sample b are rows ``starts[b, 0]`` to ``starts[b, 1]`` of concept, area and words. ``intersection``
    is (block, concept, unit): the counts that an image adds to lie close together.
    """
    samples, _, height, width = values.shape
    pixels = rows[1].size * rows[3]
    mask = np.zeros(words.shape[1] + 1, np.uint64)
    touched, drawn = np.empty(mask.size, np.int64), np.empty(mask.size, np.uint64)
    row_starts, one, two, across = rows
    left, right, first_, second, need, shared = columns
    hot, upper, lower = np.empty(height + 1, np.uint64), np.empty(64), np.empty(64)
    filled = -(-width // GROUP) * GROUP
    one_map = np.full((height, filled), np.float32(-np.inf))
    shown = np.zeros(unit_area.shape[2], np.bool_)
    inside = np.zeros(unit_area.shape[2], np.bool_)
    for b in range(samples):
        at = block[b]
        shown[:] = False
        for r in range(starts[b, 0], starts[b, 1]):
            if area[r] > 0:
                shown[category[concept[r]]] = True
        for u in range(first, last):
            if not high[b, u] > limit[u]:
                continue
            for i in range(height):
                for j in range(width):
                    one_map[i, j] = values[b, u, i, j]
            low, top = draw_mask(
                one_map,
                limit[u],
                bound[u],
                row_starts,
                one,
                two,
                across,
                left,
                right,
                first_,
                second,
                need,
                shared,
                hot,
                upper,
                lower,
                mask,
            )
            n = 0
            size: Any = _ZERO
            for k in range(low, top + 1):
                word = mask[k]
                mask[k] = _ZERO
                touched[n], drawn[n] = k, word
                size += lanes.ones(word)
                n += word != _ZERO
            inside[:] = False
            for r in range(starts[b, 0], starts[b, 1]):
                common = _ZERO
                if area[r] == pixels:
                    common = size
                else:
                    for k in range(n):
                        common += lanes.ones(drawn[k] & words[r, touched[k]])
                if common:
                    intersection[at, concept[r], u] += np.uint32(common)
                    inside[category[concept[r]]] = True
            for c in range(shown.size):
                if shown[c]:
                    unit_area[at, u, c] += np.int64(size)
                if inside[c]:
                    unit_area_lite[at, u, c] += np.int64(size)


@compiled
def tally_concepts(starts: Any, concept: Any, area: Any, block: Any, concept_area: Any) -> None:
    """Add the areas of the concepts of each sample: rows ``starts[b, 0]`` to ``starts[b, 1]`` of concept and area."""
    for b in range(len(block)):
        for r in range(starts[b, 0], starts[b, 1]):
            concept_area[block[b], concept[r]] += area[r]
