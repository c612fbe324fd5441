"""Codes of pairs in the reference's files: a sparse matrix of coefficients, and the phrases of each pair."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import DataError, SchemaError
from neurolens.sparse_codes.reading import checked_codes, names_of

Array = npt.NDArray[Any]

DECOMPOSITION, DESCRIPTIONS = "decomposition.npz", "text_descs.json"


def write_code_files(
    codes: xr.Dataset,
    folder: str | os.PathLike[str],
    *,
    phrases: Any = None,
    sign: xr.DataArray | None = None,
    top: int | None = None,
) -> tuple[str, ...]:
    """Write the codes of one checkpoint as the reference does, into a folder that is there.

    Parameters
    ----------
    codes : (unit, head, atom)
        As `neurolens.pairs.codes_at` gives them.
    folder
        What is there under these names is replaced.
    phrases
        Names of the phrases; by default the coordinate ``phrase`` of the codes.
    sign : int8 (unit, head), optional
        Of `neurolens.pairs.directions` with ``sign="majority"``, the reference's: coefficients of a pair with −1 change
        their sign, as those of the direction turned round would be. By default, and at ties (0), codes are those of +u.
    top
        So many phrases of each pair in the JSON file; all by default: 240 MB for 64 phrases of all pairs of RN50x16.

    Returns
    -------
    names of the files
        ``decomposition.npz``: coefficients in CSR form as ``scipy.sparse.load_npz`` reads them, float32, of shape
        (heads·units, phrases). The row of unit n and head h is h·units + n, the order in which the reference flattens
        its directions (head, unit, feature). Rows of pairs that have no code are empty.

        ``text_descs.json``: an object with a key such as ``"u37/h2"`` for each pair that has a code, head by head, and
        for it a list of ``[phrase, coefficient]``, that with the largest \\|coefficient\\| first. The reference names
        this file and never writes it, so the layout is ours.

    Raises
    ------
    SchemaError
        If these are no codes of units and heads, or there are no names for the phrases, or of another number.
    DataError
        If a file cannot be written.
    """
    from scipy.sparse import csr_array, save_npz

    found = checked_codes(codes)
    if set(found["index"].dims) != {"unit", "head", "atom"}:
        raise SchemaError(
            f"found codes over {dict(found['index'].sizes)}, and (unit, head, atom) was needed, of one checkpoint; "
            "give pairs.codes_at(run)"
        )
    names = names_of(found, phrases)
    index, value = (found[name].transpose("head", "unit", "atom").to_numpy() for name in ("index", "value"))
    value = value.astype(np.float32)
    if sign is not None:
        turned = (sign.transpose("head", "unit").to_numpy() < 0)[..., None]
        if turned.shape[:2] != index.shape[:2]:
            raise SchemaError(f"found signs over {dict(sign.sizes)}, and codes over {dict(found['index'].sizes)}")
        value = np.where(turned, -value, value)
    heads, units, count = index.shape
    flat, weights = index.reshape(-1, count), value.reshape(-1, count)
    known = flat >= 0
    ends = np.concatenate([[0], np.cumsum(known.sum(axis=1))])
    matrix = csr_array((weights[known], flat[known], ends), shape=(heads * units, len(names)))
    target = Path(folder)
    try:
        save_npz(target / DECOMPOSITION, matrix)
        with (target / DESCRIPTIONS).open("w", encoding="utf-8") as file:
            _write_descriptions(file, _described(found, flat, weights, names, top))
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror}); name a folder that is there") from error
    return DECOMPOSITION, DESCRIPTIONS


def _described(
    codes: xr.Dataset, index: Array, value: Array, names: Sequence[str], top: int | None
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """Yield each pair that has a code, by its id, with phrases and coefficients."""
    labels = [np.asarray(codes[dim]).tolist() if dim in codes.coords else range(codes.sizes[dim]) for dim in _LABELLED]
    pairs = (f"u{unit}/h{head}" for head in labels[0] for unit in labels[1])
    for pair, phrases, weights in zip(pairs, index, value, strict=True):
        order = np.argsort(np.where(phrases < 0, np.inf, -np.abs(weights)), kind="stable")[: (phrases >= 0).sum()]
        if len(order):
            yield pair, [(names[phrases[at]], round(float(weights[at]), 6)) for at in order[:top]]


def _write_descriptions(file: IO[str], described: Iterator[tuple[str, list[tuple[str, float]]]]) -> None:
    """Write an object with a line for each pair; they are never held together."""
    file.write("{")
    for at, (pair, said) in enumerate(described):
        file.write(f"{',' if at else ''}\n{json.dumps(pair)}: {json.dumps(said, ensure_ascii=False)}")
    file.write("\n}\n")


_LABELLED = ("head", "unit")
