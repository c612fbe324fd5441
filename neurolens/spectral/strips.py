"""How a cube is read: strip by strip, each block once, and never more at a time than fits."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Span = tuple[int, int]
Read = Callable[[Span, Span, Span], NDArray[Any]]
"""Gives the block (position, sample, unit) of three spans, in the dtype it is kept in."""
Key = tuple[int, int]
"""A matrix of a job: its position and its layer, counted within the job."""
Kept = dict[Key, NDArray[np.bool_]]
"""The samples of each matrix that count, where not all do."""


@dataclass(frozen=True)
class Job:
    """Some layers at some positions, read together.

    Of a matrix (sample, unit), the shorter side is held and the longer one streamed: ``outer`` says that units are
    streamed. ``layers`` are spans of the unit axis, one after the other; ``steps`` are the strips, spans of the
    streamed axis; ``piece`` is how many numbers are turned into floats for the arithmetic at a time, and ``bytes`` what
    the job holds at most.
    """

    positions: Span
    layers: tuple[Span, ...]
    samples: int
    outer: bool
    steps: tuple[Span, ...]
    piece: int
    bytes: int
    series: str
    labels: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def keys(self) -> list[Key]:
        """Every matrix of the job."""
        return [(p, i) for p in range(self.positions[1] - self.positions[0]) for i in range(len(self.layers))]

    def shape(self, i: int) -> tuple[int, int]:
        """The streamed and the held side of a layer's matrix."""
        units = self.layers[i][1] - self.layers[i][0]
        return (units, self.samples) if self.outer else (self.samples, units)

    def where(self, key: Key) -> str:
        """Name a matrix: its layer and its position."""
        layer = f"layer {self.names[key[1]]!r}" if self.names[key[1]] else "the activations"
        return f"{layer} at {self.series} {self.labels[key[0]]}" if self.series else layer


class Strip(NamedTuple):
    """A part of one matrix: ``at`` of its streamed axis, as (streamed, held)."""

    key: Key
    at: slice
    matrix: NDArray[Any]


def reader(variable: xr.Variable) -> Read:
    """Return the function that reads blocks of a (series, sample, unit) variable, of what is lazy in the same thread.

    It hides the variable from dask, which would compute it before a task that is given it.
    """
    return partial(_read, variable)


def _read(variable: xr.Variable, positions: Span, samples: Span, units: Span) -> NDArray[Any]:
    block = variable[slice(*positions), slice(*samples), slice(*units)]
    return np.asarray(block.compute(scheduler="synchronous").values)


def strips(read: Read, job: Job, kept: Kept) -> Iterator[Strip]:
    """Read a job's blocks, each once, and give the part of every matrix that lies in them."""
    low, high = job.layers[0][0], job.layers[-1][1]
    everything = (0, job.samples)
    for start, stop in job.steps:
        block = read(job.positions, *((everything, (start, stop)) if job.outer else ((start, stop), (low, high))))
        for key in job.keys:
            a, b = job.layers[key[1]]
            if job.outer:
                first, last = max(a, start), min(b, stop)
                if first < last:
                    part = block[key[0], :, first - start : last - start]
                    yield Strip(key, slice(first - a, last - a), (part[kept[key]] if key in kept else part).T)
            else:
                part, at = block[key[0], :, a - low : b - low], slice(start, stop)
                if key in kept:
                    # what is left is counted from the front: only sums over the samples are asked for
                    part, at = part[kept[key][start:stop]], slice(0, 0)
                yield Strip(key, at, part)
        del block


def pieces(strip: Strip, buffer: NDArray[Any], mean: Any = None, *, own: bool = False) -> Iterator[tuple[slice, Any]]:
    """Turn a strip into floats of the buffer's dtype, as much at a time as the buffer holds, ``mean`` subtracted.

    The pieces keep the order of the strip in memory (BLAS takes either); each is valid until the next. ``own`` asks for
    pieces that may be changed.
    """
    matrix = strip.matrix
    step = max(1, buffer.size // max(1, matrix.shape[1]))
    turned = abs(matrix.strides[0]) < abs(matrix.strides[1])
    for low in range(0, matrix.shape[0], step):
        part = matrix[low : low + step]
        at = slice(strip.at.start + low, strip.at.start + low + len(part))
        flat = (part.T if turned else part).flags.c_contiguous
        if mean is None and not own and part.dtype == buffer.dtype and flat:
            yield at, part
            continue
        view = buffer[: part.size].reshape(part.shape[::-1] if turned else part.shape)
        view = view.T if turned else view
        if mean is None:
            np.copyto(view, part, casting="unsafe")
        else:
            np.subtract(part, mean, out=view, casting="unsafe")
        yield at, view


def steps(length: int, chunks: Sequence[int] | None, most: int, comfortable: int) -> tuple[Span, ...]:
    """Cut an axis into strips along its chunks: short chunks are joined, and none is cut that fits.

    ``most`` is the greatest length that fits, ``comfortable`` the one up to which chunks are joined.
    """
    edges = [0, *np.cumsum(chunks).tolist()] if chunks else list(range(0, length, max(1, min(most, comfortable))))
    edges = edges if edges[-1] == length else [*edges, length]
    spans: list[Span] = []
    for low, high in pairwise(edges):
        if spans and high - spans[-1][0] <= min(most, comfortable):
            spans[-1] = (spans[-1][0], high)
        elif high - low <= most:
            spans.append((low, high))
        else:
            spans.extend((a, min(a + most, high)) for a in range(low, high, max(1, most)))
    return tuple(span for span in spans if span[1] > span[0])


class Room:
    """Memory shared by the threads of a process: whoever's need does not fit beside the others' waits."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._held = threading.local()
        self._used = 0

    @contextmanager
    def hold(self, need: int, limit: int) -> Iterator[None]:
        """Hold ``need`` of ``limit`` bytes; alone, whatever the need. Held within a holder, it never waits."""
        inside = getattr(self._held, "inside", False)
        with self._free:
            self._free.wait_for(lambda: inside or not self._used or self._used + need <= limit)
            self._used += need
        self._held.inside = True
        try:
            yield
        finally:
            self._held.inside = inside
            with self._free:
                self._used -= need
                self._free.notify_all()
