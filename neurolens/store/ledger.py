"""Ledger: what a cube holds, row by row, as one frozen record."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import zarr

from neurolens.store.gather import Selection, read_all

ABSENT, DONE, FAILED = 0, 1, 2
STATES = ("absent", "done", "failed")
SERIES_DIMS = ("epoch", "step")

PLACE = "sample_place"
"""The coordinate that says at which place the study names a sample, −1 where it does not; where samples are kept."""


@dataclass(frozen=True)
class LedgerRow:
    """One entry that is not absent: a part of a row. ``key`` is hex; ``time`` is seconds since 1970.

    ``reading`` is a digest of the settings it was measured under, and ``current`` whether the group still has those.
    """

    position: int
    block: int
    part: str
    state: str
    key: str
    seconds: float
    time: float
    error: str
    provenance: str
    reading: int = 0
    current: bool = False


@dataclass(frozen=True)
class Ledger:
    """The ledger of one cube at one snapshot; slots are in order of arrival.

    Attributes
    ----------
    positions, epochs, steps : (slot,) int64
        ``positions`` are those of the series; −1 is unknown in the other.
    state : (slot, block, part) uint8
        0 absent, 1 done, 2 failed. A failure at a position that the study no longer names is absent.
    key : (slot, block, part) str
        sha256 in hex, empty where absent.
    reading : (slot, block, part) uint64
        Digest of the settings that the entry was measured under (`readings`), 0 where absent.
    seconds, time : (slot, block, part) float64
        NaN where absent.
    error, provenance : (slot, block, part) str
        Empty where there is none; provenance is JSON.
    settings : mapping
        What the group's attributes say: measurement settings, model, data, generation.
    named : (block,) bool
        Which blocks hold samples that the study names: all, but in a cube that keeps what it no longer names.
    """

    cube: str
    snapshot: str
    series: str
    generation: int
    parts: tuple[str, ...]
    fingerprints: tuple[str, ...]
    positions: np.ndarray
    epochs: np.ndarray
    steps: np.ndarray
    state: np.ndarray
    key: np.ndarray
    reading: np.ndarray
    seconds: np.ndarray
    time: np.ndarray
    error: np.ndarray
    provenance: np.ndarray
    settings: Mapping[str, Any]
    named: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def exists(self) -> bool:
        """Whether the store holds this cube at all."""
        return bool(self.settings)

    def slot(self, position: int) -> int | None:
        """Return the slot of a series position, None where it has none."""
        found = np.flatnonzero(self.positions == position)
        return int(found[0]) if len(found) else None

    def entry(self, position: int, block: int, part: str) -> LedgerRow:
        """Return one entry; what was never written comes back as absent."""
        slot = self.slot(position)
        if slot is None or block >= self.state.shape[1] or part not in self.parts:
            return LedgerRow(position, block, part, STATES[ABSENT], "", np.nan, np.nan, "", "")
        return self._row(slot, block, self.parts.index(part))

    def is_done(self, position: int, block: int, part: str, key: str) -> bool:
        """Whether a part of a row is done under this key."""
        entry = self.entry(position, block, part)
        return entry.state == STATES[DONE] and entry.key == key

    def rows(self) -> Iterator[LedgerRow]:
        """Go through all entries that are not absent, ordered by series position, block and part."""
        order = np.argsort(self.positions, kind="stable")
        for i, block, part in np.argwhere(self.state[order] != ABSENT):
            yield self._row(int(order[i]), int(block), int(part))

    @property
    def done_positions(self) -> frozenset[int]:
        """The series positions with anything done, under whatever settings."""
        return frozenset(self.positions[(self.state == DONE).any(axis=(1, 2))].tolist())

    @cached_property
    def _current(self) -> np.ndarray:
        return current_readings(self.settings, self.parts)

    def _row(self, slot: int, block: int, part: int) -> LedgerRow:
        at = (slot, block, part)
        return LedgerRow(
            int(self.positions[slot]),
            block,
            self.parts[part],
            STATES[self.state[at]],
            str(self.key[at]),
            float(self.seconds[at]),
            float(self.time[at]),
            str(self.error[at]),
            str(self.provenance[at]),
            reading=int(self.reading[at]),
            current=int(self.reading[at]) == int(self._current[part]),
        )


def read_ledger(root: zarr.Group, cube: str, snapshot: str) -> Ledger:
    """Read the ledger of a cube from a root group; a cube that is not there has an empty one."""
    group = root.get(cube)
    if not isinstance(group, zarr.Group):
        return _empty(cube, snapshot)
    settings = settings_of(group)
    arrays = {**arrays_in(group_in(group, "ledger")), **{d: array_in(group, d) for d in SERIES_DIMS if d in group}}
    series, everything = settings["series"], (slice(None),)
    known = dict(zip(SERIES_DIMS, read_all([(arrays.get(d, arrays[series]), everything) for d in SERIES_DIMS])))
    used = int(np.count_nonzero(known[series] >= 0))  # slots are allocated ahead of their use
    names = ("part", "fingerprint", "named", "state", "key", "reading", "seconds", "time", "error", "provenance")
    cut: Selection = (slice(0, used),)
    read = read_all([(arrays[n], everything if n in ("part", "fingerprint") else cut) for n in names])
    found = dict(zip(names, read, strict=True))
    forgotten = (found["state"] == FAILED) & ~found["named"][:, None, None]
    unknown = np.full(used, -1, "int64")
    named = np.ones(len(found["fingerprint"]), bool)
    if PLACE in group:
        place, of = (np.asarray(array_in(group, name)[:]) for name in (PLACE, "sample_block"))
        named = named_blocks(place, of, len(named))
    return Ledger(
        cube=cube,
        snapshot=snapshot,
        series=series,
        generation=settings["generation"],
        parts=tuple(found["part"].tolist()),
        fingerprints=tuple(found["fingerprint"].tolist()),
        positions=known[series][:used],
        epochs=known["epoch"][:used] if "epoch" in arrays else unknown,
        steps=known["step"][:used] if "step" in arrays else unknown,
        state=np.where(forgotten, np.uint8(ABSENT), found["state"]),
        key=hex_keys(found["key"]),
        reading=found["reading"],
        seconds=found["seconds"],
        time=found["time"],
        error=found["error"],
        provenance=found["provenance"],
        settings=settings,
        named=named,
    )


def _empty(cube: str, snapshot: str) -> Ledger:
    none, text = np.zeros(0, "int64"), np.zeros((0, 0, 0), "U1")
    numbers = np.zeros((0, 0, 0))
    return Ledger(
        cube=cube,
        snapshot=snapshot,
        series="",
        generation=0,
        parts=(),
        fingerprints=(),
        positions=none,
        epochs=none,
        steps=none,
        state=np.zeros((0, 0, 0), "uint8"),
        key=text,
        reading=np.zeros((0, 0, 0), "uint64"),
        seconds=numbers,
        time=numbers,
        error=text,
        provenance=text,
        settings={},
        named=np.zeros(0, bool),
    )


def settings_of(group: zarr.Group) -> dict[str, Any]:
    """Return a group's own attributes."""
    settings: Any = group.attrs["neurolens"]
    return dict(settings)


