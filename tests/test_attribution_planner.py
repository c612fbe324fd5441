"""The fewest passes that give all maps: exact rank, the way back, and what they cost."""

from fractions import Fraction

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.attribution import cluster_masks, complements, controls, plan, unions, unit_masks
from neurolens.attribution.planner import Cost
from neurolens.errors import SchemaError


def rank(rows):
    """Row by row, in rational numbers."""
    rows, found = [[Fraction(int(v)) for v in row] for row in rows], 0
    for column in range(len(rows[0]) if rows else 0):
        at = next((r for r in range(found, len(rows)) if rows[r][column]), None)
        if at is None:
            continue
        rows[found], rows[at] = rows[at], rows[found]
        for r in range(found + 1, len(rows)):
            factor = rows[r][column] / rows[found][column]
            rows[r] = [a - factor * b for a, b in zip(rows[r], rows[found])]
        found += 1
    return found


def rebuilt(found, cut, masks):
    """Return what the vectors of a plan add up to, in the place of the masks."""
    parts = {"whole": np.ones(masks.sizes["unit"])} if found.whole else {}
    names = [name for name in found.combine["vector"].to_numpy() if name != "whole"]
    rows = [row for rows in found.vectors.values() for row in rows]
    assert len(names) == len(rows) == found.partial
    parts |= {name: row for name, row in zip(names, rows) if len(row) == masks.sizes["unit"]}
    chosen = found.combine.where(found.combine["cut"] == cut, drop=True)
    return sum(chosen.sel(vector=name).to_numpy()[:, None] * row for name, row in parts.items())


def grid(units=40, ks=(2, 3, 4, 5), seed=0):
    random = np.random.default_rng(seed)
    clusterings = [cluster_masks(random.permutation(np.arange(units) % k)) for k in ks]
    return xr.concat(clusterings, "map")


masks_of_eight = st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=1, max_size=6)


@settings(deadline=None)
@given(masks_of_eight, st.booleans())
def test_plan__has_as_many_vectors_as_the_rank_and_gives_every_mask_back(rows, whole):
    masks = unit_masks({f"m{i}": np.array(row) for i, row in enumerate(rows)})
    found = plan({"layer": masks}, whole=whole)
    assert found.partial + found.whole == rank([*([[1] * 8] if whole else []), *rows])
    if masks.any():
        np.testing.assert_allclose(rebuilt(found, "layer", masks), masks.to_numpy().astype(float), atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(masks_of_eight, masks_of_eight)
def test_plan__of_more_masks_keeps_the_vectors(rows, more):
    first = unit_masks({f"m{i}": np.array(row) for i, row in enumerate(rows)})
    second = unit_masks({f"n{i}": np.array(row) for i, row in enumerate(more)})
    few, many = plan({"a": first}), plan({"a": xr.concat([first, second], "map")})
    np.testing.assert_array_equal(many.vectors["a"][: few.partial], few.vectors["a"])
    assert many.combine["vector"].to_numpy().tolist()[: few.partial + 1] == few.combine["vector"].to_numpy().tolist()


def test_plan__of_four_blocks_and_four_clusterings_has_41_vectors_for_57_maps():
    found = plan({f"block{b}": grid(seed=b) for b in range(4)})
    assert found.combine.sizes == {"map": 57, "vector": 41}
    assert found.whole
    assert [len(rows) for rows in found.vectors.values()] == [10, 10, 10, 10]


def test_plan__of_nested_clusterings_needs_fewer():
    coarse = np.arange(12) % 2
    found = plan({"a": xr.concat([cluster_masks(coarse), cluster_masks(coarse + 2 * (np.arange(12) == 4))], "map")})
    assert (found.partial, found.combine.sizes["map"]) == (2, 6)


def test_plan__asks_nothing_for_complements_duplicates_unions_and_nothing():
    masks = cluster_masks(np.arange(9) % 3)
    bare = plan({"a": masks})
    same = masks.assign_coords(map=["x", "y", "z"])
    joined = unions(masks, {"u": ["k3/0", "k3/2"]})
    nothing = unit_masks({"nothing": np.zeros(9, bool), "all": np.ones(9, bool)})
    full = plan({"a": xr.concat([masks, complements(masks), same, joined, nothing], "map")})
    assert bare.partial == full.partial == 2
    np.testing.assert_array_equal(full.combine.sel(map="a/nothing"), 0)
    np.testing.assert_array_equal(full.combine.sel(map="a/all"), full.combine.sel(map="whole"))
    np.testing.assert_array_equal(full.combine.sel(map="a/without k3/1"), [1, 0, -1])


def test_plan__without_the_whole_map_takes_it_where_masks_add_up_to_it():
    found = plan({"a": cluster_masks(np.arange(6) % 3), "b": cluster_masks(np.arange(8) % 2)}, whole=False)
    assert "whole" not in found.combine["map"]
    assert (found.whole, found.partial) == (True, 3)
    alone = plan({"a": cluster_masks(np.arange(6) % 3)[:1]}, whole=False)
    assert (alone.whole, alone.partial) == (False, 1)
    assert alone.combine["vector"].to_numpy().tolist() == ["a/k3/0"]


def test_plan__of_more_masks_than_units_falls_back_on_groups_of_units():
    masks = controls(unit_masks({"a": np.arange(16) < 7}), draws=60)
    found = plan({"layer": masks})
    assert found.partial + found.whole <= 16
    np.testing.assert_allclose(rebuilt(found, "layer", masks), masks.to_numpy().astype(float), atol=1e-12)


def test_plan__of_many_controls_is_exact():
    clusters = grid(units=256)
    masks = xr.concat([clusters, controls(clusters[:2], draws=50), complements(clusters)], "map")
    found = plan({"layer": masks})
    assert found.partial == 110
    np.testing.assert_allclose(rebuilt(found, "layer", masks), masks.to_numpy().astype(float), atol=1e-12)


def test_plan__names_maps_by_cut():
    found = plan({"a": cluster_masks(np.arange(4) % 2), "b": cluster_masks(np.arange(6) % 2)})
    assert found.combine["map"].to_numpy().tolist() == ["whole", "a/k2/0", "a/k2/1", "b/k2/0", "b/k2/1"]
    assert found.combine["cut"].to_numpy().tolist() == ["", "a", "a", "b", "b"]
    assert found.combine["vector"].to_numpy().tolist() == ["whole", "a/k2/0", "b/k2/0"]


def test_cost__is_what_batches_take():
    found = plan({f"block{b}": grid(seed=b) for b in range(4)})
    assert found.cost(2 * 51, batch_size=10, baselines=1) == Cost(11, 1, 11, 11 * 40)


def test_plan__says_what_is_wrong():
    with pytest.raises(SchemaError, match="no map is asked for"):
        plan({}, whole=False)
    with pytest.raises(SchemaError, match="make masks with unit_masks"):
        plan({"a": xr.DataArray(np.ones(3, bool), dims="unit")})
