"""Adopt dormancy logs that the reference wrote: into a cube of their own, under keys made from their numbers."""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from neurolens import __version__, schema
from neurolens.rows.keys import key
from neurolens.store import Axis
from neurolens.units.seed_log import natural

if TYPE_CHECKING:
    import xarray as xr

    from neurolens.store import Store

SERIES = "step"


def adopt_log(
    log: "xr.Dataset", store: "Store", *, run: str, report: Callable[[int], None] = lambda step: None
) -> tuple[int, int]:
    """Write a dormancy log as rows of the `dormancy` cube, one commit each, beside what was adopted before.

    Where the store has numbers of the same model, threshold, step and layer, those of the log replace them. Adopting
    the same log again writes nothing.

    Parameters
    ----------
    log : (step, log, layer)
        As :func:`neurolens.units.seed_log.read_log` returns it.
    run
        Name of the run; a store holds one.
    report
        Called with the step of each row that was written.

    Returns
    -------
    How many rows were written, and how many were there already.

    Raises
    ------
    StoreError
        If the store holds another run.
    """
    cube = schema.DORMANCY
    whole = _merged(log, store)
    names, layers = (np.asarray(whole[dim].values, str) for dim in ("log", "layer"))
    store.prepare(
        cube,
        run=run,
        series=SERIES,
        settings={"data": "adopted logs", "parts": {"log": {"imported": True, "model": None}}},
        axes={
            "log": Axis(names, {name: whole[name].values for name in ("model", "threshold")}),
            "layer": Axis(layers),
        },
        fingerprint=hashlib.sha256("\0".join([*names, "\0", *layers]).encode()).hexdigest(),
    )
    written = known = 0
    for slot, step in enumerate(whole[SERIES].values.tolist()):
        values = {v.name: np.asarray(whole[v.name].values[slot]) for v in cube.variables}
        wanted = {"log": _key(values, names, layers)}
        with store.claim(cube.name, [(step, 0)]):
            if store.ledger(cube.name).is_done(step, 0, "log", wanted["log"]):
                known += 1
                continue
            store.write_row(
                cube,
                (step, 0),
                positions={SERIES: step},
                values=values,
                keys=wanted,
                seconds=float("nan"),
                provenance={
                    "imported_from": str(log.attrs.get("imported_from", "")),
                    "versions": {"neurolens": __version__},
                },
            )
            written += 1
            report(step)
    return written, known


def _merged(log: "xr.Dataset", store: "Store") -> "xr.Dataset":
    """Lay a log over what the store holds; layers in natural order."""
    import xarray as xr

    names = [v.name for v in schema.DORMANCY.variables]
    both = [log]
    if store.ledger(schema.DORMANCY.name).exists:
        options: dict[str, Any] = {"endpoint": store.endpoint, "region": store.region}
        both.append(xr.open_dataset(store.url, group=schema.DORMANCY.name, engine="neurolens", backend_kwargs=options))
    known: dict[str, dict[str, Any]] = {"model": {}, "threshold": {}}
    numbers = []
    for one in both:
        for name, values in known.items():
            values |= dict(zip(one["log"].values.tolist(), one[name].values.tolist()))
        plain = {dim: np.asarray(one[dim].values.tolist(), str) for dim in ("log", "layer")}
        numbers.append(one[names].drop_vars(list(known)).assign_coords(plain))
    merged = numbers[0] if len(numbers) == 1 else numbers[0].combine_first(numbers[1])
    merged = merged.assign_coords(
        {name: ("log", [values[at] for at in merged["log"].values.tolist()]) for name, values in known.items()}
    )
    order = sorted(merged["layer"].values.tolist(), key=natural)
    return merged.sortby([SERIES, "log"]).sel(layer=order).transpose(SERIES, "log", "layer").load()


def _key(values: dict[str, np.ndarray], names: np.ndarray, layers: np.ndarray) -> str:
    digests = {name: hashlib.sha256(np.ascontiguousarray(v).tobytes()).hexdigest() for name, v in values.items()}
    return key({"imported": digests, "log": names.tolist(), "layer": layers.tolist()})
