"""Measuring units: golden numbers, and everything collected and then reduced, the slow and plain way."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from units_cases import SENTENCES, Net, digits, images, reading

from neurolens import schema
from neurolens.capture import capture
from neurolens.data import SampleSet, shown
from neurolens.errors import CaptureError, DataError, ModelMismatchError, NonFiniteError, SchemaError
from neurolens.layers import Layer, find_layers
from neurolens.study import Units
from neurolens.units import running
from neurolens.units.histogram import bin_edges
from neurolens.units.measure import DEPENDS_ON_BATCH, MEASUREMENT_VERSION, axes, key_config, measure, parts
from neurolens.units.observing import kept_tokens

Array = np.ndarray[Any, np.dtype[Any]]
EVERYTHING = Units(abs_dev=True, histogram=True, classes=True, top=3, weights=True)
STATISTICS = [v.name for v in schema.UNITS.part("statistics").variables]


def collected(net: Net, samples: SampleSet, layers: Sequence[Layer], *, batch: int = 2) -> list[list[Array]]:
    """Every layer's activations of every sample, (positions, units) each; padding cut off."""
    module = copy.deepcopy(net.module).eval()
    found: list[list[Array]] = [[] for _ in layers]
    with torch.no_grad(), capture(module, [layer.tap for layer in layers]) as seen:
        for given in shown(samples, net, batch_size=batch):  # type: ignore[arg-type]
            module(*given.args, **given.kwargs)
            for layer, store in zip(layers, found, strict=True):
                last = seen[layer.name].movedim(layer.axis, -1).numpy()
                for row, sample in enumerate(last):
                    flat = sample.reshape(-1, layer.units)
                    store.append(flat if given.mask is None else flat[given.mask[row].numpy()])
    return found


def slow(net: Net, samples: SampleSet, *, skip: int = 0, alike: bool = False, classes: int = 0) -> dict[str, Array]:
    """Collect everything, then reduce. ``alike``: every text counts the same."""
    probe = next(iter(shown(samples, net, batch_size=2, indices=[0, 1])))  # type: ignore[arg-type]
    layers = find_layers(net.module, "auto", probe)
    columns: dict[str, list[Array]] = {}
    for store in collected(net, samples, layers):
        kept = [sample[skip:].astype(np.float64) for sample in store]
        w = np.concatenate([np.full(len(s), 1 / len(s) if alike and len(s) else 1.0) for s in kept])[:, None]
        x, n = np.concatenate(kept), w.sum()
        mean = (x * w).sum(axis=0) / n
        line: dict[str, Array] = {
            "n": np.full(x.shape[1], n),
            "abs_sum": (np.abs(x) * w).sum(axis=0),
            "mean": mean,
            "m2": ((x - mean) ** 2 * w).sum(axis=0),
            "min": x.min(axis=0),
            "max": x.max(axis=0),
            "n_pos": ((x > 0) * w).sum(axis=0),
            "n_nonzero": ((x != 0) * w).sum(axis=0),
            "abs_dev": (np.abs(x - mean) * w).sum(axis=0) / n,
        }
        top = x.astype(np.float16).view(np.uint16) >> 8
        line["histogram"] = np.stack([np.bincount(u, minlength=256) for u in top.T])
        tall = np.stack([s.max(axis=0) if len(s) else np.full(x.shape[1], -np.inf) for s in kept], axis=1)
        order = np.argsort(-tall, axis=1, kind="stable")[:, :3]
        line["top_sample"] = order
        line["top_value"] = np.take_along_axis(tall, order, axis=1)
        for c in range(classes):
            of_class = [s for s, label in zip(kept, samples.labels, strict=True) if label == c]
            y = np.concatenate(of_class) if of_class else np.empty((0, x.shape[1]))
            sums = (np.full(x.shape[1], len(y)), np.abs(y).sum(0), y.sum(0), (y > 0).sum(0))
            for name, value in zip(("n", "abs_sum", "sum", "n_pos"), sums, strict=True):
                line[f"class_{name} {c}"] = value
            line[f"class_max {c}"] = y.max(0) if len(y) else np.full(x.shape[1], np.nan)
        for name, value in line.items():
            columns.setdefault(name, []).append(value)
    whole = {name: np.concatenate(values) for name, values in columns.items()}
    for name in ("n", "abs_sum", "sum", "n_pos", "max") if classes else ():
        whole[f"class_{name}"] = np.stack([whole.pop(f"class_{name} {c}") for c in range(classes)])
    return whole


