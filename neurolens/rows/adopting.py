"""Adopt rows that another program measured: into the store, under keys of their own."""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from neurolens import __version__, schema
from neurolens.data import open_samples
from neurolens.errors import DataError
from neurolens.rows.keys import key
from neurolens.rows.planning import exposure_of
from neurolens.store import SampleCoords
from neurolens.study import Study

if TYPE_CHECKING:
    import xarray as xr

    from neurolens.store import Store


def adopt(
    study: Study, ds: "xr.Dataset", store: "Store", *, report: Callable[[int], None] = lambda position: None
) -> tuple[int, int]:
    """Write a Dataset of per-sample measurements as rows of the samples cube, one commit each.

    Samples are matched to the study's data by their position in it. A row's key is made from its numbers, so adopting
    the same files again writes nothing. Measuring the run's checkpoints later replaces what was adopted: from then on
    adopted rows that are not measured yet open as missing, and those without a checkpoint are not shown, since one
    series never mixes the two.

    Parameters
    ----------
    ds : (series, sample), with `position` (sample)
        Variables of the samples cube; NaN rows are not measured.
    report
        Called with the position of each row that was written.

    Returns
    -------
    How many rows were written, and how many were there already.

    Raises
    ------
    DataError
        If the study's data has samples at positions that the Dataset does not reach.
    """
    dim = schema.require(ds, *map(str, ds.data_vars))
    samples, cube = open_samples(study.data), schema.SAMPLES
    positions = np.asarray(samples.coords.get("position", np.arange(len(samples))))
    at = {int(position): i for i, position in enumerate(ds["position"].values)}
    lost = [int(p) for p in positions if int(p) not in at]
    if lost:
        raise DataError(
            f"the study's data has {len(samples)} samples and the files {ds.sizes['sample']}: there is none for "
            f"position {lost[0]}; name the data (source, root, split, select) that the files were measured on"
        )
    place = np.array([at[int(position)] for position in positions])
    by_part: dict[str, list[str]] = {}
    for name in map(str, ds.data_vars):
        by_part.setdefault(cube.part_of(name).name, []).append(name)
    source = str(ds.attrs.get("imported_from", ""))
    layout = store.prepare(
        cube,
        run=study.name,
        series=dim,
        samples=SampleCoords(samples.ids, samples.labels, samples.classes, samples.coords),
        # no model, no source: imports from several folders are one reading, and none with what is measured here
        settings={"data": samples.name, "parts": {part: {"imported": True, "model": None} for part in by_part}},
        exposure=exposure_of(samples),
        variables=[str(name) for name in ds.data_vars],
    )
    order = {name: i for i, name in enumerate(samples.ids.tolist())}
    written = known = 0
    for slot, position in enumerate(ds[dim].values.tolist()):
        for block, ids in enumerate(layout.blocks):
            chosen = place[[order[name] for name in ids.tolist()]]
            values = {str(n): np.asarray(ds[n].values[slot][chosen], np.float32) for n in ds.data_vars}
            measured = {part: names for part, names in by_part.items() if not np.isnan(values[names[0]]).all()}
            keys = {part: _key(values, names, layout.fingerprints[block]) for part, names in measured.items()}
            with store.claim(cube.name, [(position, block)]):
                ledger = store.ledger(cube.name)
                new = {p: k for p, k in keys.items() if not ledger.is_done(position, block, p, k)}
                if not new:
                    known += 1
                    continue
                store.write_row(
                    cube,
                    (position, block),
                    positions={dim: position},
                    values={name: values[name] for part in new for name in measured[part]},
                    keys=new,
                    seconds=float("nan"),
                    provenance={"imported_from": source, "versions": {"neurolens": __version__}},
                )
                written += 1
                report(position)
    return written, known


def _key(values: dict[str, Any], names: list[str], data: str) -> str:
    digests = {name: hashlib.sha256(np.ascontiguousarray(values[name]).tobytes()).hexdigest() for name in names}
    return key({"imported": digests, "data": data})
