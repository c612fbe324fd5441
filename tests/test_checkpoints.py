import json
import os
import threading
import time
from pathlib import Path

import pytest

from neurolens import checkpoints, fingerprints
from neurolens.checkpoints import discover
from neurolens.errors import CheckpointError, MissingCheckpointError, StudyError
from neurolens.study import CheckpointFile, Checkpoints


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "_memo", {})
    monkeypatch.setattr(fingerprints, "_loaded", set())
    monkeypatch.setattr(fingerprints, "SETTLED_SECONDS", -1.0)


def folder(tmp_path: Path, *names: str) -> Path:
    made = tmp_path / "run"
    for name in names:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(name)
    made.mkdir(exist_ok=True)
    return made


def found(series: checkpoints.Series) -> list[tuple[int | None, int | None, str]]:
    return [(c.epoch, c.step, c.path.name) for c in series.checkpoints]


@pytest.mark.parametrize(
    ("pattern", "names", "expected"),
    [
        ("epoch_{epoch}.pt", ["epoch_10.pt", "epoch_9.pt"], [(9, None), (10, None)]),
        ("epoch_{epoch:03d}.pt", ["epoch_010.pt", "epoch_009.pt"], [(9, None), (10, None)]),
        ("index-{index}_epoch-{epoch}.pt", ["index-3_epoch-200.pt", "index-3_epoch-0.pt"], [(0, None), (200, None)]),
        ("checkpoint_index-{index}_epoch-{epoch}.pt", ["checkpoint_index-1_epoch-5.pt"], [(5, None)]),
        (
            "cifar100_resnet18_noisy_idx_{run}_epoch_{epoch}_noise_{noise}.ckpt",
            ["cifar100_resnet18_noisy_idx_1_epoch_7_noise_0.01.ckpt"],
            [(7, None)],
        ),
        ("epoch_{epoch}_iter_{step}.pt", ["epoch_1_iter_200.pt", "epoch_0_iter_100.pt"], [(0, 100), (1, 200)]),
        ("epoch={epoch}-step={step}.ckpt", ["epoch=3-step=40.ckpt", "epoch=1-step=20.ckpt"], [(1, 20), (3, 40)]),
        ("{name}-epoch={epoch}-val={val}.ckpt", ["a-b-epoch=3-val=0.12.ckpt"], [(3, None)]),
        ("step{step}/w.safetensors", ["step1000/w.safetensors", "step512/w.safetensors"], [(None, 512), (None, 1000)]),
        ("run_{run}/run_{run}_epoch_{epoch}.pt", ["run_a/run_a_epoch_1.pt", "run_b/run_a_epoch_2.pt"], [(1, None)]),
        ("{{{epoch}}}.pt", ["{4}.pt"], [(4, None)]),
    ],
)  # fmt: skip
def test_discover__reads_epoch_and_step_from_names(tmp_path, pattern, names, expected):
    series = discover(Checkpoints(folder=folder(tmp_path, *names), pattern=pattern))
    assert [(c.epoch, c.step) for c in series.checkpoints] == expected
    assert series.dim == ("step" if expected[0][0] is None else "epoch")


def test_discover__orders_by_number_and_says_that_names_do_not(tmp_path):
    series = discover(Checkpoints(folder=folder(tmp_path, *(f"epoch_{e}.pt" for e in range(12)))))
    assert series.positions == tuple(range(12))
    assert any("do not sort by name" in n for n in series.details)
    assert series.notes == ("kept 12 of 12 checkpoints: epochs 0–11",)


def test_discover__same_epoch_with_several_steps_is_a_step_series_with_epochs(tmp_path):
    names = ["epoch_0_iter_50.pt", "epoch_0_iter_100.pt", "epoch_1_iter_150.pt"]
    series = discover(Checkpoints(folder=folder(tmp_path, *names), pattern="epoch_{epoch}_iter_{step}.pt"))
    assert series.dim == "step"
    assert [(c.epoch, c.step) for c in series.checkpoints] == [(0, 50), (0, 100), (1, 150)]


def test_discover__series_can_be_declared(tmp_path):
    run = folder(tmp_path, "epoch_0_iter_50.pt", "epoch_1_iter_100.pt")
    table = Checkpoints(folder=run, pattern="epoch_{epoch}_iter_{step}.pt", series="step", start=60)
    assert discover(table).positions == (100,)


