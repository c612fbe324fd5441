"""Rows that hold some of what can be measured: which sets of units a row has, and which it still lacks.

A set is known by its id on the store's axis and by its digest. A row's key is over all sets that it holds, so asking
for more leaves those as they are: only what is lacking is measured, and the row is written with both.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from neurolens import schema
from neurolens.rows.keys import key

if TYPE_CHECKING:
    from neurolens.store import LedgerRow

Array = npt.NDArray[Any]
Sets = Mapping[str, str]
"""Id on the axis → digest."""

AXIS = "map"
HELD = "maps"
"""The entry of a row's provenance that says what it holds."""


def holds_sets(cube: str, part: str) -> bool:
    """Whether the numbers of a part are of sets of units."""
    found = schema.CUBES[cube]
    return AXIS in found.growing and any(AXIS in variable.dims for variable in found.part(part).variables)


def sets_key(base: str, sets: Sets) -> str:
    """Return the key of a part of a row that holds these sets; ``base`` is the key of all else that decides it."""
    return key({"base": base, "sets": [list(one) for one in sorted(sets.items())]})


def held_sets(entry: "LedgerRow", base: str, ids: Sequence[str]) -> dict[str, str]:
    """Return what a row holds of a part and may keep: nothing, if it was measured otherwise.

    Parameters
    ----------
    base
        Key that the part would have now, but for its sets.
    ids
        Those of the store's axis, in its order.
    """
    if entry.state != "done":
        return {}
    told = json.loads(entry.provenance or "{}").get(HELD, {}).get(entry.part, [])
    sets: dict[str, str] = {}
    for first, second in told:
        if isinstance(second, str):
            sets |= {ids[first]: second}
        else:
            sets |= {name: name.rpartition("@")[2] for name in ids[first:second]}
    return sets if sets_key(base, sets) == entry.key else {}


def told_sets(sets: Sets, ids: Sequence[str]) -> list[list[Any]]:
    """Return what a row's provenance says of its sets.

    Runs of places on the axis, ``[first, end]``, of ids that end in the digest; else ``[place, digest]``.
    """
    at = {name: place for place, name in enumerate(ids)}
    out: list[list[Any]] = []
    for place, digest in sorted((at[name], digest) for name, digest in sets.items()):
        if not ids[place].endswith(f"@{digest}"):
            out.append([place, digest])
        elif out and out[-1][1] == place:
            out[-1][1] = place + 1
        else:
            out.append([place, place + 1])
    return out


def spread(
    variable: schema.Variable,
    sizes: Mapping[str, int],
    *,
    measured: tuple[Array, Mapping[int, int]] | None = None,
    stored: tuple[Array, Sequence[int]] | None = None,
) -> Array:
    """Return a variable of a row over all of the store's axis, *not measured* where the row holds nothing.

    Parameters
    ----------
    sizes
        Length of each of its dims but the series.
    measured
        Values over the sets that were measured, and place on the axis → place among them.
    stored
        Values as the store has them, and the places of what is kept of them.
    """
    dims = variable.dims[1:]
    axis = dims.index(AXIS)
    shape = tuple(sizes[dim] for dim in dims)
    out = np.full(shape, variable.fill_value, dtype=variable.dtype)
    if stored is not None:
        values, places = stored
        at = (slice(None),) * axis + (list(places),)
        corner = tuple(slice(0, n) for i, n in enumerate(values.shape) if i > axis)
        out[(*at, *corner)] = values[at]
    if measured is not None:
        values, where = measured
        to, source = (slice(None),) * axis + (list(where),), (slice(None),) * axis + (list(where.values()),)
        out[to] = values[source]
    return out
