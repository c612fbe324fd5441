"""The pool's matrices, and the scalar of every pair."""

import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs_cases import golden_maps, golden_pool, long_way, random_maps, random_pool

from neurolens.errors import ModelMismatchError, NonFiniteError, SchemaError
from neurolens.pairs import Pool, factors, image_embeddings, resampled, scalars


def test_scalars__of_the_golden_pool():
    found = scalars(golden_pool(), golden_maps([0]))
    np.testing.assert_allclose(found["attention"][0], [[0.5, 0.5], [0.25, 0.75]])
    np.testing.assert_allclose(found["scalar"][0].transpose("head", "unit"), [[2.5, 2.5], [2.75, 2.25]])
    np.testing.assert_allclose(found["embedding"], [[25, 14.25]])
    assert found["scalar"].dtype == np.float64
    assert float(found["completeness"][0]) < 1e-15


def test_scalars__of_four_golden_images():
    found = scalars(golden_pool(), golden_maps())
    s = found["scalar"].transpose("sample", "head", "unit")
    np.testing.assert_allclose(s[1], [[0.5, 0.5], [0.75, 0.25]])
    np.testing.assert_allclose(s[2], [[4.5, 4.5], [4.75, 4.25]])
    np.testing.assert_allclose(s[3], s[2])
    np.testing.assert_allclose(found["embedding"], [[25, 14.25], [7, 8.25], [43, 20.25], [43, 20.25]])
    np.testing.assert_allclose(s.mean("sample"), [[3, 3], [3.25, 2.75]])


def contributions(pool, found):
    """r (image, head, unit, feature) from scalars and factors."""
    fixed = factors(pool)
    u = np.einsum("hdc,ohd->hco", fixed["value"], fixed["output"])
    s = found["scalar"].transpose("sample", "head", "unit").to_numpy()
    return s[..., None] * u + fixed["constant"].to_numpy()[:, None]


def test_factors__of_the_golden_pool():
    pool = golden_pool()
    fixed = factors(pool)
    np.testing.assert_allclose(fixed["constant"], [[1.5, 2], [-1, 1]])
    u = np.einsum("hdc,ohd->hco", fixed["value"], fixed["output"])
    np.testing.assert_allclose(u, [[[1, 0], [2, 0]], [[6, 3], [0, 0]]])
    found = contributions(pool, scalars(pool, golden_maps([0])))[0]
    np.testing.assert_allclose(found, [[[4, 2], [6.5, 2]], [[15.5, 9.25], [-1, 1]]])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.booleans())
def test_scalars__are_the_long_way(seed, units, heads, head_dim, features, class_token):
    pool = random_pool(units, heads, head_dim, features, seed=seed, class_token=class_token)
    maps = random_maps(pool, images=3, seed=seed)
    found = scalars(pool, maps, split=True, batch=2)
    wanted = long_way(pool, maps)
    np.testing.assert_allclose(contributions(pool, found), wanted, atol=1e-10)
    np.testing.assert_allclose(found["embedding"], wanted.sum(axis=(1, 2)), atol=1e-10)
    np.testing.assert_allclose(image_embeddings(pool, maps), wanted.sum(axis=(1, 2)), atol=1e-10)
    np.testing.assert_allclose(found["patch"] + found["mean_token"] + found["positional"], found["scalar"], atol=1e-12)
    assert (found["completeness"] < 1e-8).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(8)), st.permutations(range(4)))
def test_scalars__follow_units_and_heads(seed, units, heads):
    pool = random_pool(units=8, heads=4, seed=seed)
    maps = random_maps(pool)
    rows = np.arange(12).reshape(4, 3)[list(heads)].reshape(-1)
    units = list(units)
    turned = replace(
        pool,
        **{name: getattr(pool, name)[rows][:, units] for name in ("W_q", "W_k", "W_v")},
        **{name: getattr(pool, name)[rows] for name in ("b_q", "b_k", "b_v")},
        W_o=pool.W_o[:, rows],
        positions=pool.positions[:, units],
    )
    found, wanted = scalars(turned, maps[:, units]), scalars(pool, maps)
    np.testing.assert_allclose(found["embedding"], wanted["embedding"], atol=1e-12)
    xr.testing.assert_allclose(found["scalar"], wanted["scalar"].isel(unit=units, head=list(heads)))


