"""Records of what a cube's group is, and of what a run wants it to be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neurolens import schema


@dataclass(frozen=True)
class SampleCoords:
    """The samples a cube is about: unique ids, labels (index into ``classes``), and further coordinates, each (N,)."""

    ids: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    coords: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Layout:
    """How a cube's samples lie in the store: ids and fingerprint per block, in stored order.

    ``change`` says what preparing did or would do to the group, and is empty where it is as wanted.
    """

    cube: str
    series: str
    generation: int
    blocks: tuple[np.ndarray, ...]
    fingerprints: tuple[str, ...]
    change: str = ""


@dataclass(frozen=True)
class Wanted:
    """What a run wants a cube's group to be."""

    cube: schema.Cube
    run: str
    series: str
    samples: SampleCoords
    settings: Mapping[str, Any]
    exposure: Mapping[int, Sequence[int]] | None = None
    variables: tuple[str, ...] | None = None
    positions: frozenset[int] | None = None

    @property
    def measured(self) -> tuple[schema.Variable, ...]:
        """The variables that get an array: those of the parts in the settings, or the ones named."""
        parts = [self.cube.part(name) for name in self.settings.get("parts", {})]
        return tuple(v for p in parts for v in p.variables if self.variables is None or v.name in self.variables)
