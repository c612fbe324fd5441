"""The sets of units that a study asks for: their names, their units, their digests."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.attribution.sets import unit_sets
from neurolens.errors import SchemaError, StudyError
from neurolens.study import Attributions, load_study
from neurolens.study_files import init_study

LABELS = {"a": {"k2": np.array([0, 0, 1, 0]), "k3": np.array([0, 1, 2, 0])}, "b": {"k2": np.array([1, 0, 1, 1, 0])}}


def by_name(table=None, labels=LABELS):
    return {one.name: one for one in unit_sets(labels, table)}


def test_unit_sets__names_the_whole_each_cluster_and_what_is_left_without_it():
    found = by_name()
    assert list(found)[:5] == ["whole", "a/k2/0", "a/without k2/0", "a/k2/1", "a/without k2/1"]
    assert len(found) == 1 + 2 * (2 + 3 + 2)
    assert found["whole"].kind == "whole"
    one = found["b/without k2/1"]
    assert (one.cut, one.clustering, one.cluster, one.kind) == ("b", "k2", 1, "without")
    assert one.units.tolist() == [False, True, False, False, True]


@pytest.mark.parametrize(("sets", "kinds"), [(("only",), {"only"}), (("without",), {"without"})])
def test_unit_sets__has_the_kinds_that_are_asked_for(sets, kinds):
    assert {one.kind for one in unit_sets(LABELS, Attributions(sets=sets))} == {"whole", *kinds}


def test_unit_sets__puts_clusters_of_one_layer_together():
    table = Attributions(unions={"most": ("a/k3/0", "a/k3/2")})
    union = by_name(table)["a/most"]
    assert (union.kind, union.units.tolist()) == ("union", [True, False, True, True])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unions": {"u": ("a/k3/0", "b/k2/0")}}, r"of clusters of \['a', 'b'\], and a set has the units of one layer"),
        ({"unions": {"u": ("a/k3/7",)}}, "there is no cluster 'a/k3/7'"),
        ({"unions": {"u": ()}}, "is of no clusters"),
        ({"unions": {"k3/0": ("a/k3/1",)}}, "would be called 'a/k3/0', as a cluster"),
        ({"unions": {"without k3/0": ("a/k3/1",)}, "sets": ("only",)}, "would be called 'a/without k3/0'"),
        ({"controlled": ("a/k9/*",)}, "there is no such set"),
        ({"controlled": ("a/k2/0",), "strata": {"c": (1,)}}, "strata are given of 'c', which has no clusters"),
        ({"controlled": ("a/k2/0",), "strata": {"a": (4,)}}, r"begin at \[4\], and its units are 0 to 3"),
        ({"controlled": ("a/k2/0",), "strata": {"a": (2, 1)}}, "give rising numbers"),
    ],
)
def test_unit_sets__says_what_is_not_there(changes, words):
    with pytest.raises(SchemaError, match=words):
        unit_sets(LABELS, Attributions(**changes))


def test_unit_sets__draws_as_many_units_for_each_control():
    table = Attributions(controlled=("a/k3/*", "a/without k3/0"), controls=5)
    found = by_name(table)
    drawn = [one for one in found.values() if one.kind == "control"]
    assert len(drawn) == 4 * 5
    for one in drawn:
        assert one.units.sum() == found[one.of].units.sum()
    assert found["a/without k3/0 control 4"].draw == 4


def test_unit_sets__keeps_draws_when_more_are_asked_for_and_of_other_sets():
    few = by_name(Attributions(controlled=("a/k3/1",), controls=3))
    more = by_name(Attributions(controlled=("a/k2/0", "a/k3/1"), controls=6))
    for name in ("a/k3/1 control 0", "a/k3/1 control 2"):
        assert few[name].digest == more[name].digest


def test_unit_sets__draws_as_many_of_each_stratum():
    labels = {"a": {"k2": np.arange(40) % 2}}
    table = Attributions(controlled=("a/k2/0",), controls=8, strata={"a": (10,)})
    for one in unit_sets(labels, table):
        if one.kind == "control":
            assert (one.units[:10].sum(), one.units[10:].sum()) == (5, 15)


def test_init_study__of_densenet_draws_the_references_controls_from_all_channels(tmp_path):
    path = init_study(tmp_path / "study.toml", "densenet121-imagenet")
    found = load_study(path, profile="seed").attributions
    assert (found.control_compat, any(found.strata.values())) == ("seed", False)
    with pytest.raises(StudyError, match="'seed' draws from all units, and strata of "):
        load_study(path, overrides=["attributions.control_compat=seed"])
    sets = unit_sets({"features.denseblock1": {"k3": np.arange(256) % 3}}, found)
    assert sum(one.kind == "control" for one in sets) == 3 * 20


def test_unit_sets__of_strata_that_begin_nowhere_draws_from_all_units():
    table = Attributions(controlled=("a/k2/0",), controls=3)
    assert by_name(table.model_copy(update={"strata": {"a": ()}})) == by_name(table)


def test_unit_sets__filters_the_references_units_away_in_its_controls():
    labels = np.zeros(256, dtype=np.int64)
    labels[:42] = 1
    table = Attributions(
        controlled=("b/without k2/0",), controls=1, control_compat="seed", control_seed=42, sets=("without",)
    )
    found = by_name(table, {"b": {"k2": labels}})["b/without k2/0 control 0"]
    filtered = np.random.RandomState(42).choice(256, 214, replace=False)
    assert sorted(filtered)[:10] == [0, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert sorted(np.flatnonzero(~found.units)) == sorted(filtered)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=3, max_size=9), st.integers(0, 8))
def test_digest__changes_with_any_unit_of_the_clustering(labels, at):
    changed = list(labels)
    changed[at % len(labels)] += 1
    before, after = (by_name(labels={"a": {"k": np.array(each)}}) for each in (labels, changed))
    for name in set(before) & set(after) - {"whole"}:
        assert before[name].digest != after[name].digest
    assert before["whole"].digest == after["whole"].digest


def test_digest__of_a_control_does_not_depend_on_the_clustering():
    table = Attributions(controlled=("a/k/0",), controls=1)
    one, other = (by_name(table, {"a": {"k": np.array(labels)}}) for labels in ([0, 0, 1, 1], [1, 0, 1, 0]))
    assert one["a/k/0 control 0"].digest == other["a/k/0 control 0"].digest
