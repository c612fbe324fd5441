import shutil
import zipfile

import pytest
import torch
from torch import nn

from neurolens import fingerprints, weight_layouts
from neurolens.checkpoints import read_state
from neurolens.errors import CheckpointError


@pytest.fixture(autouse=True)
def nothing_known(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "_memo", {})
    monkeypatch.setattr(weight_layouts, "_layouts", {})


def state(seed):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(6, 4, generator=generator)
    return {
        "weight": base,
        "tied": base,
        "columns": base[:, 1:3],
        "half": torch.randn(3, generator=generator).half(),
        "count": torch.tensor(seed),
        "parameter": nn.Parameter(torch.randn(2, 2, generator=generator)),
    }


def same(found, wanted):
    return list(found) == list(wanted) and all(
        found[k].dtype == v.dtype and torch.equal(found[k], v) for k, v in wanted.items()
    )


def test_remembered__gives_the_tensors_of_another_file_with_the_same_pickle(tmp_path, monkeypatch):
    for seed in range(3):
        (tmp_path / str(seed)).mkdir()
        torch.save(state(seed), tmp_path / str(seed) / "net.pt")
    assert weight_layouts.remembered(tmp_path / "0" / "net.pt") is None
    assert same(read_state(tmp_path / "0" / "net.pt"), state(0))
    monkeypatch.setattr(torch, "load", None)  # from here on no pickle is read
    for seed in (1, 2, 0):
        assert same(read_state(tmp_path / str(seed) / "net.pt"), state(seed))


def test_remember__learns_only_plain_state_dicts(tmp_path):
    for content in ({"state_dict": state(0)}, [torch.ones(2)], {"a": torch.ones(2), "b": torch.empty(0)}, {}):
        torch.save(content, tmp_path / "net.pt")
        weight_layouts.remember(tmp_path / "net.pt", torch.load(tmp_path / "net.pt", mmap=True, weights_only=True))
    assert not weight_layouts._layouts


def test_remember__learns_nothing_from_tensors_that_are_not_mapped(tmp_path):
    torch.save(state(0), tmp_path / "net.pt")
    weight_layouts.remember(tmp_path / "net.pt", torch.load(tmp_path / "net.pt", weights_only=True))
    assert not weight_layouts._layouts


def test_remembered__leaves_other_pickles_and_files_to_torch(tmp_path):
    torch.save(state(0), tmp_path / "net.pt")
    read_state(tmp_path / "net.pt")
    torch.save(state(0) | {"more": torch.ones(1)}, tmp_path / "more.pt")
    (tmp_path / "text.pt").write_text("no archive")
    for name in ("more.pt", "text.pt"):
        assert weight_layouts.remembered(tmp_path / name) is None


@pytest.mark.parametrize("keep", ["all but one", "shorter"])
def test_read_state__a_known_pickle_over_missing_bytes_is_refused(tmp_path, keep):
    torch.save(state(0), tmp_path / "net.pt")
    read_state(tmp_path / "net.pt")
    (tmp_path / "bad").mkdir()
    bad = tmp_path / "bad" / "net.pt"
    if keep == "shorter":
        shutil.copy(tmp_path / "net.pt", bad)
        bad.write_bytes(bad.read_bytes()[:-200])
    else:
        with zipfile.ZipFile(tmp_path / "net.pt") as old, zipfile.ZipFile(bad, "w") as new:
            names = old.namelist()
            dropped = next(name for name in names if name.endswith("data/1"))
            for name in names:
                if name != dropped:
                    new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match=r"cannot be read|damaged"):
        read_state(bad)
