"""What reductions of the units cube give."""

from neurolens.schema.records import SERIES, Variable

_PER_UNIT = (SERIES, "unit")
_PER_LAYER = (SERIES, "layer")
_REDO = "Sokar et al. 2023"


def _result(name: str, dims: tuple[str, ...], dtype: str, units: str, description: str, source: str = "") -> Variable:
    return Variable(name, dims, dtype, units, description, source)


def _of_unit(name: str, units: str, description: str, source: str = "", dtype: str = "float64") -> Variable:
    return _result(name, _PER_UNIT, dtype, units, description, source)


def _of_change(name: str, units: str, description: str, source: str = "", dtype: str = "float64") -> Variable:
    return _result(name, ("transition",), dtype, units, description, source)


UNIT_RESULTS: dict[str, Variable] = {
    v.name: v
    for v in (
        _of_unit("dormancy", "1", "what a definition of dormancy holds its threshold against"),
        _of_unit("dormant", "1", "whether the unit is dormant", dtype="bool"),
        _result("stay", ("transition", "unit"), "bool", "1", "dormant before and after"),
        _result("revived", ("transition", "unit"), "bool", "1", "dormant before, not after"),
        _result("new", ("transition", "unit"), "bool", "1", "dormant after, not before"),
        _result("persistent", ("unit",), "bool", "1", "dormant at every checkpoint"),
        _result("ever", ("unit",), "bool", "1", "dormant at one checkpoint at least"),
        _result("first_dormant", ("unit",), "int64", "1", "first position at which the unit is dormant; -1: never"),
        _result("flips", ("unit",), "int64", "1", "changes from dormant to not and back"),
        _result("n_dormant", (SERIES,), "int64", "1", "units that are dormant"),
        _result("n_units", (), "int64", "1", "units"),
        _of_change("n_stay", "1", "units dormant before and after", dtype="int64"),
        _of_change("n_revived", "1", "units dormant before, not after", dtype="int64"),
        _of_change("n_new", "1", "units dormant after, not before", dtype="int64"),
        _result("n_persistent", (), "int64", "1", "units dormant at every checkpoint"),
        _result("n_ever", (), "int64", "1", "units dormant at one checkpoint at least"),
        _of_change(
            "intersected_percent", "%", "dormant before that still are; 0 where none was", "Dopamine, weight_recyclers"
        ),
        _of_change("overlap", "1", "overlap coefficient |A and B| / min(|A|, |B|); NaN where one is empty", _REDO),
        _of_change("jaccard", "1", "|A and B| / |A or B|; NaN where both are empty"),
        _result("fraction", _PER_LAYER, "float64", "1", "share of the layer's units that are dormant"),
        _result("mean_fraction", (SERIES,), "float64", "1", "mean over the layers of the share that is dormant"),
        _result("min_fraction", (SERIES,), "float64", "1", "smallest share of a layer that is dormant"),
        _result("max_fraction", (SERIES,), "float64", "1", "largest share of a layer that is dormant"),
        _result("pooled_fraction", (SERIES,), "float64", "1", "share of all units that are dormant"),
        _of_unit(
            "class_selectivity",
            "1",
            "(largest class mean - mean of the others) / (their sum)",
            "Morcos et al. 2018, section 2.3",
        ),
        _of_unit("preferred_class", "1", "position along `class` of the class with the largest mean"),
        _of_unit(
            "lifetime_sparseness", "1", "(1 - mean squared / mean of squares) / (1 - 1/n)", "Vinje and Gallant 2000"
        ),
        _of_unit(
            "positional_information",
            "nat",
            "mutual information of the unit's firing and the token's position",
            "Voita et al. 2023, section 5.1",
        ),
        _of_unit("firing_density", "1", "share of observations that are not zero"),
        _of_unit("alive", "1", "whether any observation is not zero", dtype="bool"),
        _of_unit("firing_bound", "1", "upper confidence bound of the probability that the unit is above zero"),
        _of_unit(
            "contribution_utility",
            "activation",
            "mean absolute activation times mean absolute weight out of the unit",
            "Dohare et al. 2024",
        ),
        _result("weight_mean_abs", (SERIES, "module"), "float64", "1", "mean absolute value of a module's weights"),
        _result("weight_norm", (SERIES, "module"), "float64", "1", "L2 norm of a module's weights"),
        _result("n_weights", ("module",), "int64", "1", "weights of a module"),
        _result("total_weight_mean_abs", (SERIES,), "float64", "1", "mean absolute value of all weights"),
        _result("total_weight_norm", (SERIES,), "float64", "1", "L2 norm of all weights"),
        _of_unit("quantile", "activation", "quantile of the activations, linear inside the bins of their histogram"),
    )
}
