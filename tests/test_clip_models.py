"""Networks and weights of open_clip: by name, from state dicts, from OpenAI's archives, from what is published."""

import copy
import hashlib
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from neurolens import checkpoints, clip_models, clip_weights, models, quick_gelu, rows, torchscript
from neurolens.data import study_samples
from neurolens.data.batching import normalisation, normalise, prepare
from neurolens.errors import (
    CheckpointError,
    DataError,
    MissingCheckpointError,
    MissingExtraError,
    ModelMismatchError,
    StudyError,
)
from neurolens.pairs import pool_of
from neurolens.study import CheckpointFile, Checkpoints, Model, Study
from neurolens.weights import fill, read_state

open_clip = pytest.importorskip("open_clip", reason="the extra 'clip' is not installed")

VISION = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
TEXT = {"context_length": 8, "vocab_size": 20, "width": 32, "heads": 2, "layers": 1}
SMALL = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
TINY = Model(name="open_clip/RN50", options={"quick_gelu": True})


@pytest.fixture
def tiny(monkeypatch):
    """open_clip's RN50 has the sizes of a small one."""
    real = open_clip.get_model_config
    monkeypatch.setattr(
        open_clip, "get_model_config", lambda name: copy.deepcopy(SMALL) if name == "RN50" else real(name)
    )


class OpenAiTower(torch.nn.Module):
    """A text tower, and OpenAI's entries beside the weights, as a class that TorchScript takes."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.visual = network.visual
        self.transformer = network.transformer
        self.token_embedding, self.ln_final = network.token_embedding, network.ln_final
        for name in ("positional_embedding", "text_projection", "logit_scale"):
            setattr(self, name, getattr(network, name))
        for name, value in zip(quick_gelu.OPENAI_ENTRIES, (32, 8, 20), strict=True):
            self.register_buffer(name, torch.tensor(value))
        self.attn_mask = torch.zeros(8, 8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.visual(image) * self.logit_scale.exp() + self.attn_mask.sum() + self.positional_embedding.sum()


def archive(network: torch.nn.Module, path: Path) -> Path:
    """Write what OpenAI publishes: a traced network in half precision, its sizes beside the weights."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        tower = OpenAiTower(copy.deepcopy(network).eval())
        traced = torch.jit.trace(tower, torch.zeros(1, 3, 32, 32), check_trace=False)
        torch.jit.save(traced.half(), str(path))
    return path


def test_build__is_open_clips_class_with_its_preprocessing(tiny):
    network = models.build(TINY, seed=0)
    shown = network.preprocessing
    assert isinstance(network.module, open_clip.CLIP)
    assert (network.channels, network.input_size) == (3, 32)
    assert (shown.resize, shown.crop, shown.interpolation) == (32, 32, "bicubic")
    assert (shown.mean, shown.std) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert network.description == {
        "name": "open_clip/RN50",
        "quick_gelu": True,
        "image_size": 32,
        "preprocessing": shown.model_dump(mode="json"),
    }
    assert pool_of(network.module).features == 24


def test_build__shows_images_as_open_clip_does(tiny):
    network = models.build(TINY, seed=0)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    pixels = torch.tensor(prepare(image, preprocessing=network.preprocessing)[None]).permute(0, 3, 1, 2)
    found = normalise(pixels, *normalisation(network.preprocessing, torch.device("cpu")))
    expected = open_clip.image_transform(32, is_train=False)(Image.fromarray(image))
    torch.testing.assert_close(found[0], expected)


def test_build__a_copy_embeds_images_and_texts_by_itself(tiny):
    network = models.build(TINY, seed=0)
    module = copy.deepcopy(network.module).eval()
    with torch.no_grad():
        network.module.visual.attnpool.c_proj.bias.fill_(7.0)
        assert module(torch.zeros(1, 3, 32, 32)).abs().max() < 7
        assert module.encode_text(torch.zeros(2, 8, dtype=torch.int64)).shape == (2, 24)
    assert torch.equal(models.build(TINY, seed=0).module.logit_scale, module.logit_scale)


