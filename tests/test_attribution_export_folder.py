"""Exports of attributions as a whole: which sets, which checkpoint, what is missing, what is replaced."""

import subprocess
import sys

import numpy as np
import pytest
from attribution_cube_cases import attributions_cube, sets
from attribution_export_cases import FIRST, METRICS, of_csv, of_json, scores_by_hand

from neurolens.attribution import export_attributions
from neurolens.attribution.exported_files import one_checkpoint
from neurolens.attribution.exported_names import (
    blocked_by_cluster,
    control_folders,
    filtered_sets,
    focus_of,
    random_sets,
)
from neurolens.attribution.sets import unit_sets
from neurolens.errors import DataError, MissingMeasurementError, SchemaError
from neurolens.study import Attributions


@pytest.fixture(scope="module")
def cube():
    return attributions_cube()


@pytest.fixture(scope="module")
def out(cube, tmp_path_factory):
    return export_attributions(cube, tmp_path_factory.mktemp("exports") / "out", control_seed=7, units=sets()).folder


def test_blocked_by_cluster__is_not_told_by_sets_of_another_size(cube):
    table = Attributions(controlled=("stage1/without k3/0",))
    others = unit_sets({"stage1": {"k3": np.array([0, 0, 0, 0, 1, 2])}}, table)
    assert blocked_by_cluster(random_sets(cube)[0], others) is None
    assert blocked_by_cluster(random_sets(cube)[0], ()) is None


def test_control_folders__are_the_references_for_draws_with_seeds_of_their_own(cube):
    found = random_sets(cube)
    assert list(control_folders(found, 42, "seed").values())[:2] == [
        "control_random_stage1_2_seed42",
        "control_random_stage1_2_seed43",
    ]
    assert list(control_folders(found, 42, None).values())[1] == "control_random_stage1_2_seed42_draw1"
    assert list(control_folders(found, None, None).values())[1] == "control_random_stage1_2_draw1"


def test_control_folders__keep_controls_of_sets_of_one_size_apart(cube):
    found = random_sets(cube)
    both = (found[0], type(found[0])("x", "stage1", "stage1/without k2/1", 0, 4, 6))
    assert list(control_folders(both, 42, "seed").values()) == [
        "control_random_stage1_2_seed42",
        "control_random_stage1_2_seed42_of_without_k2_1",
    ]


def test_random_sets__takes_sizes_from_the_sets_where_the_cube_does_not_tell_them(cube):
    unknown = cube.assign_coords(kept=("map", np.full(cube.sizes["map"], -1)))
    with pytest.raises(MissingMeasurementError, match=r"does not tell of how many units .* name the study's file"):
        random_sets(unknown)
    assert random_sets(unknown, sets()) == random_sets(cube)
    without = cube.isel(map=~cube["kind"].isin(["only"]).values)
    assert random_sets(without) == random_sets(cube)


def test_decomposition__is_of_evenly_spaced_images(cube, tmp_path):
    out = export_attributions(cube, tmp_path / "out", only=["decomposition"], images=4).folder
    names = sorted(path.name for path in (out / "cluster_analysis").glob("cluster_analysis_ig_*"))
    assert names == [f"cluster_analysis_ig_{i}.json" for i in sorted(map(str, np.linspace(0, 11, 4, dtype=int)))]


def test_decomposition__without_full_maps_leaves_the_correlation_null(tmp_path):
    done = export_attributions(attributions_cube(full=False, reduced=False), tmp_path / "out", only=["decomposition"])
    found = of_json(done.folder / "cluster_analysis" / "cluster_analysis_ig_0.json")
    assert found["cluster_independence"] is None
    assert found["reconstruction_error"] is not None
    aggregate = of_json(done.folder / "cluster_analysis" / "aggregate_stats_ig.json")
    assert aggregate["cluster_independence"] == {"mean": None, "std": None}
    assert any("full = 1 in [attributions]" in note for note in done.notes)


def test_export__tells_what_it_is_of(cube, tmp_path):
    done = export_attributions(cube, tmp_path / "out", only=["grid"], level="pixel")
    about = of_json(done.folder / "export.json")
    assert (about["run"], about["epoch"], about["level"], about["images"]) == ("case", 9, "pixel", 12)
    assert about["focus"] == "stage1/without k3/0"
    assert sorted(about["files"]) == sorted(
        path.relative_to(done.folder).as_posix() for path in done.folder.rglob("*.*") if path.name != "export.json"
    )
    assert set(done.files) == {*about["files"], "export.json"}


