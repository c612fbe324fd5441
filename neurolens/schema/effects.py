"""The cube of effects: what the outputs lose when a unit is taken away."""

from neurolens.schema.records import SERIES, Cube, Part, Variable

_ABLATION = "Bau et al. 2020, section 2.3"
_CONDUCTANCE = "Dhamdhere et al. 2019, equation 1; captum LayerConductance"
EFFECTS = Cube(
    "effects",
    (SERIES, "unit", "class"),
    (
        Part(
            "ablation",
            (
                Variable("n_class", (SERIES, "class"), "float64", "1", "samples of the class"),
                Variable("class_correct", (SERIES, "class"), "float64", "1", "samples of the class told right"),
                Variable(
                    "class_logit", (SERIES, "class"), "float64", "logit", "mean logit of the class over its samples"
                ),
                Variable(
                    "ablated_correct",
                    (SERIES, "unit", "class"),
                    "float64",
                    "1",
                    "samples of the class told right without the unit; NaN for units not asked for",
                    _ABLATION,
                ),
                Variable(
                    "ablated_logit",
                    (SERIES, "unit", "class"),
                    "float64",
                    "logit",
                    "mean logit of the class over its samples without the unit; NaN for units not asked for",
                    _ABLATION,
                ),
                Variable(
                    "ablated_lost",
                    (SERIES, "unit", "class"),
                    "float64",
                    "1",
                    "samples of the class told right only with the unit; NaN for units not asked for",
                ),
                Variable(
                    "ablated_m2",
                    (SERIES, "unit", "class"),
                    "float64",
                    "logit**2",
                    "sum of squared deviations of the samples' fall of the logit from its mean in the class; NaN for "
                    "units not asked for",
                ),
            ),
        ),
        Part(
            "conductance",
            (
                Variable(
                    "conductance",
                    (SERIES, "unit"),
                    "float64",
                    "logit",
                    "mean absolute conductance of the unit to the logit of the true class; NaN for units not asked for",
                    _CONDUCTANCE,
                ),
            ),
            option="conductance",
        ),
    ),
    coords=(
        Variable("unit", ("unit",), "int64", "1", "number of the unit, as in the concepts cube"),
        Variable("layer", ("unit",), "str", "", "layer of the unit"),
        Variable("index", ("unit",), "int64", "1", "number of the unit in its layer"),
        Variable("class", ("class",), "str", "", "name of the class"),
    ),
    description="what the outputs lose when a unit is taken away, around the deaths of its concepts",
)
