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
    monkeypatch.setattr(weight_layouts, "_layouts", [])


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
    assert weight_layouts.remembered(tmp_path / "0" / "net.pt", None) is None
    assert same(read_state(tmp_path / "0" / "net.pt"), state(0))
    monkeypatch.setattr(torch, "load", None)  # from here on no pickle is read
    for seed in (1, 2, 0):
        assert same(read_state(tmp_path / str(seed) / "net.pt"), state(seed))


def test_remember__learns_only_plain_tensors(tmp_path):
    for content in ({"net": {"x": torch.ones(2)}, "b": torch.empty(0)}, {"a": torch.ones(2), "b": torch.empty(0)}, {}):
        torch.save(content, tmp_path / "net.pt")
        read = torch.load(tmp_path / "net.pt", mmap=True, weights_only=True)
        weight_layouts.remember(tmp_path / "net.pt", read, read.get("net", read), None)
    assert not weight_layouts._layouts


def test_remember__learns_nothing_from_tensors_that_are_not_mapped(tmp_path):
    torch.save(state(0), tmp_path / "net.pt")
    read = torch.load(tmp_path / "net.pt", weights_only=True)
    weight_layouts.remember(tmp_path / "net.pt", read, read, None)
    assert not weight_layouts._layouts


def test_remembered__leaves_other_pickles_and_files_to_torch(tmp_path):
    torch.save(state(0), tmp_path / "net.pt")
    read_state(tmp_path / "net.pt")
    torch.save(state(0) | {"more": torch.ones(1)}, tmp_path / "more.pt")
    (tmp_path / "text.pt").write_text("no archive")
    for name in ("more.pt", "text.pt"):
        assert weight_layouts.remembered(tmp_path / name, None) is None


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


@pytest.mark.parametrize("place", ["before", "after"])
def test_remembered__numbers_beside_the_state_dict_may_differ(tmp_path, monkeypatch, place):
    for n, (epoch, best) in enumerate([(3, 0.5), (300, -1.0), (70_000, 7.5)]):
        beside = {"epoch": epoch, "best": best}
        content = {**beside, "state_dict": state(n)} if place == "before" else {"model": state(n), **beside}
        (tmp_path / str(n)).mkdir()
        torch.save(content, tmp_path / str(n) / "net.pt")
    assert same(read_state(tmp_path / "0" / "net.pt"), state(0))
    assert weight_layouts.remembered(tmp_path / "1" / "net.pt", "state_dict") is None  # another state key, another dict
    monkeypatch.setattr(torch, "load", None)
    for n in (1, 2, 0):
        assert same(read_state(tmp_path / str(n) / "net.pt"), state(n))


@pytest.mark.parametrize(
    "other",
    [
        {"epoch": 3, "state_dict": {"w": torch.ones(3, 2)}},
        {"epoch": 3, "state_dict": {"v": torch.ones(2, 3)}},
        {"epoch": "3", "state_dict": {"w": torch.ones(2, 3)}},
        {"epochs": 3, "state_dict": {"w": torch.ones(2, 3)}},
        {"epoch": 3, "state_dict": {"w": torch.ones(2, 3)}, "net": {}},
        {"epoch": 3, "state_dict": {"w": torch.ones(2, 4)[:, 1:]}},
    ],
)
def test_remembered__anything_else_that_differs_is_left_to_torch(tmp_path, other):
    torch.save({"epoch": 3, "state_dict": {"w": torch.ones(2, 3)}}, tmp_path / "net.pt")
    read_state(tmp_path / "net.pt")
    torch.save(other, tmp_path / "other.pt")
    assert weight_layouts.remembered(tmp_path / "net.pt", None) is not None
    assert weight_layouts.remembered(tmp_path / "other.pt", None) is None


def test_texts__numbers_that_the_pickle_looks_at_are_no_holes():
    top, key, end = b"\x80\x02}q\x00(X\x01\x00\x00\x00a", b"X\x01\x00\x00\x00b", b"u."
    plain = top + b"K\x03" + key + b"K\x04" + end
    assert weight_layouts._texts(plain) == (top, key, end)
    for looked_at in (b"K\x03q\x01", b"K\x03\x85", b"(K\x03t", b"K\x032\x86", b"(K\x03l"):  # kept, or in a tuple
        assert weight_layouts._texts(top + looked_at + key + b"K\x04" + end) == (top + looked_at + key, end)
    late = top + b"K\x03" + key + b"\x86" + key + b"K\x04" + end  # 3 goes into a tuple after the next key
    assert all(b"K\x03" in text for text in weight_layouts._texts(late)[:1])
    layout = weight_layouts.Layout((top, key, end), None, {})
    for number in (b"K\x09", b"M\x09\x09", b"J\x09\x09\x09\x09", b"G" + bytes(8)):
        assert layout.describes(top + number + key + number + end)
    for bad in (b"", b"K", b"N", b"K\x03K\x04", b"X\x01\x00\x00\x00c"):
        assert not layout.describes(top + bad + key + b"K\x04" + end)
        assert not layout.describes(top + b"K\x04" + key + bad)
