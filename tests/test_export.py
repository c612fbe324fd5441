import json
import os
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import neurolens
from neurolens.errors import StoreError
from neurolens.store import open_store
from neurolens.store.export import export_zarr


@pytest.fixture(scope="module")
def run(make_store, tmp_path_factory):
    url = tmp_path_factory.mktemp("run") / "store"
    truth = make_store(url, positions=(3, 0, 2, 1), blocks=(12, 8), failed=[(1, 1, "forward")])
    return url, truth


def _same(exported, url, group="samples"):
    ours = xr.open_dataset(url, group=group, engine="neurolens").load()
    assert set(exported.variables) == set(ours.variables)
    for name, variable in ours.variables.items():
        assert exported[name].dims == variable.dims
        np.testing.assert_array_equal(exported[name].values, variable.values)
        assert exported[name].attrs == variable.attrs


def test_export_zarr__is_read_by_xarray_alone(run, tmp_path):
    url, truth = run
    path = export_zarr(url, tmp_path / "out.zarr", group="samples")
    assert path == tmp_path / "out.zarr"
    with xr.open_zarr(path, chunks={}, consolidated=True) as exported:
        _same(exported, url)
        assert exported.sample.dtype == ours_dtype(url)
        assert exported.attrs["snapshot"] == open_store(url).snapshot_id
        assert not {"url", "endpoint", "region"} & set(exported.attrs)
        assert "loss_sum" in exported.coords
    code = (
        "import sys; sys.modules['neurolens'] = None\n"
        "import xarray as xr\n"
        f"ds = xr.open_zarr({str(path)!r}, chunks={{}})\n"
        "print(float(ds.loss.sum()), str(ds['class'].values[1]))"
    )
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    total, name = out.stdout.split(" ", 1)
    assert float(total) == pytest.approx(np.nansum(truth["loss"]), rel=1e-6)
    assert name.strip() == "class 1"


def ours_dtype(url):
    return xr.open_dataset(url, engine="neurolens").sample.dtype


def test_export_zarr__exports_every_cube_as_a_tree(run, tmp_path):
    path = export_zarr(run[0], tmp_path / "tree.zarr")
    with xr.open_datatree(path, engine="zarr", chunks={}, consolidated=True) as tree:
        _same(tree["samples"].to_dataset(), run[0])
        assert tree.attrs["run"] == "random"
    assert not (path / "samples" / "ledger").exists()
    assert not (path / ".neurolens").exists()
    json.loads((path / "zarr.json").read_text())


def test_export_zarr__exports_what_a_tag_holds(make_store, tmp_path):
    make_store(tmp_path / "s", positions=(0, 1), blocks=(4,))
    store = open_store(tmp_path / "s")
    store.tag("v1", [s.id for s in store.history()][1])
    with xr.open_zarr(export_zarr(tmp_path / "s", tmp_path / "out", group="samples", tag="v1")) as exported:
        assert exported.sizes["epoch"] == 1
    with pytest.raises(StoreError, match="no tag 'v2'"):
        export_zarr(tmp_path / "s", tmp_path / "none", tag="v2")
    assert not (tmp_path / "none").exists()


def test_export_zarr__refuses_to_overwrite_unless_told(run, tmp_path):
    path = export_zarr(run[0], tmp_path / "out")
    with pytest.raises(StoreError, match="pass overwrite=True"):
        export_zarr(run[0], path)
    export_zarr(run[0], path, group="samples", overwrite=True)
    with xr.open_zarr(path) as exported:
        assert "loss" in exported
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(StoreError, match="not a Zarr folder"):
        export_zarr(run[0], tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "thesis"]


def test_export_zarr__leaves_nothing_behind_when_it_fails(run, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_zarr", full)
    with pytest.raises(StoreError, match="disk is full"):
        export_zarr(run[0], tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_export_zarr__splits_wide_rows_into_small_chunks(make_store, tmp_path, monkeypatch):
    monkeypatch.setattr("neurolens.store.export.COLUMNS", 8)
    truth = make_store(tmp_path / "s", positions=(0, 1, 2), blocks=(12, 7))
    with xr.open_zarr(export_zarr(tmp_path / "s", tmp_path / "out", group="samples"), chunks={}) as exported:
        assert exported.loss.data.chunks == ((3,), (8, 8, 3))
        for name, expected in truth.items():
            np.testing.assert_array_equal(exported[name], expected)


def test_export_zarr__of_an_empty_store_is_an_empty_tree(tmp_path):
    open_store(tmp_path / "s", create=True)
    with xr.open_datatree(export_zarr(tmp_path / "s", tmp_path / "out"), engine="zarr") as tree:
        assert tree.children == neurolens.open_run(tmp_path / "s").children == {}
