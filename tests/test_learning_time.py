"""Learning time: golden numbers, the definition written slowly, laziness, tau in closed form, invariants, memory."""

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
from neurolens.samples import csl, learning_time

LOSS = np.array([[2, 2, 2, 2], [1, 2, 0.5, 2], [0.5, 1.5, 0.25, 2.5], [0.25, 0.5, 0.125, 3]], np.float32)
GRAD = np.array([[4, 4, 4, 4], [2, 4, 1, 5], [1, 2, 0.5, 6], [0, 2, 0.5, 7]], np.float32)
CHUNKS = [{"epoch": 1}, {"sample": 2}, {"epoch": 3, "sample": 3}]


def cube(**variables):
    epochs, samples = next(iter(variables.values())).shape
    return xr.Dataset(
        {k: (("epoch", "sample"), v.copy()) for k, v in variables.items()},
        coords={"epoch": np.arange(epochs), "sample": [f"s{i}" for i in range(samples)]},
    )


def random_cube(epochs=8, samples=30, seed=0):
    rng = np.random.default_rng(seed)
    ds = cube(**{k: rng.random((epochs, samples), dtype=np.float32) for k in ("loss", "grad_norm")})
    return ds.assign_coords(label=("sample", np.arange(samples) % 3), **{"class": ["a", "b", "c"]})


def scheduled(ds):
    exposed = np.arange(ds.sizes["epoch"])[:, None] >= [0, 2, 5]
    return ds.assign_coords(exposed=(("epoch", "class"), exposed))


def summed(ds):
    """The coordinates that the store keeps."""
    one_hot = (ds["label"].data[:, None] == np.arange(3)).astype(float)
    present = ds["grad_norm"].notnull().data
    return ds.assign_coords(
        grad_norm_sum=(("epoch", "class"), np.nan_to_num(ds["grad_norm"].data.astype(float)) @ one_hot),
        grad_norm_count=(("epoch", "class"), (present @ one_hot).astype(int)),
    )


def slowly(gradients, kept=None, tau=None, groups=None):
    """Learning time as the paper has it, one sample and one epoch at a time."""
    epochs, samples = gradients.shape
    kept = np.ones((epochs, samples), bool) if kept is None else kept
    means = [[] for _ in range(samples)]
    for i in range(samples):
        seen = []
        for e in range(epochs):
            if kept[e, i]:
                seen.append(float(gradients[e, i]))
                means[i].append(sum(seen) / len(seen))
    groups = np.zeros(samples, int) if groups is None else groups
    taus = [np.mean([m for i in range(samples) if groups[i] == g for m in means[i]]) for g in np.unique(groups)]
    taus = taus if tau is None else [tau]
    return [1 - np.mean(np.array(m) < taus[groups[i]]) for i, m in enumerate(means)], taus


def test_learning_time__matches_the_reference_on_paper():
    result = learning_time(cube(loss=LOSS, grad_norm=GRAD))
    np.testing.assert_array_equal(result["learning_time"], [0.25, 0.5, 0.25, 1])
    assert float(result["learning_tau"]) == pytest.approx(3.390625, rel=1e-14)
    assert result.attrs["epochs"] == [0, 1, 2, 3]


def test_learning_time__of_losses_matches_the_reference_on_paper():
    result = learning_time(cube(loss=LOSS, grad_norm=GRAD), variable="loss")
    np.testing.assert_array_equal(result["learning_time"], [0.25, 0.75, 0.25, 1])
    assert float(result["learning_tau"]) == pytest.approx(1.647786, abs=5e-7)


@pytest.mark.parametrize("chunks", [None, *CHUNKS])
def test_learning_time_seed__puts_the_loss_in_place_of_a_missing_gradient(chunks):
    ds = cube(loss=LOSS, grad_norm=GRAD)
    ds["grad_norm"][1] = np.nan
    result = learning_time(ds if chunks is None else ds.chunk(chunks), compat="seed").compute()
    np.testing.assert_array_equal(result["learning_time"], [0.25, 0.5, 0.25, 1])
    assert float(result["learning_tau"]) == pytest.approx(2.950521, abs=5e-7)


