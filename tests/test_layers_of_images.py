"""Post-activation channels of image networks: exact lists, widths, and values."""

import pytest
import torch
import torchvision
from layer_cases import names, taken, vision, widths
from torch import nn
from torch.nn import functional as F

from neurolens.layers import find_layers
from neurolens.networks import CifarResNet18, DigitsConvNet, cifar_resnet18_incremental


def test_find_layers__gives_the_17_calls_of_resnet18():
    layers = find_layers(vision("resnet18"), "auto", torch.randn(3, 3, 64, 64))
    blocks = [f"layer{i}.{j}.relu{call}" for i in (1, 2, 3, 4) for j in (0, 1) for call in ("", "#1")]
    assert names(layers) == ["relu", *blocks]
    assert widths(layers) == [64] * 5 + [128] * 4 + [256] * 4 + [512] * 4
    assert sum(widths(layers)) == 3904
    assert [layer.shape for layer in layers] == [(32, 32)] + [(s, s) for s in (16, 8, 4, 2) for _ in range(4)]


def test_find_layers__counts_the_activations_of_resnet18_at_224():
    layers = find_layers(vision("resnet18"), "auto", torch.randn(1, 3, 224, 224))
    counts = {layer.tap: layer.units * layer.shape[0] * layer.shape[1] for layer in layers}
    assert sum(counts.values()) == 2_308_096
    last = {tap.module: count for tap, count in counts.items()}  # what a mapping by module would be left with
    assert len(last) == 9
    assert sum(last.values()) == 1_555_456


def relus(model, kind):
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [("vgg11", nn.ReLU, 10), ("squeezenet1_0", nn.ReLU, 26), ("mobilenet_v2", nn.ReLU6, 35)],
)
def test_find_layers__gives_every_activation_module(name, kind, count):
    model, x = vision(name), torch.randn(2, 3, 64, 64)
    layers = find_layers(model, "auto", x)
    assert names(layers) == relus(model, kind)
    assert len(layers) == count
    assert all(value.min() >= 0 for value in taken(model, layers, x).values())


def test_find_layers__gives_hardswish_and_relu_of_mobilenet_v3_and_no_gates():
    model, x = vision("mobilenet_v3_small"), torch.randn(2, 3, 64, 64)
    layers = find_layers(model, "auto", x)
    modules = dict(model.named_modules())
    assert {type(modules[layer.name]) for layer in layers} == {nn.Hardswish, nn.ReLU}
    assert len(layers) == len(relus(model, (nn.Hardswish, nn.ReLU))) == 33
    assert not set(names(layers)) & set(relus(model, nn.Hardsigmoid))
    assert layers[-1].name == "classifier.1"
    assert (layers[-1].units, layers[-1].shape) == (1024, ())


def test_find_layers__gives_the_silus_of_efficientnet_and_no_gates():
    model, x = vision("efficientnet_b0"), torch.randn(2, 3, 64, 64)
    layers = find_layers(model, "auto", x)
    assert names(layers) == relus(model, nn.SiLU)
    assert len(layers) == 49
    squeezed = [layer for layer in layers if layer.name.endswith(".activation")]
    assert {layer.shape for layer in squeezed} == {(1, 1)}  # hidden units of squeeze and excitation


def test_find_layers__gives_the_last_functional_relu_of_densenet_as_the_classifier_gets_it():
    model, x = vision("densenet121"), torch.randn(2, 3, 64, 64)
    layers = find_layers(model, "auto", x)
    assert names(layers) == [*relus(model, nn.ReLU), "classifier:input"]
    assert len(layers) == 121
    seen = taken(model, layers, x)
    with torch.no_grad():
        features = F.relu(model.eval().features(x))
    torch.testing.assert_close(seen["classifier:input"], features.mean((2, 3)))


def test_find_layers__gives_the_blocks_that_end_in_a_functional_relu():
    model, x = vision("googlenet", init_weights=False, aux_logits=False), torch.randn(2, 3, 64, 64)
    layers = find_layers(model, "auto", x)
    assert names(layers) == [n for n, m in model.named_modules() if type(m).__name__ == "BasicConv2d"]
    assert all(value.min() >= 0 for value in taken(model, layers, x).values())


def test_find_layers__gives_the_functional_activations_of_the_own_resnet():
    torch.manual_seed(0)
    model, x = CifarResNet18(), torch.randn(3, 3, 32, 32)
    layers = find_layers(model, "auto", x)
    blocks = [f"layer{i}.{j}{part}" for i in (1, 2, 3, 4) for j in (0, 1) for part in (".conv2:input", "")]
    assert names(layers) == ["layer1.0.conv1:input", *blocks]
    assert sum(widths(layers)) == 3904
    seen = taken(model, layers, x)
    model.eval()
    with torch.no_grad():
        h = F.relu(model.bn1(model.conv1(x)))
        torch.testing.assert_close(seen["layer1.0.conv1:input"], h)
        for name in [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]:
            block = model.get_submodule(name)
            inner = F.relu(block.bn1(block.conv1(h)))
            h = F.relu(block.bn2(block.conv2(inner)) + block.shortcut(h))
            torch.testing.assert_close(seen[f"{name}.conv2:input"], inner)
            torch.testing.assert_close(seen[name], h)


