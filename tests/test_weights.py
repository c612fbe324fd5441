import os
import pickle
import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from neurolens import checkpoints, fingerprints
from neurolens.errors import CheckpointError, MissingCheckpointError, ModelMismatchError, NonFiniteError
from neurolens.study import Checkpoints


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "_memo", {})


def network(classes: int = 4, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, classes))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (os.mkdir, (str(self.mark),))


STATE = network().state_dict()


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        dict(STATE),
        {"state_dict": STATE, "epoch": 3, "optimizer": {"lr": 0.1, "state": [STATE]}},
        {"model": STATE, "best_acc": 0.5},
        {"model_state_dict": STATE, "optimizer_state_dict": {"state": {}}},
        {"net": STATE, "acc": 90.0, "epoch": 1},
        {"state_dict": STATE, "epoch": 1, "global_step": 9, "hyper_parameters": {"lr": 1}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("zipped", [True, False])
def test_read_state__finds_the_state_dict(tmp_path, content, zipped):
    torch.save(content, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    assert same(checkpoints.read_state(tmp_path / "c.pt"), STATE)


@pytest.mark.parametrize("name", ["c.safetensors", "c.bin"])
def test_read_state__reads_safetensors_by_content(tmp_path, name):
    save_file(STATE, tmp_path / name)
    read = checkpoints.read_state(tmp_path / name)
    assert same(dict(sorted(read.items())), dict(sorted(STATE.items())))


@pytest.mark.parametrize("zipped", [True, False])
def test_read_state__maps_files_saved_on_cuda_to_the_cpu(tmp_path, monkeypatch, zipped):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save(STATE, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "c.pt", weights_only=True)
    assert same(checkpoints.read_state(tmp_path / "c.pt"), STATE)


def test_read_state__prefixes_are_stripped_only_if_named(tmp_path):
    torch.save({f"module.model.{k}": v for k, v in STATE.items()}, tmp_path / "c.pt")
    assert next(iter(checkpoints.read_state(tmp_path / "c.pt"))) == "module.model.0.weight"
    assert same(checkpoints.read_state(tmp_path / "c.pt", strip_prefixes=("module.", "model.")), STATE)
    torch.save({"a.w": torch.ones(1), "w": torch.ones(1)}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="two tensors have the same name"):
        checkpoints.read_state(tmp_path / "c.pt", strip_prefixes=("a.",))


def test_read_state__state_key_chooses_among_several(tmp_path):
    torch.save({"model": STATE, "net": network(seed=1).state_dict(), "ema": {"of": STATE}}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"found several: \['model', 'net'\]; name it: checkpoints\.state_key"):
        checkpoints.read_state(tmp_path / "c.pt")
    for key in ("model", "ema.of"):
        assert same(checkpoints.read_state(tmp_path / "c.pt", state_key=key), STATE)
    with pytest.raises(CheckpointError, match=r"has no 'modell'; did you mean 'model'"):
        checkpoints.read_state(tmp_path / "c.pt", state_key="modell")


@pytest.mark.parametrize(
    "content", [{}, [], 3, {"epoch": 3}, {"state_dict": {"w": 1}}, {"state_dict": {}}, torch.ones(2)]
)
def test_read_state__a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"checkpoints\.state_key"):
        checkpoints.read_state(tmp_path / "c.pt")


@pytest.mark.parametrize("how", ["zip", "legacy", "plain pickle"])
def test_read_state__a_pickle_bomb_is_refused_and_does_not_go_off(tmp_path, how):
    path, mark = tmp_path / "c.pt", tmp_path / "bombed"
    content = {"state_dict": STATE, "extra": Bomb(mark)}
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(CheckpointError, match="executes code"):
        checkpoints.read_state(path)
    assert not mark.exists()
    if how != "plain pickle":
        with pytest.raises(CheckpointError, match=rf"{os.mkdir.__module__}\.mkdir.*checkpoints\.trust = true"):
            checkpoints.read_state(path)
        assert same(checkpoints.read_state(path, trust=True), STATE)  # trusted, it does go off
        assert mark.exists()


def test_read_state__environment_does_not_switch_safety_off(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Bomb(tmp_path / "bombed"), tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="executes code"):
        checkpoints.read_state(tmp_path / "c.pt")
    assert not (tmp_path / "bombed").exists()


def test_read_state__what_training_scripts_save_beside_the_weights_is_only_data(tmp_path):
    beside = {"best": np.float64(0.5), "epoch": np.int64(3), "args": Namespace(lr=0.1, out=Path("runs")), "lr": 0.1}
    torch.save({"model": STATE, **beside}, tmp_path / "c.pt")
    before = set(torch.serialization.get_safe_globals())
    assert same(checkpoints.read_state(tmp_path / "c.pt"), STATE)
    assert set(torch.serialization.get_safe_globals()) == before
    torch.save({"model": STATE, "args": Namespace(lr=Bomb(tmp_path / "bombed"))}, tmp_path / "d.pt")
    with pytest.raises(CheckpointError, match="refused"):
        checkpoints.read_state(tmp_path / "d.pt")
    assert not (tmp_path / "bombed").exists()


def test_read_state__a_pickled_module_needs_trust(tmp_path):
    for content in (network(), {"model": network(), "epoch": 1}):
        torch.save(content, tmp_path / "c.pt")
        with pytest.raises(CheckpointError, match=r"torch\.nn\.modules.*trust = true"):
            checkpoints.read_state(tmp_path / "c.pt")
        assert same(checkpoints.read_state(tmp_path / "c.pt", trust=True), STATE)


def test_read_state__a_missing_class_is_an_error_even_with_trust(tmp_path):
    torch.save({"model": STATE, "args": Bomb(tmp_path / "bombed")}, tmp_path / "c.pt")
    raw = (tmp_path / "c.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "c.pt") as archive, zipfile.ZipFile(tmp_path / "d.pt", "w") as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name).replace(os.mkdir.__module__.encode(), b"nosix"))
    assert raw != (tmp_path / "d.pt").read_bytes()
    with pytest.raises(CheckpointError, match="nosix"):
        checkpoints.read_state(tmp_path / "d.pt", trust=True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"hello there", "begins with b'hello th'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\n<!DOCTYPE html>", "web page"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"PK\x03\x04 and no more", "truncated"),
        (b"\x80\x02", "plain pickle"),
    ],
)
def test_read_state__foreign_files_are_named(tmp_path, content, reason):
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        checkpoints.read_state(tmp_path / "c.pt")