def test_learning_time_seed__equals_the_reference_arithmetic():
    g = np.random.default_rng(1).random((400, 500), dtype=np.float32)
    running = np.cumsum(np.stack(list(g)), axis=0) / np.arange(1, 401)[:, None]
    tau = running.mean()
    result = learning_time(cube(loss=g, grad_norm=g), compat="seed")
    np.testing.assert_array_equal(result["learning_time"], 1 - (running < tau).mean(axis=0))
    assert float(result["learning_tau"]) == pytest.approx(tau, rel=1e-12)


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("exposure", ["respect", "all"])
@pytest.mark.parametrize("sums", [False, True])
def test_learning_time__matches_the_slow_definition(per_class, exposure, sums):
    ds = scheduled(random_cube())
    ds = summed(ds) if sums else ds
    kept = ds["exposed"].data[:, ds["label"].data] if exposure == "respect" else None
    groups = ds["label"].data if per_class else None
    expected, taus = slowly(ds["grad_norm"].data, kept, groups=groups)
    result = learning_time(ds, per_class=per_class, exposure=exposure)
    np.testing.assert_allclose(result["learning_time"], expected)
    np.testing.assert_allclose(np.atleast_1d(result["learning_tau"]), taus, rtol=1e-12)
    assert result.attrs["tau_from"] == ("stored sums" if sums else "data")


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("kind", ["plain", "exposure", "per class", "drop", "seed", "sums", "given"])
def test_learning_time__is_lazy_and_blind_to_chunks(chunks, kind):
    ds = scheduled(random_cube()) if kind == "exposure" else random_cube()
    options = {
        "per class": {"per_class": True},
        "drop": {"missing": "drop"},
        "seed": {"compat": "seed"},
        "given": {"tau": 0.5},
    }.get(kind, {})
    if kind == "drop":
        ds["grad_norm"][2, :5] = np.nan
    ds = summed(ds) if kind == "sums" else ds
    lazy = learning_time(ds.assign(grad_norm=ds["grad_norm"].chunk(chunks)), **options)
    assert isinstance(lazy["learning_time"].data, da.Array)
    xr.testing.assert_allclose(lazy.compute(), learning_time(ds, **options))
    xr.testing.assert_allclose(learning_time(ds.chunk(chunks), **options).compute(), learning_time(ds, **options))


def test_learning_time_drop__matches_the_slow_definition():
    ds = random_cube()
    ds["grad_norm"][[0, 3]] = np.nan
    ds["grad_norm"][5, :4] = np.nan
    expected, (tau,) = slowly(ds["grad_norm"].data, ds["grad_norm"].notnull().data)
    for given_ds in (ds, summed(ds)):
        result = learning_time(given_ds, missing="drop")
        np.testing.assert_allclose(result["learning_time"], expected)
        assert float(result["learning_tau"]) == pytest.approx(tau)
    assert learning_time(summed(ds), missing="drop").attrs["epochs"] == [1, 2, 4, 5, 6, 7]


def test_learning_time_drop__takes_tau_from_sums_where_whole_rows_are_missing():
    ds = random_cube()
    ds["grad_norm"][[0, 3]] = np.nan
    result = learning_time(summed(ds), missing="drop")
    assert result.attrs["tau_from"] == "stored sums"
    xr.testing.assert_allclose(result, learning_time(ds.drop_isel(epoch=[0, 3])))


@pytest.mark.parametrize("lazy", [False, True])
def test_learning_time__names_the_epochs_without_gradients(lazy):
    ds = random_cube()
    ds["grad_norm"][[2, 5]] = np.nan
    with pytest.raises(MissingMeasurementError, match="'grad_norm' at epochs 2, 5"):
        learning_time(ds.chunk(epoch=2) if lazy else ds).compute()
    with pytest.raises(MissingMeasurementError, match="epochs 2, 5"):
        learning_time(summed(ds).assign(grad_norm=ds["grad_norm"].chunk(epoch=1)))


