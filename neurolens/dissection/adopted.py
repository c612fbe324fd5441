"""Adopted tallies as scores: the IoU of the best concept of each category, and nothing of the others."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import pandas as pd
import xarray as xr

from neurolens import schema
from neurolens.errors import SchemaError
from neurolens.units.layers_of import held

TEXT = np.dtypes.StringDType()
FIGURES = ("truth", "activation", "intersect", "best_iou")


def is_adopted(data: Any) -> TypeGuard[xr.Dataset]:
    """Whether something is the opened cube of tallies, or a selection of it."""
    return isinstance(data, xr.Dataset) and "best_number" in data.data_vars


def from_cube(tallies: xr.Dataset) -> xr.Dataset:
    """Return the opened cube of tallies as `neurolens.mortality.read_tallies` returns their files.

    Parameters
    ----------
    tallies : the opened cube, or a selection of it, also at one checkpoint
        What concepts are not selected are none.

    Returns
    -------
    Dataset (series, unit), lazy if ``tallies`` is
        Concepts are in order of category and name. ``iou`` is NaN for all but the best concept of each category.

    Raises
    ------
    SchemaError
        If a dim is lost.
    """
    if not any(dim in tallies.dims for dim in schema.SERIES_DIMS):
        series = str(tallies.attrs.get("series", "epoch"))
        return from_cube(tallies.expand_dims(series)).isel({series: 0})
    for dim in ("unit", "category", "concept"):
        if dim in tallies.coords and dim not in tallies.dims:
            raise SchemaError(f"there is no dim {dim!r}; found {dict(tallies.sizes)}; select with lists to keep dims")
    series = schema.series_dim(tallies)
    known = ("concept", "concept_number", "name", "concept_category")
    concepts = pd.DataFrame({name: _held(tallies, name) for name in known})
    concepts = concepts.sort_values(["concept_category", "name"], ignore_index=True)
    category, name_of = _held(tallies, "category"), _table(concepts["concept_number"], concepts["name"], "")
    out = tallies[["score"]].drop_vars(["category", "category_number", *known], errors="ignore")
    out["label"] = _looked_up(tallies["best_number"], name_of)
    category_of = _table(_held(tallies, "category_number"), category, "")
    out["label_category"] = _looked_up(tallies["best_category"], category_of)
    stamps = _checkpoints(tallies, series)
    if stamps is not None:
        out = out.assign_coords(checkpoint=(series, stamps))
    if "best_iou" not in tallies:
        return out
    out = out.assign_coords(category=("category", np.asarray(category, TEXT)))
    bare = {name: tallies[name].drop_vars(list(tallies[name].coords)) for name in ("category_best", *FIGURES)}
    out["best_label"] = _looked_up(bare["category_best"], name_of)
    for name in FIGURES:
        out[name] = bare[name]
    codes = _looked_up(bare["category_best"], _table(concepts["concept_number"], concepts.index, -1, np.int64))
    iou = spread_codes(bare["best_iou"], codes, concepts["concept"].tolist())
    of = np.asarray(concepts["concept_category"].tolist(), TEXT)
    out["iou"] = iou.assign_coords(concept_category=("concept", of))
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


def _held(tallies: xr.Dataset, name: str) -> list[Any]:
    return list(held(tallies[name]).tolist()) if name in tallies.coords else []


def _table(numbers: Any, values: Any, none: Any, dtype: Any = object) -> Any:
    """Return an array of the values by number, and at its end that of none."""
    out = np.full(max(numbers, default=-1) + 2, none, dtype)
    for number, value in zip(numbers, values, strict=True):
        out[number] = value
    return out


def _looked_up(number: xr.DataArray, table: Any) -> xr.DataArray:
    """Return the members of a table by number; where that is negative, NaN or beyond it, its last."""
    last = len(table) - 1
    out: xr.DataArray = xr.apply_ufunc(
        lambda at: table[np.where((at >= 0) & (at < last), at, last).astype(np.int64)],
        number,
        dask="parallelized",
        output_dtypes=[table.dtype],
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