def readings(settings: Mapping[str, Any]) -> dict[str, int]:
    """Return, per part, 64 bits of a digest of the settings that its numbers depend on: the model and the part's own.

    They are what a row's key holds beside checkpoint and samples, and no more: what is done under a wanted key is of
    the current reading. A part whose own settings name a ``model`` is of that one.
    """
    out = {}
    for part, own in settings.get("parts", {}).items():
        text = json.dumps({"model": settings.get("model"), **own}, sort_keys=True, separators=(",", ":"))
        out[part] = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return out


def current_readings(settings: Mapping[str, Any], parts: Sequence[str]) -> np.ndarray:
    """Return the readings of these parts under a group's settings, (part,) uint64; 0 for a part it has none of."""
    known = readings(settings)
    return np.array([known.get(part, 0) for part in parts], "uint64")


def named_blocks(place: np.ndarray, block: np.ndarray, blocks: int) -> np.ndarray:
    """Return which blocks hold anything that the study names, (block,) bool: its samples' places, and blocks."""
    out = np.zeros(blocks, bool)
    out[block[place >= 0]] = True
    return out


def group_in(group: zarr.Group, name: str) -> zarr.Group:
    """Return a subgroup, typed."""
    member = group[name]
    assert isinstance(member, zarr.Group)
    return member


def array_in(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """Return an array, typed, that writes whole chunks even where they are all fill."""
    member = group[name]
    assert isinstance(member, zarr.Array)
    return member.with_config({"write_empty_chunks": True})


def arrays_in(group: zarr.Group) -> dict[str, zarr.Array[Any]]:
    """Return all arrays of a group, at the cost of one or two single ones; they write whole chunks."""
    return {name: array.with_config({"write_empty_chunks": True}) for name, array in group.arrays()}


def strings(group: zarr.Group, name: str) -> np.ndarray:
    """Read an array of strings, as numpy's fixed-width ones."""
    return np.asarray(np.asarray(array_in(group, name)[:]).tolist(), str)


def hex_keys(raw: np.ndarray) -> np.ndarray:
    """Turn (…, 32) bytes into (…) hex strings, empty where all bytes are zero."""
    if raw.size == 0:
        return np.zeros(raw.shape[:-1], "U64")
    text = np.frombuffer(np.ascontiguousarray(raw).tobytes().hex().encode(), "S64").astype("U64")
    return np.where(raw.any(axis=-1), text.reshape(raw.shape[:-1]), "")


def key_bytes(key: str) -> np.ndarray:
    """Turn a sha256 in hex into its 32 bytes."""
    return np.frombuffer(bytes.fromhex(key), "uint8")
