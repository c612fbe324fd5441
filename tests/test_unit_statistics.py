"""Statistics of units: golden numbers, numpy in float64, every layout and dtype, and what naive sums get wrong."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from neurolens.units import accelerated, histogram, observing
from neurolens.units.kernels import merge_groups
from neurolens.units.observing import Groups, Kept, kept_tokens
from neurolens.units.statistics import FIELDS, UnitStatistics, empty_table

Array = np.ndarray[Any, np.dtype[Any]]
VALUES = st.floats(-1e6, 1e6, width=32).map(lambda x: x if abs(x) > 1e-6 else 0.0)
TABLES = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=VALUES)
LAYOUTS = {
    "maps": ((3, 5, 4, 6), 1, torch.contiguous_format),
    "long maps": ((2, 3, 50, 60), 1, torch.contiguous_format),
    "channels last": ((3, 5, 40, 6), 1, torch.channels_last),
    "one position": ((3, 5, 1, 1), 1, torch.contiguous_format),
    "tokens": ((3, 17, 700), 2, torch.contiguous_format),
    "narrow tokens": ((2, 67, 3), 2, torch.contiguous_format),
    "dense": ((4, 7), 1, torch.contiguous_format),
    "channels at the end": ((2, 4, 5, 6), 3, torch.contiguous_format),
    "volumes": ((2, 3, 2, 3, 4), 1, torch.channels_last_3d),
}


def close(found: Any, wanted: Any, scale: float = 1.0) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-11 * scale)


def same(a: UnitStatistics, b: UnitStatistics, size: float = 1.0) -> None:
    for name in FIELDS:
        close(getattr(a, name), getattr(b, name), size**2 if name == "m2" else size)


def slow(values: Array, weights: Array | None = None) -> UnitStatistics:
    """Statistics of (N, U) from their definitions, two passes in float64."""
    x = values.astype(np.float64)
    w = np.ones(len(x)) if weights is None else weights
    n = np.full(x.shape[1], w.sum())
    mean = (x * w[:, None]).sum(axis=0) / n
    return UnitStatistics(
        n=n,
        abs_sum=(np.abs(x) * w[:, None]).sum(axis=0),
        mean=mean,
        m2=((x - mean) ** 2 * w[:, None]).sum(axis=0),
        min=x[w > 0].min(axis=0),
        max=x[w > 0].max(axis=0),
        n_pos=((x > 0) * w[:, None]).sum(axis=0),
        n_nonzero=((x != 0) * w[:, None]).sum(axis=0),
    )


def merged(groups: Groups) -> UnitStatistics:
    table = empty_table(groups.mean.shape[1])
    merge_groups(table, *groups)
    return UnitStatistics(*table)


def laid_out(layout: str, seed: int = 0) -> tuple[torch.Tensor, int]:
    shape, axis, memory = LAYOUTS[layout]
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu_() - 0.1
    values[values == -0.1] = 0.0
    return values.to(memory_format=memory), axis


def per_group(values: torch.Tensor, axis: int) -> list[UnitStatistics]:
    """One statistics a sample, slowly."""
    last = values.movedim(axis, -1)
    return [slow(sample.reshape(-1, last.shape[-1]).float().numpy()) for sample in last]


def require_groups(found: Groups, wanted: list[UnitStatistics]) -> None:
    for b, one in enumerate(wanted):
        assert found.counts[b] == one.n[0]
        close(found.abs_sum[b], one.abs_sum)
        close(found.mean[b], one.mean)
        close(found.m2[b], one.m2)
        for name, field in (("low", "min"), ("high", "max"), ("positive", "n_pos"), ("nonzero", "n_nonzero")):
            np.testing.assert_array_equal(getattr(found, name)[b], getattr(one, field))


def test_merge__of_two_sets_by_hand() -> None:
    a, b = (UnitStatistics.of(np.array(values, float)[:, None]) for values in ([1, 2, 4], [6, 7]))
    assert (a.n[0], a.m2[0]) == (3, pytest.approx(14 / 3))
    assert a.mean[0] == pytest.approx(7 / 3)
    assert (b.n[0], b.mean[0], b.m2[0]) == (2, 6.5, 0.5)
    both = a.merge(b)
    assert (both.n[0], both.mean[0], both.m2[0]) == (5, pytest.approx(4), pytest.approx(26))
    assert both.m2[0] / both.n[0] == pytest.approx(5.2)
    assert both.m2[0] / (both.n[0] - 1) == pytest.approx(6.5)
    assert (both.min[0], both.max[0], both.abs_sum[0]) == (1, 7, 20)


@given(TABLES, st.data())
def test_merge__is_numpy_over_both_sets_in_any_order(x: Array, data: st.DataObject) -> None:
    cut = sorted(data.draw(st.tuples(*[st.integers(0, len(x))] * 2)))
    parts = [UnitStatistics.of(p) for p in np.split(x, cut)]
    size = float(np.abs(x).max()) + 1
    whole = slow(x)
    same(parts[0].merge(parts[1]).merge(parts[2]), whole, size)
    same(parts[0].merge(parts[1].merge(parts[2])), whole, size)
    same(parts[2].merge(parts[0]).merge(parts[1]), whole, size)


def test_merge__with_nothing_changes_nothing() -> None:
    some = UnitStatistics.of(np.array([[1.0, -2.0], [3.0, 0.0]]))
    for both in (some.merge(UnitStatistics.empty(2)), UnitStatistics.empty(2).merge(some)):
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(both, name), getattr(some, name))
    nothing = UnitStatistics.empty(1).merge(UnitStatistics.empty(1))
    assert (nothing.n[0], nothing.mean[0], nothing.min[0], nothing.max[0]) == (0, 0, np.inf, -np.inf)


def test_of__weights_of_zero_count_for_nothing() -> None:
    x = np.array([[1.0], [2.0], [1e9]])
    same(UnitStatistics.of(x, [1, 1, 0]), UnitStatistics.of(x[:2]))
    assert UnitStatistics.of(x, [0, 0, 0]).n[0] == 0


def test_groups__keep_what_sums_of_squares_in_float32_lose() -> None:
    x = np.array([10001, 10002, 10003, 10004], dtype=np.float32)
    naive = np.float32((x * x).sum(dtype=np.float32) / 4) - np.float32(x.mean(dtype=np.float32) ** 2)
    assert abs(naive - 1.25) > 1  # -8 with float32 all the way
    for shape, axis in (((1, 1, 4), 1), ((1, 4, 1), 2), ((4, 1), 1)):
        found = merged(observing.groups(torch.from_numpy(x).reshape(shape), axis))
        assert (found.mean[0], found.m2[0] / 4) == (10002.5, 1.25)


def test_groups__count_beyond_where_float16_sums_stick() -> None:
    ones = torch.ones(3000, dtype=torch.float16)
    running = np.float16(0)
    for value in ones.numpy():
        running += value
    assert running == 2048
    assert merged(observing.groups(ones.reshape(1, 1, 3000), 1)).abs_sum[0] == 3000
    assert merged(observing.groups(ones.reshape(1, 3000, 1), 2)).abs_sum[0] == 3000


@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups__are_numpy_in_float64_in_every_layout(layout: str) -> None:
    values, axis = laid_out(layout)
    before = values.clone()
    require_groups(observing.groups(values, axis), per_group(values, axis))
    assert torch.equal(values, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups__of_half_precision_are_those_of_its_values(layout: str, dtype: torch.dtype) -> None:
    values, axis = laid_out(layout)
    values = values.to(dtype)
    require_groups(observing.groups(values, axis), per_group(values, axis))


def test_groups__of_strided_tensors() -> None:
    values = torch.randn(3, 8, 10, 6)
    for view, axis in (
        (values[:, ::2], 1),
        (values[..., 1:4], 1),
        (values.transpose(1, 2), 2),
        (values[:1].expand(3, -1, -1, -1), 3),
    ):
        require_groups(observing.groups(view, axis), per_group(view, axis))


@given(arrays(np.float32, (3, 2, 5), elements=VALUES))
@settings(max_examples=50)
def test_groups__merge_to_numpy(x: Array) -> None:
    whole = slow(np.moveaxis(x, 1, 2).reshape(-1, 2))
    size = float(np.abs(x).max()) + 1
    same(merged(observing.groups(torch.from_numpy(x), 1)), whole, size)
    same(merged(observing.groups(torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, 1, 2))), 2)), whole, size)


def test_groups__of_a_sample_do_not_depend_on_its_batch_or_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "ALONE", 1)
    before = torch.get_num_threads()
    try:
        for layout in LAYOUTS:
            values, axis = laid_out(layout)
            torch.set_num_threads(1)
            whole = observing.groups(values, axis)
            torch.set_num_threads(3)
            for field, found, alone in zip(
                Groups._fields,
                observing.groups(values, axis),
                zip(*(observing.groups(values[b : b + 1], axis) for b in range(len(values)))),
            ):
                np.testing.assert_array_equal(found, getattr(whole, field), err_msg=field)
                np.testing.assert_array_equal(np.concatenate(alone), getattr(whole, field), err_msg=field)
    finally:
        torch.set_num_threads(before)


def test_groups__run_in_several_threads_at_once() -> None:
    values, axis = laid_out("tokens")
    wanted = observing.groups(values, axis)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: observing.groups(values, axis), range(16)):
            np.testing.assert_array_equal(found.m2, wanted.m2)


@pytest.mark.parametrize(("shape", "axis"), [((2, 3, 4), 1), ((2, 4, 3), 2), ((2, 3), 1)])
def test_groups__a_nan_or_an_infinity_stays_in_its_unit(shape: tuple[int, ...], axis: int) -> None:
    clean = torch.rand(shape) + 1
    broken = clean.clone()
    broken.select(axis, 1).select(0, 0).fill_(torch.nan)
    broken.select(axis, 2).select(0, 1).fill_(-torch.inf)
    good, found = observing.groups(clean, axis), observing.groups(broken, axis)
    np.testing.assert_array_equal(found.mean[:, 0], good.mean[:, 0])
    assert np.isnan(found.abs_sum[0, 1])
    assert np.isnan(found.mean[0, 1])
    assert found.abs_sum[1, 2] == np.inf
    assert found.low[1, 2] == -np.inf
    table = merged(found)
    assert np.isfinite([table.mean[0], table.m2[0], table.abs_sum[0]]).all()
    assert np.isnan(table.mean[1])


def test_kept_tokens__three_ways_to_count_padding() -> None:
    h = torch.tensor([[1.0, 2, 3, 6], [4, 10, 10, 10]])[..., None]
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    wanted = {"seed": (5.75, 2.0), "token": (3.2, 5.0), "sample": (3.5, 2.0)}
    for tokens, (mean_abs, n) in wanted.items():
        found = merged(observing.groups(h, 2, kept_tokens(mask, tokens=tokens)))  # type: ignore[arg-type]
        assert (found.abs_sum[0] / found.n[0], found.n[0]) == (pytest.approx(mean_abs), n)
        assert found.mean[0] == pytest.approx(mean_abs)


def test_kept_tokens__a_text_is_one_observation_exactly() -> None:
    mask = torch.ones(7, 49, dtype=torch.bool)
    assert 49 * (1 / 49) < 1
    assert merged(observing.groups(torch.rand(7, 49, 2), 2, kept_tokens(mask, tokens="sample"))).n.tolist() == [7, 7]


def test_kept_tokens__skip_first_leaves_out_real_tokens() -> None:
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    found = kept_tokens(mask, tokens="token", skip_first=1)
    assert found.mask.tolist() == [[False, False, True, True], [False, True, False, False]]
    assert [found.at[b, :n].tolist() for b, n in enumerate(found.counts)] == [[2, 3], [1]]
    none = kept_tokens(mask, tokens="sample", skip_first=5)
    assert none.counts.tolist() == [0, 0]
    assert merged(observing.groups(torch.rand(2, 4, 3), 2, none)).n.tolist() == [0, 0, 0]
    seed = kept_tokens(mask, tokens="seed", skip_first=1)
    assert seed.mask.tolist() == [[True, False, True, True], [False, True, True, True]]


@given(arrays(np.float32, (3, 6, 2), elements=VALUES), arrays(np.bool_, (3, 6)), st.sampled_from(["token", "sample"]))
@settings(max_examples=50)
def test_groups__of_masked_tokens_are_weighted_statistics(x: Array, mask: Array, tokens: Any) -> None:
    if not mask.any():
        return
    found = merged(observing.groups(torch.from_numpy(x), 2, kept_tokens(torch.from_numpy(mask), tokens=tokens)))
    weights = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1) if tokens == "sample" else mask.astype(float)
    x = np.where(mask[..., None], x, np.float32(0))
    same(found, slow(x.reshape(-1, 2), weights.reshape(-1)), float(np.abs(x).max()) + 1)


def test_groups__what_is_padded_may_be_anything() -> None:
    x = torch.rand(2, 4, 3)
    kept = kept_tokens(torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool), tokens="token")
    wanted = observing.groups(x, 2, kept)
    x[0, 2:], x[1, 3] = torch.nan, torch.inf
    for found, good in zip(observing.groups(x, 2, kept), wanted, strict=True):
        np.testing.assert_array_equal(found, good)


def masks() -> list[Kept | None]:
    mask = torch.ones(3, 17, dtype=torch.bool)
    mask[1, 5:], mask[2, :] = False, False
    return [None, kept_tokens(mask, tokens="sample"), kept_tokens(mask, tokens="token", skip_first=2)]


def require_accelerated(device: str) -> None:
    """Hold torch's reductions on a device against the compiled kernels."""
    for layout in LAYOUTS:
        values, axis = laid_out(layout)
        for kept in masks() if layout == "tokens" else [None]:
            mask = None if kept is None else kept.mask.to(device)
            there = values.to(device)
            wanted = observing.groups(values, axis, kept)
            some = wanted.counts > 0
            for found, good in zip(accelerated.groups(there, axis, mask), wanted[2:], strict=True):
                close(found[some], good[some])
                assert found.dtype == good.dtype
            centres = merged(wanted).mean
            close(accelerated.deviations(there, axis, centres, mask), observing.deviations(values, axis, centres, kept))
            np.testing.assert_array_equal(
                accelerated.bins(there, axis, mask), observing.bins(values, axis, kept), err_msg=layout
            )
    values, _ = laid_out("tokens")
    kept = masks()[1]
    assert kept is not None
    np.testing.assert_array_equal(
        accelerated.fired(values.to(device), kept.at, kept.counts), observing.fired(values, kept)
    )


