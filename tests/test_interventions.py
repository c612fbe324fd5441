"""What a layer puts out is changed for what follows, and for nothing else."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from layer_cases import ARCHITECTURES, tiny, vision
from torch import nn
from torch.nn import functional as F

from neurolens.capture import Tap, capture
from neurolens.effects import intervening, without_units
from neurolens.effects.interventions import tensors_of
from neurolens.effects.replay import calls_of, record, replaying
from neurolens.errors import CaptureError
from neurolens.layers import find_layers

Pair = namedtuple("Pair", "first second")


@dataclass(frozen=True)
class Held:
    number: int
    tensor: torch.Tensor


class Net(nn.Module):
    """Convolutions with one in-place ReLU used three times, a residual, and a linear layer."""

    def __init__(self, inplace=True):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.fc = nn.ReLU(inplace=inplace), nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.conv1(x))
        out = self.conv2(x)
        out = out.add_(x) if self.relu.inplace else out + x
        return self.fc(self.relu(self.relu(out).mean((2, 3))))


class Then(nn.Module):
    """A module that returns something, and a function of that and of the input."""

    def __init__(self, inner, then):
        super().__init__()
        self.inner, self.then = inner, then

    def forward(self, x):
        return self.then(self.inner(x), x)


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args, **kwargs):
        return self.function(*args, **kwargs)


def net(inplace=True):
    torch.manual_seed(0)
    return Net(inplace).eval(), torch.randn(3, 1, 5, 5)


def layer_of(model, name, x):
    pattern = name if "#" in name else f"{name}#0"
    return find_layers(model, [pattern], x)[0]


def recorded(model, layer, args=(), kwargs=None):
    """Record, with copies of what is overwritten afterwards."""
    kwargs, copied = kwargs or {}, frozenset()
    totals = calls_of(model, args, kwargs)
    while True:
        recording = record(model, layer.tap, args, kwargs, totals=totals, copied=copied)
        if not recording.overwritten:
            return recording
        assert not recording.overwritten & copied
        copied |= recording.overwritten


def whole_state(model):
    return {
        name: (dict(vars(m)), [*m._forward_hooks], [*m._forward_pre_hooks], m.training)
        for name, m in model.named_modules()
    }


def first(output):
    return tensors_of(output)[0]


def test_without_units__is_the_network_with_their_outgoing_weights_at_zero():
    model, x = net()
    hand, _ = net()
    with torch.no_grad():
        hand.fc.weight[:, 2] = 0
        with without_units(model, layer_of(model, "relu#2", x), [2]):
            got = model(x)
        torch.testing.assert_close(got, hand(x), rtol=0, atol=0)


def test_without_units__changes_the_call_that_is_named_and_no_other():
    model, x = net()
    with torch.no_grad():
        for call in range(3):
            name = f"relu#{call}"
            layer = layer_of(model, name, x)
            with (
                without_units(model, layer, [1, 3], values=[0.5, -2.0]),
                capture(model, ["relu", "relu#1", "relu#2"]) as seen,
            ):
                model(x)
            with capture(model, ["relu", "relu#1", "relu#2"]) as plain:
                model(x)
            here = layer.name
            assert (seen[here][:, 1] == 0.5).all()
            assert (seen[here][:, 3] == -2.0).all()
            torch.testing.assert_close(seen[here][:, [0, 2]], plain[here][:, [0, 2]], rtol=0, atol=0)
            before = [name for i, name in enumerate(["relu", "relu#1", "relu#2"]) if i < call]
            assert all(torch.equal(seen[name], plain[name]) for name in before)


@pytest.mark.parametrize("call", [0, 1, 2])
def test_without_units__of_an_in_place_module_is_that_of_one_that_is_not(call):
    (inplace, x), (copying, _) = net(True), net(False)
    with torch.no_grad():
        outputs = []
        for model in (inplace, copying):
            with without_units(model, layer_of(model, f"relu#{call}", x), [0]):
                outputs.append(model(x))
        torch.testing.assert_close(*outputs, rtol=0, atol=0)


def test_intervening__reaches_whoever_holds_what_an_in_place_module_wrote():
    x = torch.tensor([[-1.0, 2.0]])
    ignored = Then(nn.ReLU(inplace=True), lambda _, x: x * 1)  # uses the tensor, not what is returned
    with torch.no_grad(), intervening(ignored, "inner", lambda t: t + 10):
        assert ignored(x.clone()).tolist() == [[10.0, 12.0]]
    kept = Then(nn.Identity(), lambda out, x: torch.stack([out, x]))
    with torch.no_grad(), intervening(kept, "inner", lambda t: t + 10):
        assert kept(x).tolist() == [[[9.0, 12.0]], [[-1.0, 2.0]]]
    viewed = Then(nn.Flatten(), lambda out, x: torch.stack([out, x]))
    with torch.no_grad(), intervening(viewed, "inner", lambda t: t + 10):
        assert viewed(x).tolist() == [[[9.0, 12.0]], [[-1.0, 2.0]]]


def test_intervening__on_what_a_module_is_given_leaves_it_to_others():
    model = Then(nn.Identity(), lambda out, x: torch.stack([out, x]))
    x = torch.ones(1, 2)
    with intervening(model, "inner:input", lambda t: t * 5):
        assert model(x).tolist() == [[[5.0, 5.0]], [[1.0, 1.0]]]
    named = Then(Call(lambda *, value: value + 1), lambda out, x: out)
    named.forward = lambda x: named.inner(value=x)
    with intervening(named, "inner:input", lambda t: t * 5):
        assert named(x).tolist() == [[6.0, 6.0]]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: (t, t + 1),
        lambda t: [None, t],
        lambda t: Pair(t, 2),
        lambda t: {"n": 3, "h": t},
        lambda t: OrderedDict(h=t),
        lambda t: Held(4, t),
        lambda t: ({"deep": [t]}, t),
    ],
)
def test_intervening__changes_the_first_tensor_of_what_is_returned(wrap):
    model = Then(Call(wrap), lambda out, x: out)
    x = torch.ones(1, 2)
    plain = model(x)
    with intervening(model, "inner", lambda t: t * 7):
        out = model(x)
    assert type(out) is type(plain)
    assert first(out).tolist() == [[7.0, 7.0]]
    assert [t.tolist() for t in tensors_of(out)[1:]] == [t.tolist() for t in tensors_of(plain)[1:]]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_without_units__finds_the_units_of_transformers(name):
    model, probe = tiny(name)
    model.eval()
    layers = find_layers(model, "auto", probe)
    for layer in (layers[0], layers[-1]):
        with torch.no_grad():
            with capture(model, [layer.tap]) as plain:
                before = first(model(**probe))
            with without_units(model, layer, [1, 4]), capture(model, [layer.tap]) as seen:
                after = first(model(**probe))
        others = [u for u in range(layer.units) if u not in (1, 4)]
        there, here = (c[layer.name].movedim(layer.axis, -1) for c in (plain, seen))
        assert (here[..., [1, 4]] == 0).all()
        torch.testing.assert_close(here[..., others], there[..., others], rtol=0, atol=0)
        assert not torch.equal(before, after)


def test_intervening__leaves_the_network_as_it_was():
    model, x = net()
    state, weights = whole_state(model), {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        plain = model(x)
        layer = layer_of(model, "relu#1", x)
        with without_units(model, layer, [0]):
            model(x)
        with replaying(model, recorded(model, layer, (x,))), without_units(model, layer, [0]):
            model(x)

        def broken(_):
            raise RuntimeError("on purpose")

        with pytest.raises(RuntimeError, match="on purpose"), intervening(model, "conv2", broken):
            model(x)
        assert torch.equal(model(x), plain)
    assert whole_state(model) == state
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


def test_intervening__does_nothing_to_a_part_that_is_called_by_itself():
    model, x = net()
    with torch.no_grad(), intervening(model, "conv1", lambda t: t * 0):
        assert model.conv1(x).abs().sum() > 0


def test_intervening__says_what_is_wrong():
    model, x = net()
    layer = layer_of(model, "relu#0", x)
    with pytest.raises(CaptureError, match="did you mean 'conv2' or 'conv1'"), intervening(model, "conv", F.relu):
        model(x)
    with pytest.raises(CaptureError, match="its calls are #0 to #2"), intervening(model, "relu#3", F.relu):
        model(x)
    with pytest.raises(CaptureError, match="keep the shape"), intervening(model, "conv1", lambda t: t[:1]):
        model(x)
    with pytest.raises(CaptureError, match="has no unit 4; it has units 0 to 3"), without_units(model, layer, [0, 4]):
        model(x)
    other = nn.Sequential(OrderedDict(relu=nn.ReLU()))
    with pytest.raises(CaptureError, match="find the layers of this network anew"), without_units(other, layer, [0]):
        other(torch.ones(2, 7))


class Preactivated(nn.Module):
    """An in-place ReLU on what is added again later: the whole block changes what it is given."""

    def __init__(self):
        super().__init__()
        self.relu, self.conv = nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(self.relu(x)) + x


class Listing(nn.Module):
    """Blocks that lengthen a list that they are given."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Call(lambda seen, i=i: seen.append(seen[-1] * 2 + i)) for i in range(3))
        self.relu, self.fc = nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x):
        seen = [x.mean((2, 3)).repeat(1, 4)]
        for block in self.blocks:
            block(seen)
        return self.fc(self.relu(torch.stack(seen).sum(0)))


