"""Networks of the transformers library: built, described, filled and shown texts; against the library's own way."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_models import tiny_neox, tokenizer_of_bytes

from neurolens import folder_weights, models
from neurolens.data import Texts, TextSet, shown
from neurolens.errors import DataError, MissingExtraError, StudyError
from neurolens.study import Checkpoints, Model, Preprocessing, Transformers

transformers = pytest.importorskip("transformers", reason="the extra 'text' is not installed")

TEXTS = ["the sea", "a boat with nets and ropes", "no", "the lamps are lit one by one"]
PIXELS = Preprocessing(mean=(0.5,), std=(0.5,))


@dataclass(frozen=True)
class Family:
    """A tiny configuration of an architecture, and the class that its runs are saved by."""

    config: str
    saved_by: str
    settings: dict[str, Any]
    causal: bool = True

    def make(self) -> Any:
        config = getattr(transformers, self.config)
        special = {"bos_token_id": 0, "eos_token_id": 0}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return getattr(transformers, self.saved_by)(config(**(special | self.settings))).eval()


WIDE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "vocab_size": 257}
GATED = {**WIDE, "intermediate_size": 64, "num_key_value_heads": 2}
SHORT = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 257}
FAMILIES = {
    "gpt_neox": Family("GPTNeoXConfig", "GPTNeoXForCausalLM", {**WIDE, "intermediate_size": 64}),
    "gpt2": Family("GPT2Config", "GPT2LMHeadModel", SHORT),
    "gpt_neo": Family(
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "vocab_size": 257, "attention_types": [[["global"], 2]]},
    ),
    "gptj": Family("GPTJConfig", "GPTJForCausalLM", {**SHORT, "rotary_dim": 8}),
    "opt": Family("OPTConfig", "OPTForCausalLM", {**WIDE, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "llama": Family("LlamaConfig", "LlamaForCausalLM", GATED),
    "qwen2": Family("Qwen2Config", "Qwen2ForCausalLM", {**GATED, "tie_word_embeddings": True}),
    "mixtral": Family("MixtralConfig", "MixtralForCausalLM", {**GATED, "num_local_experts": 2}),
    "bloom": Family(
        "BloomConfig", "BloomForCausalLM", {"n_layer": 2, "hidden_size": 32, "n_head": 2, "vocab_size": 257}
    ),
    "bert": Family("BertConfig", "BertForMaskedLM", {**WIDE, "intermediate_size": 64}, causal=False),
    "roberta": Family("RobertaConfig", "RobertaForMaskedLM", {**WIDE, "intermediate_size": 64}, causal=False),
    "distilbert": Family(
        "DistilBertConfig",
        "DistilBertForMaskedLM",
        {"n_layers": 2, "dim": 32, "hidden_dim": 64, "n_heads": 2, "vocab_size": 257},
        causal=False,
    ),
    "albert": Family(
        "AlbertConfig", "AlbertForMaskedLM", {**WIDE, "intermediate_size": 64, "embedding_size": 16}, causal=False
    ),
    "t5": Family(
        "T5Config",
        "T5ForConditionalGeneration",
        {"num_layers": 2, "d_model": 32, "d_ff": 64, "num_heads": 2, "d_kv": 16, "vocab_size": 257}
        | {"decoder_start_token_id": 3, "pad_token_id": 0},
        causal=False,
    ),
    "vit": Family(
        "ViTConfig",
        "ViTForImageClassification",
        {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
        | {"image_size": 16, "patch_size": 4},
        causal=False,
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function that saves a family's network with its tokenizer, once, and returns its folder."""
    transformers.utils.logging.disable_progress_bar()
    top = tmp_path_factory.mktemp("families")

    def save(name: str) -> Path:
        if not (top / name).exists():
            FAMILIES[name].make().save_pretrained(top / name)
            if name != "vit":
                tokenizer_of_bytes().save_pretrained(top / name)
        return top / name

    return save


