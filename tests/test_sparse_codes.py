"""Orthogonal matching pursuit against scikit-learn, a slow version of it, and the golden numbers of the spec."""

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import SparseCoder
from sklearn.linear_model import orthogonal_mp
from sparse_code_cases import problem

from neurolens.errors import NonFiniteError, SchemaError
from neurolens.sparse_codes import prepared, pursuit, reconstruct, sparse_codes

PLAIN = {"norm": None, "centre": False}
GOLDEN = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0]])
SIGNAL = np.array([1, 2, 0.5])


def dense(codes, phrases):
    out = np.zeros((codes.sizes["signal"], phrases))
    for row, (index, value) in enumerate(zip(codes["index"].to_numpy(), codes["value"].to_numpy(), strict=True)):
        out[row, index[index >= 0]] = value[index >= 0]
    return out


@pytest.mark.parametrize(("dtype", "close"), [(np.float32, 1e-6), (np.float64, 1e-12)])
def test_sparse_codes__golden_steps(dtype, close):
    """Golden G5 of the spec: atoms, coefficients and what is left, step by step."""
    atoms, signal = GOLDEN.astype(dtype), SIGNAL.astype(dtype)
    steps = {1: ([3], [2.2], 0.640312), 2: ([3, 2], [2.2, 0.5], 0.4), 3: ([3, 2, 0], [2.5, 0.5, -0.5], 0)}
    for count, (index, value, left) in steps.items():
        codes = sparse_codes(signal, atoms, atoms=count, **PLAIN)
        assert codes["value"].dtype == dtype
        assert codes["index"].to_numpy().tolist() == index
        np.testing.assert_allclose(codes["value"], value, atol=close)
        assert codes["residual"].to_numpy()[-1] == pytest.approx(left, abs=1e-6)


def test_sparse_codes__golden_long_atom_is_favoured_unless_rows_are_scaled():
    """Golden G5 of the spec: with row 0 three times as long, it is chosen first."""
    atoms = GOLDEN * np.array([3, 1, 1, 1])[:, None]
    one = sparse_codes(SIGNAL, atoms, atoms=1, **PLAIN)
    assert one["index"].to_numpy().tolist() == [0]
    np.testing.assert_allclose(one["value"], [1 / 3])
    np.testing.assert_allclose(one["residual"], [2.061553], rtol=1e-6)
    two = sparse_codes(SIGNAL, atoms, atoms=2, **PLAIN)
    assert two["index"].to_numpy().tolist() == [0, 1]
    np.testing.assert_allclose(two["value"], [1 / 3, 2])
    np.testing.assert_allclose(two["residual"][-1], 0.5)
    rows = sparse_codes(SIGNAL, atoms, atoms=3, norm="rows", centre=False)
    assert rows["index"].to_numpy().tolist() == [3, 2, 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 10), st.sampled_from(["rows", "columns", None]), st.booleans())
def test_sparse_codes__are_those_of_scikit_learn(seed, count, norm, centre):
    signals, dictionary = problem(seed)
    codes = sparse_codes(signals, dictionary, atoms=count, norm=norm, centre=centre)
    atoms = prepared(dictionary, norm=norm, centre=centre).to_numpy()
    expected = orthogonal_mp(atoms.T, signals.T, n_nonzero_coefs=count).reshape(len(dictionary), -1).T
    assert ((codes["index"] >= 0).sum("atom") == count).all()
    np.testing.assert_allclose(dense(codes, len(dictionary)), expected, atol=1e-9)


def test_sparse_codes__of_columns_are_the_references():
    """The reference's way, in its own words: columns of the centred dictionary, and scikit-learn's coder."""
    signals, dictionary = problem(3)
    text = dictionary - dictionary.mean(axis=0)
    text = text / np.linalg.norm(text, axis=0)
    coder = SparseCoder(dictionary=text, transform_algorithm="omp", transform_n_nonzero_coefs=6)
    codes = sparse_codes(signals, dictionary, atoms=6, norm="columns")
    np.testing.assert_allclose(dense(codes, len(dictionary)), coder.transform(signals), atol=1e-10)


