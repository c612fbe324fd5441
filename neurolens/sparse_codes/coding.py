"""Sparse codes of signals of any dims, all at once or block by block."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import NonFiniteError, SchemaError
from neurolens.sparse_codes.dictionaries import Norm, checked_count, matched, orthonormal, prepared
from neurolens.sparse_codes.pursuit import pursue

Array = npt.NDArray[Any]
BLOCK = 256
"""Signals that are coded at once."""


def sparse_codes(
    signals: Any,
    dictionary: Any,
    *,
    atoms: int = 64,
    norm: Norm = "rows",
    centre: bool = True,
    basis: Any = None,
    where: xr.DataArray | None = None,
    block: int = BLOCK,
) -> xr.Dataset:
    """Tell each signal as a sum of few phrases, by orthogonal matching pursuit. **Eager**.

    Parameters
    ----------
    signals : (…, feature)
        Vectors of the embedding, as the directions of pairs; lazy ones are read block by block. A signal with NaN, as
        the direction of a dead pair, has no code.
    dictionary : (phrase, feature)
        Embeddings of phrases.
    atoms
        Phrases in a code, K; the reference takes 64.
    norm, centre
        How phrases are put on one scale; see `prepared`. ``norm="columns"`` is the reference's way.
    basis : (feature, d), optional
        Columns that all signals are sums of, as the columns of W_o of one head: the first phrase is chosen in these d
        dimensions, which is all of the work for ``atoms=1``.
    where : bool (…), optional
        Which signals to code, as those of pairs above a percentile of their norms; all by default.
    block
        Signals at once. Peak memory is about block·(atoms·features + 4096) numbers beside the dictionary.

    Returns
    -------
    Dataset
        ``index`` (…, atom) int32, the chosen phrases in order; -1 where there is no more: the signal was said in
        full before, is 0, has NaN or was not asked for. ``value`` (…, atom): the least-squares coefficients of all the
        chosen atoms together, NaN where ``index`` is -1. ``residual`` (…, atom): length of what is left after each
        step, in the unit of the signals, NaN likewise. Attributes say how the atoms were prepared.

    Raises
    ------
    SchemaError
        If widths differ, there is no phrase, or more atoms are asked for than there are dimensions or phrases.
    NonFiniteError
        If a phrase has NaN or infinity, or a signal infinity.

    Notes
    -----
    Atoms and coefficients are those of scikit-learn's ``orthogonal_mp``; of atoms equally good to rounding, the lowest
    index is chosen.

    References
    ----------
    Bu and Gandelsman 2025, arXiv 2509.19943; Gandelsman, Efros and Steinhardt 2024, arXiv 2406.04341.
    """
    phrases = prepared(dictionary, norm=norm, centre=centre)
    given = matched(signals, phrases)
    count = checked_count(atoms, phrases)
    dims = given.dims[:-1]
    lead = sorted(dims, key=lambda dim: -len(given.chunksizes.get(dim, ())))  # lazy ones a chunk after the other
    given = given.transpose(*lead, "feature")
    shape = tuple(given.sizes[dim] for dim in lead)
    dtype = np.result_type(given.dtype, phrases.dtype)
    total = math.prod(shape)
    kept: dict[str, Array] = {
        "index": np.full((total, count), -1, np.int32),
        "value": np.full((total, count), np.nan, dtype),
        "residual": np.full((total, count), np.nan, dtype),
    }
    for codes in _blocks(given, phrases, count, basis, where, block, 0):
        for name, array in kept.items():
            array[codes["signal"].to_numpy()] = codes[name].to_numpy()
    coords = {name: coord for name, coord in given.coords.items() if "feature" not in coord.dims}
    arrays = {name: ((*lead, "atom"), array.reshape(*shape, count)) for name, array in kept.items()}
    codes = xr.Dataset(arrays, coords=coords).transpose(*dims, "atom")
    return labelled(codes, phrases, norm, centre)


def code_blocks(
    signals: Any,
    dictionary: Any,
    *,
    atoms: int = 64,
    norm: Norm = "rows",
    centre: bool = True,
    basis: Any = None,
    where: xr.DataArray | None = None,
    block: int = BLOCK,
    start: int = 0,
) -> Iterator[xr.Dataset]:
    """Yield the codes of one block of signals after the other, to be kept as they come and taken up again.

    Parameters
    ----------
    signals, dictionary, atoms, norm, centre, basis, where, block
        As of `sparse_codes`. Lazy signals are read fastest with the dim first along which they have the most chunks, as
        directions with the head first.
    start
        The first signal to code, counted through the leading dims in order: where an earlier run ended.

    Yields
    ------
    Dataset
        ``index``, ``value`` and ``residual`` (signal, atom) as `sparse_codes` returns them; the coordinate ``signal``
        is the position among all signals, and the last one plus 1 is the ``start`` of what is still to be done.

    Raises
    ------
    SchemaError, NonFiniteError
        As `sparse_codes`, before the first block.
    """
    phrases = prepared(dictionary, norm=norm, centre=centre)
    given = matched(signals, phrases)
    count = checked_count(atoms, phrases)
    blocks = _blocks(given, phrases, count, basis, where, block, start)
    return (labelled(codes, phrases, norm, centre) for codes in blocks)


def labelled(codes: xr.Dataset, phrases: xr.DataArray, norm: Norm, centre: bool) -> xr.Dataset:
    """Say what the variables of codes are, and how the atoms were made of the phrases."""
    told = {
        "index": ("phrase of the dictionary, -1 for none", "1"),
        "value": ("coefficient of the atom", "1"),
        "residual": ("length of what is left of the signal", "embedding"),
    }
    for name, (long_name, units) in told.items():
        codes[name].attrs.update(long_name=long_name, units=units)
    return codes.assign_attrs(norm=norm or "none", centred=int(centre), phrases=phrases.sizes["phrase"])


def chosen(given: xr.DataArray, where: xr.DataArray | None, start: int = 0) -> Array:
    """Return the positions of the signals that are asked for, through the leading dims in order.

    Raises
    ------
    SchemaError
        If ``where`` is over other dims or sizes, or is not bool.
    """
    lead = {dim: given.sizes[dim] for dim in given.dims[:-1]}
    total = math.prod(lead.values())
    if isinstance(start, bool) or not isinstance(start, int | np.integer) or not 0 <= start <= total:
        raise SchemaError(f"found start={start!r}, and a position among {total} signals was needed, from 0")
    if where is None:
        return np.arange(start, total)
    if not isinstance(where, xr.DataArray) or where.dtype != bool or dict(where.sizes) != lead:
        found = f"{where.dtype} over {dict(where.sizes)}" if isinstance(where, xr.DataArray) else type(where).__name__
        raise SchemaError(f"where is {found}, and bool over {lead} was needed, one for each signal")
    positions = np.flatnonzero(where.transpose(*lead).to_numpy())
    return positions[positions >= start]


def read(given: xr.DataArray, positions: Array, dtype: npt.DTypeLike) -> Array:
    """Return signals (B, feature) at positions through the leading dims; nothing else is computed of lazy ones.

    Raises
    ------
    NonFiniteError
        If one has infinity.
    """
    lead = given.dims[:-1]
    if not lead:
        given, lead = given.expand_dims("signal"), ("signal",)
    places = np.unravel_index(positions, tuple(given.sizes[dim] for dim in lead))
    plain = given.drop_vars(list(given.coords))
    picked = plain.isel({dim: xr.DataArray(place, dims="position") for dim, place in zip(lead, places, strict=True)})
    values = picked.transpose("position", "feature").to_numpy().astype(dtype)
    if np.isinf(values).any():
        signal = int(positions[np.flatnonzero(np.isinf(values).any(axis=1))[0]])
        raise NonFiniteError(f"signal {signal} has infinity; it cannot be a sum of phrases, see where it comes from")
    return values


def checked_block(block: int) -> int:
    """Return how many signals are taken at once.

    Raises
    ------
    SchemaError
        If it is no whole number of at least 1.
    """
    if isinstance(block, bool) or not isinstance(block, int | np.integer) or block < 1:
        raise SchemaError(f"found block={block!r}, and a whole number of signals of at least 1 was needed")
    return int(block)


def _blocks(
    given: xr.DataArray,
    phrases: xr.DataArray,
    count: int,
    basis: Any,
    where: xr.DataArray | None,
    block: int,
    start: int,
) -> Iterator[xr.Dataset]:
    dtype = np.result_type(given.dtype, phrases.dtype)
    atoms = phrases.to_numpy().astype(dtype, copy=False)
    inner = None if basis is None else orthonormal(basis, atoms.shape[1]).astype(dtype)
    positions, size = chosen(given, where, start), checked_block(block)

    def generate() -> Iterator[xr.Dataset]:
        for begin in range(0, len(positions), size):
            here = positions[begin : begin + size]
            values = read(given, here, dtype)
            absent = np.isnan(values).any(axis=1)
            values[absent] = 0
            if inner is not None:
                _require_within(values, inner, here)
            index, value, residual = pursue(values, atoms, count, inner)
            arrays = {"index": index, "value": value, "residual": residual}
            yield xr.Dataset(
                {name: (("signal", "atom"), array) for name, array in arrays.items()}, coords={"signal": here}
            )

    return generate()


def _require_within(values: Array, basis: Array, positions: Array) -> None:
    outside = np.linalg.norm(values - (values @ basis) @ basis.T, axis=1)
    beyond = outside > np.sqrt(np.finfo(values.dtype).eps) * np.linalg.norm(values, axis=1)
    if beyond.any():
        raise SchemaError(
            f"signal {int(positions[np.flatnonzero(beyond)[0]])} is no sum of the columns of the basis; give the "
            "basis of the head that the signals are of, or none"
        )
