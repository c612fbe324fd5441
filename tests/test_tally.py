"""Tally: the five images, the paper written out slowly, threads, layouts, labels from a file of bitplanes, errors."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from dissection_cases import CATEGORY, IMAGES, MAPS, drawn_images, five_images, slow_counts
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.dissection import Tally, image_blocks, pack_labels, token_maps, unit_mask, upsample
from neurolens.dissection.tally import _cut
from neurolens.errors import NonFiniteError, SchemaError


def totals(tally):
    areas = (tally.intersection, tally.unit_area, tally.unit_area_lite)
    return *(area.sum(axis=0).tolist() for area in areas), tally.concept_area.sum(axis=0).tolist()


def test_tally__counts_the_golden_five_images():
    both, paper, lite, truth = totals(five_images())
    assert truth == [32, 48, 12, 5, 2, 32, 16]
    assert both[0] == [12, 8, 12, 0, 2, 8, 0]
    assert both[1] == [8, 12, 0, 4, 0, 4, 16]
    assert paper[0] == [20, 16, 4, 8, 0]
    assert lite[0] == [20, 12, 4, 8, 0]
    assert paper[1] == [20, 4, 4, 4, 16]
    assert lite[1] == [20, 4, 0, 4, 16]


def test_tally__keeps_images_apart_in_blocks():
    tally = five_images(blocks=[0, 0, 2, 1, 1])
    assert tally.n_images.tolist() == [2, 2, 1]
    assert tally.unit_area[:, 0, 0].tolist() == [12, 8, 0]
    assert tally.concept_area[:, 0].tolist() == [24, 0, 8]
    assert totals(tally) == totals(five_images())
    assert five_images().intersection.shape == (32, 2, 7)


def test_tally__of_maps_in_any_order_and_batches_is_the_same():
    tally = Tally(pack_labels(IMAGES, (4, 4), CATEGORY), 2)
    for i in (3, 0, 4, 2, 1):
        tally.add(MAPS[i : i + 1], [1, 1], [i])
    for name, counts in five_images().variables().items():
        assert (tally.variables()[name] == counts).all()
        assert counts.dtype == ("uint32" if name == "intersection" else "float64")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([(3, 4), (1, 1), (2, 7), (9, 14), (4, 3), (3, 66)]),
    st.sampled_from([(9, 14), (16, 16), (13, 70), (9, 200)]),
    st.booleans(),
    st.integers(1, 3),
)
def test_tally__equals_the_paper_written_out(seed, size, label_size, last, workers):
    maps, thresholds, shown, category = drawn_images(seed, size=size, label_size=label_size)
    if size[0] > label_size[0] or size[1] > label_size[1]:
        return
    blocks = (np.arange(len(maps)) // 2).tolist()
    tally = Tally(pack_labels(shown, label_size, category, 4), maps.shape[1], blocks=blocks, workers=workers)
    laid = np.ascontiguousarray(maps.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if last else maps
    tally.add(laid, thresholds, np.arange(len(maps)))
    both, paper, lite, truth = slow_counts(maps, thresholds, shown, category, 4, label_size, blocks)
    assert (tally.intersection == both).all()
    assert (tally.unit_area == paper).all()
    assert (tally.unit_area_lite == lite).all()
    assert (tally.concept_area == truth).all()
    assert (tally.unit_area_lite <= tally.unit_area).all()


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-2, 2), st.integers(-3, 3))
def test_cut__tells_what_exceeds_a_threshold_once_rounded(limit, thresholds_off, off):
    threshold = np.float64(limit)
    for _ in range(abs(thresholds_off)):
        threshold = np.nextafter(threshold, np.sign(thresholds_off) * np.inf)
    cut, bound = _cut(np.array([threshold]))
    with np.errstate(over="ignore"):
        neighbours = np.nextafter(np.float32(limit), np.float32([-np.inf, np.inf])).astype(float)
        for near in (float(limit), *((limit + neighbours) / 2), *neighbours):  # half the way is a tie
            mean = near
            for _ in range(abs(off)):
                mean = np.nextafter(mean, np.sign(off) * np.inf)
            if np.isfinite(np.float32(mean)):
                assert (np.float64(np.float32(mean)) > threshold) == (mean > bound[0])
                assert (np.float64(np.float32(mean)) > threshold) == (np.float32(mean) > cut[0])


def test_tally__takes_any_threshold():
    maps = np.concatenate([MAPS, MAPS[:, :1]], axis=1)
    tally = Tally(pack_labels(IMAGES, (4, 4), CATEGORY), 3)
    tally.add(maps, [-np.inf, np.inf, 1e300], np.arange(5))
    assert (tally.intersection[:, 0] == tally.concept_area).all()
    assert not tally.intersection[:, 1:].any()


def test_tally__equals_the_paper_at_real_sizes():
    rng = np.random.default_rng(3)
    maps = np.maximum(rng.normal(size=(4, 8, 7, 7)), 0).astype(np.float32)
    thresholds = np.quantile(maps.transpose(1, 0, 2, 3).reshape(8, -1).astype(float), 0.98, axis=1)
    coarse = rng.random((4, 5, 8, 8)) > 0.6
    shown = [{c: np.kron(mask, np.ones((14, 14))) for c, mask in enumerate(image)} | {5: True} for image in coarse]
    tally = Tally(pack_labels(shown, (112, 112), [0, 0, 1, 1, 1, 2]), 8)
    tally.add(maps, thresholds, np.arange(4))
    slow = slow_counts(maps, thresholds, shown, [0, 0, 1, 1, 1, 2], 3, (112, 112), list(range(32)))
    for counts, expected in zip((tally.intersection, tally.unit_area, tally.unit_area_lite, tally.concept_area), slow):
        assert counts.sum() > 0
        assert (counts[:4] == expected[:4]).all()


def test_tally__has_nothing_of_units_that_never_exceed_their_threshold():
    maps = np.zeros((5, 2, 2, 2), np.float32)
    tally = Tally(pack_labels(IMAGES, (4, 4), CATEGORY), 2)
    tally.add(maps, [0.0, np.nan], np.arange(5))
    assert not tally.intersection.any()
    assert not tally.unit_area.any()
    assert tally.concept_area.sum() == 147


def test_tally__of_several_networks_at_once_do_not_disturb_each_other():
    def counted(seed):
        maps, thresholds, shown, category = drawn_images(seed, images=40, units=9)
        tally = Tally(pack_labels(shown, (9, 14), category, 4), 9, blocks=[0] * 40, workers=2)
        for i in range(0, 40, 8):
            tally.add(maps[i : i + 8], thresholds, np.arange(i, i + 8))
        return totals(tally)

    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(counted, range(6)))
    assert together == [counted(seed) for seed in range(6)]


def test_tally__says_what_is_wrong():
    labels = pack_labels(IMAGES, (4, 4), CATEGORY)
    with pytest.raises(SchemaError, match="for 5 images"):
        Tally(labels, 2, blocks=[0, 1])
    tally = Tally(labels, 2)
    with pytest.raises(SchemaError, match="one threshold per unit"):
        tally.add(MAPS, [1.0], np.arange(5))
    with pytest.raises(SchemaError, match="from 1 to 5; there are labels of 5"):
        tally.add(MAPS, [1.0, 1.0], np.arange(1, 6))
    with pytest.raises(NonFiniteError, match="unit 0 on image"):
        tally.add(np.full((1, 2, 2, 2), np.inf), [1.0, 1.0], [3])
    assert not tally.n_images.any()
    huge = pack_labels([{}] * 3, (60_000, 60_000), [0])
    with pytest.raises(SchemaError, match="more blocks"):
        Tally(huge, 1, blocks=[0, 0, 0])


def test_pack_labels__says_what_is_wrong():
    with pytest.raises(SchemaError, match="image 0 has concept 7"):
        pack_labels([{7: True}], (4, 4), CATEGORY)
    with pytest.raises(SchemaError, match=r"shape \(3, 4\)"):
        pack_labels([{1: np.ones((3, 4))}], (4, 4), CATEGORY)
    with pytest.raises(SchemaError, match="categories run from 0 to 4"):
        pack_labels([], (4, 4), CATEGORY, 3)


def test_image_blocks__deal_images_out():
    blocks = image_blocks(100)
    assert np.bincount(blocks).tolist() == [4] * 4 + [3] * 28
    assert blocks[33] == 1


def test_unit_mask__is_what_the_tally_counts():
    maps, thresholds, _, _ = drawn_images(4)
    tally = Tally(pack_labels([{0: True}] * 6, (9, 14), [0]), 5)
    tally.add(maps, thresholds, np.arange(6))
    masks = unit_mask(maps, thresholds, (9, 14))
    assert (masks == (upsample(maps, (9, 14)) > thresholds[:, None, None])).all()
    assert (masks.sum(axis=(2, 3)) == tally.intersection[:6, :, 0]).all()


def test_token_maps__lay_tokens_on_their_grid():
    maps = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).astype(np.float32)
    tokens = np.concatenate([np.full((2, 1, 3), -1.0), maps.reshape(2, 3, 20).transpose(0, 2, 1)], axis=1)
    assert (token_maps(tokens, (4, 5)) == maps).all()
    assert (token_maps(tokens, (4, 5), skip_first=1) == maps).all()
    for bad in ({"grid": (5, 5)}, {"grid": (4, 5), "skip_first": 2}):
        with pytest.raises(SchemaError, match="are needed"):
            token_maps(tokens, **bad)
