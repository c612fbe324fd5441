import gc
import json
import os
import weakref

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from neurolens import checkpoints, direct_reads, fingerprints, safetensors_headers, weight_layouts, weights
from neurolens.errors import CheckpointError, ModelMismatchError, NonFiniteError
from neurolens.study import Checkpoints

KINDS = ["pt", "wrapped", "safetensors"]
DTYPES = [*safetensors_headers.DTYPES.values(), torch.complex64]


@pytest.fixture(autouse=True)
def nothing_known(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "_memo", {})
    monkeypatch.setattr(weight_layouts, "_layouts", [])
    monkeypatch.setattr(safetensors_headers, "_known", {})


def network(classes: int = 4, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, classes))
    net[1].num_batches_tracked.fill_(seed)
    return net


def write(path, kind, state, epoch=1):
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state if kind == "pt" else {"epoch": epoch, "step": 391 * epoch, "state_dict": state}, path)
    return path


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def only_straight(monkeypatch):
    """From here on, what cannot be read straight into the network fails."""
    monkeypatch.setattr(weights, "read_state", None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_refill__reads_a_run_straight_into_one_network(tmp_path, monkeypatch, kind, threads):
    monkeypatch.setattr(direct_reads, "_BIG", 1)
    monkeypatch.setattr(direct_reads, "_PART", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    paths = [write(tmp_path / f"{n}" / "c", kind, network(seed=n).state_dict(), 200 * n)
             for n in range(4) if not (tmp_path / f"{n}").mkdir()]  # fmt: skip
    module = network(seed=9)
    kept = {k: v.data_ptr() for k, v in module.state_dict().items()}
    versions = [p._version for p in module.parameters()]
    checkpoints.refill(module, paths[0])
    only_straight(monkeypatch)
    for n in (1, 2, 3, 0):
        checkpoints.refill(module, paths[n])
        assert same(module.state_dict(), network(seed=n).state_dict())
    assert {k: v.data_ptr() for k, v in module.state_dict().items()} == kept
    assert all(p.requires_grad and p._version > v for p, v in zip(module.parameters(), versions))


@pytest.mark.parametrize("kind", KINDS)
def test_refill__maps_a_run_into_one_network(tmp_path, monkeypatch, kind):
    paths = [write(tmp_path / f"{n}.x", kind, network(seed=n).state_dict(), 200 * n) for n in range(4)]
    before = [path.read_bytes() for path in paths]
    module = network(seed=9)
    parameters = list(module.parameters())
    checkpoints.refill(module, paths[0], mapped=True)
    only_straight(monkeypatch)
    for n in (1, 2, 3, 0):
        version = parameters[0]._version
        checkpoints.refill(module, paths[n], mapped=True)
        assert same(module.state_dict(), network(seed=n).state_dict())
        assert parameters[0]._version > version
        with torch.no_grad():
            for parameter in parameters:
                parameter.zero_()
    assert all(a is b and a.requires_grad for a, b in zip(module.parameters(), parameters, strict=True))
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_refill__a_mapped_network_is_filled_anew_whatever_became_of_its_file(tmp_path, kind):
    first = write(tmp_path / "first", kind, network(seed=1).state_dict())
    second = write(tmp_path / "second", kind, network(seed=2).state_dict())
    module = network()
    for path in (second, first):
        checkpoints.refill(module, path, mapped=True)
    first.write_bytes(b"")
    checkpoints.refill(module, second)
    assert same(module.state_dict(), network(seed=2).state_dict())
    checkpoints.refill(module, second, mapped=True)
    second.unlink()
    assert same(module.state_dict(), network(seed=2).state_dict())


def test_refill__a_tensor_that_lies_askew_is_copied(tmp_path):
    state = {"a": torch.arange(3, dtype=torch.uint8), "b": torch.arange(5.0)}
    path = tmp_path / "askew.safetensors"
    header = json.dumps(
        {
            "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
            "b": {"dtype": "F32", "shape": [5], "data_offsets": [3, 23]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"".join(t.numpy().tobytes() for t in state.values()))
    module = nn.Module()
    for name, tensor in state.items():
        module.register_buffer(name, torch.zeros_like(tensor))
    checkpoints.refill(module, path, mapped=True)
    assert same(module.state_dict(), state)


@given(
    tensors=st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.booleans()),
        min_size=1,
        max_size=8,
    ),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_refill__fills_what_load_state_dict_fills(tmp_path, tensors, kind, seed):
    random = np.random.default_rng(seed)
    module, state = nn.Module(), {}
    for n, (dtype, shape, buffer) in enumerate(tensors):
        state[f"t{n}"] = torch.from_numpy(np.asarray(random.integers(0, 200, shape))).to(dtype)
        own = torch.zeros(shape, dtype=dtype)
        if buffer or not (dtype.is_floating_point or dtype.is_complex):
            module.register_buffer(f"t{n}", own)
        else:
            module.register_parameter(f"t{n}", nn.Parameter(own))
    path = write(tmp_path / "c", kind, state)
    for _ in range(2):
        for tensor in module.state_dict().values():
            tensor.zero_()
        checkpoints.refill(module, path)
        assert same(module.state_dict(), state)


@pytest.mark.parametrize("change", ["storage", "transposed", "tied", "channels_last", "dtype", "layer"])
def test_refill__notices_what_happened_to_the_network(tmp_path, change):
    def square(seed):
        generator = torch.Generator().manual_seed(seed)
        module = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Conv2d(2, 2, 2)})
        for parameter in module.parameters():
            parameter.data.normal_(generator=generator)
        return module

    module = square(0)
    paths = [write(tmp_path / f"{n}.safetensors", "safetensors", square(n).state_dict()) for n in range(2)]
    checkpoints.refill(module, paths[0])
    match change:
        case "storage":
            module["a"].weight.data = torch.zeros(3, 3)
        case "transposed":
            module["a"].weight.data = module["a"].weight.data.t()
        case "tied":
            module["b"].weight = module["a"].weight
        case "channels_last":
            module.to(memory_format=torch.channels_last)
        case "dtype":
            module.double()
        case "layer":
            module["b"] = nn.Linear(3, 3)
    checkpoints.refill(module, paths[1])
    wanted = square(1).state_dict()
    if change == "tied":  # one tensor under two names takes the last
        wanted["a.weight"] = wanted["b.weight"]
    assert all(torch.equal(v, wanted[k].to(v.dtype)) for k, v in module.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_refill__a_mismatch_leaves_the_network_as_it_was(tmp_path, kind):
    path = write(tmp_path / "c", kind, network(5).state_dict())
    for module in (network(4, seed=1), network(5), network(4, seed=1)):
        before = {k: v.clone() for k, v in module.state_dict().items()}
        if module[3].out_features == 5:
            checkpoints.refill(module, path)
            continue
        with pytest.raises(ModelMismatchError, match=r"c': .*set model\.classes = 5"):
            checkpoints.refill(module, path)
        assert same(module.state_dict(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_load__non_finite_is_refused_where_it_was_read_straight(tmp_path, kind):
    (tmp_path / "bad").mkdir()
    bad = network().state_dict() | {"0.bias": torch.full((5,), torch.nan)}
    module = network(seed=1)
    path = write(tmp_path / "c", kind, network().state_dict())
    checkpoints.load(module, path, Checkpoints())
    with pytest.raises(NonFiniteError, match=r"'0\.bias'.*allow_non_finite"):
        checkpoints.load(module, write(tmp_path / "bad" / "c", kind, bad), Checkpoints())
    checkpoints.load(module, path, Checkpoints())
    assert same(module.state_dict(), network().state_dict())


def test_refill__prefixes_are_stripped(tmp_path, monkeypatch):
    path = write(tmp_path / "c.safetensors", "safetensors", {f"m.{k}": v for k, v in network().state_dict().items()})
    module = network(seed=1)
    only_straight(monkeypatch)
    checkpoints.refill(module, path, strip_prefixes=("m.",))
    assert same(module.state_dict(), network().state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_refill__a_file_cut_short_meanwhile_is_an_error_and_the_next_load_mends_it(tmp_path, monkeypatch, kind):
    path, module = write(tmp_path / "c", kind, network(seed=2).state_dict()), network(seed=1)
    checkpoints.refill(module, path)
    read = os.preadv
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "preadv", lambda handle, buffers, start: read(handle, [buffers[0][:3]], start) if start else 0
        )
        checkpoints.refill(module, path)  # few bytes at a time are not yet the end
        assert same(module.state_dict(), network(seed=2).state_dict())
        patch.setattr(os, "preadv", lambda *_: 0)
        with pytest.raises(CheckpointError, match=r"c' ends early.*holds only a part of it.*load again"):
            checkpoints.refill(module, path)
    checkpoints.refill(module, path)
    assert same(module.state_dict(), network(seed=2).state_dict())


def test_refill__the_memo_does_not_keep_a_network_alive(tmp_path):
    module = network(seed=1)
    checkpoints.refill(module, write(tmp_path / "c.safetensors", "safetensors", network().state_dict()))
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None


def header(**entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


W = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
MALFORMED = {
    "overlap": header(a=W, b=W) + bytes(8),
    "hole": header(a=W, b=W | {"data_offsets": [12, 20]}) + bytes(20),
    "not at 0": header(a=W | {"data_offsets": [4, 12]}) + bytes(12),
    "out of bounds": header(a=W) + bytes(4),
    "more bytes": header(a=W) + bytes(12),
    "shape": header(a=W | {"shape": [3]}) + bytes(8),
    "negative": header(a=W | {"shape": [-1, -2]}) + bytes(8),
    "backwards": header(a=W | {"data_offsets": [8, 0]}) + bytes(8),
    "dtype": header(a=W | {"dtype": "F33"}) + bytes(8),
    "float": header(a=W | {"shape": [2.0]}) + bytes(8),
    "bool": header(a=W | {"shape": [True, 2]}) + bytes(8),
    "no shape": header(a={k: v for k, v in W.items() if k != "shape"}) + bytes(8),
    "not JSON": (5).to_bytes(8, "little") + b"{nope" + bytes(8),
    "a list": (2).to_bytes(8, "little") + b"[]" + bytes(8),
    "metadata": header(__metadata__={"a": 1}, a=W) + bytes(8),
    "length": (1 << 62).to_bytes(8, "little") + header(a=W)[8:] + bytes(8),
    "deep": (200_000).to_bytes(8, "little") + b'{"a":' + b"[" * 199_995,
    "surrogate": header(**{"\ud800": W}) + bytes(8),
    "short": b"\x07",
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_spans__a_malformed_header_is_left_to_the_library(tmp_path, case):
    path = tmp_path / "c.safetensors"
    path.write_bytes(MALFORMED[case])
    with open(path, "rb") as file:
        assert safetensors_headers.spans(file.fileno()) is None
    with pytest.raises((safetensors.SafetensorError, ValueError, KeyError)):
        safetensors.torch.load_file(path)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        checkpoints.refill(nn.Linear(2, 2), path)


def test_spans__a_key_that_occurs_twice_is_left_to_the_library(tmp_path):
    text = b'{"a":%s,"a":%s}' % ((json.dumps(W).encode(),) * 2)
    (tmp_path / "c").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with open(tmp_path / "c", "rb") as file:
        assert safetensors_headers.spans(file.fileno()) is None


@given(at=st.integers(0, 400), value=st.integers(0, 255))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_spans__says_nothing_that_the_library_does_not(tmp_path, at, value):
    path = tmp_path / "c.safetensors"
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.ones(5).bfloat16()}
    save_file(state, path, metadata={"format": "pt"})
    content = bytearray(path.read_bytes())
    content[at % len(content)] = value
    path.write_bytes(content)
    with open(path, "rb") as file:
        found = safetensors_headers.spans(file.fileno())
    if found is None:
        return
    theirs = safetensors.torch.load_file(path)
    assert {k: (s.dtype, torch.Size(s.shape)) for k, s in found.items()} == {
        k: (t.dtype, t.shape) for k, t in theirs.items()
    }
    for name, span in found.items():
        assert bytes(content[span.start :][: span.nbytes]) == direct_reads.as_bytes(theirs[name]).tobytes()


def test_refill__a_series_whose_header_changes(tmp_path):
    module = network(seed=9)
    for n, dtype in enumerate([torch.float32, torch.float16, torch.float32, torch.bfloat16]):
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in network(seed=n).state_dict().items()}
        checkpoints.refill(module, write(tmp_path / f"{n}.safetensors", "safetensors", state))
        assert all(torch.equal(v, state[k].to(v.dtype)) for k, v in module.state_dict().items())
