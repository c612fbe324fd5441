"""Scores of the maps of a cube, and the accuracy: definitions, what is missing, chunks."""

import json
import subprocess
import sys

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from attribution_cube_cases import attributions_cube
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.attribution import accuracy, map_scores, sparsity
from neurolens.attribution.reading import beside_whole, measured_with, places, score_of
from neurolens.errors import MissingMeasurementError, SchemaError

PATCH = ("patch_y", "patch_x")


def table_of(rows):
    """Return a cube whose patch tables are these rows of four numbers, of as many samples."""
    ds = attributions_cube(samples=len(rows), methods=("saliency",), reduced=False, full=False, curves=False)
    ds = ds.isel(map=[0, 1]).drop_vars("patch")
    values = np.asarray(rows, dtype=np.float32).reshape(1, len(rows), 1, 1, 2, 2)
    dims = ("epoch", "sample", "map", "attribution", *PATCH)
    return ds.assign(patch=(dims, np.broadcast_to(values, (1, len(rows), 2, 1, 2, 2))))


def test_map_scores__golden_numbers_of_patches():
    found = map_scores(table_of([[4, 3, 2, 1], [1, 1, 1, 1]]), names=["sparsity", "gini", "entropy"])
    np.testing.assert_allclose(found["sparsity"][0, 0], 0.25)
    np.testing.assert_allclose(found["gini"][0, 0], 0.25)
    np.testing.assert_allclose(found["entropy"][0, 0], 1.2798542258, rtol=1e-10)
    np.testing.assert_allclose(found["gini"][0, 1], 0, atol=1e-12)
    np.testing.assert_allclose(found["entropy"][0, 1], np.log(4))


def test_map_scores__drops_of_a_sample_by_hand():
    ds = attributions_cube(samples=1, methods=("saliency",))
    ds["log_prob"][:] = np.log(0.7772998612)
    ds["logit"][:] = 3.0
    ds["masked_log_prob"][:] = np.log(0.3208213008)
    ds["masked_logit"][:] = 2.25
    found = map_scores(ds).isel(epoch=0, sample=0, map=0, attribution=0)
    assert float(found["drop"]) == pytest.approx(0.4564785604, abs=1e-10)
    assert float(found["relative_drop"]) == pytest.approx(0.5872618576, abs=1e-9)
    assert float(found["log_prob_drop"]) == pytest.approx(np.log(0.7772998612 / 0.3208213008))
    assert float(found["logit_drop"]) == pytest.approx(0.75)


@pytest.mark.parametrize(("level", "at"), [("pixel", 0), ("patch", 1)])
def test_map_scores__is_what_is_written_map_by_map(level, at):
    ds = attributions_cube(epochs=(1, 9), samples=5)
    found = map_scores(ds, level=level)
    for place in np.ndindex(*found["drop"].shape):
        epoch, sample, one, method = place
        before, after = float(ds["log_prob"][epoch, sample]), float(ds["masked_log_prob"][(*place, at)])
        assert float(found["drop"][place]) == pytest.approx(np.exp(before) - np.exp(after))
        assert float(found["relative_drop"][place]) == pytest.approx(1 - np.exp(after) / np.exp(before))
        assert float(found["log_prob_drop"][place]) == pytest.approx(before - after)
        change = float(ds["output"][epoch, sample] - ds["baseline_output"][epoch, sample])
        share = float(ds["total"][place]) / change
        assert method == 1 or float(found["completeness_share"][place]) == pytest.approx(share)
        assert method == 0 or np.isnan(found["completeness_share"][place])
        if one == 0 and method == 0:
            assert float(found["gap"][epoch, sample]) == pytest.approx(float(ds["total"][place]) - change)
    wanted = ds["pixel_sparsity"] if level == "pixel" else sparsity(ds["patch"])
    np.testing.assert_array_equal(found["sparsity"], wanted)
    assert ("gini" in found) == (level == "patch")
    assert found["drop"].dims == ("epoch", "sample", "map", "attribution")
    assert found.attrs["run"] == "case"
    assert found["log_prob_drop"].attrs["units"] == "nat"


@pytest.mark.parametrize(
    "chunks", [{"sample": 5}, {"map": 7, "sample": 4}, {"epoch": 1, "patch_y": 2, "attribution": 1}]
)
@pytest.mark.parametrize("level", ["patch", "pixel"])
def test_map_scores__is_lazy_and_blind_to_chunks(chunks, level):
    ds = attributions_cube(epochs=(1, 9))
    lazy = map_scores(ds.chunk(chunks), level=level)
    assert all(isinstance(array.data, da.Array) for array in lazy.data_vars.values())
    xr.testing.assert_allclose(lazy.compute(), map_scores(ds, level=level))


