"""How many samples are measured together within the memory that a study gives, and what is said where none fits."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from neurolens.attribution.sets import PARTED, UnitSet
from neurolens.errors import NonFiniteError, SchemaError, StudyError

MIB = 2**20
_ELEMENT = 48
"""Bytes that a pixel of a map takes while it is made of the basis and described: float32, and copies in float64."""


@dataclass(frozen=True)
class Room:
    """The memory of a block of samples, in bytes.

    Parameters
    ----------
    free : what is left beside the arrays of the block
    basis : of the maps of the basis of one sample
    turning : of what combining takes of the basis of one sample
    scored : of the mass by pixel of all maps of one sample
    picture : of one pixel of each map of one set, while it is worked on
    """

    free: int
    basis: int
    turning: int
    scored: int
    picture: int

    @classmethod
    def of(cls, free: int, *, vectors: int, kinds: int, maps: int, pixels: int, channels: int) -> "Room":
        """Return the room for maps of so many ``vectors`` (by integral and gradient: ``kinds``), ``maps`` in all."""
        return cls(
            free,
            basis=4 * vectors * kinds * pixels * channels,
            turning=16 * vectors * pixels * channels,
            scored=8 * maps * pixels,
            picture=_ELEMENT * pixels * channels,
        )

    def samples(self, most: int) -> int:
        """Return of how many samples the basis is measured at once: it takes at most half, the passes the rest."""
        return max(1, min(most, self.free // 2 // self.basis if self.basis else most))

    def slices(self, samples: int) -> int:
        """Return the maps of how many of them are made at once."""
        left = self.free - samples * self.basis
        return max(1, min(samples, left // 2 // (self.scored + self.turning + self.picture)))

    def maps(self, samples: int, together: int) -> int:
        """Return how many maps of each of these are made at once, where ``together`` are measured."""
        left = self.free - together * self.basis - samples * (self.scored + self.turning)
        return max(1, left // 2 // (samples * self.picture))

    def showing(self, samples: int, together: int) -> float:
        """Return what is left to show these without the entries that their maps choose, in MiB."""
        return (self.free - together * self.basis - samples * self.scored) / MIB


def left_beside(memory_mib: int, nbytes: int, samples: int) -> int:
    """Return the memory that is left beside the arrays of a block of so many samples, in bytes.

    Raises
    ------
    StudyError
        If they take more than half of it, which leaves too little to measure them in.
    """
    free = memory_mib * MIB - nbytes
    if nbytes > memory_mib * MIB // 2:
        fitting = samples * memory_mib * MIB // 2 // nbytes
        mend = f"set block to {fitting} or less" if fitting else "ask for fewer sets"
        raise StudyError(
            f"what is kept of a block of {samples} images takes {nbytes / MIB:.0f} MiB, and at most half of "
            f"attributions.memory_mib = {memory_mib} is for it; {mend}, raise memory_mib to "
            f"{-(-2 * nbytes // MIB)}, or keep no maps (reduced, full)"
        )
    return free


def chunks(sets: Sequence[UnitSet], most: int) -> Iterator[list[int]]:
    """Yield the numbers of sets whose maps are made at once: about ``most``, the clusters of a clustering together."""
    groups: dict[object, list[int]] = {}
    for at, one in enumerate(sets):
        groups.setdefault((one.cut, one.clustering) if one.kind in PARTED else at, []).append(at)
    now: list[int] = []
    for group in groups.values():
        if now and len(now) + len(group) > most:
            yield now
            now = []
        now += group
    if now:
        yield now


@contextmanager
def naming(ids: Sequence[str], memory_mib: int) -> Iterator[None]:
    """Let errors inside name samples by their ids, and memory as the study does.

    Raises
    ------
    NonFiniteError, StudyError
        In the place of a NonFiniteError that numbers a sample, and of a SchemaError that a budget is too small.
    """
    try:
        yield
    except NonFiniteError as error:
        told = re.sub(r"sample number (\d+)", lambda number: f"sample {ids[int(number[1])]!r}", str(error))
        raise NonFiniteError(told.replace("on the first sample", f"on sample {ids[0]!r}")) from error
    except SchemaError as error:
        small = re.match(r"budget_mib=(\S+) was given, and (\S+) are needed", str(error))
        if small is None:
            raise
        more = float(small[2]) - float(small[1])
        raise StudyError(
            f"attributions.memory_mib is {memory_mib}, and one image by these sets needs {more:.0f} more; raise it to "
            f"{memory_mib + int(more) + 1}, or ask for fewer sets"
        ) from error
