"""Orthogonal matching pursuit of many signals at once, by QR that grows by a column a step; no Gram matrix is made."""

from typing import Any

import numpy as np
import numpy.typing as npt

from neurolens.sparse_codes.dictionaries import ROUNDING

Array = npt.NDArray[Any]
_AT_ONCE = 4096  # atoms whose correlations are held
_SHRUNK = 0.7  # an atom of which less is left has lost digits when the chosen ones were taken out of it
_TIE = 8  # units in the last place of the largest correlation there can be, within which the lowest index is chosen


def pursue(signals: Array, atoms: Array, count: int, basis: Array | None = None) -> tuple[Array, Array, Array]:
    """Choose the atom that is most correlated with what is left of each signal, fit all chosen ones anew, and repeat.

    Parameters
    ----------
    signals : (B, O)
        Finite, of the dtype of the atoms.
    atoms : (P, O)
    count
        Steps, K.
    basis : (O, d), optional
        Orthonormal columns that all signals are sums of: the first choice is made in these d dimensions.

    Returns
    -------
    index : (B, K) int32
        Chosen atoms, in order; of equal ones the lowest. -1 from the step on at which nothing was left, or no atom that
        is independent of the chosen ones is correlated with it.
    value : (B, K)
        The least-squares coefficient of each chosen atom; NaN where ``index`` is -1.
    residual : (B, K)
        Length of what is left after each step; NaN where ``index`` is -1.

    References
    ----------
    Parlett 1998, "The Symmetric Eigenvalue Problem", section 6.9 (when to orthogonalise twice);
    Pati, Rezaiifar and Krishnaprasad 1993, "Orthogonal matching pursuit".
    """
    many, width = signals.shape
    dtype = atoms.dtype
    eps = np.finfo(dtype).eps
    lengths = np.linalg.norm(atoms, axis=1)
    longest = lengths.max()
    nothing = ROUNDING * eps * np.linalg.norm(signals, axis=1)
    index = np.full((many, count), -1, np.int32)
    residual = np.full((many, count), np.nan, dtype)
    orthogonal = np.zeros((many, count, width), dtype)
    triangle = np.tile(np.eye(count), (many, 1, 1))
    along = np.zeros((many, count))
    left = signals.astype(dtype)
    alive = nothing > 0
    for step in range(count):
        if basis is not None and step == 0:
            best, at = _strongest(left @ basis, atoms @ basis, _TIE * eps * longest)
        else:
            best, at = _strongest(left, atoms, _TIE * eps * longest)
        alive &= best > nothing * longest  # chosen atoms are below that, and are not chosen again
        if not alive.any():
            break
        column, known = atoms[at], orthogonal[:, :step]
        shares = np.matmul(known, column[:, :, None])[:, :, 0]
        column = column - np.matmul(shares[:, None, :], known)[:, 0]
        length = np.linalg.norm(column, axis=1)
        again = np.flatnonzero(length < _SHRUNK * lengths[at])
        if len(again):  # once more is enough for orthogonality to rounding
            those = known[again]
            more = np.matmul(those, column[again, :, None])[:, :, 0]
            column[again] -= np.matmul(more[:, None, :], those)[:, 0]
            shares[again] += more
            length[again] = np.linalg.norm(column[again], axis=1)
        alive &= length > ROUNDING * eps * lengths[at]
        column = np.where(alive[:, None], column / np.where(alive, length, 1)[:, None], 0)
        orthogonal[:, step] = column
        triangle[alive, :step, step] = shares[alive]
        triangle[alive, step, step] = length[alive]
        amount = np.einsum("bo,bo->b", column, left)
        along[:, step] = amount
        left -= amount[:, None] * column
        left[~alive] = 0
        index[alive, step] = at[alive]
        residual[alive, step] = np.linalg.norm(left[alive], axis=1)
    value = np.linalg.solve(triangle, along[:, :, None])[:, :, 0].astype(dtype)
    value[index < 0] = np.nan
    return index, value, residual


def _strongest(left: Array, atoms: Array, tie: float) -> tuple[Array, Array]:
    """Return the largest |⟨left, atom⟩| of each row, and the lowest index that has it to rounding."""
    best, at = np.full(len(left), -1.0, atoms.dtype), np.zeros(len(left), np.int64)
    margin = (tie * np.linalg.norm(left, axis=1)).astype(atoms.dtype)
    for start in range(0, len(atoms), _AT_ONCE):
        part = atoms[start : start + _AT_ONCE]
        found = left @ part.T
        np.abs(found, out=found)
        most = found.max(axis=1)
        first = (found >= (most - margin)[:, None]).argmax(axis=1)
        better = most > best + margin
        at[better] = start + first[better]
        np.maximum(best, most, out=best)
    return best, at
