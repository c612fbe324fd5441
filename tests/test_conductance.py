"""Layer conductance: captum's own numbers, of any layer, averaged as the reference averages them."""

import copy

import numpy as np
import pytest
import torch
from captum.attr import LayerConductance
from torch import nn
from units_cases import Net, digits, images

from neurolens.data import batches
from neurolens.effects import conductance as module_under_test
from neurolens.effects import layer_conductance
from neurolens.effects.conductance import shown_samples
from neurolens.effects.measure import measure
from neurolens.errors import NonFiniteError
from neurolens.layers import find_layers
from neurolens.study import Effects, Preprocessing

PLAIN = Preprocessing(mean=(0.0,), std=(1.0,))


class Golden(nn.Module):
    """A 1 x 1 convolution with weights 1 and -2, ReLU, mean, and a linear layer."""

    def __init__(self, inplace=False):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(inplace=inplace)
        self.fc = nn.Linear(2, 2, bias=False)
        self.conv.weight.data = torch.tensor([1.0, -2.0]).reshape(2, 1, 1, 1)
        self.fc.weight.data = torch.tensor([[1.0, 0.5], [-1.0, 2.0]])

    def forward(self, x):
        return self.fc(self.relu(self.conv(x)).mean((2, 3)))


class Twice(nn.Module):
    """One activation for two layers, or one each."""

    def __init__(self, shared):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.relu1 = nn.ReLU(inplace=shared)
        self.relu2 = self.relu1 if shared else nn.ReLU()

    def forward(self, x):
        return self.fc(self.relu2(self.conv2(self.relu1(self.conv1(x)))).mean((2, 3)))


def captum(module, layer, x, y, steps=50, **options):
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    found = LayerConductance(module, layer).attribute(x, target=y, n_steps=steps, method="gausslegendre", **options)
    return found.detach().double().numpy()


def scored(network, samples, layers, **options):
    module = copy.deepcopy(network.module).eval()
    x = next(iter(batches(samples, network.preprocessing, batch_size=2))).x
    found = find_layers(module, layers, x)
    with torch.no_grad():
        return layer_conductance(network, samples, module, found, **options)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("target", "means", "total", "exact"),
    [(0, [0.187296, 0.062432], 0.998910, 1.0), (1, [0.187296, 0.249727], 0.249727, 0.25)],
)
def test_layer_conductance__is_that_of_the_worked_example(inplace, target, means, total, exact):
    module, x = Golden(inplace).eval(), torch.tensor([[[[1.0, -1.0], [2.0, 0.0]]]])
    layer = find_layers(module, ["relu"], x)[0]
    got = module_under_test._of_batch(module, layer, x, torch.tensor([target]), 50, 2)
    np.testing.assert_allclose(got, [means], atol=5e-7)
    plain = Golden().eval()
    attributed = captum(plain, plain.relu, x, target)
    np.testing.assert_allclose(abs(attributed).mean((2, 3)), [means], atol=5e-7)
    np.testing.assert_allclose(attributed.sum(), total, atol=5e-7)
    assert abs(attributed.sum() - exact) < 2e-3


def test_layer_conductance__is_captums_with_the_means_of_the_reference():
    network, samples = Net(Twice(shared=False), PLAIN), images(11)
    plain = copy.deepcopy(network.module).eval()
    means, counted = [], 0
    for batch in batches(samples, PLAIN, batch_size=4):
        attributed = captum(plain, plain.relu2, batch.x, batch.y)
        means.append(np.mean(abs(attributed), axis=(0, 2, 3)))
        counted += 1
        if counted * len(batch.x) >= 7:
            break
    assert counted == 2
    (got,) = scored(network, samples, ["relu2"], wanted=7, batch_size=4)
    np.testing.assert_allclose(got, np.mean(means, axis=0), rtol=1e-5)


def test_layer_conductance__counts_a_short_last_batch_as_a_batch():
    network, samples = Net(Twice(shared=False), PLAIN), images(6)
    plain = copy.deepcopy(network.module).eval()
    means = [
        np.mean(abs(captum(plain, plain.relu1, batch.x, batch.y, steps=5)), axis=(0, 2, 3))
        for batch in batches(samples, PLAIN, batch_size=4)
    ]
    (got,) = scored(network, samples, ["relu1"], wanted=128, batch_size=4, steps=5)
    np.testing.assert_allclose(got, np.mean(means, axis=0), rtol=1e-5)