def test_build__says_what_is_wrong_with_a_name_or_an_option(tiny):
    for name, options, match in (
        ("open_clip/RN51", {}, r"unknown to open_clip; did you mean .*'open_clip/RN50'"),
        ("open_clip/coca_ViT-B-32", {}, r"a text tower that is not CLIP's \(\w+\)"),
        ("open_clip/RN50", {"quick_gel": True}, r"model.options has 'quick_gel'; did you mean 'quick_gelu'\?"),
        ("open_clip/RN50", {"image_size": "big"}, r"image_size is 'big', and a number of pixels was needed"),
        ("open_clip/RN50-quickgelu", {"quick_gelu": False}, r"has QuickGELU, and model.options.quick_gelu is false"),
    ):
        with pytest.raises(StudyError, match=match):
            models.build(Model(name=name, options=options))
    with pytest.raises(StudyError, match=r"'open_clip_RN50' is unknown; did you mean 'open_clip/RN50'"):
        models.build(Model(name="open_clip_RN50"))


def test_build__without_open_clip_names_what_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r"model.name = 'open_clip/RN50' needs .*neurolens\[clip\]"):
        models.build(Model(name="open_clip/RN50"))


def test_study__a_network_of_embeddings_has_no_tables_of_logits():
    with pytest.raises(ValueError, match=r"\[samples\] needs a network that tells classes, and open_clip/RN50 gives"):
        Study.model_validate({"model": {"name": "open_clip/RN50"}, "samples": {}})


def test_study_samples__a_network_of_embeddings_takes_any_number_of_classes(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), "red" if name == "cat" else "blue").save(tmp_path / "val" / name / "0.png")
    data = {"source": "folder", "root": str(tmp_path), "split": "val"}
    study = Study.model_validate({"model": {"name": "open_clip/RN50"}, "data": data})
    assert study_samples(study).classes == ("cat", "dog")
    with pytest.raises(DataError, match="2 class folders and the network 10 classes"):
        study_samples(study.model_copy(update={"model": Model(name="resnet18")}))


# What fills them


