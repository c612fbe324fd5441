"""The cubes of pairs of a unit and a head: the pool, the scalars of every image, phrases, and pairs told in phrases."""

from neurolens.schema.records import SERIES, Cube, Part, Variable
from neurolens.schema.samples import SAMPLES

_BU = "Bu and Gandelsman 2025, arXiv 2509.19943"
_PAIR = (SERIES, "head", "unit")
_SCALAR = (SERIES, "sample", "head", "unit")
_UNIT = Variable("unit", ("unit",), "int64", "1", "number of the unit: a channel of the maps that go into the pool")
_HEAD = Variable("head", ("head",), "int64", "1", "number of the head")


def _of_pair(name: str, units: str, description: str) -> Variable:
    return Variable(name, _PAIR, "float64", units, description)


def _extremes(name: str, description: str) -> tuple[Variable, Variable]:
    return (
        Variable(name, (*_PAIR, "rank"), "float32", "activation", f"{description} scalars, each of an image"),
        Variable(
            f"{name}_sample",
            (*_PAIR, "rank"),
            "int32",
            "1",
            "their images, by position along `sample`",
            fill=-1,
            opened="float64",
        ),
    )


POOLS = Cube(
    "pools",
    (SERIES, "head", "d", "unit", "feature", "rank"),
    (
        Part(
            "factors",
            (
                Variable("value", (SERIES, "head", "d", "unit"), "float32", "1", "from a unit to the dims of a head"),
                Variable(
                    "output",
                    (SERIES, "feature", "head", "d"),
                    "float32",
                    "1",
                    "from the dims of a head to the embedding",
                ),
                Variable(
                    "constant",
                    (SERIES, "head", "feature"),
                    "float32",
                    "embedding",
                    "share of the biases of each pair of a head",
                    _BU,
                ),
            ),
        ),
        Part(
            "totals",
            (
                Variable(
                    "count", (SERIES, "head"), "int64", "1", "images, as many of each head", fill=-1, opened="float64"
                ),
                _of_pair("mean", "activation", "mean scalar over the images"),
                _of_pair("std", "activation", "standard deviation of the scalar over the images"),
                *_extremes("top", "largest"),
                *_extremes("bottom", "smallest"),
                Variable(
                    "worst_residual",
                    (SERIES, "head"),
                    "float64",
                    "1",
                    "largest distance of an image's contributions, added up over all heads, to its embedding, over the "
                    "length of that; the same for each head",
                ),
            ),
            option="totals",
        ),
    ),
    coords=(
        _UNIT,
        _HEAD,
        Variable("sample", ("sample",), "str", "", "ids of the images that top_sample and bottom_sample count in"),
    ),
    description="the attention pool: what a unit writes through a head, and totals of its scalars over the images",
)
PAIRS = Cube(
    "pairs",
    (SERIES, "sample", "head", "unit", "feature", "token"),
    (
        Part(
            "scalars",
            (
                Variable(
                    "scalar",
                    _SCALAR,
                    "float32",
                    "activation",
                    "attention of a head over a unit's tokens, added up",
                    _BU,
                ),
                Variable(
                    "embedding",
                    (SERIES, "sample", "feature"),
                    "float32",
                    "embedding",
                    "contributions of all pairs, added up: the image's embedding, not normalised",
                ),
                Variable(
                    "completeness",
                    (SERIES, "sample"),
                    "float64",
                    "1",
                    "distance of the contributions, added up, to the embedding, over the length of that",
                ),
            ),
        ),
        Part(
            "attention",
            (Variable("attention", (SERIES, "sample", "head", "token"), "float32", "1", "attention of token 0"),),
            option="attention",
        ),
        Part(
            "split",
            tuple(
                Variable(name, _SCALAR, "float32", "activation", f"part of the scalar from {what}")
                for name, what in (("patch", "the patches"), ("mean_token", "token 0"), ("positional", "the positions"))
            ),
            option="split",
        ),
    ),
    coords=(*SAMPLES.coords, _UNIT, _HEAD),
    description="what each unit says through each head at each image: one scalar, times a vector of the pools cube",
)
TEXTS = Cube(
    "texts",
    (SERIES, "sample", "feature"),
    (
        Part(
            "embeddings",
            (Variable("text", (SERIES, "sample", "feature"), "float32", "1", "embedding of the phrase, of length 1"),),
        ),
    ),
    coords=(
        Variable("phrase", ("phrase",), "str", "", "name of the set, a slash, and the phrase"),
        Variable("set", ("phrase",), "str", "", "set that the phrase is of"),
        Variable("words", ("phrase",), "str", "", "the phrase"),
        Variable("digest", ("phrase",), "str", "", "of what its embedding depends on besides the network"),
    ),
    description="phrases, as the network's text tower embeds them",
    growing=("sample",),
    sample="phrase",
)
_CODED = (SERIES, "sample", "atom")
CODES = Cube(
    "codes",
    (SERIES, "sample", "atom", "phrase"),
    (
        Part(
            "codes",
            (
                Variable("index", _CODED, "int32", "1", "phrase, by its number in the set", fill=-1, opened="float64"),
                Variable("value", _CODED, "float32", "1", "coefficient of the phrase"),
                Variable(
                    "residual", _CODED, "float32", "1", "length of what is left of the direction after the phrase"
                ),
            ),
        ),
    ),
    coords=(
        Variable("pair", ("pair",), "str", "", "unit and head, e.g. u37/h2"),
        Variable("unit", ("pair",), "int64", "1", "unit of the pair"),
        Variable("head", ("pair",), "int64", "1", "head of the pair"),
        Variable("phrase", ("phrase",), "str", "", "the phrases that index counts in"),
    ),
    description="the direction of each pair, told as a sum of few phrases",
    growing=("sample",),
    sample="pair",
)