def build(folder: Path, preprocessing: Preprocessing = PIXELS, **settings: Any) -> models.Network:
    table = Transformers(source=str(folder), **settings)
    return models.build(Model(name="transformers", transformers=table, preprocessing=preprocessing))


def filled(folder: Path, **settings: Any) -> models.Network:
    network = build(folder, **settings)
    folder_weights.load(network.module, folder, Checkpoints(pattern="step{step}"))
    network.module.eval()
    return network


def texts(strings: list[str] = TEXTS, **settings: Any) -> TextSet:
    ids = np.array([str(i) for i in range(len(strings))])
    labels = np.arange(len(strings), dtype=np.int64)
    return TextSet(ids, labels, tuple(map(str, labels)), Texts(strings), coords={"position": labels}, **settings)


AUTO = [(n, "AutoModel") for n in FAMILIES] + [(n, "AutoModelForCausalLM") for n, f in FAMILIES.items() if f.causal]


@pytest.mark.parametrize(("name", "auto"), AUTO)
def test_load__fills_a_network_as_the_library_does(name, auto, saved):
    folder = saved(name)
    with models.building():
        expected = getattr(transformers, auto).from_pretrained(folder)
    state = filled(folder, auto=auto).module.state_dict()
    missing = {key for key in expected.state_dict() if key not in state}
    assert all(key.startswith("pooler") for key in missing)
    assert state
    for key, tensor in state.items():
        assert torch.equal(tensor, expected.state_dict()[key]), key


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "vit"])
def test_shown__gives_each_text_what_it_gets_alone(name, saved):
    network, samples = filled(saved(name)), texts()
    (batch,) = shown(samples, network, batch_size=8)
    assert batch.mask is not None
    assert batch.mask.sum(1).tolist() == [len(t) for t in TEXTS]
    with torch.no_grad():
        together = network.module(*batch.args, **batch.kwargs)[0]
        for i, alone in enumerate(shown(samples, network, batch_size=1)):
            one = network.module(*alone.args, **alone.kwargs)[0][0]
            assert alone.indices.tolist() == [i]
            torch.testing.assert_close(together[i][batch.mask[i]], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "vit"])
def test_shown__runs_the_forward_that_the_saved_network_runs(name, saved):
    network = filled(saved(name))
    (batch,) = shown(texts(), network, batch_size=8)
    with torch.no_grad():
        ours = network.module(**batch.kwargs)[0][batch.mask]
        told = FAMILIES[name].make()(**batch.kwargs, output_hidden_states=True)
    states = told.decoder_hidden_states if name == "t5" else told.hidden_states
    torch.testing.assert_close(ours, states[-1][batch.mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt_neox", "gpt2", "bert", "t5", "llama"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_build__holds_weights_in_the_studys_dtype_as_the_library_does(name, dtype, saved):
    with models.building():
        expected = transformers.AutoModel.from_pretrained(saved(name), dtype=getattr(torch, dtype))
    module = filled(saved(name), dtype=dtype).module
    buffers = dict(expected.named_buffers())
    assert all(buffer.dtype == buffers[key].dtype for key, buffer in module.named_buffers())
    for key, tensor in module.state_dict().items():
        assert tensor.dtype == expected.state_dict()[key].dtype, key
        assert torch.equal(tensor, expected.state_dict()[key]), key
    assert getattr(torch, dtype) in {p.dtype for p in module.parameters()}


def test_build__describes_all_that_decides_numbers(saved, tmp_path):
    network = build(saved("gpt_neox"))
    assert network.tokenizer is not None
    assert network.description == {
        "name": "transformers",
        "architecture": "GPTNeoXModel",
        "auto": "AutoModel",
        "config": network.description["config"],
        "dtype": "float32",
        "attention": "eager",
        "tokenizer": network.tokenizer.digest,
    }
    assert network.module.config.use_cache is False
    assert network.module.config._attn_implementation == "eager"
    assert json.loads(json.dumps(network.description)) == network.description
    for key, value in (("transformers_version", "4.1"), ("_name_or_path", "x"), ("dtype", "float16")):
        assert rewritten(saved("gpt_neox"), tmp_path / key, key, value).description == network.description
    for key, value in (("hidden_act", "relu"), ("layer_norm_eps", 1e-3)):
        assert rewritten(saved("gpt_neox"), tmp_path / key, key, value).description != network.description


def rewritten(folder: Path, copy: Path, key: str, value: object) -> models.Network:
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, key: value}))
    return build(copy)


