"""Codes of pairs in the reference's files."""

import json

import numpy as np
import pytest
import xarray as xr
from scipy.sparse import load_npz

from neurolens.errors import DataError, SchemaError
from neurolens.sparse_codes import prepared, reconstruct, sparse_codes, write_code_files

UNITS, HEADS, WORDS = 4, 3, ["dog", "Löwe", "red car", "sky", "wood", 'a "quote"']


@pytest.fixture(scope="module")
def coded():
    random = np.random.default_rng(0)
    signals = xr.DataArray(random.normal(size=(UNITS, HEADS, 8)), dims=("unit", "head", "feature"))
    signals[2, 1] = np.nan
    dictionary = xr.DataArray(random.normal(size=(6, 8)), dims=("phrase", "feature"), coords={"phrase": WORDS})
    codes = sparse_codes(signals, dictionary, atoms=3)
    return codes.assign_coords(unit=range(UNITS), head=range(HEADS)), dictionary


def test_write_code_files__writes_a_row_for_each_pair_head_by_head(coded, tmp_path):
    codes, dictionary = coded
    assert write_code_files(codes, tmp_path, phrases=WORDS) == ("decomposition.npz", "text_descs.json")
    matrix = load_npz(tmp_path / "decomposition.npz")
    assert matrix.shape == (HEADS * UNITS, 6)
    assert matrix.dtype == np.float32
    assert matrix.nnz == 3 * (UNITS * HEADS - 1)
    atoms = prepared(dictionary).to_numpy()
    whole = reconstruct(codes, dictionary).transpose("head", "unit", "feature").to_numpy()
    np.testing.assert_allclose((matrix @ atoms).reshape(HEADS, UNITS, 8), whole, atol=1e-6)


def test_write_code_files__tells_each_pair_that_has_a_code_its_largest_phrase_first(coded, tmp_path):
    codes, _ = coded
    write_code_files(codes.assign_coords(phrase=WORDS), tmp_path, top=2)
    told = json.loads((tmp_path / "text_descs.json").read_text(encoding="utf-8"))
    pairs = [f"u{unit}/h{head}" for head in range(HEADS) for unit in range(UNITS)]
    assert list(told) == [pair for pair in pairs if pair != "u2/h1"]
    one = codes.sel(unit=3, head=2)
    order = np.argsort(-abs(one["value"].to_numpy()))[:2]
    assert [word for word, _ in told["u3/h2"]] == [WORDS[i] for i in one["index"].to_numpy()[order]]
    np.testing.assert_allclose([value for _, value in told["u3/h2"]], one["value"].to_numpy()[order], atol=1e-6)


def test_write_code_files__turns_codes_with_their_directions(coded, tmp_path):
    codes, _ = coded
    sign = xr.DataArray(np.ones((UNITS, HEADS), np.int8), dims=("unit", "head"))
    sign[0, 0], sign[1, 0] = -1, 0
    write_code_files(codes, tmp_path, phrases=WORDS)
    before = load_npz(tmp_path / "decomposition.npz").toarray()
    write_code_files(codes, tmp_path, phrases=WORDS, sign=sign)
    after = load_npz(tmp_path / "decomposition.npz").toarray()
    np.testing.assert_array_equal(after[0], -before[0])
    np.testing.assert_array_equal(after[1:], before[1:])


def test_write_code_files__says_what_does_not_fit(coded, tmp_path):
    codes, _ = coded
    with pytest.raises(SchemaError, match="these codes do not name their phrases"):
        write_code_files(codes, tmp_path)
    with pytest.raises(SchemaError, match="found 2 phrases, and the codes are of 6"):
        write_code_files(codes, tmp_path, phrases=["a", "b"])
    with pytest.raises(SchemaError, match=r"\(unit, head, atom\) was needed"):
        write_code_files(codes.isel(unit=0), tmp_path, phrases=WORDS)
    with pytest.raises(SchemaError, match="found signs over"):
        write_code_files(codes, tmp_path, phrases=WORDS, sign=xr.DataArray(np.ones((1, 1)), dims=("unit", "head")))
    with pytest.raises(DataError, match=r"cannot be written .*; name a folder that is there"):
        write_code_files(codes, tmp_path / "none", phrases=WORDS)
