"""torchvision's weights by name: found where torch keeps them, fetched only where that is allowed, checked by hash."""

import hashlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torchvision.models import densenet121

from neurolens import checkpoints, fingerprints, training
from neurolens.errors import CheckpointError, MissingCheckpointError, StudyError
from neurolens.published_weights import published
from neurolens.study import CheckpointFile, Checkpoints
from neurolens.tensor_names import as_in_network

NAME = "DenseNet121_Weights.IMAGENET1K_V1"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(fingerprints, "_memo", {})


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Publish a file under torchvision's name, with old names of tensors in it, as the real one."""
    state = {
        name.replace("norm1", "norm.1")
        .replace("norm2", "norm.2")
        .replace("conv1", "conv.1")
        .replace("conv2", "conv.2"): t
        for name, t in densenet121(weights=None).state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    file = tmp_path / "server" / "densenet121.pth"
    file.parent.mkdir()
    torch.save(state, file, _use_new_zipfile_serialization=False)
    named = file.with_name(f"densenet121-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth")
    file.rename(named)
    monkeypatch.setattr(torchvision.models, "get_weight", lambda name: SimpleNamespace(url=named.as_uri()))
    return named


def test_published__is_where_torch_keeps_the_real_file(tmp_path):
    with pytest.raises(MissingCheckpointError) as error:
        published(NAME, download=False)
    place = tmp_path / "torch" / "hub" / "checkpoints" / "densenet121-a639ec97.pth"
    assert str(error.value) == (
        f"torchvision's weights {NAME} are not on this machine; set checkpoints.download = true, or copy "
        f"https://download.pytorch.org/models/densenet121-a639ec97.pth to '{place}'"
    )


@pytest.mark.parametrize("name", ["DenseNet121_Weights.V1", "DenseNet121_Weight.IMAGENET1K_V1", "DenseNet121_Weights"])
def test_published__an_unknown_name_gives_the_nearest(name):
    with pytest.raises(StudyError, match=rf"no weights '{name}'; did you mean .*'DenseNet121_Weights.IMAGENET1K_V1'"):
        published(name, download=False)


def test_published__is_fetched_once_and_only_where_allowed(server, tmp_path):
    with pytest.raises(MissingCheckpointError, match=r"checkpoints\.download = true"):
        published(NAME, download=False)
    path = published(NAME, download=True)
    assert path == tmp_path / "torch" / "hub" / "checkpoints" / server.name
    assert path.read_bytes() == server.read_bytes()
    server.unlink()
    assert published(NAME, download=False) == path


def test_published__what_cannot_be_fetched_or_is_not_whole_is_said(server):
    content = server.read_bytes()
    server.write_bytes(content[:-1])
    with pytest.raises(MissingCheckpointError, match=r"cannot be fetched \(invalid hash value.*try again, or copy"):
        published(NAME, download=True)
    server.unlink()
    with pytest.raises(MissingCheckpointError, match=r"cannot be fetched \(.*No such file"):
        published(NAME, download=True)
    server.write_bytes(content)
    path = published(NAME, download=True)
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"is not whole: its sha256 does not begin with .*delete it"):
        published(NAME, download=True)


def test_discover__takes_weights_by_name(server):
    table = Checkpoints(files=(CheckpointFile(weights=NAME, epoch=90),), download=True, renames=("densenet",))
    series = checkpoints.discover(table)
    assert series.positions == (90,)
    assert series.checkpoints[0].digest == hashlib.sha256(server.read_bytes()).hexdigest()
    module = densenet121(weights=None)
    checkpoints.load(module, series.checkpoints[0].path, table, digest=series.checkpoints[0].digest)
    expected = as_in_network(torch.load(server, weights_only=True), renames=("densenet",))
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in expected.items())


def test_checkpoint_file__is_a_path_or_a_name(tmp_path):
    with pytest.raises(ValueError, match=r"neither path nor weights is given"):
        CheckpointFile(epoch=0)
    with pytest.raises(ValueError, match=r"path and weights are both given"):
        CheckpointFile(path=tmp_path, weights=NAME, epoch=0)
    with pytest.raises(ValueError, match=rf"{NAME} has neither epoch nor step"):
        CheckpointFile(weights=NAME)


def test_discover__of_plain_files_imports_no_torch(tmp_path):
    (tmp_path / "epoch_0.pt").write_bytes(b"x")
    code = (
        "import sys; from neurolens.checkpoints import discover\n"
        "from neurolens.study import CheckpointFile, Checkpoints\n"
        f"discover(Checkpoints(files=(CheckpointFile(path={str(tmp_path / 'epoch_0.pt')!r}, epoch=0),)))\n"
        "print([name for name in ('torch', 'torchvision') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_load_pretrained__a_densenet_starts_from_published_weights(server, monkeypatch):
    state = torch.load(server, weights_only=True)
    weights = torchvision.models.DenseNet121_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **_: dict(state))
    module = densenet121(weights=None, num_classes=7)
    head = module.classifier.weight.clone()
    training._load_pretrained(module, "densenet121")
    expected = as_in_network(state, renames=("densenet",))
    held = module.state_dict()
    assert all(torch.equal(t, held[k]) for k, t in expected.items() if not k.startswith("classifier."))
    assert torch.equal(module.classifier.weight, head)
