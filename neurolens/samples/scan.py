"""Fold the series of a cube into per-sample results: in strips and threads in memory, as a carry chain under dask.

dask's own ``cumsum`` and row-chunked sums hold a whole cube; the chain holds the blocks in flight and one carry per
column of sample chunks.
"""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NamedTuple

import dask.array
import numpy as np
import xarray as xr
from dask.delayed import delayed

from neurolens import schema
from neurolens.errors import MissingMeasurementError, SchemaError
from neurolens.samples.kernels import STRIP

da: Any = dask.array  # its functions are not typed
State = tuple[Any, ...]


class Block(NamedTuple):
    """Rows of a cube, and the column at which the samples of a strip start."""

    values: Any
    at: int

    def missing(self, width: int) -> Any:
        """Count the missing values of the strip, per row."""
        return np.isnan(self.values[:, self.at : self.at + width]).sum(axis=1)


FAST = (np.dtype("float32"), np.dtype("float64"), np.dtype("int8"), np.dtype("bool"))


@dataclass(frozen=True)
class Rule:
    """How a series is folded.

    ``start(width, codes, *given)`` makes the carries; ``step(state, blocks, exposed, done)`` feeds one block of rows to
    them in place and returns the count of missing values per row; ``finish(state)`` gives the results, one value per
    sample each. ``exposed`` is a (row, class) table, one column of True where exposure plays no part.
    """

    start: Callable[..., State]
    step: Callable[[State, tuple[Block, ...], Any, int], Any]
    finish: Callable[[State], tuple[Any, ...]]


@dataclass(frozen=True)
class Missing:
    """What to say when values are missing; ``allowed`` says nothing."""

    variable: str
    dim: str
    labels: tuple[Any, ...]
    run: str = ""
    allowed: bool = False

    def check(self, rows: Any) -> None:
        """Raise MissingMeasurementError if any row number is given and missing values are not allowed."""
        if len(rows) and not self.allowed:
            raise self.error(rows)

    def error(self, rows: Any) -> MissingMeasurementError:
        """Name the variable, the series positions and the mend."""
        found = [str(self.labels[row]) for row in sorted({int(r) for r in rows})]
        shown = ", ".join(found[:12]) + (f", … ({len(found)} in all)" if len(found) > 12 else "")
        of = f" (of {self.labels[0]}–{self.labels[-1]})" if len(self.labels) > 1 else ""
        who = f"run {self.run!r}" if self.run else "the Dataset"
        plural = "s" if len(found) > 1 else ""
        known = any(v.name == self.variable for v in schema.SAMPLES.variables)
        mend = schema.SAMPLES.mend(self.variable) if known else "`neurolens run STUDY`"
        return MissingMeasurementError(
            f"{who} has no complete {self.variable!r} at {self.dim}{plural} {shown}{of}; measure them: "
            f"{mend} (`neurolens status STUDY` and ds.lens.provenance() say why they "
            f'are missing), or pass missing="drop" to leave them out'
        )


def fold(
    rule: Rule,
    arrays: Sequence[xr.DataArray],
    dim: str,
    outputs: int,
    *,
    missing: Missing,
    codes: xr.DataArray | None = None,
    exposed: xr.DataArray | None = None,
    given: Sequence[Any] = (),
) -> list[Any]:
    """Fold ``arrays`` (series, sample) along ``dim`` and return ``outputs`` arrays over the samples.

    Lazy if any array is dask, else computed at once by threads over strips of samples.

    Raises
    ------
    MissingMeasurementError
        If a value is missing and may not be: at once in memory, at compute time under dask.
    """
    arrays = [_matrix(a, dim) for a in arrays]
    table = None if exposed is None else exposed.transpose(dim, "class").data
    labels = None if codes is None else codes.data
    if any(isinstance(x, da.Array) for x in (*(a.data for a in arrays), table, labels, *given)):
        return _chain(rule, arrays, dim, outputs, missing, labels, table, tuple(given))
    return _strips(rule, [a.data for a in arrays], outputs, missing, labels, table, tuple(given))


def _matrix(array: xr.DataArray, dim: str) -> xr.DataArray:
    if set(array.dims) != {dim, "sample"}:
        raise SchemaError(
            f"{array.name!r} has dims {array.dims}; a reduction needs exactly ({dim!r}, 'sample'): "
            "select one position of the other dims first, e.g. ds.isel(run=0)"
        )
    return array if array.dims[0] == dim else array.transpose(dim, "sample")


def as_block(values: Any, low: int, high: int) -> Block:
    """Return a strip of rows in a dtype that the kernels are compiled for, without a copy where it is one."""
    values = np.asarray(values)
    if values.dtype in FAST:
        return Block(values, low)
    return Block(values[:, low:high].astype("float64" if values.dtype.kind in "iu" else "float32"), 0)


