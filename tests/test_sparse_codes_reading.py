"""What codes say and add up to."""

import json
import re
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from neurolens.errors import SchemaError
from neurolens.sparse_codes import describe, lasso_codes, prepared, reconstruct, sparse_codes

NAMES = ["butterfly", "red car", "sky", "dog", "wood"]


def coded(**options):
    random = np.random.default_rng(0)
    dictionary = xr.DataArray(
        random.normal(size=(5, 8)), dims=("phrase", "feature"), coords={"phrase": np.array(NAMES, dtype=object)}
    )
    signals = xr.DataArray(
        random.normal(size=(3, 2, 8)), dims=("unit", "head", "feature"), coords={"unit": [3, 5, 9], "head": [0, 7]}
    )
    signals[1, 1] = 0
    return sparse_codes(signals, dictionary, atoms=4, **options), dictionary


def test_describe__names_phrases_by_their_coefficient():
    codes, dictionary = coded()
    told = describe(codes, NAMES)
    assert told["phrase"].dims == told["value"].dims == ("unit", "head", "atom")
    for unit, head in [(3, 0), (9, 7)]:
        code = codes.sel(unit=unit, head=head)
        pairs = sorted(
            zip(code["value"].to_numpy(), code["index"].to_numpy(), strict=True), key=lambda pair: -abs(pair[0])
        )
        one = told.sel(unit=unit, head=head)
        assert one["phrase"].to_numpy().tolist() == [NAMES[index] for _, index in pairs]
        np.testing.assert_array_equal(one["value"], [value for value, _ in pairs])
    empty = told.sel(unit=5, head=7)
    assert empty["phrase"].to_numpy().tolist() == [""] * 4
    assert empty["value"].isnull().all()
    xr.testing.assert_identical(describe(codes, dictionary), told)
    xr.testing.assert_identical(describe(codes.sel(unit=9), NAMES, top=2), told.sel(unit=9).isel(atom=slice(2)))


def test_describe__puts_absent_phrases_last():
    codes = lasso_codes(np.array([[0.8, 0.6, 0], [0, 0.5, 0]]), np.eye(3), norm=None, centre=False)
    told = describe(codes, ["a", "b", "c"], top=5)
    assert told["phrase"].to_numpy().tolist() == [["a", "b"], ["b", ""]]


@pytest.mark.parametrize("norm", ["rows", "columns", None])
def test_reconstruct__is_a_slow_sum(norm):
    codes, dictionary = coded(norm=norm)
    atoms = prepared(dictionary, norm=norm).to_numpy()
    found = reconstruct(codes, dictionary)
    assert found.dims == ("unit", "head", "feature")
    for place in np.ndindex(3, 2):
        index, value = codes["index"].to_numpy()[place], codes["value"].to_numpy()[place]
        slow = sum((v * atoms[i] for i, v in zip(index, value, strict=True) if i >= 0), np.zeros(8))
        np.testing.assert_allclose(found.to_numpy()[place], slow, atol=1e-12)


def test_reconstruct__has_length_1_on_request():
    codes, dictionary = coded()
    whole, unit = reconstruct(codes, dictionary), reconstruct(codes, dictionary, unit=True)
    np.testing.assert_array_equal(unit.sel(unit=5, head=7), [np.nan] * 8)
    np.testing.assert_allclose(unit, whole / np.sqrt(np.square(whole).sum("feature")).where(lambda size: size > 0))


@pytest.mark.parametrize("chunks", [{"unit": 1}, {"head": 1, "atom": 2}, {"unit": 2, "head": 1, "atom": 1}])
def test_reconstruct__is_lazy_and_blind_to_chunks(chunks):
    codes, dictionary = coded()
    found = reconstruct(codes.chunk(chunks), dictionary)
    assert isinstance(found.data, da.Array)
    xr.testing.assert_allclose(found.compute(), reconstruct(codes, dictionary))


def test_reconstruct__keeps_float32():
    codes, dictionary = coded()
    single = codes.assign(value=codes["value"].astype("f4"))
    assert reconstruct(single, dictionary.astype("f4")).dtype == np.float32


def test_reading__says_what_does_not_fit():
    codes, dictionary = coded()
    for read in (describe, reconstruct):
        with pytest.raises(SchemaError, match="found 4 phrases, and the codes are of 5"):
            read(codes, dictionary[:4])
        with pytest.raises(SchemaError, match=r"found \['value'\], and a Dataset of index and value"):
            read(codes[["value"]], dictionary)
        with pytest.raises(SchemaError, match="found DataArray, and a Dataset"):
            read(codes["index"], dictionary)
        with pytest.raises(SchemaError, match="no attribute 'centred'"):
            read(codes.drop_attrs(), dictionary)
    with pytest.raises(SchemaError, match="found one text, 'butterfly'"):
        describe(codes, "butterfly")
    with pytest.raises(SchemaError, match="does not name its phrases"):
        describe(codes, dictionary.drop_vars("phrase"))
    with pytest.raises(SchemaError, match="top=0"):
        describe(codes, NAMES, top=0)


def test_page__runs():
    page = (Path(__file__).parent.parent / "docs" / "reference" / "sparse_codes.md").read_text()
    names = {}
    exec(re.search(r"^```python\n(.*?)^```", page, re.M | re.S)[1], names)
    assert names["codes"].sizes == {"signal": 100, "atom": 3}


def stored(codes):
    """Codes as an opened store has them: NaN in the index, no attributes of their own, phrases by name."""
    index = codes["index"].where(codes["index"] >= 0).astype("f4")
    settings = json.dumps({"parts": {"codes": {"norm": codes.attrs["norm"]}}})
    out = xr.Dataset({"index": index, "value": codes["value"]}, attrs={"cube": "codes", "settings": settings})
    return out.assign_coords(phrase=np.array(NAMES, dtype=np.dtypes.StringDType()))


@pytest.mark.parametrize("norm", ["rows", "columns"])
def test_reading__takes_what_a_store_holds(norm):
    codes, dictionary = coded(norm=norm)
    for given in (stored(codes), stored(codes).chunk({"unit": 1})):
        told = describe(given, top=2)
        np.testing.assert_array_equal(told["phrase"], describe(codes, NAMES, top=2)["phrase"])
        xr.testing.assert_allclose(reconstruct(given, dictionary).compute(), reconstruct(codes, dictionary))
    with pytest.raises(SchemaError, match="these codes do not name their phrases"):
        describe(codes)