def test_load__an_openai_archive_fills_the_network_in_float32(tiny, tmp_path):
    source, network = models.build(TINY, seed=1), models.build(TINY, seed=2)
    path = archive(source.module, tmp_path / "RN50.pt")
    state = read_state(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_state = torch.jit.load(str(path)).state_dict()
    assert state.keys() == torch_state.keys() >= set(quick_gelu.OPENAI_ENTRIES)
    assert all(torch.equal(tensor, torch_state[name]) for name, tensor in state.items())
    table = Checkpoints(files=(CheckpointFile(path=path, epoch=0),))
    (checkpoint,) = checkpoints.discover(table).checkpoints
    for _ in range(2):  # the first load learns no layout that the second could take for its own
        checkpoints.load(network.module, path, table, digest=checkpoint.digest)
    for name, tensor in source.module.state_dict().items():
        held = network.module.state_dict()[name]
        assert held.dtype == tensor.dtype
        assert torch.equal(held, tensor.half().float() if tensor.is_floating_point() else tensor), name
    assert pool_of(path, heads=16).features == 24


def test_load__an_openai_archive_is_refused_by_a_text_tower_of_gelu(tiny, tmp_path):
    path = archive(models.build(TINY, seed=1).module, tmp_path / "RN50.pt")
    network = models.build(Model(name="open_clip/RN50"), seed=2)
    with pytest.raises(ModelMismatchError, match=r"trained with QuickGELU, and the text tower has GELU.*quick_gelu"):
        checkpoints.load(network.module, path, Checkpoints())


def test_load__state_dicts_of_open_clip_fill_the_network(tiny, tmp_path):
    source = models.build(TINY, seed=1).module.state_dict()
    trained = {"epoch": 3, "name": "run", "state_dict": {f"module.{name}": t for name, t in source.items()}}
    torch.save(trained, tmp_path / "epoch_3.pt")
    save_file(source, tmp_path / "epoch_4.safetensors")
    for name, table in (
        ("epoch_3.pt", Checkpoints(strip_prefixes=("module.",))),
        ("epoch_4.safetensors", Checkpoints()),
    ):
        network = models.build(TINY, seed=2)
        checkpoints.load(network.module, tmp_path / name, table)
        held = network.module.state_dict()
        assert all(torch.equal(tensor, held[k]) for k, tensor in source.items())


class Plain(torch.nn.Module):
    """One tensor of each kind, and an attribute that is none of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 3)
        self.register_buffer("seen", torch.tensor(5))
        self.beside = torch.ones(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x + self.beside) + self.seen


def plain_archive(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Plain()), str(path))
    return path


def rewritten(path: Path, target: Path, changes: dict[str, bytes]) -> Path:
    """Copy an archive, with other contents of some records."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            content = old.read(member)
            for name, changed in changes.items():
                content = changed if member.filename.endswith(name) else content
            new.writestr(member.filename, content)
    return target


def test_read_state__of_an_archive_has_no_plain_attributes(tmp_path):
    state = read_state(plain_archive(tmp_path / "plain.pt"))
    assert set(state) == {"linear.weight", "linear.bias", "seen"}
    module = Plain()
    fill(module, state)
    assert int(module.seen) == 5


def test_read_state__of_an_archive_that_executes_code_is_refused_and_nothing_is_executed(tmp_path):
    path, mark = plain_archive(tmp_path / "plain.pt"), tmp_path / "mark"
    evil = f"cposix\nsystem\n(S'touch {mark}'\ntR.".encode()
    bad = rewritten(path, tmp_path / "bad.pt", {"data.pkl": evil})
    with pytest.raises(CheckpointError, match=r"was refused: it is a TorchScript archive.*posix.system.*trust = true"):
        read_state(bad)
    assert not mark.exists()


def test_read_state__of_an_archive_reads_nothing_beyond_a_tensors_own_bytes(tmp_path):
    path = plain_archive(tmp_path / "plain.pt")
    with zipfile.ZipFile(path) as held:
        content = held.read("plain/data.pkl")
    assert content.count(b"(K\x03K\x02t") == 1  # the shape of the weights
    larger = content.replace(b"(K\x03K\x02t", b"(K\x7fK\x02t")
    with pytest.raises(CheckpointError, match=r"cannot be read without its code \(RuntimeError"):
        read_state(rewritten(path, tmp_path / "larger.pt", {"data.pkl": larger}))


def test_read_state__of_an_archive_that_needs_its_code_is_read_by_torch_on_trust(tmp_path, monkeypatch):
    path = plain_archive(tmp_path / "plain.pt")
    expected = read_state(path)

    def refuse(_: Path) -> None:
        raise pickle.UnpicklingError("GLOBAL other.Kind is no part of a module's tensors")

    monkeypatch.setattr(torchscript, "read_archive", refuse)
    with pytest.raises(CheckpointError, match=r"other\.Kind.*set checkpoints\.trust = true"):
        read_state(path)
    found = read_state(path, trust=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_read_state__of_a_damaged_archive_says_so(tmp_path):
    path = plain_archive(tmp_path / "plain.pt")
    with pytest.raises(CheckpointError, match=r"tensors cannot be read without its code \(UnpicklingError"):
        read_state(rewritten(path, tmp_path / "none.pt", {"data.pkl": b"\x80\x02}."}))
    cut = tmp_path / "cut.pt"
    cut.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="truncated"):
        read_state(cut)


# What is published


@pytest.fixture
def server(tiny, tmp_path, monkeypatch):
    """Publish an archive under open_clip's tag, at an address with its hash, as OpenAI does."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    file = archive(models.build(TINY, seed=1).module, tmp_path / "RN50.pt")
    folder = tmp_path / "openaipublic" / hashlib.sha256(file.read_bytes()).hexdigest()
    folder.mkdir(parents=True)
    file.rename(folder / file.name)
    real = open_clip.pretrained.get_pretrained_cfg

    def found(name, tag):
        local = {"url": (folder / file.name).as_uri(), "hf_hub": ""}
        return real(name, tag) | local if (name, tag) == ("RN50", "openai") else real(name, tag)

    monkeypatch.setattr(open_clip.pretrained, "get_pretrained_cfg", found)
    return folder / file.name


NAME = "open_clip/RN50/openai"


def test_published__is_fetched_once_and_only_where_allowed(server, tmp_path):
    place = tmp_path / "home" / ".cache" / "clip" / "RN50.pt"
    with pytest.raises(MissingCheckpointError, match=r"checkpoints\.download = true, or copy file://.*RN50\.pt to"):
        clip_weights.published(NAME, download=False)
    assert clip_weights.published(NAME, download=True) == place
    assert place.read_bytes() == server.read_bytes()
    server.unlink()
    assert clip_weights.published(NAME, download=False) == place
    place.write_bytes(b"half")
    with pytest.raises(CheckpointError, match="is not whole: its sha256 does not begin with"):
        clip_weights.published(NAME, download=False)
    place.unlink()
    with pytest.raises(MissingCheckpointError, match=r"cannot be fetched \(.*list a file"):
        clip_weights.published(NAME, download=True)


def test_published__is_found_in_the_cache_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--timm--resnet50_clip.openai"
    file = folder / "snapshots" / "abc" / "open_clip_model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    assert clip_weights.published(NAME, download=False) == file


def test_published__an_unknown_tag_gives_the_nearest():
    with pytest.raises(StudyError, match=r"no weights 'open_clip/RN50/openia'; did you mean 'open_clip/RN50/openai'"):
        clip_weights.published("open_clip/RN50/openia", download=False)


def test_discover__takes_weights_of_open_clip_by_name(server):
    table = Checkpoints(files=(CheckpointFile(weights=NAME, epoch=0),), download=True)
    (checkpoint,) = checkpoints.discover(table).checkpoints
    network = models.build(TINY, seed=2)
    checkpoints.load(network.module, checkpoint.path, table, digest=checkpoint.digest)
    expected = read_state(server)
    assert torch.equal(network.module.visual.attnpool.c_proj.weight, expected["visual.attnpool.c_proj.weight"].float())


def test_require_fitting__names_the_other_network_or_activation(tiny):
    files = (CheckpointFile(weights=NAME, epoch=0),)
    quick, plain = models.build(TINY, seed=0).module, models.build(Model(name="open_clip/RN50"), seed=0).module
    clip_models.require_fitting(TINY, quick, files)
    clip_models.require_fitting(Model(name="open_clip/RN50-quickgelu"), quick, files)
    with pytest.raises(ModelMismatchError, match="trained with QuickGELU, and the text tower has GELU"):
        clip_models.require_fitting(Model(name="open_clip/RN50"), plain, files)
    with pytest.raises(ModelMismatchError, match=r"model.name is .open_clip/RN101.; set it to"):
        clip_models.require_fitting(Model(name="open_clip/RN101"), quick, files)
    with pytest.raises(ModelMismatchError, match=r"were trained with mean \(0.5, 0.5, 0.5\)"):
        clip_models.require_fitting(
            Model(name="open_clip/ViT-B-16-SigLIP"),
            plain,
            (CheckpointFile(weights="open_clip/ViT-B-16-SigLIP/webli", epoch=0),),
        )


def test_gather__refuses_published_weights_of_another_activation_before_anything_is_measured(server):
    files = [{"weights": NAME, "epoch": 0}]
    study = {"checkpoints": {"files": files, "download": True}, "pools": {"totals": False}}
    with pytest.raises(ModelMismatchError, match="trained with QuickGELU"):
        rows.gather(Study.model_validate(study | {"model": {"name": "open_clip/RN50"}}), "pools")
    materials = rows.gather(Study.model_validate(study | {"model": TINY.model_dump()}), "pools")
    assert materials.series.positions == (0,)
    assert {dim: len(axis) for dim, axis in materials.axes.items()} == {
        "head": 16,
        "d": 16,
        "unit": 256,
        "feature": 24,
    }
