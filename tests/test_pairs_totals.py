"""Scalars summed up while images go by."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.errors import NonFiniteError, SchemaError
from neurolens.pairs import ScalarTotals


def cube(samples=23, units=3, heads=2, seed=0):
    rng = np.random.default_rng(seed)
    values = np.round(rng.normal(size=(samples, units, heads)) * 2, 1).astype(np.float32)  # with ties and zeros
    return xr.DataArray(values, dims=("sample", "unit", "head"))


def total(scalar, ranks, sizes, order):
    totals = ScalarTotals(ranks=ranks)
    order = np.asarray(order)
    for part in np.split(order, np.cumsum(sizes)):
        totals.add(scalar[part], part)
    return totals.dataset()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 100), st.permutations(range(23)), st.lists(st.integers(0, 6), max_size=5), st.integers(1, 30))
def test_totals__are_those_of_the_cube_in_any_order(seed, order, sizes, ranks):
    scalar = cube(seed=seed)
    found = total(scalar, ranks, sizes, order)
    assert int(found["count"]) == 23
    np.testing.assert_allclose(found["mean"], scalar.mean("sample", dtype=np.float64), atol=1e-12)
    np.testing.assert_allclose(found["std"], scalar.astype(np.float64).std("sample"), atol=1e-12)
    values = scalar.to_numpy()
    for name, sign in (("top", -1), ("bottom", 1)):
        at = np.argsort(sign * values, axis=0, kind="stable")[:ranks].transpose(1, 2, 0)
        known = found[f"{name}_sample"].to_numpy()
        np.testing.assert_array_equal(known[..., : at.shape[-1]], at)
        np.testing.assert_array_equal(
            found[name][..., : at.shape[-1]], np.take_along_axis(values.transpose(1, 2, 0), at, -1)
        )
        assert (known[..., at.shape[-1] :] == -1).all()
        assert np.isnan(found[name][..., at.shape[-1] :]).all()


def test_totals__may_be_read_before_the_end():
    scalar = cube()
    totals = ScalarTotals(ranks=4)
    totals.add(scalar[:5])
    assert float(totals.dataset()["top"][1, 0, 0]) == float(scalar[:5, 1, 0].max())
    totals.add(scalar[5:])
    found = totals.dataset()
    xr.testing.assert_allclose(found, total(scalar, 4, [9], range(23)))
    assert int(found["top_sample"][0, 1, 0]) == int(scalar[:, 0, 1].argmax("sample"))


def test_totals__say_what_is_wrong():
    totals = ScalarTotals()
    with pytest.raises(SchemaError, match="no image was added"):
        totals.dataset()
    totals.add(cube())
    with pytest.raises(SchemaError, match=r"\(2, 2\) units by heads after \(3, 2\)"):
        totals.add(cube(units=2))
    with pytest.raises(SchemaError, match="positions"):
        totals.add(cube(), np.arange(22))
    with pytest.raises(SchemaError, match="positions"):
        totals.add(cube(), np.arange(23) - 1)
    with pytest.raises(SchemaError, match="found ndarray"):
        totals.add(cube().to_numpy())
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        totals.add(cube() * np.nan)
    with pytest.raises(SchemaError, match="ranks=0"):
        ScalarTotals(ranks=0)
