import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import dask.array as da
import icechunk
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import neurolens
from neurolens import schema
from neurolens.backend import NeurolensBackendEntrypoint
from neurolens.backend.cubes import chunk_rows
from neurolens.errors import StoreError
from neurolens.store import open_store

ROWS, SAMPLES = 7, 20


@pytest.fixture(scope="module")
def run(make_store, tmp_path_factory):
    """A store with rows out of order, two blocks, and holes: a failed block, an absent part, a wholly failed row."""
    url = tmp_path_factory.mktemp("run") / "store"
    failed = [(1, 1, "forward"), (5, 0, "forward"), (5, 1, "forward"), (5, 0, "input_gradient")]
    absent = [(2, 0, "input_gradient"), (5, 1, "input_gradient")]
    positions = (3, 0, 5, 2, 4, 1, 6)
    return url, make_store(url, positions=positions, blocks=(12, 8), failed=failed, absent=absent)


def test_open_run__gives_committed_rows_in_order_of_the_series(run):
    url, truth = run
    tree = neurolens.open_run(url)
    ds = tree["samples"].to_dataset()
    assert ds.epoch.values.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert list(ds.data_vars) == [
        v.name for p in ("forward", "input_gradient") for v in schema.SAMPLES.part(p).variables
    ]
    for name, expected in truth.items():
        assert isinstance(ds[name].data, da.Array)
        assert ds[name].dtype == np.float32
        np.testing.assert_array_equal(ds[name].values, expected)
    assert tree.attrs["run"] == "random"


def test_open_dataset__is_guessed_without_an_engine_and_lazy_without_chunks(run):
    url, truth = run
    ds = xr.open_dataset(url, group="samples")
    assert not ds.loss.variable._in_memory
    xr.testing.assert_identical(ds.load(), xr.open_datatree(url, chunks={})["samples"].to_dataset().load())
    np.testing.assert_array_equal(xr.open_dataset(url).loss, truth["loss"])


def test_open_dataset__keeps_coordinates_in_memory(run):
    ds = xr.open_dataset(run[0], engine="neurolens", chunks={})
    assert all(ds[name].variable._in_memory for name in ds.coords)
    assert {"step", "label", "split", "class", "loss_sum", "loss_count"} <= set(ds.coords)
    assert np.isnan(ds.step.sel(epoch=0))
    assert ds.step.sel(epoch=3) == 300


def test_open_dataset__sums_agree_with_the_rows(run):
    ds = xr.open_dataset(run[0], engine="neurolens")
    for name in ("loss", "grad_norm"):
        for c in range(3):
            of_class = ds[name].astype("float64").where(ds.label == c, drop=True)
            np.testing.assert_allclose(ds[f"{name}_sum"][:, c], of_class.sum("sample"), rtol=1e-12)
            np.testing.assert_array_equal(ds[f"{name}_count"][:, c], of_class.notnull().sum("sample"))


def test_open_dataset__opens_what_was_measured_nowhere_as_absent(make_store, tmp_path):
    absent = [(p, 0, "grand") for p in range(2)]
    make_store(tmp_path / "s", positions=(0, 1), blocks=(4,), parts=("forward", "grand"), absent=absent)
    ds = xr.open_dataset(tmp_path / "s", engine="neurolens")
    assert "grand" not in ds
    with pytest.raises(neurolens.schema.MissingMeasurementError, match="part 'grand'"):
        schema.require(ds, "grand")


def test_open_dataset__opens_a_store_without_rows(make_store, tmp_path):
    make_store(tmp_path / "s", positions=(), blocks=(4,))
    ds = xr.open_dataset(tmp_path / "s", engine="neurolens", chunks={})
    assert ds.sizes == {"epoch": 0, "sample": 4, "class": 3}
    assert ds.loss.shape == (0, 4)


def test_open_dataset__has_exposure_and_the_other_series(make_store, tmp_path):
    make_store(tmp_path / "s", positions=(4, 2), series="step", exposure={0: [0], 300: [0, 1]})
    ds = xr.open_dataset(tmp_path / "s", engine="neurolens", chunks={})
    assert ds.step.values.tolist() == [2, 4]
    assert ds.epoch.values.tolist() == [200, 400]
    assert ds.epoch.dtype == np.int64
    assert ds.exposed.values.tolist() == [[True, False, False], [True, True, False]]


def test_open_dataset__drops_variables(run):
    ds = xr.open_dataset(run[0], engine="neurolens", drop_variables=["loss", "split"])
    assert "loss" not in ds
    assert "split" not in ds
    assert "margin" in ds


def test_open_mfdataset__joins_runs(make_store, tmp_path):
    truths = [make_store(tmp_path / f"run{i}", blocks=(5,), seed=i) for i in range(2)]
    urls = [str(tmp_path / f"run{i}") for i in range(2)]
    with xr.set_options(use_new_combine_kwarg_defaults=True):
        ds = xr.open_mfdataset(
            urls, engine="neurolens", group="samples", combine="nested", concat_dim="run", data_vars="all"
        )
    np.testing.assert_array_equal(ds.loss, np.stack([t["loss"] for t in truths]))


