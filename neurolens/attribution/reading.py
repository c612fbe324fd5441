"""What the attributions cube says of each map: how concentrated it is, how faithful; and of the network: how right."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.attribution.scores import PATCH, entropy, gini, sparsity
from neurolens.errors import SchemaError, nearest
from neurolens.inference import require_resampling, wilson_interval

Level = Literal["patch", "pixel"]

LEVELS = ("patch", "pixel")
KINDS = ("whole", "only", "without", "union", "control")
CONCENTRATION = ("sparsity", "gini", "entropy")
DROPS = ("drop", "relative_drop", "log_prob_drop", "logit_drop")
SCORES = (*CONCENTRATION, *DROPS)
"""Scores of each map that a grid can be compared by."""

INTEGRAL = "integrated_gradients"


def map_scores(
    ds: xr.Dataset, *, names: Sequence[str] | None = None, level: Level = "patch", mass: float | None = None
) -> xr.Dataset:
    """Score each map of an attributions cube.

    Parameters
    ----------
    ds : Dataset
        The opened attributions cube, ``run["attributions"].to_dataset()``, or a selection of it.
    names
        Which scores; absent: all that the level has.
    level : {"patch", "pixel"}
        What an entry of a map is, for sparsity and for what is taken away.
    mass
        Share of the mass that `sparsity` is about; absent: that of the study. Of pixels there is no other: they are
        counted when maps are measured.

    Returns
    -------
    Dataset over (series, sample, map, attribution), float64, lazy if ``ds`` is
        ``sparsity``: share of entries that are not needed to hold the mass; of patches also ``gini`` and ``entropy``
        (nats). ``drop``: probability of the scored class minus that without the highest entries, negative if it rises;
        ``relative_drop``, of the probability; ``log_prob_drop``, nats; ``logit_drop``. With Integrated Gradients,
        ``completeness_share``: what goes through the units, of ``output − baseline_output``, NaN for other methods; and
        with the whole, ``gap`` (series, sample): its sum minus that change, which the steps of the integral leave.
        NaN where it was not measured, a map is zero everywhere, or a method does not know the set.

    Raises
    ------
    SchemaError
        If it is no attributions cube, or a name or a level is unknown.
    MissingMeasurementError
        If what a score is made from was not measured: drops need ``faithfulness = true`` in the study. Name the scores
        that do not.

    References
    ----------
    Samek et al. 2017, "Evaluating the Visualization of What a Deep Neural Network Has Learned"; Sundararajan et al.
    2017, proposition 1.
    """
    require_cube(ds)
    _choice("level", level, LEVELS)
    known = (*(SCORES if level == "patch" else ("sparsity", *DROPS)), "completeness_share", "gap")
    if names is None:
        integral = INTEGRAL in texts(ds["attribution"])
        left_out = () if integral else ("completeness_share",)
        left_out = left_out if integral and "whole" in texts(ds["kind"]) else (*left_out, "gap")
        names = [name for name in known if name not in left_out]
    found = {}
    for name in names:
        if name not in known:
            raise SchemaError(f"there is no score {name!r} of {level} entries; {nearest(str(name), known)}")
        found[name] = score_of(ds, name, level=level, mass=mass)
    return xr.Dataset(found, attrs=origin(ds) | {"level": level})


def accuracy(ds: xr.Dataset, *, top: Iterable[int] = (1, 5), confidence: float = 0.95) -> xr.Dataset:
    """Say how often the label is among the classes with the largest logits.

    There is one accuracy, for all sets of units. A filter replaces the output ``y`` of a layer by
    ``m·y + detach((1 − m)·y)`` with a mask ``m`` of zeros and ones: the number that goes on is ``y``, to the bit, and
    so are logits, probabilities and the predicted class. What changes is the gradient. An accuracy "under the filter"
    would be this one, stated again.

    Parameters
    ----------
    ds : Dataset
        The opened attributions cube.
    top
        How many classes may come before; the reference has 1 and 5.
    confidence
        Coverage of the intervals.

    Returns
    -------
    Dataset over (series, top), lazy if ``ds`` is
        ``accuracy`` with ``accuracy_low`` and ``accuracy_high`` (Wilson's), over the ``n`` (series,) samples whose
        label's rank was measured; NaN where there is none. Of classes with equal logits the label comes first.

    Raises
    ------
    SchemaError
        If it is no attributions cube, or there cannot be such a top or interval.
    MissingMeasurementError
        If ranks were not measured.

    References
    ----------
    Wilson 1927.
    """
    require_resampling(0, confidence)
    schema.present(ds, "label_rank")
    wanted = list(top)
    if not wanted or any(k < 1 for k in wanted):
        raise SchemaError(f"top={wanted} are no numbers of classes; give 1 or more, e.g. (1, 5)")
    rank = ds["label_rank"]
    rank = rank.drop_vars([name for name, coord in rank.coords.items() if "sample" in coord.dims])
    if "sample" not in rank.dims:
        raise SchemaError(f"'label_rank' has dims {rank.dims}, and 'sample' was needed; select with lists to keep dims")
    n = rank.notnull().sum("sample")
    right = (rank < xr.DataArray(wanted, dims="top", coords={"top": wanted})).sum("sample").astype(np.float64)
    low, high = xr.apply_ufunc(
        wilson_interval,
        right,
        n,
        kwargs={"confidence": confidence},
        output_core_dims=[[], []],
        dask="parallelized",
        output_dtypes=[np.float64] * 2,
    )
    found = {"accuracy": right / n.where(n > 0), "accuracy_low": low, "accuracy_high": high}
    labelled = {name: schema.label(array, schema.ATTRIBUTION_RESULTS[name]) for name, array in found.items()}
    counted = schema.label(n, schema.GRID_STATISTICS["n"])
    return xr.Dataset({**labelled, "n": counted}, attrs=origin(ds) | {"confidence": confidence})


def score_of(ds: xr.Dataset, name: str, *, level: Level = "patch", mass: float | None = None) -> xr.DataArray:
    """Return one score of each map, named and described: see `map_scores`; lazy if the cube is.

    Raises
    ------
    SchemaError, MissingMeasurementError
        As for `map_scores`.
    """
    require_cube(ds)
    _choice("level", level, LEVELS)
    _choice("score", name, schema.ATTRIBUTION_SCORES)
    if name in CONCENTRATION:
        out = _concentration(ds, name, level, mass)
    elif name in DROPS:
        out = _drop(ds, name, level)
    else:
        out = _completeness(ds, name)
    return schema.label(out.drop_vars("level", errors="ignore"), schema.ATTRIBUTION_SCORES[name])


def beside_whole(
    ds: xr.Dataset, *, score: str = "drop", level: Level = "patch", kinds: str | Sequence[str] = "without"
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return a score of the maps of some kinds, (series, sample, map, attribution), and of the whole, without `map`.

    Raises
    ------
    SchemaError
        If there is no whole, or no map of these kinds.
    SchemaError, MissingMeasurementError
        As for `map_scores`.
    """
    require_cube(ds)
    _choice("score", score, SCORES)
    chosen = ds.isel(map=[whole_of(ds), *places(ds, kinds)])  # before they are scored: controls are many
    values = score_of(
        chosen.assign_coords({name: coord.compute() for name, coord in chosen.coords.items()}), score, level=level
    )
    return values.isel(map=slice(1, None)), values.isel(map=0, drop=True)


def each_checkpoint(
    ds: xr.Dataset,
    baseline: xr.DataArray | None,
    of: Callable[[xr.DataArray, xr.DataArray, str | None], xr.Dataset],
    *,
    score: str,
    level: Level,
    kinds: str | Sequence[str],
    classes: str | None,
) -> xr.Dataset:
    """Put together what a function of scores, those of the whole and the name of classes says of each checkpoint.

    Raises
    ------
    SchemaError, MissingMeasurementError
        As for `beside_whole`; also if a baseline is given besides.
    """
    if baseline is not None:
        raise SchemaError("the cube holds the unfiltered maps: give it alone, or two arrays of scores")
    filtered, whole = beside_whole(ds, score=score, level=level, kinds=kinds)
    if classes is None and "label" in ds.coords and ds["label"].dims == ("sample",):
        classes = "label"
    series = [dim for dim in schema.SERIES_DIMS if dim in filtered.dims]
    if not series:
        return described(of(filtered, whole, classes), ds, score, level)
    dim = series[0]
    along = {name: coord for name, coord in filtered.coords.items() if coord.dims == (dim,)}
    filtered, whole = (array.drop_vars([name for name in along if name in array.coords]) for array in (filtered, whole))
    found = [of(filtered.isel({dim: at}), whole.isel({dim: at}), classes) for at in range(filtered.sizes[dim])]
    if not found:
        raise SchemaError(f"the cube has no {dim} left; select at least one")
    own = [str(name) for name, coord in found[0].coords.items() if not coord.dims]
    out = xr.concat(found, dim, data_vars="all", coords=own, compat="override", join="exact", combine_attrs="override")
    return described(out.assign_coords(along), ds, score, level)


def pair_needed(name: str) -> SchemaError:
    """Return the error for scores without those to compare them with."""
    return SchemaError(
        f"found one array of scores, and that of the unfiltered maps was needed too: {name}(filtered, baseline); or "
        "give the Dataset of the cube: run['attributions'].to_dataset()"
    )


def places(ds: xr.Dataset, kinds: str | Sequence[str]) -> Any:
    """Return the places along `map` of the maps of some kinds, (n,) int64; raise SchemaError if there are none."""
    wanted = [kinds] if isinstance(kinds, str) else list(kinds)
    for kind in wanted:
        _choice("kinds", kind, KINDS)
    found = np.flatnonzero([kind in wanted for kind in texts(ds["kind"])])
    if not len(found):
        there = sorted(set(texts(ds["kind"])))
        raise SchemaError(
            f"there is no map of kind {' or '.join(map(repr, wanted))} among those of kinds {there}; name one of these "
            "as kinds=, or ask for others in the study: sets, unions, controlled"
        )
    return found


def whole_of(ds: xr.Dataset) -> int:
    """Return the place along `map` of the map through all units, or raise SchemaError."""
    found = np.flatnonzero([kind == "whole" for kind in texts(ds["kind"])])
    if len(found) != 1:
        raise SchemaError(
            f"found {len(found)} maps of kind 'whole' among {ds.sizes['map']}, and the one through all units was "
            "needed to compare with; keep it when you select, e.g. ds.isel(map=ds['kind'].isin(['whole', 'only']))"
        )
    return int(found[0])


def texts(coord: xr.DataArray) -> list[str]:
    """Return the values of a coordinate of names."""
    return [str(value) for value in coord.to_numpy().tolist()]


def require_cube(ds: Any) -> None:
    """Raise SchemaError unless it is an attributions cube, with sets along `map` and methods."""
    if not isinstance(ds, xr.Dataset):
        raise SchemaError(
            f"found a {type(ds).__name__}; the Dataset of the cube is needed: run['attributions'].to_dataset()"
        )
    lacking = [dim for dim in ("sample", "map", "attribution") if dim not in ds.dims]
    if lacking or "kind" not in ds.coords:
        missing = f"dims {lacking}" if lacking else "coordinate 'kind' of 'map'"
        raise SchemaError(
            f"found {dict(ds.sizes)}, which lacks {missing} of the attributions cube; take "
            "run['attributions'].to_dataset(), and select with lists to keep dims"
        )


def origin(ds: xr.Dataset) -> dict[str, Any]:
    """Return the attributes that say where numbers come from."""
    return {key: ds.attrs[key] for key in schema.PROVENANCE if key in ds.attrs}


def measured_with(ds: xr.Dataset, part: str) -> dict[str, Any]:
    """Return the settings that a part of an opened cube was measured with; none for a Dataset made by hand."""
    found = json.loads(ds.attrs["settings"]) if "settings" in ds.attrs else {}
    settings: dict[str, Any] = found.get("parts", {}).get(part, {})
    return settings


def described(found: xr.Dataset, ds: xr.Dataset, score: str, level: str) -> xr.Dataset:
    """Describe statistics of a score, and say where they come from."""
    units = schema.ATTRIBUTION_SCORES[score].units
    for name, array in found.data_vars.items():
        if declared := schema.GRID_STATISTICS.get(str(name)):
            array.attrs = declared.attrs | ({"units": units} if declared.units == schema.SCORE else {})
    return found.assign_attrs(origin(ds) | {"score": score, "level": level})


def _concentration(ds: xr.Dataset, name: str, level: str, mass: float | None) -> xr.DataArray:
    settings = measured_with(ds, "maps")
    studied = settings.get("mass", 0.9)
    if level == "pixel":
        if name != "sparsity":
            raise SchemaError(f"{name!r} of pixels needs whole maps, which the cube does not hold; take level='patch'")
        if mass is not None and mass != studied:
            raise SchemaError(
                f"pixels were counted for mass={studied} when maps were measured, and mass={mass} was asked for; take "
                f"level='patch', or set mass = {mass} in the study's [attributions] table and run it"
            )
        schema.present(ds, "pixel_sparsity")
        return ds["pixel_sparsity"]
    schema.present(ds, "patch")
    table = ds["patch"]
    if name == "gini":
        return gini(table)
    if name == "entropy":
        return entropy(table)
    found = sparsity(table, mass=studied if mass is None else mass, compat=settings.get("compat"))
    return found.where(table.notnull().all(PATCH))


def _drop(ds: xr.Dataset, name: str, level: str) -> xr.DataArray:
    kind = "logit" if name == "logit_drop" else "log_prob"
    schema.present(ds, kind, f"masked_{kind}")
    masked = ds[f"masked_{kind}"]
    there = texts(ds["level"]) if "level" in masked.dims else []
    if level not in there:
        raise SchemaError(f"what is taken away is {there or 'one level'}, and {level!r} was asked for; keep it in ds")
    before, without = ds[kind], masked.isel(level=there.index(level))
    change: Any = before - without
    if name == "drop":
        change = np.exp(before) - np.exp(without)
    elif name == "relative_drop":
        change = -np.expm1(-change)
    out: xr.DataArray = change.transpose(*without.dims)
    return out


def _completeness(ds: xr.Dataset, name: str) -> xr.DataArray:
    schema.present(ds, "total", "output", "baseline_output")
    change, methods = ds["output"] - ds["baseline_output"], texts(ds["attribution"])
    if INTEGRAL not in methods:
        raise SchemaError(f"{name!r} is of {INTEGRAL}, and the methods are {sorted(methods)}; add it to them")
    if name == "gap":
        whole = ds["total"].isel(map=whole_of(ds), attribution=methods.index(INTEGRAL), drop=True)
        return whole - change
    total = ds["total"].where(xr.DataArray([method == INTEGRAL for method in methods], dims="attribution"))
    return (total / change.where(change != 0)).transpose(*ds["total"].dims)


def _choice(name: str, value: Any, known: Iterable[str]) -> None:
    if value not in (known := tuple(known)):
        raise SchemaError(f"{name}={value!r} is unknown; {nearest(str(value), known)}")