def test_export__of_pixels_scores_pixels(cube, tmp_path):
    out = export_attributions(cube, tmp_path / "out", only=["grid", "controls"], level="pixel").folder
    sparsity, drop = scores_by_hand(cube, "whole", "saliency", "pixel")
    found = of_json(out / "baseline" / "metrics.json")["saliency"]
    assert found["sparsity_mean"] == pytest.approx(sparsity.mean())
    assert found["faithfulness_mean"] == pytest.approx(drop.mean())
    assert of_json(next(out.glob("control_random_*/metrics.json")))["metric_type"] == "pixel"


def test_export__is_blind_to_chunks(cube, out, tmp_path):
    chunked = cube.chunk({"sample": 5, "map": 7, "attribution": 1})
    found = export_attributions(chunked, tmp_path / "out", control_seed=7, units=sets()).folder
    names = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()]
    assert sorted(names) == sorted(path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file())
    for name in names:
        assert (found / name).read_bytes() == (out / name).read_bytes(), name


def test_export__takes_the_last_checkpoint_or_the_one_asked_for(tmp_path):
    cube = attributions_cube(epochs=(3, 5, 9))
    cube["measured"][2] = False
    assert int(one_checkpoint(cube)["epoch"]) == 5
    out = export_attributions(cube, tmp_path / "out", at=3, only=["grid"]).folder
    _, drop = scores_by_hand(cube.sel(epoch=[3]), "whole", "saliency", "patch")
    assert of_json(out / "baseline" / "metrics.json")["saliency"]["faithfulness_mean"] == pytest.approx(drop.mean())
    with pytest.raises(MissingMeasurementError, match=r"found attributions at epoch 3, 5, 9, and 4 was needed"):
        export_attributions(cube, tmp_path / "other", at=4)


@pytest.mark.parametrize(
    ("dropped", "kind", "message"),
    [
        (["masked_log_prob", "masked_logit"], "statistics", "faithfulness = true"),
        (["full_map"], "maps", r"'full_map' was not measured .*full"),
        (["label_rank"], "accuracy", "needs labels"),
        (["dot"], "decomposition", "'dot' was not measured"),
    ],
)
def test_export__names_what_is_missing_and_the_key_where_a_kind_is_asked_for(cube, tmp_path, dropped, kind, message):
    less = cube.drop_vars(dropped)
    with pytest.raises(MissingMeasurementError, match=message):
        export_attributions(less, tmp_path / "out", only=[kind])
    assert not list(tmp_path.iterdir())
    done = export_attributions(less, tmp_path / "out")
    assert any(note.startswith(f"{kind}: left out") for note in done.notes)


def test_export__without_faithfulness_leaves_its_figures_null(cube, tmp_path):
    done = export_attributions(cube.drop_vars("masked_log_prob"), tmp_path / "out", only=["grid", "classes"])
    found = of_json(done.folder / "baseline" / "metrics.json")["ig"]
    assert (found["faithfulness_mean"], found["faithfulness_std"]) == (None, None)
    assert found["sparsity_mean"] > 0
    header, *lines = of_csv(done.folder / "mask_grid_summary.csv")
    assert {line[header.index("ig_faithfulness_mean")] for line in lines} == {""}
    header, *lines = of_csv(done.folder / "class_analysis_metrics_complete.csv")
    assert {line[header.index("mean_diff")] for line in lines} == {""}
    assert any("faithfulness was not measured" in note for note in done.notes)


def test_export__of_one_method_leaves_the_other_null_and_says_so(tmp_path):
    cube = attributions_cube(methods=("saliency", "input_x_gradient"))
    done = export_attributions(cube, tmp_path / "out")
    assert of_json(done.folder / "baseline" / "metrics.json")["ig"] == dict.fromkeys(METRICS)
    assert of_json(done.folder / "statistical_results.json")["ig"] is None
    assert [line[2] for line in of_csv(done.folder / "class_analysis_metrics_complete.csv")[1:]] == ["saliency"] * 3
    assert not list(done.folder.rglob("ig_*.npy"))
    assert any("ig was not measured" in note for note in done.notes)
    assert any("input_x_gradient have no place" in note for note in done.notes)
    with pytest.raises(MissingMeasurementError, match="integrated_gradients and saliency; name them in"):
        export_attributions(attributions_cube(methods=("input_x_gradient",)), tmp_path / "none")


