"""Detection of mislabelled samples: golden numbers, against scikit-learn, intervals, errors."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score, roc_curve

from neurolens.errors import DataError, SchemaError
from neurolens.samples import evaluate_detection

FLAGS = np.array([0, 0, 1, 0, 1, 0, 0, 1, 0, 0], bool)
SCORE = np.array([0.1, 0.4, 0.35, 0.2, 0.8, 0.05, 0.6, 0.9, 0.15, 0.3])


def over_samples(values):
    return xr.DataArray(values, dims=("sample",), coords={"sample": [f"s{i}" for i in range(len(values))]})


def test_evaluate_detection__matches_ten_samples_worked_by_hand():
    result = evaluate_detection(over_samples(SCORE), over_samples(FLAGS))
    assert float(result["auroc"]) == pytest.approx(0.904762, abs=5e-7)
    assert float(result["aupr"]) == pytest.approx(0.85)
    assert float(result["fpr95"]) == pytest.approx(0.285714, abs=5e-7)
    assert (int(result["n_scored"]), int(result["n_mislabelled"])) == (10, 3)


@pytest.mark.parametrize("decimals", [1, 2, 8])
def test_evaluate_detection__matches_scikit_learn_with_ties(decimals):
    rng = np.random.default_rng(decimals)
    flags = rng.random(300) < 0.2
    score = np.round(rng.random(300) + 0.5 * flags, decimals)
    result = evaluate_detection(over_samples(score), over_samples(flags))
    precision, recall, _ = precision_recall_curve(flags, score)
    fpr, tpr, _ = roc_curve(flags, score, drop_intermediate=False)
    assert float(result["auroc"]) == pytest.approx(roc_auc_score(flags, score))
    assert float(result["aupr"]) == pytest.approx(auc(recall, precision))
    assert float(result["fpr95"]) == pytest.approx(fpr[np.argmax(tpr >= 0.95)])


def test_evaluate_detection__gives_seeded_intervals():
    rng = np.random.default_rng(0)
    flags = rng.random(400) < 0.2
    score = over_samples(rng.random(400) + 0.5 * flags)
    one = evaluate_detection(score, over_samples(flags), bootstrap=100, seed=1)
    xr.testing.assert_identical(one, evaluate_detection(score, over_samples(flags), bootstrap=100, seed=1))
    for name in ("auroc", "aupr", "fpr95"):
        low, high = one[f"{name}_interval"].data
        assert low < float(one[name]) < high
        assert high - low < 0.4


def test_evaluate_detection__is_lazy_and_blind_to_chunks():
    lazy = evaluate_detection(over_samples(SCORE).chunk(sample=3), over_samples(FLAGS), bootstrap=10)
    assert all(isinstance(a.data, da.Array) for a in lazy.values())
    xr.testing.assert_allclose(
        lazy.compute(), evaluate_detection(over_samples(SCORE), over_samples(FLAGS), bootstrap=10)
    )


def test_evaluate_detection__aligns_by_sample_and_leaves_nan_out():
    score = over_samples(np.append(SCORE, np.nan))
    flags = over_samples(np.append(FLAGS, True)).isel(sample=slice(None, None, -1))
    result = evaluate_detection(score, flags)
    assert float(result["auroc"]) == pytest.approx(0.904762, abs=5e-7)
    assert int(result["n_scored"]) == 10


def test_evaluate_detection__explains_what_it_needs():
    with pytest.raises(DataError, match="label_noise"):
        evaluate_detection(over_samples(SCORE), over_samples(np.zeros(10, bool)))
    with pytest.raises(SchemaError, match="align"):
        evaluate_detection(over_samples(SCORE), over_samples(FLAGS[:5]))
    with pytest.raises(SchemaError, match="different samples"):
        evaluate_detection(over_samples(SCORE), over_samples(FLAGS).assign_coords(sample=list("abcdefghij")))
    with pytest.raises(SchemaError, match="dims"):
        evaluate_detection(over_samples(SCORE).expand_dims(epoch=2), over_samples(FLAGS))


def test_evaluate_detection__leaves_out_samples_of_unknown_label_quality():
    flags = over_samples(np.where(np.arange(10) == 4, np.nan, FLAGS))
    known = np.arange(10) != 4
    xr.testing.assert_allclose(
        evaluate_detection(over_samples(SCORE), flags),
        evaluate_detection(over_samples(SCORE)[known], over_samples(FLAGS)[known]),
    )


@pytest.mark.parametrize("options", [{"bootstrap": -1}, {"confidence": 95}])
def test_evaluate_detection__refuses_resampling_that_cannot_be(options):
    with pytest.raises(SchemaError, match=r"give (0 for none|a number between 0 and 1)"):
        evaluate_detection(over_samples(SCORE), over_samples(FLAGS), **options)
