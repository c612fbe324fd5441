"""Files of the reference: statistics of a layer's units, their clusters, a manifest, and centroids."""

import csv
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.clusters.matrices import chosen, layers_or_one
from neurolens.clusters.opened import clusters_of
from neurolens.errors import DataError, NonFiniteError, SchemaError, nearest
from neurolens.units.inputs import listed, series_of

CLUSTERS, MANIFEST, CENTROIDS = "cluster_results.npz", "manifest.json", "cluster_centroids.csv"

STATISTICS = {"rate": ("activation_rate", "f8"), "mean": ("mean_activation", "f4"), "variance": ("variance", "f4")}
"""What the reference calls each feature, and how precisely it keeps it."""

COLUMNS = ("cluster", "mean", "rate", "variance", "n_neurons")
"""Columns of the table of centroids."""

_DENSE_BLOCK = re.compile(r"(?:.*\.)?denseblock(\d+)")


def read_clusters(path: str | Path, *, layer: str, units: int) -> npt.NDArray[np.int64]:
    """Read the clusters of a layer's units from a ``cluster_results.npz`` of the reference.

    Parameters
    ----------
    path : file, or the folder that holds it
    layer
        Whose units they are to be: the file's ``block_1`` is ``features.denseblock1``. A file names its layer in full,
        or by the number that the layer's name ends in.
    units
        How many the layer has.

    Returns
    -------
    labels : (units,) int64
        The cluster of each unit, from 0.

    Raises
    ------
    DataError
        If there is no such file, it is no file of clusters, or it is of another layer or of other units.
    """
    file = Path(path)
    file = file / CLUSTERS if file.is_dir() else file
    held = _arrays(file, ("selected_block", "labels", "n_clusters"), "clusters")
    block, labels = str(held["selected_block"]), held["labels"]
    if not _same_layer(block, layer):
        raise DataError(
            f"{file} holds clusters of {block!r}, and those of {layer!r} were needed; name the file under its own "
            "layer, e.g. block_1 under features.denseblock1"
        )
    if labels.shape != (units,):
        raise DataError(
            f"{file} holds clusters of {labels.size} units of {block!r}, and layer {layer!r} has {units}; give a file "
            "that was made from this network"
        )
    k = int(held["n_clusters"].max())
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= k:
        raise DataError(
            f"{file} holds clusters {listed(np.unique(labels))} of type {labels.dtype}, and whole numbers from 0 to "
            f"{k - 1} were needed; make the file anew"
        )
    return labels.astype(np.int64)


def read_features(path: str | Path) -> xr.Dataset:
    """Read the statistics of a layer's units from a ``stats_….npz`` of the reference.

    Returns
    -------
    features : Dataset over (unit,)
        `rate`, `mean` and `variance`, float64, in the order of the reference's columns: ``unit_clusters(features, 3,
        compat="seed")`` gives its labels.

    Raises
    ------
    DataError
        If there is no such file, or it is no file of statistics.
    """
    held = _arrays(Path(path), [key for key, _ in STATISTICS.values()], "statistics of units")
    sizes = {key: held[key].shape for key, _ in STATISTICS.values()}
    if len(set(sizes.values())) > 1 or any(len(shape) != 1 for shape in sizes.values()):
        raise DataError(f"{path} holds {sizes}, and one number per unit of each was needed; make the file anew")
    return xr.Dataset({name: ("unit", held[key].astype(np.float64)) for name, (key, _) in STATISTICS.items()})


