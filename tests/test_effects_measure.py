"""What one checkpoint's outputs lose without a unit: against networks with the unit's outgoing weights at zero."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from units_cases import Net, digits, images, reading

from neurolens import schema
from neurolens.data import batches, shown
from neurolens.effects import ablation, without_units
from neurolens.effects.measure import axes, key_config, measure, parts
from neurolens.errors import DataError, ModelMismatchError, NonFiniteError, SchemaError
from neurolens.layers import find_layers
from neurolens.study import Effects, Preprocessing

UNITS = (0, 3, 16, 21, 48, 79)  # of layers of 16, 32 and 32 units


def ablated(network, samples, units=UNITS, batch_size=64, **table):
    table = Effects(**table)
    return measure(network, samples, parts=("ablation",), table=table, units=units, batch_size=batch_size)


def logits_of(network, samples):
    with torch.no_grad():
        module = copy.deepcopy(network.module).eval()
        shown = batches(samples, network.preprocessing, batch_size=len(samples))
        return torch.cat([module(batch.x) for batch in shown]).double().numpy()


def without(network, unit):
    """The digits network with a unit's outgoing weights at zero, by hand."""
    hand = copy.deepcopy(network.module)
    with torch.no_grad():
        if unit < 16:
            hand.conv2.weight[:, unit] = 0
        elif unit < 48:
            hand.conv3.weight[:, unit - 16] = 0
        else:
            hand.fc.weight[:, 4 * (unit - 48) : 4 * (unit - 47)] = 0
    return dataclasses.replace(network, module=hand)


def told(logits, labels, classes=3):
    own, right = logits[np.arange(len(labels)), labels], logits.argmax(axis=1) == labels
    of = [labels == c for c in range(classes)]
    return np.array([right[at].sum() for at in of]), np.array([own[at].mean() if at.any() else np.nan for at in of])


def trained():
    """A digits network whose three classes are near each other, so that taking units away has something to change."""
    network, samples = digits(), images(40)
    with torch.no_grad():
        fc = network.module.fc
        fc.weight.mul_(30)
        fc.weight[3:], fc.bias[3:] = 0, -1e3
        fc.bias[:3] -= torch.from_numpy(logits_of(network, samples).mean(axis=0)[:3]).float()
    return network


def test_ablation__is_the_network_with_outgoing_weights_at_zero():
    network, samples = trained(), images(40)
    values = ablated(network, samples)
    before, labels = logits_of(network, samples), samples.labels
    right, logit = told(before, labels)
    np.testing.assert_array_equal(values["n_class"], np.bincount(labels, minlength=3))
    np.testing.assert_array_equal(values["class_correct"], right)
    np.testing.assert_allclose(values["class_logit"], logit, rtol=1e-5, atol=1e-6)
    for unit in UNITS:
        after = logits_of(without(network, unit), samples)
        right_after, logit_after = told(after, labels)
        np.testing.assert_array_equal(values["ablated_correct"][unit], right_after)
        np.testing.assert_allclose(values["ablated_logit"][unit], logit_after, rtol=1e-5, atol=1e-6)
        drop = (before - after)[np.arange(40), labels]
        lost = (before.argmax(axis=1) == labels) & (after.argmax(axis=1) != labels)
        for c in range(3):
            of = labels == c
            assert values["ablated_lost"][unit, c] == lost[of].sum()
            m2 = ((drop[of] - drop[of].mean()) ** 2).sum()
            np.testing.assert_allclose(values["ablated_m2"][unit, c], m2, rtol=1e-4, atol=1e-9)
    assert values["ablated_lost"][list(UNITS)].sum() > 0


def test_ablation__with_the_mean_puts_it_in_the_place_of_the_unit():
    network, samples = trained(), images(40)
    values = ablated(network, samples, units=(50, 3), replace="mean")
    seen = []
    module = copy.deepcopy(network.module).eval()
    module.conv2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))  # pooled maxima, not the layer
    module.bn3.register_forward_hook(lambda _, __, out: seen.append(out.clone().relu()))
    with torch.no_grad():
        x = next(iter(batches(samples, network.preprocessing, batch_size=40))).x
        module(x)
        mean = seen[1][:, 2].double().mean()
        hand = copy.deepcopy(network)
        hand.module.fc.bias += mean.float() * hand.module.fc.weight[:, 8:12].sum(dim=1)
        hand.module.fc.weight[:, 8:12] = 0
    np.testing.assert_allclose(
        values["ablated_logit"][50], told(logits_of(hand, samples), samples.labels)[1], rtol=1e-4
    )


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_ablation__is_the_same_in_any_batches(batch_size):
    network, samples = trained(), images(20)
    one, other = ablated(network, samples, batch_size=batch_size), ablated(network, samples, batch_size=32)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_ablation__is_the_same_where_the_network_cannot_be_started_in_the_middle(monkeypatch):
    network, samples = trained(), images(20)
    plain = ablated(network, samples)
    monkeypatch.setattr(ablation, "replaying", lambda *_: (_ for _ in ()).throw(AssertionError))
    runs = ablation._Runs

    class Whole(runs):
        def __post_init__(self):
            self.replayed, self.nbytes = [False] * len(self.asked), 0

    monkeypatch.setattr(ablation, "_Runs", Whole)
    for name, values in ablated(network, samples).items():
        np.testing.assert_allclose(values, plain[name], rtol=1e-6, atol=1e-7)


