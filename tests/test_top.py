"""The images that excite units most: against sorting all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.dissection.top import Top


def slow_top(largest, ranks):
    """Sort all images of each unit: the largest first, then the first."""
    images, units = largest.shape
    value, sample = np.full((units, ranks), np.nan, np.float32), np.full((units, ranks), -1)
    for u in range(units):
        order = sorted(range(images), key=lambda i: (-largest[i, u], i))[:ranks]
        value[u, : len(order)], sample[u, : len(order)] = largest[order, u], order
    return value, sample


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 6), st.integers(1, 9))
def test_top__equals_sorting_all_images_whatever_the_order_and_the_batches(seed, images, batch, ranks):
    rng = np.random.default_rng(seed)
    largest = rng.integers(-2, 3, (images, 4)).astype(np.float32)
    top, order = Top(4, ranks), rng.permutation(images)
    for at in range(0, images, batch):
        part = order[at : at + batch]
        top.add(largest[part], part)
    value, sample = slow_top(largest, ranks)
    found = top.variables()
    np.testing.assert_array_equal(found["top_value"], value)
    assert (found["top_sample"] == sample).all()


def test_top__has_nothing_where_there_are_fewer_images_than_ranks():
    top = Top(2, 3)
    top.add(np.array([[-0.0, 2], [0.0, 5]], np.float32), [4, 9])
    found = top.variables()
    np.testing.assert_array_equal(found["top_value"], np.array([[0, 0, np.nan], [5, 2, np.nan]], np.float32))
    assert found["top_sample"].tolist() == [[4, 9, -1], [9, 4, -1]]
    assert (found["top_value"].dtype, found["top_sample"].dtype) == ("float32", "int32")
    assert not np.signbit(found["top_value"][0, :2]).any()


@pytest.mark.parametrize("images", [[], [3]])
def test_top__of_no_ranks_is_empty(images):
    top = Top(2, 0)
    top.add(np.zeros((len(images), 2), np.float32), images)
    assert {name: values.shape for name, values in top.variables().items()} == {
        "top_value": (2, 0),
        "top_sample": (2, 0),
    }
