"""Learning time: for how much of the series a sample's running mean gradient norm stays at or above a threshold."""

from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import dask.array
import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.errors import SchemaError
from neurolens.samples import kernels
from neurolens.samples.inputs import Exposure, Inputs, OnMissing, choice, inputs, stored_counts
from neurolens.samples.scan import Block, Rule, State, as_block, divide, share, threads

da: Any = dask.array  # its functions are not typed

# R and tau are sums taken in different orders: what differs by rounding alone is a tie, and a tie is not below
TIE = 1e-12
AGREEMENT = 1e-6


def learning_time(
    ds: xr.Dataset,
    *,
    variable: str = "grad_norm",
    tau: float | None = None,
    per_class: bool = False,
    dim: str | None = None,
    exposure: Exposure = "respect",
    missing: OnMissing = "error",
    compat: Literal["seed"] | None = None,
) -> xr.Dataset:
    """Share of the series at which a sample's running mean gradient norm is not below a threshold.

    With R[e] the mean of the gradient norm over the checkpoints counted up to e, learning time is 1 − mean(R < tau),
    strict, and tau defaults to the mean of R over all checkpoints and samples. Checkpoints are counted, not epoch
    numbers: gaps and unequal strides carry equal weight.

    Parameters
    ----------
    ds : Dataset with ``variable`` (series, sample)
        NaN is *not measured*. The store's sums per (series, class) give tau without a pass over the data where they
        cover exactly these samples; the pass then checks that they describe this data.
    variable : str
        `grad_norm` (normalised input space), `grad_norm_pixel` or `grand`.
    tau : float, optional
        A threshold to use instead, in the units of ``variable``.
    per_class : bool
        One threshold per class, the mean over its samples. Needs `label` and `class` coordinates.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever ``ds`` has.
    exposure : {"respect", "all"}
        Count a sample from its class's introduction on, or at every checkpoint, as the reference does.
    missing : {"error", "drop"}
        Raise where a gradient is missing, or leave that checkpoint out for that sample, in R and in tau.
    compat : "seed" or None
        The reference: a loss stands in for a missing gradient, running sums are float32 (implies ``exposure="all"``).

    Returns
    -------
    Dataset, lazy if ``ds`` is
        `learning_time` (sample) in [0, 1], NaN where no checkpoint counts; `learning_tau` () or (class), units of
        ``variable``; `n_epochs` (sample). The attribute `epochs` lists the checkpoints used.

    Raises
    ------
    MissingMeasurementError
        Naming the checkpoints without gradients; at compute time where only the data can tell.
    SchemaError
        If the stored sums do not describe this data (it was scaled or resampled); at compute time under dask.

    References
    ----------
    Ravikumar et al., ICML 2025. tau in closed form: Σ_s w_s mean(g_s), w_s = (1/T) Σ_{t ≥ s} 1/t.
    """
    choice("compat", compat or "seed", "seed")
    seed = compat == "seed"
    if tau is not None and not np.isfinite(tau):
        raise SchemaError(f"tau={tau} is no threshold; give a finite number, or leave it out to take it from the data")
    if tau is None and not ds.sizes.get("sample", 1):
        raise SchemaError("there are no samples to take tau from; select at least one, or give tau")
    if per_class and (tau is not None or seed):
        raise SchemaError(f"per_class=True takes its thresholds from the data; leave out {'compat' if seed else 'tau'}")
    given = inputs(
        ds,
        variable,
        dim=dim,
        exposure="all" if seed else exposure,
        missing="drop" if seed else missing,
        per_class=per_class,
    )
    stored = None if tau is not None or seed else _stored(given)
    threshold: Any = tau
    if seed:
        schema.require(ds, "loss", dim=given.dim)
        given = replace(given, missing=replace(given.missing, variable="loss", allowed=False))
        threshold = _tau_by_scan(given, _SEED, False) if tau is None else tau
        below, count, means = given.fold(_SEED, 3, given=(threshold,), more=("loss",))
    elif given.plain:
        weights = _closed_weights(len(given.missing.labels))
        check = None
        if stored is not None:
            sums = stored[0].sum(axis=1) / stored[1].sum()
            threshold = float(weights @ sums)
            check = _check_weights(sums, threshold)
        elif tau is None:
            threshold = (weights * _row_sums(given)).sum() / ds.sizes["sample"]
        below, count, means = given.fold(_PLAIN, 3, given=(_limit(threshold), check))
    else:
        if stored is not None:
            threshold = _closed_tau(*stored, per_class)
        elif tau is None:
            threshold = _tau_by_scan(given, _PRESENT, per_class)
        below, count, means = given.fold(_PRESENT, 3, given=(_limit(threshold),))
    share = 1.0 - divide(below, count)
    if stored is not None:
        share = _guard(share, _mean_by(given, means, count, per_class), threshold)
    given.attrs.update(variable=variable, compat=compat or "", missing="loss" if seed else missing)
    given.attrs["epochs"] = [np.asarray(e).item() for e in _kept(given)]
    given.attrs["tau_from"] = "given" if tau is not None else "stored sums" if stored is not None else "data"
    out = given.dataset(learning_time=share, n_epochs=count)
    if per_class and "class" in ds.coords:
        out = out.assign_coords({"class": ds.coords["class"]})
    units = {"units": given.array.attrs["units"]} if "units" in given.array.attrs else {}
    threshold = threshold if isinstance(threshold, da.Array) else np.asarray(threshold, dtype="float64")
    out["learning_tau"] = (("class",) if per_class else (), threshold, schema.RESULTS["learning_tau"].attrs | units)
    return out


