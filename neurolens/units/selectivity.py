"""What units respond to: classes, few observations or many, positions in a text."""

from typing import Any, Literal

import numpy as np
import xarray as xr
from scipy.special import rel_entr

from neurolens.errors import SchemaError
from neurolens.units.inputs import OnMissing, choice, measured, named, require_mask
from neurolens.units.layers_of import whole


def class_selectivity(
    units: xr.Dataset,
    *,
    of: Literal["mean", "absolute"] = "mean",
    missing: OnMissing = "error",
    dim: str | None = None,
) -> xr.DataArray:
    """Say how much more a unit responds to its preferred class than to the others.

    (µ_max − µ_rest) / (µ_max + µ_rest), with µ_max the largest of the class means and µ_rest the mean of the others.

    Parameters
    ----------
    units : Dataset with `class_n` and `class_sum` (series, class, unit)
        A class without samples is left out.
    of : {"mean", "absolute"}
        Means of the activations, or of their absolute values (reads `class_abs_sum`), which suits units that can be
        negative.
    missing : {"error", "drop"}
        Raise where a checkpoint was not measured, or leave it out.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever ``units`` has.

    Returns
    -------
    class_selectivity : (series, unit), dimensionless, lazy if ``units`` is
        0 for no preference (a silent unit has none), 1 for a unit that responds to one class only, where class means
        are not negative. NaN where fewer than two classes have samples, a sum is not finite, or µ_max + µ_rest is not
        positive and the classes differ.

    Raises
    ------
    SchemaError
        If an option is unknown or a dim is missing.
    MissingMeasurementError
        If sums per class were not measured, or checkpoints were not, naming them.

    References
    ----------
    Morcos et al. 2018, "On the Importance of Single Directions for Generalization", section 2.3.
    """
    means = _class_means(units, of, missing, dim)
    index: xr.DataArray = xr.apply_ufunc(
        _selectivity, *means, input_core_dims=[["class"]] * 2, dask="parallelized", output_dtypes=[np.float64]
    )
    return named(index, "class_selectivity", units, of=of)


def preferred_class(
    units: xr.Dataset,
    *,
    of: Literal["mean", "absolute"] = "mean",
    missing: OnMissing = "error",
    dim: str | None = None,
) -> xr.DataArray:
    """Return the position along `class` of the class that a unit responds to most.

    Parameters
    ----------
    units, of, missing, dim
        As for :func:`class_selectivity`.

    Returns
    -------
    preferred_class : (series, unit), position along `class`, lazy if ``units`` is
        The first of several that are equal. NaN where no class has samples, or a sum is not finite.

    Raises
    ------
    SchemaError, MissingMeasurementError
        As for :func:`class_selectivity`.
    """
    means = _class_means(units, of, missing, dim)
    found: xr.DataArray = xr.apply_ufunc(
        _preferred, *means, input_core_dims=[["class"]] * 2, dask="parallelized", output_dtypes=[np.float64]
    )
    return named(found, "preferred_class", units, of=of)


def dormant_for_one(mask: xr.DataArray) -> xr.DataArray:
    """Say which units are dormant for one class and no other.

    Parameters
    ----------
    mask : bool (…, class, unit)
        ``neurolens.dormant(units, …, per_class=True)``.

    Returns
    -------
    dormant : bool, as ``mask``, lazy if it is
        True at the only class for which the unit is dormant.

    Raises
    ------
    SchemaError
        If the mask is not bool, or lacks the dim `class` or has but one class.
    """
    require_mask(mask)
    if mask.sizes.get("class", 0) < 2:
        raise SchemaError(
            f"the mask has {dict(mask.sizes)}; two classes or more are needed: dormant(units, per_class=True)"
        )
    out = (mask & (mask.sum("class") == 1)).transpose(*mask.dims).rename("dormant")
    out.attrs = mask.attrs | {"long_name": "whether the unit is dormant for this class and no other"}
    return out


def lifetime_sparseness(units: xr.Dataset, *, missing: OnMissing = "error", dim: str | None = None) -> xr.DataArray:
    """Say whether a unit's activity is concentrated in few observations: (1 − E[a]² / E[a²]) / (1 − 1/n).

    Parameters
    ----------
    units : Dataset with `n`, `mean` and `m2` (series, unit)
    missing, dim
        As for :func:`class_selectivity`.

    Returns
    -------
    lifetime_sparseness : (series, unit), dimensionless, lazy if ``units`` is
        0 where every observation is the same, 1 where all but one are 0. NaN for a silent unit, which is neither, for a
        single observation, and where statistics are not finite. An observation is a position of a map or a token.

    Raises
    ------
    SchemaError
        If a dim is missing.
    MissingMeasurementError
        If a statistic was not measured, or checkpoints were not, naming them.

    References
    ----------
    Vinje and Gallant 2000, "Sparse Coding and Decorrelation in Primary Visual Cortex During Natural Vision".
    """
    found = measured(units, "n", "mean", "m2", missing=missing, dim=dim)
    sparseness: xr.DataArray = xr.apply_ufunc(
        _sparseness, found["n"], found["mean"], found["m2"], dask="parallelized", output_dtypes=[np.float64]
    )
    return named(sparseness, "lifetime_sparseness", units)


