"""The cube of adopted tallies: of every unit the best concept, and the best of each category, measured elsewhere."""

from neurolens.schema.records import SERIES, Cube, Part, Variable

_TALLY = "tally.csv of NetDissect-Lite"
_NONE = "−1: none, or one without a name"
_NUMBER = "its number; what is selected keeps it"


def _number(name: str, dims: tuple[str, ...], description: str) -> Variable:
    return Variable(
        name, (SERIES, *dims), "int32", "1", f"{description}; {_NONE}", _TALLY, fill=-(2**31), opened="float64"
    )


def _figure(name: str, units: str, description: str) -> Variable:
    return Variable(name, (SERIES, "unit", "category"), "float64", units, description, _TALLY)


TALLIES = Cube(
    "tallies",
    (SERIES, "unit", "category", "concept"),
    (
        Part(
            "best",
            (
                Variable("score", (SERIES, "unit"), "float64", "1", "IoU of the unit's best concept", _TALLY),
                _number("best_number", ("unit",), "the unit's best concept, by its number"),
                _number("best_category", ("unit",), "category of the unit's best concept, by its number"),
            ),
        ),
        Part(
            "categories",
            (
                _number("category_best", ("unit", "category"), "best concept of the category, by its number"),
                _figure("truth", "pixel", "area of the category's best concept"),
                _figure("activation", "pixel", "mask of the unit on images of the category"),
                _figure("intersect", "pixel", "mask of the unit where the category's best concept is"),
                _figure("best_iou", "1", "IoU of the category's best concept"),
            ),
        ),
    ),
    coords=(
        Variable("unit", ("unit",), "int64", "1", "number of the unit, in order of the layers"),
        Variable("layer", ("unit",), "str", "", "layer of the unit"),
        Variable("index", ("unit",), "int64", "1", "number of the unit in its layer: that of the table − 1"),
        Variable("category", ("category",), "str", "", "name of the category"),
        Variable("category_number", ("category",), "int64", "1", _NUMBER),
        Variable("concept", ("concept",), "str", "", "name of the concept; unique"),
        Variable("concept_number", ("concept",), "int64", "1", _NUMBER),
        Variable("name", ("concept",), "str", "", "its name in the tables; two categories may share one"),
        Variable("concept_category", ("concept",), "str", "", "its category"),
    ),
    description="adopted tallies: the best concepts of each unit at each checkpoint, and nothing of the others",
    adopted="`neurolens import tallies DIR --store STORE`",
)
