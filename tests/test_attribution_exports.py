"""The reference's files of filtered attributions: names, keys, columns, dtypes and numbers."""

import numpy as np
import pytest
import xarray as xr
from attribution_cube_cases import SIDE, attributions_cube, labels, sets
from attribution_export_cases import FIRST, METRICS, of_csv, of_json, scores_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.attribution import decompose
from neurolens.attribution.exported import metrics_of, paired_statistics, scored, statistics_of
from neurolens.attribution.exported_files import export_attributions
from neurolens.attribution.exported_names import (
    block_name,
    filtered_sets,
    focus_of,
)
from neurolens.errors import SchemaError

STATISTICS = [
    "n_samples",
    "baseline_mean",
    "baseline_std",
    "filtered_mean",
    "filtered_std",
    "mean_difference",
    "std_difference",
    "ttest_statistic",
    "ttest_pvalue",
    "cohens_d",
    "bootstrap_ci_lower",
    "bootstrap_ci_upper",
    "percent_improved",
    "percentile_5",
    "percentile_25",
    "percentile_50",
    "percentile_75",
    "percentile_95",
]


@pytest.fixture(scope="module")
def cube():
    return attributions_cube()


@pytest.fixture(scope="module")
def out(cube, tmp_path_factory):
    return export_attributions(cube, tmp_path_factory.mktemp("exports") / "out", control_seed=7, units=sets()).folder


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ("features.denseblock1", "block_1"),
        ("denseblock12", "block_12"),
        ("layer4.1.conv2", "layer4_1_conv2"),
        ("features.denseblock1.denselayer2", "features_denseblock1_denselayer2"),
        ("vit.layers:3", "vit_layers_3"),
    ],
)
def test_block_name__is_the_references_of_dense_blocks_and_a_path_elsewhere(layer, name):
    assert block_name(layer) == name


@pytest.mark.parametrize(
    ("folder", "name"),
    [("baseline", "whole"), (FIRST, "stage1/without k3/0"), ("filtered_stage2_cluster_1_k2", "stage2/without k2/1")],
)
def test_metrics__have_the_keys_and_are_population_moments_over_images(cube, out, folder, name):
    found = of_json(out / folder / "metrics.json")
    assert list(found) == ["ig", "saliency", *([] if name == "whole" else ["accuracy_top1"])]
    for method, ours in (("ig", "integrated_gradients"), ("saliency", "saliency")):
        assert list(found[method]) == METRICS
        sparsity, drop = scores_by_hand(cube, name, ours, "patch")
        expected = [sparsity.mean(), sparsity.std(ddof=0), drop.mean(), drop.std(ddof=0)]
        np.testing.assert_allclose(list(found[method].values()), expected, rtol=1e-12)


def test_accuracy__is_one_number_in_all_files(cube, out):
    rank = cube["label_rank"].values
    top1, top5 = (rank < 1).mean(), (rank < 5).mean()
    assert of_json(out / "baseline" / "accuracy.json") == {"top1": top1}
    assert of_json(out / FIRST / "metrics.json")["accuracy_top1"] == top1
    found = of_json(out / "accuracy" / "acc_stage1_c0_k3.json")
    assert list(found.items()) == [
        ("block", "stage1"),
        ("cluster", 0),
        ("top1_baseline", top1),
        ("top5_baseline", top5),
        ("top1_filtered", top1),
        ("top5_filtered", top5),
    ]
    assert len(list((out / "accuracy").iterdir())) == 10
    assert {line[3] for line in of_csv(out / "mask_grid_summary.csv")[1:]} == {str(top1)}


def test_mask_grid_summary__has_the_columns_and_the_baseline_last(out):
    header, *lines = of_csv(out / "mask_grid_summary.csv")
    assert header == [
        "block",
        "k_clusters",
        "clusterId",
        "accuracy_top1",
        "ig_faithfulness_mean",
        "ig_faithfulness_std",
        "ig_sparsity_mean",
        "ig_sparsity_std",
        "saliency_faithfulness_mean",
        "saliency_faithfulness_std",
        "saliency_sparsity_mean",
        "saliency_sparsity_std",
    ]
    assert [line[:3] for line in lines] == [
        *(["stage1", *rest] for rest in (["2", "0"], ["2", "1"], ["3", "0"], ["3", "1"], ["3", "2"])),
        *(["stage2", *rest] for rest in (["2", "0"], ["2", "1"], ["3", "0"], ["3", "1"], ["3", "2"])),
        ["baseline", "0", "0"],
    ]
    metrics = of_json(out / FIRST / "metrics.json")
    line = dict(zip(header, lines[2], strict=True))
    for method in ("ig", "saliency"):
        for key in METRICS:
            assert float(line[f"{method}_{key}"]) == metrics[method][key]