def positional_information(
    units: xr.Dataset, *, min_texts: int = 1, missing: OnMissing = "error", dim: str | None = None
) -> xr.DataArray:
    """Mutual information between a unit's firing and the position of the token, positions counting alike.

    With fr_p the share of texts in which the unit is above zero at position p, and fr their mean over T positions:
    1/T · Σ_p [fr_p ln(fr_p / fr) + (1 − fr_p) ln((1 − fr_p) / (1 − fr))].

    Parameters
    ----------
    units : Dataset with `position_n` (series, position) and `position_n_pos` (series, unit, position)
    min_texts : int
        Positions that fewer texts reach are left out. The information is biased upwards by about 1 / (2 · texts).
    missing, dim
        As for :func:`class_selectivity`.

    Returns
    -------
    positional_information : (series, unit), nat, lazy if ``units`` is
        0 for a unit that fires everywhere alike (or never), at most ln 2. NaN where no position has enough texts. The
        paper calls a unit positional from 0.05 on.

    Raises
    ------
    SchemaError
        If a dim is missing or ``min_texts`` is below 1.
    MissingMeasurementError
        If positions were not measured, or checkpoints were not, naming them.

    References
    ----------
    Voita et al. 2023, "Neurons in Large Language Models: Dead, N-gram, Positional", section 5.1.
    """
    if min_texts < 1:
        raise SchemaError(f"min_texts={min_texts} leaves positions in that no text has; give 1 or more")
    found = measured(units, "position_n_pos", "position_n", missing=missing, dim=dim, needs=("unit", "position"))
    information: xr.DataArray = xr.apply_ufunc(
        _information,
        *(whole(found[name], "position") for name in ("position_n_pos", "position_n")),
        input_core_dims=[["position"]] * 2,
        kwargs={"min_texts": min_texts},
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    return named(information, "positional_information", units)


def _class_means(units: xr.Dataset, of: str, missing: OnMissing, dim: str | None) -> list[xr.DataArray]:
    choice("of", of, "mean", "absolute")
    total = "class_sum" if of == "mean" else "class_abs_sum"
    found = measured(units, total, "class_n", missing=missing, dim=dim, needs=("unit", "class"))
    return [whole(found[name], "class") for name in (total, "class_n")]


def _selectivity(total: Any, n: Any) -> Any:
    seen, classes = n > 0, (n > 0).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = total / n
        largest = np.where(seen, means, -np.inf).max(axis=-1)
        others = (np.where(seen, means, 0.0).sum(axis=-1) - largest) / (classes - 1)
        others = np.where(np.isfinite(np.where(seen, means, 0.0)).all(axis=-1), others, np.nan)
        index = np.where(largest + others > 0, (largest - others) / (largest + others), np.nan)
    return np.where((classes > 1) & (largest == others), 0.0, np.where(classes > 1, index, np.nan))


def _preferred(total: Any, n: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.where(n > 0, total / n, -np.inf)
    known = (n > 0).any(axis=-1) & ~np.isnan(means).any(axis=-1)
    return np.where(known, means.argmax(axis=-1), np.nan)


def _sparseness(n: Any, mean: Any, m2: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = m2 / n  # 1 − E[a]² / E[a²] is the variance's share of E[a²], without the cancellation
        return (variance / (variance + mean**2)) / (1 - 1 / n)


def _information(fired: Any, shown: Any, min_texts: int) -> Any:
    counts = np.broadcast_to(shown >= min_texts, fired.shape)
    positions = counts.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where(counts, fired / shown, 0.0)
        mean = rate.sum(axis=-1, keepdims=True) / positions
        # rounding may put the mean of ones above one, and rel_entr to infinity
        mean = np.minimum(mean, 1.0)
        terms = np.where(counts, rel_entr(rate, mean) + rel_entr(1 - rate, 1 - mean), 0.0)
        return np.maximum(terms.sum(axis=-1) / positions[..., 0], 0.0)
