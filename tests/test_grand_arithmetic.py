"""GraNd's mixed arithmetic: float64 where rounding would turn a ReLU, and the fast float64 convolutions it rests on."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurolens.errors import ModelMismatchError
from neurolens.networks import CifarResNet18
from neurolens.samples.grand import GradientNorms, grand
from neurolens.samples.mixed import MixedArithmetic
from neurolens.samples.wide_convolution import by_windows, winograd, winograd_weight


def error(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return ((found - expected) / expected).abs()


def slow(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Paul et al. 2021, definition 2.1, sample by sample in float64."""
    module = copy.deepcopy(module).double().eval()
    parameters = list(module.parameters())
    out = []
    for i in range(len(x)):
        loss = F.cross_entropy(module(x[i : i + 1].double()), y[i : i + 1])
        out.append(sum(g.square().sum() for g in torch.autograd.grad(loss, parameters)).sqrt())
    return torch.stack(out)


def on_the_edge(n: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a ResNet of which 512 pre-activations of the first sample are zero up to float32 rounding.

    Each channel of a late batch norm, which has one position, is shifted by minus its value there.
    """
    torch.manual_seed(0)
    module, x = CifarResNet18(5).eval(), torch.randn(n, 3, 8, 8)
    nn.init.constant_(module.layer4[0].bn2.weight, 30.0)  # these ReLUs matter
    seen = []
    wide = copy.deepcopy(module).double()
    wide.layer4[0].bn1.register_forward_hook(lambda layer, args, output: seen.append(output))
    with torch.no_grad():
        wide(x[:1].double())
        module.layer4[0].bn1.bias.copy_(-seen[0][0, :, 0, 0])
    return module, x, torch.arange(n) % 5


def test_grand__holds_a_millionth_where_rounding_turns_the_relus_of_float32():
    module, x, y = on_the_edge(4)
    expected = slow(module, x, y)
    assert float(error(grand(module, x, y, arithmetic="float32"), expected).max()) > 1e-4
    assert float(error(grand(module, x, y), expected).max()) < 2e-7
    assert float(error(grand(module, x, y, arithmetic="float64"), expected).max()) < 1e-12


def test_grand__holds_a_millionth_for_samples_that_are_almost_fitted():
    torch.manual_seed(0)
    module = CifarResNet18(5).eval()
    with torch.no_grad():
        module.linear.bias[2] += 12
    x, y = torch.randn(8, 3, 8, 8), torch.full((8,), 2)
    expected = slow(module, x, y)
    assert float(expected.max()) < 1e-4  # beyond that the slow version loses digits in p - 1
    assert float(error(grand(module, x, y), expected).max()) < 2e-7


def test_grand__of_a_network_that_insists_on_float32_names_the_setting():
    class Insisting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 5)
            self.mix = torch.randn(5, 5)  # no buffer: it stays float32

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) @ self.mix

    torch.manual_seed(0)
    module, x, y = Insisting(), torch.randn(3, 4), torch.arange(3)
    with pytest.raises(ModelMismatchError, match=r'cannot be run in float64.*grand_arithmetic = "float32"'):
        grand(module, x, y)
    assert bool((grand(module, x, y, arithmetic="float32") > 0).all())


# the mode


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Conv2d(32, 40, 3, padding=(0, 2), bias=False),
        nn.Conv2d(32, 8, 3, stride=2, padding=1),
        nn.Conv2d(32, 8, (1, 3), dilation=(1, 2), padding=(1, 0)),
        nn.Conv2d(32, 32, 3, groups=4),
        nn.Conv2d(32, 4, 3, padding="same"),
        nn.Conv2d(32, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv1d(32, 4, 3, stride=2, padding=1),
        nn.Linear(9, 4),
    ],
    ids=str,
)
def test_mixed_arithmetic__is_float64_forward_and_rounds_backward(layer: nn.Module):
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).double().requires_grad_(False)
    x = torch.randn((3, 32, 9) if isinstance(layer, nn.Conv1d) else (3, 32, 7, 9), dtype=torch.float64)
    x.requires_grad_()
    expected = layer(x)
    with MixedArithmetic():
        found = layer(x)
    g = torch.randn_like(expected)
    np.testing.assert_allclose(found.detach(), expected.detach(), rtol=0, atol=1e-13)
    (narrow,), (wide,) = (torch.autograd.grad(y, x, g) for y in (found, expected))
    assert narrow.dtype == torch.float64
    np.testing.assert_allclose(narrow, wide, rtol=0, atol=2e-6)


def test_mixed_arithmetic__leaves_to_torch_what_needs_a_gradient_of_the_weight():
    torch.manual_seed(0)
    weight = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 6, dtype=torch.float64)
    with MixedArithmetic():
        found = F.linear(x, weight)
    (gradient,) = torch.autograd.grad(found.sum(), weight)
    torch.testing.assert_close(gradient, x.sum(dim=0).expand(4, 6))


def test_mixed_arithmetic__lets_an_in_place_relu_overwrite_what_a_layer_returned():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, 4), nn.ReLU(True))
    module.double().requires_grad_(False)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    with MixedArithmetic():
        found = module(x)
    (narrow,), (wide,) = (torch.autograd.grad(y.sum(), x) for y in (found, module(x)))
    np.testing.assert_allclose(narrow, wide, rtol=0, atol=1e-6)


# the convolutions


@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2), st.integers(0, 2))
@settings(deadline=None, max_examples=30)
def test_winograd__is_the_convolution(n: int, high: int, wide: int, down: int, across: int):
    high, wide = max(high, 3 - 2 * down), max(wide, 3 - 2 * across)
    torch.manual_seed(0)
    x = torch.randn(n, 5, high, wide, dtype=torch.float64)
    weight = torch.randn(7, 5, 3, 3, dtype=torch.float64)
    found = winograd(x, winograd_weight(weight), (down, across))
    np.testing.assert_allclose(found, F.conv2d(x, weight, padding=(down, across)), rtol=0, atol=1e-12)


@given(
    *(st.tuples(st.integers(1, 3), st.integers(1, 3)) for _ in range(3)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
@settings(deadline=None, max_examples=30)
def test_by_windows__is_the_convolution(
    kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], padding: tuple[int, int]
):
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8, 9, dtype=torch.float64)
    weight = torch.randn(7, 5, *kernel, dtype=torch.float64)
    found = by_windows(x, weight, stride, padding, dilation)
    np.testing.assert_allclose(found, F.conv2d(x, weight, None, stride, padding, dilation), rtol=0, atol=1e-12)


def test_the_convolutions__do_not_depend_on_how_many_samples_a_block_takes(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    x, weight = torch.randn(5, 4, 6, 6, dtype=torch.float64), torch.randn(4, 4, 3, 3, dtype=torch.float64)
    transformed = winograd_weight(weight)
    whole = winograd(x, transformed, (1, 1)), by_windows(x, weight, (1, 1), (1, 1), (1, 1))
    monkeypatch.setattr("neurolens.samples.wide_convolution.CACHED_BYTES", 1)
    parts = winograd(x, transformed, (1, 1)), by_windows(x, weight, (1, 1), (1, 1), (1, 1))
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_gradient_norms__are_those_of_the_weights_it_was_given():
    module = nn.Linear(4, 5)
    x, y = torch.randn(3, 4), torch.arange(3)
    with GradientNorms(module) as norms:
        before = norms(x, y)
        with torch.no_grad():
            module.weight.zero_()
        torch.testing.assert_close(norms(x, y), before)
