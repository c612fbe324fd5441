"""Labels of pixels from pairs: against the golden example, the definition token by token, and the gather way."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs_cases import random_maps, random_pool

from neurolens.errors import NonFiniteError, SchemaError
from neurolens.pairs import (
    Pool,
    class_pairs,
    directions,
    factors,
    head_similarity,
    pair_logits,
    pair_vectors,
    resampled,
    scalars,
    segment,
    value_logits,
    vector_norms,
    without_sink,
)
from neurolens.pairs.segmentation import bilinear, shortened, windows

PHRASES = list("abcd")


def texts(seed=0, features=5):
    drawn = np.random.default_rng(seed).normal(size=(4, features))
    return xr.DataArray(drawn, dims=("phrase", "feature"), coords={"phrase": PHRASES})


def changed(pool, **others):
    names = ("W_q", "b_q", "W_k", "b_k", "W_v", "b_v", "W_o", "b_o", "positions", "heads", "grid")
    return Pool(**({name: getattr(pool, name) for name in names} | others))


def contributions(pool, image, bias):
    """Return c (head, patch, feature) of one image from its definition, a whole vector at a time."""
    z = image.reshape(pool.units, -1).T
    x = np.vstack([z.mean(axis=0), z]) + pool.positions
    out = np.empty((pool.heads, len(z), pool.features))
    for h in range(pool.heads):
        rows = slice(h * pool.head_dim, (h + 1) * pool.head_dim)
        query = pool.W_q[rows] @ x[0] + pool.b_q[rows]
        logits = np.array([query @ (pool.W_k[rows] @ token + pool.b_k[rows]) for token in x]) / pool.head_dim**0.5
        attention = np.exp(logits) / np.exp(logits).sum()
        for m in range(len(z)):
            value = pool.W_v[rows] @ x[m + 1] + pool.b_v[rows]
            out[h, m] = attention[m + 1] * (pool.W_o[:, rows] @ value) + bias * pool.b_o / (len(x) * pool.heads)
    return out


def repaired(tokens, grid):
    """Return (…, patch, feature) with the last patch replaced."""
    maps = tokens.swapaxes(-1, -2).reshape(*tokens.shape[:-2], tokens.shape[-1], *grid)
    return without_sink(maps).reshape(*maps.shape[:-2], -1).swapaxes(-1, -2)


def cosines(c, t):
    return np.einsum("hmo,po->phm", c / np.linalg.norm(c, axis=-1, keepdims=True), t)


def golden():
    activation = np.array([[1, 0], [2, 1], [0, 3], [1, 1]], float).T.reshape(1, 2, 2, 2)
    similarity = np.array(
        [[[0.5, 0.1], [0.2, 0.3], [0, 0.4], [0.1, 0.1]], [[0.1, 0.2], [0.4, 0], [0.3, 0.6], [0.2, 0.2]]]
    )
    sim = xr.DataArray(
        similarity.swapaxes(1, 2).reshape(1, 2, 2, 2, 2), dims=("sample", "phrase", "head", "y", "x")
    )  # per class: patch, head
    mask = np.zeros((2, 2, 2), bool)  # class, unit, head
    mask[0, 0, 0] = mask[0, 1, 1] = mask[1, 1, 0] = mask[1, 1, 1] = True
    return sim, activation, xr.DataArray(mask, dims=("phrase", "unit", "head"))


def test_pair_logits__are_the_golden_ones():
    found = pair_logits(*golden(), repair=False).to_numpy().reshape(2, 4)
    np.testing.assert_allclose(found, [[0.25, 0.35, 0.6, 0.1], [0, 0.2, 1.35, 0.2]])
    assert found.argmax(axis=0).tolist() == [0, 0, 1, 1]


def test_pair_logits__mends_the_last_patch_of_activations():
    sim, maps, mask = golden()
    nine = np.arange(1.0, 10).reshape(3, 3)
    assert without_sink(nine)[2, 2] == pytest.approx(6.3333333)
    mended = pair_logits(sim, without_sink(maps), mask, repair=False)
    xr.testing.assert_allclose(pair_logits(sim, maps, mask), mended)


def test_bilinear__is_the_golden_one():
    rows = [[0, 0.25, 0.75, 1], [0.5, 0.75, 1.25, 1.5], [1.5, 1.75, 2.25, 2.5], [2, 2.25, 2.75, 3]]
    np.testing.assert_allclose(bilinear(np.array([[0.0, 1], [2, 3]]), (4, 4)), rows)


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(1, 9)] * 4), st.integers(0, 99))
def test_bilinear__is_that_of_torch(sizes, seed):
    old, new = sizes[:2], sizes[2:]
    values = np.random.default_rng(seed).normal(size=(2, *old))
    exact = torch.nn.functional.interpolate(torch.from_numpy(values)[None], size=new, mode="bilinear")[0]
    np.testing.assert_allclose(bilinear(values, new), exact, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.booleans())
def test_head_similarity__is_the_cosine_of_whole_vectors(seed, bias, repair):
    pool = random_pool(seed=seed)
    maps, t = random_maps(pool, 2, seed + 1), texts(seed)
    found = head_similarity(pool, maps, t, bias=bias, repair=repair)
    assert found.dims == ("sample", "phrase", "head", "y", "x")
    unit = (t / np.sqrt((t**2).sum("feature"))).to_numpy()
    for i, image in enumerate(maps):
        c = contributions(pool, image, bias)
        if not bias:  # nothing of the attention: values, mended as values
            z = image.reshape(pool.units, -1).T + pool.positions[1:]
            v = (z @ pool.W_v.T + pool.b_v).reshape(len(z), pool.heads, -1)
            w = pool.W_o.reshape(pool.features, pool.heads, -1)
            c = np.einsum("ohd,mhd->hmo", w, v)
        c = repaired(c, pool.grid) if repair else c
        np.testing.assert_allclose(found[i].to_numpy().reshape(4, pool.heads, -1), cosines(c, unit), atol=1e-11)


def test_head_similarity__without_the_output_bias_is_free_of_attention():
    pool = changed(random_pool(seed=3), b_o=np.zeros(5))
    maps = random_maps(pool, 2)
    rng = np.random.default_rng(5)
    other = changed(pool, W_q=rng.normal(size=pool.W_q.shape), W_k=rng.normal(size=pool.W_k.shape))
    options = {"repair": False}
    found = head_similarity(pool, maps, texts(), **options)
    xr.testing.assert_allclose(head_similarity(other, maps, texts(), **options), found, atol=1e-12)
    xr.testing.assert_allclose(head_similarity(pool, maps, texts(), bias=False, **options), found, atol=1e-12)
    with_bias = changed(other, b_o=np.ones(5))
    assert not np.allclose(head_similarity(with_bias, maps, texts(), **options), found)
    xr.testing.assert_identical(
        head_similarity(with_bias, maps, texts(), bias=False), head_similarity(pool, maps, texts(), bias=False)
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_pair_logits__are_those_of_the_gather_way(seed, repair):
    pool = random_pool(seed=seed, heads=3)
    maps, t = random_maps(pool, 2, seed + 1), texts(seed)
    mask = class_pairs(factors(pool), t, k=7)
    sim = head_similarity(pool, maps, t, repair=repair)
    found = pair_logits(sim, maps, mask, repair=repair)
    z = without_sink(maps) if repair else maps
    for phrase in range(4):
        head, unit = np.nonzero(mask[phrase].transpose("head", "unit").to_numpy())
        gathered = (z[:, unit] * sim[:, phrase].to_numpy()[:, head]).mean(axis=1)
        np.testing.assert_allclose(found[:, phrase], gathered, atol=1e-12)
    assert found["phrase"].to_numpy().tolist() == PHRASES


def test_pair_logits__in_float32_are_close_to_float64():
    pool = random_pool(seed=2)
    single = random_pool(seed=2, dtype=np.float32)
    maps, t = random_maps(pool, 3), texts()
    mask = class_pairs(factors(pool), t, k=5)
    exact = pair_logits(head_similarity(pool, maps, t), maps, mask)
    found = pair_logits(head_similarity(single, maps.astype("f4"), t.astype("f4")), maps.astype("f4"), mask)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, atol=2e-6)


def test_pair_logits__do_not_mind_the_order_of_heads():
    pool, t = random_pool(seed=4, heads=3), texts()
    maps = random_maps(pool, 2)
    order = [2, 0, 1]
    rows = np.concatenate([np.arange(h * 3, h * 3 + 3) for h in order])
    qkv = {name: getattr(pool, name)[rows] for name in ("W_q", "b_q", "W_k", "b_k", "W_v", "b_v")}
    moved = changed(pool, W_o=pool.W_o[:, rows], **qkv)
    kept, other = (class_pairs(factors(p), t, k=6) for p in (pool, moved))
    np.testing.assert_array_equal(other, kept.isel(head=order))
    one, two = (pair_logits(head_similarity(p, maps, t), maps, m) for p, m in ((pool, kept), (moved, other)))
    xr.testing.assert_allclose(one, two)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.integers(1, 15))
def test_class_pairs__are_the_nearest_whole_vectors(seed, centre, k):
    fixed, t = factors(random_pool(seed=seed)), texts(seed)
    u = pair_vectors(fixed).compute().transpose("head", "unit", "feature").to_numpy()
    unit = u / np.linalg.norm(u, axis=-1, keepdims=True)
    wanted = t.to_numpy() - (t.to_numpy().mean(axis=0) if centre else 0)
    scores = np.einsum("hcf,pf->phc", unit, wanted)
    found = class_pairs(fixed, t, k=k, centre=centre)
    assert found.dims == ("phrase", "unit", "head")
    for phrase in range(4):
        best = np.sort(np.argsort(-scores[phrase].ravel(), kind="stable")[:k])
        chosen = np.flatnonzero(found[phrase].transpose("head", "unit").to_numpy().ravel())
        np.testing.assert_array_equal(chosen, best)


def test_class_pairs__are_the_golden_four():
    """Scores [[.1, .9, .3], [.8, .2, .7]] (head, unit): flat 1, 3, 5, 2."""
    scores = np.array([[0.1, 0.9, 0.3], [0.8, 0.2, 0.7]])
    value = np.stack([scores, np.sqrt(1 - scores**2)], axis=1)  # u of length 1, at these cosines with (1, 0)
    fixed = xr.Dataset(
        {
            "value": (("head", "d", "unit"), value),
            "output": (("feature", "head", "d"), np.tile(np.eye(2)[:, None], (1, 2, 1))),
            "constant": (("head", "feature"), np.zeros((2, 2))),
        }
    )
    t = xr.DataArray([[1.0, 0], [0, 1]], dims=("phrase", "feature"))
    chosen = class_pairs(fixed, t, k=4, centre=False)[0].transpose("head", "unit").to_numpy()
    assert sorted(zip(*np.nonzero(chosen), strict=True)) == sorted([(0, 1), (1, 0), (1, 2), (0, 2)])


def test_class_pairs__leave_out_the_dead_and_follow_a_sign():
    pool, t = random_pool(), texts()
    fixed = factors(pool).copy(deep=True)
    fixed["value"][1, :, 3] = 0
    everyone = class_pairs(fixed, t, k=16)
    assert np.argwhere(~everyone[0].to_numpy()).tolist() == [[3, 1]]
    sign = directions(fixed, sign="majority", scalar=scalars(pool, random_maps(pool, 9)), top=5)["sign"]
    flipped = class_pairs(fixed, t, k=3, sign=-sign)
    xr.testing.assert_identical(flipped, class_pairs(fixed, -t, k=3, sign=sign))
    xr.testing.assert_identical(class_pairs(fixed, t, k=3, norms=vector_norms(fixed)), class_pairs(fixed, t, k=3))
    labelled = fixed.assign_coords(unit=list("stuvwxyz"), head=[5, 7])
    found = class_pairs(labelled, t, k=3)
    np.testing.assert_array_equal(found, class_pairs(fixed, t, k=3))
    assert found["unit"].to_numpy().tolist() == list("stuvwxyz")


def test_class_pairs__say_what_does_not_fit():
    fixed, t = factors(random_pool()), texts()
    with pytest.raises(SchemaError, match="k=17 of 16 pairs"):
        class_pairs(fixed, t, k=17)
    with pytest.raises(SchemaError, match="two or more different classes"):
        class_pairs(fixed, t[:1], k=3)
    with pytest.raises(SchemaError, match="5 along 'feature' were needed"):
        class_pairs(fixed, texts(features=6), k=3)
    with pytest.raises(SchemaError, match="a row per class"):
        class_pairs(fixed, t[0], k=3)


def test_value_logits__are_cosines_of_value_features():
    pool, t = random_pool(seed=6), texts()
    maps = random_maps(pool, 2)
    unit = (t / np.sqrt((t**2).sum("feature"))).to_numpy()
    for positions in (True, False):
        found = value_logits(pool, maps, t, positions=positions)
        for i, image in enumerate(maps):
            x = image.reshape(pool.units, -1).T + positions * pool.positions[1:]
            feature = (x @ pool.W_v.T + pool.b_v) @ pool.W_o.T + pool.b_o
            feature /= np.linalg.norm(feature, axis=1, keepdims=True)
            np.testing.assert_allclose(found[i].to_numpy().reshape(4, -1), unit @ feature.T, atol=1e-12)
    mended = value_logits(pool, maps, t, repair=True).to_numpy().reshape(2, 4, -1)
    plain = value_logits(pool, maps, t).to_numpy().reshape(2, 4, -1)
    np.testing.assert_array_equal(mended[..., :-1], plain[..., :-1])
    assert not np.allclose(mended[..., -1], plain[..., -1])


@pytest.mark.parametrize("attention", [("q",), ("k",), ("v",), ("q", "k")])
def test_value_logits__attend_to_tokens_like_themselves(attention):
    pool, t = random_pool(seed=7), texts()
    maps = random_maps(pool, 1)
    unit = (t / np.sqrt((t**2).sum("feature"))).to_numpy()
    z = maps[0].reshape(pool.units, -1).T
    x = np.vstack([z.mean(axis=0), z]) + pool.positions
    mixed = []
    for h in range(pool.heads):
        rows = slice(h * pool.head_dim, (h + 1) * pool.head_dim)
        made = {n: x @ getattr(pool, f"W_{n}")[rows].T + getattr(pool, f"b_{n}")[rows] for n in "qkv"}
        weights = sum(torch.softmax(torch.tensor(made[n] @ made[n].T / 3**0.5), -1).numpy() for n in attention)
        mixed.append(weights @ made["v"])
    feature = (np.hstack(mixed) @ pool.W_o.T + pool.b_o)[1:]
    exact = unit @ (feature / np.linalg.norm(feature, axis=1, keepdims=True)).T
    found = value_logits(pool, maps, t, attention=attention)
    np.testing.assert_allclose(found[0].to_numpy().reshape(4, -1), exact, atol=1e-12)


def test_patch_logits__say_what_does_not_fit():
    pool, t = random_pool(), texts()
    maps = random_maps(pool, 2)
    sim, mask = head_similarity(pool, maps, t), class_pairs(factors(pool), t, k=3)
    with pytest.raises(SchemaError, match="attention 'qk' is unknown"):
        value_logits(pool, maps, t, attention=("qk",))
    with pytest.raises(SchemaError, match="5 along 'feature' were needed"):
        head_similarity(pool, maps, texts(features=6))
    with pytest.raises(SchemaError, match="has no direction"):
        head_similarity(pool, maps, t * 0)
    with pytest.raises(SchemaError, match="pass resampled"):
        head_similarity(pool, maps[..., :2], t)
    with pytest.raises(SchemaError, match="maps of the similarities"):
        pair_logits(sim, maps[:1], mask)
    with pytest.raises(SchemaError, match="pairs with 3 along 'phrase'"):
        pair_logits(sim, maps, mask[:3])
    with pytest.raises(SchemaError, match="name other ones along 'phrase'"):
        pair_logits(sim, maps, mask[::-1])
    with pytest.raises(SchemaError, match="bool over"):
        pair_logits(sim, maps, mask.astype(float))
    with pytest.raises(SchemaError, match="class 'c' has no pair"):
        pair_logits(sim, maps, mask.where(mask["phrase"] != "c", False))


def stand_in(crops):
    """Logits that are means of 4 × 4 pixels: a channel is a class."""
    n, c, h, w = crops.shape
    return xr.DataArray(
        crops.reshape(n, c, h // 4, 4, w // 4, 4).mean(axis=(3, 5)), dims=("sample", "phrase", "y", "x")
    )


@settings(max_examples=20, deadline=None)
@given(st.tuples(st.integers(9, 30), st.integers(9, 30)), st.integers(0, 99), st.integers(2, 8), st.integers(1, 5))
def test_segment__is_the_average_of_windows_the_long_way(size, seed, stride, batch):
    image = np.random.default_rng(seed).normal(size=(3, *size))
    fitted = shortened(size, 12)
    resized = torch.nn.functional.interpolate(torch.from_numpy(image)[None], size=fitted, mode="bilinear")
    total, cover = torch.zeros(1, 3, *fitted, dtype=torch.float64), torch.zeros(fitted)
    for top, bottom, left, right in windows(fitted, (8, 8), (stride, stride)):
        logits = torch.from_numpy(stand_in(resized[:, :, top:bottom, left:right].numpy()).to_numpy())
        total[:, :, top:bottom, left:right] += torch.nn.functional.interpolate(logits, size=(8, 8), mode="bilinear")
        cover[top:bottom, left:right] += 1
    assert (cover > 0).all()
    whole = torch.nn.functional.interpolate(total / cover, size=size, mode="bilinear")[0]
    probability = torch.softmax(whole * 40, dim=0)
    options = {"crop": 8, "stride": stride, "short": 12, "batch": batch}
    found = segment(image, stand_in, **options)
    np.testing.assert_array_equal(found["label"], probability.argmax(dim=0))
    np.testing.assert_allclose(found["probability"], probability.max(dim=0).values, atol=1e-9)
    sure = segment(image, stand_in, threshold=0.9, background=0, **options)["label"]
    np.testing.assert_array_equal(sure, np.where(found["probability"] < 0.9, 0, found["label"]))
    merged = segment(image, stand_in, classes=[5, 3, 5], **options)["label"]
    np.testing.assert_array_equal(merged, np.array([5, 3, 5])[found["label"]])


def test_segment__finds_planted_objects_through_a_pool():
    """Units that fire at one kind of patch, and a head that writes its phrase: labels are those planted."""
    pool = random_pool(units=4, heads=2, head_dim=4, features=4, grid=(4, 4), seed=9)
    writes = np.vstack([np.eye(4), np.zeros((4, 4))])
    pool = changed(pool, W_v=writes, W_o=writes.T, b_v=np.zeros(8), b_o=np.zeros(4), positions=pool.positions * 1e-3)
    t = xr.DataArray(np.eye(4), dims=("phrase", "feature"))
    mask = class_pairs(factors(pool), t, k=1)
    planted = np.kron(np.array([[0, 1, 1], [2, 2, 3]]), np.ones((8, 8), int))
    image = np.eye(4)[planted].transpose(2, 0, 1)

    def logits_of(crops):
        maps = crops.reshape(len(crops), 4, 4, 4, 4, 4).mean(axis=(3, 5))
        return pair_logits(head_similarity(pool, maps, t), maps, mask)

    found = segment(image, logits_of, crop=16, stride=8, short=None)
    assert (found["label"].to_numpy() == planted).mean() > 0.95
    small = resampled(pool, (2, 2))
    again = segment(
        image,
        lambda crops: value_logits(small, crops.reshape(len(crops), 4, 2, 4, 2, 4).mean(axis=(3, 5)), t),
        crop=8,
        stride=4,
        short=None,
    )
    assert (again["label"].to_numpy() == planted).mean() > 0.9


def test_windows__cover_the_image_and_end_at_its_edge():
    assert windows((384, 500), (384, 384), (192, 192)) == [(0, 384, 0, 384), (0, 384, 116, 500)]
    assert windows((8, 8), (8, 8), (4, 4)) == [(0, 8, 0, 8)]
    assert shortened((500, 375), 384) == (512, 384)


def test_segment__says_what_does_not_fit():
    image = np.zeros((3, 10, 12))
    with pytest.raises(SchemaError, match="resize it with short=16"):
        segment(image, stand_in, crop=16, short=None)
    with pytest.raises(SchemaError, match="leaves pixels out"):
        segment(image, stand_in, crop=8, stride=9, short=None)
    with pytest.raises(SchemaError, match="needs a class for pixels below it"):
        segment(image, stand_in, crop=8, threshold=0.2)
    with pytest.raises(SchemaError, match="a class for each phrase"):
        segment(image, stand_in, crop=8, stride=4, short=None, classes=[0, 1])
    with pytest.raises(SchemaError, match=r"\(channel, y, x\) was needed"):
        segment(image[0], stand_in)
    with pytest.raises(SchemaError, match="logits_of returned ndarray"):
        segment(image, lambda crops: stand_in(crops).to_numpy(), crop=8, stride=4, short=None)
    with pytest.raises(SchemaError, match="of 2 windows"):
        segment(image, lambda crops: stand_in(crops)[:1], crop=8, stride=4, short=None, batch=2)
    with pytest.raises(NonFiniteError, match="a logit of a patch"):
        segment(image * np.nan, stand_in, crop=8, stride=4, short=None)


def test_page__has_a_snippet_that_runs():
    text = (Path(__file__).parent.parent / "docs" / "reference" / "segmentation.md").read_text()
    snippet, _of_a_study = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    names = {}
    exec(compile(snippet, "segmentation.md", "exec"), names)
    assert names["found"]["probability"].shape == (20, 30)
