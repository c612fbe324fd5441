"""What comparing units with concepts gives."""

from neurolens.schema.records import SERIES, Variable

_PAPER = "Bau et al. 2017, equation 1"
_PER_UNIT = (SERIES, "unit")
_ROTATED = "Bau et al. 2017, section 3.2"

DISSECTION_RESULTS: dict[str, Variable] = {
    v.name: v
    for v in (
        Variable("iou", (*_PER_UNIT, "concept"), "float64", "1", "intersection over union of unit and concept", _PAPER),
        Variable("iou_low", (*_PER_UNIT, "concept"), "float64", "1", "lower bound of the IoU over images drawn again"),
        Variable("iou_high", (*_PER_UNIT, "concept"), "float64", "1", "upper bound of the IoU over images drawn again"),
        Variable("score", _PER_UNIT, "float64", "1", "IoU of the unit with its best concept", _PAPER),
        Variable("label", _PER_UNIT, "str", "", "name of the unit's best concept; empty: none"),
        Variable("label_category", _PER_UNIT, "str", "", "category of the unit's best concept; empty: none"),
        Variable("position", _PER_UNIT, "int64", "1", "position of the best concept along `concept`; -1: none"),
        Variable("n_detectors", (SERIES, "category"), "int64", "1", "units that detect a concept of the category"),
        Variable("n_unique", (SERIES, "category"), "int64", "1", "concepts of the category that a unit detects"),
        Variable("total_detectors", (SERIES,), "int64", "1", "units that detect a concept"),
        Variable("total_unique", (SERIES,), "int64", "1", "concepts that a unit detects"),
        Variable("unit_detectors", (SERIES,), "float64", "1", "units that detect a concept", _ROTATED),
        Variable("rotated_detectors", (SERIES,), "float64", "1", "rotated units that do, per rotation", _ROTATED),
        Variable("unit_share", (SERIES,), "float64", "1", "share of units that detect a concept", _ROTATED),
        Variable("rotated_share", (SERIES,), "float64", "1", "share of rotated units that do", _ROTATED),
        Variable("rotated_share_low", (SERIES,), "float64", "1", "lower bound of the share of rotated units"),
        Variable("rotated_share_high", (SERIES,), "float64", "1", "upper bound of the share of rotated units"),
        Variable("p_rotation", (SERIES,), "float64", "1", "how often rotated units have as many detectors"),
        Variable("null_tau", (SERIES,), "float64", "1", "IoU that the false rate of rotated units reaches"),
        Variable("null_detectors", (SERIES,), "float64", "1", "units whose score is at least null_tau"),
    )
}
