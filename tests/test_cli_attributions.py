"""Export of attributions from the command line, of a store that was measured."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from attribution_study import TEXT, run_both
from conftest import write_checkpoint, write_samples
from typer.testing import CliRunner

import neurolens
from neurolens.cli import app
from neurolens.study import load_study

FOCUS = "bn3/without k2/1"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of two checkpoints whose attributions were measured, with whole maps of two images."""
    home = tmp_path_factory.mktemp("run")
    write_samples(home, np.arange(24))
    for epoch in range(2):
        write_checkpoint(home, epoch)
    path = home / "study.toml"
    path.write_text(TEXT + 'full = 2\ncontrol_compat = "seed"\ncontrol_seed = 42\n')
    run_both(path)
    return path


def invoke(*words):
    found = CliRunner().invoke(app, ["export", "attributions", *map(str, words)])
    return found.exit_code, " ".join(found.output.split())


def done(*words):
    code, said = invoke(*words)
    assert code == 0, said
    return said


def refused(*words):
    code, said = invoke(*words)
    assert code == 2, said
    return said


def of_json(path):
    return json.loads(path.read_text())


def test_export_attributions__writes_every_kind_of_file(study, tmp_path):
    out = tmp_path / "out"
    said = done(study, out)
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert f"wrote {len(files)} files of epoch 1" in said
    assert "left out" not in said
    for name in (
        "baseline/accuracy.json",
        "baseline/metrics.json",
        "baseline/attributions/ig_0.npy",
        "filtered_bn2_cluster_2_k3/metrics.json",
        "filtered_bn2_cluster_2_k3/attributions/saliency_0.npy",
        "mask_grid_summary.csv",
        "accuracy/acc_bn3_c1_k2.json",
        "class_analysis_metrics_0_10.csv",
        "class_analysis_metrics_complete.csv",
        "statistical_results.json",
        "cluster_analysis/cluster_analysis_ig_5.json",
        "cluster_analysis/aggregate_stats_saliency.json",
        "export.json",
    ):
        assert name in files


def test_export_attributions__names_controls_by_the_seeds_of_the_study(study, tmp_path):
    out = tmp_path / "out"
    done(study, out, "--only", "controls")
    folders = sorted(path.name for path in out.iterdir() if path.name.startswith("control_random_"))
    assert [name.rpartition("_")[2] for name in folders] == ["seed42", "seed43"]
    found = of_json(out / folders[1] / "metrics.json")
    assert (found["random_seed"], found["neurons_total"]) == (43, 32)
    (summary,) = [of_json(path) for path in out.rglob("control_summary.json")]
    assert sum(summary["filtered_by_cluster"].values()) == summary["filtered_neurons"] == found["neurons_filtered"]


def test_export_attributions__of_a_store_says_what_only_the_study_knows(study, tmp_path):
    store = load_study(study).store.url
    said = done(store, tmp_path / "out", "--only", "controls", "--at", 0)
    assert "random_seed is null" in said
    assert "files of epoch 0" in said


def test_export_attributions__of_a_study_whose_checkpoints_are_gone_says_what_is_not_known(study, tmp_path):
    home = tmp_path / "moved"
    shutil.copytree(study.parent, home)
    shutil.rmtree(home / "checkpoints")
    said = done(home / "study.toml", tmp_path / "out", "--only", "controls")
    assert "the units of controls are not known" in said
    assert "filtered_by_cluster is null" in said
    assert list((tmp_path / "out").glob("control_random_bn3_*_seed42/metrics.json"))


def test_export_attributions__gives_the_numbers_of_the_cube(study, tmp_path):
    out = tmp_path / "out"
    done(study, out, "--at", 0, "--level", "pixel", "--focus", FOCUS, "--only", "grid,statistics,maps")
    cube = neurolens.open_run(load_study(study).store.url)["attributions"].to_dataset().sel(epoch=0).compute()
    one = cube.sel({"map": FOCUS, "attribution": "saliency"})
    drop = np.exp(one["log_prob"]) - np.exp(one["masked_log_prob"].sel(level="pixel"))
    found = of_json(out / "filtered_bn3_cluster_1_k2" / "metrics.json")
    expected = [one["pixel_sparsity"].mean(), one["pixel_sparsity"].std(), drop.mean(), drop.std()]
    np.testing.assert_allclose(list(found["saliency"].values()), expected)
    assert found["accuracy_top1"] == float((cube["label_rank"] < 1).mean())
    assert of_json(out / "statistical_results.json")["saliency"]["filtered_mean"] == pytest.approx(float(drop.mean()))
    values = np.load(out / "filtered_bn3_cluster_1_k2" / "attributions" / "saliency_0.npy")
    np.testing.assert_array_equal(values, one["full_map"].isel(sample=0))
    assert of_json(out / "export.json")["settings"]["maps"]["grid"] == 4


def test_export_attributions__puts_some_classes_into_each_file(study, tmp_path):
    done(study, tmp_path / "out", "--only", "classes,decomposition", "--classes", 4, "--images", 2)
    names = sorted(path.name for path in (tmp_path / "out").glob("class_*"))
    assert names[0] == "class_analysis_metrics_0_4.csv"
    assert names[-1] == "class_analysis_metrics_complete.csv"
    with (tmp_path / "out" / names[0]).open(newline="") as file:
        assert {int(line["class_id"]) for line in csv.DictReader(file)} <= set(range(4))
    assert len(list((tmp_path / "out" / "cluster_analysis").glob("cluster_analysis_ig_*"))) == 2


def test_export_attributions__does_not_replace_what_is_there_unless_told(study, tmp_path):
    done(study, tmp_path / "out", "--only", "grid")
    assert "there is something here already" in refused(study, tmp_path / "out", "--only", "grid")
    done(study, tmp_path / "out", "--only", "statistics", "--overwrite")
    assert not (tmp_path / "out" / "mask_grid_summary.csv").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "grid,clases"], "--only 'clases' is unknown; did you mean 'classes'?"),
        (["--level", "pixels"], "--level 'pixels' is unknown; did you mean 'pixel'?"),
        (["--missing", "skip"], "--missing 'skip' is unknown"),
        (["--at", "7"], "found attributions at epoch 0, 1, and 7 was needed"),
        (["--focus", "bn3/without k2/3"], "there is no filtered cluster 'bn3/without k2/3'; did you mean"),
        (["--clustering", "k5"], "there is no clustering 'k5'; did you mean"),
    ],
)
def test_export_attributions__refuses_what_it_does_not_know(study, tmp_path, words, message):
    assert message in refused(study, tmp_path / "out", *words)
    assert not list(tmp_path.iterdir())


def test_export_attributions__of_a_run_without_them_names_the_mend(make_store, tmp_path):
    make_store(tmp_path / "store.icechunk")
    said = refused(tmp_path / "store.icechunk", tmp_path / "out")
    assert "there are no attributions in this run, which holds samples" in said
    assert "with [clusters] and [attributions] in the study" in said


def test_export__lists_the_command():
    found = CliRunner().invoke(app, ["export", "--help"])
    assert "attributions" in found.output


def test_page__runs_on_a_run(study, monkeypatch, tmp_path):
    page = Path(__file__).parent.parent / "docs" / "how-to" / "attribution-files.md"
    (tmp_path / "store.icechunk").symlink_to(load_study(study).store.url)
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    exec(compile(snippet, str(page), "exec"), {})
    assert (tmp_path / "outputs" / "mask_grid_summary.csv").is_file()