def test_export__of_images_that_were_not_measured_is_an_error_or_leaves_them_out(cube, tmp_path):
    less = cube.copy(deep=True)
    for name in less.data_vars:
        less[name][:, 4] = np.nan
    with pytest.raises(
        MissingMeasurementError, match=r"1 of 12 images are not all measured at epoch 9.*--missing drop"
    ):
        export_attributions(less, tmp_path / "out")
    done = export_attributions(less, tmp_path / "out", missing="drop")
    sparsity, drop = scores_by_hand(cube, "whole", "saliency", "patch")
    found = of_json(done.folder / "baseline" / "metrics.json")["saliency"]
    assert found["sparsity_mean"] == pytest.approx(np.delete(sparsity, 4).mean())
    assert found["faithfulness_std"] == pytest.approx(np.delete(drop, 4).std())
    assert of_json(done.folder / "statistical_results.json")["ig"]["n_samples"] == 11
    assert not (done.folder / "cluster_analysis" / "cluster_analysis_ig_4.json").exists()
    assert any("1 of 12 images" in note for note in done.notes)
    nothing = cube.where(False)
    with pytest.raises(MissingMeasurementError, match="12 of 12 images"):
        export_attributions(nothing, tmp_path / "nothing", missing="drop")


def test_export__of_a_set_that_was_not_measured_yet_is_an_error(cube, tmp_path):
    less = cube.copy(deep=True)
    at = less["map"].values.tolist().index("stage2/without k3/1")
    for name in ("mass", "patch", "pixel_sparsity", "masked_log_prob"):
        less[name][:, 2:, at] = np.nan
    with pytest.raises(MissingMeasurementError, match="10 of 12 images"):
        export_attributions(less, tmp_path / "out")


def test_export__of_maps_of_zeros_has_no_score_of_them(cube, tmp_path):
    silent = cube.copy(deep=True)
    at = silent["map"].values.tolist().index("stage1/without k3/0")
    for name in ("mass", "patch", "norm", "total"):
        silent[name][:, 0, at] = 0
    for name in ("pixel_sparsity", "masked_log_prob"):
        silent[name][:, 0, at] = np.nan
    done = export_attributions(silent, tmp_path / "out")
    sparsity, _ = scores_by_hand(cube, "stage1/without k3/0", "saliency", "patch")
    assert of_json(done.folder / FIRST / "metrics.json")["saliency"]["sparsity_mean"] == pytest.approx(
        sparsity[1:].mean()
    )
    assert any("2 maps are zero everywhere" in note for note in done.notes)


def test_export__needs_sets_without_a_cluster_and_single_clusters(cube, tmp_path):
    alone = cube.isel(map=~cube["kind"].isin(["without", "control"]).values)
    with pytest.raises(MissingMeasurementError, match=r"put 'without' into sets of the study's \[attributions\]"):
        export_attributions(alone, tmp_path / "out")
    without = cube.isel(map=~cube["kind"].isin(["only"]).values)
    with pytest.raises(MissingMeasurementError, match=r"put 'only' into sets of the study's \[attributions\]"):
        export_attributions(without, tmp_path / "out", only=["decomposition"])
    done = export_attributions(without, tmp_path / "out")
    assert any(note.startswith("decomposition: left out") for note in done.notes)
    assert (done.folder / "mask_grid_summary.csv").is_file()


def test_export__without_controls_or_labels_says_what_to_name(cube, tmp_path):
    less = cube.isel(map=~cube["kind"].isin(["control"]).values)
    with pytest.raises(MissingMeasurementError, match="name sets in controlled"):
        export_attributions(less, tmp_path / "out", only=["controls"])
    with pytest.raises(SchemaError, match=r"not all images have a label.*\[data\]"):
        export_attributions(cube.drop_vars("label"), tmp_path / "out", only=["classes"])