def test_find_layers__knows_the_other_own_networks():
    digits = find_layers(DigitsConvNet(), "auto", torch.randn(2, 1, 8, 8))
    assert [(d.name, d.units, d.shape) for d in digits] == [
        ("relu", 16, (8, 8)),
        ("relu#1", 32, (8, 8)),
        ("relu#2", 32, (4, 4)),
    ]
    incremental = find_layers(cifar_resnet18_incremental(), "auto", torch.randn(2, 3, 32, 32))
    assert len(incremental) == 17
    assert incremental[0].shape == (32, 32)


def test_find_layers__finds_units_on_the_last_axis_of_maps():
    torch.manual_seed(0)
    convnext = torchvision.models.ConvNeXt([torchvision.models.convnext.CNBlockConfig(8, None, 2)], num_classes=3)
    layers = find_layers(convnext, "auto", torch.randn(2, 3, 32, 32))
    assert names(layers) == ["features.1.0.block.4", "features.1.1.block.4"]
    assert {(layer.units, layer.shape, layer.axis) for layer in layers} == {(32, (8, 8), 3)}
    swin = torchvision.models.SwinTransformer([4, 4], 8, [2], [2], [4, 4], num_classes=3)
    layers = find_layers(swin, "auto", torch.randn(2, 3, 32, 32))
    assert names(layers) == ["features.1.0.mlp.3:input", "features.1.1.mlp.3:input"]
    assert {(layer.units, layer.shape, layer.axis) for layer in layers} == {(32, (8, 8), 3)}


class Functional(nn.Module):
    """The usual first network of a tutorial: everything without parameters is functional, and pooling is a module."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.pool = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), nn.MaxPool2d(2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(24, 10), nn.Linear(10, 8), nn.Linear(8, 2)
        self.drop = nn.Dropout()

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = F.max_pool2d(torch.relu_(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        x = self.drop(self.fc2(x).sigmoid())
        return torch.softmax(self.fc3(x), 1).tanh()


def test_find_layers__takes_a_functional_activation_where_a_module_is_given_it():
    torch.manual_seed(0)
    model, x = Functional(), torch.randn(3, 1, 14, 14)
    layers = find_layers(model, "auto", x)
    assert [(layer.name, layer.units, layer.shape) for layer in layers] == [
        ("pool:input", 4, (12, 12)),
        ("fc1:input", 24, ()),  # no module is given the map itself: its pooled, flattened features are
        ("fc2:input", 10, ()),
        ("fc3:input", 8, ()),  # a sigmoid that a linear layer is given
    ]
    seen = taken(model, layers, x)
    with torch.no_grad():
        torch.testing.assert_close(seen["pool:input"], F.relu(model.conv1(x)))
        torch.testing.assert_close(seen["fc3:input"], model.fc2(seen["fc2:input"]).sigmoid())


class Mixed(nn.Module):
    """An MLP with a gate, a swish written out, and a gated output."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        x = self.b(torch.nn.functional.gelu(self.a(x)) * x)
        x = self.c(x * torch.sigmoid(x))
        return self.d(x) * torch.sigmoid(x)


def test_find_layers__takes_a_gated_activation_with_its_gate():
    torch.manual_seed(0)
    model, x = Mixed(), torch.randn(3, 6)
    layers = find_layers(model, "auto", x)
    assert names(layers) == ["b:input", "c:input"]
    seen = taken(model, layers, x)
    torch.testing.assert_close(seen["b:input"], (F.gelu(model.a(x)) * x).detach())
    torch.testing.assert_close(seen["c:input"], F.silu(model.b(seen["b:input"])).detach())


def test_find_layers__takes_units_of_a_sequence_by_the_axis_of_its_convolution():
    model = nn.Sequential(nn.Conv1d(3, 5, 3), nn.ReLU(), nn.Conv1d(5, 2, 3))
    (layer,) = find_layers(model, "auto", torch.randn(4, 3, 11))
    assert (layer.name, layer.units, layer.shape, layer.axis) == ("1", 5, (9,), 1)


class WrittenOut(nn.Module):
    """Activations in other words: clamp, a squared and a scaled ReLU, and padding before a convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Conv1d(6, 6, 1) for _ in range(5))

    def forward(self, x):
        x = self.b(self.a(x).clamp(min=0))
        x = self.c(torch.square(F.relu(x)))
        x = self.d(1.7 * F.relu(x))
        x = self.e(F.pad(F.hardtanh(x), (1, 1)))
        return x.clamp(-1, 1)


def test_find_layers__takes_what_a_convolution_is_given():
    torch.manual_seed(0)
    model, x = WrittenOut(), torch.randn(3, 6, 5)
    layers = find_layers(model, "auto", x)
    assert [(layer.name, layer.units, layer.shape, layer.axis) for layer in layers] == [
        ("b:input", 6, (5,), 1),
        ("c:input", 6, (5,), 1),
        ("d:input", 6, (5,), 1),
        ("e:input", 6, (7,), 1),  # padded
    ]
    seen = taken(model, layers, x)
    with torch.no_grad():
        torch.testing.assert_close(seen["b:input"], model.a(x).relu())
        torch.testing.assert_close(seen["c:input"], model.b(seen["b:input"]).relu() ** 2)
        torch.testing.assert_close(seen["d:input"], 1.7 * model.c(seen["c:input"]).relu())
        torch.testing.assert_close(seen["e:input"][..., 1:-1], model.d(seen["d:input"]).clamp(-1, 1))