def test_ablation__cuts_batches_to_the_memory_for_what_came_before(monkeypatch):
    network, samples = trained(), images(20)
    plain, sizes = ablated(network, samples), []
    probe = next(iter(shown(samples, network, batch_size=2)))
    layers = find_layers(network.module, "auto", probe)
    runs = ablation._Runs(copy.deepcopy(network.module).eval(), [(layers[2], [0, 1])], [np.zeros(2)], probe, 3)
    assert runs.replayed == [True]
    # of each convolution what it returned, and what its norm returned, overwritten by the ReLU; of the pooling once
    assert runs.nbytes == 4 * (2 * 16 * 8 * 8 + 2 * 32 * 8 * 8 + 32 * 4 * 4 + 2 * 32 * 4 * 4)
    whole = ablation.record
    monkeypatch.setattr(ablation, "record", lambda m, t, a, k, **o: sizes.append(len(a[0])) or whole(m, t, a, k, **o))
    monkeypatch.setattr(ablation, "RECORD_MIB", 3 * runs.nbytes / 2**20)
    for name, values in ablated(network, samples).items():
        np.testing.assert_allclose(values, plain[name], rtol=1e-4, atol=1e-6)
    assert max(sizes) == 3


class Storing(nn.Module):
    def __init__(self, aside):
        super().__init__()
        self.aside = aside

    def forward(self, x):
        self.aside.append(x.mean((2, 3)))
        return x * 1


class Aside(nn.Module):
    """Its parts hand something on beside what they return: what they returned before cannot stand in for them."""

    def __init__(self, missing):
        super().__init__()
        self.aside, self.missing = [], missing
        self.conv, self.relu = nn.Sequential(nn.Conv2d(1, 4, 3), Storing(self.aside)), nn.ReLU()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        self.aside.clear()
        x = self.relu(self.conv(x)).mean((2, 3))
        return self.fc(x + (self.aside[0] if self.missing else sum(self.aside)))


@pytest.mark.parametrize("missing", [True, False])
def test_ablation__of_a_network_that_cannot_be_started_in_the_middle_is_that_of_whole_forwards(missing):
    torch.manual_seed(0)
    network, samples = Net(Aside(missing)), images(12)
    probe = next(iter(shown(samples, network, batch_size=2)))
    layer = find_layers(network.module, ["relu"], probe)[0]
    runs = ablation._Runs(network.module, [(layer, [0, 1])], [np.zeros(2)], probe, 3)
    assert runs.replayed == [False]
    values = measure(network, samples, parts=("ablation",), table=Effects(), layers=["relu"], units=(0, 1))
    with torch.no_grad(), without_units(network.module, layer, [1]):
        x = next(iter(batches(samples, network.preprocessing, batch_size=12))).x
        logits = network.module(x).double().numpy()
    np.testing.assert_allclose(values["ablated_logit"][1], told(logits, samples.labels)[1], rtol=1e-5, atol=1e-6)


def test_ablation__of_a_dead_unit_changes_nothing():
    network, samples = trained(), images(20)
    with torch.no_grad():
        network.module.bn2.weight[5] = 0
        network.module.bn2.bias[5] = -1
    for replace in ("zero", "mean"):
        values = ablated(network, samples, units=(21, 22), replace=replace)
        np.testing.assert_array_equal(values["ablated_logit"][21], values["class_logit"])
        np.testing.assert_array_equal(values["ablated_correct"][21], values["class_correct"])
        assert (values["ablated_lost"][21] == 0).all()
        assert (values["ablated_m2"][21] == 0).all()
        assert (values["ablated_logit"][22] != values["class_logit"]).any()


@settings(deadline=None, max_examples=10)
@given(units=st.lists(st.integers(0, 79), min_size=1, max_size=6))
def test_ablation__does_not_depend_on_what_else_is_asked_for(units):
    network, samples = trained(), images(8)
    values = ablated(network, samples, units=units)
    assert np.isfinite(values["ablated_logit"]).any(axis=1).nonzero()[0].tolist() == sorted(set(units))
    alone = ablated(network, samples, units=units[:1])
    for name in ("ablated_logit", "ablated_correct", "ablated_lost"):
        np.testing.assert_allclose(alone[name][units[0]], values[name][units[0]], rtol=1e-6)


