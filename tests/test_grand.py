"""GraNd: ghost norms against plain autograd, one sample at a time in float64, for every kind of layer and sharing."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurolens.errors import ModelMismatchError
from neurolens.networks import CifarResNet18, DigitsConvNet
from neurolens.samples.grand import GradientNorms, grand, seed_scores


def seeded(module: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(0)
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_(0, 0.1, generator=g)
            m.running_var.uniform_(0.5, 1.5, generator=g)
            with torch.no_grad():
                m.weight.uniform_(0.5, 1.5, generator=g)
                m.bias.normal_(0, 0.1, generator=g)
    return module


def slow(module: nn.Module, x: torch.Tensor, y: torch.Tensor, weight_decay: float = 0.0) -> np.ndarray:
    """Paul et al. 2021, definition 2.1, sample by sample: ||d L(x_i) / d theta||, in float64."""
    module = copy.deepcopy(module).double().eval()
    parameters = [p for p in module.parameters() if p.requires_grad]
    out = []
    for i in range(len(x)):
        sample = x[i : i + 1].double() if x.is_floating_point() else x[i : i + 1]
        loss = F.cross_entropy(module(sample), y[i : i + 1])
        loss = loss + weight_decay * sum(p.square().sum() for p in parameters)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        out.append(sum(g.square().sum().item() for g in gradients if g is not None) ** 0.5)
    return np.array(out)


def labels(n: int, classes: int = 5) -> torch.Tensor:
    return torch.arange(n) % classes


class Shared(nn.Module):
    """Layers that are called several times: a convolution, a batch norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(12, 12)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = self.relu(self.norm(self.conv(x)))
        x = F.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.head(self.fc(torch.tanh(self.fc(x))))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 5)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x.flatten(1)[:, :12])))))


class Functional(nn.Module):
    """A layer that is called, and whose weight is used once more behind its back; and bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(12, 12), nn.Linear(12, 5)
        self.token = nn.Parameter(torch.randn(12))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(x.flatten(1)[:, :12] + self.token)
        return self.head(F.linear(torch.tanh(x), self.fc.weight))


class Sequence(nn.Module):
    """Linear and layer norm over (n, positions, features), a 1-d convolution, and a group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.up = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 6, bias=False)
        self.conv, self.group, self.head = nn.Conv1d(6, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.norm(self.embed(x.flatten(2).mT)).relu())
        return self.head(self.group(self.conv(x.mT)).mean(dim=2))


class Attention(nn.Module):
    """torch's own attention, whose weights are used by a function, and a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Linear(3, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.attend, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x.flatten(2).mT)], dim=1)
        return self.head(self.attend(x, x, x, need_weights=False)[0][:, 0])


class Folding(nn.Module):
    """Samples folded into the batch dimension and back: a layer does not see one row per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(16, 4), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = len(x)
        return self.head(torch.tanh(self.inner(x.reshape(n * 3, -1)[:, :16])).reshape(n, 3, 4).mean(dim=1))


