"""Events of concepts: golden tables in both readings, the definition written out slowly, blocks, errors."""

import os
import subprocess
import sys
import textwrap

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dormancy_cases import raising
from hypothesis import given, settings
from hypothesis import strategies as st
from mortality_cases import by_unit, drawn, iou_of, slow_lives, slow_seed

from neurolens import schema
from neurolens.errors import MissingMeasurementError, SchemaError
from neurolens.mortality import concept_events, concept_lives

EVERY = [(1, 2, 5, 0.09, 0.03), (2, 3, 5, 0.05, 0.03), (5, 0, 5, 0.06, 0.03), (8, 4, 5, 0.05, 0.01)]
SMOOTH = [(1, 3, 6, 0.07, 0.1 / 3), (2, 0, 6, 0.05, 0.03), (4, 0, 3, 0.09, 0.07 / 3), (5, 0, 6, 0.06, 0.11 / 3)]
SEED = {
    (1, 1, 1): sorted([*EVERY, (4, 0, 1, 0.09, 0.02)]),
    (2, 1, 1): EVERY,
    (3, 1, 1): EVERY,
    (3, 3, 1): [*SMOOTH, (8, 0, 5, 0.06, 0.099999 / 3)],
    (1, 1, 3): EVERY,
}
"""By k, smoothing window and minimum length: unit, birth, death, score at birth and at death."""


@pytest.mark.parametrize(("k", "window", "min_alive"), SEED)
def test_concept_events__are_those_of_the_reference(k, window, min_alive):
    found = concept_events(by_unit(), compat="seed", k=k, smoothing_window=window, min_alive=min_alive)
    expected = SEED[k, window, min_alive]
    assert list(zip(found["unit"] + 1, found["birth"], found["death"])) == [line[:3] for line in expected]
    np.testing.assert_allclose(found[["score_birth", "score_death"]], [line[3:] for line in expected])
    concepts = dict(zip(found["unit"] + 1, found["concept"]))
    assert concepts[5] == ("g" if window == 3 else "f")
    assert not found["censored"].any()
    assert not found["rebirth"].any()


@pytest.mark.parametrize("by", ["unit", "unit-concept"])
def test_concept_events__are_born_where_they_first_live(by):
    found = concept_events(by_unit(), k=1, by=by)
    lives = found[found["unit"].isin([0, 1, 7])]
    expected = [(0, 1, 5, False), (1, 0, 2, False), (1, 3, 5, True), (7, 0, 3, False), (7, 4, 5, True)]
    assert list(zip(lives["unit"], lives["birth"], lives["death"], lives["rebirth"])) == expected
    assert lives["gap"].dropna().tolist() == [1, 1]
    assert lives["decline_start"].tolist() == [2, 0, 3, 0, 4]
    unborn = found[found["unit"].isin([2, 6])]
    assert unborn["end"].tolist() == ["alive", "alive"]
    assert unborn["censored"].all()
    assert unborn["birth_seen"].tolist() == [False, True]
    assert 5 not in found["unit"].tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"k": 2}, [(1, 1, 5), (2, 0, 5), (4, 0, 1), (5, 0, 5), (8, 0, 5)]),
        ({"k": 3}, [(1, 1, 5), (2, 0, 5), (4, 0, 1), (5, 0, 5), (8, 0, 5)]),
        ({"k": 1, "min_alive": 3}, [(1, 1, 5), (5, 0, 5), (8, 0, 3)]),
        ({"k": 2, "smoothing_window": 3}, [(1, 2, 6), (2, 0, 6), (4, 0, 3), (5, 0, 6), (8, 0, 5)]),
    ],
)
def test_concept_events__by_unit_are_those_worked_by_hand(options, expected):
    found = concept_events(by_unit(), by="unit", **options).query("end == 'death'")
    assert list(zip(found["unit"] + 1, found["birth"], found["death"])) == expected


