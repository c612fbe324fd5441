"""Thresholds: golden ranks, sorting everything as the slow version, memory, order, batches, threads, errors."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.dissection import Thresholds, rank_of
from neurolens.errors import NonFiniteError, SchemaError


def found(maps, batches=1, **options):
    with Thresholds(maps.shape[1], maps.shape[0] * int(np.prod(maps.shape[2:])), **options) as thresholds:
        for batch in np.array_split(maps, batches):
            thresholds.update(batch)
        return thresholds.result()


def by_sorting(maps, quantile=0.005):
    return np.quantile(np.moveaxis(maps, 1, 0).reshape(maps.shape[1], -1).astype(np.float64), 1 - quantile, axis=1)


def line(n):
    return np.arange(n, dtype=np.float32)[:, None]


def drawn(images=200, units=6, size=(5, 4), seed=0):
    maps = np.random.default_rng(seed).normal(size=(images, units, *size)).astype(np.float32)
    maps[:, 0], maps[:, 1] = 0, np.maximum(maps[:, 1], 0)
    maps[:, 2] = -np.abs(maps[:, 2])
    maps[:, 3] = np.round(maps[:, 3])
    return maps


@pytest.mark.parametrize(("n", "value"), [(10, 9.0), (100, 99.0), (1000, 994.49499), (10000, 9949.4499)])
def test_thresholds__of_lite_are_the_golden_ones(n, value):
    # the reference's own weights are float32, good to 1e-5
    np.testing.assert_allclose(found(line(n), compat="lite"), [value], rtol=1e-5)
    np.testing.assert_allclose(found(line(n), compat="lite"), [min(994 / 999 * n - 0.5, n - 1)], rtol=1e-12)


@pytest.mark.parametrize(("n", "value"), [(10, 8.955), (100, 98.505), (1000, 994.005), (10000, 9949.005)])
def test_thresholds__are_those_of_np_quantile(n, value):
    np.testing.assert_allclose(found(line(n)), [value], rtol=1e-12)


@pytest.mark.parametrize("memory_mib", [64, 0.009, 0.004])
@pytest.mark.parametrize("quantile", [0.005, 0.3, 0.9])
def test_thresholds__equal_sorting_everything(memory_mib, quantile):
    maps = drawn()
    assert (found(maps, 9, quantile=quantile, memory_mib=memory_mib) == by_sorting(maps, quantile)).all()


def test_thresholds__of_millions_in_a_file_equal_sorting_everything(monkeypatch):
    monkeypatch.setattr("neurolens.dissection.thresholds._STRIP", 1000)
    maps = drawn(images=1500, units=4, size=(20, 20))
    with Thresholds(4, 1500 * 400, memory_mib=0.02) as thresholds:
        for batch in np.array_split(maps, 50):
            thresholds.update(batch)
        assert thresholds.spilled
        assert thresholds.nbytes <= 0.02 * 2**20
        assert (thresholds.result() == by_sorting(maps)).all()
        assert (thresholds.result() == by_sorting(maps)).all()


def test_thresholds__of_layer4_on_broden_fit_into_64_mb():
    with Thresholds(512, 63305 * 49) as thresholds:
        thresholds.update(np.zeros((1, 512, 7, 7), np.float32))
        assert not thresholds.spilled
        assert 4 * 512 * 0.005 * 63305 * 49 < thresholds.nbytes < 64e6


@pytest.mark.parametrize("images", [10_000, 10_000_000])
def test_thresholds__of_early_layers_take_the_same_memory_however_many_images(images):
    with Thresholds(64, images * 56 * 56, memory_mib=16) as thresholds:
        thresholds.update(np.zeros((1, 64, 56, 56), np.float32))
        assert thresholds.spilled
        assert thresholds.nbytes == 64 * 2**14 * 4


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 12), st.sampled_from([0.005, 0.1, 0.5]), st.sampled_from([None, "lite"]),
    st.sampled_from([64, 0.006]), st.booleans(), st.integers(1, 3), st.sampled_from([6, 19]),
)  # fmt: skip
def test_thresholds__are_blind_to_order_batches_layout_memory_and_threads(
    seed, batches, quantile, compat, memory_mib, last, workers, units
):
    maps = drawn(images=60, units=units, seed=seed)
    shuffled = maps[np.random.default_rng(seed).permutation(60)]
    if last:
        shuffled = np.ascontiguousarray(shuffled.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    one = found(maps, quantile=quantile, compat=compat)
    other = found(shuffled, batches, quantile=quantile, compat=compat, memory_mib=memory_mib, workers=workers)
    assert (one == other).all()


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40), st.floats(0.01, 0.99)
)
def test_thresholds__of_any_floats_equal_sorting(values, quantile):
    maps = np.array(values, np.float32)[:, None]
    np.testing.assert_array_equal(found(maps, 3, quantile=quantile), by_sorting(maps, quantile))


def test_thresholds__of_a_dead_unit_are_zero_and_nothing_exceeds_them():
    value = found(np.zeros((50, 2, 3, 3), np.float32))
    assert (value == 0).all()
    assert not np.signbit(found(np.full((50, 2, 3, 3), -0.0, np.float32))).any()


def test_thresholds__of_several_networks_at_once_do_not_disturb_each_other():
    several = [drawn(seed=seed, images=80, size=(9, 9)) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda maps: found(maps, 20, workers=2), several))
    for maps, value in zip(several, together):
        assert (value == by_sorting(maps)).all()


def test_thresholds__refuse_nan_and_infinity_and_name_them():
    maps = drawn(images=20)
    maps[13, 4, 2, 2] = np.nan
    for layout in (maps, np.ascontiguousarray(maps.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)):
        with pytest.raises(NonFiniteError, match="unit 4 on image 13"):
            found(layout, 4)
    with pytest.raises(NonFiniteError, match="unit 0"):
        found(np.full((2, 1, 2, 2), -np.inf, np.float32))


def test_thresholds__say_what_is_wrong():
    with Thresholds(2, 8) as thresholds:
        thresholds.update(np.zeros((1, 2, 2, 2), np.float32))
        with pytest.raises(SchemaError, match="4 activations per unit of the 8"):
            thresholds.result()
        with pytest.raises(SchemaError, match="images of one size"):
            thresholds.update(np.zeros((1, 2, 1, 3), np.float32))
        with pytest.raises(SchemaError, match="12 activations per unit, and 8 were announced"):
            thresholds.update(np.zeros((2, 2, 2, 2), np.float32))
        with pytest.raises(SchemaError, match="token_maps"):
            thresholds.update(np.zeros((1, 5, 2), np.float32))
    with pytest.raises(SchemaError, match="closed"):
        thresholds.update(np.zeros((1, 2, 2, 2), np.float32))
    with Thresholds(2, 10**9, memory_mib=1e-4) as small, pytest.raises(SchemaError, match="at least"):
        small.update(np.zeros((1, 2, 50, 50), np.float32))
    with pytest.raises(SchemaError, match="0 units"):
        Thresholds(0, 10)


def test_rank_of__says_what_is_wrong():
    for bad in ({"quantile": 0.0}, {"quantile": 1.0}):
        with pytest.raises(SchemaError, match="share between 0 and 1"):
            rank_of(10, **bad)
    with pytest.raises(SchemaError, match="share"):
        rank_of(0)
    with pytest.raises(SchemaError, match="'lite'"):
        rank_of(10, compat="light")
