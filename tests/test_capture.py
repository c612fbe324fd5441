"""Capture: in-place, re-used, functional, shared; failures; streaming; and that nothing is left behind."""

import copy
import gc
import weakref
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
import torchvision
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from neurolens.capture import Tap, capture, first_tensor
from neurolens.errors import CaptureError
from neurolens.layers import find_layers
from neurolens.networks import CifarResNet18, DigitsConvNet


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).eval()


def images(count=2, side=32, channels=3, seed=0):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_capture__is_not_reached_by_an_in_place_module_that_follows(resnet):
    x, kept = images(), []
    handle = resnet.bn1.register_forward_hook(lambda module, given, output: kept.append(output))
    with torch.no_grad(), capture(resnet, ["bn1", "relu:input", "relu"]) as seen:
        resnet(x)
        true = resnet.bn1.forward(resnet.conv1.forward(x))
    handle.remove()
    assert kept[0].min() == 0.0  # what a reference shows
    assert seen["bn1"].min() < -1
    torch.testing.assert_close(seen["bn1"], true, rtol=0, atol=0)
    torch.testing.assert_close(seen["relu:input"], true, rtol=0, atol=0)
    torch.testing.assert_close(seen["relu"], true.relu(), rtol=0, atol=0)


def test_capture__tells_the_17_calls_of_the_9_relus_of_resnet18_apart(resnet):
    x = images()
    relus = [name for name, module in resnet.named_modules() if isinstance(module, nn.ReLU)]
    layers = ["relu", *(f"{name}{call}" for name in relus[1:] for call in ("", "#1"))]
    assert (len(relus), len(layers)) == (9, 17)
    with torch.no_grad(), capture(resnet, layers) as seen:
        resnet(x)
    assert list(seen) == layers
    slow = {}
    with torch.no_grad():
        h = slow["relu"] = torch.relu(resnet.bn1(resnet.conv1(x)))
        h = resnet.maxpool(h)
        for name in relus[1:]:
            block = resnet.get_submodule(name.removesuffix(".relu"))
            inner = slow[name] = torch.relu(block.bn1(block.conv1(h)))
            short = h if block.downsample is None else block.downsample(h)
            h = slow[f"{name}#1"] = torch.relu(block.bn2(block.conv2(inner)) + short)
    for layer in layers:
        torch.testing.assert_close(seen[layer], slow[layer], msg=layer)


def test_capture__sees_functional_activations_as_what_the_next_layer_is_given():
    torch.manual_seed(0)
    network, x = CifarResNet18().eval(), images()
    with torch.no_grad(), capture(network, ["layer1.0.conv1:input", "layer1.0.conv2:input", "layer1.0"]) as seen:
        network(x)
    with torch.no_grad():
        stem = F.relu(network.bn1(network.conv1(x)))
        block = network.layer1[0]
        inner = F.relu(block.bn1(block.conv1(stem)))
        out = F.relu(block.bn2(block.conv2(inner)) + stem)
    for value, true in zip(seen.values(), (stem, inner, out), strict=True):
        torch.testing.assert_close(value, true)


