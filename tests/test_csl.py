"""CSL, CSG, AUM and curvature: golden numbers, slow versions, laziness, invariants, errors."""

import subprocess
import sys
import textwrap

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.errors import MissingMeasurementError, SchemaError
from neurolens.samples import aum, csg, csl, curvature

LOSS = np.array([[2, 2, 2, 2], [1, 2, 0.5, 2], [0.5, 1.5, 0.25, 2.5], [0.25, 0.5, 0.125, 3]], np.float32)
GRAD = np.array([[4, 4, 4, 4], [2, 4, 1, 5], [1, 2, 0.5, 6], [0, 2, 0.5, 7]], np.float32)
LOGITS = np.array(
    [
        [[2, 1, 0], [0, 2, 1], [1, 1, 1]],
        [[3, 1, 0], [2, 1, 0], [0, 1, 2]],
        [[4, 0, 0], [0, 3, 1], [3, 0, 1]],
        [[5, 0, 0], [1, 2, 0], [2, 0, 0]],
    ],
    float,
)
CHUNKS = [{"epoch": 1}, {"sample": 2}, {"epoch": 3, "sample": 3}]


def cube(**variables):
    first = next(iter(variables.values()))
    return xr.Dataset(
        {k: (("epoch", "sample"), v) for k, v in variables.items()},
        coords={"epoch": np.arange(first.shape[0]), "sample": [f"s{i}" for i in range(first.shape[1])]},
    )


def from_logits():
    labels = np.arange(3)
    of_label = LOGITS[:, labels, labels]
    others = np.where(np.eye(3, dtype=bool), -np.inf, LOGITS).max(axis=2)
    loss = np.log(np.exp(LOGITS).sum(axis=2)) - of_label
    return cube(
        loss=loss,
        margin=of_label - others,
        p_true=np.exp(-loss),
        correct=(LOGITS.argmax(axis=2) == labels).astype("f4"),
    )


def random_cube(epochs=7, samples=40, seed=0):
    rng = np.random.default_rng(seed)
    return cube(**{k: rng.random((epochs, samples), dtype=np.float32) for k in ("loss", "grad_norm", "margin")})


def scheduled(ds):
    """Three classes, introduced at epochs 0, 2 and 5."""
    exposed = np.arange(ds.sizes["epoch"])[:, None] >= [0, 2, 5]
    return ds.assign_coords(
        label=("sample", np.arange(ds.sizes["sample"]) % 3),
        **{"class": ["a", "b", "c"], "exposed": (("epoch", "class"), exposed)},
    )


@pytest.mark.parametrize("compat", [None, "seed"])
def test_csl__matches_the_reference_on_paper(compat):
    np.testing.assert_array_equal(csl(cube(loss=LOSS), compat=compat)["csl"], [3.75, 6, 2.875, 9.5])


def test_csl__matches_the_logits_worked_by_hand():
    np.testing.assert_allclose(csl(from_logits())["csl"], [0.626814, 2.392664, 5.915609], atol=5e-7)


def test_csl_seed__sums_in_float32_row_by_row():
    ds = random_cube(epochs=300)
    np.testing.assert_array_equal(csl(ds, compat="seed")["csl"], np.stack(list(ds["loss"].data)).sum(axis=0))


def test_aum__matches_the_logits_worked_by_hand():
    np.testing.assert_allclose(aum(from_logits()), [3, 0.75, -0.75])


def test_csg__sums_squares():
    np.testing.assert_allclose(csg(cube(grad_norm=GRAD)), (GRAD.astype(float) ** 2).sum(axis=0))


def test_curvature__is_a_mean_or_a_sum():
    ds = cube(curvature=GRAD)
    np.testing.assert_allclose(curvature(ds), GRAD.mean(axis=0))
    np.testing.assert_allclose(curvature(ds, how="sum"), GRAD.sum(axis=0))


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("kind", ["plain", "exposure", "drop", "seed"])
def test_csl__is_lazy_and_blind_to_chunks(chunks, kind):
    ds = random_cube()
    if kind == "exposure":
        ds = scheduled(ds)
    if kind == "drop":
        ds["loss"][2, :5] = np.nan
    options = {"drop": {"missing": "drop"}, "seed": {"compat": "seed"}}.get(kind, {})
    lazy, eager = csl(ds.chunk(chunks), **options), csl(ds, **options)
    assert all(isinstance(lazy[name].data, da.Array) for name in eager)
    xr.testing.assert_allclose(lazy.compute(), eager)
    assert not any(isinstance(eager[name].data, da.Array) for name in eager)


