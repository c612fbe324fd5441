"""Components of units and heads, and embeddings from a few directions."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs_cases import long_way, random_maps, random_pool

from neurolens.errors import NonFiniteError, SchemaError
from neurolens.pairs import (
    directions,
    factors,
    head_components,
    pair_vectors,
    reconstruct,
    scalars,
    unit_components,
)


def measured(images=12, seed=0, **options):
    pool = random_pool(seed=seed, **options)
    maps = random_maps(pool, images, seed + 1)
    found = scalars(pool, maps)
    return found["scalar"], factors(pool), long_way(pool, maps), found["embedding"]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 4), st.integers(1, 6))
def test_components__are_singular_vectors_of_whole_arrays(seed, heads, head_dim, features):
    scalar, fixed, r, _ = measured(seed=seed, units=5, heads=heads, head_dim=head_dim, features=features)
    for found, dim, arrays in (
        (unit_components(scalar, fixed, k=heads), "unit", r.sum(axis=1).transpose(1, 0, 2)),
        (head_components(scalar, fixed, k=head_dim), "head", r.sum(axis=2).transpose(1, 0, 2)),
    ):
        for i, array in enumerate(arrays):
            _, values, vectors = np.linalg.svd(array - array.mean(axis=0), full_matrices=False)
            ours = found.isel({dim: i})
            k = min(len(values), ours.sizes["component"])
            np.testing.assert_allclose(ours["singular_value"][:k], values[:k], atol=1e-6 * values[0])
            np.testing.assert_allclose(ours["share"][:k], (values**2)[:k] / (values**2).sum(), atol=1e-6)
            for j in np.flatnonzero(values[:k] > 1e-3 * values[0]):
                gaps = np.abs(np.delete(values, j) - values[j])
                if len(gaps) and gaps.min() < 1e-2 * values[0]:
                    continue  # near equal ones mix
                assert abs(float(ours["direction"][j].to_numpy() @ vectors[j])) == pytest.approx(1, abs=1e-5)
                assert float(ours["direction"][j].max()) == pytest.approx(abs(ours["direction"][j]).max().item())


def test_unit_components__of_one_head_is_the_direction_of_the_pair():
    scalar, fixed, _, _ = measured(heads=1)
    found = unit_components(scalar, fixed, k=1)
    wanted = directions(fixed)["direction"].isel(head=0)
    cosine = (found["direction"].isel(component=0) * wanted).sum("feature")
    np.testing.assert_allclose(abs(cosine), 1, atol=1e-6)
    np.testing.assert_allclose(found["share"], 1)


def test_components__of_dead_units_are_none():
    scalar, fixed, _, _ = measured(heads=2)
    scalar = scalar.copy()
    scalar[:, 3] = 0.1  # whose mean is rounded
    fixed = fixed.copy(deep=True)
    fixed["value"][1, :, 4] = 0  # one head is left
    found = unit_components(scalar, fixed, k=2)
    assert found["direction"][3].isnull().all()
    assert (found["singular_value"][3] == 0).all()
    assert found["share"][3].isnull().all()
    assert found["direction"][4, 1].isnull().all()
    assert found["share"][4].to_numpy().tolist() == [1, 0]
    assert reconstruct(scalar, fixed, found["direction"]).notnull().all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_reconstruct__is_projection_of_whole_arrays(seed):
    scalar, fixed, r, _ = measured(seed=seed, heads=3)
    mean, rng = r.mean(axis=0), np.random.default_rng(seed)

    def drawn(*dims):
        sizes = {"unit": 8, "head": 3, "component": 2, "feature": 5}
        values = rng.normal(size=[sizes[d] for d in dims])
        if "component" in dims:
            values = np.linalg.qr(np.swapaxes(values, -1, -2))[0].swapaxes(-1, -2)
        return xr.DataArray(values, dims=dims)

    for dims, sums in (
        (("unit", "head", "feature"), ()),
        (("unit", "component", "feature"), (1,)),
        (("head", "component", "feature"), (2,)),
    ):
        given_ = drawn(*dims)
        found = reconstruct(scalar, fixed, given_ * 3)  # the length has no say
        p = given_ / np.sqrt((given_**2).sum("feature"))
        p = p.expand_dims("component") if "component" not in p.dims else p
        centred = xr.DataArray(r - mean, dims=("sample", "head", "unit", "feature"))
        if sums:
            centred = centred.sum("head" if sums == (1,) else "unit")
        told = xr.dot(xr.dot(centred, p, dim="feature"), p, dim=[d for d in p.dims if d != "feature"])
        np.testing.assert_allclose(found, told + mean.sum(axis=(0, 1)), atol=1e-8)


def test_reconstruct__of_the_pairs_own_directions_is_the_embedding():
    scalar, fixed, _, embedding = measured()
    own = directions(fixed)["direction"]
    np.testing.assert_allclose(reconstruct(scalar, fixed, own), embedding, atol=1e-10)
    np.testing.assert_allclose(reconstruct(scalar, fixed, -own), embedding, atol=1e-10)
    single = measured(dtype=np.float32)
    own = directions(single[1])["direction"]
    np.testing.assert_allclose(reconstruct(single[0], single[1], own), single[3], rtol=1e-4, atol=1e-4)


def test_reconstruct__comes_nearer_with_every_component():
    scalar, fixed, _, embedding = measured(images=40, units=10, heads=4, features=12)
    errors = []
    for k in (1, 2, 4):
        found = reconstruct(scalar, fixed, unit_components(scalar, fixed, k=k)["direction"])
        errors.append(float(((found - embedding) ** 2).mean()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-10
    found = reconstruct(scalar, fixed, head_components(scalar, fixed, k=3)["direction"])
    np.testing.assert_allclose(found, embedding, atol=1e-5)


def test_reconstruct__takes_lazy_scalars_and_other_means():
    scalar, fixed, _, _ = measured()
    scalar = scalar.assign_coords(sample=np.arange(12) * 2)
    components = unit_components(scalar, fixed, k=1)["direction"]
    wanted = reconstruct(scalar, fixed, components)
    xr.testing.assert_allclose(reconstruct(scalar.chunk({"unit": 3}), fixed, components), wanted)
    few = reconstruct(scalar[:4], fixed, components, mean=scalar.mean("sample"))
    xr.testing.assert_allclose(few, wanted[:4])


def test_components__say_what_is_wrong():
    scalar, fixed, _, _ = measured()
    u = pair_vectors(fixed).compute()
    both = xr.DataArray(np.ones((8, 2, 5)), dims=("unit", "component", "feature"))
    for call, message in (
        (lambda: unit_components(scalar, fixed, k=3), "k=3, and there are 2 heads"),
        (lambda: head_components(scalar, fixed, k=0), "k=0, and there are 3 dims of a head"),
        (lambda: reconstruct(scalar, fixed, directions(fixed)), "found Dataset"),
        (lambda: reconstruct(scalar, fixed, u.isel(unit=0, head=0)), "'unit', 'head' or both"),
        (lambda: reconstruct(scalar, fixed, u.isel(unit=slice(3))), "3 along 'unit', and 8"),
        (lambda: reconstruct(scalar, fixed, u.isel(feature=slice(3))), "3 along 'feature', and 5"),
        (lambda: reconstruct(scalar, fixed, both), "cosine of 1.00, and right angles"),
        (lambda: reconstruct(scalar.assign_coords(head=[0, 1]), fixed, u.assign_coords(head=[1, 0])), "along 'head'"),
    ):
        with pytest.raises(SchemaError, match=message):
            call()
    assert reconstruct(scalar, fixed, both, orthonormal=False).notnull().all()


def test_components__refuse_what_is_not_finite():
    scalar, fixed, _, _ = measured()
    scalar = scalar.copy()
    scalar[1, 2, 0] = np.nan
    for components in (unit_components, head_components):
        with pytest.raises(NonFiniteError, match="not measured"):
            components(scalar, fixed, k=1)
