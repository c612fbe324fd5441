"""Every cube and variable, declared once: dims, dtype, units, meaning, source.

``series`` in a declared dim stands for the series dimension of the run, which is ``epoch`` or ``step``.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xarray as xr

from neurolens.errors import MissingMeasurementError, SchemaError, nearest
from neurolens.schema.attribution_results import ATTRIBUTION_RESULTS, ATTRIBUTION_SCORES, GRID_STATISTICS, SCORE
from neurolens.schema.attributions import ATTRIBUTIONS, CLUSTERS
from neurolens.schema.concepts import CONCEPTS
from neurolens.schema.effect_results import FUNCTIONAL_DEATHS
from neurolens.schema.effects import EFFECTS
from neurolens.schema.mortality_results import EVENTS, MORTALITY_RESULTS
from neurolens.schema.pairs import CODES, PAIRS, POOLS, TEXTS
from neurolens.schema.records import PROVENANCE, SERIES, SERIES_DIMS, Cube, Part, Variable
from neurolens.schema.samples import (
    CORRECT,
    CURVATURE,
    EL2N,
    ENTROPY,
    GRAD_NORM,
    GRAD_NORM_PIXEL,
    GRAND,
    LOSS,
    MARGIN,
    P_TRUE,
    PREDICTED,
    RESULTS,
    SAMPLES,
)
from neurolens.schema.tallies import TALLIES
from neurolens.schema.unit_results import UNIT_RESULTS
from neurolens.schema.units import ACTIVATIONS, DORMANCY, UNITS

__all__ = [
    "ACTIVATIONS",
    "ATTRIBUTIONS",
    "ATTRIBUTION_RESULTS",
    "ATTRIBUTION_SCORES",
    "CLUSTERS",
    "CODES",
    "CONCEPTS",
    "CORRECT",
    "CUBES",
    "CURVATURE",
    "DORMANCY",
    "EFFECTS",
    "EL2N",
    "ENTROPY",
    "EVENTS",
    "FUNCTIONAL_DEATHS",
    "GRAD_NORM",
    "GRAD_NORM_PIXEL",
    "GRAND",
    "GRID_STATISTICS",
    "LOSS",
    "MARGIN",
    "MORTALITY_RESULTS",
    "PAIRS",
    "POOLS",
    "PREDICTED",
    "PROVENANCE",
    "P_TRUE",
    "RESULTS",
    "SAMPLES",
    "SCORE",
    "SERIES",
    "SERIES_DIMS",
    "TALLIES",
    "TEXTS",
    "UNITS",
    "UNIT_RESULTS",
    "Cube",
    "Part",
    "Variable",
    "label",
    "present",
    "require",
    "series_dim",
    "template",
    "write_templates",
]

CUBES: dict[str, Cube] = {
    cube.name: cube
    for cube in (
        SAMPLES,
        UNITS,
        ACTIVATIONS,
        CONCEPTS,
        EFFECTS,
        CLUSTERS,
        ATTRIBUTIONS,
        TEXTS,
        POOLS,
        PAIRS,
        CODES,
        TALLIES,
        DORMANCY,
    )
}


def series_dim(data: xr.Dataset | xr.DataArray, dim: str | None = None) -> str:
    """Return the series dimension of ``data``: ``dim`` if given, else ``epoch`` or ``step``, whichever it has.

    Raises
    ------
    SchemaError
        If the named dim is absent, or neither or both of ``epoch`` and ``step`` are dims.
    """
    if dim is not None:
        if dim not in data.dims:
            raise SchemaError(f"there is no dim {dim!r}; found {tuple(map(str, data.dims))}; pass one of them as dim=")
        return dim
    found = [d for d in SERIES_DIMS if d in data.dims]
    if len(found) != 1:
        raise SchemaError(f"need one series dim of {SERIES_DIMS}, found {tuple(map(str, data.dims))}; pass it as dim=")
    return found[0]


def require(data: xr.Dataset, *names: str, dim: str | None = None) -> str:
    """Check that ``data`` holds the named variables along a series dimension, and return that dimension's name.

    Raises
    ------
    SchemaError
        If a variable is unknown (the nearest names are given) or lacks the series dim.
    MissingMeasurementError
        If a variable that a cube declares is absent: it was not measured; the message says which part to ask for.
    """
    series = series_dim(data, dim)
    for name in names:
        present(data, name)
        if series not in data[name].dims:
            raise SchemaError(f"{name!r} has dims {data[name].dims}; it needs {series!r} among them")
    return series


def present(data: xr.Dataset, *names: str) -> None:
    """Check that ``data`` holds the named variables, along a series dimension or at one checkpoint.

    Raises
    ------
    SchemaError
        If a variable is unknown; the nearest names are given.
    MissingMeasurementError
        If a variable that a cube declares is absent: it was not measured; the message says which part to ask for.
    """
    for name in names:
        if name not in data:
            for cube in CUBES.values():
                if any(v.name == name for v in cube.variables):
                    part = cube.part_of(name).name
                    raise MissingMeasurementError(
                        f"{name!r} was not measured (it belongs to part {part!r} of the {cube.name} cube); "
                        f"measure it: {cube.mend(name)}"
                    )
            raise SchemaError(f"there is no variable {name!r}; {nearest(name, map(str, data.data_vars))}")


def label(array: xr.DataArray, variable: Variable) -> xr.DataArray:
    """Name an array and give it the variable's long_name, units and source."""
    out = array.rename(variable.name)
    out.attrs = dict(variable.attrs)
    return out


def template(cube: Cube) -> dict[str, Any]:
    """Return the JSON-able template of a cube: what ``schemas/<cube>.json`` holds."""
    return {
        "cube": cube.name,
        "description": cube.description,
        "dims": list(cube.dims),
        "coords": {v.name: asdict(v) for v in cube.coords},
        "parts": {p.name: {v.name: asdict(v) for v in p.variables} for p in cube.parts},
    }


def write_templates(folder: Path, cubes: Iterable[Cube] = CUBES.values()) -> list[Path]:
    """Write one JSON template per cube into ``folder`` and return the paths."""
    paths = []
    for cube in cubes:
        path = folder / f"{cube.name}.json"
        path.write_text(json.dumps(template(cube), indent=2, ensure_ascii=False) + "\n")
        paths.append(path)
    return paths
