"""Reading and writing slots of more than one dim, chunk by chunk."""

import math

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.store import open_store
from neurolens.store.chunk_files import chunk_files
from neurolens.store.chunks import as_columns
from neurolens.store.gather import write_grid
from neurolens.store.grids import compact, read_grid


def _key(size):
    ends = st.none() | st.integers(-size, size + 2)
    positions = st.lists(st.integers(-size, size - 1), max_size=9).map(lambda x: np.asarray(x, int))
    slices = st.builds(slice, ends, ends, st.sampled_from([None, 1, 2, 3, -1, -2]))
    return positions | slices | st.integers(-size, size - 1)


_counts = (6, 7, 5)


@given(
    slots=st.lists(st.integers(0, 3), max_size=5).map(lambda x: np.asarray(x, int)),
    keys=st.tuples(*(_key(n) for n in _counts)),
    chunks=st.sampled_from([(1, 6, 7, 5), (1, 4, 3, 2), (1, 2, 8, 5)]),
    inline=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_read_grid__equals_numpy_with_and_without_files(grids, slots, keys, chunks, inline):
    values, arrays, files = grids
    columns = [compact(as_columns(k, n)) for k, n in zip(keys, _counts)]
    wanted = values[slots]
    for axis, column in enumerate(columns, 1):
        wanted = wanted[(slice(None),) * axis + (column,)]
    out = np.zeros((len(slots) + 1, *wanted.shape[1:]), values.dtype)
    read_grid(arrays[chunks], slots, columns, out, np.arange(len(slots)), None if inline else files)
    np.testing.assert_array_equal(out[:-1], wanted)
    assert (out[-1] == 0).all()


@pytest.fixture(scope="module")
def grids(tmp_path_factory):
    """A (slot, 6, 7, 5) array in several chunkings, some chunks of which are absent or kept in the manifest."""
    store = open_store(tmp_path_factory.mktemp("grids") / "s", create=True)
    values = np.random.default_rng(0).random((4, *_counts))
    values[1, 4:] = np.nan
    shapes = [(1, 6, 7, 5), (1, 4, 3, 2), (1, 2, 8, 5)]

    def write(root, tip):
        for i, shape in enumerate(shapes):
            options = {"shape": values.shape, "chunks": shape, "dtype": "f8", "fill_value": np.nan}
            root.create_array(f"a{i}", compressors=None, **options)[:] = values

    store.transact("arrays", write)
    root, snapshot = store.root()
    files = chunk_files(store.url, snapshot)
    assert files.read_into("a0", (0, 0, 0, 0), 0, np.empty(math.prod(_counts)))
    assert not files.read_into("a1", (0, 0, 0, 0), 0, np.empty(1)), "small chunks are in the manifest"
    return values, {shape: root[f"a{i}"] for i, shape in enumerate(shapes)}, files


@given(
    extents=st.tuples(*(st.tuples(st.integers(0, 10), st.integers(1, 10)) for _ in range(2))),
    chunks=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    batch=st.sampled_from([1, 300, 2**20]),
)
@settings(max_examples=60, deadline=None)
def test_write_grid__equals_assignment_and_encodes_at_most_a_chunk_at_a_time(extents, chunks, batch):
    slices = [slice(start, start + n) for start, n in extents]
    values = np.random.default_rng(0).random([n for _, n in extents])
    options = {"shape": (3, 20, 20), "chunks": (1, *chunks), "dtype": "f8", "fill_value": np.nan}
    array = zarr.create_array(zarr.storage.MemoryStore(), compressors=None, **options)
    seen = []

    def encode(part):
        seen.append(part.shape)
        return part * 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neurolens.store.gather.BATCH_BYTES", batch)
        write_grid(array, 1, slices, values, encode)
    expected = np.full((3, 20, 20), np.nan)
    expected[(1, *slices)] = values * 2
    np.testing.assert_array_equal(array[:], expected)
    assert all(n <= chunk for shape in seen for n, chunk in zip(shape, chunks, strict=True))
