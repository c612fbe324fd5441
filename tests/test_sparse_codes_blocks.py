"""Sparse codes of lazy signals, block by block, of pairs, and through a basis."""

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs_cases import random_pool
from sparse_code_cases import problem

from neurolens.errors import NonFiniteError, SchemaError
from neurolens.pairs import directions, factors, vector_norms
from neurolens.sparse_codes import code_blocks, sparse_codes


def test_sparse_codes__read_lazy_signals_a_block_at_a_time():
    signals, dictionary = problem(4, signals=12)
    asked = []

    def made(block_info=None):
        first = block_info[None]["array-location"][0]
        asked.append(first[0])
        return signals[slice(*first)]

    lazy = xr.DataArray(
        da.map_blocks(made, chunks=((4, 4, 4), (12,)), dtype=signals.dtype, meta=np.empty((0, 0))),
        dims=("unit", "feature"),
    )
    with dask.config.set(scheduler="synchronous"):
        blocks = code_blocks(lazy, dictionary, atoms=3, block=4)
        assert asked == []
        next(blocks)
        assert set(asked) == {0}
        where = xr.DataArray(np.arange(12) >= 8, dims="unit")
        asked.clear()
        part = sparse_codes(lazy, dictionary, atoms=3, where=where)
        assert set(asked) == {8}
        np.testing.assert_array_equal(
            part["index"][8:], sparse_codes(signals, dictionary, atoms=3)["index"][8:].rename(signal="unit")
        )
        assert (part["index"][:8] == -1).all()
        assert part["residual"][:8].isnull().all()


def test_sparse_codes__compute_each_chunk_once_where_a_block_holds_it():
    signals, dictionary = problem(4, signals=12)
    asked = []

    def made(block_info=None):
        place = tuple(slice(*bounds) for bounds in block_info[None]["array-location"])
        asked.append(place[1].start)
        return signals.reshape(3, 4, -1)[place]

    lazy = xr.DataArray(
        da.map_blocks(made, chunks=((3,), (1,) * 4, (12,)), dtype=signals.dtype, meta=np.empty((0, 0, 0))),
        dims=("unit", "head", "feature"),
    )
    with dask.config.set(scheduler="synchronous"):
        codes = sparse_codes(lazy, dictionary, atoms=3, block=3)
    assert asked == [0, 1, 2, 3]
    assert codes["index"].dims == ("unit", "head", "atom")
    whole = sparse_codes(signals, dictionary, atoms=3)["index"].to_numpy()
    np.testing.assert_array_equal(codes["index"], whole.reshape(3, 4, 3))


def test_sparse_codes__of_pairs_above_a_percentile():
    pool = random_pool(units=6, heads=2, features=5)
    fixed = factors(pool)
    found = directions(fixed)["direction"]
    strong = vector_norms(fixed) >= vector_norms(fixed).quantile(0.5)
    phrases = np.random.default_rng(0).normal(size=(20, 5))
    codes = sparse_codes(found, phrases, atoms=2, where=strong)
    assert codes["index"].sizes == {"unit": 6, "head": 2, "atom": 2}
    np.testing.assert_array_equal((codes["index"] >= 0).all("atom"), strong)
    by_head = sparse_codes(found[:, 1], phrases, atoms=2, basis=fixed["output"][:, 1], where=strong[:, 1])
    xr.testing.assert_allclose(by_head.transpose("unit", "atom"), codes.isel(head=1))


@given(st.integers(0, 12), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_code_blocks__go_on_where_they_ended(start, block):
    signals, dictionary = problem(4, signals=12)
    cube = xr.DataArray(signals.reshape(3, 4, -1), dims=("unit", "head", "feature"))
    where = xr.DataArray(np.arange(12).reshape(4, 3) % 5 != 0, dims=("head", "unit"))
    whole = sparse_codes(cube, dictionary, atoms=3, where=where)
    found = {}
    for codes in code_blocks(cube, dictionary, atoms=3, where=where, block=block, start=start):
        assert codes.sizes["signal"] <= block
        assert codes.attrs == whole.attrs
        for position in codes["signal"].to_numpy():
            found[int(position)] = codes["value"].sel(signal=position).to_numpy()
    flat = whole["value"].to_numpy().reshape(12, 3)
    assert sorted(found) == [at for at in range(start, 12) if where.to_numpy().T.ravel()[at]]
    for position, value in found.items():
        np.testing.assert_allclose(value, flat[position])


@pytest.mark.parametrize("count", [1, 5])
def test_sparse_codes__through_a_basis_are_the_same(count):
    random = np.random.default_rng(0)
    basis = random.normal(size=(12, 4))
    basis = np.concatenate([basis, basis[:, :1]], axis=1)  # columns that depend on each other are as good
    signals, dictionary = random.normal(size=(7, 4)) @ basis[:, :4].T, problem(0)[1]
    codes = sparse_codes(signals, dictionary, atoms=count)
    xr.testing.assert_allclose(sparse_codes(signals, dictionary, atoms=count, basis=basis), codes)
    with pytest.raises(SchemaError, match="signal 1 is no sum of the columns"):
        sparse_codes(np.stack([signals[0], random.normal(size=12)]), dictionary, atoms=count, basis=basis)
    with pytest.raises(SchemaError, match=r"basis of shape \(4, 12\), and \(12, d\)"):
        sparse_codes(signals, dictionary, atoms=count, basis=basis[:, :4].T)
    with pytest.raises(NonFiniteError, match="basis has NaN"):
        sparse_codes(signals, dictionary, atoms=count, basis=basis * np.nan)


def test_code_blocks__say_what_does_not_fit_before_the_first():
    with pytest.raises(SchemaError, match="start=5, and a position among 4"):
        code_blocks(np.ones((4, 3)), np.ones((4, 3)), atoms=3, start=5)
    with pytest.raises(SchemaError, match="5 atoms"):
        code_blocks(np.ones((4, 3)), np.ones((4, 3)), atoms=5)
