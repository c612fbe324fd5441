"""A dictionary of phrases and the signals that are told in it: what they must be, and how they are put on one scale."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import NonFiniteError, SchemaError, nearest

Array = npt.NDArray[Any]
Norm = Literal["rows", "columns"] | None
NORMS = ("rows", "columns")
ROUNDING = 64
"""So many units in the last place of a vector's length are nothing."""


def prepared(dictionary: Any, *, norm: Norm = "rows", centre: bool = True) -> xr.DataArray:
    """Return the atoms that codes are sums of: phrases without what all of them share, on one scale. **Eager**.

    Parameters
    ----------
    dictionary : (phrase, feature)
        Embeddings of phrases.
    norm
        ``"rows"`` gives every atom length 1, so that the atom nearest in direction is chosen. ``"columns"`` divides
        each feature by its length over all phrases, as the reference does: long atoms are favoured, and none points
        where its phrase points. None leaves lengths alone.
    centre
        Subtract the mean of all phrases first, as the reference, second-order lens and SpLiCE do.

    Returns
    -------
    array (phrase, feature), float32, or float64 if the dictionary is
        An atom that is nothing but the mean, and a feature that all phrases share, are 0.

    Raises
    ------
    SchemaError
        If it is no matrix, is empty, or ``norm`` is unknown.
    NonFiniteError
        If a number is NaN or infinite.

    References
    ----------
    Bu and Gandelsman 2025, arXiv 2509.19943 (columns: their code); Bhalla et al. 2024, arXiv 2402.10376 (rows).
    """
    if norm is not None and norm not in NORMS:
        raise SchemaError(f"there is no norm {norm!r}; {nearest(str(norm), NORMS)} (None leaves lengths alone)")
    phrases = required(dictionary)
    atoms = phrases.to_numpy()
    atoms = atoms.astype(np.result_type(atoms.dtype, np.float32))
    if not np.isfinite(atoms).all():
        row = int(np.flatnonzero(~np.isfinite(atoms).all(axis=1))[0])
        raise NonFiniteError(f"the embedding of phrase {row} has NaN or infinity; embed the phrases again")
    axis = {"rows": 1, "columns": 0}.get(norm or "")
    before = np.linalg.norm(atoms, axis=axis, keepdims=True)
    if centre:
        atoms = (atoms - atoms.mean(axis=0, dtype=np.float64)).astype(atoms.dtype)
    if axis is not None:
        lengths = np.linalg.norm(atoms, axis=axis, keepdims=True)
        nothing = ROUNDING * np.finfo(atoms.dtype).eps * (before.max() if axis == 1 else before)
        atoms = np.where(lengths > nothing, atoms / np.where(lengths > nothing, lengths, 1), 0).astype(atoms.dtype)
    return xr.DataArray(atoms, dims=("phrase", "feature"), coords=phrases.coords, name="atom")


def required(dictionary: Any) -> xr.DataArray:
    """Return embeddings (phrase, feature), or say what is wrong with them; numpy arrays are taken as that.

    Raises
    ------
    SchemaError
        If it is no matrix of real numbers, or has no phrase.
    """
    if not isinstance(dictionary, xr.DataArray):
        plain = np.asarray(dictionary)
        dictionary = xr.DataArray(plain, dims=("phrase", "feature") if plain.ndim == 2 else None)
    if set(dictionary.dims) != {"phrase", "feature"}:
        raise SchemaError(
            f"found a dictionary over {dict(dictionary.sizes)}, and (phrase, feature) was needed: a row per phrase"
        )
    if not dictionary.size:
        raise SchemaError(f"found a dictionary of {dict(dictionary.sizes)}; the list of phrases is empty, name some")
    if dictionary.dtype.kind not in "fiu":
        raise SchemaError(f"found a dictionary of dtype {dictionary.dtype}, and real numbers were needed")
    ordered: xr.DataArray = dictionary.transpose("phrase", "feature")
    return ordered


def matched(signals: Any, dictionary: xr.DataArray) -> xr.DataArray:
    """Return signals (…, feature) as wide as a dictionary, or say what does not fit; numpy's are (signal, feature).

    Raises
    ------
    SchemaError
        If they have another width, no feature, or a dim that codes have.
    """
    if not isinstance(signals, xr.DataArray):
        plain = np.asarray(signals)
        signals = xr.DataArray(plain, dims=("signal", "feature")[2 - plain.ndim :] if 1 <= plain.ndim <= 2 else None)
    if "feature" not in signals.dims or {"atom", "phrase"} & set(signals.dims):
        raise SchemaError(
            f"found signals over {tuple(signals.dims)}, and (…, feature) was needed, without 'atom' and 'phrase', "
            "which are dims of codes and dictionaries; rename or transpose them"
        )
    wide = dictionary.sizes["feature"]
    if signals.sizes["feature"] != wide:
        raise SchemaError(
            f"found signals {signals.sizes['feature']} wide, and phrases {wide} wide; embed the phrases with the text "
            "encoder of the network that the signals are of"
        )
    if signals.dtype.kind not in "fiu":
        raise SchemaError(f"found signals of dtype {signals.dtype}, and real numbers were needed")
    ordered: xr.DataArray = signals.transpose(..., "feature")
    return ordered


def checked_count(atoms: int, dictionary: xr.DataArray) -> int:
    """Return how many atoms a code has, or say why it cannot.

    Raises
    ------
    SchemaError
        If they are fewer than one, or more than there are dimensions or phrases.
    """
    if isinstance(atoms, bool) or not isinstance(atoms, int | np.integer) or atoms < 1:
        raise SchemaError(f"found atoms={atoms!r}, and a whole number of at least 1 was needed")
    phrases, features = dictionary.sizes["phrase"], dictionary.sizes["feature"]
    if atoms > min(phrases, features):
        raise SchemaError(
            f"{atoms} atoms were asked for, of {phrases} phrases in {features} dimensions: more than "
            f"{min(phrases, features)} cannot be independent; ask for fewer, as atoms={min(phrases, features)}"
        )
    return int(atoms)


def orthonormal(basis: Any, width: int) -> Array:
    """Return orthonormal columns (width, d) that span those of a basis.

    Raises
    ------
    SchemaError
        If it is no matrix of that many rows.
    NonFiniteError
        If it has NaN or infinity.
    """
    plain = basis.to_numpy() if isinstance(basis, xr.DataArray) else np.asarray(basis)
    if plain.ndim != 2 or plain.shape[0] != width or not plain.size:
        raise SchemaError(
            f"found a basis of shape {plain.shape}, and ({width}, d) was needed: columns in the embedding, as W_o of "
            "one head"
        )
    if not np.isfinite(plain).all():
        raise NonFiniteError("the basis has NaN or infinity; read the weights again")
    left, sizes, _ = np.linalg.svd(plain.astype(np.float64), full_matrices=False)
    kept: Array = left[:, sizes > sizes.max() * max(plain.shape) * np.finfo(np.float32).eps]
    return kept
