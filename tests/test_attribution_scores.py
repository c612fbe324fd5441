"""Sparsity, concentration and order of the entries of maps."""

import subprocess
import sys
from fractions import Fraction
from itertools import combinations_with_replacement

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from neurolens.attribution import entropy, gini, patch_table, ranking, sparsity
from neurolens.attribution.scores import count_of
from neurolens.errors import SchemaError


def vector(values):
    return xr.DataArray(np.asarray(values, dtype=float), dims="input")


def picture(values):
    values = np.asarray(values, dtype=float)
    return xr.DataArray(values, dims=("channel", "y", "x")[-values.ndim :])


def maps(seed=0):
    values = np.random.default_rng(seed).normal(size=(2, 3, 3, 9, 7)).astype("float32")
    return xr.DataArray(values, dims=("sample", "map", "channel", "y", "x"), coords={"map": list("abc")})


CHANNELS = [[[9, 0], [0, 0]], [[0, 1], [0, 0]], [[-1, 0], [0, 1]]]


@pytest.mark.parametrize(
    ("values", "golden"),
    [
        ([4, 3, 2, 1], 0.25),
        ([-4, 3, -2, 1], 0.25),
        ([0.3] * 10, 0.1),
        ([1 / 3] * 196, 0.0969387755),
        (np.eye(196)[7], 0.9948979592),
        ([7, 2, 1], 1 / 3),
        (np.array([7.0, 2, 1]) * 0.1, 1 / 3),  # the naive rule needs a third entry: 0.7 + 0.2 < 0.9
    ],
)
def test_sparsity__golden(values, golden):
    assert float(sparsity(vector(values))) == pytest.approx(golden, abs=1e-10)


def test_sparsity__of_channels_summed_and_apart():
    assert float(sparsity(picture(CHANNELS))) == 0.5
    assert float(sparsity(picture(CHANNELS), channels="apart")) == 0.75
    assert float(sparsity(picture(CHANNELS), compat="seed")) == 0.75


def test_sparsity__of_a_map_of_zeros_is_missing_and_zero_to_the_reference():
    zeros = xr.zeros_like(maps())
    assert np.isnan(sparsity(zeros)).all()
    assert np.isnan(sparsity(zeros, grid=3)).all()
    assert (sparsity(zeros, compat="seed") == 0).all()
    assert np.isnan(sparsity(vector([1, np.nan, 2])))
    assert np.isnan(gini(zeros)).all()
    assert np.isnan(entropy(zeros)).all()


def test_sparsity__as_the_reference_computes_it():
    found = sparsity(maps(), compat="seed")
    for sample, row in enumerate(maps().to_numpy()):
        for at, one in enumerate(row):
            flat = np.abs(one).flatten()
            held = np.cumsum(np.sort(flat)[::-1])
            assert held.dtype == np.float32
            expected = 1 - (np.searchsorted(held, 0.9 * flat.sum(), side="left") + 1) / len(flat)
            assert found[sample, at] == expected


def exact_sparsity(values, mass):
    ordered = sorted((abs(value) for value in values), reverse=True)
    for k in range(1, len(ordered) + 1):
        if sum(ordered[:k]) >= mass * sum(ordered):
            return 1 - k / len(ordered)
    raise AssertionError


@given(
    st.lists(st.integers(-12, 12), min_size=1, max_size=6).filter(any),
    st.sampled_from([Fraction(9, 10), Fraction(1, 2), Fraction(3, 4), Fraction(1)]),
    st.floats(1e-6, 1e6),
)
def test_sparsity__is_exact_whatever_the_scale(values, mass, scale):
    expected = exact_sparsity(values, mass)
    assert float(sparsity(vector(values) * scale, mass=float(mass))) == pytest.approx(expected, abs=1e-12)


def test_sparsity__is_right_in_all_cases_that_the_naive_rule_gets_wrong():
    wrong = 0
    for size in (3, 4, 5):
        for values in combinations_with_replacement(range(12, 0, -1), size):
            scaled = np.array(values, dtype=float) * 0.1
            naive = 1 - (np.searchsorted(np.cumsum(scaled), 0.9 * scaled.sum()) + 1) / size
            exact = exact_sparsity(values, Fraction(9, 10))
            if naive != pytest.approx(exact):
                wrong += 1
                assert float(sparsity(vector(scaled))) == pytest.approx(exact, abs=1e-12)
    assert wrong > 50


def test_patch_table__golden():
    square = picture(np.arange(16).reshape(4, 4))
    table = patch_table(square, grid=2)
    assert table.dims == ("patch_y", "patch_x")
    np.testing.assert_array_equal(table, [[10, 18], [42, 50]])
    assert float(sparsity(square, grid=2)) == float(sparsity(table)) == 0.25
    assert int(ranking(table)[0]) == 3


def test_patch_table__leaves_out_what_is_over():
    table = patch_table(maps(), grid=2)  # of 9 × 7 pixels: cells of 4 × 3
    assert table.dims == ("sample", "map", "patch_y", "patch_x")
    values = np.abs(maps().to_numpy().astype(float))
    for row in range(2):
        for column in range(2):
            cell = values[..., row * 4 : row * 4 + 4, column * 3 : column * 3 + 3].sum((2, 3, 4))
            np.testing.assert_allclose(table[..., row, column], cell, rtol=1e-12)
    reduced = abs(maps()).sum("channel", dtype=float).astype("float16")
    assert patch_table(reduced, grid=2).dtype == np.float64


