"""Columns of the table of functional deaths."""

from neurolens.schema.records import Variable


def _column(name: str, dtype: str, description: str, units: str = "1", source: str = "") -> Variable:
    return Variable(name, ("event",), dtype, units, description, source)


_PAIRED = "Agresti and Min 2005"
FUNCTIONAL_DEATHS: tuple[Variable, ...] = (
    _column("unit", "int64", "number of the unit"),
    _column("layer", "str", "layer of the unit", ""),
    _column("index", "int64", "number of the unit in its layer"),
    _column("concept", "str", "the concept that died", ""),
    _column("category", "str", "its category", ""),
    _column("death", "series", "first checkpoint below the threshold", ""),
    _column("before", "series", "the checkpoint that is compared with; missing where there is none", ""),
    _column("after", "series", "the checkpoint that is compared; missing where there is none", ""),
    _column("used_by", "object", "names of the classes that used the unit, before", ""),
    _column("n_used", "Int64", "how many; missing where it was not measured"),
    _column("n_samples", "Int64", "samples of these classes"),
    _column("logit_drop_before", "float64", "fall of the mean logit of these classes without the unit", "logit"),
    _column("logit_drop_before_low", "float64", "its lower confidence bound", "logit"),
    _column("logit_drop_before_high", "float64", "its upper confidence bound", "logit"),
    _column("logit_drop_after", "float64", "the same, of the same classes, after", "logit"),
    _column("logit_drop_after_low", "float64", "its lower confidence bound", "logit"),
    _column("logit_drop_after_high", "float64", "its upper confidence bound", "logit"),
    _column("accuracy_drop_before", "float64", "share of these classes' samples told right, minus without the unit"),
    _column("accuracy_drop_before_low", "float64", "its lower confidence bound", "1", _PAIRED),
    _column("accuracy_drop_before_high", "float64", "its upper confidence bound", "1", _PAIRED),
    _column("accuracy_drop_after", "float64", "the same, of the same classes, after"),
    _column("accuracy_drop_after_low", "float64", "its lower confidence bound", "1", _PAIRED),
    _column("accuracy_drop_after_high", "float64", "its upper confidence bound", "1", _PAIRED),
    _column("remaining", "float64", "logit_drop_after / logit_drop_before"),
    _column("conductance_before", "float64", "mean absolute conductance of the unit, before (compat)", "logit"),
    _column("conductance_after", "float64", "mean absolute conductance of the unit, after (compat)", "logit"),
    _column("functional_dead", "boolean", "whether the unit lost its use; missing where that was not measured"),
)
"""Columns of the table of functional deaths, in order; those of one reading are absent from the other."""
