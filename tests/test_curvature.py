"""Input-loss curvature: golden numbers, the definition one sample at a time, and draws that belong to the sample."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurolens.networks import DigitsConvNet
from neurolens.samples.input_curvature import input_curvature, rademacher, row_norms


def linear() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    module = nn.Linear(2, 3).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        module.bias.zero_()
    return module, torch.tensor([[1.0, 0.0], [0.5, -0.5], [2.0, 1.0]]).double(), torch.tensor([0, 1, 2])


def slow(module: nn.Module, x: torch.Tensor, y: torch.Tensor, signs: torch.Tensor, h: float) -> np.ndarray:
    """The definition, one sample and one draw at a time."""

    def gradient(xi: torch.Tensor, yi: torch.Tensor) -> torch.Tensor:
        leaf = xi[None].clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(module(leaf), yi[None]), leaf)[0]

    out = [
        np.mean([(gradient(x[i] + h * v, y[i]) - gradient(x[i], y[i])).norm().item() for v in signs[:, i].to(x.dtype)])
        for i in range(len(x))
    ]
    return np.array(out)


def test_input_curvature__gives_the_golden_numbers_of_a_linear_softmax():
    signs = torch.tensor([[[1, -1], [1, 1], [-1, 1]]])
    found = input_curvature(*linear(), signs, h=1e-3)
    np.testing.assert_allclose(found, [0.00052459, 0.00137039, 0.00055413], rtol=2e-3)
    # the golden numbers are h ||Hv||, with the Hessian's own definition; a smaller step comes nearer to it
    module, x, y = linear()
    hessian = torch.autograd.functional.hessian
    exact = [
        (hessian(lambda z, i=i: F.cross_entropy(module(z), y[i]), x[i]) @ signs[0, i].double()).norm().item()
        for i in range(3)
    ]
    np.testing.assert_allclose(np.array(exact) * 1e-3, [0.00052459, 0.00137039, 0.00055413], atol=5e-9)
    np.testing.assert_allclose(input_curvature(*linear(), signs, h=1e-6) / 1e-6, exact, rtol=1e-5)


def test_input_curvature__in_float32_keeps_enough_digits():
    module, x, y = linear()
    signs = torch.tensor([[[1, -1], [1, 1], [-1, 1]]])
    found = input_curvature(module.float(), x.float(), y, signs, h=1e-3)
    np.testing.assert_allclose(found, [0.00052459, 0.00137039, 0.00055413], rtol=3e-3)


def test_input_curvature__matches_the_definition_sample_by_sample():
    torch.manual_seed(0)
    module, x, y = DigitsConvNet().double().eval(), torch.randn(4, 1, 8, 8).double(), torch.arange(4)
    signs = rademacher(["a", "b", "c", "d"], (1, 8, 8), draws=3, seed=0)
    np.testing.assert_allclose(
        input_curvature(module, x, y, signs, h=1e-2), slow(module, x, y, signs, 1e-2), rtol=1e-9, atol=1e-15
    )


def test_input_curvature__of_a_flat_loss_is_zero():
    module = nn.Linear(2, 3)
    nn.init.zeros_(module.weight)
    signs = rademacher(["a"], (2,), draws=4, seed=0)
    assert float(input_curvature(module, torch.randn(1, 2), torch.tensor([0]), signs)[0]) == 0


@given(st.permutations(["a", "b", "c", "d", "e"]), st.integers(1, 5))
@settings(deadline=None, max_examples=15)
def test_rademacher__belongs_to_the_sample_not_to_its_place(order: list[str], size: int):
    every = dict(zip("abcde", rademacher(list("abcde"), (3, 3), draws=2, seed=1).transpose(0, 1), strict=True))
    for start in range(0, 5, size):
        names = order[start : start + size]
        drawn = rademacher(names, (3, 3), draws=2, seed=1).transpose(0, 1)
        for name, signs in zip(names, drawn, strict=True):
            torch.testing.assert_close(signs, every[name], rtol=0, atol=0)


def test_rademacher__keeps_the_first_draws_when_more_are_asked_for_and_changes_with_the_seed():
    few, more = (rademacher(["a", "b"], (1, 8, 8), draws=n, seed=0) for n in (2, 5))
    torch.testing.assert_close(more[:2], few, rtol=0, atol=0)
    assert not torch.equal(few, rademacher(["a", "b"], (1, 8, 8), draws=2, seed=1))


def test_rademacher__is_even_and_the_same_on_every_machine():
    signs = rademacher([str(i) for i in range(200)], (10, 10), draws=5, seed=0)
    assert signs.shape == (5, 200, 10, 10)
    assert set(signs.unique().tolist()) == {-1, 1}
    assert abs(float(signs.double().mean())) < 4 / np.sqrt(signs.numel())
    first = rademacher(["sample"], (8,), draws=2, seed=0)
    assert first.flatten().tolist() == [-1, 1, 1, 1, -1, -1, -1, 1, 1, 1, 1, -1, 1, -1, -1, 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_row_norms__divide_each_channel(channels: int):
    gradient = torch.randn(2, channels, 4, 5)
    spread = torch.arange(1, channels + 1).double()
    expected = (gradient.double() / spread[:, None, None]).flatten(1).norm(dim=1)
    torch.testing.assert_close(row_norms(gradient, divide_by=spread), expected)
    torch.testing.assert_close(row_norms(gradient), gradient.double().flatten(1).norm(dim=1))
