import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurolens.store import chunk_files as module
from neurolens.store import chunks
from neurolens.store.chunk_files import chunk_files
from neurolens.store.chunks import as_columns, read
from neurolens.store.repository import BRANCH, create_repository

SHAPE = (9, 700)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Arrays in rows of one chunk, rows of several, and tiles, with a hole; the last row is rewritten later."""
    url = tmp_path_factory.mktemp("store") / "s"
    repository = create_repository(url, version="0")
    session = repository.writable_session(BRANCH)
    values = np.random.default_rng(0).random(SHAPE, dtype="float32")
    values[4] = np.nan
    for name, shape in {"row": (1, 700), "rows": (1, 300), "tiles": (4, 200)}.items():
        array = zarr.open_group(session.store).create_array(
            f"cube/{name}",
            shape=SHAPE,
            dtype="float32",
            chunks=shape,
            compressors=None,
            fill_value=np.nan,
            dimension_names=("slot", "sample"),
        )
        array[:] = values
    small = zarr.open_group(session.store).create_array(
        "small", shape=(2, 3), dtype="int8", chunks=(1, 3), fill_value=0
    )
    small[:] = 7
    snapshot = session.commit("all")
    session = repository.writable_session(BRANCH)
    zarr.open_group(session.store)["cube/row"][8] = 1.0
    session.commit("the last row anew")
    root = zarr.open_group(repository.readonly_session(snapshot_id=snapshot).store, mode="r")
    return url, snapshot, root, values


@given(
    name=st.sampled_from(["row", "rows", "tiles"]),
    rows=st.lists(st.integers(0, 8), min_size=1, max_size=12).map(lambda x: np.asarray(x, int)),
    columns=st.lists(st.integers(0, 699), max_size=40).map(lambda x: np.asarray(x, int))
    | st.builds(slice, st.integers(0, 700), st.integers(0, 700), st.integers(1, 3)),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_read__from_files_equals_numpy(stored, name, rows, columns):
    url, snapshot, root, values = stored
    out = np.zeros((len(rows), values[:, columns].shape[1]), "float32")
    read(root[f"cube/{name}"], rows, as_columns(columns, 700), out, np.arange(len(rows)), chunk_files(url, snapshot))
    np.testing.assert_array_equal(out, values[rows][:, columns])


def test_read__asks_icechunk_for_no_chunk_that_is_a_file(stored, monkeypatch):
    url, snapshot, root, values = stored
    monkeypatch.setattr(chunks, "sync", lambda *_: pytest.fail("icechunk was asked"))
    present = np.asarray([0, 1, 2, 3, 5, 6, 7, 8])
    for name in ("row", "rows", "tiles"):
        out = np.empty((8, 700), "float32")
        read(root[f"cube/{name}"], present, slice(0, 700, 1), out, np.arange(8), chunk_files(url, snapshot))
        np.testing.assert_array_equal(out, values[present])


def test_read_into__leaves_what_is_no_file_of_its_own_to_icechunk(stored):
    url, snapshot, _, _ = stored
    files = chunk_files(url, snapshot)
    assert not files.read_into("small", (0, 0), 0, np.empty(3, "int8"))  # kept inside the manifest
    assert not files.read_into("cube/row", (4, 0), 0, np.empty(700, "float32"))  # only fill values: not stored
    assert not files.read_into("cube/row", (0, 0), 4, np.empty(700, "float32"))  # beyond the end
    assert not files.read_into("nowhere", (0, 0), 0, np.empty(3, "int8"))
    assert not chunk_files(url, "1CECHNKREP0F1RSTCMT0").read_into("cube/row", (0, 0), 0, np.empty(700, "float32"))
    assert chunk_files("s3://bucket/run", snapshot) is None


@pytest.mark.parametrize("spoil", [lambda raw: b"", lambda raw: raw[:60], lambda raw: b"x" + raw, lambda raw: raw[:-9]])
def test_read__is_right_where_manifests_cannot_be_understood(stored, tmp_path, spoil):
    url, snapshot, root, values = stored
    copy = tmp_path / "copy"
    shutil.copytree(url, copy)
    for manifest in (copy / "manifests").iterdir():
        manifest.write_bytes(spoil(manifest.read_bytes()))
    out = np.empty((9, 700), "float32")
    read(root["cube/row"], np.arange(9), slice(0, 700, 1), out, np.arange(9), chunk_files(copy, snapshot))
    np.testing.assert_array_equal(out, values)


def test_read__is_right_where_a_snapshot_is_described_in_another_way(stored, monkeypatch):
    url, snapshot, root, values = stored
    described = SimpleNamespace(loads=lambda text: {"nodes": [{"route": "/cube/row"}]})
    monkeypatch.setattr(module, "json", described)
    for cached in (module._names, module._manifests):
        cached.cache_clear()
    out = np.empty((9, 700), "float32")
    read(root["cube/row"], np.arange(9), slice(0, 700, 1), out, np.arange(9), chunk_files(url, snapshot))
    np.testing.assert_array_equal(out, values)
    for cached in (module._names, module._manifests):
        cached.cache_clear()
