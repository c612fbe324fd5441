"""Drift, churn, extinction and diversity of concepts: by hand, against sets, lazy, unknown kept apart from lost."""

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dormancy_cases import raising
from hypothesis import given, settings
from hypothesis import strategies as st
from mortality_cases import by_unit, drawn, iou_of

from neurolens.errors import SchemaError
from neurolens.mortality import churn, concept_events, diversity, extinctions, label_drift

CHUNKS = [{"epoch": 1}, {"unit": 2}, {"epoch": 3, "unit": 4, "concept": 2}]
REDUCTIONS = [label_drift, churn, diversity]


def test_label_drift__counts_units_that_live_on_with_another_concept():
    found = label_drift(by_unit())
    assert found["n_changed"].data.tolist() == [0, 1, 0, 0, 0, 0, 0]
    assert found["n_both"].data.tolist() == [4, 4, 3, 4, 1, 1, 2]
    assert found["n_changes"].data.tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    assert found.sel(to_step=2)["drift"] == 0.25
    assert found["from_step"].data.tolist() == list(range(7))


@given(seed=st.integers(0, 999), checkpoints=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_label_drift__matches_the_best_concepts_one_by_one(seed, checkpoints):
    iou = drawn(checkpoints, 6, 3, seed)
    found = label_drift(iou)
    for t in range(checkpoints - 1):
        both = changed = 0
        for unit in range(6):
            ends = [iou.data[t, unit], iou.data[t + 1, unit]]
            if all((end >= 0.04).any() for end in ends):
                both += 1
                changed += int(np.nanargmax(ends[0]) != np.nanargmax(ends[1]))
        assert (int(found["n_both"][t]), int(found["n_changed"][t])) == (both, changed)
        np.testing.assert_allclose(found["drift"][t], changed / both if both else np.nan)


@given(seed=st.integers(0, 999), checkpoints=st.integers(1, 6), by=st.sampled_from(["unit", "unit-concept"]))
@settings(max_examples=40, deadline=None)
def test_churn__matches_sets(seed, checkpoints, by):
    iou = drawn(checkpoints, 5, 3, seed)
    values = iou.data if by == "unit-concept" else np.where(np.isnan(iou.data), -np.inf, iou.data).max(axis=2)
    values = np.where(np.isinf(values), np.nan, values)
    found = churn(iou, by=by)
    for t in range(checkpoints - 1):
        above = [set(map(tuple, np.argwhere(values[i] >= 0.04))) for i in (t, t + 1)]
        known = [set(map(tuple, np.argwhere(~np.isnan(values[i])))) for i in (t, t + 1)]
        stay, gained = above[0] & above[1], (above[1] - above[0]) & known[0]
        lost, unknown = (above[0] - above[1]) & known[1], (above[0] - known[1]) | (above[1] - known[0])
        here = found.isel(transition=t)
        counts = [int(here[name]) for name in ("n_stay", "n_gained", "n_lost", "n_unknown")]
        assert counts == [len(stay), len(gained), len(lost), len(unknown)]
        moved = len(gained) + len(lost)
        whole = 2 * len(stay) + moved
        np.testing.assert_allclose(here["turnover"], moved / whole if whole else np.nan)
        np.testing.assert_allclose(here["jaccard"], len(stay) / (len(stay) + moved) if whole else np.nan)


def test_churn__of_adopted_labels_keeps_the_displaced_apart():
    found = churn(by_unit(), by="unit-concept").compute()
    assert found["n_unknown"].data.tolist() == [0, 2, 0, 0, 1, 0, 0]
    assert found["n_lost"].data.tolist() == [1, 1, 1, 0, 3, 0, 0]


def test_diversity__of_evenly_spread_detectors_is_their_number():
    values = np.full((3, 4, 4), 0.01)
    values[0, range(4), range(4)] = 0.09
    values[1, :, 2] = 0.09
    found = diversity(iou_of(values))
    assert found["total_detectors"].data.tolist() == [4, 4, 0]
    assert found["total_unique"].data.tolist() == [4, 1, 0]
    np.testing.assert_allclose(found["effective"], [4, 1, np.nan])
    np.testing.assert_allclose(found["evenness"], [1, np.nan, np.nan])
    assert found["holders"].data.tolist() == [[1, 1, 1, 1], [0, 0, 4, 0], [0, 0, 0, 0]]


@given(seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_diversity__keeps_its_bounds(seed):
    found = diversity(drawn(4, 9, 5, seed, levels=(0.01, 0.02, 0.05, 0.06)))
    np.testing.assert_array_equal(found["holders"].sum("concept"), found["total_detectors"])
    some = (found["total_detectors"] > 0).data
    assert (found["effective"].data[some] <= found["total_unique"].data[some] + 1e-9).all()
    assert (found["effective"].data[some] >= 1 - 1e-9).all()
    assert found["effective"].isnull().data.tolist() == (~some).tolist()


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("chunks", CHUNKS)
def test_changes__are_lazy_and_blind_to_chunks(reduce, chunks):
    iou = drawn(6, 7, 5, 3)
    with dask.config.set(scheduler=raising):
        found = reduce(iou.chunk(chunks))
    assert all(isinstance(array.data, da.Array) for array in found.values())
    xr.testing.assert_allclose(found.compute(), reduce(iou))


def test_extinctions__come_when_the_last_unit_lets_go():
    values = np.full((8, 3, 2), 0.01)
    values[:3, 0, 0] = 0.09
    values[2:5, 1, 0] = 0.06  # takes over, and keeps the concept alive
    values[:, 2, 1] = 0.05
    values[1:3, 2, 1] = np.nan  # another unit still says that nobody holds it
    found = extinctions(iou_of(values), k=2)
    assert found[["concept", "birth", "death", "end"]].values.tolist()[0] == ["c0", 0, 50, "death"]
    assert "unit" not in found
    pair = concept_events(iou_of(values), k=2)
    assert pair[pair["concept"] == "c0"]["death"].tolist() == [30, 50]


@given(seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_extinctions__are_events_of_the_best_score(seed):
    iou = drawn(7, 4, 3, seed, levels=(0.01, 0.02, 0.05))
    best = np.nanmax(np.where(np.isnan(iou.data), -1, iou.data), axis=1)
    expected = concept_events(iou_of(np.where(best < 0, np.nan, best)[:, None, :]), k=2)
    found = extinctions(iou.chunk(unit=2), k=2)
    columns = ["concept", "birth", "death", "end", "rebirth"]
    pd.testing.assert_frame_equal(found[columns], expected[columns])


def test_extinctions__of_adopted_labels_are_not_known():
    found = extinctions(by_unit(), k=1).set_index("concept")
    assert found.loc["e", "end"] == "displaced"
    assert not (found["end"] == "death").any()


def test_changes__need_labels():
    for reduce in (label_drift, diversity):
        with pytest.raises(SchemaError, match="no label to tell concepts apart"):
            reduce(by_unit()["score"])
