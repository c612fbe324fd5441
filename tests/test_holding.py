"""Rows that hold some sets of units: their keys, what is told of them, and how they are put together."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurolens import schema
from neurolens.rows.holding import held_sets, holds_sets, sets_key, spread, told_sets
from neurolens.store import LedgerRow

IDS = ["whole@aa", "a/k2/0@bb", "a/k2/1@each", "b/k2/0@each"]
SETS = {"whole@aa": "aa", "a/k2/0@bb": "bb", "a/k2/1@each": "cc"}


def entry(sets, *, base="base", state="done", part="maps"):
    told = json.dumps({"maps": {part: told_sets(sets, IDS)}})
    return LedgerRow(0, 0, part, state, sets_key(base, sets), 1.0, 1.0, "", told)


def test_holds_sets__is_of_parts_along_the_growing_axis():
    assert holds_sets("attributions", "maps")
    assert holds_sets("attributions", "curves")
    assert not holds_sets("attributions", "answers")
    assert not holds_sets("units", "statistics")


def test_told_sets__runs_over_ids_that_end_in_the_digest():
    assert told_sets(SETS, IDS) == [[0, 2], [2, "cc"]]
    assert told_sets({}, IDS) == []


@given(st.sets(st.sampled_from(IDS)))
def test_held_sets__finds_what_was_told(names):
    sets = {name: SETS.get(name, "dd") for name in names}
    assert held_sets(entry(sets), "base", IDS) == sets


@pytest.mark.parametrize("changed", [{"key": "0" * 64}, {"state": "failed"}, {"provenance": ""}])
def test_held_sets__keeps_nothing_that_was_measured_otherwise(changed):
    assert held_sets(replace(entry(SETS), **changed), "base", IDS) == {}
    assert held_sets(entry(SETS), "another base", IDS) == {}


def test_sets_key__depends_on_sets_and_digests_and_not_on_their_order():
    assert sets_key("base", SETS) == sets_key("base", dict(reversed(SETS.items())))
    assert sets_key("base", SETS) != sets_key("base", {**SETS, "a/k2/1@each": "ee"})


def test_spread__puts_what_is_measured_beside_what_is_held():
    variable = next(v for v in schema.ATTRIBUTIONS.variables if v.name == "dot")
    sizes = {"sample": 2, "map": 4, "attribution": 1, "mate": 3}
    stored = np.arange(2 * 4 * 1 * 2, dtype=float).reshape(2, 4, 1, 2)
    measured = -np.ones((2, 2, 1, 3))
    measured[:, 1] = -2
    out = spread(variable, sizes, measured=(measured, {3: 1, 0: 0}), stored=(stored, [1]))
    np.testing.assert_array_equal(out[:, 1, :, :2], stored[:, 1])
    assert np.isnan(out[:, 1, :, 2]).all()
    assert np.isnan(out[:, 2]).all()
    assert (out[:, 0] == -1).all()
    assert (out[:, 3] == -2).all()