@pytest.mark.parametrize("norm", ["rows", "columns"])
def test_sparse_codes__are_a_slow_versions(norm):
    signals, dictionary = problem(1)
    atoms = prepared(dictionary, norm=norm).to_numpy()
    codes = sparse_codes(signals, dictionary, atoms=8, norm=norm)
    for row, signal in enumerate(signals):
        chosen, left = [], signal
        for step in range(8):
            chosen.append(int(np.abs(atoms @ left).argmax()))
            value = np.linalg.lstsq(atoms[chosen].T, signal, rcond=None)[0]
            left = signal - value @ atoms[chosen]
            np.testing.assert_allclose(codes["residual"][row, step], np.linalg.norm(left), rtol=1e-10)
        assert codes["index"][row].to_numpy().tolist() == chosen
        np.testing.assert_allclose(codes["value"][row], value, rtol=1e-8)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_sparse_codes__leave_less_at_each_step_and_nothing_along_what_was_chosen(seed):
    signals, dictionary = problem(seed)
    codes = sparse_codes(signals, dictionary, atoms=7)
    residual = codes["residual"].to_numpy()
    assert (np.diff(residual, axis=1) <= 0).all()
    atoms = prepared(dictionary).to_numpy()
    left = signals - reconstruct(codes, dictionary).to_numpy()
    np.testing.assert_allclose(np.linalg.norm(left, axis=1), residual[:, -1], atol=1e-10)
    np.testing.assert_allclose(np.einsum("sao,so->sa", atoms[codes["index"].to_numpy()], left), 0, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_sparse_codes__go_with_length_sign_and_order(seed, scale):
    signals, dictionary = problem(seed)
    codes = sparse_codes(signals, dictionary, atoms=5)
    turned = sparse_codes(-scale * signals, dictionary, atoms=5)
    xr.testing.assert_equal(turned["index"], codes["index"])
    np.testing.assert_allclose(turned["value"], -scale * codes["value"], rtol=1e-8)
    order = np.random.default_rng(seed).permutation(len(dictionary))
    moved = sparse_codes(signals, dictionary[order], atoms=5)
    np.testing.assert_array_equal(order[moved["index"].to_numpy()], codes["index"])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 50))