def _strips(
    rule: Rule, arrays: list[Any], outputs: int, missing: Missing, codes: Any, table: Any, given: tuple[Any, ...]
) -> list[Any]:
    rows, width = arrays[0].shape
    table = np.ones((rows, 1), bool) if table is None else table
    codes = np.zeros(width, np.int64) if codes is None else _codes(codes, table)
    results = [np.empty(width) for _ in range(outputs)]

    def strip(low: int, high: int) -> Any:
        state = rule.start(high - low, codes[low:high], *given)
        lost = rule.step(state, tuple(as_block(a, low, high) for a in arrays), table, 0)
        for result, part in zip(results, rule.finish(state)):
            result[low:high] = part
        return np.flatnonzero(lost)

    workers = threads() if rows * width > 1_000_000 else 1
    # as many strips as threads or a multiple: even work, and a bound on what as_block may copy
    strips = workers * max(1, -(-width // (workers * STRIP)))
    size = max(1, -(-width // strips))
    bounds = [(low, min(low + size, width)) for low in range(0, width, size)] or [(0, 0)]
    missing.check(np.concatenate(share(lambda b: strip(*b), bounds, workers)))
    return results


def _chain(
    rule: Rule,
    arrays: list[xr.DataArray],
    dim: str,
    outputs: int,
    missing: Missing,
    codes: Any,
    table: Any,
    given: tuple[Any, ...],
) -> list[Any]:
    arrays = [a if isinstance(a.data, da.Array) else a.chunk({}) for a in arrays]
    if len(arrays) > 1:
        arrays = [a for a in xr.unify_chunks(*arrays) if isinstance(a, xr.DataArray)]
    first = arrays[0].data
    rows, columns = first.chunks
    blocks = [a.data.to_delayed(optimize_graph=False) for a in arrays]
    start, step, finish = (delayed(f, pure=True) for f in (_start, _step, _finish))
    whole = table is None
    tops = np.concatenate([[0], np.cumsum(rows)]).astype(int).tolist()
    tables = [np.ones((n, 1), bool) if whole else table[a:b] for n, a, b in zip(rows, tops, tops[1:])]
    classes = 1 if whole else table.shape[1]
    lows = np.concatenate([[0], np.cumsum(columns)]).astype(int).tolist()
    results: list[list[Any]] = [[] for _ in range(outputs)]
    for j, width in enumerate(columns):
        part = np.zeros(width, np.int64) if codes is None else codes[lows[j] : lows[j + 1]]
        state = start(rule, width, part, classes, given)
        for i in range(len(rows)):
            state = step(rule, state, tuple(b[i, j] for b in blocks), tables[i], tops[i])
        finished = finish(rule, state, missing)
        for k in range(outputs):
            results[k].append(da.from_delayed(finished[k], shape=(width,), dtype="float64"))
    return [da.concatenate(parts) if len(parts) > 1 else parts[0] for parts in results]


def _start(rule: Rule, width: int, codes: Any, classes: int, given: tuple[Any, ...]) -> tuple[State, list[int]]:
    return rule.start(width, _codes(np.asarray(codes), np.empty((0, classes))), *given), []


def _step(
    rule: Rule, carried: tuple[State, list[int]], blocks: tuple[Any, ...], table: Any, done: int
) -> tuple[State, list[int]]:
    # a task must not change its inputs: they may be shared, or fed to it again on a retry
    state = tuple(s.copy() if isinstance(s, np.ndarray) else s for s in carried[0])
    lost = rule.step(state, tuple(as_block(b, 0, b.shape[1]) for b in blocks), np.asarray(table), done)
    return state, [*carried[1], *(np.flatnonzero(lost) + done)]


def _finish(rule: Rule, carried: tuple[State, list[int]], missing: Missing) -> tuple[Any, ...]:
    missing.check(carried[1])
    return rule.finish(carried[0])


def divide(total: Any, terms: Any) -> Any:
    """Return total / terms, NaN where there are no terms; numpy or dask."""
    return np.where(terms > 0, total / np.maximum(terms, 1), np.nan)


def _codes(codes: Any, table: Any) -> Any:
    codes = np.ascontiguousarray(codes, dtype=np.int64)
    if codes.size and not 0 <= codes.min() <= codes.max() < max(1, table.shape[1]):
        raise SchemaError(
            f"labels run from {codes.min()} to {codes.max()}, but there are {table.shape[1]} classes; "
            "give ds a `class` coordinate that covers them"
        )
    return codes


def share(work: Callable[[Any], Any], items: Sequence[Any], workers: int) -> list[Any]:
    """Return ``work(item)`` of each item in order, done by the caller and up to ``workers - 1`` threads beside it.

    Whoever is free takes the next item, and none is waited for that has not begun: on a busy machine a thread may
    start later than the caller needs for all of it.
    """
    if workers == 1 or len(items) < 2:
        return [work(item) for item in items]
    results: list[Any] = [None] * len(items)
    left = iter(range(len(items)))  # its next() is atomic

    def take() -> None:
        for i in left:
            results[i] = work(items[i])

    helpers = [_pool(workers - 1).submit(take) for _ in range(min(workers, len(items)) - 1)]
    try:
        take()
    finally:
        begun = [helper for helper in helpers if not helper.cancel()]
        wait(begun)
    for helper in begun:
        helper.result()
    return results


@functools.cache
def _pool(size: int) -> ThreadPoolExecutor:
    """Return threads that stay: starting one costs as much as scanning ten rows of 50 000 samples."""
    return ThreadPoolExecutor(size, "neurolens-scan")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def threads() -> int:
    """Return how many threads a fold in memory may use: the cores at hand, or OMP_NUM_THREADS where that is less."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(available, int(limit) if limit.isdigit() else available))
