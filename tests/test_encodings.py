"""What is stored of activations: rounding, ranges, and how chunks and blocks are cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numcodecs import BitRound

from neurolens import schema
from neurolens.errors import SchemaError
from neurolens.store.encodings import encoded, rounded
from neurolens.store.shapes import block_sizes, chunk_shape, evenly, sample_chunk


@given(arrays(np.uint32, st.integers(0, 40)))
@settings(max_examples=200, deadline=None)
def test_rounded__equals_numcodecs_and_keeps_every_nan(bits):
    values = bits.view(np.float32)
    found = rounded(values)
    nan = np.isnan(values)
    assert np.isnan(found[nan]).all()
    theirs = np.asarray(BitRound(10).encode(values)).view(np.float32)
    np.testing.assert_array_equal(found[~nan], theirs[~nan])


def test_rounded__keeps_the_nan_that_cuda_computes():
    values = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
    assert np.isnan(rounded(values)).all()


def test_rounded__leaves_what_it_is_given_alone_and_takes_any_strides():
    values = np.arange(2**17, dtype="f4").reshape(2, -1)[:, ::3] / 7
    before = values.copy()
    np.testing.assert_array_equal(rounded(values), rounded(before))
    np.testing.assert_array_equal(values, before)


def test_encoded__to_float16_flushes_and_saturates_as_ieee_says():
    found = encoded(np.array([6e-8, 2e-8, 65519], "f4"), np.dtype("f2"), "float16", "activation")
    np.testing.assert_array_equal(found, np.array([5.9604645e-08, 0, 65504], "f2"))
    kept = encoded(np.array([np.inf, np.nan], "f4"), np.dtype("f2"), "float16", "activation")
    assert np.isinf(kept[0])
    assert np.isnan(kept[1])
    with pytest.raises(SchemaError, match=r"'activation' has values beyond the range of float16"):
        encoded(np.array([65520], "f4"), np.dtype("f2"), "float16", "activation")


@given(st.integers(1, 10**6), st.integers(1, 10**5))
def test_evenly__covers_with_less_than_one_piece_of_excess(size, limit):
    length = evenly(size, limit)
    pieces = -(-size // length)
    assert 1 <= length <= limit
    assert pieces == -(-size // limit), "no more pieces than need be"
    assert length * pieces - size < pieces


@given(added=st.integers(1, 5000), start=st.integers(0, 5000), chunk=st.integers(1, 700), most=st.integers(1, 900))
def test_block_sizes__are_of_at_most_n_and_end_where_chunks_do(added, start, chunk, most):
    sizes = block_sizes(added, start=start, chunk=chunk, most=most)
    assert sum(sizes) == added
    assert min(sizes) > 0
    assert max(sizes) <= most
    ends = start + np.cumsum(sizes)[:-1]
    if most >= chunk + -start % chunk:
        assert (ends % chunk == 0).all()


@pytest.mark.parametrize(
    ("samples", "block", "expected"),
    [(100, None, 256), (1797, None, 1797), (50_000, None, 2000), (50_000, 300, 300), (2100, None, 1050), (40, 10, 10)],
)
def test_sample_chunk__of_activations_is_even_and_within_a_block(samples, block, expected):
    assert sample_chunk(samples, ("series", "sample", "unit"), block) == expected


def test_sample_chunk__of_numbers_has_a_floor():
    assert [sample_chunk(n, ("series", "sample"), None) for n in (1, 5000, 2**21)] == [4096, 5000, 2**20]


@pytest.mark.parametrize(
    ("samples", "units", "itemsize", "block"),
    [(50_000, 3904, 2, None), (50_000, 12_288, 4, 10_000), (1000, 2_308_096, 2, 56), (3000, 5, 2, None)],
)
def test_chunk_shape__of_activations_is_at_most_4_mb_and_not_much_less(samples, units, itemsize, block):
    (variable,) = schema.ACTIVATIONS.variables
    together = sample_chunk(samples, variable.dims, block)
    shape = chunk_shape(variable, itemsize, {"sample": samples, "unit": units}, together)
    assert shape[:2] == (1, together)
    size = np.prod(shape) * itemsize
    assert size <= 2**22
    assert shape[2] == units or size >= 2**21


@pytest.mark.parametrize(
    ("name", "sizes", "expected"),
    [
        ("mean", {"unit": 12_288}, (1, 12_288)),
        ("mean", {"unit": 2_308_096}, (1, 461_620)),
        ("histogram", {"unit": 12_288, "bin": 256}, (1, 4096, 256)),
        ("class_sum", {"class": 1000, "unit": 12_288}, (1, 1000, 512)),
        ("position_n_pos", {"unit": 12_288, "position": 2048}, (1, 256, 2048)),
        ("position_n", {"position": 2048}, (1, 2048)),
    ],
)
def test_chunk_shape__of_units_cuts_along_units_alone(name, sizes, expected):
    variable = next(v for v in schema.UNITS.variables if v.name == name)
    assert chunk_shape(variable, np.dtype(variable.dtype).itemsize, sizes, 1) == expected


def test_compressors__make_little_of_what_is_nan_nearly_everywhere(tmp_path):
    from neurolens.store import Axis, open_store

    values = np.full((2000, 100), np.nan)
    values[7] = np.linspace(-1, 1, 100)
    store = open_store(tmp_path / "run", create=True)
    axes = {"unit": Axis(np.arange(2000)), "class": Axis(np.arange(100))}
    cube = schema.EFFECTS
    small = {v.name: np.zeros(100) for v in cube.part("ablation").variables if "unit" not in v.dims}
    wide = {v.name: values for v in cube.part("ablation").variables if "unit" in v.dims}
    settings_ = {"data": "none", "model": {}, "parts": {"ablation": {"version": 1}}}
    encodings = dict.fromkeys(wide, "float64-zstd")
    common = {"run": "r", "series": "epoch", "settings": settings_, "axes": axes, "fingerprint": "f", "positions": [0]}
    store.prepare(cube, encodings=encodings, **common)
    store.write_row(
        cube, (0, 0), positions={"epoch": 0}, values=small | wide, keys={"ablation": "0" * 64}, seconds=1, provenance={}
    )
    written = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert written < values.nbytes / 10
    opened = store_opened(tmp_path / "run")
    np.testing.assert_array_equal(opened["ablated_logit"].values[0], values)


def store_opened(url):
    import neurolens

    return neurolens.open_run(url)["effects"].ds
