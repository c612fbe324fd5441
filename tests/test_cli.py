import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import conftest
import numpy as np
import pytest
import xarray as xr
from rich.console import Console
from rich.progress import Progress
from typer.testing import CliRunner, Result

from neurolens import rows
from neurolens.checkpoint_files import spans
from neurolens.cli import app
from neurolens.cli.watching import columns
from neurolens.data import make_concepts
from neurolens.study import load_study

MakeStudy = Callable[..., Path]


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200", "TERM": "dumb"})


def measured(path: Path) -> Path:
    study = load_study(path)
    materials = rows.gather(study)
    rows.run_rows(materials, rows.plan(materials, None).todo, rows.open_for_writing(study))
    return path


def test_neurolens__lists_its_commands_without_heavy_imports() -> None:
    code = (
        "import sys; from neurolens.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'prefect', 'xarray', 'zarr', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commands = (
        "init",
        "run",
        "demo",
        "status",
        "show",
        "plot",
        "report",
        "tag",
        "export",
        "import",
        "doctor",
        "maintain",
    )
    for command in commands:
        assert command in done.stdout


def test_run__computes_then_computes_nothing(make_study: MakeStudy, prefect_server: None) -> None:
    path = make_study(checkpoints=3)
    first = call("run", path)
    assert first.exit_code == 0, first.output
    assert "3 rows computed, 0 up to date, 0 failed" in first.output
    again = call("run", path)
    assert again.exit_code == 0, again.output
    assert "0 rows computed, 3 up to date, 0 failed" in again.output


def test_run__exits_with_1_and_the_reason_where_a_row_failed(make_study: MakeStudy, prefect_server: None) -> None:
    path = make_study(checkpoints=3)
    (path.parent / "checkpoints" / "epoch_1.pt").write_text("nothing")
    for computed, done in ((2, 0), (0, 2)):
        result = call("run", path)
        assert result.exit_code == 1
        assert f"{computed} rows computed, {done} up to date, 1 failed" in result.output
        assert "epoch_1.pt" in result.stderr
        assert "Traceback" not in result.output


