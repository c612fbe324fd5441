"""Memorisation and influence: golden numbers, the definition written slowly, laziness."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from neurolens.errors import SchemaError
from neurolens.samples import memorization_influence


def bits(*rows, dims=("run", "sample")):
    return xr.DataArray(np.array([[int(c) for c in row] for row in rows], bool), dims=dims)


TRAINED = bits("110", "101", "011", "111", "001", "100")
CORRECT = bits("110", "101", "111", "110", "001", "100")
TESTED = bits("10", "11", "00", "11", "01", "10", dims=("run", "test_sample"))


def test_memorization_influence__matches_six_runs_worked_by_hand():
    result = memorization_influence(TRAINED, CORRECT, TESTED)
    np.testing.assert_allclose(result["memorization"], [0.5, 1, 0.75])
    np.testing.assert_allclose(result["influence"], [[1, 0, -0.5], [0, -1 / 3, 0.75]])


def test_memorization_influence__matches_the_slow_definition():
    rng = np.random.default_rng(0)
    trained = xr.DataArray(rng.random((40, 11)) < 0.7, dims=("run", "sample"))
    correct = xr.DataArray(rng.random((40, 11)) < 0.5, dims=("run", "sample"))
    tested = xr.DataArray(rng.random((40, 5)) < 0.5, dims=("run", "test_sample"))
    result = memorization_influence(trained, correct, tested)
    for i in range(11):
        inside = trained.data[:, i]
        mem = correct.data[inside, i].mean() - correct.data[~inside, i].mean()
        assert float(result["memorization"][i]) == pytest.approx(mem)
        for j in range(5):
            infl = tested.data[inside, j].mean() - tested.data[~inside, j].mean()
            assert float(result["influence"][j, i]) == pytest.approx(infl)


def test_memorization_influence__is_nan_where_all_or_no_runs_saw_the_sample():
    trained = TRAINED.copy()
    trained[:, 0], trained[:, 1] = True, False
    result = memorization_influence(trained, CORRECT, TESTED)
    assert result["memorization"].isnull().data.tolist() == [True, True, False]
    assert result["influence"].isnull().data.tolist() == [[True, True, False]] * 2
    assert result["n_in"].data.tolist() == [6, 0, 4]


@pytest.mark.parametrize("chunks", [{"run": 1}, {"run": 4}, {"run": -1}])
def test_memorization_influence__is_lazy_and_blind_to_chunks(chunks):
    lazy = memorization_influence(TRAINED.chunk(chunks), CORRECT.chunk(chunks), TESTED.chunk(chunks))
    assert all(isinstance(a.data, da.Array) for a in lazy.values())
    xr.testing.assert_allclose(lazy.compute(), memorization_influence(TRAINED, CORRECT, TESTED))


def test_memorization_influence__names_the_dims_it_needs():
    with pytest.raises(SchemaError, match="test_correct has dims"):
        memorization_influence(TRAINED, CORRECT, CORRECT)
