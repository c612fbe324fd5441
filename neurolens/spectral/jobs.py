"""What one task does: factor some layers at some positions, within a memory limit, and say what is missing."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurolens.errors import MissingMeasurementError, NonFiniteError, SchemaError
from neurolens.schema.spectra import METRICS
from neurolens.spectral.factoring import Factored, Settings, factor, qr_rows, streamed_vectors, subspace
from neurolens.spectral.metrics import SHARE, measures
from neurolens.spectral.strips import Job, Kept, Key, Read, Room, Span, steps, strips

EPS = float(np.finfo(np.float64).eps)
NUMBERS = (*METRICS, "tolerance", "floor", "frobenius_norm", "n_samples")
"""What a job gives per matrix besides its spectrum, in order."""
PIECE = 16 << 20  # bytes of floats in a piece, at most
PIECE_ROWS = 1024  # rows of a piece, at most: more are no faster, and float32 sums over more are less exact
STRIP = 32 << 20  # bytes up to which short chunks are read together
COPIES = 3  # of a strip: its chunks, they joined, and the strip before
ROOM = Room()


class Answer(NamedTuple):
    """What a job gives: (position, layer, …).

    ``numbers`` (…, ``NUMBERS``), ``values`` and ``errors`` (…, component), and where vectors were asked for
    ``vectors`` (…, index, component) of the units and ``means`` (…, index): what centring subtracted.
    """

    numbers: NDArray[np.float64]
    values: NDArray[np.float64]
    errors: NDArray[np.float64]
    vectors: NDArray[np.float64]
    means: NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """How an answer is laid out, and what to do about samples that are missing."""

    components: int
    width: int
    drop: bool
    limit: int


def run(read: Read, job: Job, settings: Settings, shape: Shape) -> Answer:
    """Do a job, when there is room for it.

    Raises
    ------
    MissingMeasurementError
        If some samples of a matrix are NaN, and they are not to be dropped.
    NonFiniteError
        If a value is infinite.
    """
    with ROOM.hold(job.bytes, shape.limit):
        kept = _look(read, job, shape) if shape.drop else {}
        found: dict[Key, Factored | None] = {}
        if not all(key in kept and not kept[key].any() for key in job.keys):
            found = factor(read, job, settings, kept)
        if any(found.get(key) is None for key in job.keys) and not shape.drop:
            kept = _look(read, job, shape)
        good = {key: f for key, f in found.items() if f is not None and (key not in kept or kept[key].any())}
        streamed = streamed_vectors(read, job, settings, kept, good) if settings.vectors and job.outer else {}
        return _answer(job, settings, shape, kept, good, streamed)


def _look(read: Read, job: Job, shape: Shape) -> Kept:
    """Find the samples that count, where not all do; a pass of its own."""
    missing = {key: np.zeros(job.samples, bool) for key in job.keys}
    infinite = dict.fromkeys(job.keys, 0)
    for strip in strips(read, job, {}):
        finite = np.isfinite(strip.matrix)
        if not finite.all():
            lost = np.isnan(strip.matrix)
            infinite[strip.key] += int((~finite & ~lost).sum())
            missing[strip.key][slice(None) if job.outer else strip.at] |= lost.any(axis=0 if job.outer else 1)
    for key, count in infinite.items():
        if count:
            raise NonFiniteError(
                f"{job.where(key)}: {count} activations are infinite, and a spectrum needs finite ones (float16 ends "
                'at 65504); measure them with dtype = "float32" in the study\'s [activations] table'
            )
        part = int(missing[key].sum())
        if 0 < part < job.samples and not shape.drop:
            raise MissingMeasurementError(
                f"{job.where(key)}: {part} of {job.samples} samples are NaN; measure them: `neurolens run STUDY --only "
                'activations`, or pass missing="drop" to leave them out'
            )
    return {key: ~lost for key, lost in missing.items() if lost.any()}


def _answer(
    job: Job, settings: Settings, shape: Shape, kept: Kept, found: dict[Key, Factored], streamed: dict[Key, Any]
) -> Answer:
    size = job.positions[1] - job.positions[0], len(job.layers)
    wide = (shape.width, shape.components) if settings.vectors else (0, 0)
    sizes = (len(NUMBERS),), (shape.components,), (shape.components,), wide, wide[:1]
    answer = Answer(*(np.full((*size, *more), np.nan) for more in sizes))
    for key in job.keys:
        count = int(kept[key].sum()) if key in kept else job.samples
        answer.numbers[key][-1] = count
        if key in found:
            _fill(answer, key, found[key], count, job, streamed.get(key))
    return answer


def _fill(answer: Answer, key: Key, found: Factored, count: int, job: Job, streamed: Any) -> None:
    longest = max(count, job.layers[key[1]][1] - job.layers[key[1]][0])
    tolerance = max(float(found.values[0]) * longest * EPS, found.floor)
    answer.numbers[key][:-1] = [*_metrics(found, tolerance), tolerance, found.floor, found.total**0.5]
    for whole, part in ((answer.values, found.values), (answer.errors, found.errors)):
        part = part[: whole.shape[-1]]
        whole[key][: len(part)] = part
    if found.basis is None:
        return
    vectors, mean = (found.basis, found.mean) if streamed is None else streamed
    defined = found.values[: vectors.shape[1]] > 0
    largest = np.abs(vectors).argmax(axis=0)
    sign = np.where(vectors[largest, np.arange(vectors.shape[1])] < 0, -1.0, 1.0)
    answer.vectors[key][: len(vectors), : vectors.shape[1]] = vectors * np.where(defined, sign, np.nan)
    answer.means[key][: len(vectors)] = 0.0 if mean is None else mean


def _metrics(found: Factored, tolerance: float) -> Sequence[Any]:
    """The metrics; of a spectrum that is known in part, those that the part decides."""
    if found.whole:
        return measures(found.values, tolerance)
    squares = found.values**2
    shares = np.cumsum(squares) / found.total
    enough = float((shares < SHARE).sum() + 1) if shares[-1] >= SHARE else np.nan
    known = {"stable_rank": found.total / squares[0], "approx99": enough}
    return [known.get(name, np.nan) for name in METRICS]


@dataclass(frozen=True)
class Cut:
    """A cube's axes: sizes, chunks (None in memory), labels; and how much memory a job may hold."""

    samples: int
    layers: tuple[Span, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]
    series: str
    chunks: tuple[Sequence[int], Sequence[int], Sequence[int]] | None
    itemsize: int
    limit: int

    @property
    def chunk(self) -> int:
        """Bytes of the largest chunk: it is read whole, whatever part of it is wanted."""
        return self.itemsize * math.prod(map(max, self.chunks)) if self.chunks else 0


