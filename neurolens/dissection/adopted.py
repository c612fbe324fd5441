"""Adopted tallies as scores: the IoU of the best concept of each category, and nothing of the others."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.units.layers_of import held

TEXT = np.dtypes.StringDType()


def is_adopted(data: Any) -> TypeGuard[xr.Dataset]:
    """Whether something is the opened cube of tallies, or a selection of it."""
    return isinstance(data, xr.Dataset) and "best_position" in data.data_vars


def from_cube(tallies: xr.Dataset) -> xr.Dataset:
    """Return the opened cube of tallies as `neurolens.mortality.read_tallies` returns their files.

    Parameters
    ----------
    tallies : the opened cube, or a selection of it along the series and units, also at one checkpoint

    Returns
    -------
    Dataset (series, unit), lazy if ``tallies`` is
        Concepts are in order of category and name. ``iou`` is NaN for all but the best concept of each category.
    """
    if not any(dim in tallies.dims for dim in schema.SERIES_DIMS):
        series = str(tallies.attrs.get("series", "epoch"))
        return from_cube(tallies.expand_dims(series)).isel({series: 0})
    series = schema.series_dim(tallies)
    names, of, category, place = _alphabet(tallies)
    raw = np.append(names, "").astype(object)
    order = np.argsort(place)
    out = tallies[["score"]].drop_vars(["category", "concept", "name", "concept_category"], errors="ignore")
    out["label"] = _looked_up(tallies["best_position"], raw)
    out["label_category"] = _looked_up(tallies["best_category"], np.append(category, "").astype(object))
    stamps = _checkpoints(tallies, series)
    if stamps is not None:
        out = out.assign_coords(checkpoint=(series, stamps))
    if "best_iou" not in tallies:
        return out
    out = out.assign_coords(category=("category", category.astype(TEXT)))
    bare = {name: tallies[name].drop_vars(list(tallies[name].coords)) for name in ("category_position", "best_iou")}
    out["best_label"] = _looked_up(bare["category_position"], raw)
    for name in ("truth", "activation", "intersect", "best_iou"):
        out[name] = tallies[name].drop_vars(list(tallies[name].coords)).assign_attrs(tallies[name].attrs)
    codes = _looked_up(bare["category_position"], np.append(place, -1), np.int64)
    iou = spread_codes(bare["best_iou"], codes, concept_names(list(zip(of[order], names[order]))))
    out["iou"] = iou.assign_coords(concept_category=("concept", of[order].astype(TEXT)))
    return out


def concept_names(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return a unique name for each (category, name): a name that two categories share is two concepts."""
    shared = Counter(name for _, name in pairs)
    return [f"{name} ({of})" if shared[name] > 1 else name for of, name in pairs]


def spread_codes(score: xr.DataArray, codes: xr.DataArray, names: Any) -> xr.DataArray:
    """Return (series, unit, concept) of scores (series, unit, category) of concepts by number. Lazy, in blocks.

    What is not among a unit's concepts is NaN, and ends as *displaced*.
    """
    series = schema.series_dim(score)
    per_unit = max(1, score.sizes[series] * len(names) * 8)
    block = int(max(1, min(score.sizes["unit"], 2**24 // per_unit)))
    chunks = {series: -1, "unit": block, "category": -1}
    out: xr.DataArray = xr.apply_ufunc(
        _spread,
        score.copy(data=score.variable.chunk(chunks).data),  # coordinates stay as they are
        codes.copy(data=codes.variable.chunk(chunks).data),
        input_core_dims=[["category"], ["category"]],
        output_core_dims=[["concept"]],
        kwargs={"n": len(names)},
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"concept": len(names)}},
    )
    out = out.assign_coords(concept=("concept", np.asarray(names, TEXT)))
    return out.rename("iou").assign_attrs(long_name="intersection over union", units="1", absent="displaced")


def _alphabet(tallies: xr.Dataset) -> tuple[Any, Any, Any, Any]:
    """Return names and categories of the concepts as stored, the categories, and each concept's place in order."""
    found = []
    for name in ("name", "concept_category", "category"):
        values = held(tallies[name]).tolist() if name in tallies.coords else []
        found.append(np.asarray(values, object))
    names, of, category = found
    order = sorted(range(len(names)), key=lambda i: (of[i], names[i]))
    place = np.empty(len(names), np.int64)
    place[order] = np.arange(len(names))
    return names, of, category, place


def _looked_up(position: xr.DataArray, table: Any, dtype: Any = object) -> xr.DataArray:
    """Return the members of a table by position; where that is negative or NaN, its last."""
    out: xr.DataArray = xr.apply_ufunc(
        lambda at: table[np.where(at >= 0, at, -1).astype(np.int64)],
        position,
        dask="parallelized",
        output_dtypes=[dtype],
    )
    return out


def _checkpoints(tallies: xr.Dataset, series: str) -> Any:
    """Return the names of the folders, as the attributes of the cube tell them; None where they do not."""
    known = json.loads(tallies.attrs.get("settings", "{}")).get("checkpoints", {})
    names = [known.get(str(int(stamp))) for stamp in held(tallies[series])] if series in tallies.coords else [None]
    return None if None in names else np.asarray(names, TEXT)


def _spread(score: Any, codes: Any, n: int) -> Any:
    out = np.full((*score.shape[:-1], n + 1), np.nan)
    np.put_along_axis(out, np.where(codes < 0, n, codes), score, axis=-1)
    return out[..., :n]
