"""What the spectra of activations are called: per layer and series position."""

from neurolens.schema.records import SERIES, Variable

_LAYER = (SERIES, "layer")
_ROY = "Roy and Vetterli 2007, The Effective Rank"
_DOHARE = "Dohare et al. 2024, Loss of Plasticity in Deep Continual Learning"


def _of_layer(name: str, units: str, description: str, source: str = "") -> Variable:
    return Variable(name, _LAYER, "float64", units, description, source)


METRICS: dict[str, Variable] = {
    v.name: v
    for v in (
        _of_layer("effective_rank", "1", "exponential of the entropy of s / sum s", _ROY),
        _of_layer("stable_rank", "1", "squared Frobenius norm over the largest squared singular value"),
        _of_layer("srank99", "1", "number of singular values that reach 99 % of their sum", f"{_DOHARE}: stable rank"),
        _of_layer(
            "approx99",
            "1",
            "number of singular values that reach 99 % of the sum of squares",
            f"{_DOHARE}: approximate",
        ),
        _of_layer("participation_ratio", "1", "(sum s^2)^2 / sum s^4"),
        _of_layer("numerical_rank", "1", "number of singular values above the tolerance"),
    )
}
"""What is computed from the singular values of one matrix."""

SPECTRA: dict[str, Variable] = {
    v.name: v
    for v in (
        Variable(
            "singular_value",
            (*_LAYER, "component"),
            "float64",
            "activation",
            "singular value of (sample, unit), decreasing",
        ),
        Variable(
            "singular_value_error",
            (*_LAYER, "component"),
            "float64",
            "1",
            "bound on the relative error of the singular value, from rounding or from the residual",
        ),
        *METRICS.values(),
        _of_layer("tolerance", "activation", "singular values above it count for the numerical rank"),
        _of_layer("floor", "activation", "singular values below it are lost in rounding, and given as 0"),
        _of_layer("frobenius_norm", "activation", "root of the sum of all squared singular values"),
        _of_layer("n_samples", "1", "samples counted"),
        Variable(
            "right_vector",
            (*_LAYER, "index", "component"),
            "float64",
            "1",
            "right singular vector, over the units of the layer; its largest component is positive",
        ),
        Variable(
            "left_vector",
            (*_LAYER, "sample", "component"),
            "float64",
            "1",
            "left singular vector, over the samples; signed as the right one is",
        ),
    )
}
"""Results of `neurolens.spectra`, by name."""
