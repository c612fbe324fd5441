"""What reductions of the attributions cube give."""

from neurolens.schema.records import SERIES, Variable

_MAP = (SERIES, "sample", "map", "attribution")
_SAMPLE = (SERIES, "sample")
_GRID = (SERIES, "map", "attribution")
_SAMEK = "Samek et al. 2017"
_BOOTSTRAP = "Efron and Tibshirani 1993, section 13.3"
_WHOLE_CLASSES = "Field and Welsh 2007"
_MAX_T = "Westfall and Young 1993"
SCORE = "score"
"""Units of a statistic that is in those of the score it is of."""


def _of_map(name: str, units: str, description: str, source: str = "") -> Variable:
    return Variable(name, _MAP, "float64", units, description, source)


def _of_grid(name: str, units: str, description: str, source: str = "", dtype: str = "float64") -> Variable:
    return Variable(name, _GRID, dtype, units, description, source)


def _by_name(*variables: Variable) -> dict[str, Variable]:
    return {variable.name: variable for variable in variables}


ATTRIBUTION_SCORES: dict[str, Variable] = _by_name(
    _of_map("sparsity", "1", "share of the entries that are not needed to hold most of the mass"),
    _of_map("gini", "1", "Gini coefficient of the mass over the entries", "Chalasani et al. 2020"),
    _of_map("entropy", "nat", "entropy of the mass over the entries", "Bhatt et al. 2020"),
    _of_map("drop", "1", "probability minus that without the highest entries", _SAMEK),
    _of_map("relative_drop", "1", "share of the probability that is lost without the highest entries", _SAMEK),
    _of_map("log_prob_drop", "nat", "log-probability minus that without the highest entries", _SAMEK),
    _of_map("logit_drop", "logit", "logit minus that without the highest entries", _SAMEK),
    _of_map(
        "completeness_share",
        "1",
        "attribution summed over all pixels, in shares of the change from the baseline; NaN for other methods",
        "Sundararajan et al. 2017, proposition 1",
    ),
    Variable(
        "gap",
        _SAMPLE,
        "float64",
        "1",
        "whole attribution summed over all pixels, minus the change from the baseline",
        "Sundararajan et al. 2017, proposition 1",
    ),
)
"""Scores of maps, in the order that `map_scores` gives them."""

ATTRIBUTION_RESULTS: dict[str, Variable] = _by_name(
    Variable("accuracy", (SERIES, "top"), "float64", "1", "share of the samples whose label is among the top classes"),
    Variable("accuracy_low", (SERIES, "top"), "float64", "1", "its lower confidence bound", "Wilson 1927"),
    Variable("accuracy_high", (SERIES, "top"), "float64", "1", "its upper confidence bound", "Wilson 1927"),
    Variable("conductance", _MAP, "float64", "1", "attribution summed over all pixels", "Dhamdhere et al. 2019"),
    Variable("norm_share", _MAP, "float64", "1", "L2 norm, in shares of the sum of those of the clustering"),
    Variable("cosine", (*_MAP, "mate"), "float64", "1", "cosine with the map of another cluster of the clustering"),
    Variable("correlation", (*_MAP, "mate"), "float64", "1", "Pearson correlation with the map of another cluster"),
    Variable("mean_abs_cosine", _MAP, "float64", "1", "mean |cosine| over pairs of clusters of the clustering"),
    Variable(
        "mean_abs_correlation", _MAP, "float64", "1", "mean |Pearson| over pairs; the higher, the less independent"
    ),
)
"""What `accuracy` gives, and `decompose` of a cube beside what the cube holds."""

GRID_STATISTICS: dict[str, Variable] = _by_name(
    _of_grid("n", "1", "samples that have the scores", dtype="int64"),
    _of_grid("n_classes", "1", "classes that have such samples", dtype="int64"),
    _of_grid("mean", SCORE, "mean over samples"),
    _of_grid("std", SCORE, "standard deviation (ddof 0) over samples"),
    _of_grid("low", SCORE, "lower confidence bound of the mean"),
    _of_grid("high", SCORE, "upper confidence bound of the mean"),
    _of_grid("filtered_mean", SCORE, "mean of the filtered maps"),
    _of_grid("filtered_std", SCORE, "standard deviation (ddof 0) of the filtered maps"),
    _of_grid("baseline_mean", SCORE, "mean of the unfiltered maps of the same samples"),
    _of_grid("baseline_std", SCORE, "standard deviation (ddof 0) of the unfiltered maps"),
    _of_grid("difference", SCORE, "mean of filtered - unfiltered"),
    _of_grid("difference_mean", SCORE, "mean of filtered - unfiltered"),
    _of_grid("difference_std", SCORE, "standard deviation (ddof 0) of filtered - unfiltered"),
    _of_grid("percentile", SCORE, "percentile of filtered - unfiltered"),
    _of_grid("improved", "1", "share of the samples with filtered - unfiltered above 0"),
    _of_grid("t", "1", "paired t"),
    _of_grid("p_t", "1", "two-sided p of paired t"),
    _of_grid("d_z", "1", "mean over standard deviation (ddof 1) of the differences", "Lakens 2013"),
    _of_grid("w", "1", "sum of signed ranks, the smaller one", "Wilcoxon 1945"),
    _of_grid("p_wilcoxon", "1", "two-sided p of the signed ranks", "Wilcoxon 1945"),
    _of_grid("p_max_t", "1", "p corrected for the whole grid, by flips of signs", _MAX_T),
    _of_grid("p_bh", "1", "p of t, adjusted for the false discovery rate", "Benjamini and Hochberg 1995"),
    _of_grid("class_low", SCORE, "lower confidence bound of the mean, by drawing whole classes", _WHOLE_CLASSES),
    _of_grid("class_high", SCORE, "upper confidence bound of the mean, by drawing whole classes", _WHOLE_CLASSES),
    _of_grid("class_p_max_t", "1", "p corrected for the whole grid, by flips of whole classes", _MAX_T),
    _of_grid("chosen_difference", SCORE, "mean of filtered - unfiltered of the samples it was chosen by"),
    _of_grid("chosen_n", "1", "samples it was chosen by", dtype="int64"),
    _of_grid("p", "1", "(1 + random sets that reach it) / (random sets + 1)", "Davison and Hinkley 1997, section 4.2"),
    _of_grid("draws", "1", "random sets", dtype="int64"),
    _of_grid("draw_mean", SCORE, "mean over the random sets"),
    _of_grid("draw_std", SCORE, "standard deviation (ddof 1) over the random sets"),
    _of_grid("excess", SCORE, "observed, minus the mean over the random sets"),
    _of_grid("observed", SCORE, "mean of filtered - unfiltered"),
    _of_grid("drawn", SCORE, "mean of filtered - unfiltered of each random set"),
    _of_grid("draw_low", SCORE, "lower bound of the band that holds most random sets", _BOOTSTRAP),
    _of_grid("draw_high", SCORE, "upper bound of the band that holds most random sets", _BOOTSTRAP),
)
"""Statistics of a score, over the grid of sets and methods."""
