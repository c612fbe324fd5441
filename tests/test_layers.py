"""Layers by globs, what is shown to find them, what is left as it was, and what is refused."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import SIZE, VOCABULARY, names, texts, tiny, vision
from torch import nn

from neurolens.errors import CaptureError
from neurolens.layers import find_layers, firing
from neurolens.networks import CifarResNet18, DigitsConvNet

# What is shown, and what is left as it was


@pytest.mark.parametrize("shown", ["tensor", "tuple", "mapping", "pair", "shown"])
def test_find_layers__takes_the_arguments_of_a_forward_in_any_form(shown):
    x = torch.randn(3, 1, 8, 8)
    probe = {
        "tensor": x,
        "tuple": (x,),
        "mapping": {"x": x},
        "pair": ((x,), {}),
        "shown": SimpleNamespace(args=(x,), kwargs={}),
    }[shown]
    assert len(find_layers(DigitsConvNet(), "auto", probe)) == 3


def test_find_layers__leaves_the_network_as_it_was():
    torch.manual_seed(0)
    model = vision("resnet18")
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    find_layers(model, "auto", torch.randn(2, 3, 64, 64, generator=torch.Generator()))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_find_layers__leaves_the_network_as_it_was_when_it_fails():
    model = DigitsConvNet()
    with pytest.raises(CaptureError, match=r"fails on a probe of 2 samples.*RuntimeError.*expected input"):
        find_layers(model, "auto", torch.randn(2, 3, 8, 8))
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("probe", [(), torch.zeros(0, 1, 8, 8), {}])
def test_find_layers__needs_a_sample(probe):
    with pytest.raises(CaptureError, match="no sample is shown"):
        find_layers(DigitsConvNet(), "auto", probe)


def test_find_layers__refuses_a_network_without_activation_functions():
    with pytest.raises(CaptureError, match="none ran; name layers by globs"):
        find_layers(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), "auto", torch.randn(2, 1, 8, 8))


def test_find_layers__refuses_experts_that_are_no_modules():
    config = transformers.MixtralConfig(vocab_size=VOCABULARY, num_local_experts=2, num_key_value_heads=2, **SIZE)
    with pytest.raises(
        CaptureError,
        match=r"none makes hidden units of a batch; 'layers.0.mlp.experts.act_fn', say, is of shape \(28, 24\)",
    ):
        find_layers(transformers.AutoModel.from_config(config), "auto", texts())


def test_find_layers__refuses_activations_whose_first_axis_is_no_batch():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.GELU()

        def forward(self, x):
            return self.act(x.transpose(0, 1))

    message = r"1 activation functions ran, and none makes hidden units of a batch; 'act', say, is of shape \(5, 2, 4\)"
    with pytest.raises(CaptureError, match=message):
        find_layers(Turned(), "auto", torch.zeros(3, 5, 4))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_find_layers__refuses_torchscript():
    model = torch.jit.trace(DigitsConvNet().eval(), torch.zeros(1, 1, 8, 8))
    with pytest.raises(CaptureError, match="compiled to TorchScript"):
        find_layers(model, "auto", torch.zeros(2, 1, 8, 8))


# Globs


@pytest.fixture(scope="module")
def resnet():
    return vision("resnet18")


IMAGES = torch.zeros(2, 3, 32, 32)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["layer4.*"], ["layer4.0", "layer4.1"]),
        (["layer[12].0.relu"], ["layer1.0.relu", "layer1.0.relu#1", "layer2.0.relu", "layer2.0.relu#1"]),
        (["layer?.0.relu#1"], [f"layer{i}.0.relu#1" for i in (1, 2, 3, 4)]),
        (["layer1.1.conv2:input", "conv1"], ["conv1", "layer1.1.conv2:input"]),
        (["**.downsample.1"], [f"layer{i}.0.downsample.1" for i in (2, 3, 4)]),
        (["layer1.**.bn2", "layer1.0.bn2"], ["layer1.0.bn2", "layer1.1.bn2"]),
        (["fc", "layer2"], ["layer2", "fc"]),
        (["layer3.1.relu:output#1", "layer3.1.relu#1"], ["layer3.1.relu#1"]),
    ],
)
def test_find_layers__matches_globs_part_by_part(resnet, patterns, expected):
    assert names(find_layers(resnet, patterns, IMAGES)) == expected


def test_find_layers__takes_its_own_names_back(resnet):
    for model, probe in ((resnet, IMAGES), tiny("Albert"), tiny("OPT"), (CifarResNet18(), IMAGES)):
        layers = find_layers(model, "auto", probe)
        assert find_layers(model, names(layers), probe) == tuple(
            layer for name in names(layers) for layer in layers if layer.name == name
        )


def test_find_layers__takes_every_call_of_a_module_that_is_named_without_one(resnet):
    layers = find_layers(resnet, ["layer1.0.relu"], IMAGES)
    assert names(layers) == ["layer1.0.relu", "layer1.0.relu#1"]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["layer5.*"], r"'layer5.\*' matches none of the \d+ modules.*did you mean 'layer\d.\*'"),
        (["layer1.0.relux"], r"did you mean 'layer\d.\*.relu'"),
        (["relu", "nothing"], r"'nothing' matches none"),
        (["layer4.*.relu#2"], "names a call that is not made; there are #0 to #1"),
        (["a:b"], "'a:b' is no pattern"),
        ([""], "'' is no pattern"),
        ([], "no layer is named"),
    ],
)
def test_find_layers__names_what_a_pattern_lacks(resnet, patterns, message):
    with pytest.raises(CaptureError, match=message):
        find_layers(resnet, patterns, IMAGES)


def test_find_layers__names_near_layers_by_their_globs():
    model, probe = tiny("GPTNeoX")
    with pytest.raises(CaptureError, match=r"did you mean 'layers.\*.mlp.act'"):
        find_layers(model, ["layer.*.mlp.act"], probe)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("word", "layer 'word': Words returns no tensor"),
        ("embed:input", r"layer 'embed:input': Embedding is given whole numbers"),
        (
            "table",
            r"layer 'table': Linear returns an array of shape \(1, 3\), and a first axis of 2 samples was needed",
        ),
    ],
)
def test_find_layers__refuses_what_is_no_batch_of_units(pattern, message):
    class Words(nn.Module):
        def forward(self, x):
            return "word"

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.word, self.table = nn.Embedding(4, 3), Words(), nn.Linear(3, 3)

        def forward(self, x):
            self.word(x)
            return self.embed(x) + self.table(torch.ones(1, 3))

    with pytest.raises(CaptureError, match=message):
        find_layers(Model(), [pattern], torch.zeros(2, 5, dtype=torch.int64))


@given(st.lists(st.sampled_from(["a", "b", "10"]), min_size=1, max_size=4))
def test_find_layers__matches_any_path_by_itself_and_by_stars(parts):
    model = nn.Identity()
    for part in reversed(parts):
        outer = nn.Sequential()
        outer.add_module(part, model)
        model = outer
    path = ".".join(parts)
    probe = torch.ones(2, 3)
    for pattern in (path, ".".join("*" for _ in parts), f"**.{parts[-1]}"):
        assert path in names(find_layers(model, [pattern], probe))
    assert len(find_layers(model, ["**"], probe)) == len(parts)


def test_firing__lists_every_call_of_every_module(resnet):
    places = firing(resnet, IMAGES)
    assert [place.tap.layer for place in places[:5]] == ["conv1", "bn1", "relu", "maxpool", "layer1.0.conv1"]
    assert places[-1].tap.layer == ""  # the network itself
    assert sum(place.kind == "ReLU" for place in places) == 17
    assert places[0].shape == (2, 64, 16, 16)


def test_docs__run_as_they_stand():
    page = (Path(__file__).parent.parent / "docs" / "explanation" / "capture.md").read_text()
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    names: dict[str, object] = {}
    exec(compile(snippet, "capture.md", "exec"), names)
    assert names["seen"]["layer3.1.relu#1"].shape == (2, 256, 4, 4)
    assert sorted(names["largest"]) == [0, 1]
