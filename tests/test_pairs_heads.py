"""What each head writes, from the definition; and the texts that span it."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from pairs_cases import long_way, random_maps, random_pool

from neurolens.errors import SchemaError
from neurolens.pairs import factors, head_components, head_contributions, image_embeddings, scalars
from neurolens.sparse_codes import text_span


@pytest.fixture(scope="module")
def measured():
    pool = random_pool(units=12, heads=3, head_dim=4, features=9)
    maps = random_maps(pool, images=20)
    return pool, maps, scalars(pool, maps)["scalar"], factors(pool)


def test_head_contributions__are_those_of_its_pairs_added_up(measured):
    pool, maps, scalar, fixed = measured
    found = head_contributions(scalar, fixed)
    assert found.dims == ("sample", "head", "feature")
    np.testing.assert_allclose(found, long_way(pool, maps).sum(axis=2), atol=1e-9)
    np.testing.assert_allclose(found.sum("head"), image_embeddings(pool, maps), atol=1e-9)


@pytest.mark.parametrize("chunks", [{"sample": 7}, {"head": 1, "unit": 5}, {"sample": 3, "head": 2}])
def test_head_contributions__is_lazy_and_blind_to_chunks(measured, chunks):
    _, _, scalar, fixed = measured
    found = head_contributions(scalar.chunk(chunks), fixed.chunk(-1))
    assert isinstance(found.data, da.Array)
    xr.testing.assert_allclose(found.compute(), head_contributions(scalar, fixed))


def test_head_contributions__of_some_pairs_are_theirs(measured):
    pool, maps, scalar, fixed = measured
    chosen = {"unit": [1, 4, 5], "head": [2]}
    found = head_contributions(scalar.isel(chosen), fixed.isel(chosen))
    np.testing.assert_allclose(found[:, 0], long_way(pool, maps)[:, 2, [1, 4, 5]].sum(axis=1), atol=1e-9)
    with pytest.raises(SchemaError, match="select the same pairs in both"):
        head_contributions(scalar.isel(chosen), fixed)


def test_text_span__of_a_head_finds_the_phrases_along_which_it_writes(measured):
    _, _, scalar, fixed = measured
    outputs, basis = head_contributions(scalar, fixed).isel(head=1), fixed["output"].isel(head=1)
    along = head_components(scalar, fixed, k=4)["direction"].isel(head=1).to_numpy()
    other = np.linalg.svd(basis.to_numpy(), full_matrices=True)[0][:, 4:].T  # nothing that the head can write
    phrases = xr.DataArray(np.concatenate([other, along[[2, 0, 1]]]), dims=("phrase", "feature"))
    found = text_span(outputs, phrases, atoms=3, basis=basis)
    assert found["index"].values.tolist() == [len(other) + 1, len(other) + 2, len(other)]
    share = head_components(scalar, fixed, k=4)["share"].isel(head=1).to_numpy()[:3]
    np.testing.assert_allclose(found["explained"], np.cumsum(share), rtol=1e-5)
