"""Compiled passes over maps: the largest of each, candidates for the top quantile, and masks against bitplanes.

Floats are compared by keys: the bit pattern of a float32 with the rest flipped where the sign is set is an int32 in the
order of the floats, so that a compiler finds the largest of many at once, and digits of it can be counted.

The kernels release the GIL and start no threads of their own: numba's thread pools abort when two threads enter them.
Each works on the units ``first`` to ``last`` and writes to theirs alone, so that threads may share a batch by units.
"""

from typing import Any

import numpy as np
from numba.extending import intrinsic

from neurolens.units.kernels import compiled

LOWEST = np.iinfo(np.int32).min
"""A key below that of every float."""

FIRST_NON_FINITE = 0x7F800000
"""Magnitude of the bits of infinity; those of NaNs are larger."""

_I32, _U64 = np.int32, np.uint64
_SIGN, _REST = np.int32(31), np.int32(0x7FFFFFFF)
_ONE, _ZERO, _WORD = np.uint64(1), np.uint64(0), np.uint64(64)


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
def collect(first: int, last: int, bits: Any, high: Any, bound: Any, kept: Any, fill: Any, resume: Any) -> None:
    """Append the keys of ``bits`` (sample, unit, position) above each unit's bound to its row of ``kept``.

    A unit starts at sample ``resume[u]`` and stops, leaving its number there, where its row might not hold the next.
    """
    samples, _, size = bits.shape
    room = kept.shape[1]
    for u in range(first, last):
        b, at, above, row = resume[u], fill[u], bound[u], kept[u]
        while b < samples and (high[b, u] <= above or at + size <= room):
            if high[b, u] > above:
                for i in range(size):
                    pattern = bits[b, u, i]
                    key = pattern ^ ((pattern >> _SIGN) & _REST)
                    row[at] = key
                    at += key > above
            b += 1
        resume[u], fill[u] = b, at


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
def keep_largest(keys: Any, rank: int) -> int:
    """Move the ``rank`` largest keys to the front, and return the smallest of them."""
    prefix, left = 0, rank
    for shift, width in ((21, 11), (10, 11), (0, 10)):
        counts = np.zeros(1 << width, np.int64)
        count_digits(keys, shift, width, prefix, counts)
        digit, left = digit_of(counts, left)
        prefix = (prefix << width) | digit
    bound = prefix - 0x80000000
    sift(keys, bound, left)
    return bound


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


def _count_ones(_: Any, word: Any) -> Any:
    return word(word), lambda _context, builder, _signature, words: builder.ctpop(words[0])


_ones: Any = intrinsic(_count_ones)  # bits that are set: one instruction where the machine has it


@compiled
def _set_run(run: Any, start: int, mask: Any, touched: Any, n: int) -> int:
    """Set the bits of ``run`` from pixel ``start`` on in the mask; keep a list of its words that are not 0."""
    word, shift = start >> 6, _U64(start & 63)
    low = run << shift
    if low:
        if mask[word] == _ZERO:
            touched[n] = word
            n += 1
        mask[word] |= low
    high = (run >> _ONE) >> (_U64(63) - shift)  # by 64 - shift, which may be 64
    if high:
        if mask[word + 1] == _ZERO:
            touched[n] = word + 1
            n += 1
        mask[word + 1] |= high
    return n


@compiled
def _bits(low: int, high: int) -> Any:
    """Return the word with bits ``low`` to ``high`` set, 64 at most."""
    if high <= low:
        return _ZERO
    return (~_ZERO >> _U64(64 - (high - low))) << _U64(low)


@compiled
def _pixels_below(weight: float, start: float, per_weight: float, size: int) -> int:
    """Return how many of the weights start, start + 1/per_weight, …, held at 0 from below, do not exceed ``weight``."""
    if weight < 0:
        return 0
    return min(max(int(np.floor((min(weight, 2.0) - start) * per_weight)) + 1, 0), size)


