"""How sure events are: draws with a known answer, thresholds one by one, runs side by side."""

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
from scipy import stats

from neurolens.dissection import iou
from neurolens.errors import SchemaError
from neurolens.mortality import (
    compare,
    concept_events,
    concept_lives,
    event_counts,
    event_probability,
    survival,
    tau_sensitivity,
)


def one_life(birth=2, death=5, length=8):
    values = np.full(length, 0.01)
    values[birth:death] = 0.09
    return iou_of(values[:, None, None])


def test_event_probability__is_the_share_of_draws_that_agree():
    draws = xr.concat([one_life(), one_life(3, 5), one_life(2, 7), one_life(5, 8)], "draw")
    found = event_probability(one_life(), draws, k=1).iloc[0]
    assert (found["p_birth"], found["p_death"]) == (0.75, 0.5)
    found = event_probability(one_life(), draws, k=1, tolerance=0).iloc[0]
    assert (found["p_birth"], found["p_death"]) == (0.5, 0.5)
    found = event_probability(one_life(), draws, k=1, tolerance=3)
    assert (found.iloc[0]["p_birth"], found.iloc[0]["p_death"]) == (1.0, 0.75)
    assert found.attrs["n_draws"] == 4


@given(seed=st.integers(0, 999), tolerance=st.integers(0, 2), k=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_event_probability__matches_events_of_each_draw(seed, tolerance, k):
    iou = drawn(7, 3, 3, seed)
    draws = xr.concat([drawn(7, 3, 3, 1000 * seed + i) for i in range(4)], "draw")
    found = event_probability(iou.chunk(unit=2), draws.chunk(draw=1), k=k, tolerance=tolerance)
    tables = [concept_events(draws.isel(draw=i), k=k) for i in range(4)]
    for line in found.itertuples():
        same = [t[(t["unit"] == line.unit) & (t["concept"] == line.concept)] for t in tables]
        near = [((t["birth_position"] - line.birth_position).abs() <= tolerance).any() for t in same]
        assert line.p_birth == np.mean(near)
        if line.end != "death":
            assert np.isnan(line.p_death)
            continue
        died = [t[t["end"] == "death"] for t in same]
        assert line.p_death == np.mean(
            [((t["death_position"] - line.death_position).abs() <= tolerance).any() for t in died]
        )


def test_event_probability__takes_a_function_of_the_draw():
    draws = xr.concat([one_life(), one_life(0, 8)], "draw")
    expected = event_probability(one_life(), draws)
    found = event_probability(one_life(), lambda i: draws.isel(draw=i), n_draws=2)
    pd.testing.assert_frame_equal(found, expected)
    assert event_probability(one_life() * 0.1, draws).empty


def test_event_probability__says_what_is_wrong():
    draws = drawn().expand_dims(draw=2)
    with pytest.raises(SchemaError, match="draws lie along the dim 'draw'"):
        event_probability(drawn(), drawn())
    with pytest.raises(SchemaError, match="n_draws=None; say how many"):
        event_probability(drawn(), lambda i: drawn())
    with pytest.raises(SchemaError, match="draws have 3 units and the scores 6"):
        event_probability(drawn(), draws.isel(unit=slice(3)))
    with pytest.raises(SchemaError, match="tolerance=-1"):
        event_probability(drawn(), draws, tolerance=-1)


def test_tau_sensitivity__is_the_count_at_each_threshold():
    iou, taus = drawn(8, 5, 4, 2), [0.02, 0.03, 0.04, 0.06]
    found = tau_sensitivity(iou, tau=taus, k=2)
    for tau in taus:
        lives = concept_lives(iou, tau=tau, k=2)
        for name in found:
            np.testing.assert_array_equal(found[name].sel(tau=tau), lives[name])
    assert found.attrs["k"] == 2


@pytest.mark.parametrize("chunks", [{"epoch": 1}, {"unit": 2, "concept": 3}])
def test_tau_sensitivity__is_lazy_and_blind_to_chunks(chunks):
    iou = drawn(8, 5, 4, 2)
    with dask.config.set(scheduler=raising):
        found = tau_sensitivity(iou.chunk(chunks))
    assert all(isinstance(array.data, da.Array) for array in found.values())
    xr.testing.assert_identical(found.compute(), tau_sensitivity(iou))


def test_tau_sensitivity__needs_thresholds():
    with pytest.raises(SchemaError, match="no list of thresholds"):
        tau_sensitivity(drawn(), tau=[])
    with pytest.raises(SchemaError, match=r"tau=-0\.1 is no threshold"):
        tau_sensitivity(drawn(), tau=[0.1, -0.1])


def test_event_counts__are_those_of_each_draw():
    draws = xr.concat([drawn(seed=i) for i in range(3)], "draw")
    found = event_counts(draws, k=1)
    for i in range(3):
        events = concept_events(draws.isel(draw=i), k=1)
        assert found["lives"][i] == len(events)
        assert found["deaths"][i] == (events["end"] == "death").sum()
        assert found["rebirths"][i] == events["rebirth"].sum()


def test_compare__puts_runs_side_by_side():
    runs = {f"seed{i}": drawn(9, 8, 4, i) for i in range(3)}
    found = compare(runs, k=1)
    value = found["value"].to_pandas()
    for name, scores in runs.items():
        events = concept_events(scores, k=1)
        assert value.loc[name, "lives"] == len(events)
        assert value.loc[name, "deaths"] == (events["end"] == "death").sum()
        assert value.loc[name, "births"] == events["birth_seen"].sum()
        interval = stats.binomtest(int(value.loc[name, "deaths"]), len(events)).proportion_ci(0.95, "wilson")
        share = found.sel(run=name, quantity="share_died")
        np.testing.assert_allclose([share["low"], share["high"]], interval)
        curve = survival(events).isel(group=0)
        np.testing.assert_allclose(found["survival"].sel(run=name, time=curve["time"]), curve["survival"])
        median = found.sel(run=name, quantity="median_lifetime")
        np.testing.assert_allclose(median["value"], curve["median"])
    expected = stats.ttest_1samp(value["deaths"], 0).confidence_interval(0.95)
    across = found.sel(quantity="deaths")
    np.testing.assert_allclose([across["mean_low"], across["mean_high"]], expected)
    np.testing.assert_allclose(across["mean"], value["deaths"].mean())


def test_compare__has_intervals_of_counts_where_images_were_resampled():
    draws = xr.concat([drawn(seed=i) for i in range(9)], "draw")
    found = compare({"a": drawn(), "b": drawn(seed=1)}, draws={"a": draws}, k=1)
    counts = event_counts(draws, k=1)
    low, high = np.quantile(counts["deaths"], [0.025, 0.975])
    here = found.sel(run="a", quantity="deaths")
    np.testing.assert_allclose([here["low"], here["high"]], [low, high])
    assert np.isnan(found.sel(run="b", quantity="deaths")["low"])


def test_compare__takes_tables_and_other_networks():
    tables = {"a": concept_events(drawn(units=3)), "b": concept_events(by_unit(), k=1)}
    found = compare(tables)
    assert found["value"].sel(quantity="lives").data.tolist() == [len(tables["a"]), len(tables["b"])]
    alone = compare({"a": tables["a"]})
    assert alone["sd"].isnull().all()
    assert alone["mean_low"].isnull().all()


def test_compare__says_what_is_wrong():
    with pytest.raises(SchemaError, match="there is no run to compare"):
        compare({})
    with pytest.raises(SchemaError, match="run 'a' has no life"):
        compare({"a": drawn(levels=(0.01,))})
    with pytest.raises(SchemaError, match="tables of events are final; k goes with scores"):
        compare({"a": concept_events(drawn())}, k=1)
    with pytest.raises(SchemaError, match="draws of 'c', which is no run here; known: a"):
        compare({"a": drawn()}, draws={"c": drawn().expand_dims(draw=2)})


def test_event_probability__takes_the_iou_of_resampled_blocks_of_a_cube():
    rng = np.random.default_rng(0)
    blocks = 8
    intersection = rng.integers(0, 12, (6, blocks, 3, 2)).astype(float)
    coords = {
        "epoch": np.arange(6),
        "concept": ["dog", "red"],
        "concept_category": ("concept", ["object", "color"]),
        "category": ["object", "color"],
    }
    data = {
        "intersection": (("epoch", "block", "unit", "concept"), intersection),
        "unit_area": (("epoch", "block", "unit", "category"), intersection + 20),
        "concept_area": (("epoch", "block", "concept"), np.full((6, blocks, 2), 40.0)),
    }
    cube = xr.Dataset(data, coords)
    counts = [np.bincount(rng.integers(0, blocks, blocks), minlength=blocks) for _ in range(5)]
    weights = xr.DataArray(np.array(counts, float), dims=("draw", "block"))
    found = event_probability(iou(cube), iou(cube, weights=weights), tau=0.1, k=1)
    one_by_one = event_probability(iou(cube), lambda i: iou(cube, weights=counts[i]), n_draws=5, tau=0.1, k=1)
    pd.testing.assert_frame_equal(found, one_by_one)
    assert len(found)
    assert found["p_birth"].between(0, 1).all()
    assert 0 < found["p_birth"].mean() < 1
    alike = iou(cube, weights=xr.DataArray(np.ones((3, blocks)), dims=("draw", "block")))
    assert (event_probability(iou(cube), alike, tau=0.1, k=1)["p_birth"] == 1).all()


def test_event_counts__are_of_units_where_these_are_followed():
    draws = xr.concat([drawn(seed=i) for i in range(3)], "draw")
    for options in ({"by": "unit"}, {"compat": "seed"}):
        found = event_counts(draws, k=1, **options)
        for i in range(3):
            assert found["lives"][i] == len(concept_events(draws.isel(draw=i), k=1, **options))


@pytest.mark.parametrize("options", [{"k": 2}, {"k": 1, "by": "unit", "tau": 0.05}, {"compat": "seed"}])
def test_compare__of_tables_draws_as_they_were_made(options):
    runs = {name: drawn(9, 8, 4, seed, holes=0) for name, seed in (("a", 0), ("b", 1))}
    draws = {"a": xr.concat([drawn(9, 8, 4, i, holes=0) for i in range(20, 25)], "draw")}
    tables = {name: concept_events(scores, **options) for name, scores in runs.items()}
    found = compare(tables, draws=draws)
    xr.testing.assert_identical(found, compare(runs, draws=draws, **options))
    counts = event_counts(draws["a"], **options)
    assert float(found["low"].sel(run="a", quantity="lives")) == np.quantile(counts["lives"], 0.025)


def test_compare__has_no_mean_of_what_a_run_lacks_and_no_interval_beyond_what_can_be():
    lasting = one_life(2, 8)  # its median lifetime is not reached
    found = compare({"a": one_life(2, 5), "b": lasting, "c": one_life(1, 3)}, k=1)
    assert found["value"].sel(run="b", quantity="median_lifetime").isnull()
    for name in ("mean", "sd", "mean_low", "mean_high"):
        assert found[name].sel(quantity="median_lifetime").isnull()
    share = found.sel(quantity="share_died")
    assert share["mean"].item() == pytest.approx(2 / 3)
    assert (share["mean_low"].item(), share["mean_high"].item()) == (0.0, 1.0)
    assert found["mean_low"].sel(quantity="deaths").item() == 0
