"""What is left of an embedding when pairs are held at their mean, and what it still recognises."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import NonFiniteError, SchemaError
from neurolens.inference import bootstrap_counts, percentile_interval, require_resampling, wilson_interval
from neurolens.pairs.writing import directed, matched, required, scalar_mean, written

Array = npt.NDArray[Any]
SHARES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)


def percentile_mask(score: xr.DataArray, percentile: float) -> xr.DataArray:
    """Keep what scores at least the percentile of all scores; ties with it are kept. **Eager**.

    Parameters
    ----------
    score : (unit, head), (unit,) or (head,); or with a ``rank``, whose mean it then is
        As `pair_norms` gives it, or any other.
    percentile : float
        From 0, which keeps all, to 100; between two scores it is interpolated.

    Returns
    -------
    bool, over the dims of the score without ``rank``

    Raises
    ------
    SchemaError
        If the percentile is none, or there is no score.
    NonFiniteError
        If a score is NaN.
    """
    if not 0 <= percentile <= 100:
        raise SchemaError(f"percentile={percentile}, and 0 to 100 was needed; 90 keeps a tenth")
    if not isinstance(score, xr.DataArray) or not score.size:
        raise SchemaError(f"found {type(score).__name__}, and an array of scores was needed: pair_norms(…)")
    score = score.mean("rank", skipna=False) if "rank" in score.dims else score
    values = score.to_numpy()
    if np.isnan(values).any():
        raise NonFiniteError(f"{np.isnan(values).sum()} scores are NaN; leave these pairs out, or score them 0")
    return score.copy(data=values >= np.percentile(values, percentile)).rename("keep").drop_attrs()


def ablate(
    scalar: xr.DataArray | xr.Dataset, factors: xr.Dataset, mask: xr.DataArray, *, mean: xr.DataArray | None = None
) -> xr.DataArray:
    """Return the embeddings with all but the kept pairs held at their mean: ē + Σ_keep (s − s̄)·u; lazy if s is.

    Parameters
    ----------
    scalar : (sample, unit, head)
        The scalars.
    factors
        Of the same pairs.
    mask : bool, (unit, head), (unit,) or (head,)
        True is kept; see `percentile_mask`.
    mean : (unit, head), optional
        s̄, of other images; by default of these.

    Returns
    -------
    array (sample, feature), not normalised
        With nothing kept, the mean embedding; with all kept, the embeddings. NaN if a scalar is: leave out images that
        were not measured.

    Raises
    ------
    SchemaError
        If there is no mask or it is of other pairs, or the factors are.
    """
    cube, fixed = matched(scalar, factors)
    keep = checked_mask(mask, cube)
    # The mask is put on the matrices: they are small beside the scalars.
    kept = fixed.assign(value=fixed["value"].where(keep, fixed["value"].dtype.type(0)))
    average = scalar_mean(cube, mean)
    held = mean_embedding(cube, fixed, mean) - written(average, kept)
    varying = written(cube, kept)
    return varying + held.astype(varying.dtype)


def mean_embedding(scalar: xr.DataArray, factors: xr.Dataset, mean: xr.DataArray | None = None) -> xr.DataArray:
    """Return ē (feature,) = Σ (s̄·u + β), of scalars (sample, unit, head) or with the mean given; lazy if s is.

    In float64.
    """
    fixed = required(factors)
    constant = fixed["constant"].sum("head", dtype=np.float64) * fixed.sizes["unit"]
    return written(scalar_mean(scalar, mean), fixed) + constant


def zero_shot(embedding: xr.DataArray, texts: Any, labels: npt.ArrayLike, *, confidence: float = 0.95) -> xr.Dataset:
    """Classify embeddings by the nearest text embedding. **Eager**.

    Parameters
    ----------
    embedding : (sample, feature)
        Normalised or not.
    texts : (class, feature)
        One vector per class, normalised or not.
    labels : int, (sample,)
        The row of ``texts`` that is right.
    confidence
        Coverage of the interval.

    Returns
    -------
    Dataset
        ``predicted`` and ``correct`` (sample,); ``accuracy`` with ``low`` and ``high`` by Wilson, and ``count``, the
        images that it is of.

    Raises
    ------
    SchemaError
        If the vectors have other widths, or labels are not rows of ``texts``, one per image.
    NonFiniteError
        If an embedding is NaN or infinite.
    """
    vectors, given = _classes(embedding, texts, labels)
    values = embedding.transpose("sample", "feature").to_numpy()
    if not np.isfinite(values).all():
        raise NonFiniteError("an embedding is NaN or infinite; leave out pairs without a direction")
    predicted = (values @ vectors.T).argmax(axis=1)
    correct = predicted == given
    low, high = wilson_interval(correct.sum(), len(correct), confidence)
    out = xr.Dataset({"predicted": ("sample", predicted), "correct": ("sample", correct)})
    if "sample" in embedding.coords:
        out = out.assign_coords(sample=embedding["sample"].variable)
    return out.assign(accuracy=correct.mean(), low=float(low), high=float(high), count=len(correct))


def ablation_curve(
    scalar: xr.DataArray | xr.Dataset,
    factors: xr.Dataset,
    texts: Any,
    labels: npt.ArrayLike,
    *,
    score: xr.DataArray,
    shares: Sequence[float] = SHARES,
    mean: xr.DataArray | None = None,
    baselines: int = 5,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Return the zero-shot accuracy when only the pairs, or the units, with the highest scores vary. **Eager**.

    Parameters
    ----------
    scalar : (sample, unit, head)
        The scalars.
    factors
        Of the same pairs.
    texts : (class, feature)
        One vector per class.
    labels : int, (sample,)
        The row of ``texts`` that is right.
    score : (unit, head), (unit,) or (head,); or with a ``rank``, whose mean it then is
        Of `pair_norms` or `unit_norms`: what it is over is what is kept or held at the mean.
    shares
        Of what is kept.
    mean : (unit, head), optional
        s̄, of other images; by default of these.
    baselines
        How often as many as in the mask are drawn at random instead.
    bootstrap, confidence, seed
        Resamples of the images, for intervals of that confidence; the seed is also that of the draws.

    Returns
    -------
    Dataset over ``share``
        ``accuracy``, with ``low`` and ``high``; ``kept``, how many; ``correct`` (share, sample) bool; ``random``
        (share, draw), the accuracy of each draw, with ``random_low`` and ``random_high`` of the bootstrap of their mean
        over the same images. NaN where none was drawn, or no image resampled.

    Raises
    ------
    SchemaError
        If something is of other pairs or images, or a share is none.

    Notes
    -----
    Two curves of the same images and seed are compared by `curve_difference`.

    References
    ----------
    Bu and Gandelsman 2025, arXiv 2509.19943 (mean ablation).
    """
    require_resampling(bootstrap, confidence)
    if not len(shares) or any(not 0 < share <= 1 for share in shares):
        raise SchemaError(f"shares={tuple(shares)}, and numbers above 0, up to 1, were needed; {SHARES} say")
    cube, fixed = matched(scalar, factors)
    generator, average = np.random.default_rng(seed), scalar_mean(cube, mean).compute()
    score = score.mean("rank", skipna=False) if "rank" in score.dims else score

    def answers(keep: xr.DataArray) -> Array:
        found = zero_shot(ablate(cube, fixed, keep, mean=average), texts, labels)
        return np.asarray(found["correct"])

    masks = [percentile_mask(score, 100 * (1 - share)) for share in shares]
    correct = np.stack([answers(mask) for mask in masks])
    drawn = np.full((len(shares), baselines, cube.sizes["sample"]), False)
    for row, mask in zip(drawn, masks):
        for draw in range(baselines):
            row[draw] = answers(mask.copy(data=generator.permutation(mask.to_numpy().ravel()).reshape(mask.shape)))
    out = xr.Dataset(coords={"share": ("share", list(shares))})
    if "sample" in cube.coords:
        out = out.assign_coords(sample=cube["sample"].variable)
    out["accuracy"] = ("share", correct.mean(axis=1))
    out["low"], out["high"] = _intervals(correct, bootstrap, confidence, seed)
    out["kept"] = ("share", [int(mask.sum()) for mask in masks])
    out["correct"] = (("share", "sample"), correct)
    out["random"] = (("share", "draw"), drawn.mean(axis=2))
    means = drawn.mean(axis=1) if baselines else np.full(correct.shape, np.nan)
    out["random_low"], out["random_high"] = _intervals(means, bootstrap, confidence, seed)
    return out


