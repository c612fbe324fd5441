"""Agreement between scores: against scipy, with ties, with intervals, lazily."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

from neurolens.errors import SchemaError
from neurolens.samples import agreement
from neurolens.samples.ranking import _mid_ranks, _ties


def scores(n=60, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.random(n)
    return xr.Dataset({"a": ("sample", a), "b": ("sample", np.round(a + rng.random(n), 1)), "c": ("sample", -a)})


def test_agreement__matches_scipy_with_ties():
    result = agreement(scores(), bootstrap=0)
    expected = spearmanr(np.stack(list(scores().to_dataarray().data), axis=-1)).statistic
    np.testing.assert_allclose(result["correlation"], expected)
    assert float(result["correlation"].sel(score="a", other="c")) == pytest.approx(-1)
    assert "low" not in result


def test_agreement_pearson__matches_numpy():
    result = agreement(scores(), method="pearson", bootstrap=0)
    np.testing.assert_allclose(result["correlation"], np.corrcoef(scores().to_dataarray().data))


def test_agreement__ranks_each_resample_as_if_it_were_written_out():
    rng = np.random.default_rng(1)
    column, drawn = rng.integers(0, 5, 20), rng.integers(0, 20, 20)
    weights = np.bincount(drawn, minlength=20)
    from scipy.stats import rankdata

    ranks = _mid_ranks(*_ties(column), weights)
    np.testing.assert_allclose(
        np.sort(np.repeat(ranks, weights)), np.sort(rankdata(column[np.repeat(np.arange(20), weights)]))
    )


def test_agreement__gives_seeded_intervals_around_the_estimate():
    one, two = (agreement(scores(), bootstrap=200, seed=3) for _ in range(2))
    xr.testing.assert_identical(one, two)
    assert ((one["low"] <= one["correlation"]) & (one["correlation"] <= one["high"])).all()
    ab = one.sel(score="a", other="b")
    assert 0 < float(ab["high"] - ab["low"]) < 0.5


def test_agreement__leaves_out_incomplete_samples_and_flags_constants():
    ds = scores()
    ds["a"][:5] = np.nan
    ds["d"] = xr.full_like(ds["a"], 2.0)
    result = agreement(ds, bootstrap=20)
    assert int(result["n_samples"]) == 55
    assert result["correlation"].sel(score="d").isnull().all()
    assert result["low"].sel(score="d").isnull().all()
    assert float(agreement(ds.isel(sample=slice(3)), bootstrap=20)["n_samples"]) == 0


def test_agreement__is_lazy_and_blind_to_chunks():
    lazy = agreement(scores().chunk(sample=7), bootstrap=30)
    assert all(isinstance(a.data, da.Array) for a in lazy.values())
    xr.testing.assert_allclose(lazy.compute(), agreement(scores(), bootstrap=30))


def test_agreement__explains_what_it_needs():
    with pytest.raises(SchemaError, match="two scores"):
        agreement(scores()[["a"]])
    with pytest.raises(SchemaError, match="did you mean 'spearman'"):
        agreement(scores(), method="spearmann")


def test_agreement_pearson__of_an_infinite_score_is_nan():
    scores = xr.Dataset({"a": ("sample", [np.inf, 2, 3]), "b": ("sample", [2.0, 1, 5])})
    assert np.isnan(agreement(scores, method="pearson", bootstrap=0)["correlation"].sel(score="a", other="b"))
    assert float(agreement(scores, bootstrap=0)["correlation"].sel(score="a", other="b")) == pytest.approx(0.5)
