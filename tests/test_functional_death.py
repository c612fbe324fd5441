"""Functional deaths: which classes used a unit, what is left of it, and what is not known."""

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from concept_study import STUDY, run, write_study
from hypothesis import given, settings
from hypothesis import strategies as st

import neurolens
from neurolens import concept_events, functional_death, schema
from neurolens.errors import MissingMeasurementError, SchemaError
from neurolens.inference import paired_interval
from neurolens.mortality import asked_units, export_events
from neurolens.study import load_study

CLASSES = ["dog", "cat", "owl", "ant"]
EPOCHS = [0, 1, 2, 5, 7, 9]


def scores(dim="epoch"):
    """IoU of three units with a concept each: unit 10 dies at 2, unit 11 at 7, unit 12 lives."""
    iou = np.full((len(EPOCHS), 3, 3), 0.01)
    iou[:2, 0, 0] = iou[:4, 1, 1] = iou[:, 2, 2] = 0.09
    coords = {dim: EPOCHS, "unit": [10, 11, 12], "concept": ["a", "b", "c"]}
    coords |= {"layer": ("unit", ["layer4"] * 3), "index": ("unit", [0, 1, 2])}
    return xr.DataArray(iou, dims=(dim, "unit", "concept"), coords=coords)


def deaths(dim="epoch", **options):
    return concept_events(scores(dim), **({"k": 1} | options))


def cube(dim="epoch", n=8):
    """Effects at epochs 1, 2, 5 and 7, with what is known at each."""
    shape = (len(EPOCHS), 3, 4)
    values = {name: np.full(shape, np.nan) for name in ("ablated_correct", "ablated_logit", "ablated_lost")}
    values["ablated_m2"] = np.full(shape, np.nan)
    out = xr.Dataset(
        {name: ((dim, "unit", "class"), array) for name, array in values.items()}
        | {"conductance": ((dim, "unit"), np.full(shape[:2], np.nan))},
        coords={dim: EPOCHS, "unit": [10, 11, 12], "class": CLASSES},
        attrs={"run": "r"},
    )
    for name, value in (("n_class", n), ("class_correct", n / 2), ("class_logit", 3.0)):
        out[name] = ((dim, "class"), np.full(shape[::2], float(value)))
    return out


def put(effects, epoch, unit, fall, lost=(0, 0, 0, 0), gained=(0, 0, 0, 0), m2=0.0):
    at = {next(d for d in effects.dims if d in ("epoch", "step")): epoch, "unit": unit}
    effects["ablated_logit"].loc[at] = 3.0 - np.asarray(fall, float)
    effects["ablated_lost"].loc[at] = np.asarray(lost, float)
    effects["ablated_correct"].loc[at] = 4.0 - np.asarray(lost, float) + np.asarray(gained, float)
    effects["ablated_m2"].loc[at] = m2


def measured():
    effects = cube()
    put(effects, 1, 10, [2.0, 0.5, -1.0, 0.0], lost=[3, 1, 0, 0], gained=[0, 1, 2, 0], m2=7.0)
    put(effects, 2, 10, [0.1, 0.1, 0.0, 5.0], lost=[1, 0, 0, 4])
    put(effects, 5, 11, [0.0, 0.0, 1.0, 0.0])
    put(effects, 7, 11, [0.0, 0.0, 0.5, 0.0])
    return effects


def test_asked_units__are_those_of_the_checkpoint_before_a_death_and_of_the_death():
    assert asked_units(deaths(), EPOCHS) == {1: (10,), 2: (10,), 5: (11,), 7: (11,)}
    assert all(type(unit) is int for units in asked_units(deaths(), np.array(EPOCHS)).values() for unit in units)


def test_asked_units__of_the_reference_are_of_the_death_and_the_next_checkpoint():
    assert asked_units(deaths(), EPOCHS, compat="seed") == {2: (10,), 5: (10,), 7: (11,), 9: (11,)}
    last = scores()
    last[:-1, 1, 1] = 0.09
    events = concept_events(last, k=1)
    assert asked_units(events, EPOCHS) == {1: (10,), 2: (10,), 7: (11,), 9: (11,)}
    assert asked_units(events, EPOCHS, compat="seed") == {2: (10,), 5: (10,)}


