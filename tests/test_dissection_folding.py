"""Batch norms folded for dissection: layers that are read stay what they are."""

import numpy as np
import pytest
import torch
from torch import nn
from units_cases import digits, images

from neurolens.capture import capture
from neurolens.data import shown
from neurolens.dissection.folding import folded_around
from neurolens.layers import find_layers


def probed(net):
    return next(iter(shown(images(4), net, batch_size=4)))


def norms(module):
    return [name for name, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("layers", "left"),
    [
        (["bn3"], ["bn3"]),
        (["conv1", "bn2"], ["bn1", "bn2"]),
        (["conv2:input"], ["bn2"]),
        (["**"], ["bn1", "bn2", "bn3"]),
    ],
)
def test_folded_around__leaves_what_is_read(layers, left):
    net = digits()
    module, batch = net.module.eval(), probed(net)
    found = [layer for layer in find_layers(module, layers, batch) if len(layer.shape) == 2]
    fast = folded_around(module, found, batch)
    assert norms(fast) == left
    taps = [layer.tap for layer in found]
    with torch.no_grad(), capture(module, taps) as expected, capture(fast, taps) as seen:
        module(*batch.args)
        fast(*batch.args)
    for tap, values in expected.items():
        np.testing.assert_allclose(seen[tap].numpy(), values.numpy(), atol=1e-5)
    assert norms(module) == ["bn1", "bn2", "bn3"]


class Outside(nn.Module):
    """The output of a part is what a batch norm outside of it is given."""

    def __init__(self):
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(1, 3, 3))
        self.norm = nn.BatchNorm2d(3)
        nn.init.normal_(self.norm.weight, 2.0)

    def forward(self, x):
        return self.norm(self.part(x)).relu().mean(dim=(2, 3))


def test_folded_around__gives_the_network_itself_where_a_layer_would_change():
    net = digits()
    module, batch = Outside().eval(), probed(net)
    part, norm = (find_layers(module, [name], batch) for name in ("part", "norm"))
    assert folded_around(module, part, batch) is module
    assert norms(folded_around(module, norm, batch)) == ["norm"]
    half = Outside().eval().to(torch.bfloat16)
    assert folded_around(half, part, batch) is half
