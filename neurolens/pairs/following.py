"""Pairs through training: how what they write turns and grows, and which phrases it is near to at each checkpoint."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens import schema
from neurolens.errors import MissingCheckpointError, MissingMeasurementError, SchemaError, nearest
from neurolens.pairs.opened import cubes_of, phrase_set
from neurolens.pairs.writing import DIMS, vector_norms

Array = npt.NDArray[Any]
Run = str | os.PathLike[str] | xr.Dataset | xr.DataTree
_FIXED = ("value", "output")


def direction_change(run: Run, *, reference: int | None = None) -> xr.Dataset:
    """Follow the fixed vector of every pair through training: how it turns, and how it grows. Lazy over the series.

    Parameters
    ----------
    run
        The store's folder or URL, the opened tree, or the cube `pools` of it; of some pairs, select them in the cube by
        lists: ``pools.isel(unit=[37], head=[2])``.
    reference
        The checkpoint that all are compared with; by default the last one measured.

    Returns
    -------
    Dataset over (series, unit, head), float64
        ``norm``: ‖u‖, in the unit of the embedding per unit of the activation. ``growth``: ‖u‖ over that of the
        checkpoint before. ``turn``: the cosine of u with that of the checkpoint before, 1 where it has not turned.
        ``cosine``: with that of the reference. With totals also ``spread``: the standard deviation of the pair's
        contributions over the images, std(s)·‖u‖. NaN at checkpoints that were not measured, ``growth`` and ``turn``
        also at the first and at the one after those; a cosine is NaN where a vector is 0.

    Raises
    ------
    MissingMeasurementError
        If there is no pools cube, or nothing in it.
    MissingCheckpointError
        If there is no such reference.
    SchemaError
        If it is no cube of pools over checkpoints.

    Notes
    -----
    With u = Wo_h Wv_h[:, n], two checkpoints have ⟨u, u'⟩ = Wv_h[:, n]ᵀ (Wo_hᵀ Wo'_h) Wv'_h[:, n]: the matrix in the
    middle is that of the dims of a head, and no vector of the embedding is made.
    """
    pools, dim = _pools(run)
    place = _reference(pools, dim, reference)
    fixed = [pools[name].chunk({d: -1 for d in pools[name].dims if d != dim}) for name in _FIXED]
    if fixed[0].chunks is not None:
        fixed = [array.chunk({dim: 1}) for array in fixed]
    bare = [array.drop_vars(dim, errors="ignore") for array in fixed]
    norm = _norms(*bare)
    before = [_before(array, dim) for array in (*bare, norm)]
    other = [array.isel({dim: place}, drop=True) for array in (*bare, norm)]
    out = xr.Dataset({"norm": norm, "growth": norm / before[2].where(before[2] > 0)})
    out["turn"] = _cosine(bare, norm, before)
    out["cosine"] = _cosine(bare, norm, other)
    if "std" in pools:
        out["spread"] = pools["std"].drop_vars(dim, errors="ignore") * norm
    told = {
        "norm": ("length of what a pair writes", "embedding"),
        "growth": ("its length over that of the checkpoint before", "1"),
        "turn": ("cosine with what it wrote at the checkpoint before", "1"),
        "cosine": ("cosine with what it writes at the reference", "1"),
        "spread": ("standard deviation of its contributions", "embedding"),
    }
    for name in out.data_vars:
        out[name].attrs = dict(zip(("long_name", "units"), told[str(name)], strict=True))
    out = out.transpose(dim, "unit", "head").assign_coords({dim: pools[dim].variable})
    return out.assign_attrs(_origin(pools) | {"reference": int(pools[dim][place])})


def text_history(
    run: Run,
    *,
    unit: int | Sequence[int],
    head: int | Sequence[int],
    words: str | None = None,
    phrases: Sequence[str] | None = None,
    texts: xr.Dataset | None = None,
) -> xr.Dataset:
    """Follow how near some pairs are to phrases, each checkpoint in the words of its own text tower. Lazy.

    Parameters
    ----------
    run
        The store's folder or URL, the opened tree, or one cube of it.
    unit, head
        Labels of the units, and of the heads: every unit through every head of these.
    words
        The set of phrases that are ranked; by default the only one.
    phrases
        Those of them to return; by default all.
    texts
        The opened cube of texts, where it is of another run, e.g. of a text tower that was not trained along.

    Returns
    -------
    Dataset over (series, phrase, unit, head), at the checkpoints that both cubes have
        ``score``: the cosine of what the pair writes with the phrase, float32; `top_phrases` of it gives the words of
        each checkpoint. ``rank``: 1 for the nearest phrase of the set, and one more for each nearer one. NaN at
        checkpoints that were not measured, and where u is 0.

    Raises
    ------
    MissingMeasurementError
        If there is no pools cube or no texts cube, or they have no checkpoint in common.
    SchemaError
        If there is no such unit, head, set or phrase, or phrases are of another width than the embedding.
    """
    pools, dim = _pools(run)
    if texts is None:
        texts = cubes_of(run, ("texts",)).get("texts")
        if texts is None:
            raise MissingMeasurementError(
                "the run has no texts; measure them: `neurolens run STUDY --only texts`, or pass texts= of another run"
            )
    chosen = _texts(texts, words)
    if dim not in chosen.dims:
        raise SchemaError(f"found texts over {dict(chosen.sizes)}, and {dim!r} among them was needed")
    common = np.intersect1d(pools[dim].to_numpy(), chosen[dim].to_numpy())
    if not len(common):
        raise MissingMeasurementError(f"pools and texts have no {dim} in common; measure both: `neurolens run STUDY`")
    if chosen.sizes["feature"] != pools.sizes["feature"]:
        raise SchemaError(
            f"the phrases are {chosen.sizes['feature']} wide and the embedding {pools.sizes['feature']}; give the "
            "texts of the same network"
        )
    names = chosen["phrase"].to_numpy().tolist()
    asked = names if phrases is None else list(phrases)
    for phrase in asked:
        if phrase not in names:
            raise SchemaError(f"there is no phrase {phrase!r} in the set; {nearest(str(phrase), names)}")
    at = {"unit": _places(pools, "unit", unit), "head": _places(pools, "head", head)}
    rows = [pools[name].sel({dim: common}).isel({d: i for d, i in at.items() if d in DIMS[name]}) for name in _FIXED]
    arrays = [*rows, chosen.sel({dim: common})]
    arrays = [array.chunk({d: 1 if d == dim else -1 for d in array.dims}) for array in arrays]
    labels = {d: rows[0][d].variable for d in ("unit", "head") if d in rows[0].coords}
    score, rank = xr.apply_ufunc(
        _history,
        *(array.drop_vars(list(array.coords)) for array in arrays),
        kwargs={"at": np.array([names.index(phrase) for phrase in asked])},
        input_core_dims=[list(DIMS["value"]), list(DIMS["output"]), ["phrase", "feature"]],
        output_core_dims=[["asked", "unit", "head"]] * 2,
        dask="parallelized",
        output_dtypes=[np.float32, np.float32],
        dask_gufunc_kwargs={"output_sizes": {"asked": len(asked)}},
    )
    out = xr.Dataset(
        {
            "score": score.assign_attrs(long_name="cosine of what a pair writes with a phrase", units="1"),
            "rank": rank.assign_attrs(long_name="place of the phrase among those of the set", units="1"),
        }
    ).rename(asked="phrase")
    named = np.array([str(phrase) for phrase in asked], dtype=np.dtypes.StringDType())
    return out.assign_coords(labels | {dim: common, "phrase": named}).assign_attrs(_origin(pools))


def _pools(run: Run) -> tuple[xr.Dataset, str]:
    """Return the cube of pools over its checkpoints, and what these are called."""
    own = isinstance(run, xr.Dataset) and {*_FIXED} <= {*run}
    pools = run if own else cubes_of(run, ("pools",)).get("pools")
    if not isinstance(pools, xr.Dataset) or "value" not in pools:
        raise MissingMeasurementError("the run has no pools; measure them: `neurolens run STUDY --only pools`")
    if not {*schema.SERIES_DIMS} & {*pools.dims}:
        raise SchemaError(
            "found the pool of one checkpoint, and those of several were needed: the cube `pools` of the run, as "
            "open_run(url)['pools'].to_dataset(); one checkpoint of it is selected by a list"
        )
    dim = schema.series_dim(pools)
    for name in _FIXED:
        if set(pools[name].dims) != {dim, *DIMS[name]}:
            raise SchemaError(
                f"{name!r} has dims {pools[name].dims}, and {(dim, *DIMS[name])} were needed; select by lists"
            )
    if not pools.sizes[dim]:
        raise MissingMeasurementError(f"the pools have no {dim} left; select at least one")
    return pools, dim


def _texts(texts: xr.Dataset, words: str | None) -> xr.DataArray:
    schema.present(texts, "text")
    sets = sorted({str(name) for name in texts["set"].to_numpy().tolist()})
    if words is None and len(sets) > 1:
        raise SchemaError(f"there are several sets of phrases; pass words= one of {', '.join(sets)}")
    return phrase_set(texts, sets[0] if words is None else words)


def _reference(pools: xr.Dataset, dim: str, reference: int | None) -> int:
    labels: list[int] = pools[dim].to_numpy().tolist()
    done = pools["measured"].to_numpy() if "measured" in pools.coords else np.ones(len(labels), bool)
    known = [label for label, there in zip(labels, done, strict=True) if there]
    if not known:
        raise MissingMeasurementError("no pool is measured; `neurolens status STUDY` says why")
    if reference is None:
        return labels.index(known[-1])
    if reference not in known:
        raise MissingCheckpointError(f"no pool is measured at {dim} {reference}; there is {', '.join(map(str, known))}")
    return labels.index(reference)


def _places(pools: xr.Dataset, dim: str, asked: int | Sequence[int]) -> list[int]:
    labels = pools[dim].to_numpy().tolist() if dim in pools.coords else list(range(pools.sizes[dim]))
    wanted = [int(label) for label in np.atleast_1d(np.asarray(asked)).tolist()]
    for label in wanted:
        if label not in labels:
            raise SchemaError(f"there is no {dim} {label} among {len(labels)}, from {labels[0]} to {labels[-1]}")
    return [labels.index(label) for label in wanted]


def _before(array: xr.DataArray, dim: str) -> xr.DataArray:
    """Return what was at the checkpoint before; NaN at the first."""
    if array.sizes[dim] == 1:  # dask cannot pad what is empty then
        return xr.full_like(array, np.nan)
    return array.shift({dim: 1})


def _norms(value: xr.DataArray, output: xr.DataArray) -> xr.DataArray:
    found: xr.DataArray = xr.apply_ufunc(
        _each_norm,
        value.drop_vars(list(value.coords)),
        output.drop_vars(list(output.coords)),
        input_core_dims=[list(DIMS["value"]), list(DIMS["output"])],
        output_core_dims=[["unit", "head"]],
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    return found.assign_coords({d: value[d].variable for d in ("unit", "head") if d in value.coords})


def _cosine(one: Sequence[xr.DataArray], norm: xr.DataArray, other: Sequence[xr.DataArray]) -> xr.DataArray:
    """Return the cosine of vectors with others, given as value, output and norm; NaN where one is 0."""
    arrays = [array.drop_vars(list(array.coords)) for array in (*one, *other[:2])]
    product = xr.apply_ufunc(
        _products,
        *arrays,
        input_core_dims=[list(DIMS["value"]), list(DIMS["output"])] * 2,
        output_core_dims=[["unit", "head"]],
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    lengths = norm * other[2]
    cosine: xr.DataArray = (product / lengths.where(lengths > 0)).clip(-1, 1)
    return cosine


def _each_norm(value: Array, output: Array) -> Array:
    out = np.full((*value.shape[:-3], value.shape[-1], value.shape[-3]), np.nan)
    for place in np.ndindex(*value.shape[:-3]):
        if np.isfinite(value[place]).all() and np.isfinite(output[place]).all():
            fixed = xr.Dataset({"value": (DIMS["value"], value[place]), "output": (DIMS["output"], output[place])})
            constant = np.zeros((value.shape[-3], output.shape[-3]), np.float32)
            out[place] = vector_norms(fixed.assign(constant=(DIMS["constant"], constant)))
    return out


def _products(value: Array, output: Array, other_value: Array, other_output: Array) -> Array:
    """Return ⟨u, u'⟩ (…, unit, head), through the dims of the heads."""
    lead = np.broadcast_shapes(value.shape[:-3], other_value.shape[:-3])
    arrays = [np.broadcast_to(a, (*lead, *a.shape[-3:])) for a in (value, output, other_value, other_output)]
    out = np.empty((*lead, value.shape[-1], value.shape[-3]))
    for place in np.ndindex(*lead):
        v, o, other_v, other_o = (array[place].astype(np.float64) for array in arrays)
        middle = np.matmul(o.transpose(1, 2, 0), other_o.transpose(1, 0, 2))  # (head, d, d)
        out[place] = (v * np.matmul(middle, other_v)).sum(axis=1).T
    return out