def test_concept_events__carry_coordinates_to_group_by():
    iou = drawn().assign_coords(module=("unit", list("abcabc")), label=("concept", [9, 8, 7, 6, 5]))
    found = concept_events(iou)
    assert (found["module"] == found["unit"].map(dict(enumerate("abcabc")))).all()
    assert (found["label"] == 9 - found["concept"].str[1:].astype(int)).all()
    assert "concept_category" not in found


def test_concept_events__wait_for_a_death_to_be_confirmed():
    found = concept_events(by_unit(), by="unit-concept", k=3)
    deaths = found[found["end"] == "death"]
    assert list(zip(deaths["unit"] + 1, deaths["birth"], deaths["death"])) == [
        (1, 1, 5),
        (2, 0, 5),
        (4, 0, 1),
        (8, 0, 5),
    ]
    assert not found["rebirth"].any()
    gone = found[found["unit"] == 4]
    assert gone[["concept", "end", "censored"]].values.tolist() == [["e", "displaced", True], ["f", "displaced", True]]
    whole = concept_events(by_unit(), by="unit", k=3)
    fifth = whole[whole["unit"] == 4].iloc[0]
    assert (fifth["birth"], fifth["death"], fifth["concept_birth"], fifth["concept"]) == (0, 5, "e", "f")


def test_concept_events__a_death_near_the_end_is_not_confirmed():
    values = np.array([0.05, 0.05, 0.05, 0.01, 0.01])[:, None, None]
    found = concept_events(iou_of(values), k=3).iloc[0]
    assert (found["end"], found["censored"], found["death"], found["duration"]) == ("unconfirmed", True, 30, 2)
    found = concept_events(iou_of(values), k=2).iloc[0]
    assert (found["end"], found["censored"], found["death"], found["duration"]) == ("death", False, 30, 3)


def test_concept_events__with_hysteresis_noise_at_the_threshold_is_no_event():
    values = np.array([0.041, 0.039, 0.041, 0.038, 0.042, 0.02])[:, None, None]
    assert len(concept_events(iou_of(values), k=1)) == 3
    found = concept_events(iou_of(values), k=1, hysteresis=0.1)
    assert found[["birth", "death"]].values.tolist() == [[0, 50]]


def test_concept_events__without_a_score_end_as_absent_and_do_not_come_back_as_reborn():
    values = np.array([0.05, np.nan, 0.05, 0.01, np.nan, 0.06])[:, None, None]
    found = concept_events(iou_of(values), k=1)
    assert found["end"].tolist() == ["absent", "death", "alive"]
    assert found["rebirth"].tolist() == [False, False, True]
    assert found["birth_seen"].tolist() == [False, False, False]
    assert found["gap"].dropna().tolist() == [2]


OPTIONS = st.fixed_dictionaries(
    {
        "k": st.integers(1, 4),
        "smoothing_window": st.integers(1, 3),
        "min_alive": st.integers(1, 3),
        "hysteresis": st.sampled_from([0.0, 0.1, 0.3]),
    }
)


@given(checkpoints=st.integers(1, 10), seed=st.integers(0, 9999), options=OPTIONS)
@settings(max_examples=120, deadline=None)
def test_concept_events__match_the_slow_definition(checkpoints, seed, options):
    iou = drawn(checkpoints, 3, 4, seed)
    found = concept_events(iou, **options)
    rule = {"k": options["k"], "hysteresis": options["hysteresis"], "min_alive": options["min_alive"]}
    expected = []
    for unit in range(3):
        for concept in range(4):
            for life in slow_lives(iou.data[:, unit, concept], window=options["smoothing_window"], **rule):
                expected.append((unit, f"c{concept}", *life.values()))
    columns = ["unit", "concept", "birth_position", "last_position", "end", "death_position", "n_alive", "birth_seen"]
    got = [
        tuple(None if pd.isna(value) else value for value in line)
        for line in found[[*columns, "gap"]].itertuples(index=False, name=None)
    ]
    assert got == expected


