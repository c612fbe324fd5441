"""The cubes of units: statistics of every unit's activations, and the activations themselves."""

from neurolens.schema.records import SERIES, Cube, Part, Variable
from neurolens.schema.samples import SAMPLES

_PER_UNIT = (SERIES, "unit")


def _per_unit(name: str, units: str, description: str, source: str = "") -> Variable:
    return Variable(name, _PER_UNIT, "float64", units, description, source)


_CHAN = "Chan, Golub and LeVeque 1979"
_COUNTED = "observations: positions of a map, tokens of a text; in the units of the weights where texts count alike"
_OF_UNITS = (
    Variable("unit", ("unit",), "int64", "1", "number of the unit, in order of the layers"),
    Variable("layer", ("unit",), "str", "", "layer: path of the module, what of it is taken, and which call"),
    Variable("index", ("unit",), "int64", "1", "number of the unit in its layer"),
)
UNITS = Cube(
    "units",
    (SERIES, "class", "unit", "bin", "position", "rank", "parameter"),
    (
        Part(
            "statistics",
            (
                _per_unit("n", "1", f"number of {_COUNTED}"),
                _per_unit("abs_sum", "activation", "sum of absolute activations", "Sokar et al. 2023, eq. 1"),
                _per_unit("mean", "activation", "mean activation", _CHAN),
                _per_unit("m2", "activation2", "sum of squared deviations from the mean", _CHAN),
                _per_unit("min", "activation", "smallest activation"),
                _per_unit("max", "activation", "largest activation"),
                _per_unit("n_pos", "1", "observations above zero"),
                _per_unit("n_nonzero", "1", "observations other than zero"),
            ),
        ),
        Part(
            "abs_dev",
            (_per_unit("abs_dev", "activation", "mean absolute deviation from the mean"),),
            option="abs_dev",
        ),
        Part(
            "histogram",
            (
                Variable(
                    "histogram",
                    (*_PER_UNIT, "bin"),
                    "uint32",
                    "1",
                    "observations by the top 8 bits of their float16: sign, exponent and 2 bits of mantissa",
                    fill=2**32 - 1,
                    opened="float64",
                ),
            ),
            option="histogram",
        ),
        Part(
            "classes",
            tuple(
                Variable(name, (SERIES, "class", "unit"), "float64", units, f"{description}, per class of the samples")
                for name, units, description in (
                    ("class_n", "1", "number of observations"),
                    ("class_abs_sum", "activation", "sum of absolute activations"),
                    ("class_sum", "activation", "sum of activations"),
                    ("class_max", "activation", "largest activation"),
                    ("class_n_pos", "1", "observations above zero"),
                )
            ),
            option="classes",
        ),
        Part(
            "positions",
            (
                Variable("position_n", (SERIES, "position"), "float64", "1", "texts with a token at the position"),
                Variable(
                    "position_n_pos", (*_PER_UNIT, "position"), "float64", "1", "those at which the unit is above zero"
                ),
            ),
            option="positions",
        ),
        Part(
            "top",
            (
                Variable(
                    "top_value",
                    (*_PER_UNIT, "rank"),
                    "float32",
                    "activation",
                    "largest activations over the samples, each sample's maximum, decreasing",
                ),
                Variable(
                    "top_sample",
                    (*_PER_UNIT, "rank"),
                    "int32",
                    "1",
                    "their samples, by position along `sample`",
                    fill=-1,
                    opened="float64",
                ),
            ),
            option="top",
        ),
        Part(
            "weights",
            (
                _per_unit(
                    "out_weight",
                    "1",
                    "mean absolute weight out of the unit, over all layers that read it; NaN where none is known",
                    "Dohare et al. 2024, contribution utility",
                ),
                Variable("parameter_mean_abs", (SERIES, "parameter"), "float64", "1", "mean absolute value of weights"),
                Variable("parameter_norm", (SERIES, "parameter"), "float64", "1", "L2 norm of the weights"),
            ),
            option="weights",
        ),
    ),
    coords=_OF_UNITS,
    description="what is kept of every unit's activations at each checkpoint",
)
ACTIVATIONS = Cube(
    "activations",
    (SERIES, "sample", "unit"),
    (
        Part(
            "activation",
            (
                Variable(
                    "activation",
                    (SERIES, "sample", "unit"),
                    "float16",
                    "activation",
                    "activation of the unit on the sample",
                ),
            ),
        ),
    ),
    coords=(*SAMPLES.coords, *_OF_UNITS),
    description="every unit's activation on every sample, at each checkpoint",
)


def _per_log(name: str, units: str, description: str) -> Variable:
    return Variable(name, (SERIES, "log", "layer"), "float64", units, description)


DORMANCY = Cube(
    "dormancy",
    (SERIES, "log", "layer"),
    (
        Part(
            "log",
            (
                _per_log("num_neurons", "1", "units of the layer"),
                _per_log("num_dormant", "1", "those that are dormant at the threshold"),
                _per_log("pct_dormant", "%", "dormant units"),
                _per_log("avg_activation", "activation", "mean over the units of the mean absolute activation"),
                _per_log("max_activation", "activation", "largest mean absolute activation of a unit"),
            ),
        ),
    ),
    coords=(
        Variable("log", ("log",), "str", "", "what was logged: model, threshold and definition"),
        Variable("model", ("log",), "str", "", "name of the model"),
        Variable("threshold", ("log",), "float64", "1", "threshold of the definition"),
        Variable("layer", ("layer",), "str", "", "name of the layer"),
    ),
    description="adopted dormancy logs: counts per layer, measured elsewhere",
    adopted="`neurolens import dormancy CSV --store STORE`",
)
