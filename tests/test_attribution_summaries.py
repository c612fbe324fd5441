"""The table of the grid: means and intervals of each set, by samples and by classes."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from attribution_cube_cases import attributions_cube
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from neurolens.attribution import filtered_summary
from neurolens.attribution.reading import score_of
from neurolens.errors import MissingMeasurementError, SchemaError

SCORES = ("sparsity", "drop", "relative_drop", "log_prob_drop", "logit_drop")


def cube(**options):
    return attributions_cube(reduced=False, full=False, curves=False, **options)


def test_filtered_summary__golden_numbers():
    ds = cube(samples=5, methods=("saliency",))
    ds["log_prob"][:] = 0.0
    ds["masked_log_prob"][:, :, 0] = np.log(1 - np.array([0.10, 0.20, 0.30, 0.40, 0.50]))[:, None, None]
    ds["masked_log_prob"][:, :, 1:] = np.log(1 - np.array([0.15, 0.18, 0.42, 0.47, 0.58]))[:, None, None, None]
    found = filtered_summary(ds, scores=["drop"], kinds=("whole", "only")).isel(epoch=0, attribution=0)
    np.testing.assert_allclose(found["drop_mean"][:2], [0.3, 0.36])
    np.testing.assert_allclose(found["drop_std"][:2], [np.sqrt(0.02), np.std([0.15, 0.18, 0.42, 0.47, 0.58])])
    reach = 2.776445105 * np.sqrt(0.025 / 5)
    np.testing.assert_allclose([found["drop_low"][0], found["drop_high"][0]], [0.3 - reach, 0.3 + reach])
    assert found["n"].to_numpy().tolist() == [5] * found.sizes["map"]


@pytest.mark.parametrize("level", ["patch", "pixel"])
def test_filtered_summary__is_that_of_each_set_alone(level):
    ds = cube(epochs=(1, 9), samples=7)
    ds["masked_log_prob"][0, 2, 3] = np.nan
    ds["patch"][0, 4, 0] = np.nan
    ds["pixel_sparsity"][0, 4, 0] = np.nan
    found = filtered_summary(ds, level=level, confidence=0.9)
    kinds = ds["kind"].to_numpy()
    assert found["map"].to_numpy().tolist() == ds["map"].to_numpy()[np.isin(kinds, ["whole", "without"])].tolist()
    values = {name: score_of(ds, name, level=level).sel({"map": found["map"].to_numpy()}).to_numpy() for name in SCORES}
    known = np.all([np.isfinite(array) for array in values.values()], axis=0)
    for epoch, one, method in np.ndindex(2, found.sizes["map"], 2):
        chosen = known[epoch, :, one, method]
        assert found["n"][epoch, one, method] == chosen.sum()
        for name, array in values.items():
            x = array[epoch, chosen, one, method]
            at = {stat: float(found[f"{name}_{stat}"][epoch, one, method]) for stat in ("mean", "std", "low", "high")}
            assert at["mean"] == pytest.approx(x.mean())
            assert at["std"] == pytest.approx(x.std())
            reach = student.ppf(0.95, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
            assert at["low"] == pytest.approx(x.mean() - reach)
            assert at["high"] == pytest.approx(x.mean() + reach)
    assert sorted(set(found["n"].to_numpy().ravel().tolist())) == [6, 7]


def test_filtered_summary__by_class_is_the_sandwich():
    ds = cube(samples=8, classes=3)
    ds["masked_log_prob"][:, 5, 0] = np.nan
    found = filtered_summary(ds, scores=["drop"], classes="label").isel(epoch=0)
    values, label = score_of(ds, "drop").sel({"map": found["map"].to_numpy()})[0].to_numpy(), ds["label"].to_numpy()
    for one, method in np.ndindex(found.sizes["map"], 2):
        x, groups = values[:, one, method], label
        x, groups = x[np.isfinite(x)], groups[np.isfinite(x)]
        meat = sum((x[groups == g] - x.mean()).sum() ** 2 for g in set(groups.tolist()))
        number = len(set(groups.tolist()))
        error = np.sqrt(number / (number - 1) * meat) / len(x)
        low, high = student.interval(0.95, number - 1, x.mean(), error)
        np.testing.assert_allclose([found["drop_low"][one, method], found["drop_high"][one, method]], [low, high])
        assert found["n_classes"][one, method] == number
    assert found.attrs["classes"] == "label"


def test_filtered_summary__of_classes_of_one_is_that_of_samples():
    ds = cube(samples=6, classes=6)
    by_class, by_sample = filtered_summary(ds, classes="label"), filtered_summary(ds)
    xr.testing.assert_allclose(by_class.drop_vars("n_classes"), by_sample)


@pytest.mark.parametrize(
    "chunks", [{"sample": 5}, {"map": 7, "sample": 4}, {"epoch": 1, "attribution": 1, "patch_x": 2}]
)
@pytest.mark.parametrize("classes", [None, "label"])
def test_filtered_summary__is_lazy_and_blind_to_chunks(chunks, classes):
    ds = cube(epochs=(1, 9))
    lazy = filtered_summary(ds.chunk(chunks), classes=classes)
    assert all(isinstance(array.data, da.Array) for array in lazy.data_vars.values())
    xr.testing.assert_allclose(lazy.compute(), filtered_summary(ds, classes=classes))


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(6)), st.integers(0, 100))
def test_filtered_summary__does_not_depend_on_the_order_of_samples(order, seed):
    ds = cube(samples=6, seed=seed)
    turned = filtered_summary(ds.isel(sample=list(order)), classes="label")
    xr.testing.assert_allclose(turned, filtered_summary(ds, classes="label"))


@pytest.mark.parametrize("classes", [None, "label"])
def test_filtered_summary__says_nothing_of_what_was_not_measured(classes):
    ds = cube(epochs=(1, 9), samples=4).astype(float)
    for name in ds.data_vars:
        ds[name][1] = np.nan
        if ds[name].ndim > 2:
            ds[name][0, 1:] = np.nan
    found = filtered_summary(ds, classes=classes)
    assert found["n"].isel(epoch=1).to_numpy().tolist() == np.zeros(found["n"].shape[1:]).tolist()
    assert (found["n"].isel(epoch=0) == 1).all()
    for name in set(found.data_vars) - {"n", "n_classes"}:
        assert found[name].isel(epoch=1).isnull().all(), name
        single = found[name].isel(epoch=0)
        assert (single.isnull() if name.endswith(("low", "high")) else single.notnull()).all(), name


def test_filtered_summary__makes_a_table():
    frame = filtered_summary(cube(epochs=(1, 9)), kinds=["whole", "only"]).to_dataframe()
    assert len(frame) == 2 * 11 * 2
    assert frame.loc[(9, "stage1/k3/1", "saliency"), "cluster"] == 1
    assert {f"{name}_{stat}" for name in SCORES for stat in ("mean", "std", "low", "high")} <= set(frame.columns)


def test_filtered_summary__describes_its_numbers():
    found = filtered_summary(cube())
    assert found["log_prob_drop_low"].attrs["units"] == "nat"
    assert found["drop_mean"].attrs["long_name"].startswith("mean over samples: probability minus")
    assert found.attrs == {"run": "case", "cube": "attributions", "data": "case", "level": "patch", "confidence": 0.95}


def test_filtered_summary__names_the_mend_of_what_was_not_measured():
    ds = cube().drop_vars(["masked_logit", "masked_log_prob"])
    with pytest.raises(MissingMeasurementError, match="faithfulness = true"):
        filtered_summary(ds)
    assert "sparsity_low" in filtered_summary(ds, scores=["sparsity"])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda ds: ds, {"scores": ["drops"]}, "did you mean 'drop'"),
        (lambda ds: ds, {"scores": []}, "known: 'drop'"),
        (lambda ds: ds, {"scores": ["gap"]}, "scores="),
        (lambda ds: ds, {"kinds": "union"}, "no map of kind 'union'"),
        (lambda ds: ds, {"confidence": 1.0}, "confidence=1.0"),
        (lambda ds: ds, {"classes": "lable"}, "did you mean 'label'"),
        (
            lambda ds: ds.assign_coords(label=("sample", [np.nan, *range(11)])),
            {"classes": "label"},
            "1 samples have no",
        ),
    ],
)
def test_filtered_summary__errors_name_the_mend(change, options, message):
    with pytest.raises(SchemaError, match=message):
        filtered_summary(change(cube()), **options)
