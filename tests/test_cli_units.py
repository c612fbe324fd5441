"""The command line on a study of units, from its first run to the log that another store adopts."""

import collections
import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import conftest
import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import neurolens
from neurolens import checkpoints, data, models, rows
from neurolens.cli import app, running
from neurolens.cli.keeping import TEMPLATES
from neurolens.study import load_study
from neurolens.study_files import templates
from neurolens.training import train

UNITS = conftest.STUDY.replace("[samples]\n", "[units]\nclasses = true\n")


def call(*words, ok=True):
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200", "TERM": "dumb"})
    if ok:
        assert done.exit_code == 0, done.output
    return done.output


def measured(path):
    study = load_study(path)
    for cube in rows.cubes(study):
        materials = rows.gather(study, cube)
        store = rows.open_for_writing(study)
        rows.run_rows(materials, rows.plan(materials, store).todo, store)
    return path


def opened(path, group="units"):
    return xr.open_dataset(load_study(path).store.url, group=group, engine="neurolens", chunks={})


def test_commands__serve_a_study_of_units_from_run_to_adopted_log(make_study, prefect_server, tmp_path):
    path = make_study(checkpoints=3, text=UNITS)
    assert "3 rows computed, 0 up to date, 0 failed" in call("run", path)
    assert "0 rows computed, 3 up to date, 0 failed" in call("run", path)
    assert "epoch 0–2" in call("status", path)
    shown = call("show", path)
    assert "units: 3 epochs × 80 units" in shown
    assert "class_abs_sum" in shown

    call("plot", path)
    pictures = {p.stem for p in (path.parent / "plots").glob("*.png")}
    assert pictures == {"dormancy", "dormancy_heatmap", "dormancy_evolution", "transitions", "thresholds"}
    call("report", path)
    page = (path.parent / "report.html").read_text()
    for name in ("checkpoints", "units", "dormant by redo", "dead", "dormant by lop", "came back"):
        assert f"<dt>{name}</dt>" in page
    assert page.count("<img ") == 5
    assert "neurolens export dormancy" in page

    log = tmp_path / "log.csv"
    call("export", "dormancy", path, log, "--tau", "0.5", "--model", "digits")
    lines = list(csv.DictReader(log.read_text().splitlines()))
    assert len(lines) == 3 * 3
    summary = neurolens.dormancy_summary(opened(path), "redo", tau=0.5)
    counts = summary["n_dormant"].transpose("epoch", "layer").values.ravel().tolist()
    assert [int(line["num_dormant"]) for line in lines] == counts
    call("export", "dormancy", path, log, "--tau", "0.1", "--model", "digits")
    call("export", "dormancy", path, log, "--tau", "0.1", "--model", "digits")
    assert len(log.read_text().splitlines()) == 1 + 2 * 9

    other = tmp_path / "other.icechunk"
    assert "3 rows adopted" in call("import", "dormancy", log, "--store", other)
    adopted = neurolens.dormancy_summary(xr.open_dataset(other, group="dormancy", engine="neurolens"))
    np.testing.assert_array_equal(adopted["n_dormant"].sel(log="digits at 0.5").values.ravel(), counts)
    call("plot", other, "--out", tmp_path / "pictures")
    pictures = {p.stem for p in (tmp_path / "pictures").glob("*.png")}
    assert "log_dormancy" in pictures
    assert "log_digits_at_0.5_dormancy_heatmap" in pictures
    call("report", other, "--out", tmp_path / "other.html")
    page = (tmp_path / "other.html").read_text()
    assert "digits at 0.5, step 2" in page
    assert page.count("<img ") == 5
    assert "dormancy: 3 steps" in call("show", other)


def test_run__computes_one_row_for_one_new_checkpoint(make_study, prefect_server):
    path = measured(make_study(checkpoints=3, text=UNITS))
    conftest.write_checkpoint(path.parent, 7)
    assert "1 rows computed, 3 up to date, 0 failed" in call("run", path, "--only", "units")
    assert opened(path)["epoch"].values.tolist() == [0, 1, 2, 7]


def test_run__starts_anew_where_other_layers_are_asked_for(make_study, prefect_server):
    path = measured(make_study(checkpoints=2, text=UNITS))
    other = ("--set", "units.layers=['relu#2']")
    plan = json.loads(call("status", path, *other, "--json"))[0]
    assert plan["change"]
    assert {row["state"] for row in plan["rows"]} == {"missing"}
    assert "2 rows computed, 0 up to date" in call("run", path, *other)
    assert dict(opened(path).sizes)["unit"] == 32
    assert set(opened(path)["layer"].values.tolist()) == {"relu#2"}


def test_run__measures_only_a_part_that_is_new(make_study, prefect_server):
    path = measured(make_study(checkpoints=2, text=UNITS))
    before = opened(path).abs_sum.load()
    status = json.loads(call("status", path, "--set", "units.abs_dev=true", "--json"))[0]
    assert {tuple(row["missing"]) for row in status["rows"]} == {("abs_dev",)}
    assert "2 rows computed" in call("run", path, "--set", "units.abs_dev=true")
    after = opened(path)
    assert np.isfinite(after["abs_dev"]).all()
    xr.testing.assert_identical(after.abs_sum.load().drop_attrs(), before.drop_attrs())


