"""Checkpoints that are folders, and revisions of the hub: discovered, fingerprinted, filled, refused."""

import json
import shutil
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import LanguageRun, to_hub_cache

from neurolens import checkpoints, folder_weights, hub, models, revisions
from neurolens.errors import (
    CheckpointError,
    MissingCheckpointError,
    ModelMismatchError,
    NonFiniteError,
    StudyError,
)
from neurolens.study import Checkpoints, Model, Transformers, load_study

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


def test_pythia__has_154_steps():
    assert len(revisions.PYTHIA) == 154
    assert revisions.PYTHIA[:12] == (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
    assert (revisions.PYTHIA[12], revisions.PYTHIA[-1]) == (2000, 143_000)


@pytest.fixture
def cache(language_run, tmp_path, monkeypatch):
    """A run as revisions in the hub's cache of this machine: HF_HOME/hub."""
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    to_hub_cache(language_run, tmp_path / "hf" / "hub", "sea/neox")
    return tmp_path / "hf" / "hub"


HUB = Transformers(source="sea/neox")


def of_revisions(steps: tuple[int, ...] | str, **changes: Any) -> Checkpoints:
    return Checkpoints(revisions="step{step}", steps=steps, **changes)


def test_discover__finds_revisions_on_this_machine(cache, language_run):
    found = checkpoints.discover(of_revisions((16, 0, 4)), source=HUB)
    assert (found.dim, found.positions) == ("step", (0, 4, 16))
    local = series(language_run)
    digests = {c.step: c.digest for c in local.checkpoints}
    assert [c.digest for c in found.checkpoints] == [digests[n] for n in (0, 4, 16)]
    network = models.build(Model(name="transformers", transformers=HUB))
    assert network.description == build(language_run).description
    for checkpoint in found.checkpoints:
        checkpoints.load(network.module, checkpoint.path, TABLE, digest=checkpoint.digest)
    other = build(language_run)
    checkpoints.load(other.module, language_run.checkpoint(16), TABLE)
    for name, tensor in other.module.state_dict().items():
        assert torch.equal(tensor, network.module.state_dict()[name])


def test_discover__a_revision_that_is_not_here_fails_its_row_alone(cache):
    found = checkpoints.discover(of_revisions("pythia", end=1000), source=HUB)
    assert found.positions == (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
    assert [bool(c.digest) for c in found.checkpoints] == [True] * 6 + [False] * 6
    assert any("not on this machine: step32, step64, step128, step256 and 144 more" in note for note in found.notes)
    network = models.build(Model(name="transformers", transformers=HUB))
    checkpoints.load(network.module, found.checkpoints[5].path, TABLE, digest=found.checkpoints[5].digest)
    missing = found.checkpoints[6]
    message = r"revision 'step32' of 'sea/neox' is not on this machine; .*model\.transformers\.download = true"
    with pytest.raises(MissingCheckpointError, match=message):
        checkpoints.load(network.module, missing.path, TABLE, digest=missing.digest)
    revisions._refused.clear()  # as in another process
    with pytest.raises(MissingCheckpointError, match=message):
        checkpoints.load(network.module, missing.path, TABLE, digest=missing.digest)


def test_discover__a_revision_without_its_weights_is_not_here(cache):
    found = checkpoints.discover(of_revisions((4, 8)), source=HUB)
    (found.checkpoints[0].path / "model.safetensors").unlink()
    again = checkpoints.discover(of_revisions((4, 8)), source=HUB)
    assert [bool(c.digest) for c in again.checkpoints] == [False, True]


def fake_hub(cache, monkeypatch, *, wrong: str = "") -> list[str]:
    """Stand in for the hub: it has the revisions of the run, and gives what is asked for; returns what was fetched."""
    import huggingface_hub
    from huggingface_hub.errors import RevisionNotFoundError
    from huggingface_hub.hf_api import ModelInfo

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    top, away = cache / "models--sea--neox", cache.parent / "away"
    shutil.move(top, away)
    fetched: list[str] = []

    def model_info(self, name, revision, files_metadata):
        assert (name, files_metadata) == ("sea/neox", True)
        if not (away / "refs" / revision).exists():
            raise RevisionNotFoundError(f"404 {revision}", response=_Response())
        commit = (away / "refs" / revision).read_text()
        siblings = []
        for file in (away / "snapshots" / commit).iterdir():
            content = file.read_bytes()
            lfs = {"size": len(content), "sha256": wrong or sha256(content).hexdigest(), "pointerSize": 100}
            siblings.append({"rfilename": file.name, "lfs": lfs if file.suffix == ".safetensors" else None})
        return ModelInfo(id=name, sha=commit, siblings=siblings)

    def snapshot_download(name, *, revision, allow_patterns, cache_dir):
        commit = (away / "refs" / (revision or "main")).read_text()
        refs = Path(cache_dir) / "models--sea--neox" / "refs"
        refs.mkdir(parents=True, exist_ok=True)
        (refs / (revision or "main")).write_text(commit)
        target = Path(cache_dir) / "models--sea--neox" / "snapshots" / commit
        target.mkdir(parents=True, exist_ok=True)
        for file in (away / "snapshots" / commit).iterdir():
            if file.name in allow_patterns:
                (target / file.name).write_bytes(file.read_bytes())
                fetched.append(file.name)
        return str(target)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return fetched


class _Response:
    """What the hub's errors want to know of an answer."""

    headers: dict[str, str] = {}  # noqa: RUF012
    status_code = 404
    request = None


def test_load__fetches_a_revision_where_the_study_allows_it(cache, language_run, monkeypatch):
    local = {c.step: c.digest for c in series(language_run).checkpoints}
    fetched = fake_hub(cache, monkeypatch)
    allowed = HUB.model_copy(update={"download": True})
    found = checkpoints.discover(of_revisions((4, 5, 8)), source=allowed)
    assert fetched == []
    assert [c.digest for c in found.checkpoints] == [local[4], "", local[8]]
    assert any("2 revisions of sea/neox will be fetched" in note for note in found.notes)
    network = build(language_run)
    checkpoints.load(network.module, found.checkpoints[0].path, TABLE, digest=found.checkpoints[0].digest)
    assert fetched.count("model.safetensors") == 1
    with pytest.raises(MissingCheckpointError, match="'sea/neox' has no revision 'step5' on the hub"):
        checkpoints.load(network.module, found.checkpoints[1].path, TABLE)
    again = checkpoints.discover(of_revisions((4,)), source=HUB)  # it is on this machine now
    assert again.checkpoints[0].digest == local[4]
    checkpoints.load(network.module, again.checkpoints[0].path, TABLE, digest=local[4])
    assert fetched.count("model.safetensors") == 1


def test_load__notices_that_what_was_fetched_is_not_what_the_hub_promised(cache, language_run, monkeypatch):
    fake_hub(cache, monkeypatch, wrong="0" * 64)
    (promised,) = checkpoints.discover(of_revisions((4,)), source=HUB.model_copy(update={"download": True})).checkpoints
    with pytest.raises(CheckpointError, match="changed since it was discovered"):
        checkpoints.load(build(language_run).module, promised.path, TABLE, digest=promised.digest)


def test_discover__asks_nobody_where_the_environment_forbids_it(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = checkpoints.discover(of_revisions((4, 5)), source=HUB.model_copy(update={"download": True}))
    assert [bool(c.digest) for c in found.checkpoints] == [True, False]
    with pytest.raises(MissingCheckpointError, match="HF_HUB_OFFLINE is set; unset it"):
        revisions.here(found.checkpoints[1].path)


@pytest.mark.parametrize(
    ("table", "source", "message"),
    [
        (of_revisions((4,)), None, "set model.name = 'transformers' and model.transformers.source"),
        (of_revisions((4,)), Transformers(source="."), "is the folder '.'; name the model, or use checkpoints.folder"),
        (of_revisions(()), HUB, "needs its steps: checkpoints.steps = 'pythia', or a list"),
        (Checkpoints(revisions="main", steps=(4,)), HUB, r"is 'main'; it needs one of \{step\} and \{epoch\}"),
    ],
)
def test_discover__says_what_revisions_need(table, source, message):
    with pytest.raises(StudyError, match=message):
        checkpoints.discover(table, source=source)


def test_study__of_revisions_is_read(cache, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(
        'name = "a"\n[model]\nname = "transformers"\n[model.transformers]\nsource = "sea/neox"\n'
        '[checkpoints]\nrevisions = "step{step}"\nsteps = [0, 16]\n[data]\nsource = "text"\nroot = "a.txt"\n'
    )
    study = load_study(path)
    assert checkpoints.discover(study.checkpoints, source=study.model.transformers).positions == (0, 16)