def test_read_state__other_archives_are_named(tmp_path):
    np.savez(tmp_path / "c.npz", w=np.ones(3))
    with pytest.raises(CheckpointError, match="NumPy archive"):
        checkpoints.read_state(tmp_path / "c.npz")
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(CheckpointError, match=r"not one that torch.save wrote"):
        checkpoints.read_state(tmp_path / "c.pt")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("left", [0.1, 0.5, 0.9, 0.999])
def test_read_state__truncated_files_are_refused(tmp_path, kind, left):
    path = tmp_path / f"c.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    with pytest.raises(CheckpointError, match="restore it"):
        checkpoints.read_state(path)


def test_read_state__a_flipped_bit_in_the_weights_is_noticed(tmp_path):
    torch.save(STATE, tmp_path / "c.pt")
    content = bytearray((tmp_path / "c.pt").read_bytes())
    weight = STATE["0.weight"].numpy().tobytes()
    content[content.index(weight) + 7] ^= 1
    (tmp_path / "c.pt").write_bytes(content)
    assert torch.load(tmp_path / "c.pt", weights_only=True, mmap=True)["0.weight"].shape == (5, 3, 3, 3)
    with pytest.raises(CheckpointError, match="do not match their checksums"):
        checkpoints.read_state(tmp_path / "c.pt")


def test_read_state__files_saved_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "c.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(checkpoints.read_state(tmp_path / "c.pt"), STATE)