def test_discover__steps_within_an_epoch_are_refused(tmp_path):
    pattern = "epoch_{epoch}_iter_{step}.pt"
    names = ["epoch_0_iter_50.pt", "epoch_0_iter_100.pt", "epoch_1_iter_50.pt"]
    with pytest.raises(CheckpointError, match=r"both step 50.*counts from the start of training"):
        discover(Checkpoints(folder=folder(tmp_path, *names), pattern=pattern))
    run = folder(tmp_path / "b", "epoch_0_iter_50.pt", "epoch_0_iter_100.pt", "epoch_1_iter_60.pt")
    with pytest.raises(CheckpointError, match=r"smaller step but the larger epoch"):
        discover(Checkpoints(folder=run, pattern=pattern))


def test_discover__steps_that_do_not_grow_with_the_epoch_are_not_recorded(tmp_path):
    run = folder(tmp_path, "epoch_0_iter_500.pt", "epoch_1_iter_500.pt")
    series = discover(Checkpoints(folder=run, pattern="epoch_{epoch}_iter_{step}.pt"))
    assert [(c.epoch, c.step) for c in series.checkpoints] == [(0, None), (1, None)]
    assert any("steps are not recorded" in n for n in series.notes)


def test_discover__refuses_two_files_of_one_epoch_and_names_both(tmp_path):
    run = folder(tmp_path, "epoch_3.pt", "epoch_03.pt", "epoch_4.pt")
    with pytest.raises(CheckpointError, match=r"epoch_03\.pt' and .*epoch_3\.pt' are both epoch 3"):
        discover(Checkpoints(folder=run))


def test_discover__two_runs_in_one_folder_need_a_field(tmp_path):
    run = folder(tmp_path, *(f"index-{i}_epoch-{e}.pt" for i in (1, 2, 10) for e in (0, 1)))
    pattern = "index-{index}_epoch-{epoch}.pt"
    with pytest.raises(CheckpointError, match=r"are both epoch 0; choose one with checkpoints\.fields\.index"):
        discover(Checkpoints(folder=run, pattern=pattern))
    for wanted in (1, "1", 1.0):
        series = discover(Checkpoints(folder=run, pattern=pattern, fields={"index": wanted}))
        assert [c.path.name for c in series.checkpoints] == ["index-1_epoch-0.pt", "index-1_epoch-1.pt"]
        assert "files of other index passed over: 2, 10" in series.notes
    with pytest.raises(MissingCheckpointError, match=r"index = 3; found 1, 2, 10"):
        discover(Checkpoints(folder=run, pattern=pattern, fields={"index": 3}))


def test_discover__numbers_among_fields_compare_by_value(tmp_path):
    run = folder(tmp_path, "noise_0.10_epoch_0.pt", "noise_0.01_epoch_0.pt", "noise_none_epoch_0.pt")
    series = discover(Checkpoints(folder=run, pattern="noise_{noise}_epoch_{epoch}.pt", fields={"noise": 0.1}))
    assert [c.path.name for c in series.checkpoints] == ["noise_0.10_epoch_0.pt"]


def test_discover__selection_says_what_it_kept_and_skipped(tmp_path):
    run = folder(tmp_path, *(f"epoch_{e}.pt" for e in range(20)))
    series = discover(Checkpoints(folder=run, start=3, end=15, stride=4))
    assert series.positions == (3, 7, 11, 15)
    assert set(series.skipped) == set(range(20)) - {3, 7, 11, 15}
    assert series.notes[:4] == (
        "kept 4 of 20 checkpoints: epochs 3, 7, …, 15",
        "skipped 3 before start = 3: epochs 0–2",
        "skipped 4 after end = 15: epochs 16–19",
        "skipped 9 between strides of 4: epochs 4–6, 8–10, 12–14",
    )


def test_discover__stride_counts_from_the_first_epoch_found(tmp_path):
    run = folder(tmp_path, *(f"epoch_{e}.pt" for e in range(1, 8)))
    assert discover(Checkpoints(folder=run, stride=3)).positions == (1, 4, 7)


def test_discover__gaps_against_the_declared_range_are_reported(tmp_path):
    run = folder(tmp_path, *(f"epoch_{e}.pt" for e in (0, 200, 600, 700)))
    series = discover(Checkpoints(folder=run, expect=(0, 800), expect_every=200))
    assert series.gaps == (400, 800)
    assert "2 of the 5 declared epochs (0–800 by 200) have no file: 400, 800" in series.notes
    assert "outside the declared epochs (0–800 by 200): 700" in series.notes


