"""Samples of a cube that keeps them: which of those that are stored the study names now, and in which order.

What a study names no longer stays, in its place and its block; the coordinate `PLACE` is its place in the study, or −1.
"""

from typing import Any

import numpy as np
import zarr

from neurolens import schema
from neurolens.store.arrays import overlaid, storable
from neurolens.store.ledger import PLACE, array_in, strings
from neurolens.store.records import SampleCoords


def keeps(cube: schema.Cube) -> bool:
    """Whether samples that the study no longer names stay as they are."""
    return "sample" in cube.growing


def places(group: zarr.Group, samples: SampleCoords) -> np.ndarray:
    """Return the place of each stored sample among those that are wanted, (sample,) int64, −1 where it is not."""
    at = {name: i for i, name in enumerate(np.asarray(samples.ids, str).tolist())}
    return np.array([at.get(name, -1) for name in strings(group, "sample").tolist()], dtype=np.int64)


def kept_order(group: zarr.Group, samples: SampleCoords) -> dict[str, np.ndarray]:
    """Return the coordinates of all stored samples: the wanted ones, and those that are stored of what is not wanted.

    Their places are among them.
    """
    place = places(group, samples)
    known = place >= 0
    out: dict[str, np.ndarray] = {}
    for name, given in samples.coords.items():
        held = np.asarray(array_in(group, name)[:]) if name in group else None
        out[name] = overlaid(len(place), held, known, storable(given)[place[known]])
    return {**out, PLACE: place}


def changes(group: zarr.Group, samples: SampleCoords, dim: str) -> list[str]:
    """Name what differs of the samples that the study names, and of their order."""
    now = places(group, samples)
    before: Any = np.asarray(array_in(group, PLACE)[:]) if PLACE in group else np.full(len(now), -1)
    if np.array_equal(before, now):
        return []
    gone, back = int(((before >= 0) & (now < 0)).sum()), int(((before < 0) & (now >= 0)).sum())
    out = [f"leave out {gone} {dim}{'s' if gone > 1 else ''}"] if gone else []
    out += [f"take in {back} {dim}{'s' if back > 1 else ''} again"] if back else []
    return out or [f"put {dim}s in another order"]
