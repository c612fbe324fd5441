import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens import schema
from neurolens.backend.arrays import RowsArray
from neurolens.store import open_store, tiles
from neurolens.store.chunks import as_columns, pieces, read
from neurolens.store.tiles import build_tiles

HEIGHT, WIDTH = 4, 8


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of (4, 8), built from two column blocks, and used wherever they may be."""
    monkeypatch.setattr(tiles, "TILE", (HEIGHT, WIDTH))
    monkeypatch.setattr(tiles, "BLOCK_COLUMNS", 16)
    monkeypatch.setattr("neurolens.backend.arrays.REQUEST_COST", 10**9)


@pytest.fixture
def reads(monkeypatch):
    """Which stored arrays were read, by path."""
    seen = []

    def spy(array, *args):
        seen.append(array.path)
        return read(array, *args)

    monkeypatch.setattr("neurolens.backend.arrays.read", spy)
    return seen


def _rewrite(url, position, value, *, block=0, size=12):
    values = {"loss": np.full(size, value, "float32")}
    key = {"forward": f"{int(value):064x}"}
    positions = {"epoch": position}
    store = open_store(url)
    store.write_row(
        schema.SAMPLES, (position, block), positions=positions, values=values, keys=key, seconds=0, provenance={}
    )


def _opened(url):
    return xr.open_dataset(url, engine="neurolens", cache=False)


def test_build_tiles__leaves_every_number_as_it_is(make_store, small_tiles, reads, tmp_path):
    failed = [(1, 0, "forward"), (6, 1, "input_gradient")]
    truth = make_store(tmp_path / "s", positions=(3, 0, 5, 2, 4, 1, 6, 8, 7, 9), blocks=(13, 8), failed=failed)
    assert build_tiles(open_store(tmp_path / "s")) == 4
    ds = _opened(tmp_path / "s")
    for name, expected in truth.items():
        np.testing.assert_array_equal(ds[name], expected)
    np.testing.assert_array_equal(ds.loss.isel(sample=[20, 3, 3]), truth["loss"][:, [20, 3, 3]])
    assert any(path.startswith("samples/tiles/") for path in reads)
    assert any(path.startswith("samples/loss") for path in reads)  # the last two slots fill no tile


def test_build_tiles__builds_nothing_twice(make_store, small_tiles, tmp_path):
    make_store(tmp_path / "s", positions=range(8), blocks=(12,))
    store = open_store(tmp_path / "s")
    assert build_tiles(store) == 4
    tip = store.snapshot_id
    assert build_tiles(store) == 0
    assert store.snapshot_id == tip
    _rewrite(tmp_path / "s", 5, 7)
    assert build_tiles(store) == 1


def test_build_tiles__waits_for_unfinished_rows(make_store, small_tiles, tmp_path):
    make_store(tmp_path / "s", positions=range(4), blocks=(12,), absent=[(2, 0, "forward")])
    assert build_tiles(open_store(tmp_path / "s")) == 1
    make_store(tmp_path / "short", positions=range(3), blocks=(12,))
    assert build_tiles(open_store(tmp_path / "short")) == 0


def test_tiles__stale_ones_are_ignored_until_rebuilt(make_store, small_tiles, reads, tmp_path):
    make_store(tmp_path / "s", positions=range(8), blocks=(12,))
    store = open_store(tmp_path / "s")
    build_tiles(store)
    _rewrite(tmp_path / "s", 2, 7)
    reads.clear()
    found = _opened(tmp_path / "s").loss.isel(sample=3).values
    assert found[2] == 7
    assert reads == ["samples/tiles/loss", "samples/loss"]  # slots 4…7 from their tile, 0…3 from the rows
    build_tiles(store)
    reads.clear()
    np.testing.assert_array_equal(_opened(tmp_path / "s").loss.isel(sample=3), found)
    assert set(reads) == {"samples/tiles/loss"}


def test_tiles__of_fewer_samples_are_ignored(make_store, small_tiles, tmp_path):
    make_store(tmp_path / "s", positions=range(4), blocks=(12,))
    build_tiles(open_store(tmp_path / "s"))
    truth = make_store(tmp_path / "s", positions=range(4), blocks=(12, 5))
    np.testing.assert_array_equal(_opened(tmp_path / "s").loss, truth["loss"])
    assert build_tiles(open_store(tmp_path / "s")) == 2
    np.testing.assert_array_equal(_opened(tmp_path / "s").loss, truth["loss"])


def test_tiles__scans_read_rows(make_store, small_tiles, reads, monkeypatch, tmp_path):
    monkeypatch.setattr("neurolens.backend.arrays.REQUEST_COST", 100)
    make_store(tmp_path / "s", positions=range(8), blocks=(64,))
    build_tiles(open_store(tmp_path / "s"))
    ds = _opened(tmp_path / "s")
    reads.clear()
    ds.loss.load()
    assert set(reads) == {"samples/loss"}
    reads.clear()
    ds.margin.isel(sample=5).load()
    assert reads[0] == "samples/tiles/margin"


def test_rows_array__is_a_plain_name_to_dask(make_store, tmp_path):
    make_store(tmp_path / "s", positions=(0,), blocks=(4,))
    array = _opened(tmp_path / "s").loss.variable._data
    while not isinstance(array, RowsArray):
        array = array.array
    assert array.__dask_tokenize__()[2:] == ("samples", "loss")


@given(
    rows=st.lists(st.integers(0, 6), max_size=9).map(lambda x: np.asarray(x, int)),
    columns=st.lists(st.integers(0, 22), max_size=40).map(lambda x: np.asarray(x, int))
    | st.builds(slice, st.integers(0, 23), st.integers(0, 23), st.integers(1, 4)),
    chunks=st.sampled_from([(1, 23), (1, 5), (4, 8), (7, 23)]),
    compressors=st.sampled_from([None, "auto"]),
)
@settings(max_examples=100, deadline=None)
def test_read__equals_numpy(rows, columns, chunks, compressors):
    values = np.arange(7 * 23, dtype="float32").reshape(7, 23)
    options = {"shape": (7, 23), "chunks": chunks, "dtype": "float32", "compressors": compressors, "fill_value": np.nan}
    array = zarr.create_array(zarr.storage.MemoryStore(), **options)
    array[:, :5] = values[:, :5]
    values[:, 5:] = np.nan
    expected = values[rows][:, columns]
    out = np.zeros((len(rows) + 1, expected.shape[1]), "float32")
    read(array, rows, as_columns(columns, 23), out, np.arange(len(rows)))
    np.testing.assert_array_equal(out[:-1], expected)
    assert (out[-1] == 0).all()


def test_pieces__cover_the_columns_once():
    for columns in (slice(3, 40, 5), slice(0, 16, 1), np.asarray([9, 1, 39, 9])):
        wanted = np.arange(64)[columns]
        got = np.full(len(wanted), -1)
        for piece in pieces(columns, 8):
            got[piece.target] = (np.arange(piece.start, piece.stop) + 8 * piece.chunk)[piece.source]
        np.testing.assert_array_equal(got, wanted)
