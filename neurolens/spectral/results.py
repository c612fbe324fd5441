"""The answers of jobs as one labelled Dataset, lazy where the cube is."""

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

import dask.array
import numpy as np
import xarray as xr
from dask.delayed import delayed

from neurolens.schema.spectra import SPECTRA
from neurolens.spectral.factoring import Settings
from neurolens.spectral.jobs import NUMBERS, Answer, Shape, run
from neurolens.spectral.strips import Job, Read
from neurolens.units.layers_of import Layers

da: Any = dask.array  # its functions are not typed
delay: Any = delayed


def answers(read: Read, jobs: Sequence[tuple[Job, Settings]], shape: Shape, *, lazy: bool) -> Answer:
    """Do every job, now or as a task each, and put the answers together: (position, layer, …)."""
    task = delay(run, pure=True, nout=len(Answer._fields))
    done = [_lazy(task(read, *job, shape), *job, shape) if lazy else run(read, *job, shape) for job in jobs]
    join = da.concatenate if lazy else np.concatenate
    # the jobs of some positions follow each other, layer by layer
    rows = [
        [join(list(parts), axis=1) for parts in zip(*(answer for _, answer in row))]
        for _, row in groupby(zip(jobs, done), key=lambda pair: pair[0][0].positions)
    ]
    return Answer(*(join(list(parts), axis=0) for parts in zip(*rows)))


def _lazy(task: Any, job: Job, settings: Settings, shape: Shape) -> Answer:
    size = job.positions[1] - job.positions[0], len(job.layers)
    wide = (shape.width, shape.components) if settings.vectors else (0, 0)
    sizes = (len(NUMBERS),), (shape.components,), (shape.components,), wide, wide[:1]
    return Answer(*(da.from_delayed(part, (*size, *more), np.float64) for part, more in zip(task, sizes)))


def labelled(
    answer: Answer, array: xr.DataArray, layers: Layers, settings: Sequence[Settings], vectors: str | None
) -> xr.Dataset:
    """Name an answer, with the coordinates of the series, and make the left vectors if they are wanted."""
    series = str(array.dims[0])
    text = np.dtypes.StringDType()
    coords: dict[Any, Any] = {
        "layer": ("layer", np.asarray(layers.names, dtype=text)),
        "component": np.arange(answer.values.shape[-1]),
        "units": ("layer", layers.sizes, {"long_name": "units of the layer", "units": "1"}),
        "method": ("layer", np.asarray([s.method for s in settings], dtype=text)),
    }
    coords |= {name: c.variable for name, c in array.coords.items() if c.dims in ((series,), ()) and name != "layer"}
    found: dict[str, tuple[tuple[str, ...], Any]] = {
        "singular_value": ((series, "layer", "component"), answer.values),
        "singular_value_error": ((series, "layer", "component"), answer.errors),
    }
    found |= {name: ((series, "layer"), answer.numbers[..., i]) for i, name in enumerate(NUMBERS)}
    if vectors in ("right", "both"):
        found["right_vector"] = ((series, "layer", "index", "component"), answer.vectors)
    if vectors in ("left", "both"):
        found["left_vector"] = ((series, "layer", "sample", "component"), _left(answer, array, layers))
        coords |= {name: c.variable for name, c in array.coords.items() if c.dims == ("sample",)}
    if "index" in found.get("right_vector", ((),))[0]:
        coords["index"] = np.arange(answer.vectors.shape[2])
    variables = {name: (dims, data, SPECTRA[name].attrs) for name, (dims, data) in found.items()}
    if array.attrs.get("units"):
        for name in ("singular_value", "tolerance", "floor", "frobenius_norm"):
            variables[name][2]["units"] = str(array.attrs["units"])
    return xr.Dataset(variables, coords=coords)


def _left(answer: Answer, array: xr.DataArray, layers: Layers) -> Any:
    """A v / s of each layer, chunked along the samples as the activations are: (series, layer, sample, component)."""
    edges = np.concatenate([[0], np.cumsum(layers.sizes)]).astype(int)
    lazy = array.chunks is not None
    data, matmul, stack = array.data, da.matmul if lazy else np.matmul, da.stack if lazy else np.stack
    left = []
    for i, (low, high) in enumerate(pairwise(edges)):
        width, values = high - low, answer.values[:, i, None, :]
        turned = answer.vectors[:, i, :width] / (da if lazy else np).where(values > 0, values, np.nan)
        means = answer.means[:, i, None, :width]
        part = data[:, :, low:high].astype(np.float64)
        left.append(matmul(part, turned) - matmul(means, turned))
    return stack(left, axis=1)
