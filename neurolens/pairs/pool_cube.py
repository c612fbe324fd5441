"""The rows of the pools cube: the attention pool of one checkpoint, and totals of its pairs over all images.

The images are shown once, and their scalars are added up as they come: they are not kept, whatever their number.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from neurolens import schema
from neurolens.errors import SchemaError, nearest
from neurolens.pairs.showing import ShownPool, shown_pool
from neurolens.pairs.totals import ScalarTotals
from neurolens.pairs.writing import factors
from neurolens.study import Pools

if TYPE_CHECKING:
    from neurolens.data import SampleSet
    from neurolens.models import Network
    from neurolens.store import Axis

Array = npt.NDArray[Any]

MEASUREMENT_VERSION = {"factors": 1, "totals": 1}
"""Raised when the numbers of a part change."""

WITHOUT_SAMPLES = ("factors",)
"""Parts that are of the weights alone."""


def parts(table: Pools) -> tuple[str, ...]:
    """Return the parts of the pools cube that the study asks for."""
    return tuple(p.name for p in schema.POOLS.parts if p.option is None or getattr(table, p.option))


def key_config(table: Pools, part: str) -> dict[str, Any]:
    """Return the settings that the numbers of a part depend on, with its version, JSON-able.

    The tolerance decides whether a row is kept, not what is in it.

    Raises
    ------
    SchemaError
        If there is no such part.
    """
    if part not in MEASUREMENT_VERSION:
        raise SchemaError(f"the pools cube has no part {part!r}; {nearest(part, MEASUREMENT_VERSION)}")
    config: dict[str, Any] = {"version": MEASUREMENT_VERSION[part], "module": table.module, "dtype": "float32"}
    return config | ({"resample": table.resample, "ranks": table.ranks} if part == "totals" else {})


def axes(
    network: "Network", samples: "SampleSet", table: Pools, *, device: str | torch.device = "cpu"
) -> dict[str, "Axis"]:
    """Return the fixed axes of the cube: ``head``, ``d``, ``unit``, ``feature``; with totals ``rank`` and ``sample``.

    Raises
    ------
    SchemaError
        If the network has no attention pool, as a ViT.
    StudyError
        If it has several and none is named; or maps have another size than the pool's, where totals are asked for.
    DataError
        If the samples are no images, or there are none, where totals are asked for.
    """
    from neurolens.store import Axis

    with shown_pool(network, table, device=device) as showing:
        pool = showing.pool(samples) if table.totals else showing.own
    sizes = {"head": pool.heads, "d": pool.head_dim, "unit": pool.units, "feature": pool.features}
    found = {dim: Axis(np.arange(size, dtype=np.int64)) for dim, size in sizes.items()}
    if table.totals:
        found |= {"rank": Axis(np.arange(table.ranks, dtype=np.int64)), "sample": Axis(samples.ids)}
    return found


def measure(
    network: "Network",
    samples: "SampleSet",
    *,
    parts: Sequence[str],
    table: Pools,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Array]:
    """Read the pool of one checkpoint, and add the scalars of its pairs up over all images.

    Besides the pool's matrices, what the network takes for a batch, and `scalars` for its images, no more is held than
    (50·ranks + 100)·heads·units bytes: 383 MB for RN50x16 at 50 ranks.

    Parameters
    ----------
    network : models.Network
        The filled module. It is left as it was.
    samples : data.SampleSet
        N images. Parts that are of the weights alone do not show them.
    parts
        Parts of the pools cube.
    table : study.Pools
        Settings of the measurement.
    batch_size
        Images a pass, cut to what suits a CPU's caches. Changes no number beyond float rounding.
    device
        Where to run the network, as torch names it; the pool is computed on the CPU.
    progress
        Called with (images done, N) after each batch.

    Returns
    -------
    values : variable name → array
        Shaped as in the pools cube without the series, over the axes of `axes`. ``top`` and ``bottom`` are NaN, and
        their samples -1, at ranks beyond the number of images.

    Raises
    ------
    ModelMismatchError
        If the contributions of an image do not add up to its embedding, or the network does not give its pool maps.
    NonFiniteError
        If a map is NaN or infinite, naming the image.
    SchemaError
        If a part is unknown, or the network has no attention pool.
    DataError, StudyError
        As `axes`.
    """
    variables = [v for part in parts for v in schema.POOLS.part(part).variables]
    values: dict[str, xr.DataArray] = {}
    with shown_pool(network, table, device=device) as showing:
        if "factors" in parts:
            values |= _named(factors(showing.own))
        if "totals" in parts:
            values |= _named(_totals(showing, samples, table.ranks, batch_size, progress))
    return {
        v.name: np.ascontiguousarray(values[v.name].transpose(*v.dims[1:]).to_numpy(), dtype=v.dtype) for v in variables
    }


def _totals(
    showing: ShownPool,
    samples: "SampleSet",
    ranks: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> xr.Dataset:
    totals, done, worst = ScalarTotals(ranks=ranks), 0, 0.0
    for at, found in showing.measured(samples, batch_size=batch_size):
        totals.add(found["scalar"], at)
        worst, done = max(worst, float(found["completeness"].max())), done + len(at)
        if progress is not None:
            progress(done, len(samples))
    out = totals.dataset()
    heads = np.ones(out.sizes["head"])
    return out.assign(count=("head", heads * int(out["count"])), worst_residual=("head", heads * worst))


def _named(data: xr.Dataset) -> dict[str, xr.DataArray]:
    return {str(name): array for name, array in data.data_vars.items()}