@given(
    checkpoints=st.integers(1, 10),
    seed=st.integers(0, 9999),
    k=st.integers(1, 4),
    window=st.integers(1, 4),
    min_alive=st.integers(1, 4),
)
@settings(max_examples=120, deadline=None)
def test_concept_events__match_the_reference_written_out(checkpoints, seed, k, window, min_alive):
    score = drawn(checkpoints, 12, 1, seed).isel(concept=0, drop=True)
    found = concept_events(score, compat="seed", k=k, smoothing_window=window, min_alive=min_alive)
    events = {unit: slow_seed(score.data[:, unit], 0.04, k, window, min_alive) for unit in range(12)}
    expected = [(unit, *event) for unit, event in events.items() if event]
    got = found[["unit", "birth_position", "death_position", "score_birth", "score_death"]]
    assert len(got) == len(expected)
    np.testing.assert_allclose(got.astype(float), np.array(expected).reshape(-1, 5))


@given(checkpoints=st.integers(1, 10), seed=st.integers(0, 9999), options=OPTIONS)
@settings(max_examples=60, deadline=None)
def test_concept_lives__count_what_concept_events_list(checkpoints, seed, options):
    iou = drawn(checkpoints, 4, 3, seed)
    events, found = concept_events(iou, **options), concept_lives(iou, **options)
    assert int(found["n_births"].sum()) == len(events)
    assert int(found["n_deaths"].sum()) == (events["end"] == "death").sum()
    assert int(found["n_rebirths"].sum()) == events["rebirth"].sum()
    spans = (events["last_position"] - events["birth_position"] + 1).sum()
    assert int(found["n_alive"].sum()) == spans
    assert not (found["alive"] & ~found["known"]).any()
    assert not (found["death"] & found["alive"]).any()
    for line in events.itertuples():
        here = found.isel(epoch=line.birth_position).sel(unit=line.unit, concept=line.concept)
        assert bool(here["birth"])
        assert bool(here["rebirth"]) == line.rebirth
    for name in ("birth", "rebirth", "death"):
        np.testing.assert_array_equal(found[f"{name}s"], found[name].sum("epoch"))


@given(seed=st.integers(0, 999), k=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_concept_events__keep_their_identities(seed, k):
    found = concept_events(drawn(9, 5, 4, seed), k=k)
    assert (found["birth_position"] <= found["last_position"]).all()
    died = found[found["end"] == "death"]
    assert (died["death_position"] == died["last_position"] + 1).all()
    assert (died["score_death"] < 0.04).all()
    assert (found["score_birth"] >= 0.04).all()
    assert (found["score_max"] >= found["score_birth"]).all()
    assert (died["decline_start"].fillna(0) <= died["last_alive"]).all()
    for _, lives in found.groupby(["unit", "concept"]):
        assert lives["life"].tolist() == list(range(len(lives)))
        assert (lives["birth_position"].to_numpy()[1:] > lives["last_position"].to_numpy()[:-1]).all()


CHUNKS = [{"epoch": 1}, {"unit": 2}, {"epoch": 3, "unit": 4, "concept": 2}]


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("options", [{}, {"by": "unit"}, {"compat": "seed", "k": 1}, {"smoothing_window": 2}])
def test_concept_lives__are_lazy_and_blind_to_chunks(chunks, options):
    iou = drawn(7, 7, 5, 3)
    with dask.config.set(scheduler=raising):
        found = concept_lives(iou.chunk(chunks), **options)
    assert all(isinstance(array.data, da.Array) for array in found.values())
    xr.testing.assert_identical(found.compute(), concept_lives(iou, **options))


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("options", [{}, {"by": "unit"}, {"compat": "seed", "k": 1}])
def test_concept_events__are_blind_to_chunks(chunks, options):
    iou = drawn(7, 9, 3, 3, levels=(0.01, 0.02, 0.03, 0.05))
    found, expected = concept_events(iou.chunk(chunks), **options), concept_events(iou, **options)
    assert len(expected)
    pd.testing.assert_frame_equal(found, expected)


def test_concept_events__have_the_columns_that_the_schema_declares():
    found = concept_events(drawn())
    declared = [v.name for v in schema.EVENTS]
    assert list(found) == [name for name in declared if name in found]
    assert set(declared) - set(found) == {"concept_birth", "index"}
    assert found.attrs["iou_tau"] == 0.04
    assert found.attrs["checkpoints"] == list(range(0, 80, 10))


def test_concept_events__of_nothing_alive_are_none():
    found = concept_events(drawn(levels=(0.0, 0.01)))
    assert found.empty
    assert list(found) == list(concept_events(drawn()))
    assert int(concept_lives(drawn(levels=(0.0,)))["n_births"].sum()) == 0


def test_concept_events__take_measured_checkpoints_only():
    iou = drawn(5).assign_coords(measured=("epoch", [True, True, False, True, True]))
    with pytest.raises(MissingMeasurementError, match="at epoch 20; measure them: `neurolens run STUDY --only"):
        concept_events(iou)
    found = concept_events(iou, missing="drop")
    assert found.attrs["checkpoints"] == [0, 10, 30, 40]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0}, "tau=0 is no threshold"),
        ({"k": 0}, "k=0 is no number of checkpoints"),
        ({"smoothing_window": 1.5}, "smoothing_window=1.5"),
        ({"hysteresis": 1.0}, "hysteresis=1.0 is no share"),
        ({"by": "units"}, "by='units' is unknown; did you mean 'unit'"),
        ({"compat": "sead"}, "did you mean 'seed'"),
        ({"compat": "seed", "by": "unit-concept"}, 'pass by="unit", or leave compat out'),
        ({"compat": "seed", "hysteresis": 0.1}, "the reference knows no hysteresis"),
    ],
)
def test_concept_events__say_what_is_wrong_with_an_option(options, message):
    with pytest.raises(SchemaError, match=message):
        concept_events(drawn(), **options)


