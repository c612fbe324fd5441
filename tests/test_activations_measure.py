"""Measuring activations: held against a plain forward, in float16 and float32, pooled and full, within a budget."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from units_cases import SENTENCES, Net, Reading, digits, images, reading

from neurolens import schema
from neurolens.capture import capture
from neurolens.data import SampleSet, shown
from neurolens.data.arrays import ArrayImages
from neurolens.errors import CaptureError, NonFiniteError, SchemaError, StudyError
from neurolens.store import Axis
from neurolens.study import Activations, Preprocessing
from neurolens.units.activations import (
    COPIES,
    DEPENDS_ON_BATCH,
    axes,
    block_size,
    encodings,
    key_config,
    measure,
    parts,
)

Array = np.ndarray[Any, np.dtype[Any]]


def all_of(net: Net, samples: SampleSet, table: Activations, **how: Any) -> Array:
    found = measure(net, samples, parts=parts(table), table=table, **how)  # type: ignore[arg-type]
    assert list(found) == ["activation"]
    return found["activation"]


def one_by_one(net: Net, samples: SampleSet, layers: list[str]) -> list[list[torch.Tensor]]:
    """Each sample's activations alone, (units, …) float64, so that nothing is padded."""
    found = []
    module = net.module.eval()
    with torch.no_grad(), capture(module, layers) as seen:
        for batch in shown(samples, net, batch_size=1):  # type: ignore[arg-type]
            module(*batch.args, **batch.kwargs)
            found.append([seen[layer][0].double() for layer in layers])
    return found


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_measure__maps_are_pooled(pool: Any, dtype: Any) -> None:
    net, samples = digits(), images()
    found = all_of(net, samples, Activations(pool=pool, dtype=dtype), batch_size=4)
    assert found.shape == (11, 80)
    assert found.dtype == dtype
    wanted = [
        np.concatenate([(m.mean((1, 2)) if pool == "mean" else m.amax((1, 2))).numpy() for m in maps])
        for maps in one_by_one(net, samples, ["relu", "relu#1", "relu#2"])
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-5 if dtype == "float32" else 1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_measure__full_maps_keep_every_element(dtype: Any) -> None:
    net, samples = digits(), images(5)
    table = Activations(pool="full", dtype=dtype)
    found = all_of(net, samples, table, batch_size=2)
    unit = axes(net, samples, table)["unit"]  # type: ignore[arg-type]
    layers = ["relu", "relu#1", "relu#2"]
    assert found.shape == (5, len(unit.ids)) == (5, 16 * 64 + 32 * 64 + 32 * 16)
    maps = one_by_one(net, samples, layers)
    rng = np.random.default_rng(0)
    for place in rng.choice(len(unit.ids), 300, replace=False):
        layer = layers.index(str(unit.coords["layer"][place]))
        where = tuple(int(unit.coords[name][place]) for name in ("index", "y", "x"))
        wanted = [float(m[layer][where]) for m in maps]
        np.testing.assert_allclose(found[:, place], wanted, rtol=1e-5 if dtype == "float32" else 1e-3, atol=1e-6)
    assert "token" not in unit.coords


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("skip", [0, 2])
def test_measure__tokens_are_pooled_without_padding(pool: Any, skip: int) -> None:
    net, samples = reading(SENTENCES)
    table = Activations(pool=pool, skip_first=skip, dtype="float32", layers=("hidden.0", "head"))
    found = all_of(net, samples, table, batch_size=3)
    for row, (tokens, head) in enumerate(one_by_one(net, samples, ["hidden.0", "head"])):
        kept = tokens[skip:]
        if len(kept):
            wanted = kept.mean(0) if pool == "mean" else kept.amax(0)
            np.testing.assert_allclose(found[row, :5], wanted, rtol=1e-5, atol=1e-6)
        else:
            assert np.isnan(found[row, :5]).all()
        assert found[row, 5:].shape == head.shape
        assert np.isfinite(found[row, 5:]).all()


def test_measure__full_texts_end_in_nan() -> None:
    net, samples = reading(SENTENCES)
    table = Activations(pool="full", skip_first=1, dtype="float32", layers=("hidden.0", "head"))
    found = all_of(net, samples, table, batch_size=3)
    unit = axes(net, samples, table)["unit"]  # type: ignore[arg-type]
    assert found.shape == (5, 5 * 8 + 2)
    assert unit.coords["token"].tolist() == [*range(8)] * 5 + [-1, -1]
    assert unit.coords["index"].tolist() == [i for i in range(5) for _ in range(8)] + [0, 1]
    for row, (tokens, _) in enumerate(one_by_one(net, samples, ["hidden.0", "head"])):
        wanted = np.full((8, 5), np.nan)
        wanted[1 : len(tokens)] = tokens[1:]
        np.testing.assert_allclose(found[row, :40].reshape(5, 8).T, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "max", "full"])
def test_measure__does_not_depend_on_batch_size(pool: Any) -> None:
    for net, samples in ((digits(), images()), reading(SENTENCES)):
        table = Activations(pool=pool, dtype="float32")
        wanted = all_of(net, samples, table, batch_size=64)
        for size in (1, 3):
            np.testing.assert_allclose(all_of(net, samples, table, batch_size=size), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "full"])
@pytest.mark.parametrize("make", [lambda: (digits(), images()), lambda: reading(SENTENCES)], ids=["images", "texts"])
def test_measure__a_block_is_that_of_all_samples(make: Any, pool: Any) -> None:
    """Whatever its longest text: a block has a place for every token of the longest text of all."""
    net, samples = make()
    table, each = Activations(dtype="float32", pool=pool), range(len(samples))
    wanted = all_of(net, samples, table)
    found = [all_of(net, samples.subset(each[a : a + 2]), table) for a in each[::2]]
    np.testing.assert_allclose(np.concatenate(found), wanted, rtol=1e-5, atol=1e-6)


