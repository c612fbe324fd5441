"""Phrases to pairs and back, logits over pairs and patches."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs_cases import long_way, random_maps, random_pool

from neurolens.errors import SchemaError
from neurolens.pairs import (
    directions,
    factors,
    heat_maps,
    logit_attribution,
    pair_vectors,
    scalars,
    text_scores,
    top_pairs,
    top_phrases,
    vector_norms,
)


def measured(seed=0, **options):
    pool = random_pool(seed=seed, **options)
    maps = random_maps(pool, 6, seed + 1)
    texts = xr.DataArray(
        np.random.default_rng(seed).normal(size=(4, 5)), dims=("phrase", "feature"), coords={"phrase": list("abcd")}
    )
    return pool, maps, scalars(pool, maps), factors(pool), texts


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_text_scores__are_cosines_of_whole_vectors(seed):
    _, _, _, fixed, texts = measured(seed)
    u = pair_vectors(fixed).compute()
    t = texts / np.sqrt((texts**2).sum("feature"))
    dots = xr.dot(t, u, dim="feature").drop_vars("phrase")
    np.testing.assert_allclose(text_scores(fixed, texts, scale="dot"), dots, atol=1e-12)
    cosines = dots / np.sqrt((u**2).sum("feature"))
    np.testing.assert_allclose(text_scores(fixed, texts), cosines, atol=1e-12)
    np.testing.assert_allclose(text_scores(fixed, texts.to_numpy() * 7), cosines, atol=1e-12)
    np.testing.assert_allclose(text_scores(fixed, texts[1]), cosines[1], atol=1e-12)


def test_text_scores__of_dead_pairs_and_of_signs():
    _, _, found, fixed, texts = measured()
    fixed = fixed.copy(deep=True)
    fixed["value"][1, :, 3] = 0
    scores = text_scores(fixed, texts)
    assert np.argwhere(scores[0].isnull().to_numpy()).tolist() == [[3, 1]]
    assert (text_scores(fixed, texts, scale="dot")[:, 3, 1] == 0).all()
    assert (top_pairs(scores, k=15)["score"].notnull()).all()
    xr.testing.assert_identical(text_scores(fixed, texts, norms=vector_norms(fixed)), scores)
    with pytest.raises(SchemaError, match="7 along 'unit', and factors of 8"):
        text_scores(fixed, texts, norms=vector_norms(fixed)[1:])
    sign = directions(fixed, sign="majority", scalar=found["scalar"], top=5)["sign"]
    xr.testing.assert_allclose(text_scores(fixed, texts, sign=sign), scores * sign)
    sign[2, 0] = 0
    assert text_scores(fixed, texts, sign=sign)[:, 2, 0].isnull().all()


def test_top_pairs__of_golden_scores():
    by_head = xr.DataArray([[0.1, 0.9, 0.3], [0.8, 0.2, 0.7]], dims=("head", "unit"))
    found = top_pairs(by_head, k=4)
    assert list(zip(found["head"].to_numpy().tolist(), found["unit"].to_numpy().tolist())) == [
        (0, 1),
        (1, 0),
        (1, 2),
        (0, 2),
    ]
    np.testing.assert_array_equal(found["score"], [0.9, 0.8, 0.7, 0.3])
    labelled = top_pairs(by_head.assign_coords(unit=[10, 20, 30]), k=2)
    assert labelled["unit"].to_numpy().tolist() == [20, 10]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12))
def test_top_pairs__are_a_stable_sort(seed, k):
    values = np.round(np.random.default_rng(seed).normal(size=(2, 3, 4)), 1)  # phrase, head, unit, with ties
    found = top_pairs(xr.DataArray(values, dims=("phrase", "head", "unit")), k=k)
    for row, flat in zip(range(2), values.reshape(2, -1)):
        at = np.argsort(-flat, kind="stable")[:k]
        np.testing.assert_array_equal(found["head"][row] * 4 + found["unit"][row], at)
        np.testing.assert_array_equal(found["score"][row], flat[at])


def test_top_phrases__are_the_other_way_round():
    _, _, _, fixed, texts = measured()
    scores = text_scores(fixed.isel(unit=[6], head=[1]), texts)
    found = top_phrases(scores, k=2)
    wanted = text_scores(fixed, texts)[:, 6, 1].to_numpy()
    order = np.argsort(-wanted)[:2]
    assert found["phrase"][0, 0].to_numpy().tolist() == [list("abcd")[i] for i in order]
    np.testing.assert_allclose(found["score"][0, 0], wanted[order])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_logit_attribution__adds_up_to_the_logit(seed):
    pool, maps, found, fixed, texts = measured(seed)
    r = long_way(pool, maps) - fixed["constant"].to_numpy()[:, None]
    t = (texts / np.sqrt((texts**2).sum("feature"))).to_numpy()
    for scale in ("dot", "cosine"):
        split = logit_attribution(found["scalar"], fixed, texts, scale=scale)
        e = found["embedding"].to_numpy()
        length = np.linalg.norm(e, axis=1, keepdims=True) if scale == "cosine" else 1.0
        np.testing.assert_allclose(split["logit"], e @ t.T / length, atol=1e-10)
        total = split["contribution"].sum(["unit", "head"]) + split["constant"]
        np.testing.assert_allclose(total, split["logit"], atol=1e-10)
    wanted = np.einsum("ihno,po->ipnh", r, t) / length[:, :, None, None]
    np.testing.assert_allclose(split["contribution"], wanted, atol=1e-10)


def test_logit_attribution__is_lazy_and_blind_to_chunks():
    _, _, found, fixed, texts = measured()
    lazy = logit_attribution(found["scalar"].chunk({"sample": 2, "head": 1}), fixed, texts[0])
    assert all(isinstance(v.data, da.Array) for v in lazy[["contribution", "logit"]].values())
    xr.testing.assert_allclose(lazy.compute(), logit_attribution(found["scalar"], fixed, texts[0]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_heat_maps__are_patch_by_patch(seed, masked):
    pool, maps, found, fixed, texts = measured(seed)
    mask = xr.DataArray(np.random.default_rng(seed).random((8, 2)) > 0.5, dims=("unit", "head")) if masked else None
    heat = heat_maps(maps, found, fixed, texts, mask=mask)
    u, t = pair_vectors(fixed).compute().to_numpy(), (texts / np.sqrt((texts**2).sum("feature"))).to_numpy()
    keep = mask.to_numpy() if masked else np.ones((8, 2), bool)
    a = found["attention"].to_numpy()
    wanted = np.zeros((6, 4, 6))
    for h in range(2):
        w = a[:, h, 1:] + a[:, h, :1] / 6
        wanted += np.einsum("im,inm,np->ipm", w, maps.reshape(6, 8, 6), (u[:, h] @ t.T) * keep[:, h, None])
    np.testing.assert_allclose(heat["heat"], wanted.reshape(6, 4, 2, 3), atol=1e-10)
    total = heat["heat"].sum(["y", "x"]) + heat["rest"]
    np.testing.assert_allclose(total, found["embedding"].to_numpy() @ t.T, atol=1e-10)
    if not masked:
        parts = scalars(pool, maps, split=True)
        content = (parts["patch"] + parts["mean_token"]).to_numpy()
        np.testing.assert_allclose(heat["heat"].sum(["y", "x"]), np.einsum("inh,nho,po->ip", content, u, t), atol=1e-10)


def test_text__says_what_is_wrong():
    _, maps, found, fixed, texts = measured()
    scores = text_scores(fixed, texts)
    for call, message in (
        (lambda: text_scores(fixed, texts[:, :3]), "3}, and 5 along 'feature' were needed.*text encoder of the same"),
        (lambda: text_scores(fixed, texts[:0]), "the list of phrases is empty"),
        (lambda: text_scores(fixed, np.ones((1, 1, 5))), "'feature'"),
        (lambda: text_scores(fixed, texts, scale="cos"), "did you mean 'cosine'"),
        (lambda: top_pairs(scores, k=17), "k=17 of 16 pairs"),
        (lambda: top_pairs(scores[:, 0]), "'unit' and 'head'"),
        (lambda: top_phrases(scores, k=5), "k=5 of 4 phrases"),
        (lambda: top_phrases(scores[0]), "needed: text_scores"),
        (lambda: logit_attribution(found["scalar"], fixed, texts, scale="logit"), "scale='logit'"),
        (lambda: heat_maps(maps[:3], found, fixed, texts), r"shape \(3, 8, 2, 3\), and 6 samples"),
        (lambda: heat_maps(maps, found.drop_vars("attention"), fixed, texts), "no 'attention'"),
        (lambda: heat_maps(maps, found, fixed, texts, mask=1), "a mask of int"),
    ):
        with pytest.raises(SchemaError, match=message):
            call()
    own = random_pool(class_token=True)
    with pytest.raises(SchemaError, match="token 0 is learned"):
        heat_maps(maps, scalars(own, maps), factors(own), texts)