def test_open_dataset__survives_pickling_into_another_process(run, tmp_path):
    url, truth = run
    ds = xr.open_dataset(url, engine="neurolens", chunks={})
    file = tmp_path / "ds.pickle"
    file.write_bytes(pickle.dumps(ds.loss))
    code = f"import pickle; print(float(pickle.load(open({str(file)!r}, 'rb')).sum()))"
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) == pytest.approx(float(np.nansum(truth["loss"])), rel=1e-6)


def test_open_run__gives_every_snapshot_dask_names_of_its_own(make_store, tmp_path):
    make_store(tmp_path / "s", positions=(0, 1), blocks=(4,))
    before = neurolens.open_run(tmp_path / "s")["samples"].to_dataset()
    row = {"positions": {"epoch": 1}, "seconds": 0.0, "provenance": {}}
    values = {"loss": np.full(4, 7, "float32")}
    open_store(tmp_path / "s").write_row(schema.SAMPLES, (1, 0), values=values, keys={"forward": "a" * 64}, **row)
    after = neurolens.open_run(tmp_path / "s")["samples"].to_dataset()
    assert before.loss.data.name != after.loss.data.name
    both = xr.concat([before.loss, after.loss], "time").compute()
    assert not (both[0, 1] == both[1, 1]).any()
    assert (both[1, 1] == 7).all()


def test_open_run__opens_tags_and_snapshots(make_store, tmp_path):
    make_store(tmp_path / "s", positions=(0, 1), blocks=(4,))
    store = open_store(tmp_path / "s")
    first = [s.id for s in store.history()][1]
    store.tag("thesis-v1", first)
    for where in ({"tag": "thesis-v1"}, {"snapshot": first}):
        assert neurolens.open_run(tmp_path / "s", **where)["samples"].sizes["epoch"] == 1
    assert neurolens.open_run(tmp_path / "s")["samples"].attrs["snapshot"] == store.snapshot_id
    with pytest.raises(StoreError, match=r"no tag 'thesis-v2'; did you mean 'thesis-v1'\?"):
        neurolens.open_run(tmp_path / "s", tag="thesis-v2")
    with pytest.raises(StoreError, match=f"the newest are {store.snapshot_id}"):
        neurolens.open_run(tmp_path / "s", snapshot="0" * 20)
    with pytest.raises(StoreError, match="no snapshot 'nonsense'"):
        neurolens.open_run(tmp_path / "s", snapshot="nonsense")
    with pytest.raises(StoreError, match="pass one of them"):
        neurolens.open_run(tmp_path / "s", tag="thesis-v1", snapshot=first)


def test_open_run__says_what_is_not_a_store(tmp_path, run):
    with pytest.raises(StoreError, match="no such folder"):
        neurolens.open_run(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="not a neurolens store"):
        neurolens.open_run(tmp_path)
    with pytest.raises(StoreError, match=r"no group 'sample'; did you mean 'samples'\?"):
        xr.open_dataset(run[0], engine="neurolens", group="sample")
    with pytest.raises(StoreError, match="cannot open a int"):
        NeurolensBackendEntrypoint().open_dataset(3)
    open_store(tmp_path / "new", create=True)
    assert neurolens.open_run(tmp_path / "new").children == {}
    with pytest.raises(StoreError, match="nothing was measured yet"):
        xr.open_dataset(tmp_path / "new", engine="neurolens")


def test_guess_can_open__claims_our_stores_only(run, tmp_path):
    guess = NeurolensBackendEntrypoint().guess_can_open
    assert guess(run[0])
    assert guess(str(run[0]))
    zarr.create_group(str(tmp_path / "plain.zarr"))
    icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "foreign")))
    (tmp_path / "file.nc").write_bytes(b"CDF")
    for foreign in ("plain.zarr", "foreign", "file.nc", "nowhere"):
        assert not guess(tmp_path / foreign)
    for foreign in ("s3://bucket/run", "https://host/x", 3, b"bytes", {}):
        assert not guess(foreign)
    with pytest.raises(StoreError, match="is empty"):
        xr.open_dataset(tmp_path / "foreign", engine="neurolens")


