"""Studies of several seeds: what each is made of, and that everything that takes a study takes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from neurolens import open_run, rows
from neurolens.cli import app
from neurolens.errors import MissingCheckpointError, StudyError
from neurolens.study import Study, load_study
from neurolens.study.seeds import each_seed, one_run, require_checkpoints
from neurolens.training import train

MakeStudy = Callable[..., Path]


def study(**changes: object) -> Study:
    return Study.model_validate({"name": "s", "seeds": [0, 7], "train": {"seed": 3}, **changes})


def test_each_seed__has_a_name_checkpoints_and_a_store_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('name = "shapes"\nseeds = [2, 0]\n[train]\nlr = 0.5\n[samples]\ncurvature = true\n')
    whole = load_study(path)
    two, zero = each_seed(whole)
    assert (two.name, zero.name) == ("shapes-seed2", "shapes-seed0")
    assert two.train is not None
    assert (two.train.seed, two.train.lr) == (2, 0.5)
    assert two.checkpoints.folder == tmp_path / "checkpoints" / "seed-2"
    assert zero.store.url == str(tmp_path / "store-seed-0.icechunk")
    assert two.seeds == ()
    assert (two.samples, two.data, two.model) == (whole.samples, whole.data, whole.model)
    assert each_seed(two) == (two,)


def test_each_seed__of_a_study_without_seeds_is_itself() -> None:
    alone = study(seeds=[])
    assert each_seed(alone) == (alone,)
    assert one_run(alone) is alone


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/runs/a.icechunk", "s3://bucket/runs/a-seed-7.icechunk"),
        ("s3://bucket/runs.old/a", "s3://bucket/runs.old/a-seed-7"),
        ("s3://bucket/runs/", "s3://bucket/runs-seed-7"),
        ("s3://bucket.eu", "s3://bucket.eu/seed-7"),
        ("/data/runs.old/store", "/data/runs.old/store-seed-7"),
        ("/data/store.icechunk/", "/data/store-seed-7.icechunk"),
    ],
)
def test_each_seed__puts_the_seed_before_the_suffix_of_the_store(url: str, expected: str) -> None:
    assert each_seed(study(store={"url": url}))[1].store.url == expected


@given(st.lists(st.integers(0, 10**6), min_size=1, unique=True))
def test_each_seed__shares_no_place(seeds: list[int]) -> None:
    found = each_seed(study(seeds=seeds))
    assert [one.train.seed for one in found if one.train] == seeds
    for places in ({one.store.url for one in found}, {one.checkpoints.folder for one in found}):
        assert len(places) == len(seeds)


def test_one_run__names_the_seed_that_is_missing() -> None:
    assert one_run(study(), 7) == each_seed(study())[1]
    with pytest.raises(StudyError, match=r"seeds 0, 7, .*name it with --seed 0, .*, or name its store: store-seed-0"):
        one_run(study())
    with pytest.raises(StudyError, match="no seed 3; name one of those"):
        one_run(study(), 3)
    with pytest.raises(StudyError, match=r"lists no seeds, .* add seeds = \[3\]"):
        one_run(study(seeds=[]), 3)


def test_rows_and_training__take_one_run() -> None:
    several = study(samples={})
    for take in (rows.gather, train):
        with pytest.raises(StudyError, match=r"seeds 0, 7, each .*one_run\(study, 0\)"):
            take(several)


def test_require_checkpoints__names_the_folders_that_a_study_without_train_needs(tmp_path: Path) -> None:
    reading = study(train=None, checkpoints={"folder": str(tmp_path)})
    (tmp_path / "seed-0").mkdir()
    with pytest.raises(MissingCheckpointError, match=r"seeds 0, 7 and has no \[train\] table.*seed-7; put") as raised:
        require_checkpoints(reading)
    assert "seed-0" not in str(raised.value).partition("there is no")[2].partition(";")[0]
    (tmp_path / "seed-7").mkdir()
    require_checkpoints(reading)
    require_checkpoints(study())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, 2, 1]}, "seeds lists 1 more than once"),
        ({"seeds": [-1]}, "greater than or equal to 0"),
        ({"train": None, "checkpoints": {"files": [{"path": "a.pt", "epoch": 0}]}}, "checkpoints.files names"),
        ({"train": None, "checkpoints": {"revisions": "step{step}", "pattern": "{step}"}}, "checkpoints.revisions"),
    ],
)
def test_seeds__that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(**changes)


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200", "TERM": "dumb"})


SEEDED = conftest.STUDY.replace('name = "tiny"\n', 'name = "tiny"\nseeds = [0, 4]\n')


@pytest.fixture
def seeded(make_study: MakeStudy) -> Path:
    """A study of two seeds: two checkpoints of one, one of the other."""
    path = make_study(checkpoints=0, text=SEEDED)
    for seed, epochs in ((0, 2), (4, 1)):
        for epoch in range(epochs):
            written = conftest.write_checkpoint(path.parent, epoch, seed=10 * seed + epoch)
            target = written.parent / f"seed-{seed}" / written.name
            target.parent.mkdir(exist_ok=True)
            written.rename(target)
    return path


def measure(path: Path) -> Path:
    for one in each_seed(load_study(path)):
        materials = rows.gather(one)
        rows.run_rows(materials, rows.plan(materials, None).todo, rows.open_for_writing(one))
    return path


def test_run__brings_every_seed_up_to_date(seeded: Path, prefect_server: None) -> None:
    first = call("run", seeded)
    assert first.exit_code == 0, first.output
    assert "3 rows computed, 0 up to date, 0 failed" in first.output
    for seed in (0, 4):
        store = seeded.parent / f"store-seed-{seed}.icechunk"
        assert f"store: {store}" in first.output
        assert open_run(store)["samples"].attrs["run"] == f"tiny-seed{seed}"
    losses = [open_run(seeded.parent / f"store-seed-{s}.icechunk")["samples"]["loss"].values[0] for s in (0, 4)]
    assert not np.array_equal(*losses)
    assert not (seeded.parent / "store.icechunk").exists()
    again = call("run", seeded)
    assert "0 rows computed, 3 up to date, 0 failed" in again.output
    assert "0 rows computed, 1 up to date, 0 failed" in call("run", seeded, "--seed", 4).output


def test_run__of_a_seed_that_fails_goes_on_with_the_others(seeded: Path, prefect_server: None) -> None:
    (seeded.parent / "checkpoints" / "seed-0" / "epoch_1.pt").write_text("nothing")
    result = call("run", seeded)
    assert result.exit_code == 1
    assert "2 rows computed, 0 up to date, 1 failed" in result.output
    assert "tiny-seed0 epoch_1.pt" in result.stderr


def test_run__trains_each_seed(make_study: MakeStudy, prefect_server: None) -> None:
    text = SEEDED + "[train]\nepochs = 1\nbatch_size = 24\nlr = 0.01\n"
    path = make_study(checkpoints=0, text=text)
    assert "none yet" in call("status", path).output
    result = call("run", path)
    assert result.exit_code == 0, result.output
    assert "2 epochs trained, 4 rows computed" in result.output
    first, second = (path.parent / "checkpoints" / f"seed-{s}" / "epoch_0.pt" for s in (0, 4))
    assert first.read_bytes() != second.read_bytes()


def test_refresh__goes_through_the_seeds(seeded: Path, prefect_server: None) -> None:
    from neurolens.flows.refresh import refresh

    (seeded.parent / "checkpoints" / "seed-0" / "epoch_1.pt").write_text("nothing")
    state: Any = refresh(file=str(seeded), return_state=True)
    assert state.is_failed()
    assert "tiny-seed0: samples: 1 rows computed" in state.message
    assert "tiny-seed4: samples: 1 rows computed, 0 up to date, 0 failed" in state.message
    conftest.write_checkpoint(seeded.parent, 1).replace(seeded.parent / "checkpoints" / "seed-0" / "epoch_1.pt")
    assert refresh(file=str(seeded)) == [one.store.url for one in each_seed(load_study(seeded))]
    assert (seeded.parent / "store-seed-4.icechunk.html").exists()


def test_status__tells_once_what_is_the_same_in_several_seeds(seeded: Path) -> None:
    shown = call("status", seeded)
    assert shown.exit_code == 0, shown.output
    assert "store-seed-4.icechunk" in shown.output
    assert f"to do: neurolens run {seeded}" in shown.output
    (seeded.parent / "checkpoints" / "seed-0" / "epoch_1.pt").unlink()
    measure(seeded)
    lines = [line for line in call("status", seeded).output.splitlines() if " done " in line]
    assert len(lines) == 1
    assert lines[0].split()[:5] == ["0,", "4", "samples", "epoch", "0"]
    told = json.loads(call("status", seeded, "--json").output)
    assert [plan["run"] for plan in told] == ["tiny-seed0", "tiny-seed4"]
    assert "seeds" not in call("status", seeded, "--seed", 4).output


@pytest.mark.parametrize(
    "words", [("show",), ("plot",), ("report",), ("tag", "v1"), ("doctor",), ("maintain",), ("export", "zarr", "out")]
)
def test_commands_about_one_run__say_that_a_seed_is_missing(seeded: Path, words: tuple[str, ...]) -> None:
    at = 2 if words[0] == "export" else 1
    result = call(*words[:at], seeded, *words[at:])
    assert result.exit_code == 2
    assert "name it with --seed 0" in result.stderr
    unknown = call(*words[:at], seeded, *words[at:], "--seed", 1)
    assert "lists seeds 0, 4, and no seed 1" in unknown.stderr


def test_commands_about_one_run__take_a_seed(seeded: Path) -> None:
    measure(seeded)
    assert "tiny-seed4" in call("show", seeded, "--seed", 4).output
    assert call("plot", seeded, "--seed", 0).exit_code == 0
    assert list((seeded.parent / "plots-seed-0").glob("*.png"))
    assert call("report", seeded, "--seed", 0).exit_code == 0
    assert (seeded.parent / "report-seed-0.html").exists()
    store = seeded.parent / "store-seed-0.icechunk"
    assert "--seed goes with a study file" in call("show", store, "--seed", 0).stderr


def test_run__says_where_checkpoints_of_seeds_are_expected(seeded: Path) -> None:
    (seeded.parent / "checkpoints" / "seed-4" / "epoch_0.pt").unlink()
    (seeded.parent / "checkpoints" / "seed-4").rmdir()
    for command in ("run", "status"):
        result = call(command, seeded)
        assert result.exit_code == 2
        assert str(seeded.parent / "checkpoints" / "seed-4") in result.stderr
