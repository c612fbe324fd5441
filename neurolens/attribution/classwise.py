"""Scores with and without a filter class by class, in parts that can be merged."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from neurolens.attribution.paired import require_pairs
from neurolens.attribution.reading import Level, each_checkpoint, pair_needed
from neurolens.errors import MissingMeasurementError, SchemaError, nearest

Array = npt.NDArray[Any]

_QUANTITIES = ("filtered", "baseline", "difference")


def per_class(
    filtered: xr.DataArray | xr.Dataset,
    baseline: xr.DataArray | None = None,
    *,
    score: str = "drop",
    level: Level = "patch",
    kinds: str | Sequence[str] = "without",
    only: Iterable[Any] | None = None,
    classes: str = "label",
    dim: str = "sample",
) -> xr.Dataset:
    """Describe the scores of each class, with and without a filter.

    **Eager.** Samples that have no score in one of the two are left out. Any samples can be given, e.g. those of some
    classes; `merge_classes` puts such parts together.

    Parameters
    ----------
    filtered : Dataset of the opened attributions cube, or scores (sample, …)
        Of a cube, sets of some kinds are described beside the whole, checkpoint by checkpoint. Scores are e.g. the drop
        of the probability.
    baseline : (sample, …), with scores
        Those of the unfiltered maps of the same samples; dims that it lacks are those over which it is the same.
    score, level, kinds : with a cube
        Which of the scores of `neurolens.attribution.map_scores`, of which entries (patch or pixel), and of which kinds
        of sets (only, without, union, control).
    only
        These classes, e.g. ``range(200)``; absent: all that have samples.
    classes
        The coordinate along ``dim`` that holds the class.
    dim
        That of the samples.

    Returns
    -------
    Dataset over (class, …), of a cube (class, series, map, attribution)
        ``n`` pairs of scores. ``filtered_mean``, ``filtered_std`` (ddof 0), the same of ``baseline`` and of
        ``difference`` = filtered − baseline, in the unit of the scores, and ``improved``, the share of differences
        above 0: NaN where ``n`` is 0. Classes are sorted; those without a sample are absent. Of a cube that names its
        classes, with coordinate ``class_name``.

    Raises
    ------
    SchemaError
        If samples are not the same, a dim or the coordinate is missing, there is no sample of the classes, or a cube
        has no whole, or no sets of the kinds.
    MissingMeasurementError
        If the score of a cube was not measured.
    NonFiniteError
        If a score is infinite.
    """
    if only is not None:
        filtered, baseline = _only(filtered, baseline, list(only), classes, dim)
    if isinstance(filtered, xr.Dataset):
        found = each_checkpoint(
            filtered,
            baseline,
            lambda one, whole, named: per_class(one, whole, classes=named or classes, dim=dim),
            score=score,
            level=level,
            kinds=kinds,
            classes=classes,
        )
        return _class_names(found.transpose("class", ...), filtered, classes)
    if baseline is None:
        raise pair_needed("per_class")
    pairs = require_pairs(filtered, baseline, dim, classes)
    groups, names = pairs.groups, pairs.names
    assert groups is not None
    assert names is not None
    order = np.argsort(groups, kind="stable")
    group, starts = groups[order], np.searchsorted(groups[order], np.arange(len(names)))
    known = np.isfinite(pairs.difference)[order]
    n = np.add.reduceat(known.astype(np.int64), starts, axis=0)

    def mean(values: Array) -> Array:
        sums = np.add.reduceat(np.where(known, values, 0.0), starts, axis=0)
        return np.where(n > 0, sums / np.maximum(n, 1), np.nan)

    out: dict[str, Any] = {"n": n}
    for name in _QUANTITIES:
        values = getattr(pairs, name)[order]
        out[f"{name}_mean"] = mean(values)
        out[f"{name}_std"] = np.sqrt(mean((values - out[f"{name}_mean"][group]) ** 2))
    out["improved"] = mean(pairs.difference[order] > 0)
    dims, shape = ("class", *pairs.dims), (len(names), *pairs.shape)
    coords = {**pairs.coords, "class": names}
    return xr.Dataset({name: (dims, values.reshape(shape)) for name, values in out.items()}, coords)


def _only(
    filtered: xr.DataArray | xr.Dataset, baseline: xr.DataArray | None, wanted: list[Any], classes: str, dim: str
) -> tuple[xr.DataArray | xr.Dataset, xr.DataArray | None]:
    """Select the samples of some classes."""
    if classes not in filtered.coords or filtered[classes].dims != (dim,):
        along = [str(name) for name, coord in filtered.coords.items() if coord.dims == (dim,)]
        raise SchemaError(f"there is no coordinate {classes!r} of {dim!r}; {nearest(classes, along)}")
    there = filtered[classes].to_numpy()
    at = np.flatnonzero(pd.Series(there).isin(wanted).to_numpy())
    if not len(at):
        known = pd.unique(there).tolist()
        raise SchemaError(
            f"there is no sample of classes {wanted[:12]} in {classes!r}, which has {len(known)} classes, e.g. "
            f"{known[:12]}; name some of those"
        )
    return filtered.isel({dim: at}), None if baseline is None else baseline.isel({dim: at})


def _class_names(found: xr.Dataset, ds: xr.Dataset, classes: str) -> xr.Dataset:
    """Add the names of classes where the cube has them: a label is a place along `class`."""
    numbers = found["class"].to_numpy()
    if classes != "label" or "class" not in ds.coords or ds["class"].dims != ("class",):
        return found
    if not ((numbers >= 0) & (numbers < ds.sizes["class"])).all():
        return found
    return found.assign_coords(class_name=("class", ds["class"].to_numpy()[numbers]))


def merge_classes(*parts: xr.Dataset, shared: Literal["refuse", "pool"] = "refuse") -> xr.Dataset:
    """Put together what `per_class` says of different samples.

    **Eager.**

    Parameters
    ----------
    parts : Datasets from `per_class`
        Of different samples: one that is in two of them counts twice.
    shared : {"refuse", "pool"}
        A class in two parts: raise, or pool them, for parts that hold different samples of a class.

    Returns
    -------
    Dataset over (class, …)
        As if all samples had been given at once. The order of the parts does not matter, but for rounding.

    Raises
    ------
    SchemaError
        If there are no parts, they are of different filters, or share a class that is not to be pooled.
    MissingMeasurementError
        If a part lacks what `per_class` gives.

    References
    ----------
    Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances".
    """
    if shared not in ("refuse", "pool"):
        raise SchemaError(f"shared={shared!r} is unknown; {nearest(str(shared), ('refuse', 'pool'))}")
    if not parts:
        raise SchemaError("found nothing to merge; give what per_class returns, once or more")
    wanted = ("n", "improved", *(f"{name}_{of}" for name in _QUANTITIES for of in ("mean", "std")))
    for part in parts:
        if missing := [name for name in wanted if name not in part]:
            raise MissingMeasurementError(f"a part lacks {missing}; merge what per_class returns")
    stacked = [part.transpose("class", ...) for part in parts]
    first = stacked[0]["n"].isel({"class": 0}, drop=True)
    for part in stacked[1:]:
        one = part["n"].isel({"class": 0}, drop=True)
        if one.dims != first.dims or any(not one[d].equals(first[d]) for d in first.dims):
            raise SchemaError(
                f"parts are of different filters, over {first.dims} and {one.dims} or other names along them; merge "
                "parts of the same ones"
            )
    every = np.concatenate([part["class"].to_numpy() for part in stacked])
    codes, names = pd.factorize(every, sort=True)
    if shared == "refuse" and len(names) < len(every):
        doubled = names[np.bincount(codes) > 1].tolist()
        raise SchemaError(
            f"classes {doubled[:12]} are in more than one part; leave out what is there twice, or pool different "
            "samples of a class: merge_classes(…, shared='pool')"
        )

    def rows(name: str) -> Array:
        return np.concatenate([np.asarray(part[name].to_numpy(), dtype=np.float64) for part in stacked])

    def total(values: Array) -> Array:
        out = np.zeros((len(names), *values.shape[1:]))
        np.add.at(out, codes, np.where(rows("n") > 0, values, 0.0))
        return out

    n = total(rows("n"))
    size = np.where(n > 0, n, np.nan)
    out: dict[str, Array] = {"n": n.astype(np.int64)}
    for name in _QUANTITIES:
        mean = total(rows("n") * rows(f"{name}_mean")) / size
        within = rows(f"{name}_std") ** 2 + (rows(f"{name}_mean") - mean[codes]) ** 2
        out[f"{name}_mean"], out[f"{name}_std"] = mean, np.sqrt(total(rows("n") * within) / size)
    out["improved"] = total(rows("n") * rows("improved")) / size
    dims, coords = stacked[0]["n"].dims, {**first.coords, "class": names}
    if all("class_name" in part.coords for part in stacked):
        at = np.unique(codes, return_index=True)[1]
        coords["class_name"] = ("class", np.concatenate([part["class_name"].to_numpy() for part in stacked])[at])
    found = xr.Dataset({name: (dims, values) for name, values in out.items()}, coords, attrs=stacked[0].attrs)
    for variable, array in found.data_vars.items():
        array.attrs = dict(stacked[0][variable].attrs)
    return found
