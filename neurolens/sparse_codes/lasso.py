"""Codes whose coefficients are not negative: the non-negative lasso of SpLiCE."""

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import SchemaError
from neurolens.sparse_codes.coding import BLOCK, checked_block, chosen, labelled, read
from neurolens.sparse_codes.dictionaries import Norm, matched, prepared

Array = npt.NDArray[Any]


def lasso_codes(
    signals: Any,
    dictionary: Any,
    *,
    penalty: float = 0.25,
    norm: Norm = "rows",
    centre: bool = True,
    where: xr.DataArray | None = None,
    block: int = BLOCK,
    max_iter: int = 10_000,
    tolerance: float = 1e-6,
) -> xr.Dataset:
    """Tell each signal as a sum of few phrases with no negative coefficient, by scikit-learn's lasso. **Eager**.

    Minimises ‖signal − Σ value·atom‖² + λ·Σ value.

    Parameters
    ----------
    signals : (…, feature)
        Vectors of the embedding. SpLiCE takes embeddings of length 1 less the mean embedding of images.
    dictionary : (phrase, feature)
        Embeddings of phrases.
    penalty
        λ; scikit-learn's alpha is λ/(2·features).
    norm, centre
        How phrases are put on one scale; see `prepared`.
    where : bool (…), optional
        Which signals to code; all by default.
    block
        Signals read at once.
    max_iter, tolerance
        Of the coordinate descent.

    Returns
    -------
    Dataset
        ``index`` (…, atom) int32, phrases by descending coefficient, and ``value`` (…, atom), above 0; -1 and NaN
        beyond the phrases of a code. ``residual`` (…): length of what is left. ``converged`` (…): whether the descent
        ended before ``max_iter``. NaN and False where a signal has NaN or was not asked for.

    Raises
    ------
    SchemaError
        If widths differ, there is no phrase, or an option is no number that it can be.
    NonFiniteError
        If a phrase has NaN or infinity, or a signal infinity.

    References
    ----------
    Bhalla et al. 2024, "Interpreting CLIP with Sparse Linear Concept Embeddings (SpLiCE)", arXiv 2402.10376.
    """
    from sklearn.linear_model import Lasso

    for name, number in {"penalty": penalty, "tolerance": tolerance}.items():
        if not 0 < number < math.inf:
            raise SchemaError(f"found {name}={number!r}, and a number above 0 was needed")
    if isinstance(max_iter, bool) or not isinstance(max_iter, int | np.integer) or max_iter < 1:
        raise SchemaError(f"found max_iter={max_iter!r}, and a whole number of at least 1 was needed")
    phrases = prepared(dictionary, norm=norm, centre=centre)
    given = matched(signals, phrases)
    dtype = np.result_type(given.dtype, phrases.dtype)
    atoms = np.asfortranarray(phrases.to_numpy().astype(dtype, copy=False).T)
    lead = given.dims[:-1]
    shape = tuple(given.sizes[dim] for dim in lead)
    total = math.prod(shape)
    codes: list[tuple[Array, Array]] = [(np.empty(0, np.int32), np.empty(0, dtype))] * total
    residual, converged = np.full(total, np.nan, dtype), np.zeros(total, bool)
    model = Lasso(
        alpha=penalty / (2 * atoms.shape[0]), fit_intercept=False, positive=True, max_iter=max_iter, tol=tolerance
    )
    positions, size = chosen(given, where), checked_block(block)
    for begin in range(0, len(positions), size):
        here = positions[begin : begin + size]
        for position, signal in zip(here.tolist(), read(given, here, dtype), strict=True):
            if np.isnan(signal).any():
                continue
            code, converged[position] = _fitted(model, atoms, signal)
            order = np.argsort(-code, kind="stable")[: np.count_nonzero(code)]
            codes[position] = order.astype(np.int32), code[order]
            residual[position] = np.linalg.norm(signal - atoms[:, order] @ code[order])
    count = max(1, max((len(index) for index, _ in codes), default=1))
    index, value = np.full((total, count), -1, np.int32), np.full((total, count), np.nan, dtype)
    for position, (chosen_atoms, weights) in enumerate(codes):
        index[position, : len(weights)], value[position, : len(weights)] = chosen_atoms, weights
    out = xr.Dataset(
        {
            "index": ((*lead, "atom"), index.reshape(*shape, count)),
            "value": ((*lead, "atom"), value.reshape(*shape, count)),
            "residual": (lead, residual.reshape(shape)),
            "converged": (lead, converged.reshape(shape), {"long_name": "the descent ended in time"}),
        },
        coords={name: coord for name, coord in given.coords.items() if "feature" not in coord.dims},
    )
    return labelled(out, phrases, norm, centre).assign_attrs(penalty=float(penalty))


def _fitted(model: Any, atoms: Array, signal: Array) -> tuple[Array, bool]:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told as `converged`
        model.fit(atoms, signal)
    return np.asarray(model.coef_), bool(model.n_iter_ < model.max_iter)
