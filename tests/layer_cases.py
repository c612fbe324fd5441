"""Networks whose layers are known: tiny ones of the real transformers classes, and torchvision's."""

from collections.abc import Mapping

import torch
import torchvision
import transformers
from torch.nn import functional as F

from neurolens.capture import capture


def names(layers):
    return [layer.name for layer in layers]


def widths(layers):
    return [layer.units for layer in layers]


def taken(model, layers, probe):
    """Return what capture gives at these layers, each laid out as the layer says."""
    args, kwargs = ((), probe) if isinstance(probe, Mapping) else ((probe,), {})
    modes = [module.training for module in model.modules()]
    model.eval()
    with torch.no_grad(), capture(model, [layer.tap for layer in layers]) as seen:
        model(*args, **kwargs)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    for layer in layers:
        tensor = seen[layer.name]
        assert tensor.shape[layer.axis] == layer.units
        assert tensor.shape[0] == len(next(iter(kwargs.values())) if kwargs else args[0])
        assert (*tensor.shape[1 : layer.axis], *tensor.shape[layer.axis + 1 :]) == layer.shape
    return seen


def vision(name, **options):
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, num_classes=4, **options)


VOCABULARY = 32
HIDDEN = 24


def texts(tokens=7, count=3):
    ids = torch.randint(0, VOCABULARY, (count, tokens), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def pairs(tokens=7):
    return texts(tokens) | {"decoder_input_ids": texts(tokens + 2)["input_ids"]}


def gelu_new(x):
    return F.gelu(x, approximate="tanh")


def conv1d(module, x):
    return x @ module.weight + module.bias


def gated(act, mlp, x):
    return act(mlp.gate_proj(x)) * mlp.up_proj(x)


SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": HIDDEN}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": HIDDEN, "num_layers": 2, "num_heads": 2}
_GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": HIDDEN, "bos_token_id": 0, "eos_token_id": 0}
_T5_LAYERS = [
    *(f"encoder.block.{i}.layer.1.DenseReluDense.wo:input" for i in (0, 1)),
    *(f"decoder.block.{i}.layer.2.DenseReluDense.wo:input" for i in (0, 1)),
]
ALBERT = "encoder.albert_layer_groups.0.albert_layers.0"
# of each: config, hidden layers, the module that is given the MLP's input, and the hidden units from that
ARCHITECTURES = {
    "GPT2": (
        transformers.GPT2Config(vocab_size=VOCABULARY, **_GPT),
        [f"h.{i}.mlp.c_proj:input" for i in (0, 1)],
        [f"h.{i}.mlp" for i in (0, 1)],
        lambda mlp, x: gelu_new(conv1d(mlp.c_fc, x)),
    ),
    "GPTNeoX": (
        transformers.GPTNeoXConfig(vocab_size=VOCABULARY, **SIZE),
        [f"layers.{i}.mlp.dense_4h_to_h:input" for i in (0, 1)],
        [f"layers.{i}.mlp" for i in (0, 1)],
        lambda mlp, x: F.gelu(mlp.dense_h_to_4h(x)),
    ),
    "GPTNeo": (
        transformers.GPTNeoConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            intermediate_size=HIDDEN,
            attention_types=[[["global", "local"], 1]],
            bos_token_id=0,
            eos_token_id=0,
        ),
        [f"h.{i}.mlp.c_proj:input" for i in (0, 1)],
        [f"h.{i}.mlp" for i in (0, 1)],
        lambda mlp, x: gelu_new(mlp.c_fc(x)),
    ),
    "GPTJ": (
        transformers.GPTJConfig(vocab_size=VOCABULARY, rotary_dim=4, **_GPT),
        [f"h.{i}.mlp.fc_out:input" for i in (0, 1)],
        [f"h.{i}.mlp" for i in (0, 1)],
        lambda mlp, x: gelu_new(mlp.fc_in(x)),
    ),
    "OPT": (
        transformers.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            word_embed_proj_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=HIDDEN,
            max_position_embeddings=32,
        ),
        [f"decoder.layers.{i}.fc2:input" for i in (0, 1)],
        [f"decoder.layers.{i}.fc1" for i in (0, 1)],
        lambda fc1, x: F.relu(fc1(x)),
    ),
    "Llama": (
        transformers.LlamaConfig(vocab_size=VOCABULARY, **SIZE),
        [f"layers.{i}.mlp.down_proj:input" for i in (0, 1)],
        [f"layers.{i}.mlp" for i in (0, 1)],
        lambda mlp, x: gated(F.silu, mlp, x),
    ),
    "Qwen2": (
        transformers.Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=2, **SIZE),
        [f"layers.{i}.mlp.down_proj:input" for i in (0, 1)],
        [f"layers.{i}.mlp" for i in (0, 1)],
        lambda mlp, x: gated(F.silu, mlp, x),
    ),
    "Qwen3": (
        transformers.Qwen3Config(vocab_size=VOCABULARY, num_key_value_heads=2, head_dim=8, **SIZE),
        [f"layers.{i}.mlp.down_proj:input" for i in (0, 1)],
        [f"layers.{i}.mlp" for i in (0, 1)],
        lambda mlp, x: gated(F.silu, mlp, x),
    ),
    "Bloom": (
        transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=6, n_layer=2, n_head=2),
        [f"h.{i}.mlp.dense_4h_to_h:input" for i in (0, 1)],
        [f"h.{i}.mlp" for i in (0, 1)],
        lambda mlp, x: gelu_new(mlp.dense_h_to_4h(x)),
    ),
    "Bert": (
        transformers.BertConfig(vocab_size=VOCABULARY, **SIZE),
        [f"encoder.layer.{i}.output.dense:input" for i in (0, 1)],
        [f"encoder.layer.{i}.intermediate" for i in (0, 1)],
        lambda intermediate, x: F.gelu(intermediate.dense(x)),
    ),
    "Roberta": (
        transformers.RobertaConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **SIZE),
        [f"encoder.layer.{i}.output.dense:input" for i in (0, 1)],
        [f"encoder.layer.{i}.intermediate" for i in (0, 1)],
        lambda intermediate, x: F.gelu(intermediate.dense(x)),
    ),
    "DistilBert": (
        transformers.DistilBertConfig(vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=HIDDEN),
        [f"transformer.layer.{i}.ffn.lin2:input" for i in (0, 1)],
        [f"transformer.layer.{i}.ffn.lin1" for i in (0, 1)],
        lambda lin1, x: F.gelu(lin1(x)),
    ),
    "Albert": (
        transformers.AlbertConfig(vocab_size=VOCABULARY, embedding_size=8, **(SIZE | {"num_hidden_layers": 3})),
        [f"{ALBERT}.ffn_output:input{call}" for call in ("", "#1", "#2")],
        [f"{ALBERT}.ffn:input{call}" for call in ("", "#1", "#2")],
        lambda ffn, x: gelu_new(ffn(x)),
    ),
    "T5": (
        transformers.T5Config(vocab_size=VOCABULARY, **_T5),
        _T5_LAYERS,
        [name.removesuffix(".wo:input") for name in _T5_LAYERS],
        lambda mlp, x: F.relu(mlp.wi(x)),
    ),
    "gated T5": (
        transformers.T5Config(vocab_size=VOCABULARY, feed_forward_proj="gated-gelu", **_T5),
        _T5_LAYERS,
        [name.removesuffix(".wo:input") for name in _T5_LAYERS],
        lambda mlp, x: gelu_new(mlp.wi_0(x)) * mlp.wi_1(x),
    ),
    "ViT": (
        transformers.ViTConfig(image_size=16, patch_size=4, **SIZE),
        [f"layers.{i}.mlp.fc2:input" for i in (0, 1)],
        [f"layers.{i}.mlp" for i in (0, 1)],
        lambda mlp, x: F.gelu(mlp.fc1(x)),
    ),
}


def tiny(name):
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(ARCHITECTURES[name][0])
    if name == "ViT":
        return model, {"pixel_values": torch.randn(3, 3, 16, 16)}
    return model, pairs() if "T5" in name else texts()
