"""Images of units, pairs and phrases; whether they are alike; sinks."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from pairs_cases import golden_maps, golden_pool, random_maps, random_pool

from neurolens.errors import NonFiniteError, SchemaError
from neurolens.pairs import (
    factors,
    inertia,
    pair_vectors,
    retrieve,
    scalars,
    sinks,
    strengths,
    text_scores,
    top_images,
    top_pairs,
    without_sink,
)


def test_retrieve__of_the_golden_pool():
    pool = golden_pool()
    scalar, fixed = scalars(pool, golden_maps([0, 1, 2]))["scalar"], factors(pool)
    found = retrieve(scalar, fixed, unit=1, head=0, k=3, kind="norm", bias=True)
    assert found["position"].to_numpy().tolist() == [2, 0, 1]
    np.testing.assert_allclose(found["strength"], [10.6887791632, 6.8007352544, 3.2015621187])
    of_unit = retrieve(scalar, fixed, unit=1, k=2, kind="norm", bias=True)
    np.testing.assert_allclose(of_unit["strength"], [9.9624294226, 6.2649820431])
    signed = retrieve(scalar, fixed, unit=1, head=0, k=1)
    np.testing.assert_allclose(signed["strength"], [4.5 * 2])


def measured(images=9):
    pool = random_pool()
    scalar = scalars(pool, random_maps(pool, images))["scalar"]
    return scalar.assign_coords(sample=[f"s{i}" for i in range(images)], unit=np.arange(8) * 10), factors(pool)


def test_retrieve__takes_labels_and_gives_them():
    scalar, fixed = measured()
    found = retrieve(scalar, fixed, unit=30, head=1, k=4)
    wanted = np.argsort(-scalar[:, 3, 1].to_numpy())[:4]
    np.testing.assert_array_equal(found["position"], wanted)
    assert found["sample"].to_numpy().tolist() == [f"s{i}" for i in wanted]
    whole = strengths(scalar, fixed, level="unit").sel(unit=30).to_numpy()
    np.testing.assert_array_equal(retrieve(scalar, fixed, unit=30, k=2)["position"], np.argsort(-whole)[:2])
    xr.testing.assert_allclose(
        retrieve(scalar.chunk({"head": 1}), fixed, unit=30, k=2), retrieve(scalar, fixed, unit=30, k=2)
    )


def test_retrieve__of_a_phrase_is_what_its_pairs_add():
    scalar, fixed = measured()
    text = np.arange(5.0) - 1
    best = top_pairs(text_scores(fixed, text), k=3)
    u = pair_vectors(fixed).compute().to_numpy()
    t = text / np.linalg.norm(text)
    strength = sum(scalar[:, n, h].to_numpy() * (u[n, h] @ t) for n, h in zip(best["unit"].values, best["head"].values))
    found = retrieve(scalar, fixed, text=text, pairs=3, k=9)
    np.testing.assert_allclose(found["strength"], -np.sort(-strength))
    np.testing.assert_array_equal(found["position"], np.argsort(-strength))
    every = retrieve(scalar, fixed, text=text, pairs=16, k=1)
    assert float(every["strength"][0]) == pytest.approx(float((np.einsum("inh,nho->io", scalar, u) @ t).max()))


def test_top_images__leave_out_nan_and_keep_the_order_of_ties():
    strength = xr.DataArray([[1.0, 5], [np.nan, 5], [2, 7], [2, np.nan]], dims=("sample", "unit"))
    found = top_images(strength, k=3)
    assert found["position"].to_numpy().tolist() == [[2, 3, 0], [2, 0, 1]]
    assert "sample" not in found


def test_inertia__of_golden_embeddings():
    embedding = xr.DataArray([[1.0, 0], [0, 3], [0.5, 0], [0, -1]], dims=("sample", "feature"))
    strength = xr.DataArray([3.0, 2, 1, 0], dims="sample")
    assert float(inertia(strength, embedding, top=3)) == pytest.approx(4 / 3)
    assert float(inertia(strength, embedding, top=1)) == 0


def test_inertia__is_that_of_each_unit():
    scalar, fixed = measured()
    embedding = xr.DataArray(np.random.default_rng(0).normal(size=(9, 4)), dims=("sample", "feature"))
    strength = strengths(scalar, fixed, level="unit", kind="norm", bias=True)
    found = inertia(strength, embedding, top=4)
    unit = embedding / np.sqrt((embedding**2).sum("feature"))
    for n in range(8):
        rows = unit.to_numpy()[np.argsort(-strength[:, n].to_numpy())[:4]]
        assert float(found[n]) == pytest.approx(((rows - rows.mean(axis=0)) ** 2).sum())
    assert found["unit"].to_numpy().tolist() == (np.arange(8) * 10).tolist()
    with pytest.raises(NonFiniteError, match="has no direction"):
        inertia(strength, embedding * 0, top=4)
    with pytest.raises(SchemaError, match="both of the same samples"):
        inertia(strength, embedding[:3], top=2)


def test_sinks__are_tokens_that_every_image_attends_to():
    attention = np.full((3, 2, 4), 0.25)
    attention[:, 1] = [[0.1, 0.1, 0.1, 0.7], [0, 0, 0, 1], [0.3, 0.3, 0.0, 0.4]]
    array = xr.DataArray(attention, dims=("sample", "head", "token"))
    found = sinks(array)
    np.testing.assert_allclose(found["mean_attention"][1], [0.4 / 3, 0.4 / 3, 0.1 / 3, 0.7])
    np.testing.assert_allclose(found["first"], [[1, 0, 0, 0], [0, 0, 0, 1]])
    assert float(found["entropy"][0]) == pytest.approx(np.log(4))
    rows = attention[:, 1]
    wanted = -np.where(rows > 0, rows * np.log(np.where(rows > 0, rows, 1)), 0).sum(axis=1).mean()
    assert float(found["entropy"][1]) == pytest.approx(wanted)
    assert np.argwhere(found["sink"].to_numpy()).tolist() == [[1, 3]]
    lazy = sinks(array.chunk({"sample": 1, "token": 2}))
    assert all(isinstance(v.data, da.Array) for v in lazy.values())
    xr.testing.assert_allclose(lazy.compute(), found)


def test_without_sink__of_the_golden_map():
    given = np.arange(1, 10).reshape(3, 3)
    found = without_sink(given)
    assert found[-1, -1] == pytest.approx(6.3333333)
    assert found[:2].tolist() == given[:2].tolist()
    assert given[-1, -1] == 9
    np.testing.assert_allclose(without_sink(np.stack([given, 2 * given]))[1], 2 * found)


def test_retrieval__says_what_is_wrong():
    scalar, fixed = measured()
    for call, message in (
        (lambda: retrieve(scalar, fixed), "give a unit, a unit and a head, or a text alone"),
        (lambda: retrieve(scalar, fixed, unit=0, text=np.ones(5)), "a text alone"),
        (lambda: retrieve(scalar, fixed, head=0, text=np.ones(5)), "a text alone"),
        (lambda: retrieve(scalar, fixed, text=np.ones(5), kind="norm"), "kind and bias are of units"),
        (lambda: retrieve(scalar, fixed, text=np.ones((2, 5))), r"one vector \(feature,\)"),
        (lambda: retrieve(scalar, fixed, unit=31), "no unit 31 among 8 such as"),
        (lambda: retrieve(scalar, fixed, unit=30, head=2), "no head 2; give a number from 0 to 1"),
        (lambda: retrieve(scalar, fixed, unit=30, k=10), "k=10 of {'sample': 9}"),
        (lambda: sinks(scalar), "'token'"),
        (lambda: sinks(scalar.rename(unit="token"), share=1), "share=1"),
        (lambda: without_sink(np.ones((1, 3))), "two rows and columns"),
    ):
        with pytest.raises(SchemaError, match=message):
            call()
