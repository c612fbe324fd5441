"""Which sets of units each checkpoint's attributions are asked of: from the clusters in the store, and from files."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from neurolens import schema
from neurolens.attribution.sets import unit_sets
from neurolens.errors import DataError, StudyError, nearest
from neurolens.rows.asked import AskedSets
from neurolens.rows.keys import key
from neurolens.rows.opening import open_for_reading
from neurolens.rows.planning import plan
from neurolens.study import Attributions, Selection, Study

if TYPE_CHECKING:
    from neurolens.checkpoints import Checkpoint, Series
    from neurolens.data import SampleSet
    from neurolens.rows.materials import Materials

Array = npt.NDArray[Any]
Labels = dict[str, dict[str, Array]]

ASKED = ("attributions",)
"""Cubes that are measured of sets of units."""

_CLUSTERING = ("layers", "k")
"""Keys of [clusters] that say of what there are clusters, and not which: these do not change the others."""


def asked_sets(clusters: "Materials") -> AskedSets:
    """Return the sets of units that a study asks for, by checkpoint.

    Clusters that the study would find otherwise now are waited for.

    Parameters
    ----------
    clusters
        What clusters of the study are measured from.

    Raises
    ------
    StoreError
        If the store cannot be read.
    StudyError
        If there is no checkpoint of the number that clusters are taken from, or two clusterings have one name.
    SchemaError
        If unions, controls or strata name what is not there, or a file of clusters is of another layer.
    """
    study, series = clusters.study, clusters.series
    table = study.attributions
    assert table is not None
    store = open_for_reading(study)
    ledger = None if store is None or store.layout("clusters") is None else store.ledger("clusters")
    of = _reference(table, series)
    wanted = {checkpoint.position(series.dim) for checkpoint in (series.checkpoints if of is None else (of,))}
    rows = () if ledger is None else plan(clusters, store).rows
    current = [
        row.position
        for row in rows
        if ledger is not None and row.position in wanted and ledger.is_done(*row.id, "clusters", row.keys["clusters"])
    ]
    if ledger is None or not current:
        where = "" if of is None else f" of {series.dim} {of.position(series.dim)}"
        return AskedSets({}, note=f"attributions wait for clusters{where}: run clusters first")
    labels = {at: _with_files(found, table) for at, found in _labels(study, sorted(current), ledger.snapshot).items()}
    sets = {at: unit_sets(found, table) for at, found in labels.items()}
    if of is not None:
        (only,) = sets.values()
        return AskedSets({checkpoint.position(series.dim): only for checkpoint in series.checkpoints})
    missing = len(series.checkpoints) - len(sets)
    note = f"{missing} checkpoints wait for their clusters" if missing else ""
    return AskedSets(sets, common=_clustered(study), note=note)


def asked_samples(study: Study, samples: "SampleSet") -> "SampleSet":
    """Return the images that attributions are of.

    Raises
    ------
    DataError
        If there are fewer than asked for.
    """
    from neurolens.data import draws, selection

    table = study.attributions
    assert table is not None
    if table.images is None:
        return samples
    if table.images > len(samples):
        raise DataError(
            f"[attributions] images = {table.images}, and {samples.name} has {len(samples)}; lower it, or leave it out "
            "to take all"
        )
    kept = selection.select(
        Selection(count=table.images, how=table.sample, seed=table.seed),
        samples.labels,
        samples.classes,
        ids=lambda: samples.ids,
        keys=lambda: draws.keys(samples.ids.tolist()),
    )
    return samples.subset(kept)


def restricted(series: "Series", wanted: AskedSets) -> "Series":
    """Return the checkpoints that a row is asked of."""
    kept = tuple(c for c in series.checkpoints if c.position(series.dim) in wanted.sets)
    notes = (*series.notes, wanted.note) if wanted.note else series.notes
    return replace(series, checkpoints=kept, notes=notes)


def _reference(table: Attributions, series: "Series") -> "Checkpoint | None":
    wanted = table.clusters_from
    if wanted == "each":
        return None
    if wanted == "last":
        return series.checkpoints[-1]
    for checkpoint in series.checkpoints:
        if checkpoint.position(series.dim) == wanted:
            return checkpoint
    raise StudyError(
        f"attributions.clusters_from is {wanted}, and there is no checkpoint of that {series.dim}; "
        f"{nearest(str(wanted), map(str, series.positions))}"
    )


def _labels(study: Study, positions: Sequence[int], snapshot: str) -> dict[int, Labels]:
    """Read the clusters of all units at these positions."""
    from neurolens.backend import open_run

    run = open_run(study.store.url, snapshot=snapshot, endpoint=study.store.endpoint, region=study.store.region)
    clusters = run["clusters"].to_dataset()
    dim = schema.series_dim(clusters)
    found = clusters["unit_cluster"].sel({dim: list(positions)}).transpose(dim, "k", "unit").to_numpy()
    layer = np.asarray(clusters["layer"].to_numpy().tolist())
    names = [f"k{k}" for k in clusters["k"].to_numpy().tolist()]
    return {
        position: {
            str(cut): {name: row[layer == cut].astype(np.int64) for name, row in zip(names, rows, strict=True)}
            for cut in dict.fromkeys(layer.tolist())
        }
        for position, rows in zip(positions, found, strict=True)
    }


def _with_files(labels: Labels, table: Attributions) -> Labels:
    """Add the clusters that are in files."""
    from neurolens.clusters.cluster_files import read_clusters

    for layer, paths in table.files.items():
        if layer not in labels:
            raise StudyError(
                f"attributions.files has clusters of {layer!r}, which is not among clusters.layers; "
                f"{nearest(layer, labels)}"
            )
        units = len(next(iter(labels[layer].values())))
        for path in paths:
            name = (path if path.is_dir() else path.parent).name or path.stem
            if name in labels[layer]:
                raise StudyError(
                    f"attributions.files: the clusters of {path} would be called {name!r}, after their folder, as "
                    f"others of {layer!r} are; put the file into a folder of another name"
                )
            labels[layer][name] = read_clusters(path, layer=layer, units=units)
    return labels


def _clustered(study: Study) -> str:
    """Return a digest of how clusters are found, which is the same whatever there are clusters of."""
    assert study.clusters is not None
    table = study.clusters.model_dump(mode="json", exclude=set(_CLUSTERING))
    return key({"clusters": table, "data": study.data.model_dump(mode="json")})[:12]