def curve_difference(
    one: xr.Dataset, other: xr.Dataset, *, bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0
) -> xr.Dataset:
    """Compare two ablation curves of the same images, as of pairs and of units: accuracy of one minus the other.

    Parameters
    ----------
    one, other
        From `ablation_curve`, at the same shares.
    bootstrap, confidence, seed
        Resamples of the images, each for both curves.

    Returns
    -------
    Dataset over ``share``
        ``difference`` with ``low`` and ``high``; NaN bounds without resamples.

    Raises
    ------
    SchemaError
        If they are of other shares or images.
    """
    require_resampling(bootstrap, confidence)
    for name in ("correct", "share"):
        if name not in one or name not in other:
            raise SchemaError(f"found no {name!r}, and two curves of ablation_curve were needed")
    same = one["share"].equals(other["share"]) and one.sizes["sample"] == other.sizes["sample"]
    if not same or ("sample" in one.coords and "sample" in other.coords and not one["sample"].equals(other["sample"])):
        raise SchemaError("the curves are of other shares or other images; compute both with the same")
    gap = one["correct"].to_numpy().astype(float) - other["correct"].to_numpy()
    out = xr.Dataset({"difference": ("share", gap.mean(axis=1))}, coords={"share": one["share"].variable})
    out["low"], out["high"] = _intervals(gap, bootstrap, confidence, seed)
    return out


