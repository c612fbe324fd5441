"""A scripted history of units, recovered event by event."""

import numpy as np
import pytest
from mortality_cases import iou_of

from neurolens.mortality import concept_events, concept_lives, extinctions, label_drift, migrations

HIGH, LOW = 0.12, 0.01
CONCEPTS = ["c0", "c1", "c2", "c3", "c4", "c5"]
SCRIPT = {
    0: {"c0": "..######........"},  # born, and died
    1: {"c1": "####....####...."},  # died, reborn, died again
    2: {"c2": "########........"},  # hands c2 over to unit 3
    3: {"c2": ".........#######"},
    4: {"c3": "#######.........", "c4": ".......#########"},  # drifts from c3 to c4 without a pause
    5: {"c5": "####.#####.#####"},  # dips that are no death
    6: {"c0": "...........#####"},  # c0 comes back in another unit
    7: {"c1": "..............##"},  # too young to tell
}
EXPECTED = [
    (0, "c0", 20, 80, "death", False),
    (1, "c1", 0, 40, "death", False),
    (1, "c1", 80, 120, "death", True),
    (2, "c2", 0, 80, "death", False),
    (3, "c2", 90, None, "alive", False),
    (4, "c3", 0, 70, "death", False),
    (4, "c4", 70, None, "alive", False),
    (5, "c5", 0, None, "alive", False),
    (6, "c0", 110, None, "alive", False),
    (7, "c1", 140, None, "alive", False),
]


def history(chunks=None):
    values = np.full((16, 8, 6), LOW)
    for unit, script in SCRIPT.items():
        for concept, line in script.items():
            values[[mark == "#" for mark in line], unit, CONCEPTS.index(concept)] = HIGH
    iou = iou_of(values, layers=["layer3"] * 2 + ["layer4"] * 6)
    return iou if chunks is None else iou.chunk(chunks)


@pytest.mark.parametrize("chunks", [None, {"epoch": 1, "unit": 3}])
def test_concept_events__recover_a_scripted_history(chunks):
    found = concept_events(history(chunks), k=2)
    lines = found[["unit", "concept", "birth", "death", "end", "rebirth"]].astype(object)
    got = [tuple(None if value is None or value != value else value for value in line) for line in
           lines.where(lines.notna(), None).itertuples(index=False, name=None)]  # fmt: skip
    assert got == EXPECTED
    reborn = found[found["rebirth"]].iloc[0]
    assert (reborn["life"], reborn["gap"]) == (1, 4)
    assert found["birth_seen"].tolist() == [birth > 0 for _, _, birth, *_ in EXPECTED]


def test_concept_lives__count_a_scripted_history():
    found = concept_lives(history(), k=2)
    births = found["n_births"].to_series()
    assert births[births > 0].to_dict() == {0: 4, 20: 1, 70: 1, 80: 1, 90: 1, 110: 1, 140: 1}
    deaths = found["n_deaths"].to_series()
    assert deaths[deaths > 0].to_dict() == {40: 1, 70: 1, 80: 2, 120: 1}
    assert int(found["n_rebirths"].sum()) == 1
    assert found["alive"].sel(unit=5, concept="c5").all()


def test_migrations__recover_a_scripted_history():
    found = migrations(history(), k=2).set_index(["unit", "concept", "death"])
    assert found.loc[(2, "c2", 80), "destinations"] == (3,)
    assert found.loc[(0, "c0", 80), "destinations"] == (6,)
    assert found.loc[(0, "c0", 80), "same_layer"] == (False,)
    assert found.loc[(1, "c1", 120), "destinations"] == (7,)
    assert found.loc[(4, "c3", 70), "destinations"] == ()


def test_label_drift__recovers_a_scripted_history():
    found = label_drift(history())
    changed = [(int(found["to_epoch"][t]), int(unit)) for t, unit in np.argwhere(found["changed"].data)]
    assert changed == [(70, 4)]


def test_extinctions__recover_a_scripted_history():
    found = extinctions(history(), k=2).set_index(["concept", "life"])
    assert found.loc[("c3", 0), "death"] == 70
    assert found.loc[("c0", 1), "gap"] == 3
    assert found.loc[("c2", 0), "end"] == "alive"  # handed over within a dip that is bridged
    assert list(found.loc["c1"]["end"]) == ["death", "death", "alive"]
