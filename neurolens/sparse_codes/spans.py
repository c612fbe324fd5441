"""Texts that span what a head writes: one after the other, the text along which its outputs vary most."""

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import NonFiniteError, SchemaError
from neurolens.sparse_codes.dictionaries import ROUNDING, checked_count, matched, orthonormal, required

Array = npt.NDArray[Any]


def text_span(
    outputs: Any, dictionary: Any, *, atoms: int = 20, basis: Any = None, rank: int | None = None
) -> xr.Dataset:
    """Choose the texts along which outputs vary most, each after what was chosen is taken away. **Eager**.

    Parameters
    ----------
    outputs : (sample, feature)
        What one head wrote, image by image, in the embedding. Their mean is subtracted.
    dictionary : (phrase, feature)
        Embeddings of texts, as they are: neither centred nor scaled here.
    atoms
        Texts to choose.
    basis : (feature, d), optional
        Columns, as W_o of the head: texts are projected onto their span first. A text's length then says how much of it
        the head can write at all.
    rank : int, optional
        Project onto so many leading singular vectors of the outputs instead, before their mean is subtracted; the
        paper's code takes 80.

    Returns
    -------
    Dataset
        ``index`` (atom,) int32, texts in order, of equal ones the lowest; -1 once no text is left along which the
        outputs vary. ``deviation`` (atom,): the standard deviation (of a sample) along the text at its turn.
        ``captured`` (atom,): the length of all that was taken away at that turn. ``explained`` (atom,): share of the
        outputs' variance that was taken away by then. NaN where ``index`` is -1.

    Raises
    ------
    SchemaError
        If widths differ, there are fewer than two outputs, or more atoms are asked for than dimensions or texts.
    NonFiniteError
        If a number is NaN or infinite.

    References
    ----------
    Gandelsman, Efros and Steinhardt 2024, "Interpreting CLIP's Image Representation via Text-Based Decomposition",
    arXiv 2310.05916, algorithm 1.
    """
    texts = required(dictionary)
    given = matched(outputs, texts)
    count = checked_count(atoms, texts)
    if given.ndim != 2 or len(given) < 2:
        raise SchemaError(f"found outputs over {dict(given.sizes)}, and at least two (sample, feature) were needed")
    rows, words = given.to_numpy().astype(np.float64), texts.to_numpy().astype(np.float64)
    if not (np.isfinite(rows).all() and np.isfinite(words).all()):
        raise NonFiniteError("outputs or texts have NaN or infinity; leave dead heads out, or embed the texts again")
    inner = _directions(rows, basis, rank)
    rows = rows - rows.mean(axis=0)
    total = np.square(rows).sum()
    if inner is not None:
        rows, words = rows @ inner, words @ inner
    index, deviation, captured = _greedy(rows, words, count)
    explained = np.where(index < 0, np.nan, np.cumsum(np.square(captured)) / (total or np.nan))
    return xr.Dataset(
        {
            "index": ("atom", index, {"long_name": "text of the dictionary, -1 for none", "units": "1"}),
            "deviation": ("atom", deviation, {"long_name": "deviation along the text", "units": "embedding"}),
            "captured": ("atom", captured, {"long_name": "length of what was taken away", "units": "embedding"}),
            "explained": ("atom", explained, {"long_name": "share of the variance taken away so far", "units": "1"}),
        },
        attrs={"phrases": texts.sizes["phrase"]},
    )


def _greedy(rows: Array, words: Array, count: int) -> tuple[Array, Array, Array]:
    """Take one direction after the other away from rows and words alike; variances come from the covariance."""
    covariance = rows.T @ rows
    carried = words @ covariance
    index = np.full(count, -1, np.int32)
    deviation, captured = np.full(count, np.nan), np.full(count, np.nan)
    lengths = np.linalg.norm(words, axis=1)
    rounding = ROUNDING * np.finfo(np.float64).eps
    scale = rounding * np.trace(covariance) * np.square(lengths).max()
    for step in range(count):
        variance = np.einsum("pd,pd->p", words, carried)
        variance[np.linalg.norm(words, axis=1) <= rounding * lengths] = 0  # only rounding is left of the text
        most = variance.max()
        if most <= scale:
            break
        at = int((variance >= most * (1 - rounding)).argmax())
        direction = words[at] / np.linalg.norm(words[at])
        turned = covariance @ direction
        along = float(direction @ turned)
        index[step], deviation[step] = at, np.sqrt(variance[at] / (len(rows) - 1))
        captured[step] = np.sqrt(max(along, 0.0))
        shares = words @ direction
        words = words - np.outer(shares, direction)
        carried = carried - np.outer(shares, turned)
        carried -= np.outer(carried @ direction, direction)
        covariance = covariance - np.outer(direction, turned) - np.outer(turned, direction)
        covariance += along * np.outer(direction, direction)
    return index, deviation, captured


def _directions(rows: Array, basis: Any, rank: int | None) -> Array | None:
    if basis is not None and rank is not None:
        raise SchemaError("found a basis and a rank, and one of them was needed: what texts are projected onto")
    if rank is not None:
        if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or not 1 <= rank <= min(rows.shape):
            raise SchemaError(f"found rank={rank!r}, and a number from 1 to {min(rows.shape)} was needed")
        turned: Array = np.linalg.svd(rows, full_matrices=False)[2][:rank].T
        return turned
    return None if basis is None else orthonormal(basis, rows.shape[1])
