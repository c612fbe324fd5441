"""The reductions that compare, given the opened cube: golden numbers, the same as of arrays, what is missing."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from attribution_cube_cases import attributions_cube
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.attribution import compare, control, held_out, merge_classes, per_class
from neurolens.attribution.reading import score_of
from neurolens.errors import MissingMeasurementError, SchemaError

BASELINE = np.array([0.10, 0.20, 0.30, 0.40, 0.50])
FILTERED = np.array([0.15, 0.18, 0.42, 0.47, 0.58])


def cube(**options):
    return attributions_cube(reduced=False, full=False, curves=False, **options)


def golden(at):
    """A cube of five samples with the golden drops: of the whole, and of the map at this place."""
    ds = cube(samples=5, methods=("saliency",), classes=5)
    ds["log_prob"][:] = 0.0
    ds["masked_log_prob"][:, :, 0] = np.log(1 - BASELINE)[:, None, None]
    ds["masked_log_prob"][:, :, at] = np.log(1 - FILTERED)[:, None, None]
    return ds.isel(map=[0, at])


def unmeasured(ds, epoch=1):
    """Make a checkpoint, and one sample of another, look as the opener shows what was not measured."""
    ds = ds.astype(float)
    for name in ds.data_vars:
        ds[name][epoch] = np.nan
    ds["masked_log_prob"][0, 3] = np.nan
    return ds


def test_compare__gives_the_golden_numbers_of_a_cube():
    ds = golden(at=4)
    found = compare(ds, compat="seed", seed=42, kinds=ds["kind"].to_numpy()[1]).isel(epoch=0, map=0, attribution=0)
    wanted = {
        "t": 2.6062334566,
        "p_t": 0.0596556899,
        "d_z": 1.1655430348,
        "std": 0.0460434577,
        "improved": 0.8,
        "w": 1,
        "p_wilcoxon": 0.125,
        "low": 0.016,
        "high": 0.096,
        "difference": 0.06,
        "filtered_mean": 0.36,
        "baseline_mean": 0.3,
        "p_max_t": 4 / 32,
        "class_p_max_t": 4 / 32,
        "n": 5,
        "n_classes": 5,
    }
    for name, value in wanted.items():
        assert float(found[name]) == pytest.approx(value, abs=5e-11), name
    np.testing.assert_allclose(found["percentile"], [-0.006, 0.05, 0.07, 0.08, 0.112], atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"score": "sparsity", "level": "pixel", "kinds": "only"},
        {"score": "logit_drop", "level": "pixel", "kinds": ["only", "without"]},
        {"score": "gini"},
    ],
)
def test_compare__of_a_cube_is_that_of_its_scores(options):
    ds = cube(epochs=(1, 9), samples=8)  # where there are ties, Wilcoxon's test goes through all 2 ** 8 signs
    found = compare(ds, bootstrap=30, flips=30, seed=4, **options)
    score, level = options.get("score", "drop"), options.get("level", "patch")
    kinds = np.isin(ds["kind"].to_numpy(), options.get("kinds", "without"))
    values = score_of(ds, score, level=level)
    for at in range(2):
        one = values.isel(epoch=at)
        alone = compare(
            one.isel(map=np.flatnonzero(kinds)),
            one.isel(map=0, drop=True),
            classes="label",
            bootstrap=30,
            flips=30,
            seed=4,
        )
        xr.testing.assert_allclose(found.isel(epoch=at).drop_vars("measured"), alone.drop_vars("measured"))
    assert found["p_t"].dims == ("epoch", "map", "attribution")
    assert found["epoch"].to_numpy().tolist() == [1, 9]
    assert found["difference"].attrs["units"] == values.attrs["units"]
    assert found.attrs["run"] == "case"


def test_compare__takes_the_sets_and_methods_of_a_checkpoint_as_a_family():
    ds = cube(epochs=(1, 9))
    both, one = (compare(given_, bootstrap=0, flips=200) for given_ in (ds, ds.isel(epoch=[1])))
    xr.testing.assert_allclose(both.isel(epoch=[1]), one)
    few = compare(ds.isel(epoch=[1], map=[0, 2], attribution=[0]), bootstrap=0, flips=200, kinds=("only", "without"))
    same = one.sel({"map": few["map"].to_numpy(), "attribution": few["attribution"].to_numpy()})
    assert (same["p_max_t"] >= few["p_max_t"]).all()


def test_compare__of_a_cube_of_one_checkpoint_has_no_series():
    ds = cube(epochs=(1, 9))
    found = compare(ds.isel(epoch=1), bootstrap=20, flips=20)
    assert found["t"].dims == ("map", "attribution")
    xr.testing.assert_allclose(found, compare(ds, bootstrap=20, flips=20).isel(epoch=1))


@pytest.mark.parametrize("chunks", [{"sample": 5}, {"map": 7, "sample": 4, "epoch": 1, "attribution": 1, "level": 1}])
@pytest.mark.parametrize("of", [compare, held_out, per_class])
def test_reductions__of_a_lazy_cube_are_those_of_the_cube(chunks, of):
    ds = cube(epochs=(1, 9))
    options = {} if of is per_class else {"bootstrap": 20}
    xr.testing.assert_allclose(of(ds.chunk(chunks), **options), of(ds, **options))


def test_compare__says_nothing_of_what_was_not_measured():
    found = compare(unmeasured(cube(epochs=(1, 9))), bootstrap=20, flips=20)
    assert (found["n"].isel(epoch=0) == 11).all()
    nothing = found.isel(epoch=1)
    assert (nothing["n"] == 0).all()
    for name in set(found.data_vars) - {"n", "n_classes"}:
        assert nothing[name].isnull().all(), name


def test_compare__of_a_cube_without_labels_knows_no_classes():
    found = compare(cube().drop_vars("label"), bootstrap=20, flips=20)
    assert "class_low" not in found
    by_other = cube().assign_coords(site=("sample", np.arange(12) % 2))
    assert (compare(by_other, classes="site", bootstrap=0, flips=0)["n_classes"] == 2).all()


def test_held_out__of_a_cube_tells_the_chosen_set_by_name():
    ds = cube(epochs=(1, 9), samples=30)
    found = held_out(ds, kinds=("only", "without"), bootstrap=20, seed=2)
    values = score_of(ds, "drop")
    kept = np.flatnonzero(np.isin(ds["kind"].to_numpy(), ["only", "without"]))
    for at in range(2):
        one = values.isel(epoch=at)
        alone = held_out(
            one.isel(map=kept), one.isel(map=0, drop=True), classes="label", bootstrap=20, seed=2
        ).drop_vars("measured")
        here = found.isel(epoch=at)
        assert here["map"].item() == ds["map"].to_numpy()[kept[int(alone["chosen_map"])]]
        for name in ("difference", "t", "low", "class_high", "chosen_difference", "chosen_n"):
            assert float(here[name]) == pytest.approx(float(alone[name]), nan_ok=True), name
    assert not {"chosen_map", "chosen_attribution"} & set(found)


@pytest.mark.parametrize("only", [None, range(2), [2], [0, 7]])
def test_per_class__of_a_cube_is_that_of_its_scores(only):
    ds = cube(epochs=(1, 9), samples=14, classes=4)
    found = per_class(ds, only=only, score="log_prob_drop")
    values = score_of(ds, "log_prob_drop")
    kept = np.flatnonzero(ds["kind"].to_numpy() == "without")
    wanted = [c for c in range(4) if only is None or c in only]
    assert found["class"].to_numpy().tolist() == wanted
    assert found["class_name"].to_numpy().tolist() == [f"class{c}" for c in wanted]
    for c in wanted:
        mine = values.isel(sample=np.flatnonzero(ds["label"].to_numpy() == c))
        difference = (mine.isel(map=kept) - mine.isel(map=0, drop=True)).to_numpy()
        one = found.sel({"class": c})
        np.testing.assert_allclose(one["difference_mean"], difference.mean(axis=1))
        np.testing.assert_allclose(one["difference_std"], difference.std(axis=1))
        np.testing.assert_allclose(one["improved"], (difference > 0).mean(axis=1))
        np.testing.assert_allclose(one["baseline_mean"][:, 0], mine.isel(map=0).to_numpy().mean(axis=1))
        assert (one["n"] == mine.sizes["sample"]).all()


def test_merge_classes__puts_ranges_of_a_cube_together():
    ds = cube(epochs=(1, 9), samples=14, classes=5)
    parts = [per_class(ds, only=some) for some in (range(2), [4], range(2, 4))]
    xr.testing.assert_allclose(merge_classes(*parts), per_class(ds))
    assert merge_classes(*parts)["n"].attrs == per_class(ds)["n"].attrs
    first, second = (per_class(ds.isel(sample=some)) for some in (slice(0, 5), slice(5, 14)))
    xr.testing.assert_allclose(merge_classes(first, second, shared="pool"), per_class(ds))


def test_per_class__of_arrays_takes_some_classes_too():
    values = score_of(cube(), "drop").isel(epoch=0)
    filtered, whole = values.isel(map=[3, 4]), values.isel(map=0, drop=True)
    found = per_class(filtered, whole, only=[1])
    xr.testing.assert_allclose(found, per_class(filtered, whole).sel({"class": [1]}))


def test_per_class__says_nothing_of_what_was_not_measured():
    found = per_class(unmeasured(cube(epochs=(1, 9))))
    assert found["n"].sum("class").isel(epoch=0).to_numpy().tolist() == [[11, 11]] * found.sizes["map"]
    assert (found["n"].isel(epoch=1) == 0).all()
    for name in set(found.data_vars) - {"n"}:
        assert found[name].isel(epoch=1).isnull().all(), name


def test_per_class__names_classes_only_by_labels():
    ds = cube().assign_coords(site=("sample", np.arange(12) % 2))
    assert "class_name" not in per_class(ds, classes="site").coords
    assert "class_name" not in per_class(ds.drop_vars("class")).coords
    foreign = ds.assign_coords(label=("sample", np.arange(12) - 1))
    assert "class_name" not in per_class(foreign).coords


def slow_control(ds, score="drop", level="patch"):
    """Return p, observed and the means of the random sets, by loops, of every controlled set."""
    values = score_of(ds, score, level=level)
    out = {}
    for at, name in enumerate(ds["map"].to_numpy().tolist()):
        own = np.flatnonzero(ds["of"].to_numpy() == name)
        for epoch, method in np.ndindex(ds.sizes["epoch"], ds.sizes["attribution"]) if len(own) else ():
            of = values[epoch, :, :, method].to_numpy()
            gaps = [np.nanmean(of[:, place] - of[:, 0]) for place in (at, *own)]
            p = (1 + sum(gap >= gaps[0] for gap in gaps[1:])) / (len(own) + 1)
            out[name, epoch, method] = (p, gaps[0], gaps[1:])
    return out


@pytest.mark.parametrize(("score", "level"), [("drop", "patch"), ("sparsity", "pixel"), ("logit_drop", "pixel")])
def test_control__of_a_cube_counts_the_random_sets(score, level):
    ds = cube(epochs=(1, 9))
    ds["masked_log_prob"][0, 2, 6] = np.nan
    found = control(ds, score=score, level=level, confidence=0.9)
    wanted = slow_control(ds, score, level)
    assert found["p"].size == len(wanted) == 4
    for (name, epoch, method), (p, observed, drawn) in wanted.items():
        one = found.sel({"map": name}).isel(epoch=epoch, attribution=method)
        assert float(one["p"]) == pytest.approx(p)
        assert float(one["observed"]) == pytest.approx(observed)
        np.testing.assert_allclose(one["drawn"], drawn)
        assert float(one["draw_mean"]) == pytest.approx(np.mean(drawn))
        assert float(one["excess"]) == pytest.approx(observed - np.mean(drawn))
        np.testing.assert_allclose([one["draw_low"], one["draw_high"]], np.quantile(drawn, [0.05, 0.95]))
        assert one["draws"] == 20
    assert found["drawn"].dims == ("epoch", "map", "attribution", "draw")
    assert found.attrs["alternative"] == "larger"


@pytest.mark.parametrize("chunks", [{"sample": 5}, {"map": 7, "sample": 4, "epoch": 1, "attribution": 1, "level": 1}])
def test_control__of_a_cube_is_lazy_and_blind_to_chunks(chunks):
    ds = cube(epochs=(1, 9))
    lazy = control(ds.chunk(chunks))
    assert all(isinstance(array.data, da.Array) for array in lazy.data_vars.values())
    xr.testing.assert_allclose(lazy.compute(), control(ds))


def test_control__says_nothing_of_what_was_not_measured():
    found = control(unmeasured(cube(epochs=(1, 9))))
    assert (found["n"].isel(epoch=0) == 11).all()
    nothing = found.isel(epoch=1)
    assert (nothing["n"] == 0).all()
    assert (nothing["draws"] == 0).all()
    for name in ("p", "observed", "drawn", "draw_mean", "draw_std", "draw_low", "draw_high", "excess"):
        assert nothing[name].isnull().all(), name


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100), st.permutations(range(20)))
def test_control__does_not_depend_on_the_order_of_sets_and_draws(seed, order):
    ds = cube(seed=seed, samples=5)
    at = np.arange(ds.sizes["map"])
    controls = np.flatnonzero(ds["kind"].to_numpy() == "control")
    at[controls] = controls[list(order)]
    turned = control(ds.isel(map=at[::-1]))
    xr.testing.assert_allclose(turned, control(ds))


@pytest.mark.parametrize("of", [compare, held_out, per_class, control])
def test_reductions__name_the_mend_of_what_was_not_measured(of):
    with pytest.raises(MissingMeasurementError, match=r"faithfulness = true in the study's \[attributions\]"):
        of(cube().drop_vars(["masked_logit", "masked_log_prob"]))


@pytest.mark.parametrize(
    ("of", "change", "options", "message"),
    [
        (compare, lambda ds: ds, {"score": "dropp"}, "did you mean 'drop'"),
        (compare, lambda ds: ds.isel(map=slice(1, None)), {}, "found 0 maps of kind 'whole'"),
        (compare, lambda ds: ds, {"kinds": "union"}, "no map of kind 'union'"),
        (compare, lambda ds: ds, {"classes": "lable"}, "did you mean 'label'"),
        (compare, lambda ds: ds.isel(epoch=[]), {}, "no epoch left"),
        (compare, lambda ds: ds["patch"], {}, r"compare\(filtered, baseline\)"),
        (held_out, lambda ds: ds["patch"], {}, r"held_out\(filtered, baseline\)"),
        (held_out, lambda ds: ds, {"choose": "large"}, "did you mean 'larger'"),
        (held_out, unmeasured, {}, "no filter has a score"),
        (per_class, lambda ds: ds["patch"], {}, r"per_class\(filtered, baseline\)"),
        (per_class, lambda ds: ds, {"only": [9]}, "no sample of classes \\[9\\]"),
        (per_class, lambda ds: ds, {"only": [0], "classes": "lable"}, "did you mean 'label'"),
        (control, lambda ds: ds["patch"], {}, "those of random sets were needed"),
        (control, lambda ds: ds.isel(map=ds["kind"] != "control"), {}, "found no control among"),
        (control, lambda ds: ds, {"confidence": 2}, "confidence=2"),
        (control, lambda ds: ds, {"alternative": "bigger"}, "alternative='bigger'"),
    ],
)
def test_reductions__errors_name_the_mend(of, change, options, message):
    with pytest.raises(SchemaError, match=message):
        of(change(cube(epochs=(1, 9))), **options)


@pytest.mark.parametrize("of", [compare, held_out, per_class, control])
def test_reductions__of_a_cube_take_no_second_array(of):
    ds = cube()
    with pytest.raises(SchemaError, match="the cube holds"):
        of(ds, ds["norm"])
