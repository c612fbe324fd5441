"""Hidden units of the MLPs of transformers: exact lists, widths, and values against a plain recomputation."""

import pytest
import torch
import torchvision
import transformers
from layer_cases import ARCHITECTURES, HIDDEN, SIZE, VOCABULARY, names, taken, texts, tiny, widths
from torch.nn import functional as F

from neurolens.capture import capture
from neurolens.layers import find_layers


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_find_layers__gives_the_hidden_units_of_every_mlp(name):
    _, expected, inputs, hidden = ARCHITECTURES[name]
    model, probe = tiny(name)
    layers = find_layers(model, "auto", probe)
    assert names(layers) == expected
    assert widths(layers) == [HIDDEN] * len(expected)
    tokens = [17] if name == "ViT" else [7] * len(expected)
    if "T5" in name:
        tokens = [7, 7, 9, 9]
    assert [layer.shape for layer in layers] == [(t,) for t in tokens] * (len(expected) if name == "ViT" else 1)
    seen = taken(model, layers, probe)
    model.eval()
    given_at = [place if ":" in place else f"{place}:input" for place in inputs]
    with torch.no_grad(), capture(model, given_at) as given:
        model(**probe)
        for layer, place in zip(layers, given_at, strict=True):
            true = hidden(model.get_submodule(place.partition(":")[0]), given[place])
            torch.testing.assert_close(seen[layer.name], true.view(seen[layer.name].shape))


@pytest.mark.parametrize("name", ["GPT2", "GPTNeoX", "OPT", "Llama", "Bert"])
def test_find_layers__gives_the_same_units_below_a_language_head(name):
    config, expected, *_ = ARCHITECTURES[name]
    if name == "Bert":
        config = transformers.BertConfig(vocab_size=VOCABULARY, is_decoder=True, **SIZE)
    model = transformers.AutoModelForCausalLM.from_config(config)
    layers = find_layers(model, "auto", texts())
    assert [layer.name.removeprefix(f"{model.base_model_prefix}.") for layer in layers] == expected


@pytest.mark.parametrize("name", ["GPT2", "OPT", "Albert"])
@pytest.mark.parametrize(("tokens", "count"), [(1, 3), (5, 1), (1, 1)])
def test_find_layers__does_not_depend_on_what_is_shown(name, tokens, count):
    model, probe = tiny(name)
    usual = find_layers(model, "auto", probe)
    layers = find_layers(model, "auto", texts(tokens, count))
    assert [(layer.name, layer.units, layer.axis) for layer in layers] == [(u.name, u.units, u.axis) for u in usual]
    assert all(layer.shape == (tokens,) for layer in layers)
    taken(model, layers, texts(tokens, count))
    assert [layer.tap for layer in layers] == [layer.tap for layer in usual]


def test_find_layers__lays_the_flat_tokens_of_opt_out():
    model, probe = tiny("OPT")
    layers = find_layers(model, ["decoder.layers.*.fc2:input", "decoder.layers.*.activation_fn"], probe)
    assert [(layer.shape, layer.axis, layer.tap.flat) for layer in layers] == [((7,), 2, True)] * 4
    seen = taken(model, layers, probe)
    alone = taken(model, layers, {key: value[1:2] for key, value in probe.items()})
    for layer in layers:
        torch.testing.assert_close(seen[layer.name][1:2], alone[layer.name], msg=layer.name)


def test_find_layers__gives_the_mlps_of_torchvisions_vit():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(
        image_size=16, patch_size=4, num_layers=11, num_heads=2, hidden_dim=16, mlp_dim=HIDDEN, num_classes=5
    )
    x = torch.randn(3, 3, 16, 16)
    layers = find_layers(model, "auto", x)
    assert names(layers) == [f"encoder.layers.encoder_layer_{i}.mlp.3:input" for i in range(11)]  # 2 before 10
    assert {(layer.units, layer.shape, layer.axis) for layer in layers} == {(HIDDEN, (17,), 2)}
    seen = taken(model, layers, x)
    path = "encoder.layers.encoder_layer_10.mlp"
    with torch.no_grad(), capture(model.eval(), [f"{path}:input"]) as given:
        model(x)
    first = model.get_submodule(f"{path}.0")
    torch.testing.assert_close(seen[f"{path}.3:input"], F.gelu(first(given[f"{path}:input"])).detach())


def test_find_layers__keeps_the_natural_order_of_many_layers():
    config = transformers.GPTNeoXConfig(vocab_size=VOCABULARY, **(SIZE | {"num_hidden_layers": 12}))
    layers = find_layers(transformers.AutoModel.from_config(config), "auto", texts())
    assert names(layers) == [f"layers.{i}.mlp.dense_4h_to_h:input" for i in range(12)]
    chosen = find_layers(transformers.AutoModel.from_config(config), ["layers.1*.mlp.act", "layers.2.mlp.act"], texts())
    assert names(chosen) == [f"layers.{i}.mlp.act" for i in (1, 2, 10, 11)]