def test_scalars__in_float32_and_float16_are_near():
    pool, exact = random_pool(64, 4, 8, 16, dtype=np.float32), random_pool(64, 4, 8, 16)
    maps = random_maps(exact)
    found = scalars(pool, maps.astype(np.float32))
    wanted = scalars(exact, maps)["scalar"]
    assert found["scalar"].dtype == np.float32
    assert (found["completeness"] < 1e-6).all()
    np.testing.assert_allclose(found["scalar"], wanted, rtol=1e-4, atol=1e-4)
    half = scalars(pool, maps.astype(np.float32), dtype="float16")
    assert half["scalar"].dtype == np.float16
    np.testing.assert_allclose(half["scalar"], found["scalar"], rtol=5e-4, atol=1e-6)
    xr.testing.assert_identical(half["completeness"], found["completeness"])


def test_scalars__are_blind_to_batches_and_keep_samples():
    pool = random_pool()
    maps = xr.DataArray(random_maps(pool), dims=("sample", "unit", "y", "x"), coords={"sample": list("abcdefg")})
    one = scalars(pool, maps, batch=1)
    xr.testing.assert_allclose(one, scalars(pool, maps, batch=5))
    assert one["sample"].to_numpy().tolist() == list("abcdefg")
    assert one["attention"].sum("token").to_numpy() == pytest.approx(1)
    layout = one["scalar"].transpose("sample", "head", "unit").to_numpy()
    assert layout.flags.c_contiguous


@pytest.mark.parametrize("split", [False, True])
def test_scalars__keep_to_their_memory(split):
    pool = random_pool(512, 8, 64, 32, grid=(7, 7), dtype=np.float32)
    maps = random_maps(pool, 64)
    options = {"embedding": image_embeddings(pool, maps), "split": split, "batch": 16}
    scalars(pool, maps, **options)
    tracemalloc.start()
    try:
        found = scalars(pool, maps, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    held = 2 * 50 + 4 * 8 + (50 + 3 * 8 if split else 0)
    assert peak - sum(v.nbytes for v in found.values()) < 4 * 16 * 512 * held


def test_scalars__are_checked_where_asked():
    pool = random_pool()
    maps = random_maps(pool)
    found = scalars(pool, maps, check_every=3, batch=2)["completeness"]
    assert np.isfinite(found).to_numpy().tolist() == [True, False, False, True, False, False, True]
    assert scalars(pool, maps, embedding=image_embeddings(pool, maps), check_every=3)["completeness"].notnull().all()


def test_scalars__that_do_not_add_up_are_refused():
    pool = random_pool()
    maps = random_maps(pool)
    right = image_embeddings(pool, maps)
    wrong = right.copy()
    wrong[4] *= 1.001
    with pytest.raises(
        ModelMismatchError, match=r"image 4 add up to something else.* 1\.0e-03 of it.*this is|whose pool"
    ):
        scalars(pool, maps, embedding=wrong, batch=3)
    unit = right / np.linalg.norm(right, axis=1, keepdims=True)
    with pytest.raises(ModelMismatchError, match="before they are normalised"):
        scalars(pool, maps, embedding=unit)
    with pytest.raises(NonFiniteError, match="embeddings"):
        scalars(pool, maps, embedding=right * np.nan)


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (np.zeros((2, 8, 2)), {}, r"maps of float64 and shape \(2, 8, 2\).*\(sample, 8, 2, 3\)"),
        (np.zeros((2, 7, 2, 3)), {}, r"\(2, 7, 2, 3\)"),
        (np.zeros((2, 8, 3, 3)), {}, r"maps of 3 by 3.*2 by 3; pass resampled\(pool, \(3, 3\)\)"),
        (np.zeros((2, 8, 2, 3)), {"embedding": np.zeros((2, 4))}, r"shape \(2, 4\), and \(2, 5\)"),
        (np.zeros((2, 8, 2, 3)), {"dtype": "int8"}, "dtype='int8'"),
        (np.zeros((2, 8, 2, 3)), {"batch": 0}, "batch=0"),
        (np.zeros((2, 8, 2, 3)), {"check_every": 0}, "check_every=0"),
        (np.zeros((2, 8, 2, 3)), {"tolerance": 2.0}, "tolerance=2"),
    ],
)
def test_scalars__say_what_does_not_fit(maps, options, message):
    with pytest.raises(SchemaError, match=message):
        scalars(random_pool(), maps, **options)


