"""Prefixes and old names of tensors, as torchvision's published DenseNets have them."""

import re
from typing import get_args

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from neurolens import checkpoints, fingerprints, models, refilling, weights
from neurolens.errors import CheckpointError, ModelMismatchError
from neurolens.study import Checkpoints, Model, Preprocessing
from neurolens.tensor_names import RENAMES, as_in_network

OLD = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))((?:[12])\.(?:weight|bias|running_mean|running_var))$")
"""torchvision's own pattern (models/densenet.py), the other way round."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "_memo", {})


def densenet(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torchvision.models.DenseNet(4, (2, 2, 2, 2), 8, num_classes=5)


def published(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a state as the published files have it: old names, and no counters of batches."""
    state = {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    return {OLD.sub(r"\1.\2", name): tensor for name, tensor in state.items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def write(folder, kind, state):
    path = folder / ("c.safetensors" if kind == "safetensors" else "c.pt")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    return path


def test_renames__are_those_that_a_study_can_name():
    (inner, _) = get_args(Checkpoints.model_fields["renames"].annotation)
    assert set(get_args(inner)) == set(RENAMES)


def test_as_in_network__does_what_torchvision_does_to_its_densenets():
    names = list(torchvision.models.get_model("densenet121").state_dict())
    old = {OLD.sub(r"\1.\2", name): name for name in names}
    changed = [name for name, today in old.items() if name != today]
    assert len(changed) == 58 * (4 + 4 + 1 + 1)  # layers; two norms of four tensors, two convolutions
    held = as_in_network(old, renames=("densenet",))
    assert held == {name: name for name in names}
    assert as_in_network(held, renames=("densenet",)) == held


def test_as_in_network__leaves_networks_of_other_names_alone():
    for name in ("resnet18", "convnext_tiny", "swin_t"):
        held = dict.fromkeys(torchvision.models.get_model(name).state_dict())
        assert as_in_network(held, renames=("densenet",)) == held


def test_as_in_network__two_tensors_of_one_name_are_refused():
    held = {"denselayer1.norm.1.weight": 0, "denselayer1.norm1.weight": 1, "a.b": 2, "b": 3}
    with pytest.raises(CheckpointError, match=r"old names of densenet replaced two tensors.*checkpoints\.renames"):
        as_in_network(held, renames=("densenet",))
    with pytest.raises(CheckpointError, match=r"without the prefix 'a\.' two tensors.*checkpoints\.strip_prefixes"):
        as_in_network(held, strip_prefixes=("a.",))


@pytest.mark.parametrize("kind", ["legacy", "zip", "safetensors"])
def test_load__reads_a_published_densenet_by_its_old_names_only_if_told(tmp_path, kind):
    module, theirs = densenet(1), densenet(2)
    path = write(tmp_path, kind, published(theirs))
    with pytest.raises(ModelMismatchError, match=r'set checkpoints\.renames = \["densenet"\]$'):
        checkpoints.load(module, path, Checkpoints())
    for _ in range(2):  # the second time a zip's layout is known, and it is mapped
        checkpoints.load(module, path, Checkpoints(renames=("densenet",)))
        assert same(module, theirs)


def test_load__prefix_and_old_names_are_found_together(tmp_path):
    module, theirs = densenet(1), densenet(2)
    path = write(tmp_path, "zip", {f"module.{name}": tensor for name, tensor in published(theirs).items()})
    mend = r'set checkpoints\.strip_prefixes = \["module\."\] and checkpoints\.renames = \["densenet"\]$'
    with pytest.raises(ModelMismatchError, match=mend):
        checkpoints.load(module, path, Checkpoints())
    checkpoints.load(module, path, Checkpoints(strip_prefixes=("module.",), renames=("densenet",)))
    assert same(module, theirs)


def test_refill__old_names_are_read_straight(tmp_path, monkeypatch):
    path = write(tmp_path, "safetensors", published(densenet(2)) | counters(densenet(2)))
    monkeypatch.setattr(weights, "read_state", lambda *_, **__: pytest.fail("it was not read straight"))
    module = densenet(1)
    refilling.refill(module, path, renames=("densenet",))
    assert same(module, densenet(2))


def counters(module: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in module.state_dict().items() if k.endswith("num_batches_tracked")}


def test_refill__names_the_file_where_two_tensors_get_one_name(tmp_path):
    state = published(densenet(2)) | densenet(2).state_dict()
    path = write(tmp_path, "safetensors", {name: tensor.clone() for name, tensor in state.items()})
    with pytest.raises(CheckpointError, match=r"c\.safetensors': with the old names of densenet replaced"):
        refilling.refill(densenet(1), path, renames=("densenet",))


def test_discover__records_that_names_were_replaced(tmp_path):
    write(tmp_path, "zip", published(densenet(2))).rename(tmp_path / "epoch_0.pt")
    notes = checkpoints.discover(Checkpoints(folder=tmp_path, renames=("densenet",))).notes
    assert "old tensor names replaced: those of densenet" in notes


def test_build__densenet121_has_the_preprocessing_of_imagenet():
    network = models.build(Model(name="densenet121", classes=1000))
    expected = Preprocessing(resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert network.preprocessing == expected == models.IMAGENET
    assert network.input_size == 224
