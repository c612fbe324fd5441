import gc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from neurolens import checkpoints
from neurolens.errors import ModelMismatchError


def network(classes: int = 4, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, classes))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


STATE = network().state_dict()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_fill__copies_into_the_same_tensors_and_lets_go_of_the_file(tmp_path, suffix):
    path = tmp_path / f"c.{suffix}"
    torch.save(STATE, path) if suffix == "pt" else save_file(STATE, path)
    module = network(seed=1)
    kept = {k: v.data_ptr() for k, v in module.state_dict().items()}
    checkpoints.fill(module, checkpoints.read_state(path))
    gc.collect()
    assert {k: v.data_ptr() for k, v in module.state_dict().items()} == kept
    if Path("/proc/self/maps").exists():
        assert str(path) not in Path("/proc/self/maps").read_text()
    path.write_bytes(b"")
    assert same(module.state_dict(), STATE)


def test_fill__refills_one_module_from_many(tmp_path):
    module = network(seed=9)
    for seed in range(3):
        state = network(seed=seed).state_dict()
        checkpoints.fill(module, state)
        assert same(module.state_dict(), state)


def test_fill__reports_what_is_missing_unexpected_and_misshapen_and_copies_nothing():
    module = network(seed=1)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    state = {k: v for k, v in STATE.items() if k != "0.bias"} | {"extra": torch.ones(1), "1.weight": torch.ones(6)}
    with pytest.raises(ModelMismatchError) as error:
        checkpoints.fill(module, state)
    for part in ("1 missing (0.bias)", "1 unexpected (extra)", "1.weight: (6,) in the file, (5,) here", "model.name"):
        assert part in str(error.value)
    assert same(module.state_dict(), before)


def test_fill__wrong_number_of_classes_says_which_to_set():
    with pytest.raises(ModelMismatchError, match=r"the file has 9 classes and the network 4: set model\.classes = 9"):
        checkpoints.fill(network(4), network(9).state_dict())


def test_fill__another_width_is_not_taken_for_classes():
    other = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 4))
    with pytest.raises(ModelMismatchError, match=r"model\.name"):
        checkpoints.fill(network(4), other.state_dict())


def test_fill__another_width_of_an_attention_pool_is_not_taken_for_classes():
    one, other = (
        nn.Sequential(nn.ModuleDict({"k_proj": nn.Linear(4, 4), "c_proj": nn.Linear(4, width)})) for width in (6, 3)
    )
    with pytest.raises(ModelMismatchError, match=r"\(3, 4\) in the file, \(6, 4\) here.*model\.options"):
        checkpoints.fill(one, other.state_dict())


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod."])
def test_fill__suggests_the_prefix_to_strip(prefix):
    state = {prefix + k: v for k, v in STATE.items()}
    with pytest.raises(ModelMismatchError, match=rf'strip_prefixes = \["{prefix}"\]'):
        checkpoints.fill(network(), state)


def test_fill__suggests_no_prefix_that_would_not_fit():
    with pytest.raises(ModelMismatchError) as error:
        checkpoints.fill(nn.Linear(2, 2), STATE)
    assert "strip_prefixes" not in str(error.value)


def test_fill__counter_of_batch_norm_may_be_absent_and_is_then_zero():
    module = network(seed=1)
    module[1].num_batches_tracked.fill_(7)
    state = {k: v for k, v in STATE.items() if not k.endswith("num_batches_tracked")}
    checkpoints.fill(module, state)
    assert module[1].num_batches_tracked == 0
    assert same({k: v for k, v in module.state_dict().items() if k in state}, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fill__half_precision_widens_exactly(dtype):
    module = network(seed=1)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in STATE.items()}
    checkpoints.fill(module, state)
    assert torch.equal(module[0].weight, state["0.weight"].float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.complex64])
def test_fill__refuses_dtypes_that_would_lose_something(dtype):
    state = STATE | {"0.weight": STATE["0.weight"].to(dtype)}
    with pytest.raises(ModelMismatchError, match=r"'0\.weight' is torch\..*save the checkpoint as torch\.float32"):
        checkpoints.fill(network(), state)


def test_fill__keeps_the_memory_format_and_tells_autograd():
    module = network(seed=1).to(memory_format=torch.channels_last)
    versions = [p._version for p in module.parameters()]
    checkpoints.fill(module, STATE)
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert same(module.state_dict(), STATE)
    assert all(p._version > v for p, v in zip(module.parameters(), versions))
    half = network(seed=1).to(torch.bfloat16)
    state = network().to(torch.bfloat16).state_dict()
    checkpoints.fill(half, state)
    assert same(half.state_dict(), state)


def test_fill__tied_tensors_are_filled_under_both_names():
    module = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    module["b"].weight = module["a"].weight
    checkpoints.fill(module, {"a.weight": torch.eye(2), "b.weight": torch.eye(2)})
    assert torch.equal(module["a"].weight, torch.eye(2))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.complex64])
def test_non_finite__names_the_first_such_tensor(value, dtype):
    bad = torch.ones(5, dtype=dtype)
    bad[3] = value
    state = {"n": torch.tensor(3), "good": torch.ones(4), "bad": bad, "worse": bad}
    assert checkpoints.non_finite(state) == "bad"


def test_non_finite__an_overflowing_sum_is_not_infinity():
    assert checkpoints.non_finite({"w": torch.full((4,), 6e4, dtype=torch.float16)}) is None
    assert checkpoints.non_finite({"w": torch.full((4,), 3e38)}) is None
    assert checkpoints.non_finite({"w": torch.ones(0), "f8": torch.ones(2).to(torch.float8_e4m3fn)}) is None