@compiled
def draw_mask(values: Any, threshold: float, rows: Any, columns: Any, mask: Any, touched: Any) -> int:
    """Set the pixels of the upsampled map ``values`` (h, w) that exceed the threshold, in a mask of zeros.

    ``rows`` and ``columns`` are (first output of each cell, weight of its first value, of its second) per axis. A pixel
    is a mean, so only cells with a value above the threshold are looked at, and where a line of such a cell crosses
    the threshold follows from its ends. Only pixels nearer to it than rounding are computed: across, rounded to
    float32, then down, rounded to float32, as Pillow does for images of floats.
    Returns how many words of the mask are not 0; ``touched`` lists them.
    """
    row_starts, row_first, row_second = rows
    column_starts, column_first, column_second = columns
    height, width = values.shape
    across = column_first.size
    step, per_weight = width / across, across / width
    limit = np.float32(threshold)
    if np.float64(limit) > threshold:  # the largest float32 that is not above the threshold
        limit = np.nextafter(limit, np.float32(-np.inf))
    n = 0
    for i in range(height):
        i2 = min(i + 1, height - 1)
        hot = False
        for j in range(width):
            hot |= (values[i, j] > limit) | (values[i2, j] > limit)
        if not hot:
            continue
        for j in range(width):
            j2 = min(j + 1, width - 1)
            a, b, c, d = values[i, j], values[i, j2], values[i2, j], values[i2, j2]
            top, bottom = max(max(a, b), max(c, d)), min(min(a, b), min(c, d))
            if not top > limit:
                continue
            slack = 1e-6 * max(abs(np.float64(top)), abs(np.float64(bottom)))  # several times what rounding does
            for x0 in range(column_starts[j], column_starts[j + 1], 64):
                size = min(64, column_starts[j + 1] - x0)
                start = (x0 + 0.5) * step - 0.5 - j
                for y in range(row_starts[i], row_starts[i + 1]):
                    one, two = row_first[y], row_second[y]
                    left = one * np.float64(a) + two * np.float64(c)
                    right = one * np.float64(b) + two * np.float64(d)
                    if max(left, right) < threshold - slack:
                        continue
                    if bottom > limit or min(left, right) > threshold + slack:
                        n = _set_run(_bits(0, size), y * across + x0, mask, touched, n)
                        continue
                    slope = right - left
                    steep = 1.0 / slope if abs(slope) > slack else 0.0
                    if steep == 0:
                        run, low, high = _ZERO, 0, size
                    elif steep > 0:
                        low = _pixels_below((threshold - slack - left) * steep, start, per_weight, size)
                        high = _pixels_below((threshold + slack - left) * steep, start, per_weight, size)
                        run = _bits(high, size)
                    else:
                        low = _pixels_below((threshold + slack - left) * steep, start, per_weight, size)
                        high = _pixels_below((threshold - slack - left) * steep, start, per_weight, size)
                        run = _bits(0, low)
                    for k in range(low, high):
                        first, second = column_first[x0 + k], column_second[x0 + k]
                        upper = np.float32(first * np.float64(a) + second * np.float64(b))
                        lower = np.float32(first * np.float64(c) + second * np.float64(d))
                        value = np.float32(one * np.float64(upper) + two * np.float64(lower))
                        run |= _U64(value > limit) << _U64(k)
                    n = _set_run(run, y * across + x0, mask, touched, n)
    return n


@compiled
def tally_units(
    first: int,
    last: int,
    values: Any,
    high: Any,
    threshold: Any,
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

    The planes of sample b are rows ``starts[b, 0]`` to ``starts[b, 1]`` of concept, area and words.
    """
    samples, _, height, width = values.shape
    pixels = rows[1].size * columns[1].size
    mask = np.zeros(words.shape[1] + 1, np.uint64)
    touched, drawn = np.empty(mask.size, np.int64), np.empty(mask.size, np.uint64)
    one_map = np.empty((height, width), np.float32)
    shown = np.zeros(unit_area.shape[2], np.bool_)
    inside = np.zeros(unit_area.shape[2], np.bool_)
    for b in range(samples):
        at = block[b]
        shown[:] = False
        for r in range(starts[b, 0], starts[b, 1]):
            if area[r] > 0:
                shown[category[concept[r]]] = True
        for u in range(first, last):
            if not np.float64(high[b, u]) > threshold[u]:
                continue
            one_map[:] = values[b, u]
            n = draw_mask(one_map, threshold[u], rows, columns, mask, touched)
            size = _ZERO
            for k in range(n):
                drawn[k] = mask[touched[k]]
                mask[touched[k]] = _ZERO
                size += _ones(drawn[k])
            inside[:] = False
            for r in range(starts[b, 0], starts[b, 1]):
                common = _ZERO
                if area[r] == pixels:
                    common = size
                else:
                    plane = words[r]
                    for k in range(n):
                        common += _ones(drawn[k] & plane[touched[k]])
                if common:
                    intersection[at, u, concept[r]] += np.uint32(common)
                    inside[category[concept[r]]] = True
            for c in range(shown.size):
                if shown[c]:
                    unit_area[at, u, c] += np.int64(size)
                if inside[c]:
                    unit_area_lite[at, u, c] += np.int64(size)
