"""Checkpoints that are revisions of the hub: those on this machine, those to fetch, and those that are neither."""

import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import LanguageRun, to_hub_cache

from neurolens import checkpoints, models, revisions
from neurolens.errors import CheckpointError, MissingCheckpointError, StudyError
from neurolens.study import Checkpoints, Model, Transformers, load_study

pytest.importorskip("transformers", reason="the extra 'text' is not installed")
TABLE = Checkpoints(pattern="step{step}")


def build(run: LanguageRun) -> models.Network:
    return models.build(Model(name="transformers", transformers=Transformers(source=str(run.model))))


def series(run: LanguageRun) -> checkpoints.Series:
    return checkpoints.discover(Checkpoints(folder=run.folder / "checkpoints", pattern="step{step}"))


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
    assert not any("cannot be read" in note for note in found.notes), "they are named once, together"
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


def test_build__fetches_a_tokenizer_beside_a_configuration_that_is_here(cache, monkeypatch):
    fetched = fake_hub(cache, monkeypatch)
    table = HUB.model_copy(update={"download": True})
    first = models.build(Model(name="transformers", transformers=table))
    assert first.tokenizer is not None
    assert sorted(set(fetched)) == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    (here,) = (cache / "models--sea--neox" / "snapshots").iterdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (here / name).unlink()
    assert models.build(Model(name="transformers", transformers=HUB)).tokenizer is None
    again = models.build(Model(name="transformers", transformers=table))
    assert again.description == first.description


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


def test_load__tries_again_what_could_not_be_reached(cache, language_run, monkeypatch):
    import httpx
    import huggingface_hub

    from neurolens.rows import may_pass

    fake_hub(cache, monkeypatch)
    allowed = HUB.model_copy(update={"download": True})
    (found,) = checkpoints.discover(of_revisions((4,)), source=allowed).checkpoints

    def unreachable(*args: Any, **settings: Any) -> None:
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(MissingCheckpointError, match=r"could not be fetched .*no route.*; try again") as refused:
        checkpoints.load(build(language_run).module, found.path, TABLE)
    assert may_pass(refused.value)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    (again,) = checkpoints.discover(of_revisions((8,)), source=allowed).checkpoints
    assert again.digest == ""
    with pytest.raises(MissingCheckpointError, match="no route"):
        checkpoints.load(build(language_run).module, again.path, TABLE)


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