def _history(value: Array, output: Array, text: Array, *, at: Array) -> tuple[Array, Array]:
    """Return scores and ranks (…, asked, unit, head) of some phrases."""
    lead, shape = value.shape[:-3], (len(at), value.shape[-1], value.shape[-3])
    score, rank = (np.full((*lead, *shape), np.nan, np.float32) for _ in range(2))
    for place in np.ndindex(*lead):
        v, o, rows = (array[place].astype(np.float64) for array in (value, output, text))
        if not all(np.isfinite(array).all() for array in (v, o, rows)):
            continue
        norms = _each_norm(value[place], output[place])
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        inner = np.einsum("po,ohd->hpd", unit, o, optimize=True)
        found = np.matmul(inner, v).transpose(1, 2, 0)  # (phrase, unit, head)
        cosines = found / np.where(norms > 0, norms, np.nan)
        score[place] = cosines[at]
        ordered = -np.sort(-cosines, axis=0)
        for pair in np.ndindex(*norms.shape):
            if norms[pair] > 0:
                column = ordered[(slice(None), *pair)]
                rank[place][(slice(None), *pair)] = 1 + np.searchsorted(-column, -cosines[(at, *pair)], side="left")
    return score, rank


def _origin(pools: xr.Dataset) -> dict[str, Any]:
    return {key: pools.attrs[key] for key in schema.PROVENANCE if key in pools.attrs}