def renamed(cube, old, new):
    """The cube, with a clustering of another name."""
    names = [name.replace(f"{old}/", f"{new}/") for name in cube["map"].values.tolist()]
    called = [new if name == old else name for name in cube["clustering"].values.tolist()]
    text = np.dtypes.StringDType()
    return cube.assign_coords(map=np.array(names, dtype=text), clustering=("map", np.array(called, dtype=text)))


def test_filtered_sets__are_of_numbered_clusterings_unless_others_are_named(cube):
    other = renamed(cube, "k2", "block_1_k2")
    assert {one.clustering for one in filtered_sets(other)} == {"k3"}
    found = filtered_sets(other, ["block_1_k2"])
    assert [one.folder for one in found][:2] == ["filtered_stage1_cluster_0_k2", "filtered_stage1_cluster_1_k2"]
    only = renamed(renamed(cube, "k2", "a"), "k3", "b")
    assert len(filtered_sets(only)) == 10
    with pytest.raises(SchemaError, match="there is no clustering 'k4'; did you mean"):
        filtered_sets(cube, ["k4"])
    same = renamed(cube, "k2", "k03")
    with pytest.raises(SchemaError, match="would both be written to filtered_stage1_cluster_0_k3"):
        filtered_sets(same)


def test_focus_of__is_the_references_choice_or_the_one_named(cube):
    found = filtered_sets(cube)
    assert focus_of(found).map == "stage1/without k3/0"
    assert focus_of(filtered_sets(cube, ["k2"])).map == "stage1/without k2/0"
    assert focus_of(found, "stage2/without k2/1").folder == "filtered_stage2_cluster_1_k2"
    with pytest.raises(SchemaError, match="there is no filtered cluster 'stage2/without k2/2'; did you mean"):
        focus_of(found, "stage2/without k2/2")


def test_export__about_another_cluster_is_of_it(cube, tmp_path):
    focus = "stage2/without k2/1"
    out = export_attributions(cube, tmp_path / "out", only=["statistics", "decomposition"], focus=focus).folder
    _, drop = scores_by_hand(cube, focus, "saliency", "patch")
    assert of_json(out / "statistical_results.json")["saliency"]["filtered_mean"] == pytest.approx(drop.mean())
    assert list(of_json(out / "cluster_analysis" / "aggregate_stats_ig.json")["cluster_sparsity"]) == ["0", "1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["grids"]}, "there are no files of kind 'grids'; did you mean 'grid'"),
        ({"level": "pixels"}, "level='pixels' is unknown; did you mean 'pixel'"),
        ({"missing": "skip"}, "missing='skip' is unknown"),
        ({"images": 0}, "images=0 is no number of images; give 1 or more"),
        ({"classes": 0}, "classes=0 is no number of classes"),
    ],
)
def test_export__refuses_unknown_options(cube, tmp_path, options, message):
    with pytest.raises(SchemaError, match=message):
        export_attributions(cube, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_export__replaces_its_own_folder_only_when_told_and_no_other(cube, tmp_path):
    out = export_attributions(cube, tmp_path / "out").folder
    with pytest.raises(DataError, match=r"there is something here already; name another folder, or .*--overwrite"):
        export_attributions(cube, out)
    export_attributions(cube, out, only=["grid"], overwrite=True)
    assert not (out / "statistical_results.json").exists()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(DataError, match=r"mine\.txt was not written by this export, so nothing is replaced"):
        export_attributions(cube, out, overwrite=True)
    assert (out / "mine.txt").read_text() == "kept"
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file was not written by this export"):
        export_attributions(cube, tmp_path / "file", overwrite=True)
    (tmp_path / "empty").mkdir()
    assert export_attributions(cube, tmp_path / "empty", only=["grid"], overwrite=True).folder.is_dir()


def test_export__that_fails_leaves_what_was_there(cube, tmp_path, monkeypatch):
    out = export_attributions(cube, tmp_path / "out", only=["grid"]).folder
    before = sorted(path.name for path in out.rglob("*"))

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"):
        export_attributions(cube, out, overwrite=True)
    with pytest.raises(DataError, match="cannot be written"):
        export_attributions(cube, tmp_path / "new")
    assert sorted(path.name for path in out.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_exports__import_no_torch():
    code = "import sys, neurolens.attribution.exported_files as _; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
