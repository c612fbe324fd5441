"""Every cube and variable, declared once: dims, dtype, units, meaning, source.

``series`` in a declared dim stands for the series dimension of the run, which is ``epoch`` or ``step``.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neurolens.errors import MissingMeasurementError, SchemaError, nearest

SERIES = "series"
SERIES_DIMS = ("epoch", "step")


@dataclass(frozen=True)
class Variable:
    """One named array of a cube.

    ``dtype`` is the stored dtype. Integer variables with a ``fill`` are opened as float32, with NaN where the value
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
    """A group of the store: its dims, and its variables by part."""

    name: str
    dims: tuple[str, ...]
    parts: tuple[Part, ...]
    coords: tuple[Variable, ...] = ()
    description: str = ""

    @property
    def variables(self) -> tuple[Variable, ...]:
        """All data variables, in order of their parts."""
        return tuple(v for p in self.parts for v in p.variables)

    def mend(self, variable: str) -> str:
        """Say how a variable that was not measured comes to be measured."""
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


_PER_SAMPLE = (SERIES, "sample")


def _per_sample(name: str, units: str, description: str, source: str = "", summed: bool = False) -> Variable:
    return Variable(name, _PER_SAMPLE, "float32", units, description, source, summed=summed)


LOSS = _per_sample("loss", "nat", "cross-entropy loss of the sample at its label", summed=True)
MARGIN = _per_sample("margin", "logit", "logit of the label minus the largest other logit", "Pleiss et al. 2020, eq. 1")
P_TRUE = _per_sample("p_true", "1", "softmax probability of the label", "Swayamdipta et al. 2020")
ENTROPY = _per_sample("entropy", "nat", "entropy of the softmax")
EL2N = _per_sample("el2n", "1", "L2 norm of softmax minus one-hot label", "Paul et al. 2021, definition 2.2")
CORRECT = Variable("correct", _PER_SAMPLE, "int8", "1", "1 where the top logit is the label, else 0", fill=-1)
PREDICTED = Variable("predicted", _PER_SAMPLE, "int32", "class index", "class of the top logit", fill=-1)
GRAD_NORM = _per_sample(
    "grad_norm",
    "nat per normalised input",
    "L2 norm of the loss gradient in the network's (normalised) input space",
    "Ravikumar et al. 2025",
    summed=True,
)
GRAD_NORM_PIXEL = _per_sample(
    "grad_norm_pixel",
    "nat per pixel value in [0, 1]",
    "L2 norm of the loss gradient in pixel space, before normalisation, at the network's input size",
    summed=True,
)
GRAND = _per_sample(
    "grand",
    "nat per parameter",
    "L2 norm of the loss gradient in the parameters",
    "Paul et al. 2021, definition 2.1",
    summed=True,
)
CURVATURE = _per_sample(
    "curvature",
    "nat per normalised input",
    "mean over Rademacher v of ||grad L(x + h v) - grad L(x)||, not divided by h",
    "Garg et al. 2023; Ravikumar et al. 2025",
)

SAMPLES = Cube(
    "samples",
    _PER_SAMPLE,
    (
        Part("forward", (LOSS, MARGIN, P_TRUE, ENTROPY, EL2N, CORRECT, PREDICTED)),
        Part("input_gradient", (GRAD_NORM, GRAD_NORM_PIXEL), option="gradients"),
        Part("grand", (GRAND,), option="grand"),
        Part("curvature", (CURVATURE,), option="curvature"),
    ),
    coords=(
        Variable("sample", ("sample",), "str", "", "content-based id of the sample"),
        Variable("label", ("sample",), "int64", "class index", "label that the loss is taken at"),
        Variable("class", ("class",), "str", "", "name of the class"),
    ),
    description="what each checkpoint makes of each sample",
)

CUBES: dict[str, Cube] = {SAMPLES.name: SAMPLES}


def _result(name: str, units: str, description: str, source: str = "") -> Variable:
    return Variable(name, ("sample",), "float64", units, description, source)


_FORGETTING = "Toneva et al. 2019"
_CARTOGRAPHY = "Swayamdipta et al. 2020"
RESULTS: dict[str, Variable] = {
    v.name: v
    for v in (
        _result("csl", "nat", "cumulative sample loss: the sum of the loss over the series", "Ravikumar et al. 2025"),
        _result("csl_mean", "nat", "mean of the loss over the checkpoints counted"),
        _result("n_epochs", "1", "checkpoints counted for the sample"),
        _result("learning_time", "1", "share of checkpoints with the running mean of the gradient norm not below tau"),
        Variable("learning_tau", (), "float64", "nat", "mean of the running means of the gradient norm"),
        _result("aum", "logit", "area under the margin: mean margin over the series", "Pleiss et al. 2020, eq. 2"),
        _result("csg", "nat2", "cumulative sample gradient: the sum of the squared gradient norm over the series"),
        _result("curvature", "nat", "input-loss curvature over the series", "Garg et al. 2023"),
        _result("forgetting_events", "1", "times a correct sample became wrong; NaN if never correct", _FORGETTING),
        _result("first_learned", "presentation", "first presentation that was correct; NaN if none was", _FORGETTING),
        _result("never_learned", "1", "True where no presentation was correct", _FORGETTING),
        _result("presentations_needed", "presentation", "presentations until correct for good; NaN if never"),
        _result("second_split_forgetting", "presentation", "first presentation from which on the sample is wrong"),
        _result("confidence", "1", "mean probability of the label over the series", _CARTOGRAPHY),
        _result("variability", "1", "standard deviation (ddof 0) of the probability of the label", _CARTOGRAPHY),
        _result("variability_ci", "1", "variability with the reference's small-series correction", _CARTOGRAPHY),
        _result("correctness", "1", "checkpoints at which the sample is correct", _CARTOGRAPHY),
        _result("threshold_closeness", "1", "confidence (1 - confidence)", _CARTOGRAPHY),
        _result(
            "memorization",
            "1",
            "mean correctness of runs trained on the sample minus that of the others",
            "Feldman and Zhang 2020, eq. 1",
        ),
        Variable(
            "influence",
            ("test_sample", "sample"),
            "float64",
            "1",
            "the same at a test sample",
            "Feldman and Zhang 2020, eq. 2",
        ),
        Variable(
            "self_confidence", _PER_SAMPLE, "float64", "1", "softmax probability of the label", "Northcutt et al. 2021"
        ),
        Variable(
            "normalized_margin",
            _PER_SAMPLE,
            "float64",
            "1",
            "(p of the label - largest other p + 1) / 2",
            "Northcutt et al. 2021",
        ),
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
        if name not in data:
            for cube in CUBES.values():
                if any(v.name == name for v in cube.variables):
                    part = cube.part_of(name).name
                    raise MissingMeasurementError(
                        f"{name!r} was not measured (it belongs to part {part!r} of the {cube.name} cube); "
                        f"measure it: {cube.mend(name)}"
                    )
            raise SchemaError(f"there is no variable {name!r}; {nearest(name, map(str, data.data_vars))}")
        if series not in data[name].dims:
            raise SchemaError(f"{name!r} has dims {data[name].dims}; it needs {series!r} among them")
    return series


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