def test_refresh__runs_every_cube_that_a_study_names(make_study, prefect_server):
    from neurolens.flows.refresh import refresh

    text = UNITS.replace("classes = true\n", "[activations]\n")
    study = load_study(make_study(checkpoints=2, text=text))
    assert rows.cubes(study) == ("units", "activations")
    state = refresh(study=study, return_state=True)
    assert state.is_completed(), state.message
    assert "units: 2 rows computed" in state.message
    assert "activations: 2 rows computed" in state.message
    assert refresh(study=study, return_state=True).message.count("0 rows computed, 2 up to date") == 2
    assert Path(f"{study.store.url}.html").exists()


def test_key_figures__give_the_share_of_dormant_units_at_the_last_checkpoints(make_study):
    from neurolens.flows.figures import key_figures

    path = measured(make_study(checkpoints=7, text=UNITS))
    study = load_study(path)
    text = key_figures(study, rows.plan(rows.gather(study, "units"), rows.open_for_reading(study)), "done")
    assert "| epoch | redo ≤ 0.025 | dead | lop < 0.01 |" in text
    lines = re.findall(r"^\| (\d+) \| ([\d.]+)% \|", text, re.M)
    assert [int(position) for position, _ in lines] == [2, 3, 4, 5, 6]
    share = neurolens.dormancy_summary(opened(path))["pooled_fraction"].values[2:]
    np.testing.assert_allclose([float(value) for _, value in lines], 100 * share, atol=0.005)


def test_plot__draws_samples_units_and_activations_of_one_store(make_study):
    path = measured(make_study(checkpoints=2, text=conftest.STUDY + "[units]\n[activations]\n"))
    call("plot", path)
    pictures = {p.stem for p in (path.parent / "plots").glob("*.png")}
    assert {"distributions", "trajectories", "dormancy", "transitions", "spectra"} <= pictures


def test_commands__serve_a_language_model(language_run, tmp_path):
    text = language_run.study("[units]\npositions = true\n[activations]\n")
    path = tmp_path / "study.toml"
    path.write_text(re.sub(r'"(model|checkpoints|tides.txt)"', rf'"{language_run.folder}/\1"', text))
    measured(path)
    call("plot", path)
    pictures = {p.stem for p in (path.parent / "plots").glob("*.png")}
    assert {"dormancy", "dormancy_heatmap", "transitions", "thresholds", "spectra"} <= pictures
    call("report", path)
    page = (path.parent / "report.html").read_text()
    assert '<dd class="value">6</dd><dd class="meaning">step 0 to 16</dd>' in page
    assert "There are no images" not in page
    call("export", "dormancy", path, tmp_path / "log.csv", "--revision", "step{step}")
    lines = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [line["revision"] for line in lines[::3]] == [f"step{step}" for step in language_run.steps]
    assert "0 rows computed, 12 up to date" in call("run", path)


def test_plot__sets_external_scores_against_samples_only(make_study, tmp_path):
    path = measured(make_study(checkpoints=2, text=UNITS))
    np.save(tmp_path / "score.npy", np.zeros(24))
    done = CliRunner().invoke(app, ["plot", str(path), "--external", str(tmp_path / "score.npy")])
    assert done.exit_code == 2
    assert "--external is set against scores of samples" in done.stderr.replace("\n", " ")


def test_templates__are_all_named_by_the_help():
    assert tuple(templates()) == tuple(TEMPLATES)


@pytest.mark.parametrize("name", sorted(templates()))
def test_templates__name_units(name):
    assert "[units]" in (Path(neurolens.__file__).parent / "templates" / f"{name}.toml").read_text()


def test_status__says_once_what_is_to_be_said_of_the_checkpoints(make_study):
    path = make_study(checkpoints=3, text=conftest.STUDY + "\n[units]\n[activations]\n")
    (path.parent / "checkpoints" / "epoch_9.pt.tmp").write_text("half")
    printed = call("status", path)
    for cube in ("samples", "units", "activations"):
        assert cube in printed
    assert printed.count("epoch_9.pt.tmp") == 1
    assert printed.count("3 of 3 checkpoints") == 1


def test_nothing_to_do__opens_data_checkpoints_and_network_once(make_study, monkeypatch):
    path = measured(make_study(checkpoints=2, text=conftest.STUDY + "\n[units]\n[activations]\n"))
    counts = collections.Counter()

    def counting(module, name):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (counts.update([name]), real(*a, **k))[1])

    counting(data, "study_samples")
    counting(models, "build")
    counting(checkpoints, "discover")
    done = running.nothing_to_do(load_study(path), ("samples", "units", "activations"))
    assert done.reused == 6
    assert counts == {"study_samples": 1, "build": 1, "discover": 1}


def test_nothing_to_do__does_not_import_lightning(make_study):
    path = make_study(text=conftest.STUDY + "\n[train]\nepochs = 1\n", checkpoints=0)
    train(load_study(path), progress=False)
    code = (
        "import sys; from neurolens.cli.running import nothing_to_do; from neurolens.study import load_study;"
        f"done = nothing_to_do(load_study({str(path)!r}), ('train',));"
        "print(done.epochs, 'lightning' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["0", "False"]