class Gated(nn.Module):
    """A gated MLP whose projections are called with keywords, and whose output is nested."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(3, 5), nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        return {"none": None, "hidden": (self.down(input=F.silu(self.gate(x)) * self.up(x)), x)}


def test_capture__takes_the_input_of_a_down_projection_given_by_keyword():
    torch.manual_seed(0)
    network, x = Gated(), torch.randn(4, 3)
    with capture(network, ["down:input"]) as seen:
        network(x)
    expected = F.silu(network.gate(x)) * network.up(x)
    torch.testing.assert_close(seen["down:input"], expected.detach())


@dataclass
class Output:
    name: str
    value: Tensor


def test_capture__takes_the_first_tensor_of_nested_outputs():
    model, x = nn.Sequential(Gated()), torch.randn(4, 3)
    with capture(model, ["0", Tap("")]) as seen:
        out = model(x)
    torch.testing.assert_close(seen["0"], out["hidden"][0].detach())
    torch.testing.assert_close(seen[""], out["hidden"][0].detach())
    assert first_tensor(("text", 3, None, [], {"a": [x]})) is x
    assert first_tensor({"a": "text"}) is None
    assert first_tensor([Output("text", x)]) is x
    assert first_tensor(Output) is None


def test_capture__takes_the_first_tensor_of_a_model_output():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    network = BertModel(BertConfig(vocab_size=9, **size)).eval()
    with torch.no_grad(), capture(network, ["encoder", "encoder.layer.1.attention"]) as seen:
        out = network(torch.randint(0, 9, (2, 5)))
    torch.testing.assert_close(seen["encoder"], out.last_hidden_state, rtol=0, atol=0)
    assert seen["encoder.layer.1.attention"].shape == (2, 5, 8)


def test_capture__tells_the_calls_of_a_shared_layer_apart():
    from transformers import AlbertConfig, AlbertModel

    torch.manual_seed(0)
    size = {"hidden_size": 8, "embedding_size": 4, "num_attention_heads": 2, "intermediate_size": 12}
    network = AlbertModel(AlbertConfig(vocab_size=9, num_hidden_layers=4, **size)).eval()
    path = "encoder.albert_layer_groups.0.albert_layers.0"
    taps = [Tap(f"{path}.{part}", "input", call) for call in range(4) for part in ("ffn", "ffn_output")]
    with torch.no_grad(), capture(network, taps) as seen:
        network(torch.randint(0, 9, (2, 5)))
    layer = network.get_submodule(path)
    for call in range(4):
        given, hidden = seen[taps[2 * call].layer], seen[taps[2 * call + 1].layer]
        torch.testing.assert_close(hidden, layer.activation(layer.ffn(given)).detach())
    assert len({value.square().sum().item() for value in seen.values() if value.shape[-1] == 12}) == 4


def test_capture__shows_the_last_forward_whatever_its_batch(resnet):
    with torch.no_grad(), capture(resnet, ["relu", "layer4.1.relu#1"]) as seen:
        for count in (3, 3, 1):
            resnet(images(count, seed=count))
            assert [len(value) for value in seen.values()] == [count, count]
        alone = seen["layer4.1.relu#1"]
    with torch.no_grad(), capture(resnet, ["layer4.1.relu#1"]) as again:
        resnet(images(1, seed=1))
    torch.testing.assert_close(alone, again["layer4.1.relu#1"], rtol=0, atol=0)


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.relu, self.fails = nn.Linear(3, 3), nn.ReLU(), False

    def forward(self, x):
        x = self.relu(self.relu(self.first(x)))
        if self.fails:
            raise RuntimeError("broken")
        return x


def test_capture__keeps_nothing_of_a_forward_that_fails():
    network, x = Failing(), torch.randn(4, 3)
    with capture(network, ["first", "relu#1"]) as seen:
        network(x)
        assert len(seen) == 2
        network.fails = True
        with pytest.raises(RuntimeError, match="broken"):
            network(x)
        assert len(seen) == 0
        with pytest.raises(CaptureError, match="no forward of the network has returned"):
            seen["relu#1"]
        network.fails = False
        network(2 * x)  # the calls are counted anew
        torch.testing.assert_close(seen["first"], network.first(2 * x).detach())
    assert hooks(network) == 0


def test_capture__removes_its_hooks_when_the_block_fails():
    network = Failing()
    network.fails = True
    with pytest.raises(RuntimeError, match="broken"), capture(network, ["first", "relu:input"]):
        network(torch.randn(2, 3))
    with pytest.raises(CaptureError), capture(network, ["first", "second"]):
        pass
    assert hooks(network) == 0


def test_capture__can_be_open_more_than_once(resnet):
    x = images()
    with torch.no_grad(), capture(resnet, ["relu", "fc"]) as outer:
        with capture(resnet, ["relu", "bn1"]) as inner:
            resnet(x)
        first = outer["relu"]
        torch.testing.assert_close(first, inner["relu"], rtol=0, atol=0)
        assert first.data_ptr() != inner["relu"].data_ptr()
        resnet(2 * x)
        assert not torch.equal(outer["relu"], first)
        torch.testing.assert_close(inner["relu"], first, rtol=0, atol=0)
    assert hooks(resnet) == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_capture__gives_no_gradient_and_changes_none(mode):
    torch.manual_seed(0)
    network, x = DigitsConvNet().eval(), images(2, 8, 1)
    with mode(), capture(network, ["conv1", "relu#2"]) as seen:
        out = network(x)
    assert not any(value.requires_grad for value in seen.values())
    assert not network.training
    if mode is torch.enable_grad:
        out.sum().backward()
        taken = [p.grad.clone() for p in network.parameters()]
        network.zero_grad()
        network(x).sum().backward()
        torch.testing.assert_close(taken, [p.grad for p in network.parameters()], rtol=0, atol=0)


def test_capture__leaves_memory_to_its_mapping_only(resnet):
    with torch.no_grad(), capture(resnet, ["relu"]) as seen:
        resnet(images())
    alive = weakref.ref(seen["relu"])
    assert alive() is not None  # still there after the block
    del seen
    gc.collect()
    assert alive() is None


def test_capture__hands_over_the_live_tensor_with_the_index_of_its_tap():
    network, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), torch.randn(5, 3)
    live, taken = {}, {}

    def on(index: int, tensor: Tensor) -> Tensor:
        live[index], taken[index] = tensor, tensor.detach().clone()
        return torch.zeros_like(tensor)  # changes nothing

    taps = [Tap("2", "input"), Tap("0"), Tap("1")]
    with capture(network, taps, on=on) as seen:
        out = network(x)
    assert len(seen) == 0
    assert list(live) == [1, 2, 0]  # in the order in which they fire
    assert live[1].data_ptr() == live[2].data_ptr() == live[0].data_ptr()
    assert live[1].requires_grad
    torch.testing.assert_close(taken[1], network[0](x).detach())  # before the in-place module
    torch.testing.assert_close(taken[0], network[0](x).relu().detach())
    torch.testing.assert_close(out, network(x))


def test_capture__lets_an_error_of_the_callback_through():
    def on(index: int, tensor: Tensor) -> None:
        raise ArithmeticError("layer is not finite")

    network = Failing()
    with capture(network, ["relu"], on=on), pytest.raises(ArithmeticError, match="not finite"):
        network(torch.randn(2, 3))
    network(torch.randn(2, 3))
    assert hooks(network) == 0


class Recomputed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False).sum()


def test_capture__does_not_look_at_calls_outside_of_a_forward():
    network, x = Recomputed(), torch.randn(2, 3)
    calls = []
    with capture(network, ["inner"], on=lambda index, tensor: calls.append(index)):
        network.inner(x)
        assert calls == []
        network(x).backward()  # computes inner again
    assert calls == [0]
    with capture(network, ["inner"]) as seen:
        network.inner(x)
    with pytest.raises(CaptureError, match="call the network itself, not a part of it"):
        seen["inner"]


def test_capture__lays_flattened_tokens_out_again():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return self.fc(x.reshape(-1, 3)).view(x.shape)

    network, x = Flat(), torch.randn(2, 5, 3)
    with torch.no_grad(), capture(network, [Tap("fc", flat=True), Tap("fc", "input", flat=True)]) as seen:
        out = network(x)
    torch.testing.assert_close(seen["fc"], out, rtol=0, atol=0)
    torch.testing.assert_close(seen["fc:input"], x, rtol=0, atol=0)
    model = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (5, 6)))
    with capture(model, [Tap("1", flat=True)]), pytest.raises(CaptureError, match="2 texts of equal length"):
        model(x)


def test_capture__names_what_is_wrong_with_a_layer(resnet):
    with pytest.raises(CaptureError, match=r"no module 'layer5.1.relu'; did you mean 'layer\d.1.relu'"):
        capture(resnet, ["layer5.1.relu"]).__enter__()
    with pytest.raises(CaptureError, match=r"\['relu'\] are named more than once"):
        capture(resnet, ["relu", "relu"]).__enter__()
    with pytest.raises(CaptureError, match="'relu:out' names no layer"):
        capture(resnet, ["relu:out"]).__enter__()
    with torch.no_grad(), capture(resnet, ["layer1.0.relu#2"]) as seen:
        with pytest.raises(CaptureError, match=r"called 'layer1\.0.relu' 2 times; its calls are #0 to #1"):
            resnet(images())
        assert len(seen) == 0
    with (
        capture(nn.Sequential(Failing()), ["0.relu"]) as seen,
        pytest.raises(CaptureError, match=r"did you mean '0\.rel"),
    ):
        seen["0.rela"]
    assert "bn1" not in seen
    assert seen.get("bn1") is None
    unused = Failing()
    unused.more = nn.Linear(1, 1)
    with capture(unused, ["more"]), pytest.raises(CaptureError, match="never called 'more'"):
        unused(torch.randn(2, 3))


class Wordy(nn.Module):
    def forward(self, x):
        return "a word"


def test_capture__names_a_module_that_gives_no_tensor():
    network = nn.Sequential(nn.Identity(), Wordy(), Wordy())
    with capture(network, ["1"]), pytest.raises(CaptureError, match="'1' returns no tensor but str"):
        network(torch.zeros(1))
    with capture(network, ["2:input"]), pytest.raises(CaptureError, match="'2' is given no tensor but str"):
        network(torch.zeros(1))


@given(
    st.lists(st.from_regex(r"[a-z_]{1,8}[0-9]?|[0-9]{1,2}", fullmatch=True), min_size=1, max_size=4),
    st.sampled_from(["output", "input"]),
    st.integers(0, 99),
)
def test_tap__is_read_from_its_name(parts, side, call):
    tap = Tap(".".join(parts), side, call)
    assert Tap.of(tap.layer) == tap


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["relu", "relu_", "tanh", "linear", "dropout_"]), min_size=1, max_size=8))
def test_capture__equals_a_run_without_in_place_modules(names):
    torch.manual_seed(0)
    kinds = {"relu": nn.ReLU(), "relu_": nn.ReLU(inplace=True), "tanh": nn.Tanh(), "linear": nn.Linear(4, 4)}
    kinds["dropout_"] = nn.Dropout(inplace=True)
    pure = kinds | {"relu_": kinds["relu"], "dropout_": nn.Identity()}
    network = nn.Sequential(nn.Linear(4, 4), *(kinds[name] for name in names)).eval()
    calls = {}
    taps, expected = [Tap("0")], [network[0](torch.ones(2, 4))]
    for name in names:
        path = next(path for path, module in network.named_modules() if module is kinds[name])
        for side in ("input", "output"):
            taps.append(Tap(path, side, calls.get(name, 0)))
            expected.append(pure[name](expected[-1]) if side == "output" else expected[-1])
        calls[name] = calls.get(name, 0) + 1
    with torch.no_grad(), capture(network, taps) as seen:
        network(torch.ones(2, 4))
    for tap, value in zip(taps, expected, strict=True):
        torch.testing.assert_close(seen[tap.layer], value.detach(), msg=tap.layer)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_capture__leaves_network_and_activations_on_their_device(resnet):
    network = copy.deepcopy(resnet).to("cuda")
    x = images()
    (first, *_) = layers = find_layers(network, "auto", x.to("cuda"))
    with torch.no_grad(), capture(network, [layer.tap for layer in layers]) as seen:
        network(x.to("cuda"))
    assert {value.device.type for value in seen.values()} == {"cuda"}
    assert {parameter.device.type for parameter in network.parameters()} == {"cuda"}
    with torch.no_grad(), capture(resnet, [first.tap]) as on_cpu:
        resnet(x)
    torch.testing.assert_close(seen[first.name].cpu(), on_cpu[first.name], rtol=1e-2, atol=1e-2)
