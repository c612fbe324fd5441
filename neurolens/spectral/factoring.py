"""Singular values of matrices that are read strip by strip: by their Gram matrices, by QR, by a random subspace.

All three hold something of the size of the shorter side and stream the longer one; only sums over the streamed side are
taken, so that strips may come in any size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk, ssyrk
from scipy.linalg.lapack import dgeqrf

from neurolens.spectral.strips import Job, Kept, Key, Read, Strip, pieces, strips

Method = Literal["gram", "qr", "randomised"]
Precision = Literal["float64", "mixed"]
EPS = float(np.finfo(np.float64).eps)
QR_ROWS = 2  # times the held side: what a QR step takes on at most


@dataclass(frozen=True)
class Settings:
    """What decides the numbers, besides the data."""

    method: Method = "gram"
    centred: bool = False
    precision: Precision = "float64"
    vectors: bool = False
    rank: int = 0
    oversampling: int = 0
    passes: int = 1
    tol: float = 0.0
    seed: int = 0

    @property
    def dtype(self) -> Any:
        """What blocks are turned into for the arithmetic."""
        return np.dtype("float32" if self.precision == "mixed" else "float64")


class Factored(NamedTuple):
    """The spectrum of one matrix, decreasing.

    ``values`` below ``floor`` are 0; ``errors`` bound the relative error. ``basis`` (held, component) are the singular
    vectors of the held side. ``total`` is the squared Frobenius norm; ``whole`` whether all of the spectrum is there.
    ``mean`` (held,) is what was subtracted, where units are held.
    """

    values: NDArray[np.float64]
    errors: NDArray[np.float64]
    floor: float
    total: float
    whole: bool
    basis: NDArray[np.float64] | None = None
    mean: NDArray[np.float64] | None = None


@dataclass
class _Sum:
    """What is gathered over the strips of one matrix."""

    matrix: NDArray[np.float64]
    shift: Any = None
    sums: Any = 0.0
    count: int = 0


def factor(read: Read, job: Job, settings: Settings, kept: Kept) -> dict[Key, Factored | None]:
    """Factor every matrix of a job; None where one is not finite."""
    rules: dict[str, Callable[..., dict[Key, Factored | None]]] = {"gram": _gram, "qr": _qr, "randomised": _randomised}
    with np.errstate(invalid="ignore", over="ignore"):
        return rules[settings.method](read, job, settings, kept)


def _gram(read: Read, job: Job, settings: Settings, kept: Kept) -> dict[Key, Factored | None]:
    """Sum XᵀX over the strips (exactly in float64, or float32 within a piece), then its eigenvalues."""
    held = {key: _Sum(np.zeros((_held(job, key, kept),) * 2, order="F")) for key in job.keys}
    buffer = np.empty(job.piece, settings.dtype)
    shifted = settings.centred and not job.outer
    for strip in strips(read, job, kept):
        state = held[strip.key]
        if shifted and state.shift is None and len(strip.matrix):
            # sums of deviations from about the mean: those of the values would cancel
            state.shift = strip.matrix.mean(axis=0, dtype=np.float64)
        for x in _floats(strip, buffer, state.shift, job, settings):
            state.matrix = _add_gram(state.matrix, x)
            if shifted:
                state.sums = state.sums + x.sum(axis=0, dtype=np.float64)
                state.count += len(x)
    found: dict[Key, Factored | None] = {}
    for key in job.keys:
        state = held.pop(key)
        mean = None
        if shifted and state.count:
            off = state.sums / state.count
            state.matrix -= state.count * np.multiply.outer(off, off)
            mean = state.shift + off
        total = float(np.trace(state.matrix))
        found[key] = _of_gram(state.matrix, total, mean, settings) if np.isfinite(total) else None
    return found


def _add_gram(total: NDArray[np.float64], x: NDArray[Any]) -> Any:
    """Return the lower triangle of ``total`` + xᵀx."""
    turned = x.flags.f_contiguous
    a = x if turned else x.T
    if x.dtype == np.float64:
        return dsyrk(1.0, a, beta=1.0, c=total, trans=turned, lower=1, overwrite_c=1)
    total += ssyrk(1.0, a, trans=turned, lower=1)
    return total


def _of_gram(gram: NDArray[np.float64], total: float, mean: Any, settings: Settings) -> Factored:
    basis = None
    if settings.vectors:
        squares, basis = scipy.linalg.eigh(gram, lower=True, overwrite_a=True, check_finite=False, driver="evr")
        basis = np.ascontiguousarray(basis[:, ::-1][:, : settings.rank or None])
    else:
        squares = scipy.linalg.eigvalsh(gram, lower=True, overwrite_a=True, check_finite=False)
    return _of_squares(squares[::-1], total, True, basis, mean, settings)


def _of_squares(squares: Any, total: float, whole: bool, basis: Any, mean: Any, settings: Settings) -> Factored:
    """Take roots: what is lost of a square is far more of a small root than of a large one."""
    lost = _lost(len(squares), settings.precision) * max(float(squares[0]), 0.0)
    values = np.sqrt(np.where(squares >= lost, squares, 0.0).clip(0.0))
    return Factored(values, _share(lost / 2, values**2), lost**0.5, total, whole, basis, mean)


def _lost(width: int, precision: Precision) -> float:
    """How much of the largest eigenvalue the others of a Gram matrix may be off by rounding (3 to 4 times as seen)."""
    return 2 * float(np.finfo(np.float32).eps) if precision == "mixed" else EPS * (10 + width**0.5 / 4)


def _qr(read: Read, job: Job, settings: Settings, kept: Kept) -> dict[Key, Factored | None]:
    """Carry R of a QR decomposition over the strips, then its singular values: nothing is squared."""
    means = _means(read, job, kept) if settings.centred and not job.outer else {}
    held = {}
    for key in job.keys:
        width = _held(job, key, kept)
        held[key] = np.zeros((width + qr_rows(width, job.piece), width), order="F")
    buffer = np.empty(job.piece)
    for strip in strips(read, job, kept):
        width = strip.matrix.shape[1]
        for x in _floats(strip, buffer, means.get(strip.key), job, settings):
            most = len(held[strip.key]) - width
            for low in range(0, len(x), most):
                _add_rows(held[strip.key], x[low : low + most])
    found: dict[Key, Factored | None] = {}
    for key in job.keys:
        stack = held.pop(key)
        corner = np.asfortranarray(stack[: stack.shape[1]])
        del stack
        found[key] = _of_corner(corner, means.get(key), settings) if np.isfinite(corner).all() else None
    return found


def qr_rows(width: int, piece: int) -> int:
    """How many rows a QR step takes on."""
    return max(1, min(QR_ROWS * width, piece // max(1, width)))


def _add_rows(stack: NDArray[np.float64], rows: NDArray[np.float64]) -> None:
    """Put ``rows`` below R and decompose, in place."""
    width = stack.shape[1]
    stack[width : width + len(rows)] = rows
    stack[width + len(rows) :] = 0.0
    dgeqrf(stack, lwork=64 * width, overwrite_a=1)  # the default workspace is too small for blocked steps
    for j in range(width):
        stack[j + 1 : width, j] = 0.0


def _of_corner(corner: NDArray[np.float64], mean: Any, settings: Settings) -> Factored:
    flat = corner.ravel(order="K")  # np.vdot would copy
    total, basis = float(flat @ flat), None
    if settings.vectors:
        _, values, turned = scipy.linalg.svd(corner, overwrite_a=True, check_finite=False)
        basis = np.ascontiguousarray(turned.T[:, : settings.rank or None])
    else:
        values = scipy.linalg.svdvals(corner, overwrite_a=True, check_finite=False)
    floor = EPS * (10 + len(values) ** 0.5 / 4) * float(values[0])
    values = np.where(values >= floor, values, 0.0)
    return Factored(values, _share(floor, values), floor, total, True, basis, mean)


def _randomised(read: Read, job: Job, settings: Settings, kept: Kept) -> dict[Key, Factored | None]:
    """Turn a random subspace towards the leading one: Q ← qr(XᵀX Q), one pass each, until the residuals are small.

    Halko, Martinsson and Tropp 2011, algorithm 4.4 on XᵀX, with the Ritz values of every pass. The residual r of a Ritz
    pair (λ, v) of XᵀX bounds its distance to an eigenvalue: |λ − λ'| ≤ r.
    """
    means = _means(read, job, kept) if settings.centred and not job.outer else {}
    bases: dict[Key, Any] = {}
    for key in job.keys:
        width = _held(job, key, kept)
        start = np.random.default_rng(settings.seed).standard_normal((width, subspace(width, settings)))
        bases[key] = _orthonormal(start)
    found: dict[Key, Factored | None] = {}
    buffer = np.empty(job.piece, settings.dtype)
    totals = dict.fromkeys(job.keys, 0.0)
    for number in range(settings.passes):
        sums = {key: np.zeros_like(basis) for key, basis in bases.items()}
        for strip in strips(read, job, kept):
            key = strip.key
            for x in _floats(strip, buffer, means.get(key), job, settings) if key in sums else ():
                sums[key] += x.T @ (x @ bases[key].astype(x.dtype, copy=False))
                totals[key] += 0.0 if number else float(np.einsum("ij,ij->", x, x, dtype=np.float64))
        for key, powered in sums.items():
            if not np.isfinite(totals[key]):
                found[key] = None
                del bases[key]
                continue
            found[key], near = _ritz(bases[key], powered, totals[key], means.get(key), settings)
            if near:
                del bases[key]
            else:
                bases[key] = _orthonormal(powered)
        if not bases:
            break
    return found


def subspace(width: int, settings: Settings) -> int:
    """How many dimensions the random subspace has."""
    return min(width, settings.rank + settings.oversampling)


def _orthonormal(matrix: NDArray[np.float64]) -> Any:
    return scipy.linalg.qr(matrix, mode="economic", overwrite_a=True, check_finite=False)[0]


def _ritz(basis: Any, powered: Any, total: float, mean: Any, settings: Settings) -> tuple[Factored, bool]:
    """The Ritz pairs of one pass, and whether they are good enough to be the last."""
    small = basis.T @ powered
    squares, turn = scipy.linalg.eigh((small + small.T) / 2, check_finite=False)
    squares, turn = squares[::-1].clip(0.0), turn[:, ::-1]
    vectors = basis @ turn
    residuals = np.linalg.norm(powered @ turn - vectors * squares, axis=0)
    lost = _lost(len(basis), settings.precision)
    # nothing is left outside of the subspace: it holds the whole spectrum
    whole = basis.shape[1] == len(basis) or total - float(squares.sum()) <= total * lost
    kept = slice(None if whole else settings.rank)
    found = _of_squares(squares[kept], total, whole, None, mean, settings)
    errors = np.maximum(found.errors, _share(residuals[kept], found.values**2))
    basis = vectors[:, : settings.rank] if settings.vectors else None
    near = residuals[: settings.rank] <= np.maximum(settings.tol * squares[: settings.rank], lost * squares[0])
    return found._replace(errors=errors, basis=basis), bool(near.all())


def _floats(strip: Strip, buffer: NDArray[Any], mean: Any, job: Job, settings: Settings) -> Iterator[Any]:
    """The pieces of a strip, centred if they are to be: each unit's mean over the samples is 0."""
    for _, x in pieces(strip, buffer, mean, own=settings.centred):
        if settings.centred and job.outer:
            x -= x.mean(axis=1, keepdims=True)
        yield x


