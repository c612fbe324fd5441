"""Cubes whose rows follow from another cube: which checkpoints have a row, and of which units."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from neurolens.study import Study

if TYPE_CHECKING:
    import xarray as xr

    from neurolens.checkpoints import Series

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

    Raises
    ------
    StoreError
        If the store cannot be read.
    """
    from neurolens import concept_events, iou
    from neurolens.mortality.functional import asked_units

    table = study.effects
    assert table is not None
    concepts = _concepts(study)
    if concepts is None:
        return Asked({}, note="effects wait for concepts: no checkpoint has been dissected yet")
    events = concept_events(
        iou(concepts, reading=table.reading),
        tau=table.tau,
        k=table.k,
        hysteresis=table.hysteresis,
        by=None if table.compat else table.by,
        compat=table.compat,
        smoothing_window=table.smoothing_window,
        min_alive=table.min_alive,
        missing="drop",
    )
    done = concepts[series.dim].values[concepts["measured"].values]
    found = asked_units(events, done, compat=table.compat)
    known = {position: units for position, units in found.items() if position in series.positions}
    layers = tuple(dict.fromkeys(np.asarray(concepts["layer"]).tolist()))
    note = "" if known else "effects are of units whose concepts died, and none has"
    return Asked(known, layers, note)


def restricted(series: "Series", wanted: Asked) -> "Series":
    """Return the checkpoints that a row is asked of."""
    kept = tuple(c for c in series.checkpoints if c.position(series.dim) in wanted.units)
    notes = (*series.notes, wanted.note) if wanted.note else series.notes
    return replace(series, checkpoints=kept, notes=notes)


def _concepts(study: Study) -> "xr.Dataset | None":
    """Open the study's concepts cube, or return None where no row of it is done."""
    from neurolens.backend import open_run
    from neurolens.rows.materials import open_for_reading

    store = open_for_reading(study)
    if store is None or store.layout("concepts") is None:
        return None
    run = open_run(study.store.url, endpoint=study.store.endpoint, region=study.store.region)
    concepts = run["concepts"].to_dataset()
    return concepts if "intersection" in concepts and bool(concepts["measured"].any()) else None