def state_bytes(streamed: int, held: int, settings: Settings, piece: int) -> tuple[int, int]:
    """What a matrix holds while it is streamed, and what more it takes to finish it."""
    square = 8 * held * held
    if settings.method == "gram":
        state = square * 3 // 2 if settings.precision == "mixed" else square
        return state, square * max(2 * settings.vectors, int(settings.centred))
    if settings.method == "qr":
        return square + 8 * held * qr_rows(held, piece), square * (4 if settings.vectors else 1)
    tall = 8 * held * subspace(held, settings)
    return 4 * tall, 4 * tall


def piece_size(held: int, limit: int) -> int:
    """How many numbers a piece has: rows of the held side, at least one."""
    rows = min(PIECE_ROWS, min(PIECE, limit // 16) // (8 * max(1, held)))
    return max(1, rows) * max(1, held)


def plan(cut: Cut, settings: Sequence[Settings]) -> list[tuple[Job, Settings]]:
    """Cut a cube into jobs, each as many positions of one chunk and as many layers as fit.

    ``settings`` has one entry per layer. Layers of one job are neighbours that are read the same way.

    Raises
    ------
    SchemaError
        If a single matrix needs more memory than there is.
    """
    jobs: list[tuple[Job, Settings]] = []
    for positions in _spans(len(cut.labels), cut.chunks[0] if cut.chunks else None):
        together = all(_fit(cut, s, positions, i, i + 1, whole=True) for i, s in enumerate(settings))
        # one by one, a chunk of several positions is read once for each of them
        for span in (positions,) if together else [(p, p + 1) for p in range(*positions)]:
            first = 0
            while first < len(cut.layers):
                jobs.append((_most(cut, settings, span, first), settings[first]))
                first += len(jobs[-1][0].layers)
    return jobs


def _most(cut: Cut, settings: Sequence[Settings], positions: Span, first: int) -> Job:
    """The job of as many layers as fit; if not all do, up to the end of a chunk, which then is read once."""
    ends = set(np.cumsum(cut.chunks[2]).tolist()) if cut.chunks else set()
    job = whole = _fit(cut, settings[first], positions, first, first + 1)
    if job is None:
        raise _too_large(cut, settings[first], first)
    for last in range(first + 1, len(cut.layers) + 1):
        whole = job if job.layers[-1][1] in ends else whole
        if last == len(cut.layers) or not _alike(cut, settings, first, last):
            return job
        wider = _fit(cut, settings[first], positions, first, last + 1, whole=True)
        if wider is None:
            return whole if whole is not None and whole.layers[-1][1] in ends else job
        job = wider
    return job


def _alike(cut: Cut, settings: Sequence[Settings], first: int, last: int) -> bool:
    touching = cut.layers[last - 1][1] == cut.layers[last][0]
    return touching and settings[first] == settings[last] and _outer(cut, first) == _outer(cut, last)


def _outer(cut: Cut, i: int) -> bool:
    return cut.layers[i][1] - cut.layers[i][0] > cut.samples


def fits(cut: Cut, settings: Settings, i: int) -> bool:
    """Tell whether one layer at one position can be done within the limit."""
    return _fit(cut, settings, (0, 1), i, i + 1) is not None


def _fit(cut: Cut, settings: Settings, positions: Span, first: int, last: int, *, whole: bool = False) -> Job | None:
    """The job of these positions and layers, if it can be done within the limit; ``whole``: without cutting chunks."""
    count, outer = positions[1] - positions[0], _outer(cut, first)
    layers = cut.layers[first:last]
    low, high = layers[0][0], layers[-1][1]
    sides = [(b - a, cut.samples) if outer else (cut.samples, b - a) for a, b in layers]
    piece = piece_size(max(held for _, held in sides), cut.limit)
    needs = [state_bytes(*side, settings, piece) for side in sides]
    held = count * sum(state for state, _ in needs)
    if settings.vectors:  # what is found is kept until the job ends
        held += 8 * count * sum(side[1] * min(*side, settings.rank or side[1]) for side in sides)
    column = count * cut.itemsize * (cut.samples if outer else high - low)
    fixed = held + 8 * piece + cut.chunk
    free = (cut.limit - fixed) // COPIES
    if free < column or held + max(more for _, more in needs) > cut.limit:
        return None
    most = free // column
    length = high - low if outer else cut.samples
    chunks = None
    if cut.chunks is not None:
        chunks = _within(cut.chunks[2], low, high) if outer else cut.chunks[1]
    if whole and chunks and max(chunks) > most:
        return None
    cuts = steps(length, chunks, most, max(1, STRIP // column))
    cuts = tuple((a + low, b + low) for a, b in cuts) if outer else cuts
    longest = max((b - a for a, b in cuts), default=0)
    total = max(fixed + COPIES * longest * column, held + max(more for _, more in needs))
    return Job(
        positions,
        layers,
        cut.samples,
        outer,
        cuts,
        piece,
        total,
        cut.series,
        cut.labels[slice(*positions)],
        cut.names[first:last],
    )


def _spans(length: int, chunks: Sequence[int] | None) -> list[Span]:
    edges = [0, *np.cumsum(chunks).tolist()] if chunks else list(range(length + 1))
    return [(low, high) for low, high in pairwise(edges) if high > low]


def _within(chunks: Sequence[int], low: int, high: int) -> list[int]:
    edges = np.clip(np.concatenate([[0], np.cumsum(chunks)]), low, high)
    return [int(n) for n in np.diff(edges) if n]


def _too_large(cut: Cut, settings: Settings, i: int) -> SchemaError:
    units = cut.layers[i][1] - cut.layers[i][0]
    enough: Callable[[int], bool] = lambda mib: fits(replace(cut, limit=mib << 20), settings, i)  # noqa: E731
    needed = next((mib for mib in (1 << k for k in range(4, 24)) if enough(mib)), None)
    name = f"layer {cut.names[i]!r}" if cut.names[i] else "a matrix"
    return SchemaError(
        f"{name} of {cut.samples} samples × {units} units does not fit into memory_mib={cut.limit >> 20} by "
        f'method={settings.method!r}; pass memory_mib={needed}, or method="randomised" with a smaller rank'
    )
