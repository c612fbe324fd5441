"""The rows of the clusters cube: which units of a layer act alike at one checkpoint, and what they were told apart by.

One pass of the images serves all layers. Which images these are depends on the samples and the seed alone, not on the
order of the samples, where they are drawn from all classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import nn

from neurolens import schema
from neurolens.clusters.features import THRESHOLD, unit_features
from neurolens.clusters.fitting import STARTS, unit_clusters
from neurolens.errors import NonFiniteError, SchemaError, nearest
from neurolens.layers import Layer, find_layers
from neurolens.study import Activations, Clusters
from neurolens.units import activations, running
from neurolens.units.measure import unit_axis

if TYPE_CHECKING:
    from neurolens.data import SampleSet
    from neurolens.models import Network
    from neurolens.store import Axis

Array = npt.NDArray[Any]

MEASUREMENT_VERSION = {"features": 1, "clusters": 1}
"""Raised when the numbers of a part change."""

FEATURES = ("rate", "mean", "variance")
"""What units are told apart by, in the order of the reference's columns."""

NEEDS = {"clusters": FEATURES}
"""What a part is made from that another part of the row holds."""


def parts(table: Clusters) -> tuple[str, ...]:
    """Return the parts of the clusters cube that the study asks for: all of them."""
    return tuple(part.name for part in schema.CLUSTERS.parts)


def key_config(table: Clusters, part: str) -> dict[str, Any]:
    """Return the settings that the numbers of a part depend on, with its version, JSON-able.

    Clusters depend on what their features depend on too, and on the release of scikit-learn, whose k-means has changed
    between releases; they are found anew from features that are there.

    Raises
    ------
    SchemaError
        If there is no such part.
    """
    if part not in MEASUREMENT_VERSION:
        raise SchemaError(f"the clusters cube has no part {part!r}; {nearest(part, MEASUREMENT_VERSION)}")
    level = {"threshold": THRESHOLD if table.threshold is None else table.threshold}
    config: dict[str, Any] = {
        "version": MEASUREMENT_VERSION["features"],
        "layers": list(table.layers),
        "statistics_at": dict(table.statistics_at),
        "images": table.images,
        "sample": table.sample,
        **({"seed": table.seed} if table.sample == "stratified" else {}),
        **(level if table.quantile is None else {"quantile": table.quantile}),
        "dtype": "bfloat16" if table.bf16 else "model",
    }
    if part == "features":
        return config
    release = ".".join(version("scikit-learn").split(".")[:2])
    fit: dict[str, Any] = {"compat": table.compat} if table.compat else {"method": table.method, **_starts(table)}
    return {"version": MEASUREMENT_VERSION[part], "features": config, "k": list(table.k), "sklearn": release, **fit}


def axes(
    network: "Network", samples: "SampleSet", table: Clusters, *, device: str | torch.device = "cpu"
) -> dict[str, "Axis"]:
    """Return the fixed axes of the cube: ``unit``, of all units of the layers, and ``k``, numbers of clusters.

    Raises
    ------
    CaptureError
        If the network does not have the layers.
    DataError
        If there are no samples.
    SchemaError
        If a layer has fewer units than clusters, or ``statistics_at`` does not fit the layers.
    """
    from neurolens.store import Axis

    with running.prepared(network, device=device, bf16=table.bf16) as module:
        taken = _taken(network, samples, module, table, device)
    return {"unit": unit_axis(taken.layers), "k": Axis(np.array(table.k, dtype=np.int64))}


