"""Maps kept between passes: the masks of all maps, whatever batches, layout, bounds of then, and the disk."""

import errno
import os
import tracemalloc

import numpy as np
import pytest
from dissection_cases import drawn_images
from hypothesis import given, settings
from hypothesis import strategies as st
from units_cases import digits, images

from neurolens.dissection import Tally, Thresholds, pack_labels
from neurolens.dissection.kept_maps import KeptMaps
from neurolens.dissection.maps import maps_of
from neurolens.dissection.measure import dissect
from neurolens.errors import SchemaError


def activations(seed, n=90, units=5, size=(6, 7), liking=1.0):
    rng = np.random.default_rng(seed)
    whole = liking * rng.normal(size=(n, units, 1, 1))
    maps = rng.normal(size=(n, units, *size)) + whole
    maps[:, 0] = np.maximum(maps[:, 0], 0)
    maps[:, 1] = 0
    maps[:, 2] -= 9
    maps[:, 3] = np.round(maps[:, 3])
    return maps.astype(np.float32)


def labels(n, seed=0, size=(16, 20)):
    rng = np.random.default_rng(seed)
    drawn = [{int(c): rng.random(size) < 0.4 for c in rng.choice(5, 2, replace=False)} for _ in range(n)]
    return pack_labels(drawn, size, [0, 0, 1, 1, 2])


def counts(tally):
    return {name: counted.copy() for name, counted in tally.variables().items()}


def in_two_passes(maps, packed, quantile):
    with Thresholds(maps.shape[1], len(maps) * maps[0, 0].size, quantile=quantile) as thresholds:
        thresholds.update(maps)
        limits = thresholds.result()
    tally = Tally(packed, maps.shape[1])
    tally.add(maps, limits, np.arange(len(maps)))
    return limits, counts(tally)


def in_one_pass(maps, packed, quantile, batch=7, last=False, memory_mib=56, **options):
    """Thresholds, counts and the bytes kept, or None where not everything was kept."""
    units, grid = maps.shape[1], maps.shape[2:]
    laid = np.ascontiguousarray(maps.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if last else maps
    with (
        Thresholds(units, len(maps) * maps[0, 0].size, quantile=quantile, memory_mib=memory_mib) as thresholds,
        KeptMaps(units, grid, **options) as kept,
    ):
        for at in range(0, len(maps), batch):
            several = maps_of(laid[at : at + batch], units)
            thresholds.update(several)
            kept.add(several, thresholds.bound, np.arange(at, at + len(several.values)))
        limits = thresholds.result()
        if not kept.complete:
            return None
        tally = Tally(packed, units)
        for several, at in kept.batches(limits):
            tally.add(several, limits, at)
        return limits, counts(tally), kept.nbytes


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 100),
    st.sampled_from([(6, 7), (1, 1), (3, 70), (1, 64), (9, 2)]),
    st.sampled_from([0.005, 0.05, 0.5]),
    st.booleans(),
    st.sampled_from([56, 0.02]),
)
def test_kept_maps__have_the_masks_of_all_maps(seed, batch, size, quantile, last, memory_mib):
    maps = activations(seed, size=size)
    packed = labels(len(maps), size=(16, 80))
    limits, expected = in_two_passes(maps, packed, quantile)
    found = in_one_pass(maps, packed, quantile, batch, last, memory_mib)
    assert (found[0] == limits).all()
    for name, counted in expected.items():
        assert (found[1][name] == counted).all()
    assert expected["n_images"].sum() == len(maps)
    assert expected["intersection"].any()


def test_kept_maps__are_gone_through_again_when_the_file_grows(monkeypatch):
    maps = activations(1, n=600, liking=0)
    packed = labels(len(maps))
    expected = in_two_passes(maps, packed, 0.01)[1]
    whole = in_one_pass(maps, packed, 0.01)
    monkeypatch.setattr("neurolens.dissection.kept_maps._AGAIN", 10_000)
    monkeypatch.setattr("neurolens.dissection.kept_maps._BUFFER", 600)
    small = in_one_pass(maps, packed, 0.01)
    assert small[2] < whole[2] < maps.nbytes
    for found in (whole, small):
        for name, counted in expected.items():
            assert (found[1][name] == counted).all()