def test_discover__passes_over_unfinished_files_folders_and_strangers(tmp_path):
    names = ["epoch_0.pt", ".epoch_1.pt", "epoch_2.pt.tmp", "epoch_3.pt.tmp.77", "epoch_best.pt", "epoch_5.pt/shard"]
    series = discover(Checkpoints(folder=folder(tmp_path, *names), pattern="epoch_{epoch}.pt"))
    assert series.positions == (0,)
    assert "unfinished files passed over: .epoch_1.pt, epoch_2.pt.tmp, epoch_3.pt.tmp.77" in series.notes
    assert (
        "folders passed over, a checkpoint is one file, or a folder with a config.json and weights: epoch_5.pt"
        in series.notes
    )
    assert "files that do not match 'epoch_{epoch}.pt' passed over: epoch_best.pt" in series.notes


def test_discover__training_s_own_files_are_not_mentioned(tmp_path):
    names = ["epoch_0.pt", ".resume.pt", ".train.lock", ".writing.tmp", "metrics.csv"]
    series = discover(Checkpoints(folder=folder(tmp_path, *names), pattern="epoch_{epoch}.pt"))
    assert series.notes == ("kept 1 of 1 checkpoints: epochs 0",)


def test_discover__unfinished_files_never_match_a_text_field(tmp_path):
    run = folder(tmp_path, "epoch_0.pt", "epoch_1.tmp")
    assert discover(Checkpoints(folder=run, pattern="epoch_{epoch}.{ending}")).positions == (0,)


def test_discover__a_number_beyond_int64_is_no_epoch(tmp_path):
    run = folder(tmp_path, "epoch_0.pt", "epoch_99999999999999999999.pt")
    assert discover(Checkpoints(folder=run)).positions == (0,)


def test_discover__empty_folder_says_what_to_do(tmp_path):
    with pytest.raises(MissingCheckpointError, match=r"is empty; 'epoch_\{epoch\}\.pt' was looked for; train first"):
        discover(Checkpoints(folder=folder(tmp_path)))


def test_discover__missing_folder_names_its_neighbours(tmp_path):
    run = folder(tmp_path)
    with pytest.raises(MissingCheckpointError, match=r"no folder '.*runs'.*did you mean 'run'.*checkpoints\.folder"):
        discover(Checkpoints(folder=run.with_name("runs")))


@pytest.mark.parametrize(
    ("there", "guess"),
    [
        ("epoch-12.pt", "epoch-{epoch}.pt"),
        ("Epoch 12.pth", "Epoch {epoch}.pth"),
        ("epoch=3-step=40.ckpt", "epoch={epoch}-step={step}.ckpt"),
        ("checkpoint_iter_40.pt", "checkpoint_iter_{step}.pt"),
    ],
)
def test_discover__nothing_matched_names_the_nearest_file_and_a_pattern(tmp_path, there, guess):
    with pytest.raises(MissingCheckpointError) as error:
        discover(Checkpoints(folder=folder(tmp_path, there)))
    for part in ("'epoch_{epoch}.pt'", str(tmp_path), repr(there), repr(guess)):
        assert part in str(error.value)


def test_discover__selection_that_leaves_nothing_says_what_was_there(tmp_path):
    run = folder(tmp_path, "epoch_0.pt", "epoch_1.pt")
    with pytest.raises(MissingCheckpointError, match=r"start = 5.*none of the 2 checkpoints found \(epochs 0–1\)"):
        discover(Checkpoints(folder=run, start=5))


def test_discover__unusable_patterns_are_refused(tmp_path):
    run = folder(tmp_path, "epoch_0.pt")
    with pytest.raises(StudyError, match="side by side"):
        discover(Checkpoints(folder=run, pattern="epoch_{epoch}{rest}.pt"))
    with pytest.raises(StudyError, match=r"cannot hold 'epoch'.*checkpoints\.start"):
        discover(Checkpoints(folder=run, fields={"epoch": 0}))


def test_discover__explicit_files_are_ordered_and_mixed_positions_refused(tmp_path):
    run = folder(tmp_path, "a", "b", "c")
    files = tuple(CheckpointFile(path=run / n, epoch=e) for n, e in (("a", 2), ("b", 0), ("c", 1)))
    series = discover(Checkpoints(files=files))
    assert [c.path.name for c in series.checkpoints] == ["b", "c", "a"]
    assert any("not listed in order" in n for n in series.notes)
    with pytest.raises(CheckpointError, match=r"'a' has no epoch.*never read as a step"):
        discover(Checkpoints(files=(CheckpointFile(path=run / "a", step=4), *files[1:])))
    with pytest.raises(CheckpointError, match="are both epoch 0"):
        discover(Checkpoints(files=(files[1], CheckpointFile(path=run / "c", epoch=0))))
    with pytest.raises(CheckpointError, match="listed twice"):
        discover(Checkpoints(files=(files[0], CheckpointFile(path=run / "a", epoch=9))))
    with pytest.raises(StudyError, match="negative"):
        discover(Checkpoints(files=(CheckpointFile(path=run / "a", epoch=-1),)))