def _intervals(values: Array, bootstrap: int, confidence: float, seed: int) -> tuple[Any, Any]:
    """Return bounds (share,) of the mean of values (share, sample) by the percentile bootstrap over samples."""
    if not bootstrap or np.isnan(values).any():
        missing = ("share", np.full(len(values), np.nan))
        return missing, missing
    n = values.shape[1]
    means = [values @ counts / n for counts in bootstrap_counts(n, bootstrap, seed)]
    low, high = percentile_interval(np.stack(means), confidence)
    return ("share", low), ("share", high)


def checked_mask(mask: Any, cube: xr.DataArray) -> xr.DataArray:
    if (
        not isinstance(mask, xr.DataArray)
        or mask.dtype != bool
        or not mask.dims
        or not {*mask.dims} <= {"unit", "head"}
    ):
        found = f"{mask.dtype} over {mask.dims}" if isinstance(mask, xr.DataArray) else type(mask).__name__
        raise SchemaError(
            f"found a mask of {found}, and booleans over unit and head, or one of them, were needed; make one by "
            "percentile_mask(pair_norms(…), 90), or of an array by xr.DataArray(mask, dims=('head', 'unit'))"
        )
    for dim in mask.dims:
        if mask.sizes[dim] != cube.sizes[dim]:
            raise SchemaError(
                f"found a mask of {mask.sizes[dim]} along {dim!r} and scalars of {cube.sizes[dim]}; make it of the "
                "norms of the same pairs"
            )
        if dim in mask.indexes and dim in cube.indexes and not mask.indexes[dim].equals(cube.indexes[dim]):
            raise SchemaError(f"mask and scalars name other pairs along {dim!r}; make it of the norms of these pairs")
    return mask


def _classes(embedding: xr.DataArray, texts: Any, labels: npt.ArrayLike) -> tuple[Array, Array]:
    """Return unit vectors (class, feature) and labels (sample,), checked."""
    if not isinstance(embedding, xr.DataArray) or set(embedding.dims) != {"sample", "feature"}:
        found = embedding.dims if isinstance(embedding, xr.DataArray) else type(embedding).__name__
        raise SchemaError(f"found {found}, and embeddings (sample, feature) were needed; ablate(…), reconstruct(…)")
    vectors = directed(texts, xr.Dataset({"embedding": embedding}))
    if vectors.ndim != 2:
        raise SchemaError(f"found texts over {vectors.dims}, and (class, feature) was needed")
    rows = vectors.transpose(..., "feature").to_numpy()
    given = np.asarray(labels)
    if given.shape != (embedding.sizes["sample"],) or given.dtype.kind not in "iu":
        raise SchemaError(
            f"found labels of {given.dtype} and shape {given.shape}, and {embedding.sizes['sample']} whole numbers "
            "were needed: the row of the texts that is right for each image"
        )
    if ((given < 0) | (given >= len(rows))).any():
        raise SchemaError(
            f"found labels from {given.min()} to {given.max()} and {len(rows)} classes; give a text for each class"
        )
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise SchemaError("the vector of a class is 0 or NaN; embed its text again")
    return rows / lengths, given
