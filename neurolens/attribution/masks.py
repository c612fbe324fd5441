"""Which units an attribution goes through: clusters of a layer, what is left without them, unions, random controls."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import SchemaError, nearest

Array = npt.NDArray[Any]


def unit_masks(members: Mapping[str, npt.ArrayLike]) -> xr.DataArray:
    """Return masks by name.

    Parameters
    ----------
    members : name → (units,) bool
        Which units of the layer belong to each.

    Returns
    -------
    masks : (map, unit) bool
        With the names as coordinate ``map``.

    Raises
    ------
    SchemaError
        If there are none, they are not bool, or differ in their number of units.
    """
    rows = {str(name): np.asarray(row) for name, row in members.items()}
    if not rows:
        raise SchemaError("found no masks, and at least one set of units was needed; name one")
    for name, row in rows.items():
        if row.ndim != 1 or row.dtype != np.bool_:
            raise SchemaError(
                f"mask {name!r} has dtype {row.dtype} and shape {row.shape}, and one bool per unit was needed; give "
                "e.g. labels == 2"
            )
    sizes = {len(row) for row in rows.values()}
    if len(sizes) > 1:
        raise SchemaError(f"found masks over {sorted(sizes)} units, and one layer has one number of them; split them")
    names = np.array(list(rows), dtype=object)
    return xr.DataArray(np.stack(list(rows.values())), dims=("map", "unit"), coords={"map": names})


def cluster_masks(labels: npt.ArrayLike | xr.DataArray, *, name: str | None = None) -> xr.DataArray:
    """Return the mask of each cluster of a layer's units.

    Parameters
    ----------
    labels : (units,) whole numbers
        The cluster of each unit.
    name
        Of the clustering; default ``k3`` for three clusters. Its clusters are named ``k3/0``, ``k3/1``, …, by label.

    Returns
    -------
    masks : (map, unit) bool
        Clusters in the order of their labels. Each unit is in one.

    Raises
    ------
    SchemaError
        If the labels are no row of whole numbers.
    """
    values = np.asarray(labels)
    if values.ndim != 1 or not len(values) or not np.issubdtype(values.dtype, np.integer):
        raise SchemaError(
            f"labels have dtype {values.dtype} and shape {values.shape}, and one whole number per unit was needed; "
            "give the labels of one clustering of one layer"
        )
    found = np.unique(values)
    name = f"k{len(found)}" if name is None else name
    return unit_masks({f"{name}/{label}": values == label for label in found.tolist()})


def complements(masks: xr.DataArray) -> xr.DataArray:
    """Return for each mask the units that it leaves out, named ``without k3/0``: the clusters filtered away.

    Raises
    ------
    SchemaError
        If there is no (map, unit) bool array with names.
    """
    rows = require_masks(masks)
    return unit_masks({f"without {name}": ~row for name, row in rows.items()})


def unions(masks: xr.DataArray, groups: Mapping[str, Iterable[str]]) -> xr.DataArray:
    """Return the units that any of some masks has, by group.

    Parameters
    ----------
    masks : (map, unit) bool
    groups : name → names of masks

    Raises
    ------
    SchemaError
        If a name is not among the masks (near names are given), or a group has none.
    """
    rows, out = require_masks(masks), {}
    for group, names in groups.items():
        parts = list(names)
        if not parts:
            raise SchemaError(f"union {group!r} is of no masks; name at least one of {list(rows)}")
        for name in parts:
            if name not in rows:
                raise SchemaError(f"union {group!r}: there is no mask {name!r}; {nearest(name, rows)}")
        out[group] = np.any([rows[name] for name in parts], axis=0)
    return unit_masks(out)


def controls(
    masks: xr.DataArray,
    *,
    draws: int = 20,
    seed: int = 0,
    strata: Sequence[Hashable] | npt.NDArray[Any] | None = None,
    compat: Literal["seed"] | None = None,
) -> xr.DataArray:
    """Draw random sets of as many units as each mask has, to compare it with.

    Parameters
    ----------
    masks : (map, unit) bool
        What is to be matched.
    draws
        Sets for each. More draws leave those before as they were.
    seed
        Decides the draws, together with the place of the draw and of the mask.
    strata : (units,), optional
        A group for each unit. Of each group as many units are drawn as the mask has there: those carried into a dense
        block and those new in it, or classes of gradient norm.
    compat : {"seed"}, optional
        Draw as the reference does: ``numpy.random.RandomState(seed + draw).choice(units, size, replace=False)``, which
        is the same set for all masks of one size.

    Returns
    -------
    masks : (map, unit) bool
        Named ``k3/0 control 0``, ``k3/0 control 1``, …

    Raises
    ------
    SchemaError
        If there is less than one draw, strata do not fit the units, or are asked of the reference's draws.
    """
    rows = require_masks(masks)
    units = masks.sizes["unit"]
    if draws < 1:
        raise SchemaError(f"draws={draws} is no number of random sets; give 20 or more, or leave the controls out")
    if compat not in (None, "seed"):
        raise SchemaError(f"compat={compat!r} is unknown; {nearest(str(compat), ('seed',))}")
    groups = np.zeros(units, dtype=np.int64)
    if strata is not None:
        if compat is not None:
            raise SchemaError("the reference draws from all units; leave out strata, or compat='seed'")
        if len(strata) != units:
            raise SchemaError(f"strata name {len(strata)} units, and the masks are over {units}; give one per unit")
        known = {group: number for number, group in enumerate(dict.fromkeys(strata))}
        groups = np.array([known[group] for group in strata], dtype=np.int64)
    out = {}
    for place, (name, row) in enumerate(rows.items()):
        for draw in range(draws):
            if compat == "seed":
                chosen = np.random.RandomState(seed + draw).choice(units, int(row.sum()), replace=False)
            else:
                generator = np.random.default_rng([seed, place, draw])
                chosen = np.concatenate(
                    [
                        generator.choice(
                            np.flatnonzero(groups == group), int(row[groups == group].sum()), replace=False
                        )
                        for group in range(groups.max() + 1)
                    ]
                )
            out[f"{name} control {draw}"] = np.isin(np.arange(units), chosen)
    return unit_masks(out)


def require_masks(masks: xr.DataArray) -> dict[str, Array]:
    """Return the rows of masks by name.

    Raises
    ------
    SchemaError
        If it is no bool array over (map, unit) with one name per map.
    """
    if set(masks.dims) != {"map", "unit"} or masks.dtype != np.bool_ or "map" not in masks.coords:
        raise SchemaError(
            f"found {masks.dtype} over {masks.dims}, and bool over ('map', 'unit') with names as coordinate 'map' was "
            "needed; make masks with unit_masks or cluster_masks"
        )
    names = [str(name) for name in masks["map"].to_numpy()]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise SchemaError(f"masks {doubled} are named more than once; rename them, e.g. cluster_masks(…, name=…)")
    return dict(zip(names, masks.transpose("map", "unit").to_numpy(), strict=True))
