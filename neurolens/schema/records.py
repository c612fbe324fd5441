"""What a declaration is: a variable, a part of variables that go stale together, a cube of parts."""

from dataclasses import dataclass

import numpy as np

from neurolens.errors import SchemaError, nearest

SERIES = "series"
SERIES_DIMS = ("epoch", "step")

PROVENANCE = ("run", "cube", "data", "snapshot", "generation")
"""Attributes of an opened cube that results keep: where their numbers come from."""


@dataclass(frozen=True)
class Variable:
    """One named array of a cube.

    ``dtype`` is the stored dtype. Integer variables with a ``fill`` are opened as ``opened``, with NaN where the value
    was not measured. ``summed`` variables keep float64 sums and counts per (series, class) beside them.
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    units: str
    description: str
    source: str = ""
    fill: float | int | None = None
    summed: bool = False
    opened: str = "float32"

    @property
    def fill_value(self) -> float | int:
        """The stored value that means *not measured*."""
        if self.fill is not None:
            return self.fill
        return float("nan") if np.dtype(self.dtype).kind == "f" else 0

    @property
    def attrs(self) -> dict[str, str]:
        """The xarray attributes: long_name, units, and source where there is one."""
        attrs = {"long_name": self.description, "units": self.units}
        return attrs | {"source": self.source} if self.source else attrs


@dataclass(frozen=True)
class Part:
    """Variables of one cube that are measured together and go stale together.

    ``option`` is the key of the cube's table in a study that switches the part on; None: it is always measured.
    """

    name: str
    variables: tuple[Variable, ...]
    option: str | None = None


@dataclass(frozen=True)
class Cube:
    """A group of the store: its dims, and its variables by part.

    ``adopted`` is the command that brings in a cube that is not measured here. ``growing`` are dims that are added to:
    what a study no longer names stays in the store, and rows hold some of it; samples of such a cube are opened in the
    study's order, and what follows an @ in an id is not part of its name. ``sample`` is what an opened cube calls
    the dim ``sample``, where what is shown to the network are no samples of [data].
    """

    name: str
    dims: tuple[str, ...]
    parts: tuple[Part, ...]
    coords: tuple[Variable, ...] = ()
    description: str = ""
    adopted: str = ""
    growing: tuple[str, ...] = ()
    sample: str = "sample"

    @property
    def variables(self) -> tuple[Variable, ...]:
        """All data variables, in order of their parts."""
        return tuple(v for p in self.parts for v in p.variables)

    def opened(self, dim: str) -> str:
        """Return what an opened cube calls a stored dim."""
        return self.sample if dim == "sample" else dim

    def mend(self, variable: str) -> str:
        """Say how a variable that was not measured comes to be measured."""
        if self.adopted:
            return self.adopted
        option = self.part_of(variable).option
        switch = f" with {option} = true in the study's [{self.name}] table" if option else ""
        return f"`neurolens run STUDY --only {self.name}`{switch}"

    def part(self, name: str) -> Part:
        """Return the part with this name, or raise SchemaError naming the nearest."""
        for part in self.parts:
            if part.name == name:
                return part
        raise SchemaError(f"cube {self.name!r} has no part {name!r}; {nearest(name, [p.name for p in self.parts])}")

    def part_of(self, variable: str) -> Part:
        """Return the part that measures this variable, or raise SchemaError naming the nearest."""
        for part in self.parts:
            if any(v.name == variable for v in part.variables):
                return part
        raise SchemaError(
            f"cube {self.name!r} has no variable {variable!r}; {nearest(variable, [v.name for v in self.variables])}"
        )