def test_asked_units__of_lives_without_deaths_are_none():
    assert asked_units(deaths(tau=0.001), EPOCHS) == {}
    assert asked_units(deaths(k=5), EPOCHS) == {}  # unconfirmed


def test_asked_units__refuses_other_checkpoints():
    with pytest.raises(SchemaError, match="pass those that were followed"):
        asked_units(deaths(), EPOCHS[1:])


def test_functional_death__compares_the_classes_that_used_the_unit():
    table = functional_death(measured(), deaths())
    assert table["unit"].tolist() == [10, 11]
    assert table["before"].tolist() == [1, 5]
    assert table["after"].tolist() == [2, 7]
    assert table["used_by"].tolist() == [("dog", "cat"), ("owl",)]
    assert table["n_used"].tolist() == [2, 1]
    assert table["n_samples"].tolist() == [16, 8]
    np.testing.assert_allclose(table["logit_drop_before"], [1.25, 1.0])
    np.testing.assert_allclose(table["logit_drop_after"], [0.1, 0.5])
    np.testing.assert_allclose(table["remaining"], [0.08, 0.5])
    np.testing.assert_allclose(table["accuracy_drop_before"], [3 / 16, 0])  # 4 lost and 1 gained, of dogs and cats
    np.testing.assert_allclose(table["accuracy_drop_after"], [1 / 16, 0])
    assert table["functional_dead"].tolist() == [True, False]
    assert table["functional_dead"].dtype == "boolean"


def test_functional_death__takes_the_classes_that_fall_most():
    table = functional_death(measured(), deaths(), n_classes=1)
    assert table["used_by"].tolist() == [("dog",), ("owl",)]
    np.testing.assert_allclose(table["remaining"], [0.05, 0.5])
    assert functional_death(measured(), deaths(), ratio=0.6)["functional_dead"].tolist() == [True, True]


def test_functional_death__weighs_classes_by_their_samples():
    effects = measured()
    effects["n_class"].loc[{"class": "dog"}] = 24.0
    table = functional_death(effects, deaths())
    np.testing.assert_allclose(table["logit_drop_before"][0], (24 * 2 + 8 * 0.5) / 32)


def test_functional_death__has_intervals_of_the_same_samples_twice():
    table = functional_death(measured(), deaths(), confidence=0.9)
    error = np.sqrt(2 * 8 * 7.0 / 7) / 16  # two classes of 8 samples, with a variance of 7 / (8 − 1) each
    np.testing.assert_allclose(table["logit_drop_before_low"][0], 1.25 - 1.6448536 * error)
    np.testing.assert_allclose(table["logit_drop_before_high"][0], 1.25 + 1.6448536 * error)
    low, high = paired_interval(4, 1, 16, 0.9)
    assert table["accuracy_drop_before_low"][0] == low < 3 / 16 < high == table["accuracy_drop_before_high"][0]


def test_paired_interval__is_that_of_agresti_and_min():
    b, c, n = 4.5, 1.5, 18
    error = np.sqrt((b + c - (b - c) ** 2 / n) / n**2)
    np.testing.assert_allclose(
        paired_interval(4, 1, 16), [(b - c) / n - 1.959964 * error, (b - c) / n + 1.959964 * error]
    )
    low, high = paired_interval(0, 0, 10)
    assert low == -high < 0
    assert paired_interval(1, 0, 1)[1] == 1
    assert np.isnan(paired_interval(np.nan, 1, 3)).all()