def all_of(net: Net, samples: SampleSet, table: Units, **how: Any) -> dict[str, Array]:
    return measure(net, samples, parts=parts(table), table=table, **how)  # type: ignore[arg-type]


def require_equal(found: dict[str, Array], wanted: dict[str, Array], rtol: float = 1e-5) -> None:
    for name in set(found) & set(wanted):
        np.testing.assert_allclose(found[name], wanted[name], rtol=rtol, atol=1e-5, err_msg=name)


def test_measure__images_are_as_collected_and_then_reduced() -> None:
    net, samples = digits(), images()
    found = all_of(net, samples, EVERYTHING)
    wanted = slow(net, samples, classes=3)
    assert set(wanted) <= set(found)
    require_equal(found, {name: values for name, values in wanted.items() if name != "histogram"})
    moved = np.abs(found["histogram"].astype(int) - wanted["histogram"]).sum()
    assert moved < 0.01 * wanted["histogram"].sum()  # the layouts of a convolution round differently
    assert found["histogram"].sum(axis=1).tolist() == found["n"].tolist()


@pytest.mark.parametrize("tokens", ["token", "sample"])
@pytest.mark.parametrize("skip", [0, 1, 3])
def test_measure__texts_are_as_collected_and_then_reduced(tokens: Any, skip: int) -> None:
    net, samples = reading(SENTENCES)
    table = Units(tokens=tokens, skip_first=skip, abs_dev=True, histogram=True, top=3)
    found = all_of(net, samples, table, batch_size=2)
    wanted = slow(net, samples, skip=skip, alike=tokens == "sample")
    left = np.array([len(row) > skip for row in SENTENCES]).sum()
    for name in ("top_value", "top_sample"):
        wanted[name] = np.where(np.arange(3) < left, wanted[name], np.nan if name == "top_value" else -1)
    require_equal(found, wanted)


@pytest.mark.parametrize("make", [lambda: (digits(), images()), lambda: reading(SENTENCES)])
def test_measure__does_not_depend_on_batch_size_or_order(make: Callable[[], tuple[Net, SampleSet]]) -> None:
    net, samples = make()
    table = Units(abs_dev=True, classes=True, top=3)
    wanted = all_of(net, samples, table, batch_size=64)
    for size in (1, 2, 3):
        require_equal(all_of(net, samples, table, batch_size=size), wanted, rtol=1e-6)
    order = np.random.default_rng(0).permutation(len(samples))
    turned = all_of(net, samples.subset(order), table, batch_size=3)
    del turned["top_sample"]  # of equal values the earlier sample is kept
    require_equal(turned, wanted, rtol=1e-6)


@pytest.mark.parametrize(("tokens", "mean_abs", "n"), [("seed", 5.75, 2), ("token", 3.2, 5), ("sample", 3.5, 2)])
def test_measure__padding_counts_as_the_study_says(tokens: Any, mean_abs: float, n: float) -> None:
    net, samples = reading([[1, 2, 3, 6], [4]], values=[10, 1, 2, 3, 4, 5, 6])
    found = all_of(net, samples, Units(tokens=tokens, layers=("norm",)))
    assert (found["abs_sum"][0] / found["n"][0], found["n"][0]) == (pytest.approx(mean_abs), n)