def test_maps__are_float32_by_position_in_the_subset(cube, out):
    assert sorted(path.name for path in (out / FIRST / "attributions").iterdir()) == [
        "ig_0.npy",
        "ig_6.npy",
        "saliency_0.npy",
        "saliency_6.npy",
    ]
    whole = cube["full_map"].isel(epoch=0).sel({"map": "whole"})
    for folder, name in (("baseline", "whole"), (FIRST, "stage1/without k3/0")):
        for image in (0, 6):
            for method, ours in (("ig", "integrated_gradients"), ("saliency", "saliency")):
                found = np.load(out / folder / "attributions" / f"{method}_{image}.npy")
                assert (found.dtype, found.shape, found.flags["C_CONTIGUOUS"]) == (np.float32, (3, SIDE, SIDE), True)
                expected = cube["full_map"].isel(epoch=0, sample=image).sel({"map": name, "attribution": ours})
                np.testing.assert_array_equal(found, expected.values)
    assert np.isnan(whole.isel(sample=1)).all()
    controls = list(out.glob("control_random_stage1_2_seed7_draw*/attributions/ig_6.npy"))
    assert len(controls) == 20


def test_class_analysis__has_the_columns_and_pixels_and_mean_diff_the_other_way(cube, out):
    header, *lines = of_csv(out / "class_analysis_metrics_complete.csv")
    assert header == [
        "class_id",
        "class_name",
        "method",
        "filtered_sparsity_mean",
        "filtered_sparsity_std",
        "filtered_faithfulness_mean",
        "filtered_faithfulness_std",
        "baseline_sparsity_mean",
        "baseline_sparsity_std",
        "baseline_faithfulness_mean",
        "baseline_faithfulness_std",
        "mean_diff",
    ]
    assert [line[:3] for line in lines] == [
        [str(c), f"class{c}", method] for c in range(3) for method in ("ig", "saliency")
    ]
    of = cube["label"].values == 1
    line = dict(zip(header, lines[2], strict=True))
    sparsity, drop = scores_by_hand(cube, "stage1/without k3/0", "integrated_gradients", "pixel")
    bare, baseline = scores_by_hand(cube, "whole", "integrated_gradients", "pixel")
    expected = [
        *(sparsity[of].mean(), sparsity[of].std(), drop[of].mean(), drop[of].std()),
        *(bare[of].mean(), bare[of].std(), baseline[of].mean(), baseline[of].std()),
        (baseline[of] - drop[of]).mean(),
    ]
    np.testing.assert_allclose([float(line[key]) for key in header[3:]], expected, rtol=1e-12)
    assert of_csv(out / "class_analysis_metrics_0_3.csv") == [header, *lines]


def test_class_analysis__in_ranges_adds_up_to_the_whole(cube, tmp_path):
    out = export_attributions(cube, tmp_path / "out", only=["classes"], classes=2).folder
    parts = [of_csv(out / f"class_analysis_metrics_{start}_{end}.csv") for start, end in ((0, 2), (2, 3))]
    assert parts[0] + parts[1][1:] == of_csv(out / "class_analysis_metrics_complete.csv")
    assert sorted(path.name for path in out.iterdir()) == [
        "class_analysis_metrics_0_2.csv",
        "class_analysis_metrics_2_3.csv",
        "class_analysis_metrics_complete.csv",
        "export.json",
    ]


def test_statistical_results__has_the_keys_of_each_method(cube, out):
    found = of_json(out / "statistical_results.json")
    assert list(found) == ["ig", "saliency"]
    for method, ours in (("ig", "integrated_gradients"), ("saliency", "saliency")):
        assert list(found[method]) == STATISTICS
        _, drop = scores_by_hand(cube, "stage1/without k3/0", ours, "patch")
        _, baseline = scores_by_hand(cube, "whole", ours, "patch")
        assert found[method]["n_samples"] == 12
        assert found[method]["mean_difference"] == pytest.approx((drop - baseline).mean(), rel=1e-12)
        assert found[method]["baseline_std"] == pytest.approx(baseline.std(), rel=1e-12)


def g9():
    baseline = xr.DataArray([0.1, 0.2, 0.3, 0.4, 0.5], dims="sample")
    return xr.DataArray([0.15, 0.18, 0.42, 0.47, 0.58], dims="sample"), baseline


