import numpy as np
import pytest
import xarray as xr
from test_seed_log import units_of

from neurolens.errors import StoreError
from neurolens.rows.adopting_logs import adopt_log
from neurolens.store import open_store
from neurolens.units.seed_log import export_dormancy, read_log


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store.icechunk", create=True)


def log_of(folder, *layers, model="m", tau=0.1, positions=(7, 8)):
    path = folder / f"{model}.csv"
    export_dormancy(units_of(layers or ("b.2", "b.10"), positions=positions), path, model=model, tau=tau, mode="write")
    return read_log(path)[0]


def opened(store):
    return xr.open_dataset(store.url, group="dormancy", engine="neurolens", chunks={}).load()


def test_adopt_log__keeps_what_the_log_says(store, tmp_path):
    log = log_of(tmp_path)
    assert adopt_log(log, store, run="elsewhere") == (2, 0)
    held = opened(store)
    for name in log.data_vars:
        np.testing.assert_array_equal(held[name].transpose("step", "log", "layer"), log[name])
    assert held["step"].values.tolist() == [7, 8]
    assert held["layer"].values.tolist() == ["b.2", "b.10"]
    assert held["model"].values.tolist() == ["m"]
    assert held["threshold"].values.tolist() == [0.1]


def test_adopt_log__writes_nothing_the_second_time(store, tmp_path):
    log = log_of(tmp_path)
    adopt_log(log, store, run="elsewhere")
    before = store.snapshot_id
    assert adopt_log(log, store, run="elsewhere") == (0, 2)
    assert store.snapshot_id == before


def test_adopt_log__lays_another_log_beside_it(store, tmp_path):
    adopt_log(log_of(tmp_path), store, run="elsewhere")
    adopt_log(log_of(tmp_path, "b.1", "b.2", model="other", tau=0.5, positions=(8, 9)), store, run="elsewhere")
    held = opened(store)
    assert held["step"].values.tolist() == [7, 8, 9]
    assert held["layer"].values.tolist() == ["b.1", "b.2", "b.10"]
    assert held["model"].values.tolist() == ["m", "other"]
    counts = held["num_dormant"].transpose("log", "step", "layer").values
    np.testing.assert_array_equal(counts[0], [[np.nan, 2, 2], [np.nan, 2, 2], [np.nan] * 3])
    np.testing.assert_array_equal(counts[1], [[np.nan] * 3, [3, 3, np.nan], [3, 3, np.nan]])


def test_adopt_log__belongs_to_one_run(store, tmp_path):
    adopt_log(log_of(tmp_path), store, run="elsewhere")
    with pytest.raises(StoreError, match="holds run 'elsewhere'"):
        adopt_log(log_of(tmp_path), store, run="another")
