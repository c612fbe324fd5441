"""Checkpoints that are folders: discovered, fingerprinted, filled, refused."""

import json
import shutil
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import LanguageRun

from neurolens import checkpoints, folder_weights, hub, models
from neurolens.errors import (
    CheckpointError,
    MissingCheckpointError,
    ModelMismatchError,
    NonFiniteError,
)
from neurolens.study import Checkpoints, Model, Transformers

transformers = pytest.importorskip("transformers", reason="the extra 'text' is not installed")
TABLE = Checkpoints(pattern="step{step}")


@pytest.fixture
def run(language_run, tmp_path):
    """The run in a folder of one's own, free to be changed."""
    folder = tmp_path / "run"
    shutil.copytree(language_run.folder, folder)
    return LanguageRun(folder, language_run.steps)


def build(run: LanguageRun, **settings: Any) -> models.Network:
    return models.build(Model(name="transformers", transformers=Transformers(source=str(run.model), **settings)))


def series(run: LanguageRun) -> checkpoints.Series:
    return checkpoints.discover(Checkpoints(folder=run.folder / "checkpoints", pattern="step{step}"))


def resave(folder: Path, to: Path, **settings: Any) -> Path:
    transformers.utils.logging.disable_progress_bar()
    with models.building(), hub.quiet():
        transformers.GPTNeoXForCausalLM.from_pretrained(folder).save_pretrained(to, **settings)
    return to


def test_discover__takes_folders_with_weights_for_checkpoints(run):
    (run.folder / "checkpoints" / "step3").mkdir()
    (run.folder / "checkpoints" / "step5").mkdir()
    (run.folder / "checkpoints" / "step5" / "config.json").write_text("{}")
    found = series(run)
    assert (found.dim, found.positions) == ("step", run.steps)
    assert [c.path.name for c in found.checkpoints] == [f"step{n}" for n in run.steps]
    assert any("folders passed over" in note and "step3, step5" in note for note in found.notes)
    files = [{"path": run.checkpoint(n), "step": n} for n in (0, 16)]
    assert checkpoints.discover(Checkpoints(files=files)).positions == (0, 16)


def test_digest__is_of_the_weight_files_by_name(run):
    weights = run.checkpoint(4) / "model.safetensors"
    own = sha256(weights.read_bytes()).hexdigest()
    expected = sha256(f"model.safetensors {own}\n".encode()).hexdigest()
    at = run.steps.index(4)
    assert series(run).checkpoints[at].digest == expected
    (run.checkpoint(4) / "optimizer.pt").write_bytes(b"anything")
    assert series(run).checkpoints[at].digest == expected
    weights.write_bytes((run.checkpoint(8) / "model.safetensors").read_bytes())
    assert series(run).checkpoints[at].digest == series(run).checkpoints[at + 1].digest != expected


@pytest.mark.parametrize("settings", [{}, {"max_shard_size": "40KB"}, {"torch": True}])
def test_load__reads_whole_sharded_and_torch_files_alike(settings, run, tmp_path):
    source = run.checkpoint(16)
    if settings.pop("torch", False):
        import safetensors.torch

        folder = tmp_path / "bin"
        folder.mkdir()
        shutil.copy(source / "config.json", folder)
        torch.save(safetensors.torch.load_file(source / "model.safetensors"), folder / "pytorch_model.bin")
    else:
        folder = resave(source, tmp_path / "again", **settings)
        assert (folder / "model.safetensors.index.json").exists() == bool(settings)
    one, other = build(run).module, build(run).module
    assert folder_weights.load(one, source, TABLE) == ("embed_out.weight",)
    folder_weights.load(other, folder, TABLE)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_load__fills_the_module_that_is_kept(run):
    network = build(run)
    before = {name: tensor.data_ptr() for name, tensor in network.module.state_dict().items()}
    found = series(run)
    kept = []
    for checkpoint in found.checkpoints:
        checkpoints.load(network.module, checkpoint.path, TABLE, digest=checkpoint.digest)
        kept.append(network.module.state_dict()["embed_in.weight"].clone())
    assert {name: tensor.data_ptr() for name, tensor in network.module.state_dict().items()} == before
    assert all(not torch.equal(a, b) for a, b in pairwise(kept))


@pytest.mark.parametrize("text", ["hidden_size", "hidden_act", "num_hidden_layers"])
def test_load__names_what_a_changed_architecture_changed(text, run):
    from language_models import tiny_neox

    changes = {"hidden_size": 64, "hidden_act": "relu", "num_hidden_layers": 2}
    tiny_neox(**{text: changes[text]}).save_pretrained(run.checkpoint(4))
    network = build(run)
    state = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    with pytest.raises(ModelMismatchError, match=f"step4' is of another architecture: .* {text} is {changes[text]!r}"):
        checkpoints.load(network.module, run.checkpoint(4), TABLE)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.module.state_dict().items())


def test_load__minds_no_setting_that_changes_no_number(run):
    path = run.checkpoint(4) / "config.json"
    idle = {"hidden_dropout": 0.3, "initializer_range": 1.0, "transformers_version": "4.1", "use_cache": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | idle))
    assert checkpoints.load(build(run).module, run.checkpoint(4), TABLE) == ("embed_out.weight",)