def test_paired_statistics__gives_the_golden_numbers():
    found = paired_statistics(*g9())
    assert list(found) == STATISTICS
    golden = {
        "n_samples": 5,
        "ttest_statistic": 2.6062334566,
        "ttest_pvalue": 0.0596556899,
        "cohens_d": 1.1655430348,
        "std_difference": 0.0460434577,
        "percent_improved": 80.0,
        "percentile_5": -0.006,
        "percentile_25": 0.05,
        "percentile_50": 0.07,
        "percentile_75": 0.08,
        "percentile_95": 0.112,
        "bootstrap_ci_lower": 0.016,
        "bootstrap_ci_upper": 0.096,
        "mean_difference": 0.06,
        "baseline_mean": 0.3,
        "filtered_mean": 0.36,
    }
    assert {key: found[key] for key in golden} == pytest.approx(golden, abs=1e-9)


def test_paired_statistics__leaves_out_samples_without_a_score_as_the_reference_does():
    filtered, baseline = g9()
    gap = xr.DataArray([np.nan], dims="sample")
    longer = xr.concat([filtered, gap], "sample"), xr.concat([baseline, gap * 0 + 1], "sample")
    assert paired_statistics(*longer) == paired_statistics(filtered, baseline)
    nothing = paired_statistics(gap, gap)
    assert nothing == {"n_samples": 0} | dict.fromkeys(STATISTICS[1:])


def test_paired_statistics__is_null_where_nothing_varies():
    same = xr.DataArray([0.25, 0.5], dims="sample")
    found = paired_statistics(same + 0.25, same)
    assert (found["ttest_pvalue"], found["cohens_d"], found["mean_difference"]) == (None, None, 0.25)


def test_statistical_results__carries_the_golden_numbers_through_the_cube(tmp_path):
    cube = attributions_cube(samples=5)
    filtered, baseline = (scores.values for scores in g9())
    masked = cube["masked_log_prob"].copy()
    at = cube["map"].values.tolist().index
    cube["log_prob"][:] = np.log(0.9)
    for name, drop in (("whole", baseline), ("stage1/without k3/0", filtered)):
        masked[:, :, at(name)] = np.log(0.9 - drop)[None, :, None, None]
    cube["masked_log_prob"] = masked
    out = export_attributions(cube, tmp_path / "out", only=["statistics"]).folder
    for found in of_json(out / "statistical_results.json").values():
        assert found["ttest_statistic"] == pytest.approx(2.6062334566, abs=1e-7)
        assert found["bootstrap_ci_lower"] == pytest.approx(0.016, abs=1e-9)
        assert found["bootstrap_ci_upper"] == pytest.approx(0.096, abs=1e-9)


def test_control_metrics__has_the_keys(cube, out):
    found = of_json(out / "control_random_stage1_2_seed7_draw3" / "metrics.json")
    assert list(found) == [
        "ig",
        "saliency",
        "experiment_type",
        "block_filtered",
        "neurons_filtered",
        "neurons_total",
        "random_seed",
        "metric_type",
    ]
    assert list(found.values())[2:] == ["control_random", "stage1", 2, 6, 7, "patch"]
    _, drop = scores_by_hand(cube, "stage1/without k3/0 control 3", "saliency", "patch")
    assert found["saliency"]["faithfulness_mean"] == pytest.approx(drop.mean(), rel=1e-12)


def test_control_summary__counts_what_the_first_draw_blocks_of_each_cluster(out):
    found = of_json(out / "control_random" / "stage1_n2" / "control_summary.json")
    assert list(found)[:-1] == [
        "block",
        "total_neurons",
        "filtered_neurons",
        "kept_neurons",
        "filtered_percentage",
        "n_random",
    ]
    assert list(found.values())[:-1] == ["stage1", 6, 2, 4, 2 / 6 * 100, 2]
    (first,) = [one for one in sets() if one.name == "stage1/without k3/0 control 0"]
    blocked = labels()["stage1"]["k3"][~first.units]
    assert found["filtered_by_cluster"] == {str(c): int((blocked == c).sum()) for c in np.unique(blocked)}
    assert list(found["filtered_by_cluster"].values()) == sorted(found["filtered_by_cluster"].values(), reverse=True)


def test_control_summary__says_null_where_the_units_are_not_known(cube, tmp_path):
    done = export_attributions(cube, tmp_path / "out", only=["controls"])
    found = of_json(done.folder / "control_random" / "stage1_n2" / "control_summary.json")
    assert found["filtered_by_cluster"] is None
    assert of_json(done.folder / "control_random_stage1_2_draw0" / "metrics.json")["random_seed"] is None
    assert any("filtered_by_cluster is null" in note for note in done.notes)
    assert any("random_seed is null" in note for note in done.notes)


