"""The samples cube: what each checkpoint makes of each sample, and the scores that follow from it."""

from neurolens.schema.records import SERIES, Cube, Part, Variable

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
