"""Rows of blocks of which a study names only some samples."""

import json
from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens import schema
from neurolens.rows.leaving_out import UNNAMED, filled_up, lacking_key, unnamed, wanted_key

PLACES = st.sets(st.integers(0, 7), max_size=8).map(sorted)


def entry(base: str, lacks: list[int], state: str = "done") -> SimpleNamespace:
    return SimpleNamespace(state=state, key=lacking_key(base, lacks), provenance=json.dumps({UNNAMED: lacks}))


@settings(deadline=None)
@given(lacks=PLACES, left_out=PLACES)
def test_wanted_key__is_the_rows_own_where_it_lacks_nothing_that_is_named(lacks, left_out):
    found = wanted_key(entry("b", lacks), "b", left_out)
    kept = set(lacks) <= set(left_out)
    assert found == lacking_key("b", lacks if kept else left_out)
    assert wanted_key(entry("b", lacks, "failed"), "b", left_out) == lacking_key("b", left_out)
    assert wanted_key(entry("other", lacks), "b", left_out) == lacking_key("b", left_out)
    assert wanted_key(None, "b", left_out) == lacking_key("b", left_out)


@settings(deadline=None)
@given(first=PLACES, second=PLACES)
def test_lacking_key__tells_what_is_lacking_and_nothing_else(first, second):
    assert (lacking_key("b", first) == lacking_key("b", second)) == (first == second)
    assert lacking_key("b", first) == lacking_key("b", first[::-1])
    assert lacking_key("b", []) == "b"


@settings(deadline=None)
@given(left_out=PLACES, seed=st.integers(0, 9))
def test_filled_up__is_not_measured_where_samples_were_left_out(left_out, seed):
    measured = np.random.default_rng(seed).random((8 - len(left_out), 3)).astype(np.float32)
    found = filled_up(schema.TEXTS, {"text": measured}, left_out)["text"]
    assert found.dtype == np.float32
    assert np.isnan(found[left_out]).all()
    np.testing.assert_array_equal(np.delete(found, left_out, axis=0), measured)


def test_unnamed__names_places_in_each_block():
    blocks = [np.array(["a", "b", "c"]), np.array(["d"])]
    assert unnamed(blocks, np.array(["c", "a", "new"])) == [(1,), (0,)]
