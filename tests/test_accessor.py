import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import neurolens
from neurolens.accessor import SCORES
from neurolens.errors import SchemaError
from neurolens.store import open_store


@pytest.fixture(scope="module")
def run(make_store, tmp_path_factory):
    url = tmp_path_factory.mktemp("run") / "store"
    make_store(url, positions=(3, 0, 2, 1), blocks=(12, 8), failed=[(4, 0, "forward")])
    return url


@pytest.fixture
def ds(run):
    return neurolens.open_run(run)["samples"].to_dataset()


@pytest.mark.parametrize("name", ["csl", "learning_time", "aum", "forgetting", "cartography", "csg"])
def test_lens__is_the_function_of_the_same_name(ds, name):
    xr.testing.assert_identical(getattr(ds.lens, name)().compute(), getattr(neurolens, name)(ds).compute())


def test_lens__passes_options_on(ds):
    xr.testing.assert_identical(
        ds.lens.learning_time(tau=0.3).compute(), neurolens.learning_time(ds, tau=0.3).compute()
    )


def test_lens_agreement__correlates_every_score_there_is(ds):
    found = ds.lens.agreement(bootstrap=0)
    assert found.score.values.tolist() == [name for name in SCORES if name != "curvature"]
    np.testing.assert_allclose(np.diag(found.correlation), 1)


def test_lens_agreement__takes_names_and_external_scores(ds):
    external = ds.lens.csl().csl.rename("mine") ** 3
    found = ds.lens.agreement("csl", external, bootstrap=0)
    assert float(found.correlation.sel(score="csl", other="mine")) == pytest.approx(1)
    with pytest.raises(SchemaError, match=r"no score 'cls'; did you mean 'csl'"):
        ds.lens.agreement("cls")
    with pytest.raises(SchemaError, match="without a name"):
        ds.lens.agreement("csl", external.rename(None))


def test_lens_trajectories__are_the_selected_samples(ds):
    ids = ["s00007", "s00001"]
    found = ds.isel(epoch=[2, 0]).lens.trajectories(ids, "loss", "correct")
    xr.testing.assert_identical(found, ds[["loss", "correct"]].isel(epoch=[2, 0]).sel(sample=ids).load())
    assert set(ds.lens.trajectories(ids[0]).data_vars) == set(ds.data_vars)
    with pytest.raises(KeyError):
        ds.lens.trajectories("nobody")


def test_lens_provenance__is_the_ledger_in_order(make_store, tmp_path):
    failed, positions = [(1, 1, "forward")], (2, 0, 1)
    make_store(tmp_path / "s", positions=positions, blocks=(3, 2), failed=failed)
    frame = xr.open_dataset(tmp_path / "s").lens.provenance()
    assert frame.index.names == ["epoch", "block", "part"]
    assert len(frame) == 3 * 2 * 2
    assert frame.index.get_level_values("epoch").is_monotonic_increasing
    assert frame.loc[(0, 1, "forward"), "checkpoint"] == "epoch_0.pt"
    assert frame.loc[(1, 1, "forward"), "state"] == "failed"
    assert frame.loc[(1, 1, "forward"), "error"] == "broken"
    assert frame.loc[(1, 0, "forward"), "seconds"] == 0.5
    assert frame["key"].str.fullmatch("[0-9a-f]{64}").all()
    assert frame["time"].dt.year.min() >= 2024


def test_lens_provenance__is_that_of_the_snapshot(make_store, tmp_path):
    make_store(tmp_path / "s", positions=(0,), blocks=(4,))
    ds = xr.open_dataset(tmp_path / "s")
    make_store(tmp_path / "s", positions=(0, 1), blocks=(4,))
    assert set(ds.lens.provenance().index.get_level_values("epoch")) == {0}
    assert len(ds.lens.history) < len(xr.open_dataset(tmp_path / "s").lens.history)


def test_lens_provenance__of_an_empty_cube_has_no_lines(make_store, tmp_path):
    make_store(tmp_path / "s", positions=(), blocks=(4,))
    assert len(xr.open_dataset(tmp_path / "s").lens.provenance()) == 0


def test_lens_settings__say_what_was_measured(ds):
    found = ds.lens.settings()
    assert found["series"] == "epoch"
    assert found["parts"] == {"forward": {"version": 1}, "input_gradient": {"version": 1}}


def test_lens_history__starts_at_the_snapshot(ds, run):
    assert ds.lens.history.snapshot[0] == ds.lens.snapshot == open_store(run).snapshot_id
    assert ds.lens.history.time.is_monotonic_decreasing


def test_lens__says_when_the_store_is_not_known(ds):
    with pytest.raises(SchemaError, match="no attribute 'url'"):
        ds.drop_attrs().lens.provenance()


def test_lens__is_there_in_a_fresh_notebook(run):
    code = f"import xarray as xr; print(float(xr.open_dataset({str(run)!r}, chunks={{}}).lens.csl().csl.sum()))"
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert float(out.stdout) > 0


def test_lens_spectra__are_those_of_the_function():
    values = np.random.default_rng(0).normal(size=(2, 12, 5)).astype("float32")
    cube = xr.Dataset({"activation": (("epoch", "sample", "unit"), values)}, coords={"layer": ("unit", list("aabbb"))})
    xr.testing.assert_identical(cube.lens.spectra(rank=2), neurolens.spectra(cube, rank=2))
