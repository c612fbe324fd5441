"""The rows of the pairs cube: what each unit says through each head at each image of a block, at one checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from neurolens import schema
from neurolens.errors import NonFiniteError, SchemaError, StudyError, nearest
from neurolens.pairs.measure import PARTS
from neurolens.pairs.showing import shown_pool
from neurolens.study import Pairs, Pools, Study

if TYPE_CHECKING:
    from neurolens.data import SampleSet
    from neurolens.models import Network
    from neurolens.store import Axis

Array = npt.NDArray[Any]

MEASUREMENT_VERSION = {"scalars": 1, "attention": 1, "split": 1}
"""Raised when the numbers of a part change."""

COPIES = 2
"""Buffers of a block that exist at once: what is measured, and what is written of it."""

_SCALARS = ("scalar", *PARTS)


class PairsOfPool(Pairs):
    """The table [pairs], and the pool that pairs are of."""

    pools: Pools


def table_of(study: Study) -> PairsOfPool:
    """Return what a study says of pairs and of the pool that they are of.

    Raises
    ------
    StudyError
        If it has no such tables.
    """
    if study.pairs is None or study.pools is None:
        raise StudyError(f"study {study.name!r} has no [pairs] with [pools]; add both tables to its file")
    return PairsOfPool(**study.pairs.model_dump(), pools=study.pools)


def parts(table: PairsOfPool) -> tuple[str, ...]:
    """Return the parts of the pairs cube that the study asks for."""
    return tuple(p.name for p in schema.PAIRS.parts if p.option is None or getattr(table, p.option))


def key_config(table: PairsOfPool, part: str) -> dict[str, Any]:
    """Return the settings that the numbers of a part depend on, with its version, JSON-able.

    Memory is not among them, nor the tolerance, which decides whether a row is kept, not what is in it.

    Raises
    ------
    SchemaError
        If there is no such part.
    """
    if part not in MEASUREMENT_VERSION:
        raise SchemaError(f"the pairs cube has no part {part!r}; {nearest(part, MEASUREMENT_VERSION)}")
    config = {
        "version": MEASUREMENT_VERSION[part],
        "module": table.pools.module,
        "resample": table.pools.resample,
        "dtype": "float32",
    }
    return config | ({} if part == "attention" else {"stored": table.dtype})


def encodings(table: PairsOfPool) -> dict[str, str]:
    """Return how the store writes scalars and their parts."""
    return dict.fromkeys(_SCALARS, "float16") if table.dtype == "float16" else {}


def axes(
    network: "Network", samples: "SampleSet", table: PairsOfPool, *, device: str | torch.device = "cpu"
) -> dict[str, "Axis"]:
    """Return the fixed axes of the cube: ``head``, ``unit``, ``feature`` and ``token``.

    Token 0 asks; the others are the places of the maps, row by row, with coordinates ``y`` and ``x``, which are -1 for
    token 0. ``token_kind`` is "mean" for it, or "learned", and "patch" for the others.

    Raises
    ------
    SchemaError
        If the network has no attention pool, as a ViT.
    StudyError
        If it has several and none is named, or maps have another size than the pool's and may not be interpolated.
    DataError
        If the samples are no images, or there are none.
    """
    from neurolens.store import Axis

    with shown_pool(network, table.pools, device=device) as showing:
        pool = showing.pool(samples)
    y, x = np.indices(pool.grid).reshape(2, -1)
    sizes = {"head": pool.heads, "unit": pool.units, "feature": pool.features}
    found = {dim: Axis(np.arange(size, dtype=np.int64)) for dim, size in sizes.items()}
    kinds = np.array(["mean" if pool.class_token is None else "learned", *["patch"] * len(y)])
    places = {"y": np.append(-1, y), "x": np.append(-1, x), "token_kind": kinds}
    return found | {"token": Axis(np.arange(pool.tokens, dtype=np.int64), places)}


def block_size(table: PairsOfPool, axes: Mapping[str, "Axis"]) -> int:
    """Return how many images' numbers fit ``memory_mib``.

    Counted are the buffers that a block is measured into, those of attention and of the three parts of a scalar always,
    so that these can be asked for later, and as much again for what is made of them when they are written. Not counted
    are what the network itself takes for a batch, and `scalars` for its images.

    Raises
    ------
    StudyError
        If not even one image fits.
    """
    size = {dim: len(axis) for dim, axis in axes.items()}
    numbers = len(_SCALARS) * size["head"] * size["unit"] * np.dtype(table.dtype).itemsize
    each = COPIES * (numbers + 4 * size["head"] * size["token"] + 4 * size["feature"] + 8)
    if each > table.memory_mib * 2**20:
        raise StudyError(
            f"the scalars of one image and their parts take {each / 2**20:.1f} MiB, and pairs.memory_mib is "
            f"{table.memory_mib}; raise it to {-(-each // 2**20)}"
        )
    return table.memory_mib * 2**20 // each


def measure(
    network: "Network",
    samples: "SampleSet",
    *,
    parts: Sequence[str],
    table: PairsOfPool,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Array]:
    """Measure the scalars of one checkpoint's pairs at a block of images.

    Parameters
    ----------
    network : models.Network
        The filled module. It is left as it was.
    samples : data.SampleSet
        N images.
    parts
        Parts of the pairs cube.
    table
        As of `table_of`.
    batch_size
        Images a pass, cut to what suits a CPU's caches. Changes no number beyond float rounding.
    device
        Where to run the network, as torch names it; the pool is computed on the CPU.
    progress
        Called with (images done, N) after each batch.

    Returns
    -------
    values : variable name → array
        ``scalar``, and with the part split ``patch``, ``mean_token`` and ``positional``, (N, head, unit) in
        ``table.dtype``, rounded to nearest even; ``embedding`` (N, feature) float32, ``completeness`` (N,) float64 and
        ``attention`` (N, head, token) float32, along the axes of `axes`.

    Raises
    ------
    ModelMismatchError
        If the contributions of an image do not add up to its embedding, or the network does not give its pool maps.
    NonFiniteError
        If a map is NaN or infinite, or a scalar beyond float16, naming the image.
    SchemaError
        If a part is unknown, or the network has no attention pool.
    DataError, StudyError
        As `axes`.
    """
    variables = [v for part in parts for v in schema.PAIRS.part(part).variables]
    values: dict[str, Array] = {}
    done = 0
    with shown_pool(network, table.pools, device=device) as showing:
        steps = showing.measured(samples, batch_size=batch_size, split="split" in parts) if variables else iter(())
        for at, found in steps:
            for variable in variables:
                array = found[variable.name].transpose(*variable.dims[1:])
                dtype = np.dtype(table.dtype if variable.name in _SCALARS else variable.dtype)
                if variable.name not in values:
                    values[variable.name] = np.empty((len(samples), *array.shape[1:]), dtype)
                values[variable.name][at] = _cast(array, dtype)
            done += len(at)
            if progress is not None:
                progress(done, len(samples))
    return values


def _cast(array: xr.DataArray, dtype: np.dtype[Any]) -> Array:
    """Return finite numbers in another dtype, or say which image's are beyond it."""
    with np.errstate(over="ignore"):
        cast = array.to_numpy().astype(dtype, copy=False)
    if dtype == np.float16 and not np.isfinite(cast).all():
        place = tuple(np.argwhere(~np.isfinite(cast))[0])
        raise NonFiniteError(
            f"{array.name} of unit {place[2]} and head {place[1]} is {float(array[place]):.6g} on sample "
            f'{str(array["sample"].values[place[0]])!r}, and float16 ends at 65504; set dtype = "float32" in [pairs]'
        )
    return cast
