"""What a sample does over the series: forgetting events and data-map statistics."""

from typing import Any

import numpy as np
import xarray as xr

from neurolens.samples import kernels
from neurolens.samples.inputs import Exposure, OnMissing, inputs
from neurolens.samples.scan import Block, Rule, State, divide


def forgetting(
    ds: xr.Dataset, *, dim: str | None = None, exposure: Exposure = "respect", missing: OnMissing = "error"
) -> xr.Dataset:
    """Forgetting events, and when each sample is first and finally learned.

    A presentation is a checkpoint that counts for the sample; they are numbered from 0.

    Parameters
    ----------
    ds : Dataset with `correct` (series, sample), 1 or 0
        NaN is *not measured*.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever ``ds`` has.
    exposure : {"respect", "all"}
        Count a sample from its class's introduction on, or at every checkpoint.
    missing : {"error", "drop"}
        Raise where a value is missing, or leave that presentation out.

    Returns
    -------
    Dataset over `sample`, lazy if ``ds`` is
        `forgetting_events` (correct, then wrong at the next presentation; NaN for a sample that is never correct),
        `first_learned` (NaN if never), `never_learned` (1, 0; NaN where nothing counts), `presentations_needed`
        (after which it stays correct, all of them if it ends wrong; NaN if never correct) and `n_epochs`.

    Raises
    ------
    MissingMeasurementError
        Naming the checkpoints without `correct`.

    References
    ----------
    Toneva et al. 2019, "An Empirical Study of Example Forgetting during Deep Neural Network Learning".
    """
    given = inputs(ds, "correct", dim=dim, exposure=exposure, missing=missing)
    count, right, events, first, _, wrong = given.fold(_PRESENTATIONS, 6)
    learned = right > 0
    return given.dataset(
        forgetting_events=np.where(learned, events, np.nan),
        first_learned=np.where(learned, first, np.nan),
        never_learned=np.where(count > 0, (~learned).astype("float64"), np.nan),
        presentations_needed=np.where(learned, wrong + 1, np.nan),
        n_epochs=count,
    )


def second_split_forgetting(
    ds: xr.Dataset, *, dim: str | None = None, exposure: Exposure = "respect", missing: OnMissing = "error"
) -> xr.DataArray:
    """First presentation from which on a sample stays wrong, while the run trains on other data.

    Parameters
    ----------
    ds : Dataset with `correct` (series, sample)
        Measured on first-split samples over the checkpoints of the training on the second split.
    dim, exposure, missing
        As for :func:`forgetting`.

    Returns
    -------
    second_split_forgetting : (sample,), presentation, lazy if ``ds`` is
        0 where it is wrong throughout; NaN where it is correct at the end (not forgotten), or nothing counts.

    Raises
    ------
    MissingMeasurementError
        Naming the checkpoints without `correct`.

    References
    ----------
    Maini et al. 2022, "Characterizing Datapoints via Second-Split Forgetting", definition 2.
    """
    given = inputs(ds, "correct", dim=dim, exposure=exposure, missing=missing)
    count, _, _, _, last_right, _ = given.fold(_PRESENTATIONS, 6)
    at = last_right + 1
    return given.result(np.where(at < count, at, np.nan), "second_split_forgetting")


def cartography(
    ds: xr.Dataset, *, dim: str | None = None, exposure: Exposure = "respect", missing: OnMissing = "error"
) -> xr.Dataset:
    """Data-map statistics: how sure, how steady and how right the run is about each sample.

    Parameters
    ----------
    ds : Dataset with `p_true` and, for correctness, `correct` (series, sample)
        NaN is *not measured*.
    dim, exposure, missing
        As for :func:`forgetting`.

    Returns
    -------
    Dataset over `sample`, lazy if ``ds`` is
        `confidence` (mean p), `variability` (standard deviation of p, ddof 0), `variability_ci`
        (sqrt(var + var² / (n − 1)); NaN for n < 2), `correctness` (checkpoints correct, if `correct` is there),
        `threshold_closeness` (c (1 − c)) and `n_epochs`. NaN where no checkpoint counts.

    Raises
    ------
    MissingMeasurementError
        Naming the checkpoints without `p_true` or `correct`.

    References
    ----------
    Swayamdipta et al. 2020, "Dataset Cartography", section 2.
    """
    given = inputs(ds, "p_true", dim=dim, exposure=exposure, missing=missing)
    count, mean, variance = given.fold(_MOMENTS, 3)
    results = {
        "confidence": mean,
        "variability": variance**0.5,
        "variability_ci": (variance + divide(variance**2, count - 1)) ** 0.5,
        "threshold_closeness": mean * (1 - mean),
        "n_epochs": count,
    }
    if "correct" in ds:
        right = inputs(ds, "correct", dim=dim, exposure=exposure, missing=missing)
        seen, correct = right.fold(_PRESENTATIONS, 2)
        results["correctness"] = np.where(seen > 0, correct, np.nan)
    return given.dataset(**results)


def _start_presentations(width: int, codes: Any) -> State:
    counts = [np.zeros(width, np.int32) for _ in range(3)]
    never = [np.full(width, -1, np.int32) for _ in range(3)]
    return codes, *counts, *never


def _step_presentations(state: State, blocks: tuple[Block, ...], exposed: Any, done: int) -> Any:
    lost = np.zeros(len(blocks[0].values), np.int64)
    codes, count, right, events, first, last_right, last_wrong = state
    kernels.presentations(*blocks[0], exposed, codes, count, right, events, first, last_right, last_wrong, lost)
    return lost


def _finish_presentations(state: State) -> tuple[Any, ...]:
    return tuple(carry.astype(float) for carry in state[1:])


def _start_moments(width: int, codes: Any) -> State:
    return codes, np.zeros(width), np.zeros(width), np.zeros(width), np.zeros(width, np.int32)


def _step_moments(state: State, blocks: tuple[Block, ...], exposed: Any, done: int) -> Any:
    lost = np.zeros(len(blocks[0].values), np.int64)
    codes, first, shift, square, count = state
    kernels.moments(*blocks[0], exposed, codes, first, shift, square, count, lost)
    return lost


def _finish_moments(state: State) -> tuple[Any, ...]:
    _, first, shift, square, count = state
    n = np.where(count > 0, count, np.nan)
    return count.astype(float), first + shift / n, np.maximum(square / n - (shift / n) ** 2, 0.0)


_PRESENTATIONS = Rule(_start_presentations, _step_presentations, _finish_presentations)
_MOMENTS = Rule(_start_moments, _step_moments, _finish_moments)