def test_measure__the_seed_way_depends_on_the_batch_size_and_says_so() -> None:
    net, samples = reading([[1, 2, 3, 6], [4]], values=[10, 1, 2, 3, 4, 5, 6])
    table = Units(tokens="seed", layers=("norm",))
    assert [float(all_of(net, samples, table, batch_size=b)["mean"][0]) for b in (1, 2)] == [3.5, 5.75]
    assert DEPENDS_ON_BATCH(table)
    assert not any(DEPENDS_ON_BATCH(Units(tokens=tokens)) for tokens in ("token", "sample"))


def test_measure__positions_count_texts_and_firing_by_token() -> None:
    rows = [[1, 2, 3], [2, 1], [1]]
    net, samples = reading(rows, values=[9, 0, 5, 7])
    found = all_of(net, samples, Units(positions=True, layers=("norm",), skip_first=1))
    assert found["position_n"].tolist() == [3, 2, 1]
    assert found["position_n_pos"].tolist() == [[1, 1, 1]]
    assert axes(net, samples, Units(positions=True, layers=("norm",)))["position"].ids.tolist() == [0, 1, 2]  # type: ignore[arg-type]


def test_measure__a_layer_without_tokens_has_one_observation_a_text() -> None:
    net, samples = reading(SENTENCES)
    found = all_of(net, samples, Units(layers=("hidden.1", "head"), positions=True))
    assert found["n"].tolist() == [22] * 5 + [5] * 2
    assert np.isnan(found["position_n_pos"][5:]).all()
    assert np.isfinite(found["position_n_pos"][:5]).all()


def test_groups__conv_maps_by_hand() -> None:
    from neurolens.units import observing

    h = torch.zeros(2, 3, 2, 2)
    h[0, 0], h[1, 0, 1, 1] = torch.tensor([[1.0, 2], [3, 4]]), 6
    h[0, 1, 0, 0] = 0.8
    for memory in (torch.contiguous_format, torch.channels_last):
        found = observing.groups(h.to(memory_format=memory), 1)
        np.testing.assert_allclose(found.abs_sum.sum(axis=0) / 8, [2, 0.1, 0], rtol=1e-7)


def test_measure__leaves_the_network_as_it_was() -> None:
    net, samples = digits(), images(5)
    before = copy.deepcopy(net.module.state_dict())
    all_of(net, samples, EVERYTHING)
    for name, tensor in net.module.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(m.training for m in net.module.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.module.modules())
    words, sentences = reading(SENTENCES)
    words.module.train()
    words.module.hidden.eval()
    all_of(words, sentences, Units())
    assert (words.module.training, words.module.hidden.training, words.module.head.training) == (True, False, True)


def test_measure__variables_are_those_of_the_schema() -> None:
    net, samples = digits(), images(5)
    fixed = axes(net, samples, EVERYTHING)  # type: ignore[arg-type]
    found = all_of(net, samples, EVERYTHING)
    sizes = {dim: len(axis.ids) for dim, axis in fixed.items()}
    wanted = [v for part in parts(EVERYTHING) for v in schema.UNITS.part(part).variables]
    assert list(found) == [v.name for v in wanted]
    for v in wanted:
        assert found[v.name].shape == tuple(sizes[d] for d in v.dims if d != schema.SERIES)
        assert found[v.name].dtype == v.dtype


def test_axes__name_every_unit_in_the_order_of_the_layers() -> None:
    fixed = axes(digits(), images(5), EVERYTHING)  # type: ignore[arg-type]
    unit = fixed["unit"]
    assert unit.ids.tolist() == list(range(80))
    assert list(dict.fromkeys(unit.coords["layer"].tolist())) == ["relu", "relu#1", "relu#2"]
    assert unit.coords["index"].tolist() == [*range(16), *range(32), *range(32)]
    assert unit.coords["layer_index"].tolist() == [0] * 16 + [1] * 32 + [2] * 32
    assert unit.coords["call"].tolist() == [0] * 16 + [1] * 32 + [2] * 32
    assert set(unit.coords["module"].tolist()) == {"relu"}
    assert fixed["class"].ids.tolist() == ["class 0", "class 1", "class 2"]
    assert fixed["sample"].ids.tolist() == images(5).ids.tolist()
    assert fixed["rank"].ids.tolist() == [0, 1, 2]
    assert fixed["parameter"].ids.tolist() == ["conv1.weight", "conv2.weight", "conv3.weight", "fc.weight"]
    np.testing.assert_array_equal(fixed["bin"].coords["low"], bin_edges()[0])
    assert set(axes(digits(), images(5), Units())) == {"unit"}  # type: ignore[arg-type]