def test_learning_time__stops_where_no_gradient_was_measured():
    ds = random_cube()
    with pytest.raises(MissingMeasurementError, match="input_gradient"):
        learning_time(ds.drop_vars("grad_norm"))
    ds["grad_norm"][:] = np.nan
    for options in ({"missing": "drop"}, {"compat": "seed"}):
        with pytest.raises(MissingMeasurementError):
            learning_time(summed(ds), **options)


def test_learning_time__is_strict_at_a_tie():
    result = learning_time(cube(grad_norm=np.full((7, 5), 0.1, np.float32)))
    np.testing.assert_array_equal(result["learning_time"], 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda ds: ds.assign(grad_norm=ds["grad_norm"] * 2),
        lambda ds: ds.assign(grad_norm=ds["grad_norm"] + 1),
        lambda ds: ds.assign(grad_norm=ds["grad_norm"].copy(data=ds["grad_norm"].data[::-1])),
        lambda ds: ds.assign(grad_norm=ds["grad_norm"].where(ds["grad_norm"] > 0.5, 0)),
    ],
)
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("chunks", [None, {"epoch": 3, "sample": 7}])
def test_learning_time__refuses_stored_sums_of_other_data(change, per_class, chunks):
    ds = change(summed(random_cube()))
    if chunks:
        ds = ds.assign(grad_norm=ds["grad_norm"].chunk(chunks))
    with pytest.raises(SchemaError, match="drop_vars"):
        learning_time(ds, per_class=per_class).compute()
    bare = ds.drop_vars(["grad_norm_sum", "grad_norm_count"])
    assert learning_time(bare, per_class=per_class).attrs["tau_from"] == "data"


def test_learning_time__of_a_subset_takes_its_own_tau():
    ds = summed(random_cube())
    subset = ds.isel(sample=slice(0, 11))
    result = learning_time(subset)
    assert result.attrs["tau_from"] == "data"
    np.testing.assert_allclose(result["learning_time"], slowly(subset["grad_norm"].data)[0])


def test_learning_time__of_an_epoch_selection_uses_the_sums():
    ds = summed(random_cube()).isel(epoch=[1, 4, 6])
    result = learning_time(ds)
    assert result.attrs["tau_from"] == "stored sums"
    np.testing.assert_allclose(result["learning_time"], slowly(ds["grad_norm"].data)[0])


def test_learning_time__explains_contradictions():
    with pytest.raises(SchemaError, match="leave out tau"):
        learning_time(random_cube(), tau=1.0, per_class=True)
    with pytest.raises(SchemaError, match="class"):
        learning_time(cube(grad_norm=GRAD), per_class=True)


@settings(max_examples=25, deadline=None)
@given(epochs=st.integers(1, 9), samples=st.integers(1, 20), seed=st.integers(0, 99), power=st.integers(-8, 8))
def test_learning_time__is_a_share_and_blind_to_scale(epochs, samples, seed, power):
    ds = random_cube(epochs, samples, seed)
    result = learning_time(ds)["learning_time"]
    assert ((result >= 0) & (result <= 1)).all()
    scaled = learning_time(ds.assign(grad_norm=ds["grad_norm"] * 2.0**power))["learning_time"]
    xr.testing.assert_identical(result, scaled)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(9)))
def test_learning_time__follows_a_permutation_of_the_samples(order):
    ds = random_cube(samples=9)
    xr.testing.assert_allclose(learning_time(ds.isel(sample=list(order))), learning_time(ds).isel(sample=list(order)))