def test_functional_death__is_missing_where_nothing_was_measured():
    effects = measured()
    effects["ablated_logit"].loc[{"epoch": 7, "unit": 11}] = np.nan
    table = functional_death(effects, deaths())
    assert table["functional_dead"].isna().tolist() == [False, True]
    assert table["n_used"].isna().tolist() == [False, True]
    assert table["used_by"].tolist() == [("dog", "cat"), ()]
    assert np.isnan(table["logit_drop_before"][1])
    only = functional_death(effects.sel(epoch=[1, 5]), deaths())  # the rows after the deaths are not there
    assert only["functional_dead"].isna().all()
    assert only["after"].tolist() == [2, 7]
    assert functional_death(effects.isel(epoch=slice(0, 0)), deaths())["functional_dead"].isna().all()


def test_functional_death__of_a_unit_that_no_class_used_is_missing():
    effects = measured()
    put(effects, 5, 11, [0.0, -1.0, -1.0, 0.0])
    table = functional_death(effects, deaths())
    assert table["functional_dead"].isna().tolist() == [False, True]
    assert table["n_used"].tolist() == [2, 0]


def test_functional_death__of_no_deaths_is_an_empty_table():
    for compat in (None, "seed"):
        table = functional_death(measured(), deaths(tau=0.001), compat=compat)
        assert len(table) == 0
        assert "functional_dead" in table


def test_functional_death__of_the_reference_reads_conductance():
    effects = measured()
    for epoch, unit, value in ((2, 10, 2e-3), (5, 10, 5e-5), (7, 11, 5e-6), (9, 11, 6e-6)):
        effects["conductance"].loc[{"epoch": epoch, "unit": unit}] = value
    table = functional_death(effects, deaths(), compat="seed")
    assert table["before"].tolist() == [2, 7]
    assert table["after"].tolist() == [5, 9]
    assert table["functional_dead"].tolist() == [True, False]  # the second is small, but was smaller
    assert functional_death(effects, deaths(), compat="seed", threshold=1e-5)["functional_dead"].tolist() == [False] * 2
    effects["conductance"].loc[{"epoch": 9}] = np.nan
    assert functional_death(effects, deaths(), compat="seed")["functional_dead"].isna().tolist() == [False, True]


def test_functional_death__of_the_reference_is_missing_where_nothing_follows():
    last = scores()
    last[:-1, 1, 1] = 0.09
    effects = measured()
    effects["conductance"][:] = 1e-5
    table = functional_death(effects, concept_events(last, k=1), compat="seed")
    assert table["functional_dead"].isna().tolist() == [False, True]
    assert table["after"].isna().tolist() == [False, True]


@pytest.mark.parametrize("chunks", [{"epoch": 1}, {"unit": 2}, {"class": 3, "epoch": 2}])
def test_functional_death__is_blind_to_chunks(chunks):
    pd.testing.assert_frame_equal(
        functional_death(measured().chunk(chunks), deaths()), functional_death(measured(), deaths())
    )


def test_functional_death__reads_only_what_is_asked_for():
    read = set()

    def block(values, block_info=None):
        read.add(tuple(block_info[0]["chunk-location"]))
        return values

    effects = measured().chunk(epoch=1, unit=1)
    for name in ("ablated_logit",):
        effects[name].data = da.map_blocks(block, effects[name].data, dtype=float)
    read.clear()
    functional_death(effects, deaths())
    assert {at[:2] for at in read} == {(1, 0), (2, 0), (3, 1), (4, 1)}


@settings(deadline=None, max_examples=40)
@given(
    falls=st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=4, max_size=4),
    n_classes=st.integers(1, 6),
)
def test_functional_death__is_what_the_words_say(falls, n_classes):
    effects = cube()
    for (epoch, unit), fall in zip([(1, 10), (2, 10), (5, 11), (7, 11)], falls):
        put(effects, epoch, unit, fall)
    table = functional_death(effects, deaths(), n_classes=n_classes)
    for i, line in table.iterrows():
        before, after = (3.0 - (3.0 - np.array(fall)) for fall in falls[2 * i : 2 * i + 2])
        order = sorted(range(4), key=lambda c: (-before[c], c))
        users = [c for c in order if before[c] > 0][:n_classes]
        assert sorted(line["used_by"]) == sorted(CLASSES[c] for c in users)
        if not users:
            assert line["functional_dead"] is pd.NA
            continue
        share = np.mean(after[users]) / np.mean(before[users])
        np.testing.assert_allclose(line["remaining"], share, rtol=1e-9, atol=1e-12)
        if abs(share - 0.1) > 1e-9:
            assert line["functional_dead"] == (share < 0.1)