def test_measure__of_no_units_has_the_network_as_it_is():
    values = measure(digits(), images(12), parts=("ablation", "conductance"), table=Effects(), units=())
    assert np.isnan(values["ablated_correct"]).all()
    assert np.isnan(values["conductance"]).all()
    assert values["n_class"].sum() == 12
    assert np.isfinite(values["class_logit"]).all()


def test_measure__leaves_classes_without_samples_unknown():
    samples = images(12)
    some = dataclasses.replace(samples, labels=np.minimum(samples.labels, 1))
    values = ablated(digits(), some)
    assert values["n_class"][2] == 0
    assert np.isnan(values["class_logit"][2])
    assert np.isnan(values["ablated_logit"][:, 2]).all()
    assert np.isnan(values["ablated_m2"][:, 2]).all()


def test_measure__chooses_samples_by_class_whatever_their_order():
    network, samples = trained(), images(30)
    order = np.random.default_rng(1).permutation(30)
    one, other = (
        measure(network, s, parts=("ablation",), table=Effects(samples=9), units=UNITS)
        for s in (samples, samples.subset(order))
    )
    assert one["n_class"].sum() == 9
    shares = np.bincount(samples.labels) * 9 / 30
    assert (abs(one["n_class"] - shares) < 1).all()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5)


def test_measure__leaves_the_network_as_it_was():
    for network, samples, layers in ((digits(), images(6), "auto"), (*reading([[1, 2], [3, 4, 5]]), ["hidden.1"])):
        network.module.train()
        before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
        wanted = [p.requires_grad for p in network.module.parameters()]
        chosen = ("ablation", "conductance") if network.tokenizer is None else ("ablation",)
        measure(network, samples, parts=chosen, table=Effects(replace="mean"), layers=layers, units=(0, 1))
        assert all(torch.equal(before[name], tensor) for name, tensor in network.module.state_dict().items())
        assert [p.requires_grad for p in network.module.parameters()] == wanted
        assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in network.module.modules())
        assert all("forward" not in vars(m) for m in network.module.modules())


@pytest.mark.parametrize("replace", ["zero", "mean"])
def test_ablation__of_texts_counts_tokens_and_not_padding(replace):
    rows = [[1, 2, 3, 4, 5], [6], [7, 8], [9, 10, 11]]
    network, samples = reading(rows)
    values = measure(
        network,
        samples,
        parts=("ablation",),
        table=Effects(replace=replace),
        layers=["hidden.1"],
        units=(2, 4),
        batch_size=2,
    )
    module = network.module
    logits = []
    with torch.no_grad():
        hidden = [module.hidden(module.embed(torch.tensor([row]))) for row in rows]
        mean = torch.cat([h[0] for h in hidden]).double().mean(dim=0)[2] if replace == "mean" else 0.0
        width = {0: 5, 3: 5, 2: 2, 1: 2}  # this network sees padding; batches are of texts of like length
        for i, row in enumerate(rows):
            ids = torch.zeros(1, width[i], dtype=torch.long)
            ids[0, : len(row)] = torch.tensor(row)
            h = module.hidden(module.embed(ids))
            h[..., 2] = mean
            logits.append(module.head(h.mean(dim=1))[0])
    np.testing.assert_allclose(values["ablated_logit"][2], [float(torch.stack(logits)[:, 0].mean())], rtol=1e-5)


def test_measure__in_bfloat16_is_near():
    network, samples = trained(), images(16)
    full, half = ablated(network, samples), ablated(network, samples, bf16=True)
    np.testing.assert_allclose(half["ablated_logit"][[0]], full["ablated_logit"][[0]], rtol=0.1, atol=0.5)


def test_measure__reports_progress_to_the_end():
    seen = []
    options = {"progress": lambda *at: seen.append(at), "batch_size": 8, "units": UNITS}
    table = Effects(replace="mean", conductance=True, conductance_samples=10, conductance_batch=4, conductance_steps=3)
    measure(digits(), images(20), parts=parts(table), table=table, **options)
    assert seen[-1] == (2 * 20 + 12, 2 * 20 + 12)
    assert all(a[0] < b[0] for a, b in itertools.pairwise(seen))


