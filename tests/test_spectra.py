"""Spectra: golden numbers, slow versions, other libraries, invariants, errors."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from spectra_cases import GOLDEN, METHODS, WIDTHS, close, cube, matrix_of, of_values, orthogonal

from neurolens import spectra, spectrum_metrics
from neurolens.errors import MissingMeasurementError, NonFiniteError, SchemaError


@pytest.mark.parametrize("pad", [0, 3])
def test_spectrum_metrics__match_the_golden_numbers(pad):
    values = xr.DataArray([4.0, 2, 1, 1, 0, *[np.nan] * pad], dims="component")
    found = spectrum_metrics(values)
    assert {name: float(found[name]) for name in GOLDEN} == pytest.approx(GOLDEN, abs=1e-9)
    lazy = spectrum_metrics(values.chunk(component=2))
    assert isinstance(lazy["effective_rank"].data, da.Array)
    xr.testing.assert_allclose(lazy.compute(), found)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(5, 5), (30, 5), (5, 30)])
def test_spectra__of_a_matrix_with_the_golden_values(method, shape):
    found = spectra(of_values([4, 2, 1, 1, 0], *shape), method=method)
    np.testing.assert_allclose(found["singular_value"], [4, 2, 1, 1, 0], atol=1e-7)
    assert {name: float(found[name]) for name in GOLDEN} == pytest.approx(GOLDEN, abs=1e-9)
    assert float(found["frobenius_norm"]) == pytest.approx(22**0.5)
    assert int(found["n_samples"]) == shape[0]
    assert "layer" not in found.dims


def slowly(s):
    """The metrics as the references' loops have them (Dohare et al. 2024, and Roy and Vetterli 2007)."""
    entropy = 0.0
    for value in s:
        p = value / s.sum()
        entropy -= p * np.log(p) if p > 0 else 0.0
    counts = []
    for values in (s, s**2):
        total, count = 0.0, 0
        for value in values:
            total, count = total + value, count + 1
            if total / values.sum() >= 0.99:
                break
        counts.append(count)
    squares = s**2
    return {
        "effective_rank": np.exp(entropy),
        "stable_rank": squares.sum() / squares[0],
        "srank99": counts[0],
        "approx99": counts[1],
        "participation_ratio": squares.sum() ** 2 / (squares**2).sum(),
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("samples", [50, 8])
@pytest.mark.parametrize("centred", [False, True])
def test_spectra__match_a_plain_svd_of_every_layer(method, samples, centred):
    ds = cube(samples)
    found = spectra(ds, method=method, centred=centred, vectors="both")
    assert found["layer"].values.tolist() == list(WIDTHS)
    assert found["units"].values.tolist() == list(WIDTHS.values())
    for layer in WIDTHS:
        for epoch in ds["epoch"].values:
            matrix = matrix_of(ds, epoch, layer, centred=centred)
            s = np.linalg.svd(matrix, compute_uv=False)
            one = found.sel(epoch=epoch, layer=layer)
            np.testing.assert_allclose(one["singular_value"][: len(s)], s, rtol=1e-11, atol=1e-7 * s[0])
            assert np.isnan(one["singular_value"][len(s) :]).all()
            for name, value in slowly(np.where(s > 1e-7 * s[0], s, 0.0)).items():
                assert float(one[name]) == pytest.approx(value, rel=1e-9), name
            assert int(one["numerical_rank"]) == np.linalg.matrix_rank(matrix)
            k = int(one["numerical_rank"])
            left, right = one["left_vector"].values[:, :k], one["right_vector"].values[: matrix.shape[1], :k]
            np.testing.assert_allclose(left * s[:k] @ right.T, matrix, atol=1e-6)
            np.testing.assert_allclose(right.T @ right, np.eye(k), atol=1e-9)
            np.testing.assert_allclose(left.T @ left, np.eye(k), atol=1e-6)
            assert (right[np.abs(right).argmax(axis=0), np.arange(k)] > 0).all()
            assert np.isnan(one["right_vector"].values[:, k:]).all()
            assert np.isnan(one["right_vector"].values[matrix.shape[1] :]).all()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i2"])
def test_spectra__take_any_number_type(dtype):
    ds = cube()
    ds["activation"] = (ds["activation"] * 10).astype(dtype)
    close(spectra(ds), spectra(ds.astype("f8")))


def test_spectra__take_layers_apart_that_lie_mixed():
    ds = cube()
    order = np.random.default_rng(0).permutation(ds.sizes["unit"])
    mixed = ds.isel(unit=order).assign_coords(
        layer_index=("unit", [list(WIDTHS).index(n) for n in ds["layer"].values[order]])
    )
    close(spectra(mixed), spectra(ds))
    close(spectra(mixed.chunk(unit=7)).compute(), spectra(ds))


@pytest.mark.parametrize("samples", [30, 3])
def test_spectra__drop_samples_that_were_not_measured(samples):
    ds = cube(samples + 2)
    ds["activation"][1, [0, 2]] = np.nan
    with pytest.raises(MissingMeasurementError, match=r"layer '.*' at epoch 5: 2 of \d+ samples are NaN; .*\"drop\""):
        spectra(ds.chunk(sample=4)).compute()
    ds["activation"][2, 1, 3] = np.nan
    for lazy in (ds, ds.chunk(sample=4, unit=9)):
        found = spectra(lazy, missing="drop", vectors="both", centred=True).compute()
        assert found["n_samples"].values.tolist() == [
            [samples + 2] * 3,
            [samples] * 3,
            [samples + 1] + [samples + 2] * 2,
        ]
        kept = np.delete(np.arange(samples + 2), [0, 2])
        expected = spectra(ds.isel(sample=kept, epoch=[1]), centred=True).sel(epoch=5)
        k = expected.sizes["component"]
        np.testing.assert_allclose(found["singular_value"].sel(epoch=5)[:, :k], expected["singular_value"], atol=1e-6)
        left = found["left_vector"].sel(epoch=5, layer="head")
        assert np.isnan(left.values[[0, 2]]).all()
        np.testing.assert_allclose(np.linalg.norm(left.values[kept][:, 0]), 1)


def test_spectra__are_nan_where_nothing_was_measured():
    ds = cube()
    ds["activation"][1] = np.nan
    for missing in ("error", "drop"):
        found = spectra(ds, missing=missing, vectors="right")
        assert found["n_samples"].values[:, 0].tolist() == [50, 0, 50]
        gone = found.sel(epoch=5).drop_vars("n_samples")
        assert all(gone[name].isnull().all() for name in gone)
        close(found.isel(epoch=[0, 2]), spectra(cube().isel(epoch=[0, 2]), vectors="right"))


def test_spectra__heed_what_a_cube_says_was_measured():
    ds = cube().assign_coords(measured=("epoch", [True, False, True]))
    ds["activation"][1, :9] = np.nan
    with pytest.raises(
        MissingMeasurementError, match=r"lacks activations at epoch 5; measure them: .*--only activations"
    ):
        spectra(ds.chunk(sample=10))
    assert spectra(ds, missing="drop")["n_samples"].values[:, 0].tolist() == [50, 41, 50]


def test_spectra__name_the_layer_of_infinite_activations():
    ds = cube(dtype="f2")
    ds["activation"][2, 4, 12] = np.inf
    with pytest.raises(NonFiniteError, match=r"layer 'layers.2' at epoch 10: 1 activations are infinite.*float32"):
        spectra(ds)


@pytest.mark.parametrize("method", METHODS)
def test_spectra__of_a_silent_layer_are_zero(method):
    found = spectra(np.zeros((6, 4)), method=method)
    assert (found["singular_value"] == 0).all()
    assert [float(found[name]) for name in GOLDEN] == [0.0] * len(GOLDEN)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
@pytest.mark.parametrize("method", METHODS)
def test_spectra__of_a_single_row_or_column(shape, method):
    values = np.arange(1.0, 8).reshape(shape) if 7 in shape else np.array([[-3.0]])
    found = spectra(values, method=method, vectors="both")
    np.testing.assert_allclose(found["singular_value"], [np.linalg.norm(values)])
    assert float(found["effective_rank"]) == pytest.approx(1)
    np.testing.assert_allclose(found["left_vector"] * found["singular_value"] @ found["right_vector"], values)


def test_spectra__say_what_a_gram_matrix_loses_and_qr_keeps():
    values = 10.0 ** -np.arange(12)
    matrix = of_values(values, 300, 12)
    gram, qr = spectra(matrix, method="gram"), spectra(matrix, method="qr")
    assert 1e-8 < float(gram["floor"]) < 1e-7
    assert int(gram["numerical_rank"]) == 8, "below the floor nothing is counted"
    assert float(gram["tolerance"]) == float(gram["floor"])
    assert (gram["singular_value"][8:] == 0).all()
    assert int(qr["numerical_rank"]) == 12
    np.testing.assert_allclose(qr["tolerance"], 300 * np.finfo(float).eps)
    for found in (gram, qr):
        known = found["singular_value"].values > 0
        error = np.abs(found["singular_value"].values - values)[known] / values[known]
        assert (error <= found["singular_value_error"].values[known]).all()


@pytest.mark.parametrize("offset", [0, 1e5])
@pytest.mark.parametrize("method", ["gram", "qr"])
def test_spectra_centred__do_not_cancel(offset, method):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3000, 8)) + offset
    exact = np.linalg.svd(values - values.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(spectra(values, centred=True, method=method)["singular_value"], exact, rtol=1e-10)


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_spectra_mixed__gives_the_leading_values_to_a_millionth(dtype):
    rng = np.random.default_rng(0)
    values = np.maximum(rng.standard_normal((5000, 200)) @ of_values(np.arange(1, 201) ** -0.7, 200, 200), 0).astype(
        dtype
    )
    exact = np.linalg.svd(values.astype(float), compute_uv=False)
    mixed, plain = spectra(values, precision="mixed"), spectra(values)
    np.testing.assert_allclose(plain["singular_value"][:50], exact[:50], rtol=1e-11)
    np.testing.assert_allclose(mixed["singular_value"][:50], exact[:50], rtol=1e-6)
    np.testing.assert_allclose(mixed["effective_rank"], plain["effective_rank"], rtol=1e-6)
    assert float(mixed["floor"]) > float(plain["floor"])


@pytest.mark.parametrize("precision", ["float64", "mixed"])
@pytest.mark.parametrize("outer", [False, True])
def test_spectra_randomised__are_within_their_error(precision, outer):
    values = np.arange(1, 301) ** -0.7
    matrix = of_values(values, 700, 300).astype("f4")
    matrix = matrix.T.copy() if outer else matrix
    exact = np.linalg.svd(matrix.astype(float), compute_uv=False)
    found = spectra(matrix, method="randomised", rank=50, vectors="both", precision=precision)
    error = np.abs(found["singular_value"].values - exact[:50]) / exact[:50]
    assert (error <= found["singular_value_error"].values).all()
    assert error.max() < 1e-4, "the 50th value is where plain sketches are a tenth off"
    assert float(found["stable_rank"]) == pytest.approx((exact**2).sum() / exact[0] ** 2, rel=1e-6)
    for name in ("effective_rank", "srank99", "participation_ratio", "numerical_rank"):
        assert np.isnan(found[name]), f"{name} needs the whole spectrum"
    left, right = found["left_vector"].values[:, :10], found["right_vector"].values[:, :10]
    np.testing.assert_allclose(np.abs(np.diag(left.T @ matrix @ right)), exact[:10], rtol=1e-4)


def test_spectra_randomised__know_a_spectrum_that_ends():
    matrix = of_values([5, 4, 3, 2, 1], 300, 200)
    found = spectra(matrix, method="randomised", rank=10)
    exact = spectra(matrix)
    for name in GOLDEN:
        assert float(found[name]) == pytest.approx(float(exact[name]), rel=1e-9)


def test_spectra_rank__limits_what_is_given_not_the_metrics():
    ds = cube()
    few, whole = spectra(ds, rank=3, vectors="right"), spectra(ds, vectors="right")
    assert few.sizes["component"] == 3
    xr.testing.assert_identical(few["effective_rank"], whole["effective_rank"])
    for name in ("singular_value", "right_vector"):
        xr.testing.assert_allclose(few[name], whole[name].isel(component=slice(3)))


def test_spectra__agree_with_scikit_learn_and_dask():
    from sklearn.utils.extmath import randomized_svd

    matrix = of_values(0.8 ** np.arange(60), 2000, 60)
    found = spectra(matrix, rank=10, vectors="both")
    left, values, right = randomized_svd(matrix, 10, n_iter=10, random_state=0)
    np.testing.assert_allclose(found["singular_value"], values, rtol=1e-8)
    np.testing.assert_allclose(np.abs(found["right_vector"].values), np.abs(right.T), atol=1e-6)
    np.testing.assert_allclose(np.abs(found["left_vector"].values), np.abs(left), atol=1e-6)
    tall = da.from_array(matrix, chunks=(500, 60))
    np.testing.assert_allclose(found["singular_value"], da.linalg.svd(tall)[1].compute()[:10], rtol=1e-10)


def test_spectra_auto__chooses_by_the_shorter_side_and_the_memory(monkeypatch):
    from neurolens.spectral import per_layer

    monkeypatch.setattr(per_layer, "EXACT", 20)
    ds = cube()
    assert spectra(ds)["method"].values.tolist() == ["gram", "gram", "randomised"]
    assert set(spectra(ds.isel(sample=slice(20)))["method"].values) == {"gram"}
    monkeypatch.setattr(per_layer, "EXACT", 4096)
    wide = np.ones((1100, 1000), "f4")
    assert str(spectra(wide, memory_mib=4, rank=5)["method"].values) == "randomised"


def test_spectra__take_bare_arrays_and_single_checkpoints():
    ds = cube()
    values = ds["activation"].values
    whole = spectra(values, dims=("epoch", "sample", "unit"))
    assert whole["singular_value"].dims == ("epoch", "component")
    one = spectra(da.from_array(values[1], chunks=9))
    np.testing.assert_allclose(one["singular_value"].compute(), whole["singular_value"][1], atol=1e-6)
    close(spectra(ds["activation"].sel(epoch=5)), spectra(ds).sel(epoch=5))
    close(spectra(ds.rename(epoch="run"), dim="run"), spectra(ds).rename(epoch="run"))
    close(spectra(ds.transpose("unit", "epoch", "sample")), spectra(ds))


def test_spectra__are_a_method_of_the_cube():
    import neurolens.accessor  # noqa: F401

    close(cube().lens.spectra(rank=3), spectra(cube(), rank=3))


def test_spectra__keep_coordinates_and_provenance():
    ds = cube().assign_attrs(run="r18", snapshot="ABC", other=1).assign_coords(step=("epoch", [0, 50, 100]))
    ds["activation"].attrs["units"] = "volt"
    found = spectra(ds, vectors="left")
    assert found.attrs["snapshot"] == "ABC"
    assert "other" not in found.attrs
    assert found["step"].values.tolist() == [0, 50, 100]
    assert found["left_vector"]["sample"].values.tolist() == ds["sample"].values.tolist()
    assert found["singular_value"].attrs["units"] == "volt"
    assert "right_vector" not in found
    assert all("long_name" in found[name].attrs for name in found)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda ds: spectra(ds, layers="layers.3"), SchemaError, "no layer 'layers.3'; did you mean 'layers.2'"),
        (lambda ds: spectra(ds, method="grum"), SchemaError, "did you mean 'gram'"),
        (lambda ds: spectra(ds, vectors="all"), SchemaError, "vectors='all' is unknown"),
        (lambda ds: spectra(ds, rank=0), SchemaError, "rank=0; it needs to be at least 1"),
        (lambda ds: spectra(ds, method="qr", precision="mixed"), SchemaError, "leave out precision"),
        (lambda ds: spectra(ds.rename(unit="neuron")), SchemaError, "'unit'.*rename"),
        (lambda ds: spectra(ds.isel(sample=[])), SchemaError, "no sample left"),
        (lambda ds: spectra(ds.rename(activation="loss")), MissingMeasurementError, "--only activations"),
        (lambda ds: spectra(ds["activation"].values), SchemaError, "pass dims= with 3 names"),
        (lambda ds: spectra(ds.drop_vars("layer"), layers="a"), SchemaError, "coordinate `layer`"),
        (lambda ds: spectra(ds.astype(complex)), SchemaError, "real numbers"),
        (
            lambda ds: spectra(np.ones((1500, 1000)), method="gram", memory_mib=4),
            SchemaError,
            "1500 samples × 1000 units does not fit into memory_mib=4.*memory_mib=16",
        ),
        (lambda ds: spectrum_metrics(ds["activation"]), SchemaError, "no dim 'component'"),
    ],
)
def test_spectra__explain_what_they_cannot_do(call, error, said):
    with pytest.raises(error, match=said):
        call(cube())