def test_learning_time__of_an_opened_store_needs_one_pass(make_store, tmp_path):
    truth = make_store(tmp_path / "store")
    ds = xr.open_dataset(tmp_path / "store", group="samples", engine="neurolens", chunks={})
    result = learning_time(ds)
    assert result.attrs["tau_from"] == "stored sums"
    assert isinstance(result["learning_time"].data, da.Array)
    expected, (tau,) = slowly(truth["grad_norm"])
    np.testing.assert_allclose(result["learning_time"], expected)
    assert float(result["learning_tau"]) == pytest.approx(tau)
    np.testing.assert_allclose(csl(ds)["csl"], truth["loss"].astype(float).sum(axis=0))
    assert result.attrs["snapshot"] == ds.attrs["snapshot"]


def test_learning_time__of_a_store_with_gaps_names_them_at_once(make_store, tmp_path):
    gaps = [(1, 0, "input_gradient"), (1, 1, "input_gradient"), (3, 1, "input_gradient")]
    truth = make_store(tmp_path / "store", absent=gaps)
    ds = xr.open_dataset(tmp_path / "store", group="samples", engine="neurolens", chunks={})
    with pytest.raises(MissingMeasurementError, match="run 'random' has no complete 'grad_norm' at epoch 1 "):
        learning_time(ds)
    result = learning_time(ds, missing="drop")
    expected, (tau,) = slowly(truth["grad_norm"], ~np.isnan(truth["grad_norm"]))
    np.testing.assert_allclose(result["learning_time"], expected)
    assert float(result["learning_tau"]) == pytest.approx(tau)


def test_csl_and_learning_time__stay_out_of_core():
    """A 1.2 GB cube (as float32) in row chunks, with 700 MB of address space on top of the imports."""
    code = """
        import resource, dask, dask.array as da, numpy as np, xarray as xr
        from neurolens.samples import csl, learning_time
        dask.config.set(scheduler="threads", num_workers=2)
        def block(block_info=None):
            (low, high), _ = block_info[None]["array-location"]
            return np.repeat(np.arange(low, high, dtype=np.float32)[:, None], 50_000, axis=1)
        def cube(rows):
            chunks = (100,) * (rows // 100), (50_000,)
            return da.map_blocks(block, chunks=chunks, dtype="float32", meta=np.empty((0, 0), "f4"))
        def both(rows):
            ds = xr.Dataset({"loss": (("epoch", "sample"), cube(rows)), "grad_norm": (("epoch", "sample"), cube(rows))})
            return dask.compute(csl(ds)["csl"], learning_time(ds)["learning_time"])
        both(200)
        now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 700 * 2**20,) * 2)
        total, learned = both(3000)
        assert float(total[0]) == 2999 * 1500, total
        # R[e] = e / 2, tau = 2999 / 4: reached from e = 1500 on
        assert float(learned[0]) == 0.5, learned
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("sample", range(4))
def test_learning_time__ends_at_the_running_means_worked_on_paper(sample):
    last = [1.75, 3, 1.5, 5.5][sample]
    ds = cube(grad_norm=GRAD)
    tie, above = (float(learning_time(ds, tau=t).learning_time[sample]) for t in (last, last * (1 + 1e-9)))
    assert tie - above == 0.25, "the last running mean is one of four, and differs from the others"


@pytest.mark.parametrize("chunks", [None, {"epoch": 1}])
def test_learning_time__of_an_infinite_gradient_is_what_the_definition_says(chunks):
    ds = cube(grad_norm=GRAD.copy())
    ds["grad_norm"][1, 2] = np.inf
    result = learning_time(ds if chunks is None else ds.chunk(chunks)).compute()
    assert float(result["learning_tau"]) == np.inf
    np.testing.assert_array_equal(result["learning_time"], [0, 0, 0.75, 0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tau": float("nan")}, "tau=nan is no threshold"),
        ({"compat": "lite"}, "compat='lite' is unknown"),
        ({"samples": 0}, "no samples to take tau from"),
    ],
)
def test_learning_time__says_what_it_cannot_start_from(options, said):
    ds = cube(grad_norm=GRAD).isel(sample=slice(options.pop("samples", None)))
    with pytest.raises(SchemaError, match=said):
        learning_time(ds, **options)