def test_map_scores__clusters_share_the_whole():
    ds = attributions_cube()
    found = map_scores(ds, names=["completeness_share"])["completeness_share"].isel(attribution=0)
    whole = found.sel({"map": "whole"}, drop=True)
    for cut, k in (("stage1", 2), ("stage1", 3), ("stage2", 3)):
        of = found.sel({"map": [f"{cut}/k{k}/{c}" for c in range(k)]}).sum("map")
        np.testing.assert_allclose(of, whole, rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_map_scores__does_not_change_with_the_scale_of_maps(seed, factor):
    ds = attributions_cube(samples=3, seed=seed, reduced=False, full=False, curves=False)
    names = ["sparsity", "gini", "entropy"]
    scaled = ds.assign(patch=ds["patch"].astype(float) * factor)
    xr.testing.assert_allclose(map_scores(scaled, names=names), map_scores(ds, names=names), rtol=1e-6)


@pytest.mark.parametrize("compat", [None, "seed"])
def test_map_scores__says_nothing_of_what_was_not_measured(compat):
    ds = attributions_cube(epochs=(1, 9)).astype(float)
    for name in ds.data_vars:
        ds[name][1] = np.nan
    ds.attrs["settings"] = json.dumps({"parts": {"maps": {"mass": 0.9, "compat": compat}}})
    for level in ("patch", "pixel"):
        found = map_scores(ds, level=level)
        for name, array in found.data_vars.items():
            assert array.isel(epoch=1).isnull().all(), name
            assert name == "completeness_share" or array.isel(epoch=0).notnull().all(), name
    rates = accuracy(ds).isel(epoch=1)
    assert rates["n"] == 0
    assert all(rates[name].isnull().all() for name in ("accuracy", "accuracy_low", "accuracy_high"))


def test_map_scores__takes_the_mass_of_the_study():
    ds = attributions_cube()
    ds.attrs["settings"] = json.dumps({"parts": {"maps": {"mass": 0.5, "compat": None}}})
    names = ["sparsity"]
    np.testing.assert_array_equal(map_scores(ds, names=names)["sparsity"], sparsity(ds["patch"], mass=0.5))
    np.testing.assert_array_equal(map_scores(ds, names=names, mass=0.7)["sparsity"], sparsity(ds["patch"], mass=0.7))
    assert map_scores(ds, level="pixel", mass=0.5)["sparsity"].equals(ds["pixel_sparsity"].rename("sparsity"))
    with pytest.raises(SchemaError, match=r"counted for mass=0\.5"):
        map_scores(ds, level="pixel", mass=0.9)
    assert measured_with(attributions_cube(), "maps") == {}


def test_map_scores__of_a_map_without_mass_is_the_reference_only_if_the_study_says_so():
    ds = table_of([[0, 0, 0, 0], [4, 3, 2, 1]])
    assert np.isnan(score_of(ds, "sparsity")[0, 0]).all()
    ds.attrs["settings"] = json.dumps({"parts": {"maps": {"compat": "seed"}}})
    assert (score_of(ds, "sparsity")[0, 0] == 0).all()


def test_map_scores__does_without_what_is_not_there():
    ds = attributions_cube(methods=("saliency",))
    assert not {"completeness_share", "gap"} & set(map_scores(ds))
    both = attributions_cube()
    assert "gap" not in map_scores(both.isel(map=slice(1, None)))
    at_one = map_scores(both.isel(epoch=0))
    assert at_one["drop"].dims == ("sample", "map", "attribution")


@pytest.mark.parametrize("level", ["patch", "pixel"])
def test_map_scores__names_the_mend_of_what_was_not_measured(level):
    ds = attributions_cube().drop_vars(["masked_logit", "masked_log_prob"])
    with pytest.raises(MissingMeasurementError, match=r"faithfulness = true in the study's \[attributions\] table"):
        map_scores(ds, level=level)
    assert set(map_scores(ds, level=level, names=["sparsity", "gap"])) == {"sparsity", "gap"}
    with pytest.raises(MissingMeasurementError, match="--only attributions"):
        map_scores(ds.drop_vars(["patch", "pixel_sparsity"]), level=level, names=["sparsity"])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda ds: ds, {"level": "pixels"}, "did you mean 'pixel'"),
        (lambda ds: ds, {"names": ["sparcity"]}, "did you mean 'sparsity'"),
        (lambda ds: ds, {"names": ["gini"], "level": "pixel"}, "no score 'gini' of pixel entries"),
        (lambda ds: ds["patch"], {}, "found a DataArray"),
        (lambda ds: ds.isel(map=0), {}, r"lacks dims \['map'\]"),
        (lambda ds: ds.drop_vars("kind"), {}, "coordinate 'kind'"),
        (lambda ds: ds.isel(level=[0]), {}, "'patch' was asked for"),
        (lambda ds: ds.isel(level=0), {}, "'patch' was asked for"),
        (lambda ds: ds.isel(attribution=[1]), {"names": ["gap"]}, "is of integrated_gradients"),
        (lambda ds: ds.isel(map=[1]), {"names": ["gap"]}, "found 0 maps of kind 'whole'"),
    ],
)
def test_map_scores__errors_name_the_mend(change, options, message):
    with pytest.raises(SchemaError, match=message):
        map_scores(change(attributions_cube()), **options)