def write_clusters(
    ds: xr.Dataset,
    folder: str | Path,
    *,
    layers: str | Sequence[str] | None = None,
    k: int | Sequence[int] | None = None,
) -> list[Path]:
    """Write clusters as the reference does: a folder for each layer and number of clusters. **Eager**.

    Parameters
    ----------
    ds : Dataset over (unit,) and (k, unit)
        One checkpoint of the opened clusters cube: `rate`, `mean`, `variance` and `unit_cluster`, with `layer`.
    folder
        Where to write ``LAYER_kK/``, made if there is none. ``features.denseblock1`` is ``block_1``, as in the
        reference; other layers have their own name.
    layers : names or patterns, optional
        Those to write; all by default.
    k : int or several, optional
        Numbers of clusters to write; all by default.

    Returns
    -------
    paths
        Of each: ``stats_LAYER.npz`` (activation_rate float64; mean_activation and variance float32),
        ``cluster_results.npz`` (selected_block, labels int32, n_clusters), ``manifest.json`` and
        ``cluster_centroids.csv``.

    Raises
    ------
    SchemaError
        If it is not one checkpoint, or a layer or number of clusters is not there.
    MissingMeasurementError, NonFiniteError
        If features or clusters were not measured there.
    """
    series = series_of(ds)
    if series is not None:
        raise SchemaError(f"found {ds.sizes[series]} checkpoints, and one was needed; select it: ds.isel({series}=-1)")
    clusters = chosen(clusters_of(ds), layers)
    features = chosen(ds[list(STATISTICS)].to_dataarray("feature"), layers).compute()
    known = [int(each) for each in clusters["k"].to_numpy()]
    wanted = known if k is None else [k] if isinstance(k, int) else list(k)
    for number in wanted:
        if number not in known:
            raise SchemaError(f"there are no {number} clusters here, but {listed(known)}; name one of them, as k=")
    found = layers_or_one(clusters)
    names = file_names(found.names)
    written = []
    for code, layer in enumerate(found.names):
        units = found.codes == code
        values = {name: features.sel(feature=name).to_numpy()[units] for name in STATISTICS}
        if not all(np.isfinite(array).all() for array in values.values()):
            raise NonFiniteError(f"layer {layer!r} has features of NaN; measure it again, or choose layers=")
        for number in wanted:
            place = Path(folder) / f"{names[layer]}_k{number}"
            labels = clusters.sel(k=number).to_numpy()[units]
            written += _write(place, names[layer], number, values, labels)
    return written


def file_names(layers: Sequence[str]) -> dict[str, str]:
    """Return what files call each layer: the reference's ``block_1`` of dense blocks, else the layer's own name.

    Characters that a file's name should not have become ``_``. Layers that would share a name keep their own.

    Raises
    ------
    SchemaError
        If two layers share a name all the same.
    """
    own = {layer: re.sub(r"[^\w.\-]+", "_", layer) or "layer" for layer in layers}
    short = {layer: f"block_{met[1]}" if (met := _DENSE_BLOCK.fullmatch(layer)) else own[layer] for layer in layers}
    out = {layer: name if list(short.values()).count(name) == 1 else own[layer] for layer, name in short.items()}
    for layer, name in out.items():
        if list(out.values()).count(name) > 1:
            raise SchemaError(f"layer {layer!r} would share files called {name!r} with another; write them apart")
    return out


def _write(place: Path, name: str, k: int, values: dict[str, npt.NDArray[Any]], labels: npt.NDArray[Any]) -> list[Path]:
    place.mkdir(parents=True, exist_ok=True)
    paths = [place / f"stats_{name}.npz", place / CLUSTERS, place / MANIFEST, place / CENTROIDS]
    arrays: dict[str, Any] = {key: values[feature].astype(kind) for feature, (key, kind) in STATISTICS.items()}
    np.savez(paths[0], **arrays)
    results: dict[str, Any] = {"selected_block": name, "labels": labels.astype("i4"), "n_clusters": k}
    np.savez(paths[1], **results)
    told = {"selected_block": name, "n_clusters": k, "num_neurons": len(labels), "stats_files": [paths[0].name]}
    paths[2].write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    with paths[3].open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for cluster in np.unique(labels).tolist():
            rows = labels == cluster
            means = {feature: float(array[rows].mean()) for feature, array in values.items()}
            table.writerow([cluster, means["mean"], means["rate"], means["variance"], int(rows.sum())])
    return paths


def _arrays(file: Path, names: Sequence[str], what: str) -> dict[str, npt.NDArray[Any]]:
    """Read named arrays of an archive that needs no code to be executed."""
    if not file.is_file():
        beside = [path.name for path in file.parent.glob("*.npz")] if file.parent.is_dir() else []
        hint = nearest(file.name, beside) if beside else f"give the path of a file of {what} of the reference"
        raise DataError(f"there is no file {file}; {hint}")
    try:
        with np.load(file, allow_pickle=False) as archive:
            held = {name: np.asarray(archive[name]) for name in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise DataError(f"{file} is no archive of arrays ({error}); give a file of {what} of the reference") from error
    lacking = [name for name in names if name not in held]
    if lacking:
        raise DataError(
            f"{file} holds {', '.join(held) or 'nothing'}, and {lacking[0]!r} was needed; give a file of {what} of the "
            "reference"
        )
    return held


def _same_layer(block: str, layer: str) -> bool:
    ends = [re.search(r"(\d+)$", name) for name in (block, layer)]
    numbers = [int(end[1]) for end in ends if end is not None]
    return block in (layer, file_names([layer])[layer]) or (len(numbers) == 2 and numbers[0] == numbers[1])