class Tokens(nn.Module):
    """Integer inputs and an embedding tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 6), nn.Linear(6, 5)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x).mean(dim=1))


def in_place_resnet() -> nn.Module:
    return torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)


# golden numbers


def linear() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    module = nn.Linear(2, 3)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        module.bias.zero_()
    return module, torch.tensor([[1.0, 0.0], [0.5, -0.5], [2.0, 1.0]]), torch.tensor([0, 1, 2])


def test_grand__gives_the_golden_numbers_of_a_linear_softmax():
    np.testing.assert_allclose(grand(*linear()), [0.600102, 1.232656, 3.089721], atol=1e-6)


def test_seed_scores__give_the_golden_numbers_of_the_reference():
    loss, norm = seed_scores(*linear(), weight_decay=1e-4)
    np.testing.assert_allclose(loss, np.array([0.407606, 1.680270, 5.318175]) + 0.0004, atol=1e-6)
    np.testing.assert_allclose(norm, [0.599960, 1.232763, 3.090026], atol=1e-6)


def test_seed_scores__match_a_slow_version_of_the_penalised_loss():
    torch.manual_seed(0)
    module, x = seeded(DigitsConvNet(5)), torch.randn(4, 1, 8, 8)
    np.testing.assert_allclose(
        seed_scores(module, x, labels(4), weight_decay=0.01)[1], slow(module, x, labels(4), 0.01), rtol=1e-5
    )


# against plain autograd


@pytest.mark.parametrize("build", [DigitsConvNet, lambda c: CifarResNet18(c), lambda c: in_place_resnet()])
def test_grand__matches_the_per_sample_loop_to_a_millionth(build: Any):
    torch.manual_seed(0)
    module = seeded(build(5))
    x = torch.randn(5, 1 if isinstance(module, DigitsConvNet) else 3, 16, 16)
    if isinstance(module, DigitsConvNet):
        x = x[:, :, :8, :8]
    with GradientNorms(module) as norms:
        found = norms(x, labels(5))
        assert norms.explicit == ()
    np.testing.assert_allclose(found, slow(module, x, labels(5)), rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "explicit"),
    [
        (Shared, 0),
        (Sequence, 0),
        (Tied, 1),
        (Functional, 7),
        (Attention, 5),
        (Folding, 2),
    ],
)
def test_grand__is_exact_where_layers_are_reused_tied_or_unknown(build: Any, explicit: int):
    torch.manual_seed(0)
    module, x = seeded(build()), torch.randn(6, 3, 4, 4)
    with GradientNorms(module) as norms:
        found = norms(x, labels(6))
        again = norms(x[:4], labels(4))
        assert len(norms.explicit) == explicit
    np.testing.assert_allclose(found, slow(module, x, labels(6)), rtol=2e-6)
    np.testing.assert_allclose(again, found[:4], rtol=1e-5)


def test_grand__sees_that_an_in_place_operation_overwrote_what_a_layer_had_read():
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.skip, self.head = nn.Linear(4, 4), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x * 1.5
            skip = self.skip(x)
            x.relu_()  # plain autograd refuses to differentiate the skip's weights
            return self.head(torch.cat([x, skip], dim=3).mean(dim=(1, 2)))

    with GradientNorms(Overwriting()) as norms:
        with pytest.raises(ModelMismatchError, match=r"through Linear \(skip\)"):
            norms(torch.randn(6, 3, 4, 4), labels(6))
        assert norms.explicit == ("skip.weight", "skip.bias")


def test_grand__takes_token_ids():
    torch.manual_seed(0)
    module, x = Tokens(), torch.randint(0, 5, (4, 7))
    np.testing.assert_allclose(grand(module, x, labels(4)), slow(module, x, labels(4)), rtol=2e-6)


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v2", "shufflenet_v2_x0_5", "efficientnet_b0"])
def test_grand__matches_the_loop_on_torchvision_networks(name: str):
    torch.manual_seed(0)
    module = seeded(torchvision.models.get_model(name, num_classes=5))
    x = torch.randn(2, 3, 32, 32)
    np.testing.assert_allclose(grand(module, x, labels(2)), slow(module, x, labels(2)), rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"padding": 2, "dilation": 2},
        {"groups": 2, "bias": False},
        {"groups": 4, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"padding": (0, 2), "stride": (2, 1), "padding_mode": "reflect"},
        {"padding": 1, "padding_mode": "circular"},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": (2, 3), "padding": "same"},
        {"kernel_size": 7},
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_grand__knows_every_option_of_a_convolution(options: dict[str, Any], transposed: bool):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, **{"kernel_size": 3} | options)
    module = nn.Sequential(conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))
    x = torch.randn(3, 4, 7, 9)
    x = x.to(memory_format=torch.channels_last) if transposed else x
    np.testing.assert_allclose(grand(module, x, labels(3)), slow(module, x, labels(3)), rtol=2e-6)


@given(
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 40),
    st.integers(0, 3),
)
@settings(deadline=None, max_examples=25)
def test_grand__is_the_same_by_gram_matrices_and_by_products(n: int, fan_in: int, fan_out: int, length: int, seed: int):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv1d(fan_in, fan_out, 1), nn.Tanh(), nn.AdaptiveMaxPool1d(1), nn.Flatten())
    module.append(nn.Linear(fan_out, 5))
    x = torch.randn(n, fan_in, length)
    np.testing.assert_allclose(grand(module, x, labels(n)), slow(module, x, labels(n)), rtol=1e-5)


# invariants


def test_grand__counts_only_the_parameters_that_require_a_gradient():
    torch.manual_seed(0)
    module, x = seeded(DigitsConvNet(5)), torch.randn(4, 1, 8, 8)
    module.conv1.requires_grad_(False)
    module.fc.bias.requires_grad_(False)
    np.testing.assert_allclose(grand(module, x, labels(4)), slow(module, x, labels(4)), rtol=1e-6)
    assert not module.conv1.weight.requires_grad
    assert module.fc.weight.requires_grad


def test_grand__leaves_the_network_as_it_was():
    module, x = seeded(Shared()).train(), torch.randn(4, 3, 4, 4)
    before = copy.deepcopy(module.state_dict())
    grand(module, x, labels(4))
    assert module.training
    assert module.norm.training
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert not any(m._forward_hooks for m in module.modules())
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@given(st.permutations(range(6)), st.integers(1, 6))
@settings(deadline=None, max_examples=10)
def test_grand__is_blind_to_order_and_batch(order: list[int], size: int):
    torch.manual_seed(0)
    module, x, y = seeded(DigitsConvNet(5)), torch.randn(6, 1, 8, 8), labels(6)
    with GradientNorms(module) as norms:
        expected = norms(x, y)
        parts = [norms(x[order[i : i + size]], y[order[i : i + size]]) for i in range(0, 6, size)]
    np.testing.assert_allclose(torch.cat(parts), expected[order], rtol=1e-5)


def test_grand__of_a_perfectly_fitted_sample_is_zero_or_nearly():
    module = nn.Linear(2, 3)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[500.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
    assert float(grand(module, torch.tensor([[1.0, 0.0]]), torch.tensor([0]))[0]) < 1e-30


# what cannot be measured


def test_grand__of_a_frozen_network_says_what_to_do():
    with pytest.raises(ModelMismatchError, match=r"no parameter .* grand = false"):
        grand(nn.Linear(2, 3).requires_grad_(False), torch.randn(1, 2), labels(1))


def test_grand__names_the_layer_that_can_be_handled_neither_way():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight if x.sum() > 0 else -x @ self.weight

    with pytest.raises(ModelMismatchError, match=r"through Branching \(0\).*grand = false"):
        grand(nn.Sequential(Branching()), torch.randn(3, 2), labels(3))
