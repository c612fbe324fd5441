"""Maps that may still have masks, kept from the pass that finds thresholds: no second forward pass is needed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from neurolens.dissection import keeping, kernels
from neurolens.dissection.maps import Maps, floats, keys_of
from neurolens.errors import SchemaError

DISK_MIB = 8192.0
"""What a network's kept maps may take in a temporary file."""

_MIB = 2**20
_BUFFER = 2**17
_AGAIN = 16 * _MIB
"""A file smaller than this is not gone through again."""


def disk_budget(disk_mib: float, folder: str | os.PathLike[str] | None = None) -> float:
    """Return the budget in MiB, or half of what is free where that is less; in ``folder``, or where such files go."""
    return min(disk_mib, shutil.disk_usage(folder or tempfile.gettempdir()).free / _MIB / 2)


class _Chunk(NamedTuple):
    """Images in a row: their positions, how many maps of theirs were kept and how many values, and where."""

    images: npt.NDArray[np.int64]
    entries: int
    values: int
    offset: int


class KeptMaps:
    """What is left of the maps of one layer once it is known that the rest lies below any threshold to come.

    ::

        with Thresholds(512, 63305 * 49) as thresholds, KeptMaps(512, (7, 7)) as kept:
            for maps, images in batches:                # Maps (B, 512, 7, 7)
                thresholds.update(maps)
                kept.add(maps, thresholds.bound, images)
            found = thresholds.result()
            if kept.complete:
                for maps, images in kept.batches(found):
                    tally.add(maps, found, images)

    The bound of a unit only rises, up to its threshold. A pixel of an upsampled map lies between four values, and
    exceeds the threshold only if one of them does. So of each map are kept those values above the bound and those next
    to them; elsewhere the bound stands, which does not exceed the threshold. Masks and counts are those of the maps.

    Kept is in a temporary file: 6 bytes for each value above the bound of its time, and for up to eight beside it; 5 to
    17 % of what the activations take, at a quantile of 0.005. Whenever the file has doubled it is gone through again
    with the bounds of then. If the budget does not hold it, or the disk does not, it is let go of and ``complete`` is
    False. In memory are a buffer of one image's activations and a megabyte, and 50 bytes an image.

    Parameters
    ----------
    units : U
    grid : (h, w) of a map
    disk_mib : budget for the file; 0: nothing is kept
    folder : where the temporary file goes; None: where the system puts such files
    """

    def __init__(
        self,
        units: int,
        grid: tuple[int, int],
        *,
        disk_mib: float = DISK_MIB,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self._units, self._grid = units, grid
        self._budget, self._folder = int(disk_mib * _MIB), None if folder is None else Path(folder)
        self._place = np.dtype(np.uint16 if grid[0] * grid[1] <= 2**16 else np.uint32)
        self._chunks: list[_Chunk] = []
        self._stored, self._settled = 0, _AGAIN // 2
        self._bound = np.full(units, kernels.LOWEST, dtype=np.int32)
        most = units * grid[0] * grid[1]
        self._buffers: Any = (
            np.empty((units + _BUFFER // 8, 3), dtype=np.int32),
            np.empty(most + _BUFFER, dtype=self._place),
            np.empty(most + _BUFFER, dtype=np.float32),
        )
        self._file: Any = None
        if self._budget:
            self._file = tempfile.TemporaryFile(prefix="neurolens-maps-", dir=self._folder)  # noqa: SIM115 - until close()

    def __enter__(self) -> "KeptMaps":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
        self._file, self._buffers, self._chunks = None, None, []

    @property
    def complete(self) -> bool:
        """Whether everything that matters is kept."""
        return self._file is not None

    @property
    def nbytes(self) -> int:
        """What the file takes now."""
        return self._stored

    def add(self, maps: Maps, bound: npt.NDArray[np.float32], images: npt.ArrayLike) -> None:
        """Keep what matters of a batch.

        Parameters
        ----------
        maps : (B, U, h, w)
        bound : (U,) float32
            A value that the threshold of each unit will not be below; it may not fall.
        images : (B,) positions of the images, which are given back with the maps
        """
        at, done = np.asarray(images, dtype=np.int64), 0
        self._bound = keys_of(bound)
        while done < len(at) and self._file is not None:
            entries, places, values = self._buffers
            start = done
            done, rows, count = keeping.pack_maps(
                start, maps.values, maps.high, self._bound, bound, entries, places, values
            )
            entries[:rows, 0] -= start
            self._append(at[start:done], entries[:rows], places[:count], values[:count])

    def batches(self, thresholds: npt.ArrayLike) -> Iterator[tuple[Maps, npt.NDArray[np.int64]]]:
        """Give back all images, batch by batch, with maps that have the same masks as those that were kept.

        Parameters
        ----------
        thresholds : (U,), none below the last bound

        Yields
        ------
        maps : (B, U, h, w), of which nothing but the masks at these thresholds is meant
            The largest value of a map that was not kept is -infinity.
        images : (B,)

        Raises
        ------
        SchemaError
            If not everything was kept, or a threshold is below the bound.
        """
        limits = np.asarray(thresholds, dtype=np.float64)
        if not self.complete:
            raise SchemaError("not all maps were kept, or they are let go of; show the network its images again")
        if not (limits >= floats(self._bound)).all():
            raise SchemaError("thresholds below the bounds were found; what exceeds them was not kept: use those found")
        fill = floats(self._bound)
        shape = (self._units, *self._grid)
        for chunk in self._chunks:
            entries, places, values = self._read(chunk)
            maps = np.empty((len(chunk.images), *shape), dtype=np.float32)
            largest = np.full((len(chunk.images), self._units), -np.inf, dtype=np.float32)
            flat = maps.reshape(*largest.shape, -1)
            keeping.lay_out(fill, entries, places, values, flat, largest)
            yield Maps(maps, keys_of(largest)), chunk.images

    def _append(self, images: Any, entries: Any, places: Any, values: Any) -> None:
        self._write(_Chunk(images, len(entries), len(values), self._stored), entries, places, values)
        if not self.complete or self._stored <= min(2 * self._settled, self._budget):
            return
        chunks, self._chunks, self._stored = self._chunks, [], 0
        for chunk in chunks:  # what is written lies before what is still to be read
            rows, at, kept = self._read(chunk)
            n, count = keeping.pack_again(self._grid, floats(self._bound), rows, at, kept)
            self._write(_Chunk(chunk.images, n, count, self._stored), rows[:n], at[:count], kept[:count])
        self._settled = max(self._stored, _AGAIN // 2)
        if self.complete and self._stored > self._budget * 3 // 4:
            self.close()

    def _write(self, chunk: _Chunk, *arrays: npt.NDArray[Any]) -> None:
        if not self.complete:
            return
        offset = chunk.offset
        try:
            for array in arrays:
                view = _bytes(array)
                while len(view):
                    done = os.pwrite(self._file.fileno(), view, offset)
                    view, offset = view[done:], offset + done
        except OSError:  # a full disk: `complete` says so, and the network is shown its images again
            self.close()
            return
        self._stored = offset
        self._chunks.append(chunk)

    def _read(self, chunk: _Chunk) -> tuple[Any, Any, Any]:
        entries = np.empty((chunk.entries, 3), dtype=np.int32)
        places, values = np.empty(chunk.values, dtype=self._place), np.empty(chunk.values, dtype=np.float32)
        offset = chunk.offset
        for array in (entries, places, values):
            view = _bytes(array)
            while len(view):
                got = os.preadv(self._file.fileno(), [view], offset)
                if not got:
                    raise SchemaError("the temporary file of maps is shorter than what was written; was it cut?")
                view, offset = view[got:], offset + got
        return entries, places, values


def _bytes(array: Any) -> memoryview:
    return memoryview(array).cast("B") if array.size else memoryview(b"")
