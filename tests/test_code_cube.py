"""Rows of the codes cube: against codes of all directions at once, dead pairs, both methods, and what is refused."""

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens import models
from neurolens.data.pair_sets import pair_set
from neurolens.errors import DataError, SchemaError, StudyError
from neurolens.pairs import directions, factors, pool_of
from neurolens.pairs.code_cube import FEW, PoolCodes, axes, block_size, key_config, measure, parts, require_atoms
from neurolens.sparse_codes import lasso_codes, sparse_codes
from neurolens.study import Model

UNITS, HEADS, FEATURES, PHRASES = 8, 2, 6, 20


def network(seed=0):
    options = {"units": UNITS, "heads": HEADS, "features": FEATURES}
    return models.build(Model(name="digits_clip", classes=10, options=options), seed=seed)


def phrases(count=PHRASES, features=FEATURES, seed=0):
    drawn = np.random.default_rng(seed).normal(size=(count, features)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def every_pair():
    head, unit = np.indices((HEADS, UNITS))
    return pair_set(unit.ravel(), head.ravel())


def measured(net, samples, words=None, **options):
    table = PoolCodes(**({"atoms": 3} | options))
    return measure(net, samples, parts=("codes",), table=table, phrases=phrases() if words is None else words)


def flat(codes, name):
    """(unit, head, …) in the order of `every_pair`."""
    found = codes[name].transpose("head", "unit", ...).to_numpy()
    return found.reshape(HEADS * UNITS, *found.shape[2:])


@pytest.mark.parametrize(("atoms", "norm"), [(1, "rows"), (FEW, "rows"), (5, "rows"), (5, "columns")])
def test_measure__gives_the_codes_of_all_directions(atoms, norm):
    net = network()
    found = measured(net, every_pair(), atoms=atoms, norm=norm)
    wanted = sparse_codes(directions(factors(pool_of(net.module)))["direction"], phrases(), atoms=atoms, norm=norm)
    assert {name: array.dtype for name, array in found.items()} == {
        "index": np.int32,
        "value": np.float32,
        "residual": np.float32,
    }
    np.testing.assert_array_equal(found["index"], flat(wanted, "index"))
    for name in ("value", "residual"):
        np.testing.assert_allclose(found[name], flat(wanted, name), rtol=2e-4, atol=2e-6)


@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(UNITS * HEADS)), atoms=st.sampled_from([2, 5]))
def test_measure__of_a_pair_does_not_depend_on_the_pairs_beside_it(order, atoms):
    net, whole = network(), every_pair()
    found, mixed = measured(net, whole, atoms=atoms), measured(net, whole.subset(order), atoms=atoms)
    np.testing.assert_array_equal(mixed["index"], found["index"][order])
    np.testing.assert_allclose(mixed["value"], found["value"][order], rtol=2e-4, atol=2e-6)


def test_measure__of_a_dead_pair_is_no_code():
    net = network()
    with torch.no_grad():
        net.module.attnpool.v_proj.weight[UNITS // HEADS :, 5] = 0  # what unit 5 gives to head 1
    found = measured(net, every_pair())
    dead = UNITS + 5
    assert (found["index"][dead] == -1).all()
    assert np.isnan(found["value"][dead]).all()
    assert np.isnan(found["residual"][dead]).all()
    rest = np.delete(found["index"], dead, axis=0)
    assert (rest >= 0).all()


def test_measure__by_the_lasso_keeps_the_largest_and_says_what_they_leave():
    net, words = network(), phrases()
    found = measured(net, every_pair(), method="lasso", penalty=0.05, atoms=2)
    signals = directions(factors(pool_of(net.module)))["direction"]
    wanted = lasso_codes(signals, words, penalty=0.05)
    assert wanted.sizes["atom"] > 2
    np.testing.assert_array_equal(found["index"], flat(wanted, "index")[:, :2])
    np.testing.assert_allclose(found["value"], flat(wanted, "value")[:, :2], rtol=1e-4)
    from neurolens.sparse_codes import prepared

    atoms, given_ = prepared(words).to_numpy(), flat(xr.Dataset({"s": signals}), "s")
    for row in range(UNITS * HEADS):
        left = given_[row].astype(float)
        for step in range(2):
            left = left - found["value"][row, step] * atoms[found["index"][row, step]]
            assert found["residual"][row, step] == pytest.approx(np.linalg.norm(left), rel=1e-4)


def test_measure__by_the_lasso_of_less_than_so_many_phrases_ends_with_none():
    found = measured(network(), every_pair(), method="lasso", penalty=1.0, atoms=5)
    assert (found["index"][:, -1] == -1).all()
    assert np.isnan(found["value"][found["index"] < 0]).all()
    assert (found["value"][found["index"] >= 0] > 0).all()


def test_measure__names_pairs_and_phrases_that_do_not_fit():
    with pytest.raises(SchemaError, match="pairs up to unit 9, and the pool has 8 units"):
        measured(network(), pair_set([0, 9], [0, 0]))
    with pytest.raises(SchemaError, match="found signals 6 wide, and phrases 5 wide"):
        measured(network(), every_pair(), phrases(features=5))
    with pytest.raises(StudyError, match=r"pools.module is 'attnpol', and there is no attention pool; .*attnpool"):
        measured(network(), every_pair(), module="attnpol")


def test_measure__takes_the_pool_that_is_named():
    found = measured(network(), every_pair(), module="attnpool")
    np.testing.assert_array_equal(found["index"], measured(network(), every_pair())["index"])


def test_key_config__holds_what_changes_codes_and_no_more():
    def config(**options):
        return key_config(PoolCodes(**options), "codes")

    base = config()
    for same in ({"block": 7}, {"words": "others"}, {"percentile": 90}, {"penalty": 0.5}):
        assert config(**same) == base
    for other in ({"atoms": 3}, {"norm": "columns"}, {"method": "lasso"}, {"module": "attnpool"}):
        assert config(**other) != base
    assert config(method="lasso", penalty=0.5) != config(method="lasso")
    with pytest.raises(SchemaError, match="no part 'code'"):
        key_config(PoolCodes(), "code")


def test_axes__are_the_atoms_and_blocks_those_of_the_study():
    table = PoolCodes(atoms=3, block=7)
    found = axes(network(), every_pair(), table)
    assert {name: axis.ids.tolist() for name, axis in found.items()} == {"atom": [0, 1, 2]}
    assert block_size(table, found) == 7
    assert parts(table) == ("codes",)


@pytest.mark.parametrize(("count", "features", "most"), [(5, 6, 5), (20, 6, 6)])
def test_require_atoms__names_how_many_there_can_be(count, features, most):
    require_atoms(PoolCodes(atoms=most), phrases=count, features=features)
    with pytest.raises(StudyError, match=f"codes.atoms is 7, .*{count} phrases in {features} .*to {most} or less"):
        require_atoms(PoolCodes(atoms=7), phrases=count, features=features)


def test_pair_set__names_pairs_and_has_nothing_to_show():
    found = pair_set([3, 4], [0, 1])
    assert found.ids.tolist() == ["u3/h0", "u4/h1"]
    assert found.subset([1]).coords["unit"].tolist() == [4]
    assert len(found.subset([1]).images) == 1
    for refused in (lambda: found.images.load([0]), found.images.digests):
        with pytest.raises(DataError, match="pairs of a unit and a head"):
            refused()
