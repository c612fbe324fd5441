"""Shapes of chunks and blocks: what makes a write one of whole chunks, and a read one of few."""

import math
from collections.abc import Mapping, Sequence

from neurolens import schema

CHUNK_BYTES = 2**22
MAX_CHUNK = 2**20
LEAST_SAMPLES = 4096  # of a chunk of numbers: a store begun small and grown has few chunks per row all the same
SAMPLES = (256, 2048)  # of a chunk of more than numbers per sample: at least where more may come, and at most


def evenly(size: int, limit: int) -> int:
    """Return the length of equal pieces of at most ``limit`` that cover ``size`` with as little excess as can be."""
    return math.ceil(size / math.ceil(size / max(1, limit))) if size else 1


def sample_chunk(samples: int, dims: Sequence[str], block_samples: int | None) -> int:
    """Return how many samples share a chunk of a variable with these dims."""
    if len(dims) < 3:
        return min(max(samples, LEAST_SAMPLES), MAX_CHUNK)
    least, most = SAMPLES
    return max(1, min(evenly(max(samples, least), most), block_samples or most))


def chunk_shape(variable: schema.Variable, itemsize: int, sizes: Mapping[str, int], samples: int) -> tuple[int, ...]:
    """Return the chunk of one variable: one slot, ``samples`` samples, and about 4 MB.

    Units and maps are what a chunk is cut along, so that the units of a layer, and all of one map, are in few chunks.

    Parameters
    ----------
    sizes : the length of each of the variable's dims but the series.
    samples : how many samples share a chunk, where the variable has them.
    """
    left = CHUNK_BYTES // itemsize
    found = {schema.SERIES: 1, "sample": samples}
    if "sample" in variable.dims:
        left //= samples
    for dim in sorted(sizes, key=lambda d: d in ("unit", "map")):
        if dim not in found:
            found[dim] = evenly(sizes[dim], left)
            left //= found[dim]
    return tuple(found[dim] for dim in variable.dims)


def block_sizes(added: int, *, start: int, chunk: int, most: int | None) -> tuple[int, ...]:
    """Cut ``added`` samples, the first of which is stored at ``start``, into blocks of at most ``most``.

    Blocks end where chunks do, but for the last, so that the first block of later samples fills up a chunk that was
    begun, and no two others share one. ``most`` absent: one block.
    """
    if most is None or added <= most:
        return (added,) if added else ()
    out = []
    while added:
        begun = -start % chunk
        whole = begun + max(0, most - begun) // chunk * chunk
        size = min(added, whole if 0 < whole <= most else most)
        out.append(size)
        start, added = start + size, added - size
    return tuple(out)
