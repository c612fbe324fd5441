"""TextSpan: the golden number, and the algorithm written out."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.errors import NonFiniteError, SchemaError
from neurolens.sparse_codes import text_span

ROWS = np.array([[2.0, 0], [0, 1], [-2, -1]])
TEXTS = np.array([[1.0, 0], [0.6, 0.8]])


def test_text_span__golden_picks():
    """Golden G14 of the spec; alone, the second text's deviation is 1.743560."""
    found = text_span(ROWS, TEXTS, atoms=2)
    assert found["index"].to_numpy().tolist() == [0, 1]
    assert found["deviation"][0].item() == pytest.approx(2)
    assert text_span(ROWS, TEXTS[1:], atoms=1)["deviation"].item() == pytest.approx(1.743560, abs=1e-6)
    np.testing.assert_allclose(found["captured"], [2.828427, 1.414214], atol=1e-6)
    np.testing.assert_allclose(found["explained"], [0.8, 1])


def written_out(rows, texts, count):
    """Algorithm 1 of the paper: rows and texts lose the direction of the text along which rows vary most."""
    rows, chosen = rows - rows.mean(axis=0), []
    for _ in range(count):
        deviation = (rows @ texts.T).std(axis=0, ddof=1)
        at = int(deviation.argmax())
        text = texts[at]
        along = np.outer(rows @ text, text) / (text @ text)
        chosen.append((at, deviation[at], np.linalg.norm(along)))
        rows = rows - along
        texts = texts - np.outer(texts @ text, text) / (text @ text)
    return chosen


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["plain", "basis", "rank"]))
def test_text_span__is_the_algorithm_written_out(seed, way):
    random = np.random.default_rng(seed)
    head = random.normal(size=(10, 4))
    rows = random.normal(size=(15, 4)) @ head.T + random.normal(size=10) * (way == "plain")
    texts = random.normal(size=(25, 10))
    left = np.linalg.svd(rows, full_matrices=False)[2][:3].T if way == "rank" else np.linalg.qr(head)[0]
    onto = texts if way == "plain" else texts @ left @ left.T
    options = {"plain": {}, "basis": {"basis": head}, "rank": {"rank": 3}}[way]
    found = text_span(rows, texts, atoms=3, **options)
    index, deviation, captured = zip(*written_out(rows, onto, 3), strict=True)
    assert found["index"].to_numpy().tolist() == list(index)
    np.testing.assert_allclose(found["deviation"], deviation, rtol=1e-8)
    np.testing.assert_allclose(found["captured"], captured, rtol=1e-8)
    total = np.square(rows - rows.mean(axis=0)).sum()
    np.testing.assert_allclose(found["explained"], np.cumsum(np.square(captured)) / total, rtol=1e-8)


def test_text_span__stops_once_nothing_varies():
    random = np.random.default_rng(0)
    rows, texts = random.normal(size=(9, 2)) @ random.normal(size=(2, 6)), random.normal(size=(8, 6))
    found = text_span(rows, texts, atoms=5)
    assert (found["index"] >= 0).to_numpy().tolist()[:2] == [True, True]
    assert found["explained"].max() <= 1 + 1e-12
    within = text_span(rows, texts, atoms=5, rank=2)
    assert (within["index"] >= 0).to_numpy().tolist() == [True, True, False, False, False]
    np.testing.assert_allclose(within["explained"][1], 1)
    assert within["deviation"][2:].isnull().all()
    assert (text_span(np.ones((3, 6)), texts, atoms=2)["index"] == -1).all()


def test_text_span__of_equal_texts_takes_the_lowest_once():
    found = text_span(ROWS, np.concatenate([TEXTS, -TEXTS, TEXTS]), atoms=2)
    assert found["index"].to_numpy().tolist() == [0, 1]


def test_text_span__takes_dims_in_any_order():
    rows = xr.DataArray(ROWS.T, dims=("feature", "sample")).chunk({"sample": 1})
    texts = xr.DataArray(TEXTS.T, dims=("feature", "phrase"))
    xr.testing.assert_identical(text_span(rows, texts, atoms=2), text_span(ROWS, TEXTS, atoms=2))


@pytest.mark.parametrize(
    ("rows", "texts", "options", "error", "words"),
    [
        (ROWS, np.ones((2, 3)), {"atoms": 1}, SchemaError, "found signals 2 wide, and phrases 3 wide"),
        (ROWS, np.ones((0, 2)), {"atoms": 1}, SchemaError, "the list of phrases is empty"),
        (ROWS, TEXTS, {"atoms": 3}, SchemaError, "3 atoms were asked for, of 2 phrases"),
        (ROWS[:1], TEXTS, {"atoms": 1}, SchemaError, "at least two"),
        (ROWS[0], TEXTS, {"atoms": 1}, SchemaError, "at least two"),
        (ROWS * np.nan, TEXTS, {"atoms": 1}, NonFiniteError, "NaN or infinity; leave dead heads out"),
        (ROWS, TEXTS, {"atoms": 1, "rank": 3}, SchemaError, "rank=3, and a number from 1 to 2"),
        (ROWS, TEXTS, {"atoms": 1, "rank": 1, "basis": np.eye(2)}, SchemaError, "a basis and a rank"),
        (ROWS, TEXTS, {"atoms": 1, "basis": np.ones((3, 1))}, SchemaError, r"basis of shape \(3, 1\)"),
    ],
)
def test_text_span__says_what_does_not_fit(rows, texts, options, error, words):
    with pytest.raises(error, match=words):
        text_span(rows, texts, **options)
