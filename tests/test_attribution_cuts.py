"""Cuts: layers that every path crosses are taken, others are refused with the residual."""

import copy

import numpy as np
import pytest
import torch
from attribution_cases import Product, dense_net, pictures, residual_net, vision_transformer
from torch import nn

from neurolens.attribution import find_cuts
from neurolens.attribution.cuts import Peak, Through, differentiable
from neurolens.errors import CaptureError, DataError, ModelMismatchError, NonFiniteError


@pytest.mark.parametrize(
    ("build", "layers", "side", "names", "units", "axis"),
    [
        (dense_net, ["features.denseblock*"], 32, ["features.denseblock1", "features.denseblock2"], [16, 16], 1),
        (residual_net, ["layer2", "layer3.0", "relu"], 32, ["relu", "layer2", "layer3.0"], [64, 128, 256], 1),
        (residual_net, ["bn1", "layer1.0.relu#1", "layer2:input"], 32, None, [64, 64, 64], 1),
        (vision_transformer, ["encoder.layers.*"], 16, None, [12, 12], 2),
    ],
)
def test_find_cuts__takes_layers_that_every_path_crosses(build, layers, side, names, units, axis):
    cuts = find_cuts(build(), layers, pictures(side=side))
    assert [layer.units for layer in cuts.layers] == units
    assert {layer.axis for layer in cuts.layers} == {axis}
    assert names is None or list(cuts.names) == names
    assert max(cuts.residuals) < 1e-5
    assert cuts.shape == (3, side, side)


@pytest.mark.parametrize(
    ("build", "layer", "side"),
    [
        (dense_net, "features.denseblock1.denselayer1", 32),
        (dense_net, "features.denseblock2.denselayer2.conv2", 32),
        (residual_net, "layer1.0.conv1", 32),
        (residual_net, "layer1.0.relu", 32),  # its first call; the second is behind the sum
        (vision_transformer, "encoder.layers.encoder_layer_0.mlp", 16),
    ],
)
def test_find_cuts__refuses_layers_with_paths_around_them(build, layer, side):
    with pytest.raises(CaptureError, match=rf"layer '{layer}' is no cut: .* by 0\.\d+ of its norm.* paths around it"):
        find_cuts(build(), [layer], pictures(side=side))


def test_find_cuts__takes_a_layer_that_is_overwritten_afterwards():
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))
    cuts = find_cuts(network, ["0", "1"], torch.randn(2, 4))
    assert cuts.names == ("0", "1")
    assert max(cuts.residuals) < 1e-5


def test_find_cuts__leaves_the_network_as_it_was():
    network = dense_net().train()
    network.classifier.bias.requires_grad_(False)
    state = copy.deepcopy(network.state_dict())
    wanted = [p.requires_grad for p in network.parameters()]
    with torch.no_grad():
        find_cuts(network, ["features.denseblock1"], pictures())
        assert not torch.is_grad_enabled()
    assert network.training
    assert [p.requires_grad for p in network.parameters()] == wanted
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in network.modules())


def test_find_cuts__of_no_layers_measures_the_memory_of_a_point():
    cuts = find_cuts(dense_net(), [], pictures())
    assert cuts.layers == ()
    assert cuts.nbytes > 3 * 32 * 32 * 4


@pytest.mark.parametrize("width", [1000, 5000])
def test_find_cuts__counts_what_a_point_holds(width):
    class Wide(nn.Module):
        def forward(self, x):
            return (x.expand(-1, width) * 1.0).relu().sum(1, keepdim=True)

    per_point = find_cuts(Wide(), [], torch.ones(1, 1)).nbytes / (4 * width)
    assert 2 <= per_point < 4.1  # product and activation forward, at most two gradients back


def test_peak__falls_when_tensors_are_freed():
    with (peak := Peak()):
        for _ in range(5):
            held = torch.zeros(1000)
            held = held + 1
        del held
    assert 8000 <= peak.nbytes <= 12000


def test_through__part_is_the_gradient_through_the_units():
    network, points = Product(), torch.tensor([[3.0, 1.0]])
    cuts = find_cuts(network, ["cut"], points)
    with differentiable(network):
        run = Through(network, cuts.layers, points)
        whole = run.back(run.logits[:, 0])
        parts = [run.part(0, torch.eye(2)[unit]) for unit in range(2)]
    np.testing.assert_allclose(whole, [[6, -2]])
    np.testing.assert_allclose(parts[0], [[2, 2]])
    np.testing.assert_allclose(parts[1], [[4, -4]])


class Ignores(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)
        self.constant = nn.Identity()

    def forward(self, x):
        self.unused(x)
        return self.used(x) + self.constant(torch.ones(len(x), 3))


@pytest.mark.parametrize(
    ("network", "layers", "x", "error", "words"),
    [
        (Ignores(), ["unused"], torch.ones(1, 4), CaptureError, "'unused' is no cut: .* by 1 of its norm"),
        (Ignores(), ["constant"], torch.ones(1, 4), CaptureError, "'constant' does not depend on the input"),
        (Ignores(), ["usde"], torch.ones(1, 4), CaptureError, "did you mean 'used'"),
        (Ignores(), ["used"], torch.ones(1, 4).long(), DataError, "floating-point samples"),
        (Ignores(), ["used"], torch.ones(0, 4), DataError, r"shape \(0, 4\)"),
        (Product(), ["cut"], torch.full((1, 2), torch.nan), NonFiniteError, "gradient of the logits is NaN"),
        (nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), ["1"], -torch.ones(1, 2), CaptureError, "logits is zero"),
        (nn.Identity(), [], torch.ones(1, 2, 2), ModelMismatchError, "a row of logits"),
    ],
)
def test_find_cuts__says_what_is_wrong(network, layers, x, error, words):
    with pytest.raises(error, match=words):
        find_cuts(network, layers, x)