@pytest.mark.parametrize(("method", "ours"), [("ig", "integrated_gradients"), ("saliency", "saliency")])
def test_cluster_analysis__has_the_keys_and_agrees_with_the_maps(cube, out, method, ours):
    found = of_json(out / "cluster_analysis" / f"cluster_analysis_{method}_6.json")
    assert list(found) == [
        "cluster_magnitudes",
        "cluster_percentages",
        "cluster_sparsity",
        "reconstruction_error",
        "cluster_independence",
    ]
    here = cube.isel(epoch=0, sample=6).sel({"attribution": ours})
    names = [f"stage1/k3/{c}" for c in range(3)]
    maps = here["full_map"].sel({"map": names}).drop_vars("epoch")
    expected = decompose(maps, whole=here["full_map"].sel({"map": "whole"}, drop=True))
    by_cluster = {key: list(found[key].values()) for key in list(found)[:3]}
    assert list(found["cluster_magnitudes"]) == ["0", "1", "2"]
    np.testing.assert_allclose(by_cluster["cluster_magnitudes"], expected["norm"], rtol=1e-6)
    np.testing.assert_allclose(by_cluster["cluster_percentages"], 100 * expected["norm_share"], rtol=1e-6)
    assert sum(by_cluster["cluster_percentages"]) == pytest.approx(100)
    np.testing.assert_array_equal(by_cluster["cluster_sparsity"], here["pixel_sparsity"].sel({"map": names}))
    assert found["reconstruction_error"] == pytest.approx(float(expected["reconstruction_error"]), rel=1e-4, abs=1e-6)
    assert found["cluster_independence"] == pytest.approx(float(expected["mean_abs_correlation"]), rel=1e-5)


def test_aggregate_stats__are_moments_over_the_images(out):
    found = of_json(out / "cluster_analysis" / "aggregate_stats_ig.json")
    assert list(found) == [
        "cluster_magnitudes",
        "cluster_percentages",
        "cluster_sparsity",
        "reconstruction_errors",
        "cluster_independence",
    ]
    each = [of_json(out / "cluster_analysis" / f"cluster_analysis_ig_{i}.json") for i in range(12)]
    for key, plural in (("reconstruction_error", "reconstruction_errors"), ("cluster_independence",) * 2):
        values = [one[key] for one in each]
        assert found[plural] == pytest.approx({"mean": np.mean(values), "std": np.std(values)})
    values = [one["cluster_percentages"]["2"] for one in each]
    assert found["cluster_percentages"]["2"] == pytest.approx({"mean": np.mean(values), "std": np.std(values)})


def test_statistics_of__is_of_the_level_asked_for(cube):
    scores = scored(cube.isel(epoch=0))
    one = focus_of(filtered_sets(cube))
    found = statistics_of(scores, one, level="pixel", bootstrap=10)
    _, drop = scores_by_hand(cube, one.map, "integrated_gradients", "pixel")
    assert found["ig"]["filtered_mean"] == pytest.approx(drop.mean())


def test_scored__needs_one_checkpoint(cube):
    with pytest.raises(SchemaError, match="found checkpoints along 'epoch', and one was needed"):
        scored(cube)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-1, 1), st.floats(-1, 1)).filter(lambda pair: abs(pair[0] - pair[1]) > 1e-3),
        min_size=3,
        max_size=12,
    )
)
def test_paired_statistics__changes_sign_where_the_sides_are_swapped(pairs):
    filtered, baseline = (xr.DataArray(list(side), dims="sample") for side in zip(*pairs, strict=True))
    one, other = (
        paired_statistics(filtered, baseline, bootstrap=50),
        paired_statistics(baseline, filtered, bootstrap=50),
    )
    for key in ("mean_difference", "ttest_statistic", "cohens_d", "percentile_50"):
        if one[key] is None:
            assert other[key] is None
        else:
            assert one[key] == pytest.approx(-other[key], rel=1e-6, abs=1e-9)
    assert one["bootstrap_ci_lower"] == pytest.approx(-other["bootstrap_ci_upper"], abs=1e-9)
    assert one["percent_improved"] == pytest.approx(100 - other["percent_improved"])
    assert one["ttest_pvalue"] == pytest.approx(other["ttest_pvalue"])


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(6)))
def test_metrics_of__do_not_depend_on_the_order_of_images(order):
    cube = attributions_cube(samples=6).isel(epoch=0)
    ordered, shuffled = scored(cube), scored(cube.isel(sample=order))
    for level in ("patch", "pixel"):
        one, other = (metrics_of(scores, "stage1/without k3/0", level=level) for scores in (ordered, shuffled))
        for method in ("ig", "saliency"):
            assert one[method] == pytest.approx(other[method])
