"""Fixed axes: the dims of a cube that are neither its series nor its samples, and what happens when they change.

An axis is stored as a coordinate of its own name and further ones along it. It is another one when its ids differ, or
a coordinate that both have. A cube whose main axis is another one starts a new generation; with any other, the arrays
along it are removed, and what their parts measured is absent. An axis that the cube lets grow keeps what it has, in its
place, and gets what is new at its end; its coordinate `NAMED` says what the study names now.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import zarr

from neurolens import schema
from neurolens.errors import SchemaError, nearest
from neurolens.store.arrays import dims_of, grow, holds, overlaid, put, storable
from neurolens.store.ledger import ABSENT, array_in, arrays_in, group_in, strings
from neurolens.store.records import Axis, Wanted, blocked, main_dims
from neurolens.store.shapes import MAX_CHUNK

NAMED = "named"


def plural(dim: str) -> str:
    """Return the word for several entries of a dim."""
    return {"category": "categories", "class": "classes"}.get(dim, f"{dim}s")


def check(wanted: Wanted, reserved: frozenset[str]) -> None:
    """Raise SchemaError if the axes contradict themselves, or the measured variables need others."""
    cube = wanted.cube
    allowed = set(cube.dims) - {schema.SERIES}
    allowed = allowed - {"sample", "class"} if blocked(cube) else allowed | {"sample"}
    taken = {v.name: f"the variable {v.name!r}" for v in cube.variables} | dict.fromkeys(cube.dims, "a dim")
    if wanted.samples is not None:
        taken |= dict.fromkeys(wanted.samples.coords, "a coordinate of the samples")
    for dim, axis in wanted.axes.items():
        if dim not in allowed:
            raise SchemaError(f"cube {cube.name!r} has no axis {dim!r}; {nearest(dim, allowed)}")
        n = len(axis)
        if n == 0:
            raise SchemaError(f"axis {dim!r} of cube {cube.name!r} is empty; give at least one id")
        if len(np.unique(axis.ids)) < n:
            raise SchemaError(f"axis {dim!r} of cube {cube.name!r} has ids that repeat; ids must be unique")
        for name, values in axis.coords.items():
            if np.shape(values) != (n,):
                raise SchemaError(f"{name!r} has shape {np.shape(values)} along {dim!r}; give {n} values")
            if name in taken or name in (reserved if blocked(cube) else reserved - {"label"}):
                what = taken.get(name, "the store's own")
                raise SchemaError(f"a coordinate of {dim!r} cannot be named {name!r}: that is {what}; rename it")
            taken[name] = f"a coordinate of {dim!r}"
    given = set(wanted.axes) | ({"sample", "class"} if blocked(cube) else set())
    for variable in wanted.measured:
        if variable.dims[0] != schema.SERIES or len(variable.dims) < 2:
            raise SchemaError(f"{variable.name!r} has dims {variable.dims}; a row is along {schema.SERIES!r} and more")
        if blocked(cube) and "sample" not in variable.dims:
            raise SchemaError(f"{variable.name!r} has dims {variable.dims}; rows of {cube.name!r} are of samples")
        missing = [dim for dim in variable.dims[1:] if dim not in given]
        if missing:
            raise SchemaError(
                f"{variable.name!r} has dims {variable.dims}, and there is no axis {missing[0]!r}; "
                f"pass axes={{{missing[0]!r}: Axis(ids)}}"
            )
    for dim in sorted(main_dims(cube) - given):
        raise SchemaError(f"cube {cube.name!r} lies along {dim!r}; pass axes={{{dim!r}: Axis(ids)}}")


def sizes(group: zarr.Group) -> dict[str, int]:
    """Return the length of every dim but the series that has a coordinate."""
    return {name: array.shape[0] for name, array in arrays_in(group).items() if dims_of(array) == (name,)}


def grown(group: zarr.Group | None, wanted: Wanted) -> Wanted:
    """Return what is wanted with its growing axes as they would be: what is stored of them, and what is new behind it.

    Coordinates of what both have are the wanted ones.
    """
    out = dict(wanted.axes)
    for dim in set(wanted.cube.growing) & out.keys():
        out[dim] = _grown(group, dim, out[dim])
    return replace(wanted, axes=out)


def _grown(group: zarr.Group | None, dim: str, axis: Axis) -> Axis:
    ids = np.asarray(axis.ids)
    before = ids[:0] if group is None or dim not in group else np.asarray(array_in(group, dim)[:])
    at = {name: i for i, name in enumerate(ids.tolist())}
    every = [*before.tolist(), *(name for name in ids.tolist() if name not in set(before.tolist()))]
    known = np.array([at.get(name, -1) for name in every], dtype=np.int64)
    coords: dict[str, np.ndarray] = {}
    for name, given in axis.coords.items():
        held = np.asarray(array_in(group, name)[:]) if group is not None and name in group else None
        coords[name] = overlaid(len(every), held, known >= 0, storable(given)[known[known >= 0]])
    return Axis(np.array(every, dtype=storable(ids).dtype), {**coords, f"{dim}_{NAMED}": known >= 0})


def compare(group: zarr.Group, dim: str, axis: Axis, *, growing: bool = False) -> str:
    """Say what a stored axis is to a wanted one: ``new``, ``same``, ``other``, ``longer``, or of other ``coords``."""
    if dim not in group:
        return "new"
    if growing and array_in(group, dim).shape[0] < len(axis):
        return "longer"
    wanted = {dim: storable(axis.ids), **{name: storable(values) for name, values in axis.coords.items()}}
    stored = {name for name, array in arrays_in(group).items() if dims_of(array) == (dim,)}
    if not growing and any(not _equal(group, name, wanted[name]) for name in stored & wanted.keys()):
        return "other"
    if stored == wanted.keys() and all(holds(group, name, values) for name, values in wanted.items()):
        return "same"
    return "coords"


def _equal(group: zarr.Group, name: str, values: np.ndarray) -> bool:
    """Whether a coordinate holds these values, in whatever dtype."""
    stored = np.asarray(array_in(group, name)[:])
    if stored.shape != values.shape or (stored.dtype.kind == "T") != (values.dtype.kind == "T"):
        return False
    both_floats = stored.dtype.kind == "f" and values.dtype.kind == "f"
    return bool(np.array_equal(stored, values, equal_nan=both_floats))


def reasons_to_renew(group: zarr.Group, wanted: Wanted) -> list[str]:
    """Name the main axes that are other ones now."""
    out = []
    for dim in sorted(main_dims(wanted.cube) & wanted.axes.keys()):
        if compare(group, dim, wanted.axes[dim]) == "other":
            before, now = array_in(group, dim).shape[0], len(wanted.axes[dim])
            how = f"were {before} and are {now}" if before != now else "are other ones"
            out.append(f"the {plural(dim)} {how}")
    return out


def differences(group: zarr.Group, wanted: Wanted) -> list[str]:
    """Name what would change of the axes, short of the main ones becoming others."""
    out = []
    for dim, axis in wanted.axes.items():
        found = compare(group, dim, axis, growing=dim in wanted.cube.growing)
        if found == "new":
            out.append(f"add axis {dim}")
        elif found == "longer":
            out.append(f"add {len(axis) - array_in(group, dim).shape[0]} {plural(dim)}")
        elif found == "coords":
            out.append(f"update coordinates of {dim}")
        elif found == "other":
            parts = sorted({wanted.cube.part_of(name).name for name in _along(group, wanted, dim)})
            out.append(f"replace axis {dim}" + (f" and measure {', '.join(parts)} again" if parts else ""))
    return out


def bring_up(group: zarr.Group, wanted: Wanted) -> None:
    """Store the wanted axes; what lies along one that was replaced is removed, and its parts are absent."""
    for dim, axis in wanted.axes.items():
        found = compare(group, dim, axis, growing=dim in wanted.cube.growing)
        if found == "same":
            continue
        if found == "other":
            _remove_along(group, wanted, dim)
        if found == "longer":
            grow((array for array in arrays_in(group).values() if len(array.shape) > 1), dim, len(axis))
        for name, array in arrays_in(group).items():
            if dims_of(array) == (dim,):
                del group[name]
        chunk = min(len(axis), MAX_CHUNK)
        for name, values in {dim: axis.ids, **axis.coords}.items():
            put(group, name, np.asarray(values), dim, chunk)


def _along(group: zarr.Group, wanted: Wanted, dim: str) -> list[str]:
    """Name the stored variables that lie along an axis."""
    return [v.name for v in wanted.cube.variables if dim in v.dims and v.name in group]


def _remove_along(group: zarr.Group, wanted: Wanted, dim: str) -> None:
    names, ledger = _along(group, wanted, dim), group_in(group, "ledger")
    parts = {wanted.cube.part_of(name).name for name in names}
    for name, array in arrays_in(group).items():
        if dim in dims_of(array) and len(array.shape) > 1:
            del group[name]
    at = [i for i, part in enumerate(strings(ledger, "part").tolist()) if part in parts]
    blank: dict[str, Any] = {"state": ABSENT, "key": 0, "reading": 0, "seconds": np.nan, "time": np.nan}
    for name, fill in {**blank, "error": "", "provenance": ""}.items():
        array = array_in(ledger, name)
        for part in at:
            array[:, :, part] = fill
