"""The rows of the codes cube: the directions of a block of pairs of one checkpoint, told as sums of few phrases.

Weights alone are read: no image is shown, and phrases come embedded. Directions are made for a block at a time; those
of all pairs of RN50x16 would take 453 MB.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import Field

from neurolens import schema
from neurolens.errors import SchemaError, StudyError, nearest
from neurolens.pairs.adapters import pool_of
from neurolens.pairs.norms import directions
from neurolens.pairs.pool import Pool
from neurolens.pairs.writing import factors
from neurolens.sparse_codes import lasso_codes, prepared, sparse_codes
from neurolens.study import Codes, Study

if TYPE_CHECKING:
    import torch

    from neurolens.data import SampleSet
    from neurolens.models import Network
    from neurolens.store import Axis

Array = npt.NDArray[Any]

MEASUREMENT_VERSION = {"codes": 1}
"""Raised when the numbers of a part change."""

FEW = 4
"""In codes of at most so many atoms, the first one is chosen in the dims of the head: of longer ones that is no part
of the time to speak of."""


class PoolCodes(Codes):
    """What codes are asked for, and of which pool."""

    module: str | None = Field(None, description="Path of the pool's module; absent: the only one of the network.")


def table_of(study: Study) -> PoolCodes:
    """Return what a study asks for: its table of codes, and the pool that pairs are of."""
    assert study.codes is not None
    assert study.pools is not None
    return PoolCodes(**study.codes.model_dump(), module=study.pools.module)


def parts(table: PoolCodes) -> tuple[str, ...]:
    """Return the parts of the codes cube that the study asks for: all of them."""
    return tuple(part.name for part in schema.CODES.parts)


def key_config(table: PoolCodes, part: str) -> dict[str, Any]:
    """Return the settings that the numbers of a part depend on, with its version, JSON-able.

    Which phrases there are, and their embeddings, is not among them: their digests are in the key besides.

    Raises
    ------
    SchemaError
        If there is no such part.
    """
    if part not in MEASUREMENT_VERSION:
        raise SchemaError(f"the codes cube has no part {part!r}; {nearest(part, MEASUREMENT_VERSION)}")
    config: dict[str, Any] = {
        "version": MEASUREMENT_VERSION[part],
        "method": table.method,
        "atoms": table.atoms,
        "norm": table.norm,
        "module": table.module,
    }
    if table.method == "lasso":
        release = ".".join(version("scikit-learn").split(".")[:2])
        config |= {"penalty": table.penalty, "sklearn": release}
    return config


def block_size(table: PoolCodes, axes: Mapping[str, "Axis"]) -> int:
    """Return how many pairs are told and written together."""
    return table.block


def axes(network: "Network", samples: "SampleSet", table: PoolCodes) -> dict[str, "Axis"]:
    """Return the fixed axis of the cube: ``atom``. That of the phrases is known from the texts."""
    from neurolens.store import Axis

    return {"atom": Axis(np.arange(table.atoms, dtype=np.int64))}


def network_pool(network: "Network", module: str | None) -> Pool:
    """Return the attention pool of a network with the weights that it has now.

    Parameters
    ----------
    module
        Path of the pool, or of a module that has one; None: the only one there is.

    Raises
    ------
    SchemaError
        If the network has no attention pool.
    StudyError
        If it has several and none is named, or none at that path.
    """
    from neurolens.pairs.showing import pool_path

    return pool_of(network.module.get_submodule(pool_path(network.module, module)))


def require_atoms(table: Codes, *, phrases: int, features: int) -> None:
    """Refuse more atoms than there can be, before anything is measured.

    Raises
    ------
    StudyError
        If codes have more atoms than there are phrases or dims of the embedding.
    """
    most = min(phrases, features)
    if table.atoms > most:
        raise StudyError(
            f"codes.atoms is {table.atoms}, and texts.sets.{table.words} has {phrases} phrases in {features} "
            f"dimensions: more than {most} cannot be independent; set codes.atoms to {most} or less"
        )


def measure(
    network: "Network",
    samples: "SampleSet",
    *,
    parts: Sequence[str],
    table: PoolCodes,
    batch_size: int = 64,
    device: "str | torch.device" = "cpu",
    progress: Callable[[int, int], None] | None = None,
    phrases: Array,
) -> dict[str, Array]:
    """Tell the directions of some pairs of one checkpoint in phrases.

    Parameters
    ----------
    network : models.Network
        The filled module. It is read, and not run.
    samples : data.SampleSet
        The pairs, with `unit` and `head`.
    parts
        Parts of the codes cube.
    table : PoolCodes
        Settings of the measurement, see `table_of`.
    batch_size, device
        Nothing here depends on them: codes are found on the CPU.
    progress
        Called with (pairs done, pairs).
    phrases : (phrase, feature)
        Embeddings of the phrases by the same checkpoint.

    Returns
    -------
    values : variable name → array
        ``index`` int32, ``value`` and ``residual`` float32, each (pair, atom), as `sparse_codes` gives them of the
        directions +u/‖u‖; of the lasso, the phrases with the largest coefficients, and what is left after so many of
        them. −1 and NaN where a code has no more phrases. A dead pair, whose u is 0, has no code.

    Raises
    ------
    SchemaError
        If a part is unknown, the network has no attention pool, a pair is none of it, or phrases have another width
        than the embedding.
    StudyError
        If there is no module of that path, or a lasso does not end in time.
    NonFiniteError
        If a weight or an embedding is NaN or infinite.
    """
    wanted = [variable for part in parts for variable in schema.CODES.part(part).variables]
    fixed = factors(network_pool(network, table.module))
    unit, head = (np.asarray(samples.coords[name]) for name in ("unit", "head"))
    for name, numbers in (("unit", unit), ("head", head)):
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < fixed.sizes[name]:
            raise SchemaError(
                f"found pairs up to {name} {numbers.max()}, and the pool has {fixed.sizes[name]} {name}s; these are "
                "pairs of another network"
            )
    dictionary = prepared(xr.DataArray(phrases, dims=("phrase", "feature")), norm=table.norm)
    shape = (len(samples), table.atoms)
    values: dict[str, Array] = {
        "index": np.full(shape, -1, np.int32),
        "value": np.full(shape, np.nan, np.float32),
        "residual": np.full(shape, np.nan, np.float32),
    }
    done = 0
    for at, basis in _together(fixed, head, few=table.method == "omp" and table.atoms <= FEW):
        signals = _directions(fixed, unit[at], head[at])
        if table.method == "lasso":
            found = _lasso(signals, dictionary, table, np.asarray(samples.ids)[at])
        else:
            codes = sparse_codes(signals, dictionary, atoms=table.atoms, norm=None, centre=False, basis=basis)
            found = {name: codes[name].to_numpy() for name in values}
        for name, array in found.items():
            values[name][at] = array
        done += len(at)
        if progress is not None:
            progress(done, len(samples))
    return {v.name: np.ascontiguousarray(values[v.name], dtype=v.dtype) for v in wanted}


def _together(fixed: xr.Dataset, head: Array, *, few: bool) -> list[tuple[Array, xr.DataArray | None]]:
    """Return the positions of the pairs that are told at once, and the columns that these are all sums of."""
    if not few:
        return [(np.arange(len(head)), None)] if len(head) else []
    groups = [(int(number), np.flatnonzero(head == number)) for number in np.unique(head)]
    return [(at, fixed["output"].isel(head=number) if len(at) > fixed.sizes["d"] else None) for number, at in groups]


def _directions(fixed: xr.Dataset, unit: Array, head: Array) -> xr.DataArray:
    """Return +u/‖u‖ (signal, feature) of pairs; NaN where u is 0."""
    out = np.empty((len(unit), fixed.sizes["feature"]), fixed["value"].dtype)
    for number in np.unique(head):
        at = np.flatnonzero(head == number)
        found = directions(fixed.isel(head=[int(number)], unit=unit[at]))["direction"]
        out[at] = found.isel(head=0).transpose("unit", "feature").to_numpy()
    return xr.DataArray(out, dims=("signal", "feature"))


def _lasso(signals: xr.DataArray, dictionary: xr.DataArray, table: Codes, ids: Array) -> dict[str, Array]:
    """Return the phrases with the largest coefficients, and what is left after each of them."""
    codes = lasso_codes(signals, dictionary, penalty=table.penalty, norm=None, centre=False)
    late = np.flatnonzero(~codes["converged"].to_numpy() & signals.notnull().all("feature").to_numpy())
    if len(late):
        raise StudyError(
            f"the lasso of {len(late)} pairs, {ids[late[0]]} among them, did not come to an end; set codes.penalty, "
            f"{table.penalty}, to more, so that fewer phrases are left"
        )
    count = min(table.atoms, codes.sizes["atom"])
    index, value = (codes[name].to_numpy()[:, :count] for name in ("index", "value"))
    out: dict[str, Array] = {
        "index": np.full((len(index), table.atoms), -1, np.int32),
        "value": np.full((len(index), table.atoms), np.nan, np.float32),
        "residual": np.full((len(index), table.atoms), np.nan, np.float32),
    }
    out["index"][:, :count], out["value"][:, :count] = index, value
    atoms, given = dictionary.to_numpy(), signals.to_numpy()
    for row, (phrases, weights) in enumerate(zip(index, value, strict=True)):
        known = int((phrases >= 0).sum())
        told = np.cumsum(weights[:known, None] * atoms[phrases[:known]], axis=0)
        out["residual"][row, :known] = np.linalg.norm(given[row] - told, axis=1)
    return out
