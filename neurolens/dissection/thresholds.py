"""The exact top-quantile threshold of every unit, from batches of maps that are looked at once and not kept.

Of each unit only those activations are kept that may still be among the largest that its rank asks for: those above
the smallest of as many already seen. Numbers are selected by rank, so ties and order play no part.
"""

import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from neurolens.dissection import kernels
from neurolens.dissection.maps import Maps, by_units, floats, maps_of
from neurolens.dissection.ranks import QUANTILE, Compat, rank_of
from neurolens.errors import SchemaError

MEMORY_MIB = 56.0
"""What the candidates of one layer may take: within 64 MB, 512 units of 7×7 on 63 305 images fit."""

_MIB = 2**20
_STRIP = 2**18
"""Keys that are read back from a file at once (1 MB)."""


class Thresholds:
    """Top-quantile thresholds of the units of one layer.

    ::

        with Thresholds(512, 63305 * 49) as thresholds:
            for maps in batches:                      # (B, 512, 7, 7) float32
                thresholds.update(maps)
            found = thresholds.result()               # (512,) float64

    The result is that of sorting all activations, whatever the order and the batches. Candidates take
    units × quantile × n × 4 bytes and, as far as the budget goes, half of that again; where that is more than
    ``memory_mib``, they go to a temporary file of three times the size, and memory no longer grows with the images.

    Parameters
    ----------
    units : U
    n_total : activations that each unit will have: images × positions
    quantile : share of them that is to lie above the threshold
    compat : {None, "lite"}
        Which rank that is: `rank_of`.
    memory_mib : budget for candidates, for these units together
    folder : where the temporary file goes; None: where the system puts such files
    workers : threads to use; the result does not depend on it

    Raises
    ------
    SchemaError
        If there are no units or activations, or an option is none that there is.

    References
    ----------
    Bau et al. 2017, "Network Dissection", section 2.2: T_k with P(a_k > T_k) = 0.005 over all positions and images.
    """

    def __init__(
        self,
        units: int,
        n_total: int,
        *,
        quantile: float = QUANTILE,
        compat: Compat | None = None,
        memory_mib: float = MEMORY_MIB,
        folder: str | os.PathLike[str] | None = None,
        workers: int = 1,
    ) -> None:
        if units < 1:
            raise SchemaError(f"found {units} units; thresholds of at least one are needed")
        self._rank = rank_of(n_total, quantile, compat=compat)
        self._n, self._units, self._workers = n_total, units, workers
        self._keep = n_total - self._rank.lower
        self._budget = int(memory_mib * _MIB) // (4 * units)  # keys per unit
        self._folder = None if folder is None else Path(folder)
        self._seen = self._images = self._positions = self._most = 0
        self._bound = np.full(units, kernels.LOWEST, dtype=np.int32)
        self._limit = np.full(units, -np.inf, dtype=np.float32)  # the bound as a float
        self._fill = np.zeros(units, dtype=np.int64)
        self._kept: Any = None
        self._file: _Regions | None = None

    def __enter__(self) -> "Thresholds":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the candidates, and of the file if there is one."""
        self._kept = None
        if self._file is not None:
            self._file.close()

    @property
    def spilled(self) -> bool:
        """Whether candidates go to a file."""
        return self._file is not None

    @property
    def nbytes(self) -> int:
        """What the candidates take in memory now."""
        return 0 if self._kept is None else int(self._kept.nbytes)

    @property
    def bound(self) -> npt.NDArray[np.float32]:
        """What the threshold of each unit will not be below, (U,); it rises with what is seen, and never falls."""
        return floats(self._bound)

    def update(self, maps: npt.ArrayLike) -> None:
        """Look at a batch of maps (B, U, h, w), channels first or last, or of values (B, U).

        Compared as float32. A batch that raises leaves everything as it was.

        Raises
        ------
        SchemaError
            If the shape is another, or there are more activations than were announced.
        NonFiniteError
            If one is NaN or infinite.
        """
        batch = maps_of(maps, self._units, seen=self._images, workers=self._workers)
        positions = batch.values.shape[2] * batch.values.shape[3]
        count = positions * len(batch.values)
        if self._seen + count > self._n:
            raise SchemaError(
                f"found {self._seen + count} activations per unit, and {self._n} were announced; make Thresholds with "
                "n_total = images × positions"
            )
        if self._positions and self._kept is None:
            raise SchemaError("these thresholds are closed; make new ones, and update them inside `with`")
        if positions != self._positions:
            if self._positions:
                raise SchemaError(
                    f"found maps of {positions} positions after maps of {self._positions}; show the network images of "
                    "one size, so that every unit has the same maps"
                )
            self._prepare(positions)
            self._positions = positions
        if count:
            by_units(lambda first, last: self._collect(batch, first, last), self._units, self._workers)
        self._seen += count
        self._images += len(batch.values)

    def _collect(self, batch: Maps, first: int, last: int) -> None:
        values, done = batch.flat, 0
        collect = kernels.collect_rows if batch.in_rows else kernels.collect_maps
        given = (values, values.view(np.int32), batch.high, self._bound, self._limit, self._kept, self._fill)
        while (done := collect(first, last, *given, done)) < len(values):
            for unit in np.flatnonzero(self._fill[first:last] > self._most).tolist():
                self._make_room(first + unit)
            self._limit[first:last] = floats(self._bound[first:last])

    def result(self) -> npt.NDArray[np.float64]:
        """Return the thresholds, (U,) float64; of a unit that never fires after a ReLU, 0.

        Raises
        ------
        SchemaError
            If fewer activations were seen than announced.
        """
        if self._seen != self._n or self._kept is None:
            raise SchemaError(
                f"found {self._seen} activations per unit of the {self._n} announced, and not yet closed; show all "
                "images before asking for thresholds"
            )
        pairs = [floats(self._smallest_two(unit)) + np.float32(0) for unit in range(self._units)]  # -0 becomes 0
        low, high = [pair[0] for pair in pairs], [pair[-1] for pair in pairs]
        return self._rank.between(low, high)

    def _prepare(self, positions: int) -> None:
        slack = max(self._keep // 2, positions, 2**8)
        least = self._keep + max(self._keep // 16, positions)
        if least <= self._budget:
            room = min(self._keep + slack, self._budget)
        else:
            room = min(max(2 * positions, 2**14), self._budget)
            if room < positions:
                needed = -(-4 * positions * self._units // _MIB)
                raise SchemaError(
                    f"memory_mib holds {room} activations of each of {self._units} units, and one map has {positions}; "
                    f"give at least {needed} MiB"
                )
            self._file = _Regions(self._units, self._keep, room, self._folder)
        spare = room - (self._keep if self._file is None else 0)
        self._most = room - max(positions, spare // 4)
        self._kept = np.empty((self._units, room), dtype=np.int32)

    def _make_room(self, unit: int) -> None:
        row = self._kept[unit, : self._fill[unit]]
        if self._file is None:
            row.partition(len(row) - self._keep)
            row[: self._keep] = row[len(row) - self._keep :]
            self._bound[unit], self._fill[unit] = row[0], self._keep
        else:
            self._bound[unit] = self._file.append(unit, row, int(self._bound[unit]))
            self._fill[unit] = 0

    def _smallest_two(self, unit: int) -> npt.NDArray[np.int32]:
        """Return the smallest key of the ``keep`` largest and the next, which may be equal to it."""
        self._make_room(unit)
        return _smallest_two(self._kept[unit, : self._keep]) if self._file is None else self._file.smallest_two(unit)


class _Regions:
    """Keys of each unit in a temporary file, a region each; selected from in strips."""

    def __init__(self, units: int, keep: int, most: int, folder: Path | None) -> None:
        self._keep, self._room = keep, 3 * keep + most
        self._stored = [0] * units
        self._file = tempfile.TemporaryFile(prefix="neurolens-thresholds-", dir=folder)  # noqa: SIM115 - until close()

    def close(self) -> None:
        self._file.close()

    def append(self, unit: int, keys: npt.NDArray[np.int32], bound: int) -> int:
        """Store the keys of a unit, and return the bound that others must exceed."""
        if self._stored[unit] + len(keys) > self._room:
            bound = self._select(unit)
            keys = keys[keys > bound]
        self._write(unit, self._stored[unit], keys)
        self._stored[unit] += len(keys)
        return bound

    def smallest_two(self, unit: int) -> npt.NDArray[np.int32]:
        """Return the smallest of the largest keys and the next, if there is one."""
        self._select(unit)
        stored = self._stored[unit]
        strips = [_smallest_two(self._read(unit, at, min(_STRIP, stored - at))) for at in range(0, stored, _STRIP)]
        return _smallest_two(np.concatenate(strips))

    def _select(self, unit: int) -> int:
        """Keep the largest keys of a unit, and return the smallest of them."""
        stored, prefix, left = self._stored[unit], 0, self._keep
        for shift, width in ((21, 11), (10, 11), (0, 10)):
            counts = np.zeros(1 << width, dtype=np.int64)
            for at in range(0, stored, _STRIP):
                kernels.count_digits(self._read(unit, at, min(_STRIP, stored - at)), shift, width, prefix, counts)
            digit, left = kernels.digit_of(counts, left)
            prefix = (prefix << width) | digit
        bound, to = prefix - 0x80000000, 0
        for at in range(0, stored, _STRIP):
            keys = self._read(unit, at, min(_STRIP, stored - at))
            count, left = kernels.sift(keys, bound, left)
            self._write(unit, to, keys[:count])
            to += count
        self._stored[unit] = to
        return bound

    def _read(self, unit: int, at: int, count: int) -> npt.NDArray[np.int32]:
        keys = np.empty(count, dtype=np.int32)
        view, offset = memoryview(keys.data).cast("B"), 4 * (unit * self._room + at)
        while len(view):
            got = os.preadv(self._file.fileno(), [view], offset)
            if not got:
                raise SchemaError("the temporary file of thresholds is shorter than what was written; was it cut?")
            view, offset = view[got:], offset + got
        return keys

    def _write(self, unit: int, at: int, keys: npt.NDArray[np.int32]) -> None:
        view, offset = memoryview(np.ascontiguousarray(keys).data).cast("B"), 4 * (unit * self._room + at)
        while len(view):
            done = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[done:], offset + done


def _smallest_two(keys: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the smallest key and the next, which may be equal to it, in order; a single key by itself."""
    return np.partition(keys, 1)[:2] if len(keys) > 2 else np.sort(keys)