def test_concept_events__say_what_is_wrong_with_scores():
    with pytest.raises(SchemaError, match="no label to tell concepts apart; pass labels="):
        concept_events(by_unit()["score"], by="unit-concept")
    with pytest.raises(SchemaError, match="dim 'draw' that cannot be followed"):
        concept_events(drawn().expand_dims(draw=2))
    with pytest.raises(SchemaError, match=r"neither `iou` nor `score` among .*; pass the IoU .*, neurolens.iou\(ds\)"):
        concept_events(xr.Dataset({"intersection": ("epoch", [1.0])}))
    with pytest.raises(SchemaError, match="neither `iou` nor `score` among mean; take the cube of concepts, or of"):
        concept_events(xr.Dataset({"mean": ("epoch", [1.0])}))
    with pytest.raises(SchemaError, match="found a list"):
        concept_events([0.1])


def test_concept_lives_and_events__stay_out_of_core():
    """Scores of 1.5 GB in rows, with 500 MB to allocate once everything is imported."""
    code = """
        import resource, dask, dask.array as da, numpy as np, xarray as xr
        from neurolens.mortality import concept_events, concept_lives
        dask.config.set(scheduler="threads", num_workers=2)
        def block(block_info=None):
            (low, _), (unit, stop), (_, width) = block_info[None]["array-location"]
            out = np.zeros((1, stop - unit, width))
            out[0, :, 7] = 0.09 if low % 20 < 10 else 0.01
            return out
        def scores(rows):
            chunks = (1,) * rows, (32,) * 16, (1200,)
            data = da.map_blocks(block, chunks=chunks, dtype="f8", meta=np.empty((0,) * 3))
            names = {"concept": np.arange(1200).astype(str)}
            return xr.DataArray(data, dims=("epoch", "unit", "concept"), coords=names)
        def both(rows):
            lives = concept_lives(scores(rows))[["n_alive", "n_deaths", "deaths"]].compute()
            return lives, concept_events(scores(rows))
        both(20)
        used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + (500 << 20),) * 2)
        lives, events = both(320)
        assert int(lives["deaths"].sum()) == int(lives["n_deaths"].sum()) == 16 * 512, lives
        assert len(events) == 16 * 512 and events["rebirth"].sum() == 15 * 512, events
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