def measure(
    network: "Network",
    samples: "SampleSet",
    *,
    parts: Sequence[str],
    table: Clusters,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
    stored: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Measure what the units of one checkpoint are like, and put them into clusters.

    Parameters
    ----------
    network : models.Network
        The filled module. It is left as it was.
    samples : data.SampleSet
        Those to choose ``table.images`` from; all, where there are fewer. What a unit puts out on an image is the mean
        over its map, float32, as the reference takes it; on a text, the mean over its tokens.
    parts
        Parts of the clusters cube.
    table : study.Clusters
        Settings of the measurement. With ``compat = "seed"``, clusters are of means and variances rounded to float32:
        those in the reference's files.
    batch_size
        Images a pass, cut to what suits a CPU's caches. Changes no number beyond float rounding.
    device
        Where to compute, as torch names it.
    progress
        Called with (images done, images) after each batch.
    stored
        `rate`, `mean` and `variance` (unit,) float64 of this checkpoint, where the features are not asked for: clusters
        are then found in them, and the network is shown no more than the layers are found on. Without it they are
        measured.

    Returns
    -------
    values : variable name → array
        `rate`, `mean`, `variance` (unit,) float64 and `unit_cluster` (k, unit) int32, along the axes of `axes`.

    Raises
    ------
    CaptureError, DataError
        If the network does not have the layers, or there are no samples.
    ModelMismatchError
        If the network's activations depend on the batch.
    NonFiniteError
        If an activation is NaN or infinite, naming the layer and the sample.
    SchemaError
        If a part is unknown, ``statistics_at`` does not fit the layers, a layer has fewer units, or units that differ,
        than clusters, or ``stored`` is of other units.
    """
    variables = [v for part in parts for v in schema.CLUSTERS.part(part).variables]
    with running.prepared(network, device=device, bf16=table.bf16) as module:
        taken = _taken(network, samples, module, table, device)
    if stored is None or "features" in parts:
        features = _measured(network, samples, taken, table, batch_size, device, progress) if parts else xr.Dataset()
    else:
        features = _restored(stored, taken)
    values = {str(name): array.to_numpy() for name, array in features.data_vars.items()}
    if "clusters" in parts:
        values["unit_cluster"] = _clusters(features, table).to_numpy()
    return {v.name: np.ascontiguousarray(values[v.name], dtype=v.dtype) for v in variables}


def chosen(samples: "SampleSet", table: Clusters) -> "SampleSet":
    """Return the samples that features are of, in their order: all, where no more are asked for.

    Stratified: from each class the one of the lowest draw of (seed, id), then from each the next, until there are as
    many as wanted, so that all classes have as many, or all they have.
    """
    from neurolens.data import draws

    if table.images >= len(samples):
        return samples
    if table.sample == "first":
        return samples.subset(np.arange(table.images))
    score = draws.bits(draws.keys(samples.ids.tolist()), "clusters", table.seed)
    order = np.lexsort((score, samples.labels))
    first = np.searchsorted(samples.labels[order], samples.labels[order], side="left")
    turn = np.empty(len(samples), dtype=np.int64)
    turn[order] = np.arange(len(samples)) - first
    return samples.subset(np.sort(np.lexsort((score, turn))[: table.images]))


@dataclass(frozen=True)
class _Taken:
    """The layers whose units are put into clusters, and for each the one whose activations speak for it."""

    layers: tuple[Layer, ...]
    sources: tuple[Layer, ...]

    @property
    def coords(self) -> dict[str, Any]:
        """The layer of each unit, and its place among the layers."""
        sizes = [layer.units for layer in self.layers]
        return {
            "layer": ("unit", np.repeat([layer.name for layer in self.layers], sizes)),
            "layer_index": ("unit", np.repeat(np.arange(len(sizes)), sizes)),
        }

    @property
    def shown(self) -> tuple[Layer, ...]:
        """The sources, each once, in the order in which they fire."""
        return tuple(sorted({source.name: source for source in self.sources}.values(), key=lambda one: one.order))


def _taken(
    network: "Network", samples: "SampleSet", module: nn.Module, table: Clusters, device: str | torch.device
) -> _Taken:
    probe = running.first_batch(network, samples, module, device=device)
    layers = find_layers(module, [_first_call(name) for name in table.layers], probe)
    for layer in layers:
        if layer.units < max(table.k):
            raise SchemaError(
                f"layer {layer.name!r} has {layer.units} units, and clusters.k = {max(table.k)} needs as many at "
                "least; lower it, or leave the layer out of clusters.layers"
            )
    names = [layer.name for layer in layers]
    speaking: dict[str, Layer] = {}
    for name, source in table.statistics_at.items():
        if name not in names:
            raise SchemaError(f"clusters.statistics_at speaks for {name!r}, no layer here; {nearest(name, names)}")
        found = find_layers(module, [_first_call(source)], probe)
        if len(found) > 1:
            raise SchemaError(
                f"clusters.statistics_at names {source!r} for {name!r}, which is {len(found)} layers; name one of "
                f"them, e.g. {found[0].name!r}"
            )
        own = layers[names.index(name)].units
        if found[0].units != own:
            raise SchemaError(
                f"clusters.statistics_at: {found[0].name!r} has {found[0].units} units and {name!r} has {own}, and as "
                "many were needed, unit for unit; name the norm or activation right behind it"
            )
        speaking[name] = found[0]
    return _Taken(layers, tuple(speaking.get(layer.name, layer) for layer in layers))


def _first_call(name: str) -> str:
    """Let a name stand for the first call of a module, as where cuts are named; a glob stands for all it meets."""
    return name if set("*?[#") & set(name) else f"{name}#0"


def _measured(
    network: "Network",
    samples: "SampleSet",
    taken: _Taken,
    table: Clusters,
    batch_size: int,
    device: str | torch.device,
    progress: Callable[[int, int], None] | None,
) -> xr.Dataset:
    images = chosen(samples, table)
    asked = Activations(
        layers=tuple(_first_call(source.name) for source in taken.shown),
        pool="mean",
        dtype="float32",
        bf16=table.bf16,
        allow_non_finite=True,
    )
    found = activations.measure(
        network,
        images,
        parts=("activation",),
        table=asked,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )["activation"]
    edges = np.cumsum([0, *(source.units for source in taken.shown)])
    at = {source.name: np.arange(low, high) for source, low, high in zip(taken.shown, edges, edges[1:], strict=False)}
    columns = np.concatenate([at[source.name] for source in taken.sources])
    _require_finite(found, images, taken, at)
    if not np.array_equal(columns, np.arange(found.shape[1])):
        found = found[:, columns]
    cube = xr.Dataset({"activation": (("sample", "unit"), found)}, coords=taken.coords)
    return unit_features(cube, threshold=table.threshold, quantile=table.quantile)


def _require_finite(found: Array, images: "SampleSet", taken: _Taken, at: Mapping[str, Array]) -> None:
    finite = np.isfinite(found)
    if finite.all():
        return
    row, column = np.argwhere(~finite)[0]
    name = next(source.name for source in taken.shown if at[source.name][0] <= column <= at[source.name][-1])
    raise NonFiniteError(
        f"layer {name!r}, unit {column - at[name][0]} has an activation of NaN or infinity on sample "
        f"{str(images.ids[row])!r}, and finite numbers were needed; leave the checkpoint out"
    )


def _restored(stored: Mapping[str, Array], taken: _Taken) -> xr.Dataset:
    """Return the features that a row holds, of the units of the layers."""
    units = sum(layer.units for layer in taken.layers)
    for name in FEATURES:
        found = np.shape(stored[name]) if name in stored else "nothing"
        if found != (units,):
            raise SchemaError(f"the row holds {name!r} of shape {found}, and ({units},) was needed; measure features")
    data = {name: ("unit", np.asarray(stored[name], dtype=np.float64)) for name in FEATURES}
    return xr.Dataset(data, coords=taken.coords)


def _clusters(features: xr.Dataset, table: Clusters) -> xr.DataArray:
    if table.compat is not None:
        rounded = {name: features[name].astype(np.float32).astype(np.float64) for name in ("mean", "variance")}
        return unit_clusters(features.assign(rounded), table.k, compat=table.compat)
    given = _starts(table)
    return unit_clusters(features, table.k, method=table.method, n_init=given["starts"], seed=given["start_seed"])


def _starts(table: Clusters) -> dict[str, int]:
    return {
        "starts": STARTS if table.starts is None else table.starts,
        "start_seed": 0 if table.start_seed is None else table.start_seed,
    }
