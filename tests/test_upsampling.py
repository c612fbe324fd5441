"""Upsampling: the golden map, Pillow bit for bit, torch, and what no mean can do."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from neurolens.dissection import upsample
from neurolens.errors import SchemaError

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def drawn(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_upsample__gives_the_golden_map():
    expected = [[0, 0.25, 0.75, 1], [0.5, 0.8125, 1.4375, 1.75], [1.5, 1.9375, 2.8125, 3.25], [2, 2.5, 3.5, 4]]
    assert (upsample([[0, 1], [2, 4]], (4, 4)) == np.array(expected)).all()


@pytest.mark.parametrize(("size", "to"), [(7, 112), (6, 113), (13, 113), (14, 112), (27, 113), (56, 112), (112, 112)])
def test_upsample__is_pillows_bit_for_bit(size, to):
    maps = drawn(size, (5, size, size))
    theirs = [np.asarray(Image.fromarray(m).resize((to, to), Image.Resampling.BILINEAR)) for m in maps]
    assert (upsample(maps, (to, to)) == np.stack(theirs)).all()


@settings(deadline=None)
@given(st.integers(0, 99), sizes, st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_upsample__is_torchs_within_rounding_also_where_it_shrinks(seed, size, to):
    maps = drawn(seed, (2, *size))
    theirs = torch.nn.functional.interpolate(torch.from_numpy(maps)[None], to, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(upsample(maps, to), theirs[0].numpy(), atol=2e-5)


@settings(deadline=None)
@given(st.integers(0, 99), sizes, sizes)
def test_upsample__never_leaves_the_range_of_the_map(seed, size, factor):
    maps = drawn(seed, size)
    wide = upsample(maps, (size[0] * factor[0], size[1] * factor[1]))
    assert maps.min() <= wide.min() <= wide.max() <= maps.max()


def test_upsample__says_what_is_wrong():
    for maps, shape in (([1.0, 2.0], (4, 4)), (np.zeros((0, 3)), (4, 4)), (np.zeros((2, 2)), (0, 4))):
        with pytest.raises(SchemaError, match="is needed"):
            upsample(maps, shape)