def test_key_config__holds_what_changes_a_parts_numbers() -> None:
    assert set(MEASUREMENT_VERSION) == {p.name for p in schema.UNITS.parts}
    plain = Units()
    for part in MEASUREMENT_VERSION:
        config = key_config(plain, part)
        assert config != key_config(Units(layers=("relu",)), part)
        assert config == key_config(Units(allow_non_finite=True), part)
        of_tokens = part not in ("weights", "positions")
        assert (config != key_config(Units(tokens="sample"), part)) == of_tokens
        assert (config != key_config(Units(skip_first=1), part)) == of_tokens
        assert (config != key_config(Units(bf16=True), part)) == (part != "weights")
        assert (config != key_config(Units(top=2), part)) == (part == "top")
    with pytest.raises(SchemaError, match="did you mean 'histogram'"):
        key_config(plain, "histograms")


def test_measure__fewer_samples_than_ranks() -> None:
    found = all_of(digits(), images(2), Units(top=4))
    assert (found["top_sample"][:, 2:] == -1).all()
    assert np.isnan(found["top_value"][:, 2:]).all()
    assert (np.diff(found["top_value"][:, :2]) <= 0).all()


def test_measure__bfloat16_is_close_and_opt_in() -> None:
    net, samples = digits(), images()
    wanted, found = all_of(net, samples, Units()), all_of(net, samples, Units(bf16=True))
    assert 0 < np.abs(found["mean"] - wanted["mean"]).max() < 0.05
    assert next(net.module.parameters()).dtype == torch.float32


@pytest.mark.parametrize("allowed", [False, True])
def test_measure__a_nan_fails_the_row_or_stays_in_its_unit(allowed: bool) -> None:
    net, samples = digits(), images(5)
    good = all_of(net, samples, Units())
    with torch.no_grad():
        net.module.bn3.bias[4] = torch.nan
    table = Units(allow_non_finite=allowed, abs_dev=True)
    if not allowed:
        with pytest.raises(NonFiniteError, match=r"layer 'relu#2', unit 4 .* sample 's000'.*allow_non_finite"):
            all_of(net, samples, table)
        return
    found = all_of(net, samples, table)
    bad = np.zeros(80, dtype=bool)
    bad[16 + 32 + 4] = True
    for name in ("abs_sum", "mean", "m2", "min", "max", "abs_dev"):
        assert np.isnan(found[name][bad]).all()
        assert np.isfinite(found[name][~bad]).all()
    for name in STATISTICS:
        np.testing.assert_array_equal(found[name][~bad], good[name][~bad])