matrices = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))


METRICS = ["effective_rank", "stable_rank", "srank99", "approx99", "participation_ratio", "numerical_rank"]


def low_rank(rows, columns, rank, seed):
    rng = np.random.default_rng(seed)
    rank = min(rows, columns, rank)
    return orthogonal(rows, rng)[:, :rank] * rng.uniform(0.1, 2, rank) @ orthogonal(columns, rng)[:rank]


@settings(max_examples=40, deadline=None)
@given(shape=matrices, method=st.sampled_from(METHODS))
def test_spectra__keep_their_order_and_bounds(shape, method):
    matrix = low_rank(*shape)
    found = spectra(matrix, method=method)
    rank = min(shape[:3])
    slack = 1 + 1e-9
    assert int(found["numerical_rank"]) == rank
    assert 1 / slack <= float(found["effective_rank"]) <= rank * slack
    assert 1 / slack <= float(found["stable_rank"]) <= float(found["effective_rank"]) * slack
    assert float(found["participation_ratio"]) <= rank * slack
    assert 1 <= float(found["approx99"]) <= float(found["srank99"]) <= rank
    values = found["singular_value"].values
    assert (np.diff(values) <= 0).all()
    assert float(found["frobenius_norm"]) == pytest.approx(np.linalg.norm(matrix))


@settings(max_examples=30, deadline=None)
@given(shape=matrices, scale=st.floats(1e-6, 1e6), method=st.sampled_from(METHODS))
def test_spectra__are_blind_to_order_and_rotation_and_scale_with_the_matrix(shape, scale, method):
    matrix = low_rank(*shape)
    rng = np.random.default_rng(1)
    turned = matrix[rng.permutation(len(matrix))] @ orthogonal(matrix.shape[1], rng) * scale
    found, same = spectra(matrix, method=method), spectra(turned, method=method)
    np.testing.assert_allclose(same["singular_value"], found["singular_value"] * scale, atol=1e-6 * scale)
    for name in ("effective_rank", "stable_rank", "participation_ratio", "numerical_rank"):
        assert float(same[name]) == pytest.approx(float(found[name]), rel=1e-6), name
