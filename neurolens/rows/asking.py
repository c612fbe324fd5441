"""Cubes whose rows follow from another cube: which checkpoints have a row, and of which units."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from neurolens import schema
from neurolens.rows.keys import key
from neurolens.rows.opening import open_for_reading
from neurolens.rows.remembering import remembered
from neurolens.study import Study

if TYPE_CHECKING:
    from neurolens.checkpoints import Series
    from neurolens.store.ledger import Ledger

Found = dict[str, Any]
VERSION = 1
"""Raised when other units are asked for the same events, or events themselves change."""

RULE = ("reading", "tau", "k", "hysteresis", "by", "compat", "smoothing_window", "min_alive")
"""The keys of [effects] that say what an event is."""

ASKED = ("effects",)
"""Cubes that are measured only of some units, at some checkpoints."""


@dataclass(frozen=True)
class Asked:
    """The units that each row is asked of, by position in the series, and the layers that all units are in.

    ``note`` says why there are none.
    """

    units: Mapping[int, tuple[int, ...]]
    layers: tuple[str, ...] = ()
    note: str = ""


def asked(study: Study, series: "Series") -> Asked:
    """Return the units whose concepts died, by the checkpoints just before and after: from the concepts in the store.

    All IoU are looked at once, and again when a row of concepts, or what an event is, has changed.

    Raises
    ------
    StoreError
        If the store cannot be read.
    DataError
        If the user's cache cannot be written.
    """
    table = study.effects
    assert table is not None
    store = open_for_reading(study)
    ledger = None if store is None or store.layout("concepts") is None else store.ledger("concepts")
    held = {} if ledger is None else _keys(ledger)
    if ledger is None or not held:
        return Asked({}, note="effects wait for concepts: no checkpoint has been dissected yet")
    rule = {name: getattr(table, name) for name in RULE}
    name = key({"version": VERSION, "rows": held, "rule": rule})
    snapshot = ledger.snapshot  # what is kept under their keys is found in these rows, whatever is committed meanwhile
    found = remembered("events", f"{name}.json", lambda: _find(study, rule, snapshot), read=_read, write=_write)
    known = {int(at): tuple(units) for at, units in found["units"].items() if int(at) in series.positions}
    return Asked(known, tuple(found["layers"]), "" if known else "effects are of units whose concepts died; none has")


def restricted(series: "Series", wanted: Asked) -> "Series":
    """Return the checkpoints that a row is asked of."""
    kept = tuple(c for c in series.checkpoints if c.position(series.dim) in wanted.units)
    notes = (*series.notes, wanted.note) if wanted.note else series.notes
    return replace(series, checkpoints=kept, notes=notes)


def _find(study: Study, rule: Mapping[str, Any], snapshot: str) -> Found:
    """Find the deaths in the store at a snapshot, and whom to ask about them."""
    from neurolens import concept_events, iou
    from neurolens.backend import open_run
    from neurolens.mortality.functional import asked_units

    run = open_run(study.store.url, snapshot=snapshot, endpoint=study.store.endpoint, region=study.store.region)
    concepts = run["concepts"].to_dataset()
    options = {name: value for name, value in rule.items() if name not in ("reading", "by")}
    by = None if rule["compat"] else rule["by"]
    events = concept_events(iou(concepts, reading=rule["reading"]), by=by, missing="drop", **options)
    done = concepts[schema.series_dim(concepts)].values[concepts["measured"].values]
    units = asked_units(events, done, compat=rule["compat"])
    layers = dict.fromkeys(np.asarray(concepts["layer"]).tolist())
    return {"units": {str(at): [int(u) for u in of] for at, of in units.items()}, "layers": list(layers)}


def _keys(ledger: "Ledger") -> dict[str, str]:
    """Return the keys of what is dissected, by position."""
    rows = (row for row in ledger.rows() if (row.part, row.state) == ("counts", "done") and row.current)
    return {str(row.position): row.key for row in rows}


def _read(path: Path) -> Found:
    found: Found = json.loads(path.read_text())
    return found


def _write(file: IO[bytes], found: Found) -> None:
    file.write(json.dumps(found).encode())