def _limit(tau: Any) -> Any:
    return tau * (1 - TIE * np.sign(tau))


def _closed_weights(rows: int) -> Any:
    return np.cumsum(1.0 / np.arange(rows, 0, -1))[::-1] / rows


def _check_weights(sums: Any, tau: float) -> Any:
    """Weigh the running sum at some rows, so that unaltered data gives tau again without another read of it."""
    rows = len(sums)
    stride = 1 if rows <= 2 * kernels.ROWS else kernels.ROWS * -(-rows // (8 * kernels.ROWS))
    marks = np.unique([*range(stride - 1, rows, stride), rows - 1])
    weights = np.zeros(rows)
    weights[marks] = rows / (marks + 1)
    found = float(weights @ np.cumsum(sums)) / rows
    return weights * (tau / found) if found else weights


def _closed_tau(sums: Any, sizes: Any, exposed: Any, per_class: bool) -> Any:
    rank = np.cumsum(exposed, axis=0)
    share = np.where(exposed, 1.0 / np.maximum(rank, 1), 0.0)
    weights = np.where(exposed, np.cumsum(share[::-1], axis=0)[::-1], 0.0)
    total, terms = (weights * sums).sum(axis=0), rank[-1] * sizes
    return divide(total, terms) if per_class else float(divide(total.sum(), terms.sum()))


def _kept(given: Inputs) -> list[Any]:
    counts = stored_counts(given.ds, given.variable, given.dim)
    labels = given.missing.labels
    if counts is None or given.attrs["missing"] == "loss":
        return list(labels)
    return [e for e, n in zip(labels, counts.sum("class").data) if n > 0]


def _stored(given: Inputs) -> tuple[Any, Any, Any] | None:
    """Return sums (row, class), class sizes and exposure, where they cover exactly the samples at hand."""
    counts = stored_counts(given.ds, given.variable, given.dim)
    if counts is None or f"{given.variable}_sum" not in given.ds.coords:
        return None
    sums = given.ds.coords[f"{given.variable}_sum"]
    if isinstance(sums.data, da.Array):
        return None
    if "sample" not in given.ds.indexes or not given.ds.indexes["sample"].is_unique:
        return None
    kept = np.flatnonzero(counts.sum("class").data)
    sizes = counts.data[kept[0]]
    if (counts.data[kept] != sizes).any() or sizes.sum() != given.ds.sizes["sample"]:
        return None
    table = np.ones(counts.shape, bool)
    if given.exposed is not None:
        if isinstance(given.exposed.data, da.Array):
            return None
        table = given.exposed.transpose(given.dim, "class").data
    return sums.transpose(given.dim, "class").data[kept], sizes, table[kept]


def _tau_by_scan(given: Inputs, rule: Rule, per_class: bool) -> Any:
    more = ("loss",) if rule is _SEED else ()
    classes = given.ds.sizes["class"] if per_class else 0
    nothing = np.zeros(classes) if per_class else 0.0
    _, count, means = given.fold(rule, 3, given=(nothing,), more=more)
    return _mean_by(given, means, count, per_class)


def _mean_by(given: Inputs, means: Any, count: Any, per_class: bool) -> Any:
    if not per_class:
        total, terms = means.sum(), count.sum()
    else:
        assert given.codes is not None
        total, terms = (_class_sums(x, given.codes.data, given.ds.sizes["class"]) for x in (means, count))
    return divide(total, terms)


def _class_sums(values: Any, codes: Any, classes: int) -> Any:
    if not isinstance(values, da.Array):
        return np.bincount(codes, weights=values, minlength=classes)
    codes = codes if isinstance(codes, da.Array) else da.from_array(codes)
    return da.map_blocks(
        np.bincount,
        codes.rechunk(-1),
        values.rechunk(-1),
        minlength=classes,
        chunks=((classes,),),
        dtype="float64",
        meta=np.empty(0),
    )


def _guard(result: Any, seen: Any, tau: Any) -> Any:
    gap = np.abs(seen - tau)
    gap = np.where(np.isnan(gap), 0.0, gap).max() / max(float(np.nanmax(np.append(np.abs(tau), 0.0))), 1e-300)
    if isinstance(result, da.Array):
        return da.map_blocks(_agreeing, result, gap.reshape(1), dtype="float64", meta=np.empty(0))
    return _agreeing(result, gap)


def _agreeing(result: Any, gap: Any) -> Any:
    if np.max(gap) > AGREEMENT:
        raise SchemaError(
            f"the stored sums give a tau that is {np.max(gap):.1%} off this data's: it was scaled, masked or resampled "
            "since; drop them, e.g. ds.drop_vars(['grad_norm_sum', 'grad_norm_count']), and tau is taken from the data"
        )
    return result


def _row_sums(given: Inputs) -> Any:
    array = given.array.transpose(given.dim, "sample").data
    if isinstance(array, da.Array):
        columns = array.numblocks[1]
        parts = da.map_blocks(_block_sums, array, chunks=(array.chunks[0], (1,) * columns), dtype="float64")
        return parts.sum(axis=1)
    rows = max(1, 2**20 // max(1, array.shape[1]))
    pieces = [array[low : low + rows] for low in range(0, array.shape[0], rows)]
    sums = np.concatenate(share(_block_sums, pieces, threads()))[:, 0]
    given.missing.check(np.flatnonzero(np.isnan(sums)))
    return sums


def _block_sums(values: Any) -> Any:
    return _strip_sums(as_block(values, 0, values.shape[1]), values.shape[1])[:, None]


def _strip_sums(block: Block, width: int) -> Any:
    sums = np.empty(len(block.values))
    kernels.row_sums(*block, width, sums)
    return sums


def _start_plain(width: int, codes: Any, tau: Any, check: Any) -> State:
    return float(tau), check, np.zeros(width), np.zeros(width, np.int32), np.zeros(2)


def _step_plain(state: State, blocks: tuple[Block, ...], exposed: Any, done: int) -> Any:
    tau, check, total, below, seen = state
    values, at = blocks[0]
    rows = len(values)
    marks = [] if check is None else (np.flatnonzero(check[done : done + rows]) + 1).tolist()
    for low, high in pairwise(dict.fromkeys([0, *marks, rows])):
        kernels.running(values[low:high], at, done + low, tau, total, below)
        if check is not None:
            seen[1] += check[done + high - 1] * total.sum()
    seen[0] = done + rows
    return blocks[0].missing(len(total)) if np.isnan(total).any() else ()


def _finish_plain(state: State) -> tuple[Any, ...]:
    below, (rows, means) = state[3], state[4]
    width = len(below)
    return below.astype(float), np.full(width, rows), np.full(width, means / max(1, width))


def _start_present(width: int, codes: Any, tau: Any) -> State:
    tau = np.asarray(tau, dtype=float)
    limit = tau[codes] if tau.ndim else np.full(width, tau)
    return codes, limit, np.zeros(width), np.zeros(width, np.int32), np.zeros(width, np.int32), np.zeros(width)


def _step_present(state: State, blocks: tuple[Block, ...], exposed: Any, done: int) -> Any:
    codes, limit, total, count, below, means = state
    lost = np.zeros(len(blocks[0].values), np.int64)
    kernels.running_present(*blocks[0], exposed, codes, limit, total, count, below, means, lost)
    return lost


def _finish_present(state: State) -> tuple[Any, ...]:
    _, _, _, count, below, means = state
    return below.astype(float), count.astype(float), means


def _start_seed(width: int, codes: Any, tau: Any) -> State:
    zeros = np.zeros(width)
    return np.full(width, float(tau)), np.zeros(width, np.float32), np.zeros(width, np.int32), zeros, np.zeros(1)


def _step_seed(state: State, blocks: tuple[Block, ...], exposed: Any, done: int) -> Any:
    tau, total, below, means, rows = state
    lost = np.zeros(len(blocks[0].values), np.int64)
    kernels.running_seed(*blocks[0], *blocks[1], done, tau, total, below, means, lost)
    rows[0] = done + len(blocks[0].values)
    return lost


def _finish_seed(state: State) -> tuple[Any, ...]:
    _, _, below, means, rows = state
    return below.astype(float), np.full(len(below), rows[0]), means


_PLAIN = Rule(_start_plain, _step_plain, _finish_plain)
_PRESENT = Rule(_start_present, _step_present, _finish_present)
_SEED = Rule(_start_seed, _step_seed, _finish_seed)
