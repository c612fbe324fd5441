"""The cubes of attributions by unit cluster: the clusters, and what goes through each of them to the answer."""

from neurolens.schema.records import SERIES, Cube, Part, Variable
from neurolens.schema.samples import SAMPLES

_SAMPLE = (SERIES, "sample")
_MAP = (*_SAMPLE, "map", "attribution")
_OF_UNITS = (
    Variable("unit", ("unit",), "int64", "1", "number of the unit, in order of the layers"),
    Variable("layer", ("unit",), "str", "", "layer of the unit"),
    Variable("index", ("unit",), "int64", "1", "number of the unit in its layer"),
)
CLUSTERS = Cube(
    "clusters",
    (SERIES, "unit", "k"),
    (
        Part(
            "features",
            (
                Variable("rate", (SERIES, "unit"), "float64", "1", "share of the images whose mean activation is high"),
                Variable("mean", (SERIES, "unit"), "float64", "activation", "mean over images of the mean activation"),
                Variable(
                    "variance",
                    (SERIES, "unit"),
                    "float64",
                    "activation2",
                    "variance over images of the mean activation",
                ),
            ),
        ),
        Part(
            "clusters",
            (
                Variable(
                    "unit_cluster",
                    (SERIES, "k", "unit"),
                    "int32",
                    "1",
                    "cluster of the unit, among those of its layer",
                    fill=-1,
                    opened="float64",
                ),
            ),
        ),
    ),
    coords=(*_OF_UNITS, Variable("k", ("k",), "int64", "1", "number of clusters of each layer")),
    description="clusters of the units of each layer that act alike, and what they were made from",
)


def _of_map(name: str, units: str, description: str, source: str = "", dtype: str = "float64") -> Variable:
    return Variable(name, _MAP, dtype, units, description, source)


def _of_sample(name: str, units: str, description: str) -> Variable:
    return Variable(name, _SAMPLE, "float64", units, description)


def _class_of_sample(name: str, description: str) -> Variable:
    return Variable(name, _SAMPLE, "int32", "1", description, fill=-1, opened="float64")


ATTRIBUTIONS = Cube(
    "attributions",
    (SERIES, "sample", "map", "attribution", "patch_y", "patch_x", "level", "mate", "share", "channel", "y", "x"),
    (
        Part(
            "answers",
            (
                _class_of_sample("target", "class that is explained"),
                _class_of_sample("predicted", "class that is predicted"),
                _class_of_sample("scored", "class whose fall is measured"),
                _class_of_sample("label_rank", "classes with a larger logit than that of the label"),
                _of_sample("output", "1", "what is explained, at the sample"),
                _of_sample("baseline_output", "1", "what is explained, where the paths start"),
                _of_sample("logit", "logit", "logit of the scored class"),
                _of_sample("log_prob", "nat", "logarithm of the probability of the scored class"),
            ),
        ),
        Part(
            "maps",
            (
                Variable(
                    "patch",
                    (*_MAP, "patch_y", "patch_x"),
                    "float32",
                    "1",
                    "absolute attribution, summed over channels and the pixels of a patch",
                ),
                _of_map(
                    "total",
                    "1",
                    "attribution, summed over all pixels: of Integrated Gradients the conductance of the units",
                    "Dhamdhere et al. 2019, equation 1",
                ),
                _of_map("mass", "1", "absolute attribution, summed over all pixels"),
                _of_map("norm", "1", "L2 norm of the attribution"),
                _of_map("pixel_sparsity", "1", "share of pixels that are not needed to hold most of the mass"),
                Variable(
                    "dot",
                    (*_MAP, "mate"),
                    "float64",
                    "1",
                    "inner product with the map of another cluster of the clustering; NaN for other maps",
                ),
                _of_map(
                    "reconstruction_error",
                    "1",
                    "mean absolute difference between the sum over the clustering and the whole; NaN for other maps",
                ),
            ),
        ),
        Part(
            "faithfulness",
            (
                Variable("masked_logit", (*_MAP, "level"), "float64", "logit", "logit without the highest entries"),
                Variable(
                    "masked_log_prob",
                    (*_MAP, "level"),
                    "float64",
                    "nat",
                    "logarithm of the probability without the highest entries",
                    "Samek et al. 2017",
                ),
            ),
            option="faithfulness",
        ),
        Part(
            "curves",
            (
                Variable(
                    "deletion",
                    (*_MAP, "share"),
                    "float32",
                    "1",
                    "probability without the highest share of the patches",
                    "Petsiuk et al. 2018, section 4.1",
                ),
                Variable(
                    "insertion",
                    (*_MAP, "share"),
                    "float32",
                    "1",
                    "probability with nothing but the highest share of the patches",
                    "Petsiuk et al. 2018, section 4.1",
                ),
            ),
            option="curves",
        ),
        Part(
            "reduced",
            (
                Variable(
                    "reduced",
                    (*_MAP, "y", "x"),
                    "float16",
                    "1",
                    "attribution, summed over channels, in shares of `reduced_scale`",
                ),
                Variable(
                    "reduced_mass",
                    (*_MAP, "y", "x"),
                    "float16",
                    "1",
                    "absolute attribution, summed over channels, in shares of `reduced_scale`",
                ),
                _of_map("reduced_scale", "1", "largest absolute attribution of a pixel, summed over channels"),
            ),
            option="reduced",
        ),
        Part(
            "full",
            (
                Variable(
                    "full_map", (*_MAP, "channel", "y", "x"), "float32", "1", "attribution; NaN for images not chosen"
                ),
            ),
            option="full",
        ),
    ),
    coords=(
        *SAMPLES.coords,
        Variable("map", ("map",), "str", "", "name of the set of units: cut, clustering and cluster"),
        Variable("cut", ("map",), "str", "", "layer that the units are of; empty for the whole"),
        Variable("clustering", ("map",), "str", "", "which clustering of the layer; empty for the whole and unions"),
        Variable("cluster", ("map",), "int64", "1", "number of the cluster; -1 where there is none"),
        Variable("kind", ("map",), "str", "", "whole, only, without, union or control"),
        Variable("of", ("map",), "str", "", "map that a control is matched with; empty otherwise"),
        Variable("draw", ("map",), "int64", "1", "number of the control; -1 otherwise"),
        Variable("kept", ("map",), "int64", "1", "units of the set; -1 for the whole, and where checkpoints differ"),
        Variable(
            "attribution", ("attribution",), "str", "", "integrated_gradients, saliency, input_x_gradient, captum.…"
        ),
        Variable("level", ("level",), "str", "", "what is taken away: pixel or patch"),
        Variable("mate", ("mate",), "int64", "1", "number of the other cluster"),
        Variable("share", ("share",), "float64", "1", "share of the patches that is taken away, or put in"),
    ),
    description="what each set of units carries of a network's answer to each image, at each checkpoint",
    growing=("map", "mate"),
)
