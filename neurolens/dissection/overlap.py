"""How well units and concepts coincide: IoU in either reading, the best concept of each unit, and detectors."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.dissection.adopted import from_cube, is_adopted
from neurolens.dissection.sums import EPSILON, ratio
from neurolens.errors import MissingMeasurementError, SchemaError, nearest
from neurolens.inference import bootstrap_counts, percentile_interval, require_resampling
from neurolens.schema.dissection_results import DISSECTION_RESULTS
from neurolens.units.inputs import kept_attrs
from neurolens.units.layers_of import held

Reading = Literal["paper", "lite"]

AREAS = {"paper": "unit_area", "lite": "unit_area_lite"}
TAU = 0.04
"""IoU from which a unit counts as a detector (Bau et al. 2017, section 3.2)."""

_STRIP = 2**22  # values of all resamples that are held at once (32 MiB)


def iou(
    concepts: xr.Dataset,
    *,
    reading: Reading = "paper",
    by: Literal["block"] | None = None,
    weights: Any = None,
    silent: float = np.nan,
) -> xr.DataArray:
    """Intersection over union of every unit's mask with every concept, over the whole data set.

    Σ intersection / (Σ area of the mask + Σ area of the concept - Σ intersection + 1e-10), where the area of the mask
    is summed over the images that show anything of the concept's category: anywhere ("paper"), or inside the mask
    itself ("lite"), which leaves out what the unit does on other images of the category, and makes IoU larger.

    Parameters
    ----------
    concepts : Dataset with `intersection`, `concept_area`, `unit_area` and, of "lite", `unit_area_lite`
        The opened concepts cube, or a selection of it, also at one checkpoint. NaN is *not measured*. Or the cube of
        adopted tallies, whose reading is its own.
    reading : {"paper", "lite"}
    by : {None, "block"}
        None: over all images. "block": over each block of images by itself.
    weights : (block,), or DataArray with the dim `block` and others
        How often each block counts, as in a bootstrap; absent: once.
    silent : NaN or 0
        The IoU of a unit without a mask. NaN: it has none, and a life that ends so ends as ``absent``, censored. 0:
        nothing of it is where the concept is, so that what falls silent dies.

    Returns
    -------
    iou : (series, unit, concept) float64, with `block` or the other dims of ``weights``; lazy if ``concepts`` is
        Dimensionless, 0 to 1. NaN where it was not measured, where the unit has no mask on any image that shows
        something (a dead unit, or layer) unless ``silent`` is 0, and where no image (that counts, of ``weights``) shows
        the concept. Of tallies: NaN for all but the best concept of each category.

    Raises
    ------
    SchemaError
        If a reading or an option is unknown, a dim or a coordinate is missing, or a concept's category is none of
        those along `category`.
    MissingMeasurementError
        If a variable was not measured.

    References
    ----------
    Bau et al. 2017, "Network Dissection: Quantifying Interpretability of Deep Visual Representations", equation 1 and
    its ``makeresult.py`` ("paper"); NetDissect-Lite, ``feature_operation.py`` ("lite").
    """
    if reading not in AREAS:
        raise SchemaError(f"reading={reading!r} is unknown; {nearest(str(reading), AREAS)}")
    if by not in (None, "block") or (by and weights is not None):
        raise SchemaError(f"by={by!r} with weights is none of None and 'block'; weights are for sums over blocks")
    if not (np.isnan(silent) or silent == 0):
        raise SchemaError(f"silent={silent!r} is neither NaN nor 0; give one of them")
    if is_adopted(concepts):
        return _adopted(concepts, by is not None or weights is not None)
    codes = category_codes(concepts, AREAS[reading], "unit_area", "intersection", "concept_area")
    score = ratio(concepts, AREAS[reading], codes, by=by, weights=_weights(concepts, weights), silent=silent)
    return _labelled(_ordered(score, concepts["intersection"]), "iou", concepts, reading=reading)


def best_concept(
    concepts: xr.Dataset | xr.DataArray, *, reading: Reading = "paper", by: Literal["category"] | None = None
) -> xr.Dataset:
    """Return the concept that each unit coincides with best.

    Parameters
    ----------
    concepts : a cube as for `iou`, or IoU (series, unit, concept) with coordinate `concept_category`
    reading : {"paper", "lite"}
        Of a cube.
    by : {None, "category"}
        "category": the best of each category, along the dim `category`.

    Returns
    -------
    Dataset, lazy if ``concepts`` is
        ``score`` (series, unit) float64, NaN where no IoU is known; ``label``, its name; ``label_category``;
        ``position`` along `concept`. A unit without a mask, or without a pixel in common with any concept (``score``
        0), has none: empty strings and -1. Of equal scores the first category wins, and in it the lowest `label`.

    Raises
    ------
    SchemaError, MissingMeasurementError
        As for `iou`.

    References
    ----------
    Bau et al. 2017, section 2.3; ties as in NetDissect-Lite's ``tally.csv``.
    """
    if by not in (None, "category"):
        raise SchemaError(f"by={by!r} is unknown; {nearest(str(by), ('category',))}, or leave it out")
    concepts = iou(concepts) if is_adopted(concepts) else concepts
    score = iou(concepts, reading=reading) if isinstance(concepts, xr.Dataset) else concepts
    lacking = [name for name in ("concept", "concept_category") if name not in score.coords]
    if lacking or "unit" not in score.dims:
        raise SchemaError(f"found {dict(score.sizes)} without {lacking or 'unit'}; give the concepts cube, or iou(…)")
    names, of = (np.asarray(held(score[name]).tolist(), str) for name in ("concept", "concept_category"))
    categories = _categories(concepts, of)
    numbers = np.asarray(held(score["label"])) if "label" in score.coords else np.arange(len(names))
    order = np.lexsort((numbers, np.array([categories.index(c) for c in of])))
    groups = [order] if by is None else [order[of[order] == category] for category in categories]
    several = [] if by is None else ["category"]
    found = xr.apply_ufunc(
        _best,
        score.chunk(concept=-1) if score.chunks else score,
        input_core_dims=[["concept"]],
        output_core_dims=[several, several],
        kwargs={"groups": groups, "squeeze": by is None},
        dask="parallelized",
        output_dtypes=[np.float64, np.int64],
        dask_gufunc_kwargs={"output_sizes": {"category": len(groups)}} if several else {},
    )
    best, position = (f.assign_coords(category=np.array(categories, dtype=object)) if several else f for f in found)
    arrays = {"score": best, "position": position}
    for name, values in (("label", names), ("label_category", of)):
        table = np.append(values, "").astype(object)  # -1 is the last: none
        arrays[name] = xr.apply_ufunc(
            lambda at, table=table: table[at], position, dask="parallelized", output_dtypes=[object]
        )
    attrs = {"reading": score.attrs["reading"]} if "reading" in score.attrs else {}
    labelled = {name: schema.label(array, DISSECTION_RESULTS[name]) for name, array in arrays.items()}
    return xr.Dataset(labelled, attrs=kept_attrs(score) | attrs)


def detectors(concepts: xr.Dataset | xr.DataArray, *, tau: float = TAU, reading: Reading = "paper") -> xr.Dataset:
    """Count the units that detect a concept, and the concepts that are detected, by category.

    A unit detects its best concept if the score is at least ``tau``, as in NetDissect-Lite's report.

    Parameters
    ----------
    concepts, reading : as for `best_concept`
    tau : smallest IoU of a detector

    Returns
    -------
    Dataset, lazy if ``concepts`` is
        ``n_detectors`` and ``n_unique`` (series, category), ``total_detectors`` and ``total_unique`` (series,): int64,
        over the units of ``concepts``; for one layer, select it first. Units that were not measured are not counted.

    Raises
    ------
    SchemaError
        As for `iou`, and if ``tau`` is no positive number.

    References
    ----------
    Bau et al. 2017, section 3.2: detectors, and unique detectors.
    """
    if not (np.ndim(tau) == 0 and 0 < tau <= 1):
        raise SchemaError(f"tau={tau!r} is no IoU; give a number above 0 and at most 1, e.g. 0.04")
    concepts = iou(concepts) if is_adopted(concepts) else concepts
    best = best_concept(concepts, reading=reading)
    of = np.asarray(held(concepts["concept_category"]).tolist(), str)
    categories = _categories(concepts, of)
    codes = np.array([categories.index(c) for c in of], dtype=np.int64)
    position = best["position"].where(best["score"] >= tau, -1)
    counts = xr.apply_ufunc(
        _counts,
        position.chunk(unit=-1) if position.chunks else position,
        input_core_dims=[["unit"]],
        output_core_dims=[["category"], ["category"]],
        kwargs={"codes": codes, "n": len(categories)},
        dask="parallelized",
        output_dtypes=[np.int64, np.int64],
        dask_gufunc_kwargs={"output_sizes": {"category": len(categories)}},
    )
    held_, unique = (c.assign_coords(category=np.array(categories, dtype=object)) for c in counts)
    arrays = {
        "n_detectors": held_,
        "n_unique": unique,
        "total_detectors": held_.sum("category"),
        "total_unique": unique.sum("category"),
    }
    labelled = {name: schema.label(array, DISSECTION_RESULTS[name]) for name, array in arrays.items()}
    return xr.Dataset(labelled, attrs=best.attrs | {"iou_tau": tau})


def iou_interval(
    concepts: xr.Dataset,
    *,
    reading: Reading = "paper",
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Say how sure each IoU is: a bootstrap over the blocks of images.

    Blocks are drawn again with replacement, and IoU is computed from the sums of their counts. Blocks are dealt out
    over the data set, so that drawing them stands for drawing images (`neurolens.dissection.image_blocks`). With 32 of
    them the interval is a little narrow: 95 % covers some 93 %. Select concepts and units first where only some matter.

    Parameters
    ----------
    concepts, reading : as for `iou`
    resamples : how many times blocks are drawn
    confidence : share of the resamples inside the interval
    seed : of the draws; the same for all units and concepts

    Returns
    -------
    Dataset, lazy if ``concepts`` is
        ``iou``, ``iou_low``, ``iou_high`` (series, unit, concept). NaN as `iou`; draws without any image that shows
        the concept are left out.

    Raises
    ------
    SchemaError, MissingMeasurementError
        As for `iou`, and if there can be no such interval.

    References
    ----------
    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3.
    """
    require_resampling(resamples, confidence)
    if not resamples:
        raise SchemaError("resamples=0 gives no interval; give e.g. 1000, or use iou")
    score = iou(concepts, reading=reading)
    codes = category_codes(concepts, AREAS[reading], "intersection", "concept_area")
    draws = np.array(list(bootstrap_counts(concepts.sizes["block"], resamples, seed)), dtype=np.float64)
    area = (
        concepts[AREAS[reading]]
        .isel(category=xr.DataArray(codes, dims="concept"))
        .drop_vars("category", errors="ignore")
    )
    arrays = [concepts["intersection"], area, concepts["concept_area"]]
    arrays = [array.chunk(block=-1) if array.chunks else array for array in arrays]
    bounds = xr.apply_ufunc(
        _bounds,
        *arrays,
        input_core_dims=[["block"]] * 3,
        output_core_dims=[[], []],
        kwargs={"draws": draws, "confidence": confidence},
        dask="parallelized",
        output_dtypes=[np.float64, np.float64],
    )
    attrs = {"reading": reading, "confidence": confidence, "resamples": resamples, "seed": seed}
    found = {"iou": score}
    for name, bound in zip(("iou_low", "iou_high"), bounds):
        known = _ordered(bound, concepts["intersection"]).where(score.notnull())
        found[name] = schema.label(known, DISSECTION_RESULTS[name])
    return xr.Dataset(found, attrs=kept_attrs(concepts) | attrs)