def test_run__needs_no_prefect_where_nothing_is_to_be_done(make_study: MakeStudy) -> None:
    path = measured(make_study())
    code = (
        "import sys; from neurolens.cli import app\n"
        "try: app(['run', sys.argv[1]])\n"
        "except SystemExit as end: assert not end.code\n"
        "sys.exit('a server was imported' if 'prefect.server.api.server' in sys.modules else 0)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "0 rows computed, 3 up to date" in done.stdout


def test_run__names_the_nearest_flow(make_study: MakeStudy) -> None:
    result = call("run", make_study(), "--only", "sample")
    assert result.exit_code == 2
    assert "did you mean 'samples'" in result.stderr


@pytest.mark.parametrize("command", ["run", "status"])
def test_run__tells_of_a_wrong_key_in_one_message(make_study: MakeStudy, command: str) -> None:
    path = make_study()
    path.write_text(path.read_text().replace("[samples]", "[samples]\ngradient = true"))
    result = call(command, path)
    assert result.exit_code == 2
    assert "gradients" in result.stderr
    assert "Traceback" not in result.output


def test_run__tells_of_an_empty_folder(make_study: MakeStudy) -> None:
    path = make_study(checkpoints=0)
    (path.parent / "checkpoints").mkdir()
    result = call("run", path)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert str(path.parent / "checkpoints") in result.stderr


def test_run__tells_of_a_store_it_may_not_write(make_study: MakeStudy, prefect_server: None) -> None:
    path = measured(make_study())
    conftest.write_checkpoint(path.parent, 9)
    store = path.parent / "store.icechunk"
    before = {p: p.read_bytes() for p in store.rglob("*") if p.is_file() and p.suffix != ".lock"}
    if os.geteuid() == 0:
        overrides = ("--set", "store.url=/proc/store.icechunk")
        result = call("run", path, *overrides)
    else:
        store.chmod(stat.S_IRUSR | stat.S_IXUSR)
        result = call("run", path)
        store.chmod(stat.S_IRWXU)
    assert result.exit_code == 2, result.output
    assert "store.icechunk" in result.stderr
    assert "Traceback" not in result.output
    assert {p: p.read_bytes() for p in store.rglob("*") if p.is_file() and p.suffix != ".lock"} == before


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"PREFECT_API_URL": "http://127.0.0.1:9/api"}, "no Prefect server answers at http://127.0.0.1:9/api"),
        ({"PREFECT_SERVER_EPHEMERAL_ENABLED": "false"}, "PREFECT_SERVER_EPHEMERAL_ENABLED forbids"),
    ],
)
def test_run__tells_of_a_server_that_it_cannot_use(make_study: MakeStudy, given: dict[str, str], says: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"} | given
    command = [sys.executable, "-m", "neurolens.cli", "run", str(make_study(checkpoints=1))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_live_console__is_plain_where_stdout_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    code = (
        "from neurolens.cli.watching import Watch\n"
        "watch = Watch()\n"
        "with watch.progress, watch.console.status('starting'):\n"
        "    for epoch in range(3):\n        watch.trained(epoch + 1, 3, {'train_loss': 1.0})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "train" in done.stdout
    assert "3/3" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("width", [32, 48, 60, 80, 120])
def test_columns__keep_names_whole(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    progress = Progress(*columns(width), console=console)
    with progress:
        bar = progress.add_task("samples", total=4000, note="loss 0.123  accuracy 0.992")
        progress.update(bar, completed=3999)
    (line,) = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert line.startswith("samples ")
    assert "3999/4000" in line
    assert ("accuracy 0.992" in line) == (width >= 80)


def test_run__shows_the_traceback_on_request(make_study: MakeStudy) -> None:
    result = call("--debug", "run", make_study(), "--only", "sample")
    assert result.exception is not None
    assert "no flow" in str(result.exception)


def test_neurolens__tells_of_what_the_system_refuses_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "study.toml")

    monkeypatch.setattr("neurolens.study_files.init_study", full)
    result = call("init", "study.toml")
    assert result.exit_code == 2
    assert "No space left on device: 'study.toml'" in result.output
    assert "Traceback" not in result.output


def test_status__shows_every_state_and_why(make_study: MakeStudy) -> None:
    path = make_study(checkpoints=4)
    (path.parent / "checkpoints" / "epoch_2.pt").write_text("nothing")
    measured(path)
    conftest.write_checkpoint(path.parent, 1, seed=9)
    conftest.write_checkpoint(path.parent, 7)
    result = call("status", path)
    assert result.exit_code == 0, result.output
    for text in ("epoch 0, 3", "done", "epoch 1", "stale", "epoch 2", "failed", "epoch 7", "missing", "epoch_2.pt"):
        assert text in result.output
    assert "the checkpoint file changed" in result.output
    changed = call("status", path, "--set", "samples.bf16=true")
    assert "the network, a setting or the measurement's version changed" in changed.output
    narrow = CliRunner().invoke(app, ["status", str(path)], env={"COLUMNS": "80", "TERM": "dumb"})
    assert "…" not in narrow.output
    plans = json.loads(call("status", path, "--json").output)
    states = {row["position"]: row["state"] for row in plans[0]["rows"]}
    assert states == {0: "done", 1: "stale", 2: "failed", 3: "done", 7: "missing"}


def test_status__does_not_need_a_store(make_study: MakeStudy) -> None:
    path = make_study()
    result = call("status", path)
    assert result.exit_code == 0, result.output
    assert "missing" in result.output
    assert not (path.parent / "store.icechunk").exists()


def test_show__lists_variables_provenance_and_history(make_study: MakeStudy) -> None:
    path = measured(make_study())
    call("tag", path, "first")
    for run in (path, load_study(path).store.url):
        result = call("show", run)
        assert result.exit_code == 0, result.output
        for text in ("grad_norm", "digits_convnet", "torch", "epoch 2", "first", "open_run"):
            assert text in result.output


def test_show__tells_of_a_store_that_is_not_there(tmp_path: Path) -> None:
    result = call("show", tmp_path / "none")
    assert result.exit_code == 2
    assert "there is no store" in result.stderr


def test_commands__tell_a_study_from_a_store(make_study: MakeStudy) -> None:
    path = measured(make_study())
    store = load_study(path).store.url
    for words, says in (
        (("status", store), "is a store, and the file of a study was needed"),
        (("run", "s3://bucket/run"), "is a store, and the file of a study was needed"),
        (("show", path.parent), f"name the study in it: {path}"),
        (("show", store, "--profile", "quick"), "--profile goes with a study file"),
        (("plot", store, "--profile", "quick"), "--profile goes with a study file"),
        (("run", path, "--only", ""), "there is no flow ''"),
    ):
        result = call(*words)
        assert result.exit_code == 2, result.output
        assert says in result.stderr.replace("\n", " ")


@pytest.mark.parametrize("command", [("show",), ("doctor",), ("maintain",), ("tag", "v1"), ("export", "zarr", "out")])
def test_commands__take_the_store_of_a_profile(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    path = make_study(checkpoints=0)
    path.write_text(path.read_text() + '[profiles.quick.store]\nurl = "quick.icechunk"\n')
    monkeypatch.chdir(path.parent)
    words = [*command[:2], path, command[2]] if command[0] == "export" else [command[0], path, *command[1:]]
    result = call(*words, "--profile", "quick")
    assert result.exit_code == 2
    assert "quick.icechunk" in result.output


def test_help__loses_no_word_to_markup_and_names_every_template() -> None:
    from neurolens.study_files import templates

    assert "study's profiles" in call("run", "--help").output
    assert all(name in " ".join(call("init", "--help").output.split()) for name in templates())


def test_init__writes_a_study_that_loads(tmp_path: Path) -> None:
    path = tmp_path / "new" / "study.toml"
    path.parent.mkdir()
    assert call("init", path, "--template", "cifar100").exit_code == 0
    load_study(path)
    result = call("init", tmp_path / "other.toml", "--template", "cifar")
    assert result.exit_code == 2
    assert "cifar10" in result.stderr


def test_plot_and_report__write_files(make_study: MakeStudy) -> None:
    path = measured(make_study(samples=40))
    result = call("plot", path)
    assert result.exit_code == 0, result.output
    assert list((path.parent / "plots").glob("*.png"))
    result = call("report", path)
    assert result.exit_code == 0, result.output
    assert "<html" in (path.parent / "report.html").read_text()


def test_plot__tells_that_nothing_was_measured(make_study: MakeStudy) -> None:
    result = call("plot", make_study())
    assert result.exit_code == 2
    assert "neurolens run" in result.stderr


def test_export_zarr__is_opened_by_xarray_alone(make_study: MakeStudy, tmp_path: Path) -> None:
    path = measured(make_study())
    result = call("export", "zarr", path, tmp_path / "out.zarr")
    assert result.exit_code == 0, result.output
    plain = xr.open_dataset(tmp_path / "out.zarr", group="samples", engine="zarr", chunks={})
    np.testing.assert_array_equal(plain.loss, opened(path).loss)


def opened(path: Path) -> xr.Dataset:
    return xr.open_dataset(load_study(path).store.url, group="samples", engine="neurolens", chunks={})


def test_import_samples__adopts_what_export_and_the_reference_wrote(make_study: MakeStudy, tmp_path: Path) -> None:
    path = make_study(checkpoints=0)
    source = tmp_path / "scores"
    source.mkdir()
    drawn = np.random.default_rng(0)
    losses = {epoch: drawn.random(24, np.float32) for epoch in (0, 1, 3)}
    for epoch, loss in losses.items():
        np.save(source / f"loss_toy_run1_epoch_{epoch}_noise_0.01.npy", loss)
        np.save(source / f"loss_grad_toy_run1_epoch_{epoch}_noise_0.01.npy", loss * 2)
    words = ("import", "samples", source, "--study", path, "--dataset", "toy")
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "3 rows adopted, 0 there already" in result.output
    assert "0 rows adopted, 3 there already" in call(*words).output
    ds = opened(path).load()
    assert ds.epoch.values.tolist() == [0, 1, 3]
    by_position = ds.sortby("position")
    np.testing.assert_array_equal(by_position.loss.values, np.stack(list(losses.values())))
    np.testing.assert_array_equal(by_position.grad_norm.values, 2 * np.stack(list(losses.values())))
    out = tmp_path / "out"
    result = call("export", "csl", path, out, "--dataset", "toy")
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(np.load(out / "csl_toy_run1_noise_0.01.npy"), sum(losses.values()), rtol=1e-6)


def test_export_csl__drops_a_failed_epoch_when_told(make_study: MakeStudy, tmp_path: Path) -> None:
    path = make_study()
    (path.parent / "checkpoints" / "epoch_1.pt").write_text("nothing")
    study = load_study(path)
    materials, store = rows.gather(study), rows.open_for_writing(study)
    rows.run_rows(materials, rows.plan(materials, store).todo, store)
    result = call("export", "csl", path, tmp_path / "out")
    assert result.exit_code == 2
    assert "epoch 1" in result.stderr
    assert "'drop'" in call("export", "csl", path, tmp_path / "out", "--missing", "dorp").stderr
    result = call("export", "csl", path, tmp_path / "out", "--missing", "drop", "--dataset", "toy")
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "out" / "metrics_toy_run1_noise_0.01.json").read_text())
    assert metrics["kept_epochs"] == [0, 2]


def test_import_samples__refuses_other_data(make_study: MakeStudy, tmp_path: Path) -> None:
    np.save(tmp_path / "loss_toy_epoch_0.npy", np.ones(5, np.float32))
    result = call("import", "samples", tmp_path, "--study", make_study(checkpoints=0), "--dataset", "toy")
    assert result.exit_code == 2
    assert "24 samples" in result.stderr


def test_doctor_and_maintain__look_after_a_store(make_study: MakeStudy) -> None:
    path = measured(make_study())
    result = call("doctor", path)
    assert result.exit_code == 0, result.output
    assert "locks" in result.output
    result = call("maintain", path)
    assert result.exit_code == 0, result.output
    assert "tiles built" in result.output


def test_demo__ends_with_a_summary_and_computes_nothing_again(
    tmp_path: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "demo"
    studies = {
        folder: ("digits", 20, 2),
        folder / "shapes": ("shapes", 20, 1),
        folder / "clusters": ("digits-clusters", 12, 1),
    }
    for path, (template, written, epochs) in studies.items():
        assert call("init", path / "study.toml", "--template", template).exit_code == 0
        text = (path / "study.toml").read_text().replace(f"epochs = {written}", f"epochs = {epochs}", 1)
        (path / "study.toml").write_text(text.replace("images = 60", "images = 8"))
    make_concepts(folder / "shapes" / "shapes", n=30, size=32)
    result = call("demo", folder)
    assert result.exit_code == 0, result.output
    # 9 rows of digits; samples, units and concepts of shapes; samples, clusters and attributions of clusters
    assert "4 epochs trained, 21 rows computed" in result.output
    for name in ("study.toml", "store.icechunk", "plots", "report.html", "layers", "export dormancy", "n.spectra"):
        assert name in result.output
    for name in ("neurolens gallery", "n.concept_events", "export attributions", "n.filtered_summary"):
        assert name in result.output
    assert {"distributions", "dormancy", "spectra"} <= {p.stem for p in (folder / "plots").glob("*.png")}
    drawn = {p.stem for p in (folder / "shapes" / "plots").glob("*.png")}
    assert {"concept_lifelines", "concept_detectors", "unit_galleries"} <= drawn
    assert (folder / "shapes" / "report.html").exists()
    assert (folder / "clusters" / "report.html").exists()
    result = call("demo", folder)
    assert result.exit_code == 0, result.output
    assert "0 rows computed, 21 up to date" in result.output
    assert "drawing" not in result.output


@pytest.mark.parametrize(
    ("positions", "text"),
    [([3], "3"), ([0, 1, 2], "0–2"), ([0, 1, 5], "0–1, 5"), ([0, 10, 20, 30], "0, 10, …, 30"), ([], "")],
)
def test_spans__is_short(positions: list[int], text: str) -> None:
    assert spans(positions) == text