class Shared(nn.Module):
    """One activation for blocks and head alike."""

    def __init__(self):
        super().__init__()
        act = nn.ReLU()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), act) for c in (1, 4, 4))
        self.act, self.fc = act, nn.Linear(4, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.fc(self.act(x.mean((2, 3))))


REPLAYED = {
    "reused in place": (Net, "relu#2"),
    "residual": (Net, "relu#1"),
    "given": (Net, "fc:input"),
    "preactivated": (lambda: nn.Sequential(nn.Conv2d(1, 4, 1), Preactivated(), Preactivated(), nn.Flatten()), "2.relu"),
    "lists": (Listing, "relu"),
    "shared": (Shared, "blocks.0.1#3"),
    "shared in a block": (Shared, "blocks.0.1#1"),
    "first": (Net, "conv1"),
    "identities": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 1),
            nn.Dropout(),
            nn.Identity(),
            nn.ReLU(inplace=True),
            nn.Dropout(inplace=True),
            nn.Conv2d(4, 4, 1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
        ),
        "5",
    ),
    "written to after the layer": (
        lambda: Then(nn.Conv2d(1, 4, 1), lambda out, x: F.relu_(out) + out.mul_(2)),
        "inner",
    ),
    "written to around the layer": (
        lambda: Then(nn.Conv2d(1, 4, 1), lambda out, x: Then(nn.ReLU(), lambda a, b: a + b.add_(1))(out)),
        "inner",
    ),
}


