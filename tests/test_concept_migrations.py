"""Migrations: the reference's flag with its window in steps, ours in checkpoints, and where a concept went."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mortality_cases import MOVING, by_unit, drawn, iou_of

from neurolens.errors import SchemaError
from neurolens.mortality import concept_events, migrations


@pytest.mark.parametrize(("delta", "migrated"), [(0.01, True), (0.04, True), (0.05, False)])
def test_migrations__are_flagged_as_by_the_reference(delta, migrated):
    found = migrations(by_unit(MOVING), compat="seed", min_delta=delta)
    assert len(found) == 1
    line = found.iloc[0]
    assert (line["unit"], line["concept"], line["death"], line["n_before"], line["n_after"]) == (0, "a", 4, 3, 6)
    np.testing.assert_allclose([line["mean_before"], line["mean_after"]], [0.19 / 3, 0.105])
    assert line["migrated"] == migrated
    assert "destinations" not in found
    event = concept_events(by_unit(MOVING), compat="seed").iloc[0]
    assert (event["birth"], event["death"], event["score_birth"], event["score_death"]) == (0, 4, 0.09, 0.03)


def test_migrations__of_the_reference_never_happen_where_steps_are_far_apart():
    scores = by_unit(MOVING, stamps=np.arange(8) * 300)
    found = migrations(scores, compat="seed").iloc[0]
    assert (found["death"], found["n_before"], found["n_after"], found["migrated"]) == (1200, 0, 0, False)


@pytest.mark.parametrize("by", ["unit", "unit-concept"])
def test_migrations__count_their_window_in_checkpoints(by):
    found = migrations(by_unit(MOVING, stamps=np.arange(8) * 300), by=by).iloc[0]
    assert (found["death"], found["n_before"], found["n_after"], found["migrated"]) == (1200, 3, 6, True)
    assert found["destinations"] == (1, 2)
    assert found["destination_births"] == (1500, 1500)


def test_migrations__list_units_of_the_same_layer_first_then_the_earliest():
    values = np.full((9, 6, 1), 0.01)
    values[:4, 0] = 0.08  # dies at 4
    values[6:, 1] = 0.06  # same layer, later
    values[5:, 2] = 0.06  # another layer
    values[4:, 3] = 0.06  # another layer, in the same checkpoint
    values[3:, 4] = 0.06  # before the death
    values[8:, 5] = 0.06  # too late
    iou = iou_of(values, layers=["a", "a", "b", "b", "b", "b"])
    found = migrations(iou).iloc[0]
    assert found["destinations"] == (1, 3, 2)
    assert found["same_layer"] == (True, False, False)
    assert found["destination_births"] == (60, 40, 50)
    assert migrations(iou, lead=1).iloc[0]["destinations"] == (1, 4, 3, 2)
    assert migrations(iou, window=1).iloc[0]["destinations"] == (3, 2)
    lines = migrations(iou).explode(["destinations", "destination_births", "same_layer"])
    assert lines["destinations"].tolist() == [1, 3, 2]


def test_migrations__do_not_come_from_units_that_always_had_the_concept():
    values = np.full((6, 2, 1), 0.06)
    values[2:, 0] = 0.01
    found = migrations(iou_of(values)).iloc[0]
    assert found["n_destinations"] == 0
    assert found["destinations"] == ()
    assert not found["migrated"]


@given(seed=st.integers(0, 999), window=st.integers(1, 4), delta=st.sampled_from([-0.05, 0.0, 0.01]))
@settings(max_examples=50, deadline=None)
def test_migrations__match_the_windows_written_out(seed, window, delta):
    iou = drawn(9, 6, 3, seed, levels=(0.01, 0.02, 0.05, 0.08))
    found = migrations(iou, window=window, min_delta=delta, k=2)
    births = concept_events(iou, k=2)
    assert found["death"].tolist() == births.query("end == 'death'")["death"].tolist()
    for line in found.itertuples():
        values = iou.sel(concept=line.concept).data
        d = line.death_position
        before = [x for row in values[max(0, d - window) : d] for x in row if x >= 0.04]
        after = [x for row in values[d + 1 : d + window + 1] for x in row if x >= 0.04]
        assert (line.n_before, line.n_after) == (len(before), len(after))
        gain = (np.mean(after) if after else 0.0) - (np.mean(before) if before else 0.0)
        if abs(gain - delta) > 1e-12:
            assert line.migrated == (len(after) > len(before) and gain >= delta)
        near = births[(births["concept"] == line.concept) & (births["unit"] != line.unit)]
        near = near[(near["birth_position"] >= max(d, 1)) & (near["birth_position"] <= d + window)]
        assert set(line.destinations) == set(near["unit"])
        same = [iou.layer.data[u] == line.layer for u in line.destinations]
        assert same == sorted(same, reverse=True)


@pytest.mark.parametrize("chunks", [{"epoch": 1}, {"unit": 2}, {"concept": 1}])
def test_migrations__are_blind_to_chunks(chunks):
    iou = drawn(9, 6, 3, 4, levels=(0.01, 0.02, 0.05))
    expected = migrations(iou, k=1)
    assert expected["n_destinations"].sum() > 0
    pd.testing.assert_frame_equal(migrations(iou.chunk(chunks), k=1), expected)


def test_migrations__of_nothing_dead_are_none():
    found = migrations(iou_of(np.full((3, 2, 2), 0.09)))
    assert found.empty
    assert {"migrated", "destinations", "n_destinations"} <= set(found)
    assert migrations(by_unit(MOVING).isel(step=slice(2)), compat="seed").empty


@pytest.mark.parametrize("options", [{"window": 0}, {"lead": -1}, {"min_delta": np.nan}])
def test_migrations__say_what_is_wrong_with_an_option(options):
    with pytest.raises(SchemaError, match="needed: a window of at least 1"):
        migrations(drawn(), **options)


def test_migrations__need_labels():
    with pytest.raises(SchemaError, match="the scores have no labels; pass labels="):
        migrations(by_unit()["score"], by="unit")
