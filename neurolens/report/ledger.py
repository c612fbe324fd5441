"""The ledger of a cube, laid out for reading: one strip of cells per part, one line per failure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from neurolens import schema
from neurolens.rows.holding import HELD
from neurolens.rows.leaving_out import UNNAMED
from neurolens.store import Ledger, LedgerRow

CELLS = 400
MARKS = {"done": "", "failed": "×", "absent": "", "partly": "~", "stale": "↻"}


@dataclass(frozen=True)
class Cell:
    """The state of one part at one checkpoint, over all blocks of samples."""

    position: int
    state: str
    mark: str


@dataclass(frozen=True)
class PartStrip:
    """One part at every checkpoint. ``cells`` is empty where there are too many to show."""

    part: str
    cells: tuple[Cell, ...]
    counts: Mapping[str, int]
    seconds: float


@dataclass(frozen=True)
class Failure:
    """A row that failed, and why."""

    position: int
    parts: tuple[str, ...]
    reason: str
    checkpoint: str


@dataclass(frozen=True)
class LedgerTable:
    """All that the page says about one cube's rows."""

    cube: str
    series: str
    first: int
    last: int
    blocks: int
    blocks_of: str
    generation: int
    strips: tuple[PartStrip, ...]
    failed: tuple[Failure, ...]
    written: str
    settings: Mapping[str, Any]
    measured_with: tuple[str, ...]
    checkpoints: tuple[tuple[int, str, str], ...]


def ledger_table(ledger: Ledger) -> LedgerTable:
    """Lay out a ledger that exists."""
    cube = schema.CUBES[ledger.cube]
    rows = [row for row in ledger.rows() if ledger.named[row.block]]
    positions = sorted({row.position for row in rows})
    blocks = int(ledger.named.sum())
    states: dict[tuple[int, str], list[LedgerRow]] = {}
    for row in rows:
        states.setdefault((row.position, row.part), []).append(row)
    seen = [part for part in ledger.parts if any(row.part == part for row in rows)]
    strips = tuple(_strip(part, positions, states, blocks) for part in seen)
    times = [row.time for row in rows if np.isfinite(row.time)]
    written = datetime.fromtimestamp(max(times), UTC).strftime("%Y-%m-%d %H:%M UTC") if times else "never"
    shown = {
        name: ledger.settings[name] for name in ("data", "model", "parts", "exposure") if ledger.settings.get(name)
    }
    return LedgerTable(
        cube=ledger.cube,
        series=ledger.series,
        first=positions[0] if positions else 0,
        last=positions[-1] if positions else 0,
        blocks=blocks,
        blocks_of=f"{cube.sample}s" if "sample" in cube.dims else "",
        generation=ledger.generation,
        strips=strips,
        failed=_failures(rows),
        written=written,
        settings=shown,
        measured_with=_ways(rows),
        checkpoints=_checkpoints(rows),
    )


def _strip(part: str, positions: list[int], states: dict[tuple[int, str], list[LedgerRow]], blocks: int) -> PartStrip:
    cells = []
    counts: dict[str, int] = {}
    seconds = 0.0
    for position in positions:
        rows = states.get((position, part), [])
        state = _state(rows, blocks)
        counts[state] = counts.get(state, 0) + 1
        seconds += float(np.nansum([row.seconds for row in rows])) if rows else 0.0
        cells.append(Cell(position, state, MARKS[state]))
    return PartStrip(part, tuple(cells) if len(cells) <= CELLS else (), counts, seconds)


def _state(rows: list[LedgerRow], blocks: int) -> str:
    if any(row.state == "failed" for row in rows):
        return "failed"
    if not rows:
        return "absent"
    if not all(row.current for row in rows):
        return "stale"
    return "done" if len(rows) == blocks else "partly"


def _failures(rows: list[LedgerRow]) -> tuple[Failure, ...]:
    """Gather the parts of a row that failed for one reason."""
    alike: dict[tuple[int, int, str], list[LedgerRow]] = {}
    for row in rows:
        if row.state == "failed":
            alike.setdefault((row.position, row.block, row.error), []).append(row)
    return tuple(
        Failure(position, tuple(row.part for row in group), reason, Path(_known(group[0]).get("checkpoint", "")).name)
        for (position, _, reason), group in alike.items()
    )


def _known(row: LedgerRow) -> dict[str, Any]:
    known: dict[str, Any] = json.loads(row.provenance) if row.provenance else {}
    return known


def _ways(rows: list[LedgerRow]) -> tuple[str, ...]:
    """Name every way in which rows were measured, less what differs by checkpoint, and what they hold."""
    ways = set()
    for row in rows:
        known = {
            name: value for name, value in _known(row).items() if name not in ("checkpoint", "digest", HELD, UNNAMED)
        }
        versions = known.pop("versions", {})
        words = [f"{name} {value}" for name, value in {**versions, **known}.items()]
        if words:
            ways.add(", ".join(words))
    return tuple(sorted(ways))


def _checkpoints(rows: list[LedgerRow]) -> tuple[tuple[int, str, str], ...]:
    """List position, file and digest of every checkpoint that was measured, in order of the series."""
    found = {}
    for row in rows:
        known = _known(row)
        if known.get("checkpoint"):
            found[row.position] = (row.position, str(known["checkpoint"]), str(known.get("digest", "")))
    return tuple(found[position] for position in sorted(found))