@pytest.mark.parametrize("case", REPLAYED)
def test_replaying__gives_what_the_whole_forward_gives(case):
    build, name = REPLAYED[case]
    torch.manual_seed(1)
    model, x = build().eval(), torch.randn(3, 1, 5, 5)
    layer = layer_of(model, name, x)
    with torch.no_grad():
        recording = recorded(model, layer, (x.clone(),))
        assert torch.equal(recording.output, model(x.clone()))
        for units in ([0], [1, 3], []):
            with without_units(model, layer, units):
                whole = model(x.clone())
                with replaying(model, recording):
                    again = [model(x.clone()) for _ in range(2)]
            assert torch.equal(again[0], whole)
            assert torch.equal(again[1], whole)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_small", "googlenet", "vit_b_16", "swin_t"])
def test_replaying__gives_what_whole_networks_give(name):
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    options |= {"image_size": 32} if name == "vit_b_16" else {}
    model = vision(name, **options).eval()
    x = torch.randn(2, 3, 32, 32)
    layers = find_layers(model, "auto", x)
    previous = None
    with torch.no_grad():
        for layer in (layers[len(layers) // 3], layers[-1]):
            if previous is None:
                recording = recorded(model, layer, (x,))
            else:
                copied, totals = recorded(model, layer, (x,)).copied, calls_of(model, (x,), {})
                with replaying(model, previous):  # on from the layer before
                    recording = record(model, layer.tap, (x,), {}, totals=totals, copied=copied)
            with without_units(model, layer, [0, 2]):
                whole = model(x)
                with replaying(model, recording):
                    again = model(x)
            torch.testing.assert_close(again, whole, rtol=1e-6, atol=1e-6)
            previous = recording


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_replaying__gives_what_whole_transformers_give(name):
    model, probe = tiny(name)
    model.eval()
    layer = find_layers(model, "auto", probe)[-1]
    with torch.no_grad():
        recording = recorded(model, layer, (), probe)
        with without_units(model, layer, [0]):
            whole = first(model(**probe))
            with replaying(model, recording):
                again = first(model(**probe))
    torch.testing.assert_close(again, whole, rtol=1e-6, atol=1e-6)


def test_replaying__computes_nothing_before_the_layer():
    model = vision("resnet18").eval()
    x = torch.randn(2, 3, 32, 32)
    layer = find_layers(model, "auto", x)[-1]
    recording = recorded(model, layer, (x,))
    called = []
    convolve = F.conv2d
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "conv2d", lambda *a, **k: called.append(1) or convolve(*a, **k))
        with replaying(model, recording), without_units(model, layer, [0]):
            model(x)
        assert not called
        model(x)
        assert len(called) == 20
    assert recording.nbytes < 2 * 4 * 64 * 16 * 16 * 12


def test_tensors_of__finds_all_in_order():
    a, b = torch.zeros(1), torch.ones(2)
    assert [len(t) for t in tensors_of([a, {"x": (b, 3)}, Held(1, a), Tap("m")])] == [1, 2, 1]
    assert np.size(tensors_of("text")) == 0
