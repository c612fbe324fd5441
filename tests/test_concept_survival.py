"""Survival of concepts: Kaplan–Meier and log-rank by hand, against slow versions, and what is left out."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mortality_cases import drawn
from scipy import stats

from neurolens.errors import SchemaError
from neurolens.mortality import concept_events, logrank, survival
from neurolens.mortality.lifetimes import holm

# Freireich et al. 1963: weeks of remission in leukaemia under 6-MP and placebo, as in Cox and Oakes 1984, table 1.1
TREATED = [6, 6, 6, 7, 10, 13, 16, 22, 23], [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23], []


def table(**groups):
    lines = []
    for name, (died, censored) in groups.items():
        lines += [(name, duration, False) for duration in died] + [(name, duration, True) for duration in censored]
    found = pd.DataFrame(lines, columns=["group", "duration", "censored"])
    return found.assign(birth_seen=True, life=0)


def test_survival__is_that_of_the_published_remissions():
    found = survival(table(treated=TREATED, placebo=PLACEBO), by="group")
    curve = found["survival"].sel(time=[6, 7, 10, 13, 16, 22, 23]).isel(group=0)
    np.testing.assert_allclose(curve, [0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448], atol=5e-4)
    assert found["median"].data.tolist() == [23, 8]
    assert found["at_risk"].sel(time=6).data.tolist() == [21, 12]
    assert found["n_censored"].data.tolist() == [12, 0]


def test_survival__has_greenwoods_bands():
    linear = survival(table(treated=TREATED), method="linear").sel(time=10).isel(group=0)
    se = 0.0963  # Greenwood, at 10 weeks
    np.testing.assert_allclose(linear["lower"], 0.7529 - 1.96 * se, atol=1e-3)
    np.testing.assert_allclose(linear["upper"], 0.7529 + 1.96 * se, atol=1e-3)
    loglog = survival(table(treated=TREATED)).isel(group=0)
    known = loglog["lower"].notnull()
    assert known.sum() == 30  # from the first death on
    assert ((loglog["lower"] <= loglog["survival"]) & (loglog["survival"] <= loglog["upper"])).data[known.data].all()


def test_logrank__is_that_of_the_published_remissions():
    found = logrank(table(treated=TREATED, placebo=PLACEBO), by="group")
    np.testing.assert_allclose(found["statistic"].iloc[0], 16.79, atol=5e-3)
    assert found["p_value"].iloc[0] < 1e-4
    np.testing.assert_allclose(found["statistic"].iloc[1] ** 2, found["statistic"].iloc[0])
    np.testing.assert_allclose(found["p_value"].iloc[1], found["p_value"].iloc[0])


@given(seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_survival__is_the_product_over_deaths(seed):
    rng = np.random.default_rng(seed)
    durations, censored = rng.integers(0, 8, 20), rng.random(20) < rng.random()
    found = survival(table(a=(durations[~censored].tolist(), durations[censored].tolist()))).isel(group=0)
    expected = 1.0
    for t in found["time"].data:
        at_risk, died = (durations >= t).sum(), ((durations == t) & ~censored).sum()
        expected *= 1 - died / at_risk
        np.testing.assert_allclose(found["survival"].sel(time=t), expected, atol=1e-12)
        assert (int(found["at_risk"].sel(time=t)), int(found["died"].sel(time=t))) == (at_risk, died)


@given(seed=st.integers(0, 999), groups=st.integers(2, 4))
@settings(max_examples=30, deadline=None)
def test_logrank__of_pairs_is_that_of_scipy_and_holm_is_monotone(seed, groups):
    rng = np.random.default_rng(seed)
    parts = {f"g{i}": (rng.integers(1, 9, 6).tolist(), rng.integers(1, 9, 4).tolist()) for i in range(groups)}
    found = logrank(table(**parts), by="group")
    assert len(found) == 1 + groups * (groups - 1) // 2
    for line in found.iloc[1:].itertuples():
        one, other = (stats.CensoredData(uncensored=parts[n][0], right=parts[n][1]) for n in (line.group, line.other))
        np.testing.assert_allclose(line.p_value, stats.logrank(one, other).pvalue)
        assert line.p_adjusted >= line.p_value
    assert 0 <= found["p_value"].iloc[0] <= 1


def test_logrank__of_groups_without_a_death_is_unknown():
    found = logrank(table(a=([], [3, 4]), b=([], [5])), by="group")
    assert found["p_value"].isna().all()


def test_holm__steps_down():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, np.nan]), [0.03, 0.06, 0.06, np.nan])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1.0, 1.0])


def test_survival__counts_lives_that_are_seen():
    events = concept_events(drawn(10, 8, 4, 1), k=1)
    everything = survival(events, by="layer")
    assert everything["n_lives"].sum() == len(events)
    assert int(everything["n_birth_unseen"].sum()) == (~events["birth_seen"]).sum()
    first = survival(events, lives="first", unseen_births="drop")
    assert int(first["n_lives"][0]) == (events["birth_seen"] & (events["life"] == 0)).sum()
    assert everything.attrs["grouped_by"] == "layer"
    assert sorted(everything["group"].data.tolist()) == ["layer1", "layer2", "layer3"]


def test_survival__of_lives_that_all_go_on_stays_at_one():
    found = survival(table(a=([], [0, 3]))).isel(group=0)
    assert found["survival"].data.tolist() == [1.0] * 4
    assert found["lower"].isnull().all()
    assert np.isnan(found["median"])


def test_survival__says_what_is_wrong():
    events = concept_events(drawn())
    with pytest.raises(SchemaError, match="no column 'layr'; did you mean 'layer'"):
        survival(events, by="layr")
    with pytest.raises(SchemaError, match="no life is left to look at, of 0"):
        survival(events.iloc[:0])
    with pytest.raises(SchemaError, match="no column 'duration'; pass what"):
        survival(pd.DataFrame({"x": [1]}))
    with pytest.raises(SchemaError, match="has one group only"):
        logrank(events.assign(all=1), by="all")
    with pytest.raises(SchemaError, match="confidence=2"):
        survival(events, confidence=2)
