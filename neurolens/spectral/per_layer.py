"""The spectrum of every layer at every checkpoint, from a cube of activations."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib import import_module
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.errors import MissingMeasurementError, SchemaError, nearest
from neurolens.spectral.factoring import Method, Precision, Settings
from neurolens.spectral.jobs import Cut, Shape, fits, plan
from neurolens.spectral.results import answers, labelled
from neurolens.spectral.strips import reader
from neurolens.units.inputs import OnMissing, choice, kept_attrs, labels_of, listed, series_of
from neurolens.units.layers_of import Layers, held, layers_of

EXACT = 4096
"""The shorter side of a matrix up to which the Gram matrix is taken on its own accord."""
RANK = 100
"""How many singular values are computed where not all are, unless ``rank`` says."""
Vectors = Literal["right", "left", "both"]


def spectra(
    activations: xr.Dataset | xr.DataArray | Any,
    *,
    layers: str | Sequence[str] | None = None,
    dims: Sequence[str] | None = None,
    dim: str | None = None,
    centred: bool = False,
    rank: int | None = None,
    vectors: Vectors | None = None,
    method: Method | Literal["auto"] = "auto",
    precision: Precision = "float64",
    missing: OnMissing = "error",
    memory_mib: int = 512,
    oversampling: int | None = None,
    passes: int = 8,
    tol: float = 1e-3,
    seed: int = 0,
) -> xr.Dataset:
    """Singular values, ranks and singular vectors of each layer's activations at each checkpoint, out of core.

    A layer's matrix is (sample, unit). Its Gram matrix over the shorter side is summed in float64 while the longer
    side is streamed, each block of the cube being read once; where the shorter side exceeds 4096, a random subspace is
    turned towards the leading one instead, with one pass per turn.

    Parameters
    ----------
    activations : the opened activations cube, or an array (series, sample, unit) or (sample, unit)
        With the layer of each unit as coordinate `layer` (unit,); without it all units are one matrix, and the result
        has no dim `layer`. A numpy or dask array comes with ``dims``. float16 and float32 are read as they are.
    layers : names or patterns (``"layer3.*"``), optional
        The layers to take; all of them by default.
    dims : names of the dims of a bare array
        ("sample", "unit") by default.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever there is.
    centred : bool
        Subtract each unit's mean over the samples. The reference does not.
    rank : int, optional
        How many singular values (and vectors) to give; the metrics are of the whole spectrum all the same. All by
        default, 100 where the spectrum is computed in part.
    vectors : {"right", "left", "both"}, optional
        Give singular vectors: over the units, over the samples (A v / s, lazily), or both.
    method : {"auto", "gram", "qr", "randomised"}
        ``gram`` loses singular values below `floor`, about 6e-8 of the largest; ``qr`` keeps those down to rounding, at
        some four times the work; ``randomised`` gives the leading ``rank``. ``auto`` takes ``gram`` where the shorter
        side is at most 4096 and its Gram matrix fits into ``memory_mib``, else ``randomised``.
    precision : {"float64", "mixed"}
        ``mixed`` multiplies in float32 and sums up blocks in float64: twice as fast, the leading values to about 1e-7,
        and `floor` at 5e-4 of the largest. Not for ``qr``.
    missing : {"error", "drop"}
        Raise where samples are NaN, or leave them out. A matrix that is NaN throughout was not measured: NaN, with
        `n_samples` 0; where the cube says so itself (coordinate `measured`), that is an error too unless dropped.
    memory_mib : int
        What all computations of one process hold together, in MiB, besides what they give and left vectors. A chunk of
        a lazy array is read whole, and counted.
    oversampling, passes, tol, seed : of ``randomised``
        Dimensions of the subspace beyond ``rank`` (as many again by default); turns at most; the error bound at which
        to stop; where it starts.

    Returns
    -------
    Dataset over (series, layer), lazy if ``activations`` is
        `singular_value` (…, component), decreasing, NaN beyond the shorter side, 0 below `floor`;
        `singular_value_error`, a bound on its relative error; `effective_rank`, `stable_rank` (Frobenius), `srank99`
        and `approx99` (the reference's counts), `participation_ratio`; `numerical_rank`, counted above `tolerance`, the
        larger of s_max · max(samples, units) · eps and `floor`; `frobenius_norm`; `n_samples`. On request
        `right_vector` (…, index, component) and `left_vector` (…, sample, component), with the component of largest
        magnitude of each right vector positive; NaN where the singular value is 0. Of a spectrum that is computed in
        part, the metrics that need all of it are NaN. Coordinates of `layer`: `units` and `method`. Compute the Dataset
        as a whole: variables computed one by one read the cube each time.

    Raises
    ------
    SchemaError
        If a dim or the layers asked for are not there, an option is unknown, or a matrix does not fit into memory.
    MissingMeasurementError
        If checkpoints or samples are missing; at compute time where only the data can tell.
    NonFiniteError
        If an activation is infinite; at compute time under dask.

    References
    ----------
    Roy and Vetterli 2007, "The Effective Rank"; Dohare et al. 2024, "Loss of Plasticity in Deep Continual Learning";
    Halko, Martinsson and Tropp 2011, "Finding Structure with Randomness", algorithm 4.4.
    """
    choice("method", method, "auto", *get_args(Method))
    choice("precision", precision, *get_args(Precision))
    choice("missing", missing, *get_args(OnMissing))
    if vectors is not None:
        choice("vectors", vectors, *get_args(Vectors))
    for name, value, least in (("rank", rank, 1), ("memory_mib", memory_mib, 1), ("passes", passes, 1)):
        if value is not None and value < least:
            raise SchemaError(f"{name}={value}; it needs to be at least {least}")
    if method == "qr" and precision == "mixed":
        raise SchemaError('method="qr" is there for its accuracy; leave out precision="mixed"')
    array, series = _array(activations, dims, dim, missing)
    array, found = _chosen(array, layers)
    wanted = Settings(
        centred=centred,
        precision=precision,
        vectors=vectors is not None,
        rank=rank or 0,
        passes=passes,
        tol=tol,
        seed=seed,
    )
    cut = _cut(array, found, series, memory_mib)
    chosen = [_settings(cut, i, method, wanted, oversampling) for i in range(len(cut.layers))]
    components = max(_components(cut, i, s) for i, s in enumerate(chosen))
    shape = Shape(components, int(found.sizes.max()), missing == "drop", cut.limit)
    answer = answers(reader(array.variable), plan(cut, chosen), shape, lazy=array.chunks is not None)
    out = labelled(answer, array, found, chosen, vectors)
    origin = kept_attrs(activations) if isinstance(activations, xr.Dataset | xr.DataArray) else {}
    out.attrs = origin | {"centred": int(centred), "precision": precision, "missing": missing}
    if series is None:
        out = out.isel(series=0)
    return out if "layer" in array.coords else out.isel(layer=0).drop_vars("layer")


def _array(
    data: Any, dims: Sequence[str] | None, dim: str | None, missing: OnMissing
) -> tuple[xr.DataArray, str | None]:
    """Return the activations as (series, sample, unit), and the name of the series dim."""
    if isinstance(data, xr.Dataset):
        schema.present(data, "activation")
        array = data["activation"]
    elif isinstance(data, xr.DataArray):
        array = data
    else:
        names = tuple(dims) if dims is not None else ("sample", "unit")
        shape = np.shape(data)
        if len(names) != len(shape):
            raise SchemaError(
                f"found an array of shape {shape}; pass dims= with {len(shape)} names, e.g. {_example(shape)}"
            )
        array = xr.DataArray(data if hasattr(data, "dtype") else np.asarray(data), dims=names)
    if "distributed" in sys.modules and _persisted(array):
        raise SchemaError(
            "the activations are persisted on a cluster, and spectra read them block by block in their own tasks; "
            "pass the cube as it was opened, without persist()"
        )
    series = series_of(array, dim)
    needed = ("sample", "unit") if series is None else (series, "sample", "unit")
    if set(array.dims) != set(needed):
        raise SchemaError(
            f"found dims {tuple(map(str, array.dims))}; exactly {needed} are needed: rename or stack dims, select one "
            "position of others, or name the series as dim="
        )
    if array.dtype.kind not in "fiub":
        raise SchemaError(f"found values of type {array.dtype}; real numbers are needed")
    for name in needed:
        if not array.sizes[name]:
            raise SchemaError(f"there is no {name} left in the activations; select at least one")
    if series is not None and "measured" in array.coords and missing == "error":
        done = held(array.coords["measured"]).astype(bool)
        if not done.all():
            who = f"run {data.attrs['run']!r}" if data.attrs.get("run") else "the Dataset"
            raise MissingMeasurementError(
                f"{who} lacks activations at {series}{'s' if (~done).sum() > 1 else ''} "
                f"{listed(labels_of(array, series)[~done])}; measure them: `neurolens run STUDY --only activations` "
                '(`neurolens status STUDY` says why they are missing), or pass missing="drop" to take what there is'
            )
    if series is None:
        array = array.expand_dims("series")
    return array.transpose(series or "series", "sample", "unit"), series


def _persisted(array: xr.DataArray) -> bool:
    futures: Any = import_module("distributed").futures_of
    return bool(futures(array.to_dataset(name="activation")))


def _example(shape: tuple[int, ...]) -> str:
    return '("sample", "unit")' if len(shape) == 2 else '("epoch", "sample", "unit")'


def _chosen(array: xr.DataArray, wanted: str | Sequence[str] | None) -> tuple[xr.DataArray, Layers]:
    """Return the array with the units of the layers wanted, layer by layer, and those layers."""
    if "layer" not in array.coords:
        if wanted is not None:
            raise SchemaError(
                "layers= needs the coordinate `layer` (unit,), and there is none; add it, or leave it out"
            )
        return array, Layers(("",), np.zeros(array.sizes["unit"], np.int64))
    if array.coords["layer"].ndim == 0:
        array = array.assign_coords(layer=("unit", np.repeat(np.asarray(array.coords["layer"]), array.sizes["unit"])))
    found = layers_of(array)
    take = list(range(len(found.names)))
    if wanted is not None:
        patterns = [wanted] if isinstance(wanted, str) else list(wanted)
        for pattern in patterns:
            if not any(_matches(name, pattern) for name in found.names):
                raise SchemaError(f"there is no layer {pattern!r}; {nearest(pattern, found.names)}")
        take = [i for i in take if any(_matches(found.names[i], pattern) for pattern in patterns)]
    order = np.concatenate([np.flatnonzero(found.codes == i) for i in take])
    if not np.array_equal(order, np.arange(array.sizes["unit"])):
        together = (np.diff(order) == 1).all()
        array = array.isel(unit=slice(int(order[0]), int(order[-1]) + 1) if together else order)
    codes = np.repeat(np.arange(len(take)), found.sizes[take])
    return array, Layers(tuple(found.names[i] for i in take), codes)


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _cut(array: xr.DataArray, found: Layers, series: str | None, memory_mib: int) -> Cut:
    edges = np.concatenate([[0], np.cumsum(found.sizes)]).astype(int).tolist()
    labels = tuple(map(str, labels_of(array, series))) if series else ("",)
    return Cut(
        array.sizes["sample"],
        tuple(pairwise(edges)),
        found.names,
        labels,
        series or "",
        None if array.chunks is None else (array.chunks[0], array.chunks[1], array.chunks[2]),
        array.dtype.itemsize,
        memory_mib << 20,
    )


def _settings(cut: Cut, i: int, method: str, wanted: Settings, oversampling: int | None) -> Settings:
    if method == "auto":
        gram = replace(wanted, method="gram")
        side = min(cut.samples, cut.layers[i][1] - cut.layers[i][0])
        method = "gram" if side <= EXACT and fits(cut, gram, i) else "randomised"
    if method != "randomised":
        return replace(wanted, method=method)  # type: ignore[arg-type]
    rank = wanted.rank or RANK
    return replace(wanted, method="randomised", rank=rank, oversampling=rank if oversampling is None else oversampling)


def _components(cut: Cut, i: int, settings: Settings) -> int:
    side = min(cut.samples, cut.layers[i][1] - cut.layers[i][0])
    return min(side, settings.rank) if settings.rank else side
