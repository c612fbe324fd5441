"""Scores from elsewhere: files, alignment, likeness, binned curves."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from scipy.stats import pearsonr, spearmanr

from neurolens.errors import DataError, SchemaError
from neurolens.samples import align, binned_curve, compare, load_scores


def over_samples(values):
    return xr.DataArray(
        np.asarray(values, float), dims=("sample",), coords={"sample": [f"s{i}" for i in range(len(values))]}
    )


def test_load_scores__reads_npy_by_position(tmp_path):
    np.save(tmp_path / "mem.npy", np.arange(4, dtype=np.float32))
    score = load_scores(tmp_path / "mem.npy")
    assert (score.dims, score.name, score.dtype) == (("position",), "mem", np.float64)


def test_load_scores__reads_an_array_of_an_npz_with_its_positions(tmp_path):
    np.savez(tmp_path / "infl.npz", tr_mem=[0.5, 0.25], tr_idx=[7, 3], tt_mem=[1.0])
    score = load_scores(tmp_path / "infl.npz", key="tr_mem")
    assert score["position"].data.tolist() == [7, 3]
    with pytest.raises(DataError, match="pass key="):
        load_scores(tmp_path / "infl.npz")
    with pytest.raises(DataError, match="did you mean 'tr_mem'"):
        load_scores(tmp_path / "infl.npz", key="tr_men")


def test_load_scores__reads_a_csv_by_sample_id_with_gaps(tmp_path):
    (tmp_path / "human.csv").write_text("sample,doubt\ns2,0.5\ns0,\n")
    score = load_scores(tmp_path / "human.csv")
    assert score["sample"].data.tolist() == ["s2", "s0"]
    assert np.isnan(score[1])


def test_load_scores__explains_files_that_are_no_scores(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros((2, 2)))
    (tmp_path / "text.csv").write_text("sample,name\ns0,cat\n")
    (tmp_path / "twice.csv").write_text("sample,x\ns0,1\ns0,2\n")
    (tmp_path / "empty.csv").write_text("sample,x\n")
    (tmp_path / "a.txt").write_text("")
    for name, match in [
        ("flat.npy", "one value per sample"),
        ("text.csv", "not numeric"),
        ("twice.csv", "repeats"),
        ("empty.csv", "no rows"),
        ("a.txt", "npy"),
        ("absent.npy", "there is no score file"),
    ]:
        with pytest.raises(DataError, match=match):
            load_scores(tmp_path / name)


def test_load_scores__never_unpickles(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        load_scores(tmp_path / "evil.npy")


def test_align__by_sample_id():
    external = xr.DataArray([5.0, 6.0], dims=("sample",), coords={"sample": ["s2", "s0"]}, name="m")
    aligned = align(external, over_samples([0, 0, 0]))
    np.testing.assert_array_equal(aligned, [6, np.nan, 5])
    assert aligned["sample"].data.tolist() == ["s0", "s1", "s2"]


def test_align__by_position_in_the_named_data_set():
    external = xr.DataArray(np.arange(10.0), dims=("position",), coords={"position": np.arange(10)})
    ds = over_samples([0, 0]).assign_coords(position=("sample", [7, 12])).to_dataset(name="x")
    np.testing.assert_array_equal(align(external, ds), [7, np.nan])
    with pytest.raises(SchemaError, match="position"):
        align(external, ds.drop_vars("position"))
    with pytest.raises(SchemaError, match="none of the 2 samples"):
        align(external, ds.assign_coords(position=("sample", [70, 71])))


def test_compare__matches_four_samples_worked_by_hand():
    result = compare(over_samples([0.9, 0.1, 0.5, 0]), over_samples([8, 1, 3, 0.5]))
    assert float(result["cosine"]) == pytest.approx(0.987285, abs=5e-7)
    assert float(result["pearson"]) == pytest.approx(0.973181, abs=5e-7)
    assert float(result["spearman"]) == pytest.approx(1)


def test_compare__matches_scipy_and_the_top():
    rng = np.random.default_rng(0)
    a, b = np.round(rng.random(200), 1), rng.random(200)
    result = compare(over_samples(a), over_samples(b), top=20)
    assert float(result["pearson"]) == pytest.approx(pearsonr(a, b).statistic)
    assert float(result["spearman"]) == pytest.approx(spearmanr(a, b).statistic)
    best = np.argsort(-b)[:20]
    assert float(result["top_cosine"]) == pytest.approx(
        a[best] @ b[best] / np.linalg.norm(a[best]) / np.linalg.norm(b[best])
    )
    assert float(compare(over_samples(b), over_samples(b), top=20)["top_overlap"]) == 1


def test_compare__leaves_nan_out_and_is_nan_for_a_constant():
    result = compare(over_samples([1, 2, np.nan, 4]), over_samples([3, 3, 3, 3]))
    assert int(result["n_samples"]) == 3
    assert np.isnan(result["pearson"])
    with pytest.raises(SchemaError, match="align"):
        compare(over_samples([1, 2]), over_samples([1, 2, 3]))


def test_binned_curve__matches_the_means_of_each_bin():
    rng = np.random.default_rng(0)
    score, external = rng.random(300), rng.random(300)
    external[0], external[1] = 0, 1  # both edges belong
    result = binned_curve(over_samples(score), over_samples(external), bins=15)
    for k in range(15):
        inside = (external >= k / 15) & ((external < (k + 1) / 15) | (k == 14))
        assert int(result["n"][k]) == inside.sum()
        assert float(result["mean"][k]) == pytest.approx(score[inside].mean())
        assert float(result["sem"][k]) == pytest.approx(score[inside].std(ddof=1) / np.sqrt(inside.sum()))
    np.testing.assert_allclose(result["centre"], (np.arange(15) + 0.5) / 15)
    limited = binned_curve(over_samples(score), over_samples(external), bins=21, limits=(2, 3))
    assert limited["mean"].isnull().all()


def test_comparisons__are_lazy_and_blind_to_chunks():
    rng = np.random.default_rng(0)
    a, b = over_samples(rng.random(50)), over_samples(rng.random(50))
    for function in (compare, binned_curve):
        lazy = function(a.chunk(sample=7), b)
        assert all(isinstance(x.data, da.Array) for x in lazy.values())
        xr.testing.assert_allclose(lazy.compute(), function(a, b))