def test_scalars__refuse_what_is_not_finite():
    pool = random_pool()
    maps = random_maps(pool)
    maps[5, 2, 1, 1] = np.inf
    with pytest.raises(NonFiniteError, match="image 5"):
        scalars(pool, maps, batch=2)
    with pytest.raises(NonFiniteError, match="65504"):
        scalars(pool, random_maps(pool) * 1e6, dtype="float16")


def test_resampled__is_torchs_bilinear_interpolation():
    pool = random_pool(grid=(3, 4))
    for grid in ((5, 7), (2, 2), (3, 9), (1, 1)):
        found = resampled(pool, grid)
        patches = torch.from_numpy(pool.positions[1:].copy()).T.reshape(1, pool.units, 3, 4)
        wanted = torch.nn.functional.interpolate(patches, grid, mode="bilinear", align_corners=False)
        np.testing.assert_allclose(found.positions[1:], wanted[0].flatten(1).T.numpy(), atol=1e-12)
        np.testing.assert_array_equal(found.positions[0], pool.positions[0])
        assert found.grid == grid
        assert (scalars(found, np.ones((1, pool.units, *grid)))["completeness"] < 1e-10).all()
    assert resampled(pool, (3, 4)) is pool
    with pytest.raises(SchemaError, match="0 by 4"):
        resampled(pool, (0, 4))


def test_pool__is_checked():
    given_ = {f.name: getattr(random_pool(), f.name) for f in fields(Pool)}
    assert not random_pool().W_q.flags.writeable
    assert random_pool(dtype=np.float32).dtype == np.float32
    shown = "<Pool of 8 units, 2 heads of 3 dims, 5 features, 2 by 3 patches, a class token, float64>"
    assert repr(random_pool(class_token=True)) == shown
    for change, message in (
        ({"W_o": given_["W_o"].T}, r"W_o has shape \(6, 5\).*transposed"),
        ({"b_v": np.zeros(3)}, r"b_v has shape \(3,\), and \(6,\)"),
        ({"heads": 4}, "4 heads do not divide the 6 rows"),
        ({"heads": 0}, "0 heads"),
        ({"grid": (2, 2)}, "7 rows.*2 by 2"),
        ({"grid": (0, 0)}, "6 patches, which are no grid of 2 by 2; give grid="),
        ({"positions": given_["positions"][:1]}, "no row for a patch"),
        ({"class_token": np.zeros(2)}, "class_token"),
        ({"W_k": given_["W_k"] + 0j}, "complex"),
        ({"W_q": np.zeros(3)}, "a matrix was needed"),
    ):
        with pytest.raises(SchemaError, match=message):
            Pool(**(given_ | change))
    with pytest.raises(NonFiniteError, match="b_k"):
        Pool(**(given_ | {"b_k": given_["b_k"] * np.nan}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scalars__take_tensors(dtype):
    pool = random_pool(dtype=np.float32)
    maps = torch.from_numpy(random_maps(pool)).to(dtype).requires_grad_()
    found = scalars(pool, maps)
    xr.testing.assert_identical(found, scalars(pool, maps.detach().float().numpy()))
    assert found["scalar"].dtype == np.float32
    fields_ = {f.name: getattr(pool, f.name) for f in fields(Pool)} | {"W_o": torch.from_numpy(pool.W_o.copy())}
    np.testing.assert_array_equal(Pool(**fields_).W_o, pool.W_o)