def test_read_state__no_damage_takes_the_process_down(tmp_path):
    """Bytes overwritten at random: an error or a state dict, and nothing else, for every format."""
    code = """
import random, sys, pathlib, torch
from safetensors.torch import save_file
from neurolens import checkpoints
from neurolens.errors import CheckpointError
folder = pathlib.Path(sys.argv[1])
state = {"w": torch.randn(7, 3), "b": torch.randn(7)}
torch.save(state, folder / "a.pt")
torch.save(state, folder / "b.pt", _use_new_zipfile_serialization=False)
save_file(state, folder / "c.safetensors")
chance = random.Random(0)
refused = 0
for n in range(450):
    source = folder / ("a.pt", "b.pt", "c.safetensors")[n % 3]
    content = bytearray(source.read_bytes())
    for _ in range(chance.choice((1, 3, 30))):
        content[chance.randrange(len(content))] = chance.randrange(256)
    if n % 3 == 0 and n % 2:  # as one who knows the format would: with checksums that fit
        import zipfile
        with zipfile.ZipFile(source) as archive:
            members = {i.filename: bytearray(archive.read(i)) for i in archive.infolist()}
        pkl = members["a/data.pkl"]
        for _ in range(chance.choice((1, 3))):
            pkl[chance.randrange(len(pkl))] = chance.randrange(256)
        with zipfile.ZipFile(folder / "x.pt", "w") as archive:
            for name, data in members.items():
                archive.writestr(name, bytes(data))
        content = (folder / "x.pt").read_bytes()
    damaged = folder / ("damaged" + source.suffix)
    damaged.write_bytes(content)
    try:
        checkpoints.fill(torch.nn.Linear(3, 7), checkpoints.read_state(damaged))
    except ValueError as error:
        refused += 1
print(refused)
"""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 150


def test_read_state__missing_file_names_its_neighbours(tmp_path):
    torch.save(STATE, tmp_path / "epoch_1.pt")
    with pytest.raises(MissingCheckpointError, match=r"did you mean 'epoch_1\.pt'"):
        checkpoints.read_state(tmp_path / "epoch_11.pt")


@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_read_state__sparse_tensors_are_refused(tmp_path):
    torch.save({"w": torch.ones(2, 2).to_sparse()}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="'w' is sparse"):
        checkpoints.read_state(tmp_path / "c.pt")


def test_load__fills_and_checks_in_one(tmp_path):
    path, table, module = tmp_path / "c.pt", Checkpoints(), network(seed=1)
    torch.save(STATE, path)
    checkpoints.load(module, path, table, digest=checkpoints.digest(path))
    assert same(module.state_dict(), STATE)
    with pytest.raises(CheckpointError, match="changed since"):
        checkpoints.load(module, path, table, digest="0" * 64)
    with pytest.raises(ModelMismatchError, match=r"c\.pt': .*set model\.classes = 4"):
        checkpoints.load(network(5), path, table)
    torch.save(STATE | {"0.bias": torch.full((5,), torch.nan)}, path)
    with pytest.raises(NonFiniteError, match=r"'0\.bias'.*allow_non_finite"):
        checkpoints.load(module, path, table)
    checkpoints.load(module, path, table, allow_non_finite=True)
    assert module[0].bias.isnan().all()


def test_read_state__is_what_a_lightning_run_writes(tmp_path):
    lightning = {
        "state_dict": {f"model.{k}": v for k, v in STATE.items()},
        "epoch": 2,
        "global_step": 30,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "x", "best_k_models": {}}},
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "lr_schedulers": [],
        "pytorch-lightning_version": "2.6.6",
    }
    torch.save(lightning, tmp_path / "epoch=2-step=30.ckpt")
    read = checkpoints.read_state(tmp_path / "epoch=2-step=30.ckpt", strip_prefixes=("model.",))
    assert same(read, STATE)
    torch.save(lightning | {"hyper_parameters": SimpleNamespace(lr=1)}, tmp_path / "h.ckpt")
    with pytest.raises(CheckpointError, match=r"SimpleNamespace"):
        checkpoints.read_state(tmp_path / "h.ckpt")