def test_score_of__refuses_what_is_no_score():
    with pytest.raises(SchemaError, match="gini"):
        score_of(attributions_cube(), "gini", level="pixel")
    with pytest.raises(SchemaError, match="did you mean 'drop'"):
        score_of(attributions_cube(), "dropp")


def test_beside_whole__tells_sets_by_kind():
    ds = attributions_cube()
    filtered, whole = beside_whole(ds, score="logit_drop", kinds=("only", "without"))
    assert set(filtered["kind"].to_numpy()) == {"only", "without"}
    assert whole.dims == ("epoch", "sample", "attribution")
    np.testing.assert_array_equal(whole, score_of(ds, "logit_drop").sel({"map": "whole"}))
    assert len(places(ds, "control")) == 20
    with pytest.raises(SchemaError, match="no map of kind 'union' among those of kinds"):
        beside_whole(ds, kinds="union")
    with pytest.raises(SchemaError, match="did you mean 'only'"):
        beside_whole(ds, kinds="onli")
    with pytest.raises(SchemaError, match="'gap' is unknown"):
        beside_whole(ds, score="gap")


def wilson(k, n, z=1.959963984540054):
    """Return Wilson's bounds from the textbook."""
    p, middle = k / n, (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return middle - reach, middle + reach


def test_accuracy__counts_labels_among_the_top():
    ds = attributions_cube(epochs=(1, 9), samples=8)
    ds["label_rank"][0] = [0, 0, 0, 1, 4, 5, 9, np.nan]
    found = accuracy(ds)
    assert found["n"].to_numpy().tolist() == [7, 8]
    np.testing.assert_allclose(found["accuracy"][0], [3 / 7, 5 / 7])
    for at, k in enumerate((3, 5)):
        low, high = wilson(k, 7)
        np.testing.assert_allclose([found["accuracy_low"][0, at], found["accuracy_high"][0, at]], [low, high])
    third = accuracy(ds, top=[3]).sel(top=3)
    np.testing.assert_allclose(third["accuracy"][0], 4 / 7)
    assert "sample" not in found.coords


def test_accuracy__is_lazy_and_blind_to_chunks():
    ds = attributions_cube(epochs=(1, 9))
    lazy = accuracy(ds.chunk(sample=5))
    assert all(isinstance(array.data, da.Array) for array in lazy.data_vars.values())
    xr.testing.assert_allclose(lazy.compute(), accuracy(ds))


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (lambda ds: ds, {"top": [0]}, SchemaError, "are no numbers of classes"),
        (lambda ds: ds, {"top": []}, SchemaError, "are no numbers of classes"),
        (lambda ds: ds, {"confidence": 95}, SchemaError, "confidence=95"),
        (lambda ds: ds.isel(sample=0), {}, SchemaError, "'sample' was needed"),
        (lambda ds: ds.drop_vars("label_rank"), {}, MissingMeasurementError, "'label_rank' was not measured"),
    ],
)
def test_accuracy__errors_name_the_mend(change, options, error, message):
    with pytest.raises(error, match=message):
        accuracy(change(attributions_cube()), **options)


def test_accuracy__docstring_says_why_there_is_but_one():
    assert "detach" in accuracy.__doc__


def test_reductions__need_no_torch():
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from attribution_cube_cases import attributions_cube\n"
        "import neurolens.accessor\n"
        "ds = attributions_cube(samples=6)\n"
        "names = ('map_scores', 'accuracy', 'filtered_summary', 'control', 'per_class')\n"
        "[getattr(ds.lens, name)() for name in names]\n"
        "ds.lens.decompose(), ds.lens.compare(bootstrap=10, flips=10)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