def test_build__draws_equal_weights_from_equal_seeds_and_leaves_the_generator_alone(saved):
    table = Model(name="transformers", transformers=Transformers(source=str(saved("gpt_neox"))))
    state = torch.random.get_rng_state()
    first, second, third = (models.build(table, seed=seed).module.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], third[key]) for key in first)


def test_build__leaves_the_pooler_out(saved):
    assert build(saved("bert")).module.pooler is None
    assert not [n for n, _ in build(saved("roberta")).module.named_modules() if "pooler" in n]


def test_build__of_images_takes_the_folders_preprocessing(saved, tmp_path):
    folder = saved("vit")
    network = build(folder)
    assert (network.tokenizer, network.channels, network.input_size) == (None, 3, 16)
    with pytest.raises(StudyError, match="normalisation of 'transformers' is not known"):
        build(folder, Preprocessing())
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 16, "width": 16}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]})
    )
    told = build(folder, Preprocessing())
    assert told.preprocessing == Preprocessing(resize=16, crop=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    assert told.description["preprocessing"]["mean"] == [0.1, 0.2, 0.3]
    (folder / "preprocessor_config.json").unlink()


def test_build__says_what_is_no_network_of_the_library(tmp_path, saved):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudyError, match=r"has no config\.json; name a folder that save_pretrained wrote"):
        build(tmp_path / "empty")
    with pytest.raises(StudyError, match=r"there is no folder '.*emty'; did you mean 'empty'\?"):
        build(tmp_path / "emty")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "gpt_noex"}')
    with pytest.raises(StudyError, match="code of a model's own is never executed"):
        build(tmp_path / "empty")
    with pytest.raises(StudyError, match=r"AutoModelForCausalLM has no network for .*; set model\.transformers\.auto"):
        build(saved("vit"), auto="AutoModelForCausalLM")
    table = Transformers(source=str(saved("gpt2")))
    with pytest.raises(StudyError, match="have no meaning for a network of the transformers library"):
        models.build(Model(name="transformers", transformers=table, options={"width": 3}))


def test_build__never_executes_code_of_a_models_own(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModel": "mine.Net"}})
    )
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    with pytest.raises(StudyError, match="never executed"):
        build(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("download", "mend"), [(False, "transformers.download = true"), (True, "HF_HUB_OFFLINE is set")]
)
def test_build__says_how_a_model_that_is_not_here_may_be_fetched(download, mend, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    table = Transformers(source="sea/none", download=download)
    with pytest.raises(StudyError, match=f"'sea/none' is neither a folder nor in the hub's cache .*{mend}"):
        models.build(Model(name="transformers", transformers=table))


def test_build__names_the_extra_that_is_absent(monkeypatch, saved):
    folder = saved("gpt2")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"needs transformers, .* pip install 'neurolens\[text\]'"):
        build(folder)


def test_shown__fills_batches_on_the_right_and_keeps_order(saved):
    network, samples = build(saved("gpt_neox")), texts(max_length=10)
    batches = list(shown(samples, network, batch_size=2, indices=[3, 0, 2]))
    assert [b.indices.tolist() for b in batches] == [[3, 0], [2]]
    assert [b.y.tolist() for b in batches] == [[3, 0], [2]]
    first = batches[0]
    assert first.args == ()
    assert first.mask is not None
    assert first.mask.tolist() == [[True] * 10, [True] * 7 + [False] * 3]
    assert first.kwargs["attention_mask"].tolist() == first.mask.long().tolist()
    assert first.kwargs["input_ids"][1, 7:].tolist() == [0] * 3  # no padding token: the end of text
    decoded = network.tokenizer.raw.decode(first.kwargs["input_ids"][1, :7])
    assert decoded == "the sea"
    assert batches[1].kwargs["input_ids"].shape == (1, 2)