def test_layer_conductance__of_a_module_used_twice_in_place_is_that_of_two_modules():
    samples = images(5)
    shared = scored(Net(Twice(shared=True), PLAIN), samples, ["relu1", "conv2:input"], steps=8)
    apart = scored(Net(Twice(shared=False), PLAIN), samples, ["relu1", "relu2", "conv2:input"], steps=8)
    assert [len(one) for one in shared] == [3, 3, 4]  # relu1, conv2:input, relu1#1
    np.testing.assert_allclose(shared[0], apart[0], rtol=1e-5)
    np.testing.assert_allclose(shared[1], apart[1], rtol=1e-5)
    np.testing.assert_allclose(shared[2], apart[2], rtol=1e-5)
    np.testing.assert_allclose(apart[0], apart[1], rtol=1e-5)


def test_layer_conductance__of_an_input_is_captums():
    network, samples = Net(Twice(shared=False), PLAIN), images(4)
    plain = copy.deepcopy(network.module).eval()
    batch = next(iter(batches(samples, PLAIN, batch_size=4)))
    expected = np.mean(abs(captum(plain, plain.fc, batch.x, batch.y, attribute_to_layer_input=True)), axis=0)
    (got,) = scored(network, samples, ["fc:input"], batch_size=4)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 13, 40, 1000])
def test_layer_conductance__is_the_same_in_passes_of_any_size(size, monkeypatch):
    network, samples = Net(Twice(shared=True), PLAIN), images(5)
    whole = scored(network, samples, "auto", steps=12)
    monkeypatch.setitem(module_under_test.PASS, "cpu", size)
    for one, other in zip(whole, scored(network, samples, "auto", steps=12)):
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_layer_conductance__sums_to_the_change_of_the_logit():
    network, samples = Net(Twice(shared=True), PLAIN), images(3)
    module = copy.deepcopy(network.module).eval()
    batch = next(iter(batches(samples, PLAIN, batch_size=3)))
    signed = []
    layer = find_layers(module, ["fc:input"], batch.x)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "abs", lambda self: self)
        signed = module_under_test._of_batch(module, layer, batch.x, batch.y, 400, 3).sum(axis=1)
    with torch.no_grad():
        change = (module(batch.x) - module(torch.zeros_like(batch.x))).gather(1, batch.y[:, None])[:, 0]
    np.testing.assert_allclose(signed, change.numpy(), atol=2e-3)


def test_layer_conductance__of_a_dead_unit_is_zero():
    network = Net(Twice(shared=True), PLAIN)
    network.module.conv2.weight.data[1], network.module.conv2.bias.data[1] = 0, -1
    (got,) = scored(network, images(4), ["relu1#1"], steps=4)
    assert got[1] == 0
    assert (got[[0, 2, 3]] > 0).any()


def test_layer_conductance__leaves_the_module_as_it_was():
    network, samples = Net(Twice(shared=True), PLAIN), images(4)
    module = network.module.eval()
    module.conv1.weight.requires_grad_(False)
    wanted = [p.requires_grad for p in module.parameters()]
    x = next(iter(batches(samples, PLAIN, batch_size=2))).x
    with torch.no_grad():
        layer_conductance(network, samples, module, find_layers(module, "auto", x), steps=3)
    assert [p.requires_grad for p in module.parameters()] == wanted
    assert all(p.grad is None for p in module.parameters())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in module.modules())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("samples", "wanted", "batch", "taken"), [(200, 128, 16, 128), (200, 100, 16, 112), (50, 100, 16, 50)]
)
def test_shown_samples__are_as_many_as_are_taken(samples, wanted, batch, taken):
    assert shown_samples(samples, wanted=wanted, batch_size=batch) == taken
    seen = []
    scored(
        Net(Golden(), PLAIN),
        images(samples, classes=2),
        ["relu"],
        wanted=wanted,
        batch_size=batch,
        steps=1,
        progress=seen.append,
    )
    assert sum(seen) == taken


def test_measure__computes_conductance_once_for_all_units_of_a_layer(monkeypatch):
    calls = []
    whole = module_under_test._of_batch
    monkeypatch.setattr(module_under_test, "_of_batch", lambda *a: calls.append(a[1].name) or whole(*a))
    table = Effects(conductance=True, conductance_samples=4, conductance_steps=3, bf16=True)
    values = measure(digits(), images(9), parts=("conductance",), table=table, units=(1, 2, 17, 20, 21))["conductance"]
    assert calls == ["relu", "relu#1"]  # one batch of 16
    assert np.isfinite(values).nonzero()[0].tolist() == [1, 2, 17, 20, 21]
    one = measure(digits(), images(9), parts=("conductance",), table=table, units=(20,))["conductance"]
    assert one[20] == values[20]


def test_layer_conductance__names_the_sample_that_is_not_finite():
    network = Net(Golden(), PLAIN)
    network.module.fc.weight.data[0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"sample 's00\d' has a conductance of NaN or infinity in layer 'relu'"):
        scored(network, images(4, classes=2), ["relu"], steps=3)
