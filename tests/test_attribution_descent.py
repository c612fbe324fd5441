"""Gradients that are followed back together: the same as autograd's, one by one, in every network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from attribution_cases import (
    apart,
    blocked,
    dense_net,
    pictures,
    residual_net,
    squeeze_net,
    vision_transformer,
)
from captum.attr import IntegratedGradients
from torch import nn
from torch.autograd.graph import get_gradient_edge

from neurolens.attribution import (
    attributions,
    basis_gradients,
    cluster_masks,
    complements,
    find_cuts,
    jacobians,
    patch_table,
    plan,
)
from neurolens.attribution.descent import Descent, _ordered
from neurolens.attribution.jacobians import RULES, Constants, Rows, back
from neurolens.errors import ModelMismatchError, SchemaError

METHODS = ["integrated_gradients", "saliency"]
NETWORKS = [
    (dense_net, ["features.denseblock1", "features.denseblock2"], 32, 1),
    (residual_net, ["layer1", "layer3"], 32, 1),
    (squeeze_net, ["features.3", "features.12"], 64, 1),
    (vision_transformer, ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"], 16, 2),
]


def requests(cuts, ks=(2, 3)):
    random = np.random.default_rng(0)
    return {
        layer.name: complements(
            xr.concat([cluster_masks(random.permutation(np.arange(layer.units) % k)) for k in ks], "map")
        )
        for layer in cuts.layers
    }


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("build", "layers", "side", "axis"), NETWORKS)
def test_basis_gradients__together_are_those_one_by_one(build, layers, side, axis, layout):
    module = build().to(memory_format=layout)
    x = pictures(3, side=side).contiguous(memory_format=layout)
    cuts = find_cuts(module, layers, x)
    assert cuts.together is not None
    found = plan(requests(cuts), whole=False)
    for options in ({"steps": 5}, {"steps": 5, "batch_size": 4, "baseline": 0.2}, {"steps": 0}):
        one = basis_gradients(module, x, replace(cuts, together=None), found, **options)
        both = basis_gradients(module, x, cuts, found, **options)
        assert (one.attrs["together"], both.attrs["together"] > 1) == (0, True)
        assert one.attrs["partial_backwards"] == both.attrs["partial_backwards"]
        for name in {"integrated_gradients", "gradient"} & set(one):
            for vector in one["vector"].to_numpy():
                assert apart(both[name].sel(vector=vector), one[name].sel(vector=vector)) < 1e-5, (name, vector)


@pytest.mark.parametrize(("build", "layers", "side", "axis"), NETWORKS)
def test_basis_gradients__in_bfloat16_are_captums(build, layers, side, axis):
    module, x = build(), pictures(side=side)
    cuts = find_cuts(module, layers, x)
    asked = requests(cuts)
    found = plan(asked)
    basis = basis_gradients(module, x, cuts, found, cotangents="bfloat16", steps=8)
    exact = basis_gradients(module, x, cuts, found, steps=8)
    assert (basis.attrs["cotangents"], exact.attrs["cotangents"]) == ("bfloat16", "float32")
    for name in ("gradient", "integrated_gradients"):
        np.testing.assert_array_equal(basis[name].sel(vector="whole"), exact[name].sel(vector="whole"))
    assert not basis["gradient"].equals(exact["gradient"])
    maps = attributions(basis, found)
    targets = torch.as_tensor(basis["target"].to_numpy())
    for layer, masks in asked.items():
        for name, kept in zip(masks["map"].to_numpy(), masks.to_numpy()):
            with blocked(module, layer, kept, axis):
                expected = IntegratedGradients(module).attribute(x, target=targets, n_steps=8).detach().numpy()
            assert apart(maps["integrated_gradients"].sel(map=f"{layer}/{name}"), expected) < 2e-2, (layer, name)


def test_basis_gradients__in_bfloat16_keep_the_highest_patches():
    module, x = dense_net(), pictures(side=56)
    cuts = find_cuts(module, ["features.denseblock?"], x)
    found = plan(requests(cuts))
    tables = [
        patch_table(
            attributions(basis_gradients(module, x, cuts, found, cotangents=kind), found)[METHODS].to_dataarray(
                "method"
            ),
            grid=14,
        )
        for kind in ("same", "bfloat16")
    ]
    exact, rounded = (np.argsort(-table.to_numpy().reshape(-1, 196))[:, :20] for table in tables)
    kept = [len({*one} & {*other}) for one, other in zip(exact, rounded, strict=True)]
    assert min(kept) >= 19


def test_basis_gradients__in_bfloat16_do_not_depend_on_what_else_is_measured():
    module, x = dense_net(), pictures()
    cuts = find_cuts(module, ["features.denseblock1"], x)
    found = plan(requests(cuts))
    options = {"cotangents": "bfloat16", "steps": 3}
    together = basis_gradients(module, x, cuts, found, **options)
    for name in found.chosen()[1:]:
        alone = basis_gradients(module, x, cuts, found, vectors=[name], **options)
        assert apart(alone["gradient"][:, 0], together["gradient"].sel(vector=name)) < 5e-3


class Hooked(nn.Module):
    """A gradient that a hook changes on its way, which the graph does not tell."""

    def __init__(self):
        super().__init__()
        self.low, self.cut, self.top = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        low = self.low(x)
        if low.requires_grad:
            low.register_hook(lambda gradient: 2 * gradient)
        return self.top(self.cut(low.tanh()))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x * factor, x + 1

    @staticmethod
    def backward(ctx, one, other):
        return one * ctx.factor + other, None


class Custom(Hooked):
    """An operation with a gradient of its own, of which one output is not used."""

    def forward(self, x):
        return self.top(self.cut(Doubled.apply(self.low(x), 3.0)[0].tanh()))


def test_find_cuts__says_that_gradients_cannot_be_followed_together():
    module, x = Hooked(), torch.randn(3, 4)
    cuts = find_cuts(module, ["cut"], x)
    assert cuts.together is None
    found = plan(requests(cuts))
    basis = basis_gradients(module, x, cuts, found, steps=3)
    assert basis.attrs["together"] == 0
    with blocked(module, "cut", requests(cuts)["cut"].to_numpy()[0]):
        points = x.clone().requires_grad_()
        logits = module(points)
        (expected,) = torch.autograd.grad(logits.max(1).values.sum(), points)
    name = requests(cuts)["cut"]["map"].to_numpy()[0]
    np.testing.assert_allclose(attributions(basis, found)["saliency"].sel(map=f"cut/{name}"), expected.abs(), rtol=1e-5)
    with pytest.raises(ModelMismatchError, match=r"autograd alone.*leave it out"):
        basis_gradients(module, x, cuts, found, cotangents="bfloat16")
    with pytest.raises(SchemaError, match="did you mean 'bfloat16'"):
        basis_gradients(module, x, cuts, found, cotangents="bfloat")


def test_basis_gradients__follow_operations_with_gradients_of_their_own():
    module, x = Custom(), torch.randn(3, 4)
    cuts = find_cuts(module, ["cut"], x)
    assert cuts.together is not None
    found = plan(requests(cuts))
    one = basis_gradients(module, x, replace(cuts, together=None), found, steps=3)
    both = basis_gradients(module, x, cuts, found, steps=3)
    assert apart(both["integrated_gradients"], one["integrated_gradients"]) < 1e-6


def test_basis_gradients__go_through_a_first_convolution_once_for_all_points(monkeypatch):
    module, x = dense_net(), pictures()
    cuts = find_cuts(module, ["features.denseblock1"], x)
    found, first, seen = plan(requests(cuts)), module.features.conv0.weight, []
    rule = RULES["ConvolutionBackward0"]

    def convolution(step, rows, constants):
        if step.node._saved_weight.data_ptr() == first.data_ptr():
            seen.append(rows.values.shape[:2].numel())
        return rule(step, rows, constants)

    monkeypatch.setitem(jacobians.RULES, "ConvolutionBackward0", convolution)
    basis = basis_gradients(module, x, cuts, found, steps=15, batch_size=16)  # a sample with its points per batch
    assert basis.attrs["forwards"] == 2
    assert sum(seen) == 2 * found.partial * 2  # the integral and the sample itself, of each sample


def steps_of(module, x):
    """Return the steps of a network with one operation, and a gradient of what it puts out."""
    points = x.clone().requires_grad_()
    out = module(points)
    edge = get_gradient_edge(out)
    return _ordered([edge.node], get_gradient_edge(points).node)[1], points


OPERATIONS = {
    "convolution": (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 8, 8)),
    "strided": (nn.Conv2d(4, 6, 3, stride=2, dilation=2), (2, 4, 9, 8)),
    "grouped": (nn.Conv2d(4, 6, 1, groups=2), (2, 4, 8, 8)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5, 5)),
    "of rows": (nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "of volumes": (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "norm": (nn.BatchNorm2d(4).eval(), (2, 4, 5, 5)),
    "norm of a batch": (nn.BatchNorm2d(4, track_running_stats=False), (2, 4, 5, 5)),
    "norm of a layer": (nn.LayerNorm(5), (2, 4, 5)),
    "relu": (nn.ReLU(), (2, 4, 5)),
    "gelu": (nn.GELU(), (2, 4, 5)),
    "silu": (nn.SiLU(), (2, 4, 5)),
    "hardswish": (nn.Hardswish(), (2, 4, 5)),
    "leaky": (nn.LeakyReLU(0.1), (2, 4, 5)),
    "average": (nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), (2, 4, 8, 8)),
    "maximum": (nn.MaxPool2d(3, 2, padding=1), (2, 4, 9, 8)),
    "mean": (nn.AdaptiveAvgPool2d(1), (2, 4, 8, 8)),
    "linear": (nn.Linear(5, 3), (2, 5)),
    "of tokens": (nn.Linear(5, 3, bias=False), (2, 4, 5)),
    "scaled": (lambda x: x * torch.arange(1.0, 6).double(), (2, 4, 5)),
    "times a number": (lambda x: 3 * x, (2, 4, 5)),
    "squared": (lambda x: x * x, (2, 4, 5)),
    "sum": (lambda x: x + x.flip(1), (2, 4, 5)),
    "broadcast sum": (lambda x: x[:, :1] + x, (2, 4, 5)),
    "weighted sum": (lambda x: torch.add(x, x.flip(1), alpha=2), (2, 4, 5)),
    "concatenated": (lambda x: torch.cat([x.relu(), x, x.tanh()], 1), (2, 4, 5)),
    "nested": (lambda x: torch.cat([torch.cat([x, x.tanh()], -1).sin(), x, x], -1), (2, 4, 5)),
    "beside a constant": (lambda x: torch.cat([torch.ones_like(x), x], 1), (2, 4, 5)),
    "permuted": (lambda x: x.permute(0, 2, -1, 1), (2, 4, 5, 3)),
    "transposed axes": (lambda x: x.transpose(-1, 1), (2, 4, 5, 3)),
    "reshaped": (lambda x: x.reshape(4, 10), (2, 4, 5)),
    "split": (lambda x: x.chunk(2, 1)[1], (2, 4, 5)),
    "chosen": (lambda x: x[:, [0, 0, 2]], (2, 4, 5)),
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_back__is_autograds_for_each_gradient(name, last):
    module, shape = OPERATIONS[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if isinstance(module, nn.Module):
        module.double().requires_grad_(False)
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=generator)
    if last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    points = x.clone().requires_grad_()
    out = module(points) * 1.0  # what starts here is multiplied with units
    edge = get_gradient_edge(out)
    tops = torch.randn(3, *out.shape, generator=generator, dtype=torch.float64)
    expected = [torch.autograd.grad(out, points, top, retain_graph=True)[0] for top in tops]
    with torch.no_grad():
        constants = Constants(torch.float64)
        descent = Descent(points, [edge], [torch.ones_like(out)], (constants, constants))
        found = {}
        for piece in descent.through([(0, top) for top in tops], 2):
            assert len(piece.vectors) <= 2
            for point in range(len(x)):
                for number, gradient in zip(piece.vectors, piece.at(point), strict=True):
                    found[number, point] = gradient
            weighted = piece.summed(0, len(x), torch.arange(1.0, len(x) + 1).double())
            for number, gradient in zip(piece.vectors, weighted, strict=True):
                wanted = sum((n + 1) * one for n, one in enumerate(expected[number]))
                torch.testing.assert_close(gradient, wanted)
    for (number, point), gradient in found.items():
        torch.testing.assert_close(gradient, expected[number][point])
    assert len(found) == 3 * len(x)


class Around(nn.Module):
    """Parts that go around a cut with a weight of zero, side by side with parts that go through it."""

    def __init__(self):
        super().__init__()
        self.low, self.cut, self.top = nn.Linear(4, 6), nn.Linear(10, 6), nn.Linear(18, 3)

    def forward(self, x):
        low, also = self.low(x).chunk(2, 1)
        through = self.cut(torch.cat([low.tanh(), also, 0 * x], 1))
        joined = torch.cat([low, also], 1)
        return self.top(torch.cat([through, 0 * joined, through.sin()], 1))


def test_basis_gradients__count_paths_around_a_cut_that_carry_nothing():
    module, x = Around(), torch.randn(3, 4)
    cuts = find_cuts(module, ["low", "cut"], x)
    assert cuts.together is not None
    found = plan(requests(cuts))
    one = basis_gradients(module, x, replace(cuts, together=None), found, steps=3)
    both = basis_gradients(module, x, cuts, found, steps=3)
    assert apart(both["integrated_gradients"], one["integrated_gradients"]) < 1e-6


def test_rows__are_written_to_by_their_owner_only():
    values = torch.ones(2, 3)
    shared = Rows(values, owned=False)
    summed = shared.times(torch.full((3,), 2.0)).plus(Rows(torch.ones(1, 3)))
    np.testing.assert_array_equal(summed.plain(), [[3, 3, 3], [2, 2, 2]])
    np.testing.assert_array_equal(values, 1)
    assert Rows(values, torch.full((3,), 2.0)).plain() is values
    np.testing.assert_array_equal(values, 2)


def test_back__without_a_rule_asks_the_node():
    steps, points = steps_of(torch.sin, torch.randn(2, 3))
    assert steps[0].name == "SinBackward0" not in RULES
    tops = torch.randn(4, 2, 3)
    with torch.no_grad():
        (found,) = back(steps[0], [Rows(tops)], Constants(torch.float32))
    torch.testing.assert_close(found.plain(), tops * points.detach().cos())