def test_csl__respects_exposure_or_not():
    ds = scheduled(random_cube())
    shown = ds["exposed"].data[:, ds["label"].data]
    result = csl(ds)
    np.testing.assert_allclose(result["csl"], np.where(shown, ds["loss"], 0).sum(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(result["n_epochs"], shown.sum(axis=0))
    np.testing.assert_allclose(csl(ds, exposure="all")["csl"], ds["loss"].data.sum(axis=0, dtype=float))


def test_csl__is_nan_for_a_class_never_shown():
    ds = scheduled(random_cube(epochs=3))
    assert csl(ds)["csl"].isnull().data.tolist() == (ds["label"] == 2).data.tolist()


@pytest.mark.parametrize("chunks", [None, {"epoch": 2}])
def test_csl__names_the_epochs_without_loss_and_the_mend(chunks):
    ds = random_cube()
    ds["loss"][[2, 5]] = np.nan
    ds = ds if chunks is None else ds.chunk(chunks)
    with pytest.raises(MissingMeasurementError, match=r"'loss' at epochs 2, 5 \(of 0–6\); .*missing=\"drop\""):
        csl(ds).compute()


def test_csl__stops_at_once_where_the_stored_counts_tell():
    ds = random_cube().chunk(epoch=1).assign_coords(loss_count=(("epoch", "class"), np.ones((7, 2), int)))
    ds["loss_count"][3] = 0
    with pytest.raises(MissingMeasurementError, match="epoch 3"):
        csl(ds)


def test_csl_drop__leaves_out_and_counts():
    ds = random_cube()
    ds["loss"][2] = np.nan
    ds["loss"][:, 0] = np.nan
    result = csl(ds, missing="drop")
    np.testing.assert_allclose(result["csl_mean"], ds["loss"].astype(float).mean("epoch"))
    assert result["n_epochs"].data[:2].tolist() == [0, 6]
    assert np.isnan(result["csl"].data[0])


def test_csl__explains_what_it_cannot_do():
    with pytest.raises(MissingMeasurementError, match="forward"):
        csl(cube(margin=LOSS))
    with pytest.raises(SchemaError, match="select one position"):
        csl(cube(loss=LOSS).expand_dims(run=2))
    with pytest.raises(SchemaError, match="did you mean 'drop'"):
        csl(cube(loss=LOSS), missing="dorp")
    with pytest.raises(SchemaError, match="label"):
        csl(scheduled(cube(loss=LOSS)).drop_vars("label"))
    with pytest.raises(SchemaError, match="cover"):
        csl(scheduled(cube(loss=LOSS)).assign_coords(label=("sample", [0, 1, 2, 3])))
    with pytest.raises(SchemaError, match="no epoch left"):
        csl(cube(loss=LOSS).isel(epoch=[]))


def test_csl__keeps_sample_coordinates_and_provenance():
    ds = scheduled(random_cube()).assign_attrs(run="r18", snapshot="ABC", other=1)
    result = csl(ds)
    assert set(result.coords) == {"sample", "label"}
    assert result.attrs["snapshot"] == "ABC"
    assert "other" not in result.attrs
    assert result["csl"].attrs["units"] == "nat"


@settings(max_examples=25, deadline=None)
@given(epochs=st.integers(2, 12), samples=st.integers(1, 30), seed=st.integers(0, 99), data=st.data())
def test_csl__adds_up_over_a_split_of_the_epochs(epochs, samples, seed, data):
    ds = random_cube(epochs, samples, seed)
    cut = data.draw(st.integers(1, epochs - 1))
    parts = csl(ds.isel(epoch=slice(cut)))["csl"] + csl(ds.isel(epoch=slice(cut, None)))["csl"]
    xr.testing.assert_allclose(csl(ds)["csl"], parts)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(9)))
def test_csl__follows_a_permutation_of_the_samples(order):
    ds = random_cube(samples=9)
    xr.testing.assert_identical(csl(ds.isel(sample=list(order))), csl(ds).isel(sample=list(order)))


@pytest.mark.parametrize("dtype", ["f2", "f8", ">f4", "i8"])
def test_csl__takes_any_number_type(dtype):
    ds = cube(loss=LOSS).astype(dtype)
    np.testing.assert_allclose(csl(ds)["csl"], ds["loss"].data.astype(float).sum(axis=0))


def test_csl__takes_the_dims_in_any_order():
    ds = random_cube()
    xr.testing.assert_allclose(csl(ds.transpose("sample", "epoch")), csl(ds))


def test_reductions__do_not_import_torch():
    code = """
        import sys, neurolens.samples as samples
        for name, home in samples._HOMES.items():
            if home not in ("measure", "grand"):
                getattr(samples, name)
        sys.exit("torch" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode == 0


@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_csl__in_strips_and_threads_equals_a_plain_sum(monkeypatch, dtype):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    values = np.random.default_rng(0).random((20, 60_001), dtype=np.float32).astype(dtype)
    result = csl(cube(loss=values))
    np.testing.assert_allclose(result["csl"], values.sum(axis=0, dtype=float))
    values[3, 0] = values[7, -1] = np.nan
    with pytest.raises(MissingMeasurementError, match="epochs 3, 7"):
        csl(cube(loss=values))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda ds: csl(ds, compat="lite"), "compat='lite' is unknown; known: 'seed'"),
        (lambda ds: csl(ds, missing="skip"), "missing='skip' is unknown"),
        (
            lambda ds: curvature(ds.rename(loss="curvature"), how="median"),
            "how='median' is unknown; did you mean 'mean'",
        ),
        (
            lambda ds: csl(scheduled(ds).astype(float).assign_coords(exposed=scheduled(ds).exposed * 1.0)),
            "float64.*NaN",
        ),
    ],
)
def test_reductions__refuse_options_that_would_be_ignored(call, said):
    with pytest.raises(SchemaError, match=said):
        call(random_cube())
