"""Training: resumed runs equal undisturbed ones, and every refusal names its mend."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from neurolens import models
from neurolens.checkpoints import discover
from neurolens.data import draws, open_samples
from neurolens.errors import CheckpointError, DataError, NonFiniteError, StudyError
from neurolens.study import (
    Checkpoints,
    Compute,
    Data,
    Exposure,
    LabelNoise,
    Model,
    Preprocessing,
    Selection,
    Study,
    Train,
    Validation,
)
from neurolens.training import train
from neurolens.training_fit import Fit, learning_rate
from neurolens.training_state import Folder


def study(folder, *, pattern="epoch_{epoch}.pt", count=96, data=None, model=None, **table):
    select = Selection(count=count)
    table = {"epochs": 3, "batch_size": 32, "lr": 0.05, "validation": Validation(select=Selection(count=40))} | table
    return Study(
        model=model or Model(),
        checkpoints=Checkpoints(folder=folder, pattern=pattern),
        data=Data(select=select, **(data or {})),
        train=Train(**table),
        compute=Compute(device="cpu", threads=1),
    )


def content(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.suffix in (".pt", ".csv") and p.name[0] != "."}


def rows(folder):
    with (folder / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_train__leaves_safe_checkpoints_and_metrics(tmp_path):
    result = train(study(tmp_path), progress=False)
    assert [p.name for p in result.checkpoints] == [f"epoch_{e}.pt" for e in range(4)]
    last = torch.load(result.checkpoints[-1], weights_only=True)
    assert sorted(last) == ["epoch", "state_dict", "step"]
    assert (last["epoch"], last["step"]) == (3, 9)
    models.build(Model()).module.load_state_dict(last["state_dict"])
    table = rows(tmp_path)
    assert list(table[0]) == ["epoch", "train_loss", "train_acc", "val_loss", "val_acc", "lr"]
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    assert float(table[-1]["train_loss"]) < float(table[0]["train_loss"])
    assert not (tmp_path / "lightning_logs").exists()


def test_train__checkpoint_0_is_the_untrained_network(tmp_path):
    train(study(tmp_path, seed=5), progress=False, until=1)
    state = torch.load(tmp_path / "epoch_0.pt", weights_only=True)["state_dict"]
    for name, tensor in models.build(Model(), seed=5).module.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)


def test_train__loss_and_accuracy_are_those_of_the_batches(tmp_path):
    train(study(tmp_path, epochs=1, lr=1e-30, weight_decay=0.0, validation=None), progress=False)
    samples, network = open_samples(Data(select=Selection(count=96))), models.build(Model(), seed=0)
    order = draws.order(draws.keys(samples.ids), "shuffle", 0, 1)
    total = right = 0.0
    network.module.train()
    with torch.no_grad():
        for at in np.split(order, 3):
            x = torch.from_numpy(samples.images.load(at)).permute(0, 3, 1, 2) / 255
            y = torch.from_numpy(samples.labels[at])
            logits = network.module(x)
            total += torch.nn.functional.cross_entropy(logits, y, reduction="sum").item()
            right += (logits.argmax(1) == y).sum().item()
    (row,) = rows(tmp_path)
    assert float(row["train_loss"]) == pytest.approx(total / 96, rel=1e-5)
    assert float(row["train_acc"]) == right / 96
    assert row["val_loss"] == row["val_acc"] == ""


def test_train__is_seeded_and_leaves_torchs_generator_alone(tmp_path):
    before = torch.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(study(tmp_path / name, seed=seed, augment=("crop", "flip")), progress=False, until=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a")["epoch_1.pt"] != content(tmp_path / "c")["epoch_1.pt"]


def test_train__stopped_and_resumed_equals_undisturbed(tmp_path):
    more = {"optimizer": "adam", "lr": 1e-3, "step_size": 2, "augment": ("crop",)}
    train(study(tmp_path / "straight", **more), progress=False)
    assert train(study(tmp_path / "stopped", **more), progress=False, until=1).trained_epochs == 1
    result = train(study(tmp_path / "stopped", **more), progress=False)
    assert (result.resumed_from, result.trained_epochs) == (1, 2)
    assert content(tmp_path / "straight") == content(tmp_path / "stopped")


def test_train__complete_trains_nothing_and_says_so(tmp_path):
    first = train(study(tmp_path), progress=False)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir() if p.suffix in (".pt", ".csv")}
    again = train(study(tmp_path), progress=False)
    assert again.trained_epochs == 0
    assert "nothing to do" in again.message
    assert again.checkpoints == first.checkpoints
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_train__more_epochs_go_on(tmp_path):
    train(study(tmp_path / "grown", epochs=1), progress=False)
    train(study(tmp_path / "grown", epochs=3), progress=False)
    train(study(tmp_path / "straight", epochs=3), progress=False)
    assert content(tmp_path / "grown") == content(tmp_path / "straight")


class Killed(BaseException):
    """Not caught by anything, as a kill is not."""


@pytest.mark.parametrize("before", [True, False])
def test_train__interrupted_at_any_write_resumes_to_the_same_bytes(tmp_path, monkeypatch, before):
    more = {"epochs": 2, "pattern": "e{epoch}_s{step}.pt", "save_every_steps": 2, "count": 64, "batch_size": 16}
    train(study(tmp_path / "straight", **more), progress=False)
    wanted, replace, append = content(tmp_path / "straight"), Folder._replace, Folder.append_metrics
    moment = 0
    while True:
        left = [moment]

        def dying(function, left=left):
            def write(*args):
                left[0] -= 1
                if left[0] < 0 and before:
                    raise Killed
                function(*args)
                if left[0] < 0:
                    raise Killed

            return write

        folder = tmp_path / str(moment)
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "_replace", dying(replace))
            patch.setattr(Folder, "append_metrics", dying(append))
            try:
                train(study(folder, **more), progress=False)
            except Killed:
                pass
            else:
                break
        train(study(folder, **more), progress=False)
        assert content(folder) == wanted, f"killed at write {moment}"
        moment += 1
    assert moment > 10


SCRIPT = """
import sys
from neurolens.study import Study
from neurolens.training import train
train(Study.model_validate_json(sys.stdin.read()), progress=False)
"""


def test_train__killed_and_resumed_equals_undisturbed(tmp_path):
    more = {"epochs": 4, "pattern": "e{epoch}_s{step}.pt", "save_every_steps": 37, "count": 640, "batch_size": 8}
    more |= {"augment": ("crop", "flip")}
    started = time.monotonic()
    train(study(tmp_path / "straight", **more), progress=False)
    seconds = time.monotonic() - started
    folder = tmp_path / "killed"
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    child.stdin.write(study(folder, **more).model_dump_json().encode())
    child.stdin.close()
    deadline = time.monotonic() + 120
    while not (folder / ".resume.pt").exists():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    delay = random.uniform(0, 0.8 * seconds)
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    child.wait()
    result = train(study(folder, **more), progress=False)
    assert result.epoch == 4
    assert content(folder) == content(tmp_path / "straight"), f"killed after {delay:.3f} s"


def test_train__saves_by_epochs_and_by_steps(tmp_path):
    more = {"pattern": "e{epoch}_s{step}.pt", "save_every_steps": 2, "save_every_epochs": 2, "save_initial": False}
    result = train(study(tmp_path, **more), progress=False)
    assert [p.name for p in result.checkpoints] == ["e0_s2.pt", "e1_s4.pt", "e2_s6.pt", "e2_s8.pt", "e3_s9.pt"]


def test_train__a_pattern_may_have_folders(tmp_path):
    given = study(tmp_path, pattern="epoch_{epoch}/weights.pt", count=40, epochs=1)
    result = train(given, progress=False)
    assert [str(p.relative_to(tmp_path)) for p in result.checkpoints] == ["epoch_0/weights.pt", "epoch_1/weights.pt"]
    assert discover(given.checkpoints).positions == (0, 1)
    assert train(given, progress=False).trained_epochs == 0
    (tmp_path / ".resume.pt").unlink()
    (tmp_path / "metrics.csv").unlink()
    with pytest.raises(CheckpointError, match=r"epoch_0/weights\.pt"):
        train(given, progress=False)


def test_train__refuses_changed_settings(tmp_path):
    train(study(tmp_path), progress=False, until=1)
    with pytest.raises(StudyError, match=r"train\.lr was 0\.05, is 0\.01.*set another checkpoints\.folder"):
        train(study(tmp_path, lr=0.01), progress=False)
    with pytest.raises(StudyError, match=r"data\.fingerprint was"):
        train(study(tmp_path, count=95), progress=False)
    train(study(tmp_path).model_copy(update={"compute": Compute(device="cpu", threads=2)}), progress=False, until=2)


def test_train__refuses_another_runs_folder(tmp_path):
    (tmp_path / "epoch_7.pt").write_bytes(b"theirs")
    with pytest.raises(CheckpointError, match=r"epoch_7\.pt.*remove \[train\]"):
        train(study(tmp_path), progress=False)
    assert (tmp_path / "epoch_7.pt").read_bytes() == b"theirs"


def test_train__refuses_where_checkpoints_are_missing(tmp_path):
    train(study(tmp_path), progress=False)
    (tmp_path / "epoch_2.pt").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 checkpoints that were saved there, first epoch_2\.pt"):
        train(study(tmp_path), progress=False)


def test_train__refuses_a_torn_resume_state(tmp_path):
    train(study(tmp_path), progress=False, until=1)
    (tmp_path / ".resume.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match=r"cannot be read"):
        train(study(tmp_path), progress=False)


def test_train__one_at_a_time_in_a_folder(tmp_path):
    table = study(tmp_path)
    with (
        Folder(tmp_path, table.checkpoints).held(),
        pytest.raises(CheckpointError, match=r"another training is writing"),
    ):
        train(table, progress=False)
    train(table, progress=False, until=1)


def test_train__refuses_overlap_unless_said(tmp_path):
    with pytest.raises(DataError, match=r"40 of the 40 validation samples .* are trained on.*allow_overlap = true"):
        train(study(tmp_path, count=1437, validation=Validation(split="train", select=Selection(count=40))))
    allowed = Validation(split="train", select=Selection(count=40), allow_overlap=True)
    train(study(tmp_path, validation=allowed), progress=False, until=1)


def test_train__divergence_keeps_what_was_saved(tmp_path):
    with pytest.raises(NonFiniteError, match=r"training loss of epoch \d.*lower train\.lr"):
        train(study(tmp_path, lr=1e30), progress=False)
    assert (tmp_path / "epoch_0.pt").exists()
    for path in tmp_path.glob("epoch_*.pt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert path.name == "epoch_0.pt" or all(torch.isfinite(t).all() for t in state.values())


def test_train__shows_only_the_tasks_classes(tmp_path, monkeypatch):
    shown = {}
    score = Fit._score

    def watching(self, batch, which):
        shown.setdefault((which, self.epoch + 1), set()).update(batch[1].tolist())
        return score(self, batch, which)

    monkeypatch.setattr(Fit, "_score", watching)
    exposure = Exposure(start=4, step=4, every=1, order=(9, 8, 7, 6, 5, 4, 3, 2, 1, 0))
    table = study(tmp_path, count=200, data={"exposure": exposure}, weight_decay=0.0, milestones=(2.0,))
    train(table, progress=False)
    assert shown["train", 1] == shown["val", 1] == {6, 7, 8, 9}
    assert shown["train", 2] == shown["val", 2] == set(range(2, 10))
    assert shown["train", 3] == set(range(10))
    head = [torch.load(tmp_path / f"epoch_{e}.pt", weights_only=True)["state_dict"] for e in range(4)]
    bias = next(name for name in reversed(head[0]) if name.endswith("bias"))
    assert [torch.nonzero(head[e][bias] != head[0][bias]).flatten().tolist() for e in (1, 2, 3)] == [
        [6, 7, 8, 9],
        [2, 3, 4, 5, 6, 7, 8, 9],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    ]
    assert [row["lr"] for row in rows(tmp_path)] == ["0.05"] * 3  # milestones count within a task


def test_train__mislabelled_samples_are_trained_at_the_flipped_label(tmp_path):
    noisy = {"label_noise": LabelNoise(fraction=0.3, seed=1)}
    train(study(tmp_path / "noisy", data=noisy), progress=False, until=1)
    train(study(tmp_path / "clean"), progress=False, until=1)
    assert rows(tmp_path / "noisy")[0]["train_loss"] != rows(tmp_path / "clean")[0]["train_loss"]


def test_train__wrong_class_count_is_named(tmp_path):
    with pytest.raises(DataError, match=r"has 10 classes and the network 3; set model\.classes = 10"):
        train(study(tmp_path, model=Model(classes=3)), progress=False)


def test_train__absent_devices_are_named(tmp_path):
    absent = study(tmp_path).model_copy(update={"compute": Compute(device="cuda:99")})
    with pytest.raises(StudyError, match=r"'cuda:99' and torch sees \d+ CUDA devices"):
        train(absent, progress=False)
    with pytest.raises(StudyError, match=r"precision = '16' needs a GPU"):
        train(study(tmp_path, precision="16"), progress=False)


def test_train__no_train_table_says_so(tmp_path):
    with pytest.raises(StudyError, match=r"no \[train\] table"):
        train(Study(checkpoints=Checkpoints(folder=tmp_path)))


def test_train__runs_in_a_worker_thread(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train, study(tmp_path), progress=False, until=1).result().epoch == 1


def test_train__gives_each_row_to_a_callable(tmp_path):
    seen = []
    train(study(tmp_path, precision="bf16"), progress=seen.append)
    assert [row["epoch"] for row in seen] == [1, 2, 3]
    assert [repr(row["train_loss"]) for row in seen] == [row["train_loss"] for row in rows(tmp_path)]


def test_train__shows_a_progress_bar(tmp_path, capsys):
    train(study(tmp_path), progress=True, until=1)
    assert "lightning" not in capsys.readouterr().err.lower()


@pytest.mark.parametrize(
    ("table", "wanted"),
    [
        ({"milestones": (0.6, 0.8)}, [1, 1, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        ({"milestones": (2, 5), "gamma": 0.5}, [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25]),
        ({"step_size": 4}, [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]),
    ],
)
def test_learning_rate__matches_torchs_schedulers(table, wanted):
    table = Train(lr=1.0, epochs=10, **table)
    ours = [learning_rate(table, e, 10) for e in range(10)]
    np.testing.assert_allclose(ours, wanted)


def test_train__files_are_decoded_and_augmented(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random_pixels = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name in ("ant", "bee"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random_pixels.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    table = Study(
        model=Model(name="resnet18", classes=2, preprocessing=Preprocessing(resize=36, crop=32)),
        checkpoints=Checkpoints(folder=tmp_path / "run"),
        data=Data(source="folder", root=tmp_path / "images"),
        train=Train(
            epochs=1, batch_size=4, augment=("random_resized_crop", "flip"), validation=Validation(split="val"), lr=0.01
        ),
        compute=Compute(device="cpu", threads=1),
    )
    train(table, progress=False)
    assert np.isfinite(float(rows(tmp_path / "run")[0]["val_loss"]))