def test_measure__a_forward_that_fails_leaves_nothing_behind() -> None:
    net, samples = digits(), images(9)
    calls = []

    def break_once(module: nn.Module, args: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of memory")

    handle = net.module.fc.register_forward_pre_hook(break_once)
    with pytest.raises(RuntimeError, match="out of memory"):
        all_of(net, samples, Units(), batch_size=2)
    handle.remove()
    assert all_of(net, samples, Units())["n"][0] == 9 * 64


def test_sweep__commits_after_the_forward_only() -> None:
    net, samples = digits(), images(4)
    with running.prepared(net, device="cpu", bf16=False) as module:  # type: ignore[arg-type]
        probe = running.first_batch(net, samples, module, device="cpu")  # type: ignore[arg-type]
        layers = find_layers(module, "auto", probe)
        events: list[str] = []
        module.register_forward_hook(lambda *_: events.append("returned"))
        running.sweep(
            net,  # type: ignore[arg-type]
            samples,
            module,
            layers,
            observe=lambda index, tensor, batch: events.append(f"layer {index}"),
            commit=lambda batch, seen: events.append(f"commit {len(seen)}"),
            batch_size=2,
            device="cpu",
        )
    assert events == ["layer 0", "layer 1", "layer 2", "returned", "commit 3"] * 2


def test_measure__what_cannot_be_measured_is_said() -> None:
    net, samples = digits(), images(5)
    with pytest.raises(DataError, match="no samples"):
        all_of(net, samples.subset([]), Units())
    with pytest.raises(CaptureError, match="relu"):
        all_of(net, samples, Units(layers=("rleu",)))
    with pytest.raises(DataError, match="positions = false"):
        axes(net, samples, Units(positions=True))  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="did you mean 'top'"):
        measure(net, samples, parts=("tops",), table=Units())  # type: ignore[arg-type]
    words, sentences = reading(SENTENCES)
    with pytest.raises(DataError, match="no token of any text is left; lower skip_first"):
        all_of(words, sentences, Units(skip_first=8))
    unnormed = Net(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), nn.ReLU()))
    with pytest.raises(ModelMismatchError, match="track_running_stats=True"):
        all_of(unnormed, samples, Units())


def test_require_tokens__names_a_text_that_is_all_padding() -> None:
    net, samples = reading(SENTENCES)
    batch = next(iter(shown(samples, net, batch_size=3)))  # type: ignore[arg-type]
    assert batch.mask is not None
    batch.mask[1] = False
    with pytest.raises(DataError, match="text 't001' has no token, only padding"):
        running.require_tokens(batch.mask, batch, samples)


def test_has_tokens__refuses_positions_that_are_not_the_texts() -> None:
    net, samples = reading(SENTENCES)
    batch = next(iter(shown(samples, net, batch_size=3)))  # type: ignore[arg-type]
    layer = find_layers(net.module, ("hidden.1",), batch)[0]
    assert running.has_tokens(layer, torch.zeros(3, 6, 5), batch.mask)
    assert not running.has_tokens(layer, torch.zeros(3, 5), batch.mask)
    with pytest.raises(ModelMismatchError, match="to tell padding"):
        running.has_tokens(layer, torch.zeros(3, 4, 5), batch.mask)


def test_kept_tokens__of_one_batch_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from neurolens.units import measure as measuring

    calls: list[int] = []
    monkeypatch.setattr(measuring, "kept_tokens", lambda *a, **k: (calls.append(1), kept_tokens(*a, **k))[1])
    net, samples = reading(SENTENCES)
    all_of(net, samples, Units(layers=("hidden.0", "hidden.1")), batch_size=5)
    assert len(calls) == 2  # those that count, and those there are


def test_measure__a_bin_that_overflows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from neurolens.units import histogram

    monkeypatch.setattr(histogram, "LIMIT", 50)
    with pytest.raises(DataError, match=r"layer 'relu' has \d+ observations in one bin .* set histogram = false"):
        all_of(digits(), images(5), Units(histogram=True))


def test_prepared__runs_in_the_dtype_that_weights_are_held_in() -> None:
    net, samples = reading(SENTENCES)
    wanted = all_of(net, samples, Units())
    halved, doubled = (
        Net(copy.deepcopy(net.module).to(d), tokenizer=net.tokenizer) for d in (torch.bfloat16, torch.double)
    )
    require_equal(all_of(doubled, samples, Units()), wanted)
    assert 0 < np.abs(all_of(halved, samples, Units())["mean"] - wanted["mean"]).max() < 0.01
    assert (halved.module.embed.weight.dtype, doubled.module.embed.weight.dtype) == (torch.bfloat16, torch.double)


def test_prepared__copies_only_what_has_to_be_turned() -> None:
    net, _ = reading(SENTENCES)
    with running.prepared(net, device="cpu", bf16=False) as module:  # type: ignore[arg-type]
        assert module is net.module
        assert not module.training
    for other, bf16 in ((net, True), (digits(), False)):
        with running.prepared(other, device="cpu", bf16=bf16) as module:  # type: ignore[arg-type]
            assert module is not other.module