class Loud(nn.Module):
    """Multiplies what it is given."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by, self.act = by, nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.act(x * self.by)
        return out


@pytest.mark.parametrize("pool", ["mean", "max", "full"])
def test_measure__beyond_float16_is_an_error_that_names_the_mend(pool: Any) -> None:
    net = Net(Loud(1e6), Preprocessing(mean=(0.0,), std=(1.0,)))
    for allowed in (False, True):
        table = Activations(pool=pool, layers=("act",), allow_non_finite=allowed)
        with pytest.raises(NonFiniteError, match=r"layer 'act'.*'s000'.*65504.*dtype = \"float32\""):
            all_of(net, images(3), table)
    assert np.isfinite(all_of(net, images(3), Activations(pool=pool, layers=("act",), dtype="float32"))).all()


def test_measure__rounds_to_nearest_up_to_the_last_float16() -> None:
    net = Net(Loud(65519.0), Preprocessing(mean=(0.0,), std=(1.0,)))
    samples = replace(images(2), images=ArrayImages(np.full((2, 8, 8, 1), 255, dtype=np.uint8)))
    found = all_of(net, samples, Activations(pool="max", layers=("act",)))
    assert found.tolist() == [[65504], [65504]]


@pytest.mark.parametrize("pool", ["mean", "max", "full"])
def test_measure__nan_fails_the_row_unless_allowed(pool: Any) -> None:
    net, samples = digits(), images(4)
    with torch.no_grad():
        net.module.bn1.bias[2] = torch.nan
    with pytest.raises(NonFiniteError, match=r"layer 'relu'.* sample 's000'.*\[activations\]"):
        all_of(net, samples, Activations(pool=pool))
    found = all_of(net, samples, Activations(pool=pool, allow_non_finite=True, layers=("relu#0",), dtype="float32"))
    broken = np.isnan(found).all(axis=0)
    unit = axes(net, samples, Activations(pool=pool, layers=("relu#0",)))["unit"]  # type: ignore[arg-type]
    assert set(unit.coords["index"][broken].tolist()) == {2}
    assert np.isfinite(found[:, ~broken]).all()


def test_measure__nan_in_padding_is_not_seen() -> None:
    class Padded(Reading):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            x = self.embed(input_ids).masked_fill(attention_mask[..., None] == 0, torch.nan)
            return self.hidden(x)  # type: ignore[no-any-return]

    plain, samples = reading(SENTENCES)
    net = Net(Padded(), tokenizer=plain.tokenizer)
    for pool in ("mean", "max", "full"):
        table = Activations(pool=pool, layers=("hidden.1",), dtype="float32")  # type: ignore[arg-type]
        found = all_of(net, samples, table, batch_size=5)
        np.testing.assert_allclose(found, all_of(net, samples, table, batch_size=1), rtol=1e-5, atol=1e-6)


def test_measure__leaves_the_network_as_it_was() -> None:
    net, samples = digits(), images(4)
    before = {name: tensor.clone() for name, tensor in net.module.state_dict().items()}
    all_of(net, samples, Activations(bf16=True))
    assert net.module.training
    for name, tensor in net.module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_block_size__counts_every_buffer_of_a_block() -> None:
    unit = {"unit": Axis(np.arange(2**18))}
    assert block_size(Activations(memory_mib=8), unit) == 8 * 2**20 // (COPIES * 2 * 2**18) == 8
    assert block_size(Activations(memory_mib=8, dtype="float32"), unit) == 4
    with pytest.raises(StudyError, match=r"4.0 MiB, and activations.memory_mib is 2; raise it to 4"):
        block_size(Activations(memory_mib=2, dtype="float32", pool="full"), {"unit": Axis(np.arange(2**19))})


def test_measure__holds_one_buffer_of_the_block() -> None:
    """What is returned is the memory that was measured into, in the dtype that is stored."""
    found = all_of(digits(), images(6), Activations(pool="full"))
    assert found.flags.c_contiguous
    assert found.base is not None
    assert found.nbytes == 6 * found.shape[1] * 2


def test_axes__without_full_maps_are_those_of_the_units() -> None:
    unit = axes(digits(), images(3), Activations())["unit"]  # type: ignore[arg-type]
    assert unit.ids.tolist() == list(range(80))
    assert set(unit.coords) == {"layer", "index", "layer_index", "module", "call"}


def test_key_config__holds_what_changes_the_numbers() -> None:
    plain = key_config(Activations(), "activation")
    changes: list[dict[str, Any]] = [
        {"pool": "max"},
        {"dtype": "float32"},
        {"skip_first": 1},
        {"bf16": True},
        {"layers": ("relu",)},
    ]
    for change in changes:
        assert key_config(Activations(**change), "activation") != plain
    for change in ({"memory_mib": 3}, {"allow_non_finite": True}):
        assert key_config(Activations(**change), "activation") == plain
    assert not DEPENDS_ON_BATCH(Activations())
    assert encodings(Activations()) == {"activation": "float16"}
    assert encodings(Activations(dtype="float32")) == {"activation": "float32-bitround10"}
    assert parts(Activations()) == tuple(p.name for p in schema.ACTIVATIONS.parts)
    with pytest.raises(SchemaError, match="did you mean 'activation'"):
        key_config(Activations(), "activations")


def test_measure__unknown_layers_are_named() -> None:
    with pytest.raises(CaptureError, match="relu"):
        all_of(digits(), images(3), Activations(layers=("rleu",)))
