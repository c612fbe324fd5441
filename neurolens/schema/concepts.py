"""The cube of concepts: how far the mask of each unit coincides with each concept, in counts of pixels."""

from neurolens.schema.records import SERIES, Cube, Part, Variable

_LITE = "act_cat of NetDissect-Lite"
_PAPER = "Bau et al. 2017, section 2.3"
CONCEPTS = Cube(
    "concepts",
    (SERIES, "block", "unit", "concept", "category", "rank", "rotation"),
    (
        Part(
            "counts",
            (
                Variable("threshold", (SERIES, "unit"), "float64", "activation", "top-quantile threshold of the unit"),
                Variable(
                    "intersection",
                    (SERIES, "block", "unit", "concept"),
                    "uint32",
                    "pixel",
                    "mask of the unit where the concept is",
                    _PAPER,
                    fill=2**32 - 1,
                    opened="float64",
                ),
                Variable(
                    "unit_area",
                    (SERIES, "block", "unit", "category"),
                    "float64",
                    "pixel",
                    "mask of the unit on images that show anything of the category",
                    _PAPER,
                ),
                Variable(
                    "unit_area_lite",
                    (SERIES, "block", "unit", "category"),
                    "float64",
                    "pixel",
                    "mask of the unit on images that show anything of the category inside the mask",
                    _LITE,
                ),
                Variable(
                    "concept_area", (SERIES, "block", "concept"), "float64", "pixel", "area of the concept", _PAPER
                ),
                Variable("n_images", (SERIES, "block"), "float64", "1", "images of the block"),
            ),
        ),
        Part(
            "top",
            (
                Variable(
                    "top_value",
                    (SERIES, "unit", "rank"),
                    "float32",
                    "activation",
                    "largest activations over the images, each image's maximum, decreasing",
                ),
                Variable(
                    "top_sample",
                    (SERIES, "unit", "rank"),
                    "int32",
                    "1",
                    "their images, by position along `sample`",
                    fill=-1,
                    opened="float64",
                ),
            ),
            option="top",
        ),
        Part(
            "rotated",
            (
                Variable(
                    "rotated_score",
                    (SERIES, "rotation", "unit"),
                    "float64",
                    "1",
                    "IoU of a unit of the rotated layer with its best concept",
                    "Bau et al. 2017, section 3.2",
                ),
                Variable(
                    "rotated_score_lite",
                    (SERIES, "rotation", "unit"),
                    "float64",
                    "1",
                    "the same, in the union of NetDissect-Lite",
                    _LITE,
                ),
            ),
            option="rotations",
        ),
    ),
    coords=(
        Variable("block", ("block",), "int64", "1", "block of images, for the bootstrap"),
        Variable("unit", ("unit",), "int64", "1", "number of the unit, in order of the layers"),
        Variable("layer", ("unit",), "str", "", "layer of the unit"),
        Variable("index", ("unit",), "int64", "1", "number of the unit in its layer"),
        Variable("concept", ("concept",), "str", "", "name of the concept; unique"),
        Variable("label", ("concept",), "int64", "1", "its number in the concept data"),
        Variable("concept_category", ("concept",), "str", "", "its primary category"),
        Variable("category", ("category",), "str", "", "name of the category"),
        Variable("rank", ("rank",), "int64", "1", "0 for the largest"),
        Variable("sample", ("sample",), "str", "", "ids of the images that top_sample counts in"),
        Variable("rotation", ("rotation",), "int64", "1", "number of the random rotation of each layer's units"),
    ),
    description="what each unit's mask and each concept have in common, at each checkpoint",
)