def test_shown__moves_the_input_on_for_a_decoder(saved):
    (batch,) = shown(texts(), build(saved("t5")), batch_size=4)
    assert batch.kwargs["decoder_input_ids"][:, 0].tolist() == [3] * 4
    assert torch.equal(batch.kwargs["decoder_input_ids"][:, 1:], batch.kwargs["input_ids"][:, :-1])
    assert torch.equal(batch.kwargs["decoder_attention_mask"], batch.kwargs["attention_mask"])


def test_shown__shows_images_as_batches_does():
    from neurolens.data import batches, open_samples
    from neurolens.study import Data

    samples, network = open_samples(Data(select={"count": 20, "how": "first"})), models.build(Model())
    for got, expected in zip(
        shown(samples, network, batch_size=8), batches(samples, network.preprocessing, batch_size=8), strict=True
    ):
        assert torch.equal(got.args[0], expected.x)
        assert torch.equal(got.y, expected.y)
        assert got.indices.tolist() == expected.indices.tolist()
        assert (got.kwargs, got.mask) == ({}, None)


def test_shown__refuses_what_a_network_does_not_read(saved, tmp_path):
    from neurolens.data import open_samples
    from neurolens.study import Data

    images = open_samples(Data(select={"count": 2, "how": "first"}))
    with pytest.raises(DataError, match="the network reads texts, and digits:train holds images"):
        next(shown(images, build(saved("gpt2")), batch_size=2))
    with pytest.raises(DataError, match="holds texts, and the network has no tokenizer"):
        next(shown(texts(), models.build(Model()), batch_size=2))
    roberta = build(saved("roberta"))  # 512 positions, of which two stand before the first token
    assert next(shown(texts(["a" * 600], max_length=510), roberta, batch_size=1)).kwargs["input_ids"].shape == (1, 510)
    with pytest.raises(DataError, match=r"a text of 511 tokens, and the network has 510 positions"):
        next(shown(texts(["a" * 600], max_length=511), roberta, batch_size=1))
    short = FAMILIES["gpt2"]
    network = transformers.GPT2Model(transformers.GPT2Config(**short.settings, n_positions=8))
    network.save_pretrained(tmp_path)
    tokenizer_of_bytes().save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"a text of 28 tokens, and the network has 8 positions; set .*max_length = 8"):
        next(shown(texts(), build(tmp_path), batch_size=2))


def test_language_run__learns(language_run):
    """The fixture is a real run: later steps predict the text better."""
    losses = []
    text = torch.tensor(tokenizer_of_bytes()("The boats carry nets and ropes, and the sea is calm.")["input_ids"])[None]
    for step in language_run.steps:
        network = tiny_neox()
        folder_weights.load(network, language_run.checkpoint(step), Checkpoints(pattern="step{step}"))
        with torch.no_grad():
            losses.append(float(network.eval()(input_ids=text, labels=text).loss))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 2


def test_page__runs_on_a_run(language_run, tmp_path, monkeypatch):
    page = Path(__file__).parent.parent / "docs" / "how-to" / "language-models.md"
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    monkeypatch.chdir(tmp_path)
    for name in ("model", "checkpoints", "tides.txt"):
        (tmp_path / name).symlink_to(language_run.folder / name)
    (tmp_path / "study.toml").write_text(language_run.study())
    names: dict[str, Any] = {}
    exec(compile(snippet, str(page), "exec"), names)
    assert names["hidden"].shape[1] == 48


def test_import__of_data_and_checkpoints_needs_neither_torch_nor_transformers():
    code = (
        "import sys, neurolens.data, neurolens.checkpoints, neurolens.tokens, neurolens.data.text; "
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