def test_functional_death__has_the_declared_columns_in_both_readings():
    declared = [v.name for v in schema.FUNCTIONAL_DEATHS]
    ours, theirs = (list(functional_death(measured(), deaths(), compat=c)) for c in (None, "seed"))
    assert [name for name in declared if name in ours or name in theirs] == [n for n in declared if n != "category"]
    assert [name for name in declared if name in ours] == ours
    assert neurolens.functional_death is functional_death


def test_functional_death__says_what_is_wrong():
    with pytest.raises(SchemaError, match="did you mean 'seed'"):
        functional_death(measured(), deaths(), compat="sead")
    with pytest.raises(SchemaError, match="give numbers above 0"):
        functional_death(measured(), deaths(), ratio=0)
    with pytest.raises(SchemaError, match="at least 1"):
        functional_death(measured(), deaths(), n_classes=0)
    with pytest.raises(SchemaError, match="pass the table as concept_events returned it"):
        functional_death(measured(), pd.DataFrame(deaths().to_dict("list")))
    with pytest.raises(SchemaError, match="no column 'death_position'"):
        functional_death(measured(), deaths().drop(columns="death_position"))
    with pytest.raises(SchemaError, match="follow both alike"):
        functional_death(measured(), deaths("step"))
    with pytest.raises(SchemaError, match="units 10, which the effects have not"):
        functional_death(measured().sel(unit=[11, 12]), deaths())
    with pytest.raises(MissingMeasurementError, match=r"conductance = true in the study's \[effects\]"):
        functional_death(measured().drop_vars("conductance"), deaths(), compat="seed")
    with pytest.raises(MissingMeasurementError, match="--only effects"):
        functional_death(measured().drop_vars("ablated_logit"), deaths())


def test_functional_death__fits_the_files_of_the_reference(tmp_path):
    effects = measured()
    effects["ablated_logit"].loc[{"epoch": 7, "unit": 11}] = np.nan
    table = functional_death(effects, deaths())
    events, summary, _ = export_events(deaths(), tmp_path, functional_dead=table["functional_dead"])
    lines = pd.read_csv(events, dtype=str, keep_default_na=False)
    assert lines["functional_dead"].tolist() == ["True", ""]
    assert "functional_dead_events,1" in summary.read_text()


@pytest.mark.parametrize("compat", [None, "seed"])
def test_functional_death__is_told_from_what_the_rows_measured(compat, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rule = {"k": 1, "tau": 0.15, "compat": compat}
    table = "[effects]\nk = 1\ntau = 0.15\nconductance = true\nconductance_steps = 4\nconductance_samples = 8\n"
    path = write_study(tmp_path / "run", checkpoints=5, text=STUDY + table + ("compat = 'seed'\n" if compat else ""))
    run(path)
    run(path, "effects")
    opened = neurolens.open_run(load_study(path).store.url)
    events = concept_events(neurolens.iou(opened["concepts"].to_dataset()), **rule)
    table = functional_death(opened["effects"].to_dataset(), events, compat=compat, threshold=1e-3)
    died = events[events["end"] == "death"]
    assert table["death"].tolist() == died["death"].tolist() != []
    last = died["death"] == 4
    if compat:
        assert table["functional_dead"].isna().tolist() == last.tolist()
        assert np.isfinite(table["conductance_after"][~last.to_numpy()]).all()
    else:
        assert table["n_used"].notna().all()
        assert table["functional_dead"].notna().tolist() == (table["n_used"] > 0).tolist()
        shares = table["logit_drop_after"] / table["logit_drop_before"]
        assert (table["functional_dead"].dropna() == (shares < 0.1)[table["n_used"] > 0]).all()
