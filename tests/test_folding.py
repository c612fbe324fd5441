"""Folded batch norms: the network's function is kept, and only what is consumed by its batch norm alone is folded."""

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from neurolens.networks import CifarResNet18, DigitsConvNet
from neurolens.samples.folding import folded


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm statistics and affine parameters that a trained network might have."""
    g = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_(0, 0.1, generator=g)
            m.running_var.uniform_(0.5, 1.5, generator=g)
            with torch.no_grad():
                m.weight.uniform_(0.5, 1.5, generator=g)
                m.bias.normal_(0, 0.1, generator=g)
    return module


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.fc = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        if x.sum() > 1e9:
            x = x / 2
        return self.fc(x.mean(dim=(2, 3)))


class Twice(nn.Module):
    """One convolution before two batch norms, and one pair called twice: nothing may be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1), nn.BatchNorm2d(1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.conv(x)
        return self.fc((self.a(z) + self.b(z) + self.b(self.conv(z))).flatten(1))


class Misleading(nn.Module):
    """Neighbours in a Sequential that the network calls otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body[0](self.body[1](x).relu()).flatten(1))


class InPlace(nn.Module):
    """A ReLU between the convolution and the batch norm, on the same tensor; and a norm whose attributes are read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.conv(x)
        z.relu_()
        return self.fc(self.norm(z).flatten(1))


class Reading(InPlace):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc((self.norm(self.conv(x)) * self.norm.weight[:, None, None]).flatten(1))


class Aside(InPlace):
    """The convolution's output is also used where no gradient flows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.conv(x)
        return self.fc((self.norm(z) * z.detach().sigmoid()).flatten(1))


def norms_in(module: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (DigitsConvNet, 0),
        (CifarResNet18, 0),
        (Untraceable, 0),
        (Twice, 2),
        (Misleading, 1),
        (InPlace, 1),
        (Reading, 1),
        (Aside, 1),
        (nn.Flatten, 0),
    ],
)
def test_folded__equals_the_network_and_folds_what_may_be_folded(build: Any, left: int):
    torch.manual_seed(0)
    module = seeded(build())
    x = torch.randn(4, 3 if isinstance(module, CifarResNet18) else 1, 8, 8)
    fast = folded(module, probe=x[:2])
    assert norms_in(fast) == left
    assert not any(p.requires_grad for p in fast.parameters())
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121", "shufflenet_v2_x0_5", "googlenet"])
def test_folded__equals_torchvision_networks(name: str):
    torch.manual_seed(0)
    extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    module = seeded(torchvision.models.get_model(name, num_classes=5, **extra)).eval()
    x = torch.randn(2, 3, 32, 32)
    fast = folded(module, probe=x)
    assert norms_in(fast) < norms_in(module)
    with torch.no_grad():
        expected = module(x)
        torch.testing.assert_close(fast(x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