def _adopted(tallies: xr.Dataset, resampled: bool) -> xr.DataArray:
    if resampled:
        raise SchemaError("tallies hold sums over all images, and no blocks of them; leave by= and weights= out")
    known = from_cube(tallies)
    if "iou" not in known:
        raise SchemaError("these tallies had no columns per category, only the score of each unit's best concept")
    return _labelled(known["iou"], "iou", tallies, absent=known["iou"].attrs["absent"])


def _bounds(intersection: Any, area: Any, concept_area: Any, draws: Any, confidence: float) -> tuple[Any, Any]:
    intersection, area, concept_area = np.broadcast_arrays(intersection, area, concept_area)
    shape, blocks = intersection.shape[:-1], intersection.shape[-1]
    flat = [np.ascontiguousarray(a).reshape(-1, blocks) for a in (intersection, area, concept_area)]
    low, high = np.empty(len(flat[0])), np.empty(len(flat[0]))
    step = max(1, _STRIP // len(draws))
    for start in range(0, len(low), step):
        part = slice(start, start + step)
        common, mask, whole = (draws @ a[part].T for a in flat)
        values = np.where(whole > 0, common / (mask + whole - common + EPSILON), np.nan)
        known = np.isfinite(values).sum(axis=0)
        bounds = np.full((2, values.shape[1]), np.nan)
        for columns, lower in (
            (known == len(draws), _quantiles),
            ((known > 0) & (known < len(draws)), percentile_interval),
        ):
            if columns.any():
                bounds[:, columns] = lower(values[:, columns], confidence)
        low[part], high[part] = bounds
    return low.reshape(shape), high.reshape(shape)


def _quantiles(values: Any, confidence: float) -> Any:
    """The same as percentile_interval, where there is no NaN: many times as fast."""
    tail = (1 - confidence) / 2
    return np.quantile(values, [tail, 1 - tail], axis=0)


def _best(score: Any, groups: Sequence[Any], squeeze: bool) -> tuple[Any, Any]:
    values = np.empty((*score.shape[:-1], len(groups)))
    places = np.empty(values.shape, dtype=np.int64)
    for g, members in enumerate(groups):
        if not len(members):
            values[..., g], places[..., g] = np.nan, -1
            continue
        inside = score[..., members]
        known = np.isfinite(inside)
        first = np.where(known, inside, -1.0).argmax(axis=-1)
        top = np.take_along_axis(inside, first[..., None], axis=-1)[..., 0]
        values[..., g] = top
        places[..., g] = np.where(top > 0, members[first], -1)
    return (values[..., 0], places[..., 0]) if squeeze else (values, places)


def _counts(position: Any, codes: Any, n: int) -> tuple[Any, Any]:
    flat = position.reshape(-1, position.shape[-1])
    held_, unique = np.zeros((len(flat), n), np.int64), np.zeros((len(flat), n), np.int64)
    for i, row in enumerate(flat):
        found = row[row >= 0]
        held_[i] = np.bincount(codes[found], minlength=n)
        unique[i] = np.bincount(codes[np.unique(found)], minlength=n)
    shape = (*position.shape[:-1], n)
    return held_.reshape(shape), unique.reshape(shape)


def _weights(concepts: xr.Dataset, weights: Any) -> xr.DataArray | None:
    if weights is None:
        return None
    found = weights if isinstance(weights, xr.DataArray) else xr.DataArray(np.asarray(weights), dims="block")
    size = concepts.sizes["block"]
    if found.sizes.get("block") != size:
        raise SchemaError(f"found weights of {dict(found.sizes)}; one per block, {size} along 'block', is needed")
    return found.astype(np.float64)


def category_codes(concepts: Any, *names: str) -> Any:
    """Return the position along `category` of each concept's category."""
    if not isinstance(concepts, xr.Dataset):
        raise SchemaError(
            f"found a {type(concepts).__name__}; the Dataset of the concepts cube is needed: "
            "run['concepts'].to_dataset()"
        )
    for name in names:
        if name not in concepts:
            raise MissingMeasurementError(
                f"{name!r} was not measured; found {sorted(map(str, concepts.data_vars))}; measure it: "
                "`neurolens run STUDY --only concepts`"
            )
    lacking = [dim for dim in ("block", "unit", "concept", "category") if dim not in concepts.dims]
    lacking += [name for name in ("category", "concept_category") if name not in concepts.coords]
    if lacking:
        raise SchemaError(f"there is no {lacking[0]!r}; found {dict(concepts.sizes)}; select with lists to keep dims")
    of = np.asarray(held(concepts["concept_category"]).tolist(), str)
    known = _categories(concepts, of)
    return np.array([known.index(category) for category in of], dtype=np.int64)


def _categories(data: xr.Dataset | xr.DataArray, of: Any) -> list[str]:
    """Return the categories in order: those along `category`, else in the order of the concepts."""
    if "category" not in data.coords:
        return list(dict.fromkeys(of.tolist()))
    known = np.asarray(held(data["category"])).tolist()
    unknown = sorted(set(of.tolist()) - set(known))
    if unknown:
        raise SchemaError(
            f"concepts have category {unknown[0]!r}, which is not along 'category'; {nearest(unknown[0], known)}"
        )
    return list(known)


def _ordered(array: xr.DataArray, like: xr.DataArray) -> xr.DataArray:
    dims = [dim for dim in like.dims if dim in array.dims]
    return array.transpose(*dims, ...)


def _labelled(array: xr.DataArray, name: str, origin: xr.Dataset, **attrs: Any) -> xr.DataArray:
    out = schema.label(array, DISSECTION_RESULTS[name])
    out.attrs |= attrs | kept_attrs(origin)
    return out
