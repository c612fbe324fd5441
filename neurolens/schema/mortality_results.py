"""What following concepts gives: the table of events, and reductions over the series."""

from neurolens.schema.records import SERIES, Variable

_HERE = (SERIES, "unit", "concept")
_PAIR = ("unit", "concept")
_SEED = "semantic-mortality reference"
_KM = "Kaplan and Meier 1958"
_GREENWOOD = "Greenwood 1926"


def _column(name: str, dtype: str, description: str, units: str = "1", source: str = "") -> Variable:
    return Variable(name, ("event",), dtype, units, description, source)


EVENTS: tuple[Variable, ...] = (
    _column("unit", "int64", "number of the unit"),
    _column("layer", "str", "layer of the unit", ""),
    _column("index", "int64", "number of the unit in its layer"),
    _column("concept", "str", "the concept; of a unit followed as such, the one at the last alive checkpoint", ""),
    _column("concept_birth", "str", "the concept at birth", ""),
    _column("category", "str", "category of the concept", ""),
    _column("life", "int64", "which life of its own it is, from 0"),
    _column("birth", "series", "first alive checkpoint; compat: start of the final decline", ""),
    _column("last_alive", "series", "last alive checkpoint", ""),
    _column("death", "series", "first checkpoint below the threshold; missing where it is not below", ""),
    _column("decline_start", "series", "where the fall that ends in death starts", "", _SEED),
    _column("end", "str", "death, alive, unconfirmed, absent or displaced", ""),
    _column("censored", "bool", "whether the life ends otherwise than by death"),
    _column("birth_seen", "bool", "whether the checkpoint before the birth was known, and not alive"),
    _column("rebirth", "bool", "whether it follows a death of the same"),
    _column("gap", "Int64", "from the death to the rebirth", "checkpoint"),
    _column("n_alive", "int64", "checkpoints alive", "checkpoint"),
    _column("duration", "int64", "from the birth to the death, or to the last alive checkpoint", "checkpoint"),
    _column("score_birth", "float64", "score at birth"),
    _column("score_death", "float64", "score at death"),
    _column("score_max", "float64", "largest score of the life"),
    _column("birth_position", "int64", "position of the birth along the series"),
    _column("last_position", "int64", "position of the last alive checkpoint"),
    _column("death_position", "Int64", "position of the death"),
)
"""Columns of the table of events, in order. Dtype ``series`` is that of the series' labels, with room for missing."""


def _of_change(name: str, description: str, dtype: str = "int64") -> Variable:
    return Variable(name, ("transition",), dtype, "1", description)


def _of_checkpoint(name: str, description: str, dtype: str = "int64", units: str = "1", source: str = "") -> Variable:
    return Variable(name, (SERIES,), dtype, units, description, source)


MORTALITY_RESULTS: dict[str, Variable] = {
    v.name: v
    for v in (
        Variable("alive", _HERE, "bool", "1", "within a life, from birth to the last alive checkpoint"),
        Variable("known", _HERE, "bool", "1", "whether there is a score"),
        Variable("birth", _HERE, "bool", "1", "born at this checkpoint"),
        Variable("rebirth", _HERE, "bool", "1", "born again after a death"),
        Variable("death", _HERE, "bool", "1", "first checkpoint below the threshold, for good"),
        Variable("births", _PAIR, "int64", "1", "births over the series, rebirths among them"),
        Variable("rebirths", _PAIR, "int64", "1", "rebirths over the series"),
        Variable("deaths", _PAIR, "int64", "1", "deaths over the series"),
        _of_checkpoint("n_alive", "alive at the checkpoint"),
        _of_checkpoint("n_known", "with a score at the checkpoint"),
        _of_checkpoint("n_births", "births at the checkpoint, rebirths among them"),
        _of_checkpoint("n_rebirths", "rebirths at the checkpoint"),
        _of_checkpoint("n_deaths", "deaths at the checkpoint"),
        _of_change("n_stay", "above the threshold before and after"),
        _of_change("n_gained", "above the threshold after, known and below before"),
        _of_change("n_lost", "above the threshold before, known and below after"),
        _of_change("n_unknown", "above the threshold on one side, unknown on the other"),
        _of_change("turnover", "(gained + lost) / (above before + above after), where known", "float64"),
        _of_change("jaccard", "stay / (stay + gained + lost)", "float64"),
        Variable("changed", ("transition", "unit"), "bool", "1", "alive on both sides, with another concept"),
        Variable("n_changes", ("unit",), "int64", "1", "changes of concept while alive on both sides"),
        _of_change("n_both", "units alive on both sides"),
        _of_change("n_changed", "units alive on both sides, with another concept"),
        _of_change("drift", "n_changed / n_both; NaN where no unit is alive on both", "float64"),
        Variable("holders", (SERIES, "concept"), "int64", "1", "units whose best concept it is, above the threshold"),
        _of_checkpoint("total_detectors", "units whose best concept reaches the threshold"),
        _of_checkpoint("total_unique", "distinct best concepts of detectors"),
        _of_checkpoint("entropy", "Shannon entropy of the detectors' concepts", "float64", "nat"),
        _of_checkpoint("effective", "exp(entropy): as many equally common concepts", "float64", source="Hill 1973"),
        _of_checkpoint("evenness", "entropy / log(total_unique); NaN below two", "float64", source="Pielou 1966"),
        Variable("survival", ("group", "time"), "float64", "1", "probability of living longer", _KM),
        Variable("lower", ("group", "time"), "float64", "1", "lower confidence bound", _GREENWOOD),
        Variable("upper", ("group", "time"), "float64", "1", "upper confidence bound", _GREENWOOD),
        Variable("at_risk", ("group", "time"), "int64", "1", "lives seen for at least this long"),
        Variable("died", ("group", "time"), "int64", "1", "lives that end in death at this time"),
        Variable("median", ("group",), "float64", "checkpoint", "first time with survival of at most one half"),
        Variable("n_lives", ("group",), "int64", "1", "lives"),
        Variable("n_censored", ("group",), "int64", "1", "lives that end otherwise than by death"),
        Variable("n_birth_unseen", ("group",), "int64", "1", "lives whose birth lies before the record or a gap in it"),
    )
}
