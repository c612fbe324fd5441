"""The non-negative lasso: the golden number, and what holds of its minimum."""

import warnings

import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from neurolens.errors import NonFiniteError, SchemaError
from neurolens.sparse_codes import lasso_codes, prepared, reconstruct

PLAIN = {"norm": None, "centre": False}


@pytest.mark.parametrize(("dtype", "close"), [(np.float32, 1e-6), (np.float64, 1e-9)])
def test_lasso_codes__golden_orthonormal_dictionary(dtype, close):
    """Golden G15 of the spec: max(0, z - λ/2)."""
    signal = np.array([0.8, 0.6, 0], dtype=dtype)
    codes = lasso_codes(signal, np.eye(3, dtype=dtype), penalty=0.25, **PLAIN)
    assert codes["index"].to_numpy().tolist() == [0, 1]
    assert codes["value"].dtype == dtype
    np.testing.assert_allclose(codes["value"], [0.675, 0.475], atol=close)
    np.testing.assert_allclose(codes["residual"], np.hypot(0.125, 0.125), atol=close)
    assert codes["converged"].item()
    assert codes.attrs == {"norm": "none", "centred": 0, "phrases": 3, "penalty": 0.25}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 1.0))
def test_lasso_codes__are_at_the_minimum(seed, penalty):
    random = np.random.default_rng(seed)
    signals, dictionary = random.normal(size=(4, 8)), random.normal(size=(30, 8))
    codes = lasso_codes(signals, dictionary, penalty=penalty, tolerance=1e-12, max_iter=100_000)
    assume(codes["converged"].all())  # the descent may take more turns than that
    atoms = prepared(dictionary).to_numpy()
    left = signals - reconstruct(codes, dictionary).to_numpy()
    np.testing.assert_allclose(np.linalg.norm(left, axis=1), codes["residual"], atol=1e-9)
    slope = 2 * left @ atoms.T - penalty  # of Σ left² + λ Σ value, downwards
    assert (slope <= 1e-4).all()
    for row in range(4):
        index, value = codes["index"].to_numpy()[row], codes["value"].to_numpy()[row]
        used = index >= 0
        assert (value[used] > 0).all()
        assert (np.diff(value[used]) <= 0).all()
        assert np.isnan(value[~used]).all()
        np.testing.assert_allclose(slope[row, index[used]], 0, atol=1e-4)


def test_lasso_codes__keep_dims_and_leave_out_what_has_no_number():
    random = np.random.default_rng(0)
    cube = xr.DataArray(
        random.normal(size=(2, 3, 5)), dims=("unit", "head", "feature"), coords={"head": [1, 2, 4]}, name="direction"
    )
    dictionary = random.normal(size=(9, 5))
    whole = lasso_codes(cube, dictionary)
    cube[0, 1] = np.nan
    where = xr.DataArray([True, False], dims="unit").expand_dims(head=3)
    codes = lasso_codes(cube.chunk({"unit": 1}), dictionary, where=where, block=2)
    assert codes["value"].dims == ("unit", "head", "atom")
    assert codes["residual"].isnull().to_numpy().tolist() == [[False, True, False], [True] * 3]
    assert codes["converged"].to_numpy().tolist() == [[True, False, True], [False] * 3]
    assert (codes["index"][0, 1] == -1).all()
    for head in (0, 2):
        np.testing.assert_array_equal(codes["value"][0, head].dropna("atom"), whole["value"][0, head].dropna("atom"))
    assert codes["head"].to_numpy().tolist() == [1, 2, 4]


def test_lasso_codes__of_a_large_penalty_are_empty():
    codes = lasso_codes(np.array([0.8, 0.6, 0]), np.eye(3), penalty=10, **PLAIN)
    assert codes["index"].to_numpy().tolist() == [-1]
    assert codes["residual"].item() == pytest.approx(1)


def test_lasso_codes__tell_where_the_descent_did_not_end():
    random = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codes = lasso_codes(random.normal(size=(2, 8)), random.normal(size=(30, 8)), max_iter=1, penalty=0.01)
    assert not codes["converged"].any()


@pytest.mark.parametrize(
    ("signal", "options", "error", "words"),
    [
        ([1.0, 0, 0, 0], {}, SchemaError, "found signals 4 wide, and phrases 3 wide"),
        ([1.0, 0, 0], {"penalty": 0}, SchemaError, "penalty=0"),
        ([1.0, 0, 0], {"tolerance": np.nan}, SchemaError, "tolerance=nan"),
        ([1.0, 0, 0], {"block": 0}, SchemaError, "block=0"),
        ([1.0, 0, 0], {"max_iter": 0}, SchemaError, "max_iter=0"),
        ([1.0, np.inf, 0], {}, NonFiniteError, "signal 0 has infinity"),
    ],
)
def test_lasso_codes__say_what_does_not_fit(signal, options, error, words):
    with pytest.raises(error, match=words):
        lasso_codes(np.array(signal), np.eye(3), **PLAIN, **options)
