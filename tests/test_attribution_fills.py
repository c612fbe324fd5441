"""What comes in the place of pixels that are taken away."""

from functools import partial

import numpy as np
import pytest
import torch
from attribution_cases import pictures

from neurolens.attribution import blur_fill, filled, road_fill
from neurolens.errors import DataError, SchemaError


def masks(n=2, side=8, share=0.3, seed=0):
    return torch.rand(n, side, side, generator=torch.Generator().manual_seed(seed)) < share


FILLS = ["zero", "mean", "blur", "road", 0.5, torch.tensor([1.0, 2, 3]).view(3, 1, 1), partial(road_fill, noise=0)]
NAMES = ["zero", "mean", "blur", "road", "number", "tensor", "function"]


@pytest.mark.parametrize("fill", FILLS, ids=NAMES)
def test_filled__leaves_the_rest(fill):
    x, away = pictures(side=8), masks()
    before = x.clone()
    found = filled(x, away, fill)
    kept = ~away[:, None].expand_as(x)
    assert torch.equal(found[kept], x[kept])
    assert not torch.equal(found, x)
    assert torch.equal(x, before)
    assert torch.equal(filled(x, torch.zeros_like(away), fill), x)


@pytest.mark.parametrize("fill", FILLS, ids=NAMES)
def test_filled__of_one_does_not_depend_on_others(fill):
    x, away = pictures(4, side=8), masks(4)
    torch.testing.assert_close(filled(x, away, fill)[2:3], filled(x[2:3], away[2:3], fill))


def test_filled__puts_values():
    x, away = pictures(side=8), masks()
    at = away[:, None].expand_as(x)
    assert (filled(x, away)[at] == 0).all()
    assert (filled(x, away, 0.5)[at] == 0.5).all()
    means = x.mean(dim=(2, 3), keepdim=True).expand_as(x)
    torch.testing.assert_close(filled(x, away, "mean")[at], means[at])
    colour = torch.tensor([1.0, 2, 3]).view(3, 1, 1)
    assert torch.equal(filled(x, away, colour)[at], colour.expand_as(x)[at])
    vectors, some = torch.tensor([[1.0, 2, 6]]), torch.tensor([[True, False, False]])
    assert torch.equal(filled(vectors, some, "mean"), torch.tensor([[3.0, 2, 6]]))


def test_blur_fill__is_a_gaussian_mean():
    x = pictures(1, side=6)[..., :4].double()
    found = blur_fill(x, masks(1)[:, :6, :4], sigma=1.5)
    y, z = np.mgrid[:6, :4]
    for row in range(6):
        for column in range(4):
            weights = np.exp(-((y - row) ** 2 + (z - column) ** 2) / (2 * 1.5**2))
            expected = (x[0].numpy() * weights).sum((1, 2)) / weights.sum()
            np.testing.assert_allclose(found[0, :, row, column], expected, rtol=1e-10)
    flat = torch.full((1, 3, 8, 8), 2.5)
    torch.testing.assert_close(blur_fill(flat, masks(1)), flat)


def test_road_fill__is_the_weighted_mean_of_neighbours():
    x, away = pictures(1, side=8).double(), masks(1, share=0.6)
    slow = np.where(away[0], 0.0, x[0].numpy())
    for _ in range(2000):  # what each masked pixel's equation says, over and over
        for row, column in zip(*np.nonzero(away[0].numpy()), strict=True):
            total, weight = np.zeros(3), 0.0
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if (dy or dx) and 0 <= row + dy < 8 and 0 <= column + dx < 8:
                        w = 1 / 12 if dy and dx else 1 / 6
                        total, weight = total + w * slow[:, row + dy, column + dx], weight + w
            change = np.abs(slow[:, row, column] - total / weight).max()
            slow[:, row, column] = total / weight
        if change < 1e-14:
            break
    np.testing.assert_allclose(filled(x, away, partial(road_fill, noise=0))[0], slow, atol=1e-10)


def test_road_fill__finds_a_slope():
    y, z = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    x = (2 * y - z + 1).expand(1, 3, 9, 9)
    away = torch.zeros(1, 9, 9, dtype=torch.bool)
    away[:, 2:7, 3:8] = True
    torch.testing.assert_close(road_fill(x, away, noise=0), x, atol=1e-5, rtol=0)


def test_road_fill__adds_noise_by_its_seed():
    x, away = torch.zeros(1, 3, 64, 64), masks(1, side=64)
    one, again, other = (road_fill(x, away, noise=0.1, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert float(one[:, :, away[0]].std()) == pytest.approx(0.1, rel=0.1)


def test_filled__says_what_is_wrong():
    x, away = pictures(side=8), masks()
    with pytest.raises(SchemaError, match="did you mean 'blur'"):
        filled(x, away, "blurr")
    with pytest.raises(SchemaError, match=r"found a fill of shape \(3,\).*\(channel, 1, 1\)"):
        filled(x, away, torch.ones(3))
    with pytest.raises(DataError, match=r"masks of torch\.float32"):
        filled(x, away.float())
    with pytest.raises(DataError, match="'road' needs pictures"):
        filled(torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool), "road")
    with pytest.raises(DataError, match="a pixel that is left"):
        filled(x, torch.ones_like(away), "road")
    with pytest.raises(SchemaError, match="sigma=0 is no width"):
        blur_fill(x, away, sigma=0)