def test_sparse_codes__are_blind_to_blocks(seed, block, at_once):
    signals, dictionary = problem(seed)
    codes = sparse_codes(signals, dictionary, atoms=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pursuit, "_AT_ONCE", at_once)
        xr.testing.assert_allclose(sparse_codes(signals, dictionary, atoms=5, block=block), codes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("at_once", [3, 7, 4096])
def test_sparse_codes__of_equal_atoms_take_the_lowest(monkeypatch, dtype, at_once):
    monkeypatch.setattr(pursuit, "_AT_ONCE", at_once)
    signals, dictionary = problem(0, phrases=60, features=33, dtype=dtype)
    one = sparse_codes(signals, dictionary, atoms=6, centre=False)
    twice = sparse_codes(signals, np.concatenate([dictionary, -dictionary, dictionary]), atoms=6, centre=False)
    np.testing.assert_array_equal(twice["index"], one["index"])
    np.testing.assert_allclose(twice["value"], one["value"], rtol=1e-4)


def test_sparse_codes__in_float32_choose_the_atoms_of_float64():
    signals, dictionary = problem(5, signals=20, phrases=200, features=48)
    double = sparse_codes(signals, dictionary, atoms=16)
    single = sparse_codes(signals.astype("f4"), dictionary.astype("f4"), atoms=16)
    assert single["value"].dtype == single["residual"].dtype == np.float32
    np.testing.assert_array_equal(single["index"], double["index"])
    np.testing.assert_allclose(single["value"], double["value"], rtol=1e-3, atol=1e-4)
    half = sparse_codes(signals.astype("f2"), dictionary.astype("f2"), atoms=2)
    assert half["value"].dtype == np.float32


@pytest.mark.parametrize("seed", range(3))
def test_sparse_codes__of_phrases_that_are_nearly_alike_are_exact_to_rounding(seed):
    """Orthogonalised once and not twice, coefficients would be off by 5e-4 and more."""
    random = np.random.default_rng(seed)
    dictionary = (random.normal(size=40) + 0.01 * random.normal(size=(200, 40))).astype("f4")
    signals = random.normal(size=(6, 40)).astype("f4")
    codes = sparse_codes(signals, dictionary, atoms=12, centre=False)
    atoms = prepared(dictionary, centre=False).to_numpy().astype("f8")
    for signal, index, value in zip(signals, codes["index"].to_numpy(), codes["value"].to_numpy(), strict=True):
        exact = np.linalg.lstsq(atoms[index].T, signal.astype("f8"), rcond=None)[0]
        np.testing.assert_allclose(value, exact, rtol=0, atol=5e-5 * np.abs(exact).max())


def test_sparse_codes__stop_where_nothing_is_left():
    signals = np.array([[0, 0, 0], [0, 0, 2], [np.nan, 0, 0], [1, 2, 0.5]])
    codes = sparse_codes(signals, GOLDEN, atoms=3, **PLAIN)
    assert codes["index"].to_numpy().tolist() == [[-1, -1, -1], [2, -1, -1], [-1, -1, -1], [3, 2, 0]]
    np.testing.assert_array_equal(codes["value"][:3], [[np.nan] * 3, [2, np.nan, np.nan], [np.nan] * 3])
    np.testing.assert_array_equal(codes["residual"][1], [0, np.nan, np.nan])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_codes__stop_where_atoms_depend_on_each_other(dtype):
    atoms = np.random.default_rng(0).normal(size=(2, 6)).astype(dtype)
    signal = np.random.default_rng(1).normal(size=6).astype(dtype)
    many = np.concatenate([atoms, atoms * dtype(2), atoms.sum(axis=0, keepdims=True)])
    codes = sparse_codes(signal, many, atoms=5, **PLAIN)
    index = codes["index"].to_numpy()
    assert (index >= 0).tolist() == [True, True, False, False, False]
    best = signal - np.linalg.lstsq(atoms.T, signal, rcond=None)[0] @ atoms
    np.testing.assert_allclose(codes["residual"][1], np.linalg.norm(best), rtol=1e-5)


def test_sparse_codes__of_phrases_all_alike_are_empty():
    codes = sparse_codes(SIGNAL, np.ones((4, 3), np.float32), atoms=2)
    assert (codes["index"] == -1).all()


def test_sparse_codes__keep_dims_and_coordinates():
    signals, dictionary = problem(2, signals=6)
    cube = xr.DataArray(
        signals.reshape(2, 3, -1),
        dims=("head", "unit", "feature"),
        coords={"unit": [5, 6, 7], "head": [0, 4], "layer": ("unit", ["a", "a", "b"]), "feature": np.arange(12)},
    )
    codes = sparse_codes(cube.transpose("feature", "unit", "head"), dictionary, atoms=4)
    assert codes["value"].dims == ("unit", "head", "atom")
    assert sorted(codes.coords) == ["head", "layer", "unit"]
    flat = sparse_codes(signals, dictionary, atoms=4)
    np.testing.assert_array_equal(
        codes["index"].transpose("head", "unit", "atom").to_numpy().reshape(6, 4), flat["index"]
    )
    assert codes.attrs == {"norm": "rows", "centred": 1, "phrases": 40}
    single = sparse_codes(cube[0, 0], dictionary, atoms=4)
    assert single["index"].dims == ("atom",)
    xr.testing.assert_equal(single["index"].drop_vars(["head", "unit", "layer"]), flat["index"][0])


def test_prepared__gives_rows_length_1_and_columns_length_1():
    dictionary = problem(0)[1]
    centred = dictionary - dictionary.mean(axis=0)
    rows, columns = prepared(dictionary), prepared(dictionary, norm="columns")
    np.testing.assert_allclose(rows, centred / np.linalg.norm(centred, axis=1, keepdims=True))
    np.testing.assert_allclose(columns, centred / np.linalg.norm(centred, axis=0))
    np.testing.assert_array_equal(prepared(dictionary, **PLAIN), dictionary)
    assert prepared(dictionary.astype("f2")).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_prepared__leaves_nothing_of_what_all_share(dtype):
    dictionary = problem(0)[1].astype(dtype) / 3
    dictionary[0] = dictionary[1:].mean(axis=0)
    dictionary[:, 2] = 0.1
    rows, columns = prepared(dictionary).to_numpy(), prepared(dictionary, norm="columns").to_numpy()
    assert (rows[0] == 0).all()
    assert (columns[:, 2] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(rows[1:], axis=1), 1, rtol=1e-5)


def test_prepared__keeps_the_names_of_phrases():
    named = xr.DataArray(GOLDEN.T, dims=("feature", "phrase"), coords={"phrase": list("abcd")})
    assert prepared(named).dims == ("phrase", "feature")
    assert prepared(named)["phrase"].to_numpy().tolist() == list("abcd")


ROOM = {"atoms": 2, **PLAIN}


@pytest.mark.parametrize(
    ("signals", "dictionary", "options", "words"),
    [
        (np.ones(4), GOLDEN, ROOM, "found signals 4 wide, and phrases 3 wide; embed"),
        (SIGNAL, np.empty((0, 3)), ROOM, "the list of phrases is empty"),
        (SIGNAL, GOLDEN, {"atoms": 4}, "4 atoms were asked for, of 4 phrases in 3 dimensions.*atoms=3"),
        (SIGNAL, GOLDEN[:2], {"atoms": 3}, "3 atoms were asked for, of 2 phrases.*atoms=2"),
        (SIGNAL, GOLDEN, {"atoms": 0}, "found atoms=0"),
        (SIGNAL, GOLDEN, {"atoms": True}, "found atoms=True"),
        (SIGNAL, GOLDEN, {"atoms": 1, "norm": "row"}, "no norm 'row'; did you mean 'rows'"),
        (SIGNAL, GOLDEN, {**ROOM, "block": 0}, "block=0"),
        (SIGNAL, GOLDEN[0], ROOM, "a row per phrase"),
        (SIGNAL, GOLDEN.astype(str), ROOM, "real numbers"),
        (SIGNAL.astype(complex), GOLDEN, ROOM, "signals of dtype complex128"),
        (np.ones((1, 1, 3)), GOLDEN, ROOM, r"found signals over .*\(…, feature\)"),
        (xr.DataArray(GOLDEN, dims=("atom", "feature")), GOLDEN, ROOM, "'atom' and 'phrase'"),
        (GOLDEN, GOLDEN, {**ROOM, "where": np.ones(4, bool)}, "where is ndarray"),
        (
            GOLDEN,
            GOLDEN,
            {**ROOM, "where": xr.DataArray(np.ones(3, bool), dims="signal")},
            r"bool over \{'signal': 4\}",
        ),
        (GOLDEN, GOLDEN, {**ROOM, "where": xr.DataArray(np.ones(4), dims="signal")}, "where is float64"),
    ],
)
def test_sparse_codes__say_what_does_not_fit(signals, dictionary, options, words):
    with pytest.raises(SchemaError, match=words):
        sparse_codes(signals, dictionary, **options)


def test_sparse_codes__refuse_infinity():
    with pytest.raises(NonFiniteError, match="signal 1 has infinity"):
        sparse_codes(np.array([[0, 0, 1], [0, 0, np.inf]]), GOLDEN, **ROOM)
    with pytest.raises(NonFiniteError, match="phrase 2 has NaN"):
        sparse_codes(SIGNAL, np.where(np.eye(4, 3, -2) > 0, np.nan, GOLDEN), **ROOM)
    with pytest.raises(NonFiniteError, match="phrase 1 has NaN"):
        prepared(np.array([[1.0, 2], [np.nan, 1]]))


def test_sparse_codes__need_neither_torch_nor_scikit_learn():
    lines = (
        "import sys, numpy as np",
        "from neurolens.sparse_codes import describe, reconstruct, sparse_codes, text_span",
        "from neurolens.pairs import read_phrases",
        "codes = sparse_codes(np.eye(3), np.eye(3), atoms=2)",
        "reconstruct(codes, np.eye(3)), describe(codes, 'abc'.split() * 3), text_span(np.eye(3), np.eye(3), atoms=1)",
        "assert not {'torch', 'sklearn'} & set(sys.modules)",
    )
    assert subprocess.run([sys.executable, "-c", "\n".join(lines)]).returncode == 0
