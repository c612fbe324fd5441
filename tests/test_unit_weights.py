"""Weights out of units: by hand, by the gradient of a reader, and who reads whom in real networks."""

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from language_models import tiny_neox
from torch import nn
from units_cases import digits, images

from neurolens.layers import find_layers
from neurolens.study import Units
from neurolens.units import weights
from neurolens.units.measure import measure
from neurolens.units.statistics import UnitStatistics

Array = np.ndarray[Any, np.dtype[Any]]


def readers(module: nn.Module, layers: Any, *args: torch.Tensor) -> dict[str, list[str]]:
    module.eval()
    found = find_layers(module, layers, args)
    return {
        layer.name: sorted(read) for layer, read in zip(found, weights.readers_of(module, found, args), strict=True)
    }


def test_out_weight__contribution_utility_by_hand() -> None:
    module = nn.Sequential(nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, -2, 0], [3, 0, 0]]))
    found = weights.out_weight(module, {"0": "linear"}, 3)
    act = UnitStatistics.of([[1, 0, 5], [1, 2, 5]])
    assert (found * act.abs_sum / act.n).tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    "reader",
    [
        nn.Linear(6, 4),
        nn.Conv2d(6, 4, 3),
        nn.Conv2d(6, 4, 3, groups=2),
        nn.Conv2d(6, 12, 1, groups=6),
        nn.Conv1d(6, 4, 2, groups=2),
        nn.ConvTranspose2d(6, 4, 3),
        nn.ConvTranspose2d(6, 4, 3, groups=2),
    ],
)
def test_out_weight__is_the_mean_over_the_weights_that_a_unit_meets(reader: nn.Module) -> None:
    """Slowly: the weights that an output has a gradient to, when that unit alone is one."""
    place = () if isinstance(reader, nn.Linear) else (5,) if isinstance(reader, nn.Conv1d) else (5, 5)
    wanted = []
    for unit in range(6):
        x = torch.zeros(1, 6, *place)
        x[:, unit] = 1
        reader.zero_grad()
        reader(x).sum().backward()
        wanted.append(float(reader.weight.detach()[reader.weight.grad != 0].abs().double().mean()))
    before = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d}[len(place)]
    module = nn.Sequential(before(6, 6, *[1] * bool(place)), nn.ReLU(), reader)
    layers = find_layers(module, ("1",), torch.rand(2, 6, *place))
    found = weights.readers_of(module, layers, (torch.rand(2, 6, *place),))
    np.testing.assert_allclose(weights.out_weight(module, found[0], 6), wanted, rtol=1e-6)


def test_out_weight__of_transformers_conv1d() -> None:
    from transformers.pytorch_utils import Conv1D

    module = nn.Sequential(nn.ReLU(), Conv1D(4, 6))
    x = torch.rand(2, 5, 6)
    found = weights.readers_of(module, find_layers(module, ("0",), x), (x,))
    wanted = module[1].weight.detach().abs().mean(dim=1)
    np.testing.assert_allclose(weights.out_weight(module, found[0], 6), wanted, rtol=1e-6)


def test_out_weight__of_several_readers_is_over_all_their_weights() -> None:
    module = nn.ModuleDict({"a": nn.Linear(2, 1, bias=False), "b": nn.Linear(2, 3, bias=False)})
    with torch.no_grad():
        module["a"].weight.fill_(4)
        module["b"].weight.fill_(-1)
    assert weights.out_weight(module, {"a": "linear", "b": "linear"}, 2).tolist() == [1.75, 1.75]
    assert np.isnan(weights.out_weight(module, {}, 2)).all()


def test_readers_of__resnet18() -> None:
    found = readers(torchvision.models.resnet18(), "auto", torch.rand(2, 3, 64, 64))
    assert found["relu"] == []  # the pooling reads it
    assert found["layer1.0.relu"] == ["layer1.0.conv2"]
    assert found["layer1.0.relu#1"] == ["layer1.1.conv1"]
    assert found["layer1.1.relu#1"] == ["layer2.0.conv1", "layer2.0.downsample.0"]
    assert found["layer4.1.relu#1"] == []  # the average over the map is read


def test_readers_of__a_down_projection_reads_its_input() -> None:
    found = readers(tiny_neox().gpt_neox, "auto", torch.randint(0, 200, (2, 7)))
    assert found == {f"layers.{i}.mlp.dense_4h_to_h:input": [f"layers.{i}.mlp.dense_4h_to_h"] for i in range(3)}


class Changed(nn.Module):
    """A tensor that is given on unchanged, changed in place, as a view, and halved."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ReLU()
        self.drop = nn.Dropout()
        self.one, self.two, self.three, self.four = (nn.Linear(4, 4) for _ in range(4))
        self.part = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        y = self.one(self.drop(h)) + self.two(h.view(-1, 4)) + self.four(h * 1)
        self.part(h[:, :2])
        h += 1
        out: torch.Tensor = y + self.three(h)
        return out


def test_readers_of__only_of_the_very_values() -> None:
    assert readers(Changed(), ("first",), torch.randn(3, 4)) == {"first": ["one", "two"]}


def test_parameter_magnitudes__of_every_weight_but_no_bias() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Conv1d(1, 1, 2))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[3.0, -4], [0, 0]]))
        module[2].weight.fill_(-2)
    assert list(weights.weight_parameters(module)) == ["0.weight", "2.weight"]
    mean_abs, norm = weights.parameter_magnitudes(module)
    np.testing.assert_allclose(mean_abs, [1.75, 2])
    np.testing.assert_allclose(norm, [5, np.sqrt(8)])


def test_measure__weights_alone_run_no_pass() -> None:
    net, samples = digits(), images(5)
    table = Units(weights=True)
    steps: list[int] = []
    found = measure(net, samples, parts=("weights",), table=table, progress=lambda a, b: steps.append(a))  # type: ignore[arg-type]
    assert steps == []
    assert set(found) == {"out_weight", "parameter_mean_abs", "parameter_norm"}
    wanted = net.module.conv2.weight.detach().abs().mean(dim=(0, 2, 3))
    assert np.isnan(found["out_weight"][16:]).all()  # read by a pooling
    np.testing.assert_allclose(found["out_weight"][:16], wanted, rtol=1e-6)