def test_accelerated__gives_the_same_numbers() -> None:
    require_accelerated("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_accelerated__gives_the_same_numbers_on_a_gpu() -> None:
    require_accelerated("cuda")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_deviations__are_from_the_given_centres(layout: str) -> None:
    values, axis = laid_out(layout)
    last = values.movedim(axis, -1).reshape(len(values), -1, values.shape[axis]).double().numpy()
    centres = last.mean(axis=(0, 1))
    close(observing.deviations(values, axis, centres), np.abs(last - centres).sum(axis=1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bins__are_the_top_8_bits_of_a_float16(layout: str) -> None:
    values, axis = laid_out(layout)
    found = observing.bins(values, axis)
    last = values.movedim(axis, 0).reshape(values.shape[axis], -1).numpy()
    top = last.astype(np.float16).view(np.uint16) >> 8
    wanted = np.stack([np.bincount(line, minlength=256) for line in top])
    np.testing.assert_array_equal(found, wanted)


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_bins__round_as_float16_does(numbers: list[float]) -> None:
    x = np.array([*numbers, 6e-8, 2e-8, 65520, 65519, 65504, -0.0], dtype=np.float32)
    found = observing.bins(torch.from_numpy(x).reshape(1, 1, -1), 1)[0]
    with np.errstate(over="ignore"):
        top = (x.astype(np.float16).view(np.uint16) >> 8).astype(int)
    top = np.where(np.isnan(x), (top & 0x80) | 0x7E, top)
    np.testing.assert_array_equal(found[:126], np.bincount(top, minlength=256)[:126])
    assert found.sum() == len(x)


def test_float16__rounds_to_the_nearest() -> None:
    x = torch.tensor([6e-8, 2e-8, 65520, 65519]).half().double()
    assert x.tolist() == [2**-24, 0.0, np.inf, 65504.0]


def test_bin_edges__hold_what_is_counted_in_them() -> None:
    low, high = histogram.bin_edges()
    x = np.random.default_rng(0).standard_normal(2000).astype(np.float16).astype(np.float32)
    found = observing.bins(torch.from_numpy(x).reshape(1, -1, 1), 2)[0]
    for place in np.flatnonzero(found):
        inside = (x >= low[place]) & (x < high[place]) if place < 128 else (x > low[place]) & (x <= high[place])
        assert inside.sum() == found[place]
    assert (high[4:124] / low[4:124]).max() <= 1.25
    assert (low[0], high[123], low[124]) == (0.0, 65520.0, np.inf)
    assert np.isnan(low[125:128]).all()


H = [[0, 2, 0, 0.05, 8], [0, 0, 0, 0.05, 4], [0, 2, -0.4, 0.05, 0], [0, 0, 0.4, 0.05, 4]]


def test_groups__of_the_golden_table() -> None:
    h = torch.tensor(H)
    found = merged(observing.groups(h, 1))
    np.testing.assert_allclose(found.abs_sum / found.n, [0, 1, 0.2, 0.05, 4], rtol=1e-7)
    np.testing.assert_allclose(found.m2 / found.n, [0, 1, 0.08, 0, 8], rtol=1e-7)
    assert found.m2[3] == 0  # exactly: the unit is constant
    assert (found.n_pos / found.n).tolist() == [0, 0.5, 0.25, 1, 0.75]
    assert (found.n_nonzero / found.n).tolist() == [0, 0.5, 0.5, 1, 0.75]
    assert found.max.tolist() == h.amax(dim=0).tolist()
    abs_dev = observing.deviations(h, 1, found.mean).sum(axis=0) / found.n
    np.testing.assert_allclose(abs_dev / abs_dev.mean(), [0, 1.5625, 0.3125, 0, 3.125], rtol=1e-6)


def test_groups__a_silent_layer_is_all_zeros() -> None:
    found = merged(observing.groups(torch.zeros(3, 2, 2, 2), 1))
    for name in FIELDS[1:]:
        assert getattr(found, name).tolist() == [0, 0]
    assert found.n.tolist() == [12, 12]
