"""Integrated Gradients and Saliency through sets of units: captum with a hook, golden numbers, what it costs."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from attribution_cases import (
    GateAndSkip,
    Product,
    apart,
    blocked,
    dense_net,
    pictures,
    residual_net,
    vision_transformer,
)
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from captum.attr._utils.approximation_methods import approximation_parameters
from torch import nn

from neurolens.attribution import (
    attributions,
    basis_gradients,
    cluster_masks,
    complements,
    completeness,
    controls,
    find_cuts,
    jacobians,
    plan,
    quadrature,
    unit_masks,
)
from neurolens.attribution.integrals import RULES
from neurolens.errors import DataError, ModelMismatchError, NonFiniteError, SchemaError

METHODS = ("integrated_gradients", "saliency", "input_x_gradient")
CAPTUM = {
    "integrated_gradients": IntegratedGradients,
    "saliency": Saliency,
    "input_x_gradient": InputXGradient,
}


def grid(cuts, ks=(2, 3), draws=1):
    random, requests = np.random.default_rng(0), {}
    for layer in cuts.layers:
        clusters = xr.concat([cluster_masks(random.permutation(np.arange(layer.units) % k)) for k in ks], "map")
        drawn = controls(clusters[:1], draws=draws)
        requests[layer.name] = xr.concat([clusters, complements(clusters), drawn], "map")
    return requests


def measured(module, layers, x, **options):
    cuts = find_cuts(module, layers, x)
    found = plan(grid(cuts))
    return basis_gradients(module, x, cuts, found, **options), cuts, found


def captum(module, kind, x, targets, **options):
    return CAPTUM[kind](module).attribute(x.clone().requires_grad_(), target=targets, **options).detach().numpy()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [2, 5, 50])
def test_quadrature__is_captums(rule, steps):
    alphas, weights = quadrature(steps, rule)
    sizes, points = approximation_parameters(rule)
    np.testing.assert_allclose(weights, sizes(steps), atol=1e-15)
    np.testing.assert_allclose(alphas, points(steps), atol=1e-15)


def test_quadrature__has_the_golden_numbers():
    alphas, weights = quadrature(50)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-14)
    np.testing.assert_allclose([alphas[0], alphas[-1], weights[0]], [5.668e-4, 0.999433, 1.45431e-3], rtol=1e-4)
    np.testing.assert_allclose(quadrature(10, "riemann_trapezoid")[1].sum(), 0.9)


def test_quadrature__says_what_is_wrong():
    with pytest.raises(SchemaError, match="did you mean 'riemann_left'"):
        quadrature(5, "riemann_lift")
    with pytest.raises(SchemaError, match="steps=1 is too few for riemann_trapezoid"):
        quadrature(1, "riemann_trapezoid")


def test_basis_gradients__of_a_product_are_the_golden_ones():
    network, x = Product(), torch.tensor([[3.0, 1.0]])
    masks = unit_masks({"a1": [True, False], "a2": [False, True]})
    found = plan({"cut": xr.concat([masks, complements(masks)], "map")})
    basis = basis_gradients(network, x, find_cuts(network, ["cut"], x), found)
    maps = attributions(basis, found, methods=("integrated_gradients", "saliency"))
    wanted = ["cut/a1", "cut/a2", "whole", "cut/without a1"]
    integrated = maps["integrated_gradients"].sel(map=wanted)[0]
    np.testing.assert_allclose(integrated, [[3, 1], [6, -2], [9, -1], [6, -2]], atol=1e-5)
    np.testing.assert_array_equal(maps["saliency"].sel(map=wanted)[0], [[2, 2], [4, 4], [6, 2], [4, 4]])
    report = completeness(basis, found)
    np.testing.assert_allclose(report["conductance"].sel(map=wanted)[0], [4, 4, 8, 4], atol=1e-5)
    np.testing.assert_allclose(report["share"].sel(map=wanted)[0], [0.5, 0.5, 1, 0.5], atol=1e-6)
    np.testing.assert_allclose(report["gap"], 0, atol=1e-5)
    assert (float(basis["output"][0]), float(basis["baseline_output"][0])) == (8, 0)


@pytest.mark.parametrize(("steps", "value"), [(5, 3.853333), (10, 3.886573), (50, 3.918275), (200, 4.013788)])
def test_basis_gradients__of_a_gate_on_the_path_are_the_golden_ones(steps, value):
    network, x = GateAndSkip(), torch.tensor([[3.0]])
    found = plan({"cut": unit_masks({"relu": [True, False], "skip": [False, True]})})
    basis = basis_gradients(network, x, find_cuts(network, ["cut"], x), found, steps=steps)
    report = completeness(basis, found)
    np.testing.assert_allclose(report["conductance"].sel(map=["cut/relu", "cut/skip"])[0], [value, 3], rtol=1e-6)
    np.testing.assert_allclose(report["gap"][0], value - 4, atol=2e-6)  # exact: 4 through the gate, 3 beside it


@pytest.mark.parametrize(
    ("build", "layers", "side", "axis"),
    [
        (dense_net, ["features.denseblock1", "features.denseblock2"], 32, 1),
        (residual_net, ["layer1", "layer3"], 32, 1),
        (vision_transformer, ["encoder.layers.encoder_layer_0"], 16, 2),
    ],
)
def test_attributions__are_captums_with_the_gradient_blocked(build, layers, side, axis):
    module, x = build(), pictures(side=side)
    basis, cuts, found = measured(module, layers, x)
    maps = attributions(basis, found, methods=METHODS)
    targets = torch.as_tensor(basis["target"].to_numpy())
    for method in METHODS:
        assert apart(maps[method].sel(map="whole"), captum(module, method, x, targets)) < 1e-3
    for layer, masks in grid(cuts).items():
        for name, kept in zip(masks["map"].to_numpy(), masks.to_numpy()):
            with blocked(module, layer, kept, axis):
                for method in METHODS:
                    expected = captum(module, method, x, targets)
                    assert apart(maps[method].sel(map=f"{layer}/{name}"), expected) < 1e-3, (layer, name, method)


@pytest.mark.parametrize("rule", ["riemann_right", "riemann_trapezoid"])
@pytest.mark.parametrize("shape", ["number", "one", "each"])
def test_basis_gradients__start_and_step_as_captum_does(rule, shape):
    module, x = dense_net(), pictures(3)
    start = {"number": 0.3, "one": pictures(1, seed=8)[0], "each": pictures(3, seed=9)}[shape]
    basis, _, found = measured(module, ["features.denseblock1"], x, steps=7, rule=rule, baseline=start)
    given = start if not isinstance(start, torch.Tensor) else start.expand_as(x)
    options = {"n_steps": 7, "method": rule, "baselines": given}
    expected = captum(module, "integrated_gradients", x, torch.as_tensor(basis["target"].to_numpy()), **options)
    assert apart(attributions(basis, found)["integrated_gradients"].sel(map="whole"), expected) < 1e-3
    with torch.no_grad():
        ends = module(given if isinstance(given, torch.Tensor) else torch.full_like(x, 0.3)).double().numpy()
    np.testing.assert_allclose(basis["baseline_output"], ends[np.arange(3), basis["target"]], rtol=1e-5)


@pytest.mark.parametrize("explain", ["logit", "log_prob", "margin"])
def test_basis_gradients__explain_what_is_asked(explain):
    module, x, labels = dense_net(), pictures(3), torch.tensor([4, 0, 1])

    class Explained(nn.Module):
        def forward(self, points):
            logits, rows = module(points), torch.arange(len(points))
            column = labels.repeat(len(points) // 3)
            if explain == "log_prob":
                return logits.log_softmax(1)[rows, column]
            others = logits.clone()
            others[rows, column] = -torch.inf
            return logits[rows, column] - (others.amax(1) if explain == "margin" else 0)

    basis, _, found = measured(module, ["features.denseblock1"], x, target=labels, explain=explain, steps=9)
    expected = captum(Explained(), "integrated_gradients", x, None, n_steps=9)
    assert apart(attributions(basis, found)["integrated_gradients"].sel(map="whole"), expected) < 1e-3
    np.testing.assert_array_equal(basis["target"], labels)
    with torch.no_grad():
        np.testing.assert_allclose(basis["output"], Explained()(x), rtol=1e-5)
        np.testing.assert_allclose(basis["baseline_output"], Explained()(torch.zeros_like(x)), rtol=1e-4)


def test_basis_gradients__explain_the_predicted_class_by_default():
    module, x = dense_net(), pictures(6)
    predicted = module(x).argmax(1)
    assert len(predicted.unique()) > 1
    default, _, _ = measured(module, ["features.denseblock1"], x, steps=3, batch_size=5)
    given, _, _ = measured(module, ["features.denseblock1"], x, steps=3, batch_size=5, target=predicted.numpy())
    xr.testing.assert_identical(default, given)


def test_attributions__of_clusters_add_up():
    module, x = dense_net(), pictures()
    basis, cuts, found = measured(module, ["features.denseblock?"], x)
    maps = attributions(basis, found, methods=METHODS)
    for cut in cuts.names:
        for method in ("integrated_gradients", "input_x_gradient"):
            parts = maps[method].sel(map=[f"{cut}/k3/{c}" for c in range(3)])
            assert apart(parts.sum("map"), maps[method].sel(map="whole")) < 1e-5
            rest = maps[method].sel(map="whole") - maps[method].sel(map=f"{cut}/k3/1")
            assert apart(maps[method].sel(map=f"{cut}/without k3/1"), rest) < 1e-5
    mass = maps["saliency"].sel(map=parts["map"]).sum("map") - maps["saliency"].sel(map="whole")
    assert float(mass.min()) > -1e-6
    assert float(mass.max()) > 1e-3  # absolute values do not add up


def test_completeness__holds_as_steps_grow():
    module, x = dense_net(), pictures(4)
    cuts, found = find_cuts(module, [], x), plan({})
    gaps = []
    for steps in (10, 50, 400):
        basis = basis_gradients(module, x, cuts, found, steps=steps)
        gaps.append(float(abs(completeness(basis, found)["gap"] / (basis["output"] - basis["baseline_output"])).mean()))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 2e-3


def test_basis_gradients__do_not_change_what_is_computed_forward():
    module, x = dense_net(), pictures()
    basis, cuts, _ = measured(module, ["features.denseblock?"], x, steps=4)
    bare = basis_gradients(module, x, cuts, plan({}), steps=4)
    for name in ("output", "baseline_output", "target"):
        np.testing.assert_array_equal(bare[name], basis[name])
    np.testing.assert_array_equal(bare["gradient"], basis["gradient"].sel(vector=["whole"]))
    with torch.no_grad():
        plain = module(x)
        for layer, masks in grid(cuts).items():
            with blocked(module, layer, masks.to_numpy()[0]):
                np.testing.assert_array_equal(module(x), plain)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(("steps", "batch_size", "batches"), [(50, 32, 4), (50, 10, 11), (0, 32, 1), (3, 1, 8)])
def test_basis_gradients__cost_what_the_plan_says(steps, batch_size, batches, together, monkeypatch):
    module, x = dense_net(), pictures()
    cuts = find_cuts(module, ["features.denseblock?"], x)
    cuts = cuts if together else replace(cuts, together=None)
    found = plan(grid(cuts))
    seen = {"forward": 0, "top": 0, "part": 0}
    module.register_forward_pre_hook(lambda *_: seen.update(forward=seen["forward"] + 1))
    lowest = module.features.denseblock1.denselayer1.conv1.weight  # below all cuts: each gradient passes it once
    whole, rule = torch.autograd.grad, jacobians.RULES["ConvolutionBackward0"]

    def grad(outputs, *args, **kwargs):
        which = "part" if isinstance(outputs, list) else "top"
        seen[which] += 1
        return whole(outputs, *args, **kwargs)

    def convolution(step, rows, constants):
        if step.node._saved_weight.data_ptr() == lowest.data_ptr():
            seen["part"] += len(rows.values)
        return rule(step, rows, constants)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    monkeypatch.setitem(jacobians.RULES, "ConvolutionBackward0", convolution)
    basis = basis_gradients(module, x, cuts, found, steps=steps, batch_size=batch_size)
    cost = found.cost(2 * (steps + 1), batch_size=batch_size, baselines=bool(steps))
    assert {name: basis.attrs[name] for name in cost._fields} == cost._asdict()
    assert cost.forwards == batches
    assert found.partial == 2 * (1 + 2 + 1)  # of 24 maps: k = 2, k = 3 and a control at each cut, beside the whole
    assert seen == {"forward": batches + bool(steps), "top": batches, "part": batches * found.partial}


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_basis_gradients__are_the_same_in_batches_of_any_size(batch_size):
    module, x = dense_net(), pictures(3)
    basis, _, _ = measured(module, ["features.denseblock1"], x, steps=12)
    other, _, _ = measured(module, ["features.denseblock1"], x, steps=12, batch_size=batch_size)
    for name in ("integrated_gradients", "gradient"):
        assert apart(other[name], basis[name]) < 1e-3


def test_basis_gradients__of_more_clusters_need_the_new_vectors_only():
    module, x = dense_net(), pictures()
    cuts = find_cuts(module, ["features.denseblock?"], x)
    requests = grid(cuts, ks=(2, 3, 4))
    few, many = plan({cut: masks[:5] for cut, masks in requests.items()}), plan(requests)
    held = basis_gradients(module, x, cuts, few, steps=5)
    new = [name for name in many.chosen() if name not in few.chosen()]
    assert 0 < len(new) < len(many.chosen())
    fresh = basis_gradients(module, x, cuts, many, steps=5, vectors=new)
    cost = many.cost(2 * 6, batch_size=32, baselines=1, vectors=new)
    assert fresh.attrs["partial_backwards"] == cost.partial_backwards == len(new)
    joined = xr.concat([held, fresh], "vector", data_vars="minimal", combine_attrs="override")
    joined = joined.sel(vector=many.chosen())
    whole = basis_gradients(module, x, cuts, many, steps=5)
    for name in ("integrated_gradients", "gradient"):
        assert apart(joined[name].transpose(*whole[name].dims), whole[name]) < 1e-6
    assert set(attributions(joined, many)["map"].to_numpy()) == set(many.combine["map"].to_numpy())


def test_basis_gradients__work_where_gradients_are_switched_off():
    module, x = dense_net(), pictures()
    expected, _, _ = measured(module, ["features.denseblock1"], x, steps=3)
    with torch.inference_mode():
        off, _, _ = measured(module, ["features.denseblock1"], pictures(), steps=3)
    xr.testing.assert_identical(off, expected)


@pytest.mark.parametrize("way", ["alone", "same", "bfloat16"])
def test_basis_gradients__stay_within_the_budget(way):
    module, x = dense_net(), pictures(2, side=64)
    cuts = find_cuts(module, ["features.denseblock?"], x)
    cuts, cotangents = (replace(cuts, together=None), "same") if way == "alone" else (cuts, way)
    found = plan(grid(cuts))
    budget = 8.0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        basis = basis_gradients(
            module, x, cuts, found, steps=50, batch_size=1000, budget_mib=budget, cotangents=cotangents
        )
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    assert 1 < basis.attrs["batch_size"] < 102
    assert 0.4 * budget < held.max() / 2**20 <= budget
    with pytest.raises(SchemaError, match=r"budget_mib=0.1 was given, and \d.* for the maps of 2 samples"):
        basis_gradients(module, x, cuts, found, budget_mib=0.1)


def test_basis_gradients__without_steps_are_gradients_only():
    module, x = dense_net(), pictures()
    basis, _, found = measured(module, ["features.denseblock1"], x, steps=0)
    assert set(basis.data_vars) == {"gradient", "input", "target", "output"}
    expected = captum(module, "saliency", x, torch.as_tensor(basis["target"].to_numpy()))
    assert apart(attributions(basis, found, methods=["saliency"])["saliency"].sel(map="whole"), expected) < 1e-5


def test_basis_gradients__leave_the_network_as_it_was():
    module, x = residual_net().train(), pictures()
    module.fc.weight.requires_grad_(False)
    state, wanted = copy.deepcopy(module.state_dict()), [p.requires_grad for p in module.parameters()]
    with torch.no_grad():
        basis, _, _ = measured(module, ["layer1"], x, steps=2)
    np.testing.assert_array_equal(basis["input"], pictures())
    x.zero_()
    np.testing.assert_array_equal(basis["input"], pictures())
    assert module.training
    assert [p.requires_grad for p in module.parameters()] == wanted
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(not m._forward_hooks for m in module.modules())
    assert not x.requires_grad


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.cut = nn.Linear(2, 2)

    def forward(self, x):
        return torch.where(x[:, :1] > 5, torch.nan, 1.0) * self.cut(x)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"explain": "logits"}, SchemaError, "did you mean 'logit'"),
        ({"rule": "gauss"}, SchemaError, "rule='gauss' is unknown"),
        ({"target": "label"}, SchemaError, "or the class of each sample"),
        ({"target": [0]}, DataError, "for 3 samples"),
        ({"target": [0, 1, 2]}, DataError, "target 2 was given, and the network has classes 0 to 1"),
        ({"target": [0.0, 1.0, 1.0]}, DataError, "targets of float32"),
        ({"baseline": torch.zeros(3)}, DataError, r"baseline of shape \(1, 3\)"),
        ({"batch_size": 0}, SchemaError, "no number of points"),
        ({"x": torch.ones(3, 4)}, DataError, r"samples of shape \(4,\)"),
        ({"x": torch.tensor([[1.0, 1], [9, 1], [1, 1]])}, NonFiniteError, "sample number 1 has"),
        ({"found": plan({"cut": cluster_masks([0, 1, 2])})}, SchemaError, "clusters of another layer or network"),
        ({"vectors": ["cut/k2/7"]}, SchemaError, "no vector 'cut/k2/7'; did you mean 'cut/k2/0'"),
        ({"vectors": []}, SchemaError, "no vector is asked for"),
        ({"found": plan({"cat": cluster_masks([0, 1])})}, SchemaError, "not found as a cut; did you mean 'cut'"),
    ],
)
def test_basis_gradients__say_what_is_wrong(options, error, words):
    module = Broken()
    given = {"x": torch.ones(3, 2), "found": plan({"cut": cluster_masks([0, 1])}), **options}
    x, found = given.pop("x"), given.pop("found")
    cuts = find_cuts(module, ["cut"], torch.ones(3, 2))
    with pytest.raises(error, match=words):
        basis_gradients(module, x, cuts, found, **given)


def test_basis_gradients__of_one_class_have_no_margin():
    network, x = Product(), torch.ones(1, 2)
    with pytest.raises(ModelMismatchError, match="a margin needs a second class"):
        basis_gradients(network, x, find_cuts(network, [], x + 1), plan({}), explain="margin")