def test_discover__missing_explicit_file_names_its_neighbours(tmp_path):
    run = folder(tmp_path, "first.pt")
    with pytest.raises(MissingCheckpointError, match=r"no file '.*firts\.pt'.*did you mean 'first\.pt'"):
        discover(Checkpoints(files=(CheckpointFile(path=run / "firts.pt", epoch=0),)))
    with pytest.raises(CheckpointError, match="is a folder"):
        discover(Checkpoints(files=(CheckpointFile(path=run, epoch=0),)))


def test_discover__unreadable_file_does_not_stop_the_others(tmp_path, monkeypatch):
    run = folder(tmp_path, "epoch_0.pt", "epoch_1.pt")
    remembered = fingerprints._remembered

    def refuse(path: Path) -> object:
        return PermissionError(13, "Permission denied") if path.name == "epoch_1.pt" else remembered(path)

    monkeypatch.setattr(fingerprints, "_remembered", refuse)
    series = discover(Checkpoints(folder=run))
    assert [bool(c.digest) for c in series.checkpoints] == [True, False]
    assert "'epoch_1.pt' cannot be read: Permission denied" in series.notes
    with pytest.raises(CheckpointError, match=r"epoch_1\.pt' cannot be read: Permission denied"):
        checkpoints.read_state(run / "epoch_1.pt")


def test_discover__broken_link_is_passed_over(tmp_path):
    run = folder(tmp_path, "epoch_0.pt")
    (run / "epoch_1.pt").symlink_to(run / "gone")
    assert discover(Checkpoints(folder=run)).positions == (0,)


def test_digest__is_sha256_and_read_once(tmp_path, monkeypatch):
    path = folder(tmp_path, "a") / "a"
    assert checkpoints.digest(path) == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    monkeypatch.setattr(fingerprints, "_measure", lambda path: pytest.fail("read again"))
    checkpoints.digest(path)
    monkeypatch.setattr(fingerprints, "_memo", {})
    monkeypatch.setattr(fingerprints, "_loaded", set())
    assert checkpoints.digest(path).startswith("ca9781")  # from the memo file, as another process would


def test_digest__notices_another_file_of_equal_size_and_time(tmp_path):
    path = folder(tmp_path, "a") / "a"
    first, status = checkpoints.digest(path), path.stat()
    other = path.with_name("b")
    other.write_text("b")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, path)
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    second = checkpoints.digest(path)
    assert second != first
    path.write_text("c")  # in place: same inode and size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert checkpoints.digest(path) not in (first, second)


def test_digest__a_file_just_written_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "SETTLED_SECONDS", 60.0)
    checkpoints.digest(folder(tmp_path, "a") / "a")
    assert fingerprints._memo == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"files": 3}', b'{"files": {"x": [1, 2]}}', b"[" * 100_000],
)
def test_digest__survives_a_corrupt_memo(tmp_path, content):
    memo = tmp_path / "cache" / "neurolens" / "fingerprints.json"
    memo.parent.mkdir(parents=True)
    memo.write_bytes(content)
    path = folder(tmp_path, "a") / "a"
    assert checkpoints.digest(path).startswith("ca9781")
    assert [len(e) for e in json.loads(memo.read_bytes())["files"].values()] == [6]


def test_digest__needs_no_cache_folder(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert checkpoints.digest(folder(tmp_path, "a") / "a").startswith("ca9781")


def test_digest__threads_share_the_memo(tmp_path):
    run = folder(tmp_path, *(f"f{i}" for i in range(40)))
    results: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: results.append([checkpoints.digest(p) for p in sorted(run.iterdir())]))
        for _ in range(4)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 4
    assert all(r == results[0] for r in results)
    memo = tmp_path / "cache" / "neurolens"
    assert [p.name for p in memo.iterdir()] == ["fingerprints.json"]
    assert len(json.loads((memo / "fingerprints.json").read_bytes())["files"]) == 40


def test_digest__file_that_keeps_changing_is_read_and_not_remembered(tmp_path, monkeypatch):
    path = folder(tmp_path, "a") / "a"
    damage = fingerprints._damage

    def growing(path: Path) -> str:
        with open(path, "a") as file:
            file.write(str(time.perf_counter_ns()))
        return damage(path)

    monkeypatch.setattr(fingerprints, "_damage", growing)
    assert len(checkpoints.digest(path)) == 64
    assert fingerprints._memo == {}


def test_checkpoints__discovery_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, neurolens.checkpoints; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
