"""Records of what a cube's group is, and of what a run wants it to be."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neurolens import schema


@dataclass(frozen=True)
class Axis:
    """One fixed dimension of a cube: unique ids, and further coordinates of what lies along it, each (n,)."""

    ids: np.ndarray
    coords: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


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
    """How a cube lies in the store: ids and fingerprint per block of samples, in stored order.

    A cube that is not blocked by samples has one block, without ids, whose fingerprint is that of the samples it was
    measured on. ``sizes`` are the lengths of all dims but the series. ``change`` says what preparing did or would do
    to the group, and is empty where it is as wanted.
    """

    cube: str
    series: str
    generation: int
    blocks: tuple[np.ndarray, ...]
    fingerprints: tuple[str, ...]
    change: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """What a run wants a cube's group to be."""

    cube: schema.Cube
    run: str
    series: str
    samples: SampleCoords | None
    settings: Mapping[str, Any]
    exposure: Mapping[int, Sequence[int]] | None = None
    variables: tuple[str, ...] | None = None
    positions: frozenset[int] | None = None
    axes: Mapping[str, Axis] = field(default_factory=dict)
    block_samples: int | None = None
    fingerprint: str | None = None
    encodings: Mapping[str, str] = field(default_factory=dict)

    @property
    def measured(self) -> tuple[schema.Variable, ...]:
        """The variables that get an array: those of the parts in the settings, or the ones named."""
        parts = [self.cube.part(name) for name in self.settings.get("parts", {})]
        return tuple(v for p in parts for v in p.variables if self.variables is None or v.name in self.variables)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; empty where the cube has none."""
        if self.samples is not None:
            return tuple(self.samples.classes)
        return tuple(np.asarray(self.axes["class"].ids, str).tolist()) if "class" in self.axes else ()


@dataclass(frozen=True)
class Snapshot:
    """One committed state of a store."""

    id: str
    time: datetime.datetime
    message: str


@dataclass(frozen=True)
class Prepared:
    """What this process prepared a cube for: its generation, and the reading of each part."""

    generation: int | None = None
    readings: Mapping[str, int] = field(default_factory=dict)


def blocked(cube: schema.Cube) -> bool:
    """Whether a cube's rows are kept in blocks of samples."""
    return "sample" in cube.dims


def main_dims(cube: schema.Cube) -> frozenset[str]:
    """Return the fixed dims that all of a cube hangs on: those of its first part."""
    dims = {dim for variable in cube.parts[0].variables for dim in variable.dims}
    return frozenset(dims - {schema.SERIES} - ({"sample"} if blocked(cube) else set()))
