"""Scores of segmentations against counts by hand."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.errors import SchemaError
from neurolens.pairs import confusion, segmentation_scores

TRUTH = np.array([[0, 0, 1, 1], [0, 2, 1, 255], [2, 2, 1, 0]])
PREDICTION = np.array([[0, 1, 1, 1], [0, 2, 1, 1], [2, 0, 1, 0]])


def test_segmentation_scores__are_the_golden_ones():
    scores = segmentation_scores(confusion(PREDICTION, TRUTH, classes=3))
    np.testing.assert_allclose(scores["iou"], [3 / 5, 4 / 5, 2 / 3])
    np.testing.assert_allclose(scores["miou"], 0.6888889, atol=1e-7)
    np.testing.assert_allclose(scores["aacc"], 0.8181818, atol=1e-7)
    np.testing.assert_allclose(scores["macc"], 0.8055556, atol=1e-7)


def test_confusion__reads_labels_from_1_on_where_0_is_none():
    labels = np.where(TRUTH == 255, 0, TRUTH + 1).astype(np.uint16)
    found = confusion(PREDICTION, labels, classes=3, reduce_zero_label=True)
    xr.testing.assert_identical(found, confusion(PREDICTION, TRUTH, classes=3))
    ignored = np.where(TRUTH == 255, 255, TRUTH + 1).astype(np.uint8)
    xr.testing.assert_identical(confusion(PREDICTION, ignored, classes=3, reduce_zero_label=True), found)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9))
def test_confusion__counts_as_by_hand_and_adds_up(seed, classes):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes + 1, (3, 5, 4))
    truth[truth == classes] = 255
    prediction = rng.integers(0, classes, truth.shape)
    by_hand = np.zeros((classes, classes), int)
    for true, told in zip(truth.ravel(), prediction.ravel(), strict=True):
        if true != 255:
            by_hand[true, told] += 1
    found = sum(confusion(p, t, classes=classes) for p, t in zip(prediction, truth, strict=True))
    np.testing.assert_array_equal(found, by_hand)
    scores = segmentation_scores(found)
    for c in range(classes):
        valid = truth != 255
        both = ((truth == c) & (prediction == c)).sum()
        either = (valid & ((truth == c) | (prediction == c))).sum()
        np.testing.assert_allclose(scores["iou"][c], both / either if either else np.nan)
    order = rng.permutation(classes)
    moved = segmentation_scores(xr.DataArray(by_hand[np.ix_(order, order)], dims=("truth", "prediction")))
    np.testing.assert_allclose(moved["iou"], scores["iou"][order])
    np.testing.assert_allclose(moved["miou"], scores["miou"])


def test_segmentation_scores__leave_out_classes_that_are_not_there():
    scores = segmentation_scores(confusion(PREDICTION, TRUTH, classes=5))
    assert scores["iou"].isnull().to_numpy().tolist() == [False, False, False, True, True]
    np.testing.assert_allclose(scores["miou"], 0.6888889, atol=1e-7)
    only_told = segmentation_scores(confusion(np.array([0, 1]), np.array([0, 0]), classes=2))
    assert only_told["iou"].to_numpy().tolist() == [0.5, 0.0]
    assert np.isnan(only_told["accuracy"][1])
    nothing = segmentation_scores(confusion(PREDICTION, np.full((3, 4), 255), classes=3))
    assert all(np.isnan(nothing[name]) for name in ("miou", "aacc", "macc"))


def test_segmentation_scores__are_lazy_and_take_many_counts():
    counts = xr.concat([confusion(PREDICTION, TRUTH, classes=3)] * 2, "method").assign_coords(truth=list("abc"))
    scores = segmentation_scores(counts.chunk({"truth": 1, "method": 1}))
    assert scores["iou"].chunks is not None
    np.testing.assert_allclose(scores["miou"], [0.6888889] * 2, atol=1e-7)
    assert scores["class"].to_numpy().tolist() == list("abc")


def test_confusion__says_what_does_not_fit():
    with pytest.raises(SchemaError, match="prediction of float64"):
        confusion(PREDICTION / 2, TRUTH, classes=3)
    with pytest.raises(SchemaError, match=r"prediction of \(3, 3\)"):
        confusion(PREDICTION[:, 1:], TRUTH, classes=3)
    with pytest.raises(SchemaError, match="prediction has the number 2"):
        confusion(PREDICTION, np.minimum(TRUTH, 1), classes=2)
    with pytest.raises(SchemaError, match="truth has the number 255"):
        confusion(PREDICTION, TRUTH, classes=3, ignore=7)
    with pytest.raises(SchemaError, match="two or more"):
        confusion(PREDICTION, TRUTH, classes=1)
    with pytest.raises(SchemaError, match="as many along 'truth'"):
        segmentation_scores(xr.DataArray(np.ones((2, 3)), dims=("truth", "prediction")))
