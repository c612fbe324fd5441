"""Rows of a block of samples of which a study names only some: what is not named is not measured.

A row's key says which samples of its block it lacks, if any. One that has all that is named now, or more, is done.
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

UNNAMED = "unnamed"
"""The entry of a row's provenance that says which samples of its block it lacks."""


def unnamed(blocks: Sequence[npt.NDArray[np.str_]], ids: npt.NDArray[np.str_]) -> list[tuple[int, ...]]:
    """Return, per block, the places in it of the samples that are not among those with ``ids``."""
    known = set(ids.tolist())
    return [tuple(i for i, name in enumerate(block.tolist()) if name not in known) for block in blocks]


def lacking_key(base: str, lacking: Sequence[int]) -> str:
    """Return the key of a row that lacks the samples at these places of its block; ``base`` is that of a whole one."""
    return key({"base": base, "without": sorted(lacking)}) if lacking else base


def wanted_key(entry: "LedgerRow | None", base: str, left_out: Sequence[int]) -> str:
    """Return the key that a part of a row should have: the one it has, where that lacks nothing that is named.

    Parameters
    ----------
    entry
        What the ledger holds of it.
    left_out
        Places in the block of what is not named now.
    """
    if entry is not None and entry.state == "done":
        lacks = lacking(entry)
        if set(lacks) <= set(left_out) and lacking_key(base, lacks) == entry.key:
            return entry.key
    return lacking_key(base, left_out)


def lacking(entry: "LedgerRow") -> list[int]:
    """Return the places of what a row lacks of its block."""
    found: list[int] = json.loads(entry.provenance or "{}").get(UNNAMED, [])
    return found


def filled_up(cube: schema.Cube, values: Mapping[str, Array], left_out: Sequence[int]) -> dict[str, Array]:
    """Return the variables of a row over its whole block, *not measured* at the places that were left out."""
    if not left_out:
        return dict(values)
    declared = {variable.name: variable for variable in cube.variables}
    out = {}
    for name, measured in values.items():
        count = len(measured) + len(left_out)
        at = np.setdiff1d(np.arange(count), np.asarray(left_out, dtype=np.int64))
        out[name] = np.full((count, *measured.shape[1:]), declared[name].fill_value, measured.dtype)
        out[name][at] = measured
    return out