def test_opening__imports_neither_torch_nor_prefect(run):
    code = (
        "import sys, xarray as xr\n"
        f"xr.open_dataset({str(run[0])!r}, chunks={{}}).loss.sum().compute()\n"
        f"tree = xr.open_datatree({str(run[0])!r}, engine='neurolens', chunks={{}})\n"
        "tree['samples'].to_dataset().lens.provenance()\n"
        "print([m for m in ('torch', 'prefect', 'lightning', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_importing__is_light_and_every_public_name_resolves():
    code = (
        "import sys, neurolens\n"
        "print([m for m in ('torch', 'prefect', 'xarray', 'zarr') if m in sys.modules])\n"
        "assert set(neurolens.__all__) <= set(dir(neurolens))\n"
        "assert all(getattr(neurolens, name) is not None for name in neurolens.__all__)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        neurolens.nonsense  # noqa: B018


def test_chunk_rows__makes_useful_dask_chunks():
    assert chunk_rows(4 * 50_000) == 167
    assert chunk_rows(4 * 100_000) == 100
    assert chunk_rows(4 * 2**20) == 16
    assert chunk_rows(2**30) == 1


_rows = st.lists(st.integers(-ROWS, ROWS - 1), max_size=8).map(lambda x: np.asarray(x, int))
_samples = st.lists(st.integers(-SAMPLES, SAMPLES - 1), max_size=30).map(lambda x: np.asarray(x, int))


def _slices(size):
    ends = st.none() | st.integers(-size, size + 2)  # xarray turns slice(-size - 1, None, -1) round: not ours
    return st.builds(slice, ends, ends, st.sampled_from([None, 1, 2, 3, -1, -2]))


@given(
    row=_rows | _slices(ROWS) | st.integers(-ROWS, ROWS - 1),
    sample=_samples | _slices(SAMPLES) | st.integers(-SAMPLES, SAMPLES - 1),
    name=st.sampled_from(["loss", "grad_norm", "correct", "predicted"]),
    chunks=st.sampled_from([None, {}, {"epoch": 1}, {"sample": 7}, {"epoch": 4, "sample": 3}]),
)
@settings(max_examples=150, deadline=None)
def test_isel__equals_numpy_whatever_the_chunks(run, row, sample, name, chunks):
    url, truth = run
    ds = xr.open_dataset(url, engine="neurolens", chunks=None if chunks else chunks)
    found = (ds.chunk(chunks) if chunks else ds)[name].isel(epoch=row, sample=sample)
    expected = truth[name][row][..., sample]
    np.testing.assert_array_equal(found.values, expected)


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_isel__pointwise_equals_numpy(run, data):
    url, truth = run
    points = data.draw(
        st.lists(st.tuples(st.integers(0, ROWS - 1), st.integers(0, SAMPLES - 1)), min_size=1, max_size=9)
    )
    row, sample = (xr.DataArray(list(index), dims="point") for index in zip(*points, strict=True))
    ds = xr.open_dataset(url, engine="neurolens", chunks=data.draw(st.sampled_from([None, {}])))
    np.testing.assert_array_equal(ds.loss.isel(epoch=row, sample=sample), truth["loss"][row.values, sample.values])


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_sel__finds_rows_and_samples_by_label(run, data):
    url, truth = run
    ds = xr.open_dataset(url, engine="neurolens", chunks=data.draw(st.sampled_from([None, {}])))
    epochs = data.draw(st.lists(st.sampled_from(range(ROWS)), min_size=1))
    ids = data.draw(st.lists(st.integers(0, SAMPLES - 1), min_size=1))
    found = ds.margin.sel(epoch=epochs, sample=[f"s{i:05d}" for i in ids])
    np.testing.assert_array_equal(found, truth["margin"][np.ix_(epochs, ids)])


def test_stores_equal__is_blind_to_the_order_of_writing(make_store, stores_equal):
    with tempfile.TemporaryDirectory() as folder:
        urls = [Path(folder) / name for name in "ab"]
        for url in urls:
            make_store(url, positions=(1, 0, 2))
        stores_equal(*urls)
        make_store(Path(folder) / "c", positions=(1, 0, 2), seed=1)
        with pytest.raises(AssertionError):
            stores_equal(urls[0], Path(folder) / "c")


@pytest.fixture
def bucket(monkeypatch):
    """An S3 server on loopback, and the URL of a store there."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    known = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="runs")
    yield "s3://runs/one", endpoint
    server.stop()


def test_open_run__opens_stores_on_s3(make_store, bucket, monkeypatch):
    url, endpoint = bucket
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    truth = make_store(url, positions=(1, 0), blocks=(6,))
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    ds = neurolens.open_run(url, endpoint=endpoint, region="us-east-1")["samples"].to_dataset()
    np.testing.assert_array_equal(ds.loss, truth["loss"])
    assert ds.attrs["endpoint"] == endpoint
    assert len(ds.lens.provenance()) == 4
    assert ds.lens.trajectories("s00001").loss.shape == (2, 1)
    with pytest.raises(StoreError, match="no store here"):
        neurolens.open_run("s3://runs/two", endpoint=endpoint)


def test_reading__a_snapshot_that_was_collected_says_so(make_store, tmp_path):
    make_store(tmp_path / "s", positions=(0,), blocks=(3000,))
    ds = neurolens.open_run(tmp_path / "s")["samples"].to_dataset()
    shutil.rmtree(tmp_path / "s" / "chunks")
    with pytest.raises(StoreError, match=re.escape(str(tmp_path))):
        ds.loss.compute()
