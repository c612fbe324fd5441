"""Small networks with cuts, and what a gradient blocked by a hook gives: the slow way, and captum's."""

from contextlib import contextmanager

import numpy as np
import torch
import torchvision
from torch import nn


class Product(nn.Module):
    """Units a = (x1 + x2, x1 - x2), F = a1 · a2."""

    def __init__(self):
        super().__init__()
        self.cut = nn.Linear(2, 2, bias=False)
        self.cut.weight.data = torch.tensor([[1.0, 1.0], [1.0, -1.0]])

    def forward(self, x):
        return self.cut(x).prod(dim=1, keepdim=True)


class GateAndSkip(nn.Module):
    """Units (2·relu(x - 1), x) of one number x; F is their sum."""

    class Cut(nn.Module):
        def forward(self, x):
            return torch.cat([2 * torch.relu(x - 1), x], dim=1)

    def __init__(self):
        super().__init__()
        self.cut = self.Cut()

    def forward(self, x):
        return self.cut(x).sum(dim=1, keepdim=True)


def _calibrated(module, seed=1):
    """Give norms random statistics and biases, so that nothing is linear along the way from a baseline."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.bias.data, norm.running_mean):
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return module.eval()


def dense_net():
    torch.manual_seed(0)
    return _calibrated(
        torchvision.models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=5)
    )


def residual_net():
    torch.manual_seed(0)
    return _calibrated(
        torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5, width_per_group=64)
    )


def vision_transformer():
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=16, num_classes=4
    ).eval()
    nn.init.normal_(network.heads.head.weight)  # torchvision starts it at zero
    return network


def squeeze_net():
    torch.manual_seed(0)
    return torchvision.models.squeezenet1_1(num_classes=5).eval()


def pictures(n=2, side=32, seed=3):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


@contextmanager
def blocked(module, layer, kept, axis=1):
    """Let gradients through the kept units only; what is computed forward stays as it is."""

    def hook(_, __, output):
        shape = [1] * output.ndim
        shape[axis] = -1
        mask = torch.as_tensor(np.asarray(kept)).to(output).view(shape)
        return output * mask + (output * (1 - mask)).detach()

    handle = module.get_submodule(layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def apart(one, other):
    """Return the relative L2 distance from ``other``."""
    return np.linalg.norm(np.asarray(one) - np.asarray(other)) / np.linalg.norm(np.asarray(other))