def _means(read: Read, job: Job, kept: Kept) -> dict[Key, Any]:
    """The mean of every unit over the samples that count: a pass of its own."""
    sums: dict[Key, Any] = dict.fromkeys(job.keys, 0.0)
    counts = dict.fromkeys(job.keys, 0)
    for strip in strips(read, job, kept):
        sums[strip.key] = sums[strip.key] + strip.matrix.sum(axis=0, dtype=np.float64)
        counts[strip.key] += len(strip.matrix)
    return {key: sums[key] / max(1, counts[key]) for key in job.keys}


def streamed_vectors(
    read: Read, job: Job, settings: Settings, kept: Kept, found: dict[Key, Factored]
) -> dict[Key, tuple[Any, Any]]:
    """Vectors of the streamed side, X v / s, and the mean of each of its rows: a pass of its own."""
    out: dict[Key, tuple[Any, Any]] = {}
    turned: dict[Key, Any] = {}
    for key, factored in found.items():
        assert factored.basis is not None
        count = factored.basis.shape[1]
        out[key] = np.full((job.shape(key[1])[0], count), np.nan), np.zeros(job.shape(key[1])[0])
        scale = factored.values[:count]
        turned[key] = factored.basis / np.where(scale > 0, scale, np.nan)
    buffer = np.empty(job.piece)
    for strip in strips(read, job, kept):
        if strip.key in turned:
            vectors, means = out[strip.key]
            for at, x in pieces(strip, buffer, own=settings.centred):
                if settings.centred:
                    means[at] = x.mean(axis=1)
                    x -= means[at][:, None]
                vectors[at] = x @ turned[strip.key]
    return out


def _held(job: Job, key: Key, kept: Kept) -> int:
    """The held side of a matrix: samples that do not count are not held."""
    return int(kept[key].sum()) if job.outer and key in kept else job.shape(key[1])[1]


def _share(part: Any, of: NDArray[np.float64]) -> Any:
    return np.divide(part, of, out=np.full(len(of), np.nan), where=of > 0)
