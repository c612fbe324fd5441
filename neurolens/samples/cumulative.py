"""Sums and means over the series: cumulative sample loss and gradient, area under the margin, curvature."""

from typing import Any, Literal

import numpy as np
import xarray as xr

from neurolens.samples import kernels
from neurolens.samples.inputs import Exposure, Inputs, OnMissing, choice, inputs
from neurolens.samples.scan import Block, Rule, State, divide


def csl(
    ds: xr.Dataset,
    *,
    dim: str | None = None,
    exposure: Exposure = "respect",
    missing: OnMissing = "error",
    compat: Literal["seed"] | None = None,
) -> xr.Dataset:
    """Cumulative sample loss: the sum of each sample's loss over the series.

    Parameters
    ----------
    ds : Dataset with `loss` (series, sample), nat
        NaN is *not measured*. With a class schedule, `exposed` (series, class) and `label` (sample) as coordinates.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever ``ds`` has.
    exposure : {"respect", "all"}
        Count a sample from its class's introduction on, or at every checkpoint, as the reference does.
    missing : {"error", "drop"}
        Raise where a loss is missing, or leave it out; then compare samples by `csl_mean`.
    compat : "seed" or None
        The reference's float32 sums over every checkpoint (implies ``exposure="all"``).

    Returns
    -------
    Dataset over `sample`, lazy if ``ds`` is
        `csl` (nat), `csl_mean` (nat) and `n_epochs`, the checkpoints counted; NaN, NaN and 0 where there are none.

    Raises
    ------
    MissingMeasurementError
        Naming the checkpoints without a loss; at compute time where only the data can tell.

    References
    ----------
    Ravikumar et al., ICML 2025.
    """
    choice("compat", compat or "seed", "seed")
    given = inputs(ds, "loss", dim=dim, exposure="all" if compat == "seed" else exposure, missing=missing)
    if compat == "seed":
        total, count = given.fold(Rule(_start_sums32, _step_sums32, _finish_sums), 2)
    else:
        total, count = _sums(given, 1)
    return given.dataset(csl=total, csl_mean=divide(total, count), n_epochs=count)


def csg(
    ds: xr.Dataset,
    *,
    variable: str = "grad_norm",
    dim: str | None = None,
    exposure: Exposure = "respect",
    missing: OnMissing = "error",
) -> xr.DataArray:
    """Cumulative sample gradient: the sum of each sample's squared gradient norm over the series.

    Parameters
    ----------
    ds : Dataset with ``variable`` (series, sample)
    variable : str
        `grad_norm`, `grad_norm_pixel` or `grand`.
    dim, exposure, missing
        As for :func:`csl`.

    Returns
    -------
    csg : (sample,), squared units of the gradient, lazy if ``ds`` is
        NaN where no checkpoint counts.

    Raises
    ------
    MissingMeasurementError
        Naming the checkpoints without a gradient.
    """
    given = inputs(ds, variable, dim=dim, exposure=exposure, missing=missing)
    return given.result(_sums(given, 2)[0], "csg")


def aum(
    ds: xr.Dataset, *, dim: str | None = None, exposure: Exposure = "respect", missing: OnMissing = "error"
) -> xr.DataArray:
    """Area under the margin: the mean over the series of the label's logit minus the largest other one.

    Measured on saved checkpoints in evaluation mode; the paper averages over training passes.

    Parameters
    ----------
    ds : Dataset with `margin` (series, sample), logit
    dim, exposure, missing
        As for :func:`csl`.

    Returns
    -------
    aum : (sample,), logit, lazy if ``ds`` is
        Low where other labels win. NaN where no checkpoint counts.

    Raises
    ------
    MissingMeasurementError
        Naming the checkpoints without a margin.

    References
    ----------
    Pleiss et al. 2020, "Identifying Mislabeled Data using the Area Under the Margin Ranking", eq. 2.
    """
    given = inputs(ds, "margin", dim=dim, exposure=exposure, missing=missing)
    return given.result(divide(*_sums(given, 1)), "aum")


def curvature(
    ds: xr.Dataset,
    *,
    how: Literal["mean", "sum"] = "mean",
    dim: str | None = None,
    exposure: Exposure = "respect",
    missing: OnMissing = "error",
) -> xr.DataArray:
    """Input-loss curvature of each sample over the series.

    Parameters
    ----------
    ds : Dataset with `curvature` (series, sample)
        The opt-in measurement, per sample: it does not depend on the batch size.
    how : {"mean", "sum"}
        Mean over the series, as in the paper, or sum.
    dim, exposure, missing
        As for :func:`csl`.

    Returns
    -------
    curvature : (sample,), the measurement's units, lazy if ``ds`` is
        NaN where no checkpoint counts.

    Raises
    ------
    MissingMeasurementError
        Naming the checkpoints without a curvature.

    References
    ----------
    Garg et al. 2023, "Memorization Through the Lens of Curvature of Loss Function Around Samples".
    """
    choice("how", how, "mean", "sum")
    given = inputs(ds, "curvature", dim=dim, exposure=exposure, missing=missing)
    total, count = _sums(given, 1)
    return given.result(total if how == "sum" else divide(total, count), "curvature")


def _sums(given: Inputs, power: int) -> list[Any]:
    if given.plain and power == 1:
        return given.fold(Rule(_start_plain, _step_plain, _finish_plain), 2)
    return given.fold(Rule(_start_sums, _step_sums, _finish_sums), 2, given=(power,))


def _start_plain(width: int, codes: Any) -> State:
    return np.zeros(width), np.zeros(1)


def _step_plain(state: State, blocks: tuple[Block, ...], exposed: Any, done: int) -> Any:
    total, rows = state
    kernels.add(*blocks[0], total)
    rows[0] = done + len(blocks[0].values)
    # NaN spreads into the total, so that only a failing block is searched for its rows
    return blocks[0].missing(len(total)) if np.isnan(total).any() else ()


def _finish_plain(state: State) -> tuple[Any, ...]:
    total, rows = state
    return total, np.full(len(total), rows[0])


def _start_sums(width: int, codes: Any, power: int) -> State:
    return codes, power, np.zeros(width), np.zeros(width, np.int32)


def _step_sums(state: State, blocks: tuple[Block, ...], exposed: Any, done: int) -> Any:
    codes, power, total, count = state
    lost = np.zeros(len(blocks[0].values), np.int64)
    kernels.add_present(*blocks[0], power, exposed, codes, total, count, lost)
    return lost


def _start_sums32(width: int, codes: Any) -> State:
    return codes, 1, np.zeros(width, np.float32), np.zeros(width, np.int32)


_step_sums32 = _step_sums


def _finish_sums(state: State) -> tuple[Any, ...]:
    total, count = state[2].astype(np.float64), state[3].astype(np.float64)
    return np.where(count > 0, total, np.nan), count