def test_patch_table__does_not_ask_how_maps_are_laid_out():
    table = patch_table(maps(), grid=3)
    turned = xr.DataArray(np.asfortranarray(maps().to_numpy()), maps().coords, maps().dims)
    xr.testing.assert_allclose(patch_table(turned, grid=3), table)
    turned = patch_table(maps().transpose("x", "map", "channel", "y", ...), grid=3)
    xr.testing.assert_allclose(turned.transpose(*table.dims), table)
    assert patch_table(maps().transpose("y", "sample", ...), grid=3).dims[-2:] == ("patch_y", "patch_x")
    assert list(table.coords) == ["map"]


def test_patch_table__of_a_pixel_that_is_missing():
    some = maps()
    some[0, 1, 2, 4, 0] = np.nan
    found = patch_table(some, grid=3)
    assert np.isnan(found[0, 1, 1, 0])
    assert int(np.isnan(found).sum()) == 1


def test_ranking__puts_the_first_of_equal_entries_first():
    np.testing.assert_array_equal(ranking(vector([1, -3, 3, 0, 1, 3])), [1, 2, 5, 0, 4, 3])
    np.testing.assert_array_equal(ranking(vector(np.ones(500))), np.arange(500))


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.floats(1e-6, 1e6))
def test_ranking__does_not_change_with_the_scale(values, scale):
    found = ranking(vector(values) * scale).to_numpy()
    slow = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    np.testing.assert_array_equal(found, slow)


@given(st.integers(0, 2**32 - 1), st.integers(-20, 20))
def test_ranking__of_patches_does_not_change_with_a_power_of_two(seed, power):
    one = maps(seed)
    xr.testing.assert_equal(ranking(one, grid=3), ranking(one * np.float32(2.0**power), grid=3))
    xr.testing.assert_equal(sparsity(one, grid=3), sparsity(one * np.float32(2.0**power), grid=3))


def test_gini_and_entropy__golden():
    assert float(gini(vector([4, 3, 2, 1]))) == pytest.approx(0.25)
    assert float(gini(vector([-1, 2, 4, 3]))) == pytest.approx(0.25)
    assert float(gini(vector(np.eye(5)[2]))) == pytest.approx(0.8)
    assert float(entropy(vector([0.4, 0.3, 0.2, 0.1]))) == pytest.approx(1.2798542258, abs=1e-10)
    assert float(entropy(vector(np.eye(5)[2]))) == 0
    assert float(entropy(vector(-np.ones(5)))) == pytest.approx(np.log(5))


@pytest.mark.parametrize(
    ("size", "count"), [(196, 20), (50_176, 5018), (25, 2), (15, 2), (4, 1)], ids=lambda value: str(value)
)
def test_count_of__golden(size, count):
    assert count_of(0.1, size) == count


@pytest.mark.parametrize("chunks", [{"sample": 1}, {"y": 2, "x": 3}, {"map": 2, "channel": 1}])
@pytest.mark.parametrize("score", [sparsity, gini, entropy, ranking])
@pytest.mark.parametrize("grid", [None, 3])
def test_scores__are_lazy_and_blind_to_chunks(score, grid, chunks):
    found = score(maps().chunk(chunks), grid=grid)
    assert found.chunks is not None
    xr.testing.assert_allclose(found.compute(), score(maps(), grid=grid))


@pytest.mark.parametrize("chunks", [{"sample": 1}, {"y": 2, "x": 3}, {"map": 2, "channel": 1}])
def test_patch_table__is_lazy_and_blind_to_chunks(chunks):
    table = patch_table(maps().chunk(chunks), grid=3)
    assert table.chunks is not None
    xr.testing.assert_allclose(table.compute(), patch_table(maps(), grid=3))


def test_scores__say_what_is_wrong():
    with pytest.raises(SchemaError, match="name the dims of the maps"):
        sparsity(xr.DataArray(np.ones(3), dims="pixel"))
    with pytest.raises(SchemaError, match=r"found a Dataset.*to_dataarray\('attribution'\)"):
        sparsity(maps().to_dataset(name="saliency"))  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="did you mean 'summed'"):
        gini(maps(), channels="sumed")  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="known: 'seed'"):
        sparsity(maps(), compat="2025")  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match=r"9 × 7 pixels.*lower grid"):
        patch_table(maps())
    with pytest.raises(SchemaError, match="grid=0 is no number of patches"):
        patch_table(maps(), grid=0)
    with pytest.raises(SchemaError, match="table of 3 × 3 patches, and grid=2"):
        ranking(patch_table(maps(), grid=3), grid=2)
    with pytest.raises(SchemaError, match="grid=2 needs pictures"):
        entropy(vector([1, 2]), grid=2)
    with pytest.raises(SchemaError, match="mass=90 is no share"):
        sparsity(maps(), mass=90)
    with pytest.raises(SchemaError, match="share=0 is no share of 9 entries"):
        count_of(0, 9)


def test_scores__need_no_torch():
    code = "import sys; from neurolens.attribution import patch_table, sparsity; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