def test_load__names_tensors_that_differ_in_shape_though_the_configuration_does_not(run, tmp_path):
    from language_models import tiny_neox

    tiny_neox(intermediate_size=32).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", run.checkpoint(4))
    with pytest.raises(ModelMismatchError, match=r"step4'.* of another shape .*dense_h_to_4h.*\(32, 48\).*\(96, 48\)"):
        checkpoints.load(build(run).module, run.checkpoint(4), TABLE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.3.mlp.extra": torch.ones(2)}, r"1 unexpected \(layers\.3\.mlp\.extra\)"),
        ({"gpt_neox.final_layer_norm.bias": None}, r"1 missing \(final_layer_norm\.bias\)"),
    ],
)
def test_load__is_strict(change, message, run):
    import safetensors.torch

    path = run.checkpoint(4) / "model.safetensors"
    state = safetensors.torch.load_file(path) | change
    state = {k.replace("layers.3", "gpt_neox.layers.3"): v for k, v in state.items() if v is not None}
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ModelMismatchError, match=message):
        checkpoints.load(build(run).module, run.checkpoint(4), TABLE)


def test_load__leaves_out_buffers_that_older_releases_saved(run):
    import safetensors.torch

    path = run.checkpoint(4) / "model.safetensors"
    at = "gpt_neox.layers.0.attention"
    old = {f"{at}.bias": torch.ones(1, 1, 4, 4), f"{at}.masked_bias": torch.tensor(-1e9)}
    old[f"{at}.rotary_emb.inv_freq"] = torch.ones(6)
    safetensors.torch.save_file(safetensors.torch.load_file(path) | old, path, metadata={"format": "pt"})
    left_out = checkpoints.load(build(run).module, run.checkpoint(4), TABLE)
    assert set(left_out) == {"embed_out.weight", *(name.removeprefix("gpt_neox.") for name in old)}


def test_load__wants_a_head_where_the_study_does(run, tmp_path):
    transformers.utils.logging.disable_progress_bar()
    with models.building(), hub.quiet():
        base = transformers.AutoModel.from_pretrained(run.checkpoint(4))
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(ModelMismatchError, match=r"1 missing \(lm_head\.weight\)|1 missing \(embed_out\.weight\)"):
        checkpoints.load(build(run, auto="AutoModelForCausalLM").module, tmp_path / "base", TABLE)
    assert checkpoints.load(build(run).module, tmp_path / "base", TABLE) == ()


def test_load__refuses_what_is_not_finite_or_does_not_fit_the_dtype(run):
    import safetensors.torch

    path = run.checkpoint(4) / "model.safetensors"
    state = safetensors.torch.load_file(path)
    state["gpt_neox.final_layer_norm.bias"][3] = 1e5
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    checkpoints.load(build(run).module, run.checkpoint(4), TABLE)
    with pytest.raises(NonFiniteError, match=r"final_layer_norm\.bias' has values that torch\.float16 cannot hold"):
        checkpoints.load(build(run, dtype="float16").module, run.checkpoint(4), TABLE)
    state["gpt_neox.final_layer_norm.bias"][3] = torch.nan
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"step4' has NaN or infinity in 'gpt_neox\.final_layer_norm\.bias'"):
        checkpoints.load(build(run).module, run.checkpoint(4), TABLE)
    checkpoints.load(build(run).module, run.checkpoint(4), TABLE, allow_non_finite=True)


def test_load__notices_a_folder_that_changed_since_it_was_discovered(run):
    found = series(run)
    shutil.copy(run.checkpoint(8) / "model.safetensors", run.checkpoint(4))
    with pytest.raises(CheckpointError, match="step4' changed since it was discovered"):
        checkpoints.load(build(run).module, run.checkpoint(4), TABLE, digest=found.checkpoints[3].digest)


def test_load__refuses_code_in_a_folder_as_in_a_file(run):
    import pickle

    (run.checkpoint(4) / "model.safetensors").unlink()
    (run.checkpoint(4) / "pytorch_model.bin").write_bytes(pickle.dumps({"a": print}))
    with pytest.raises(CheckpointError, match="plain pickle, which executes code"):
        checkpoints.load(build(run).module, run.checkpoint(4), TABLE)


def test_discover__names_the_shard_that_is_not_there(run, tmp_path):
    folder = resave(run.checkpoint(16), tmp_path / "shards" / "step16", max_shard_size="40KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    found = checkpoints.discover(Checkpoints(folder=tmp_path / "shards", pattern="step{step}"))
    assert found.checkpoints[0].digest == ""
    assert any("lacks 1 of the" in note and shard.name in note for note in found.notes)
    with pytest.raises(CheckpointError, match=f"lacks 1 of the .* first '{shard.name}'; copy the rest"):
        checkpoints.load(build(run).module, folder, TABLE)


def test_load__of_a_folder_that_is_gone_says_so(run):
    with pytest.raises(MissingCheckpointError, match=r"there is no file .*step5"):
        checkpoints.load(build(run).module, run.checkpoint(5), TABLE)