def test_axes__are_those_of_what_is_measured():
    network, samples = digits(), images(6)
    table = Effects(conductance=True, conductance_steps=2, conductance_samples=2)
    found = axes(network, samples, table)
    assert parts(table) == ("ablation", "conductance")
    assert parts(Effects()) == ("ablation",)
    assert found["class"].ids.tolist() == list(samples.classes)
    values = measure(network, samples, parts=parts(table), table=table, units=(1,))
    sizes = {dim: len(axis.ids) for dim, axis in found.items()}
    declared = {v.name: v for v in schema.EFFECTS.variables}
    assert set(values) == set(declared)
    for name, array in values.items():
        assert array.shape == tuple(sizes[d] for d in declared[name].dims[1:])
        assert array.dtype == declared[name].dtype
    for layers, names in ((["relu#1"], ["relu#1"] * 32), (["relu", "relu#2"], ["relu"] * 16 + ["relu#2"] * 32)):
        narrow = axes(network, samples, table, layers=layers)
        assert narrow["unit"].coords["layer"].tolist() == names  # a name is one call, as in the cube of concepts
        found = measure(network, samples, parts=("ablation",), table=table, layers=layers, units=(len(names) - 1,))
        whole = measure(network, samples, parts=("ablation",), table=table, units=(79 if len(names) > 32 else 47,))
        np.testing.assert_allclose(found["ablated_logit"][-1], whole["ablated_logit"][79 if len(names) > 32 else 47])
    assert axes(network, samples, table, layers=["rel*"])["unit"].coords["layer"].tolist() == ["relu"] * 16 + (
        ["relu#1"] * 32 + ["relu#2"] * 32
    )


def test_key_config__holds_what_changes_the_numbers():
    base = {part: key_config(Effects(), part) for part in ("ablation", "conductance")}
    for option in ({"replace": "mean"}, {"samples": 5}, {"bf16": True}):
        assert key_config(Effects(**option), "ablation") != base["ablation"]
        assert key_config(Effects(**option), "conductance") == base["conductance"]
    for option in ({"conductance_samples": 5}, {"conductance_batch": 5}, {"conductance_steps": 5}):
        assert key_config(Effects(**option), "conductance") != base["conductance"]
        assert key_config(Effects(**option), "ablation") == base["ablation"]
    for option in ({"tau": 0.1}, {"k": 1}, {"reading": "lite"}, {"compat": "seed"}, {"min_alive": 3}):
        assert all(key_config(Effects(**option), part) == base[part] for part in base)
    with pytest.raises(SchemaError, match="did you mean 'ablation'"):
        key_config(Effects(), "ablations")


def test_measure__says_what_is_wrong():
    network, samples = digits(), images(6)
    with pytest.raises(SchemaError, match="unit 80 was asked for, and the 3 layers have units 0 to 79"):
        ablated(network, samples, units=(3, 80))
    with pytest.raises(DataError, match=r"\[effects\] samples = 7, and .* has 6; lower it"):
        measure(network, samples, parts=("ablation",), table=Effects(samples=7))
    with pytest.raises(DataError, match="no samples"):
        ablated(network, samples.subset([]))
    many = dataclasses.replace(samples, classes=tuple(map(str, range(11))))
    with pytest.raises(ModelMismatchError, match=r"tells 10 classes apart, and the data has 11; name in \[data\] what"):
        ablated(network, many)
    maps = Net(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU()))
    with pytest.raises(ModelMismatchError, match=r"name a factory in \[model\] whose network classifies"):
        ablated(maps, samples, units=(0, 1))
    broken = digits()
    broken.module.fc.weight.data[0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"sample 's00\d' has a logit of NaN or infinity, and"):
        ablated(broken, samples)
    texts, rows = reading([[1, 2], [3]])
    with pytest.raises(DataError, match="set conductance = false"):
        measure(texts, rows, parts=("conductance",), table=Effects(), layers=["hidden.1"], units=(0,))


def test_measure__names_the_unit_whose_absence_is_not_finite():
    network, samples = digits(), images(6)
    big = 3e38
    with torch.no_grad():
        module = network.module
        module.bn3.weight[:2], module.bn3.bias[:2] = 0, 1.0  # two units that are 1 everywhere, and cancel
        module.fc.weight[0, :4], module.fc.weight[0, 4:8] = big, -big
    with pytest.raises(NonFiniteError, match="without unit 0 of layer 'relu#2'"):
        ablated(network, samples, units=(48, 49, 50))


def test_measure__shows_what_the_network_was_trained_on():
    network, samples = trained(), images(10)
    other = dataclasses.replace(network, preprocessing=Preprocessing(mean=(0.9,), std=(0.1,)))
    one, two = ablated(network, samples), ablated(other, samples)
    assert (one["class_logit"] != two["class_logit"]).all()
    np.testing.assert_allclose(two["class_logit"], told(logits_of(other, samples), samples.labels)[1], rtol=1e-4)