def test_kept_maps__take_a_few_percent_of_the_activations():
    maps = activations(2, n=3000, units=4, size=(14, 14), liking=2.0)
    with Thresholds(4, maps[:, 0].size) as thresholds, KeptMaps(4, (14, 14)) as kept:
        for at in range(0, len(maps), 50):
            several = maps_of(maps[at : at + 50], 4)
            thresholds.update(several)
            kept.add(several, thresholds.bound, np.arange(at, at + 50))
        assert 0 < kept.nbytes < 0.1 * maps.nbytes


def test_kept_maps__are_let_go_of_where_the_disk_does_not_hold_them(monkeypatch):
    maps = activations(3)
    packed = labels(len(maps))
    assert in_one_pass(maps, packed, 0.5, disk_mib=0.001) is None
    assert in_one_pass(maps, packed, 0.5, disk_mib=0) is None
    assert in_one_pass(maps, packed, 0.5, disk_mib=1) is not None

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert in_one_pass(maps, packed, 0.5) is None


def test_dissection__takes_the_same_memory_however_many_images(monkeypatch):
    monkeypatch.setattr("neurolens.dissection.thresholds._STRIP", 1000)
    units, grid, quantile = 4, (14, 14), 0.01
    pool = [activations(seed, n=20, units=units, size=grid) for seed in range(5)]

    def peak(n):
        packed = pack_labels([{0: True}] * n, (28, 28), [0])
        tracemalloc.start()
        try:
            with (
                Thresholds(units, n * 14 * 14, quantile=quantile, memory_mib=0.01) as thresholds,
                KeptMaps(units, grid) as kept,
            ):
                for at in range(0, n, 20):
                    maps = maps_of(pool[at // 20 % 5], units)
                    thresholds.update(maps)
                    kept.add(maps, thresholds.bound, np.arange(at, at + 20))
                limits = thresholds.result()
                assert thresholds.spilled
                tally = Tally(packed, units)
                for maps, images in kept.batches(limits):
                    tally.add(maps, limits, images)
                assert tally.intersection.any()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1000)  # what is compiled, and what stays
    few, many = peak(1000), peak(4000)
    assert many < few + 3000 * 100  # their positions and what is told of them, not their maps of 3136 bytes


@pytest.mark.parametrize(("disk_mib", "passes"), [(64, 1), (0.002, 2), (0, 2)])
def test_dissect__is_the_same_in_one_pass_and_in_two(disk_mib, passes):
    net, samples, told = digits(), images(), []
    packed = labels(len(samples), size=(8, 8))
    options = {"layers": ["conv1", "conv2"], "quantile": 0.2, "top": 3, "batch_size": 2}
    one = dissect(net, samples, packed, **options)
    other = dissect(net, samples, packed, **options, disk_mib=disk_mib, progress=lambda *done: told.append(done))
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(other[name], values)
    assert one["intersection"].any()
    assert told[-1] == (11 * passes, 11 * passes)


def test_kept_maps__say_what_is_wrong():
    maps, _, _, _ = drawn_images(5)
    with Thresholds(5, maps[:, 0].size, quantile=0.1) as thresholds, KeptMaps(5, maps.shape[2:]) as kept:
        several = maps_of(maps, 5)
        thresholds.update(several)
        limits = thresholds.result()
        kept.add(several, thresholds.bound, np.arange(len(maps)))
        with pytest.raises(SchemaError, match="below the bounds"):
            next(kept.batches(limits - 1))
    with pytest.raises(SchemaError, match="show the network its images again"):
        next(kept.batches(limits))
