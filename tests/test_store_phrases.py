"""Cubes whose samples are not those of [data]: phrases and pairs, by their own names when they are opened."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from store_cases import key

import neurolens
from neurolens import schema
from neurolens.errors import SchemaError
from neurolens.store import Axis, SampleCoords, open_store
from neurolens.store.export import export_zarr

BLOCK, WIDTH = 4, 3
PHRASES = tuple(f"animals/{word}" for word in ("cat", "dog", "hen", "cow", "pig", "ape"))


def phrases(ids=PHRASES):
    parts = [name.partition("/") for name in ids]
    coords = {"set": np.array([p[0] for p in parts]), "words": np.array([p[2] for p in parts])}
    coords["digest"] = np.array([f"{len(p[2]):x}" for p in parts])
    return SampleCoords(np.array(ids), np.zeros(len(ids), np.int64), ("phrase",), coords)


def pairs():
    ids = np.array([f"u{u}/h{h}" for u in range(3) for h in range(2)])
    units, heads = np.divmod(np.arange(6), 2)
    return SampleCoords(ids, np.zeros(6, np.int64), ("pair",), {"unit": units, "head": heads})


def prepare(store, cube, samples, axes, **changes):
    wanted = {"run": "r", "series": "epoch", "samples": samples, "axes": axes, "block_samples": BLOCK}
    settings = {"parts": {cube.parts[0].name: {}}}
    return store.prepare(cube, **{**wanted, "settings": settings, **changes})


def values(cube, epoch, block, sizes):
    rng = np.random.default_rng([epoch, block])
    return {v.name: (rng.random([sizes[d] for d in v.dims[1:]]) * 50).astype(v.dtype) for v in cube.parts[0].variables}


def write(store, cube, epoch, block, found):
    positions, keys = {"epoch": epoch}, {cube.parts[0].name: key(epoch, block)}
    store.write_row(cube, (epoch, block), positions=positions, values=found, keys=keys, seconds=0.0, provenance={})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A store of texts and codes over two epochs, and the variables that opening must give."""
    url = tmp_path_factory.mktemp("phrases") / "store"
    store, truth = open_store(url, create=True), {}
    for cube, samples, axes in (
        (schema.TEXTS, phrases(), {"feature": Axis(np.arange(WIDTH))}),
        (schema.CODES, pairs(), {"atom": Axis(np.arange(2))}),
    ):
        prepare(store, cube, samples, axes)
        rows = []
        for epoch in (1, 0):
            blocks = [values(cube, epoch, b, {"sample": n, "feature": WIDTH, "atom": 2}) for b, n in enumerate((4, 2))]
            for block, found in enumerate(blocks):
                write(store, cube, epoch, block, found)
            rows.insert(0, {name: np.concatenate([found[name] for found in blocks]) for name in blocks[0]})
        truth[cube.name] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return url, truth


@pytest.mark.parametrize(("name", "dim"), [("texts", "phrase"), ("codes", "pair")])
def test_open_run__calls_samples_by_the_cubes_own_name(run, name, dim):
    url, truth = run
    ds = neurolens.open_run(url)[name].to_dataset()
    cube = schema.CUBES[name]
    assert "sample" not in ds.dims
    assert list(ds.data_vars) == [v.name for v in cube.variables]
    for variable in cube.variables:
        assert ds[variable.name].dims == ("epoch", dim, *variable.dims[2:])
        assert isinstance(ds[variable.name].data, da.Array)
        np.testing.assert_array_equal(ds[variable.name], truth[name][variable.name])
    along = {str(key) for key, coord in ds.coords.items() if coord.dims == (dim,)}
    assert along == {v.name for v in cube.coords if v.dims == (dim,)}
    assert set(ds.coords) == {"epoch", "measured", cube.dims[2], *along}


def test_open_run__selects_phrases_and_pairs_by_id(run):
    url, truth = run
    tree = neurolens.open_run(url)
    np.testing.assert_array_equal(
        tree["texts"].ds.text.sel(phrase="animals/pig", epoch=1), truth["texts"]["text"][1, 4]
    )
    assert tree["texts"].ds.words.values.tolist() == [name.partition("/")[2] for name in PHRASES]
    codes = tree["codes"].to_dataset()
    of_head = codes.isel(pair=np.flatnonzero(codes["head"] == 1))
    assert of_head.pair.values.tolist() == ["u0/h1", "u1/h1", "u2/h1"]
    np.testing.assert_array_equal(of_head.value, truth["codes"]["value"][:, 1::2])


def test_open_dataset__is_lazy_and_hints_at_chunks_under_the_opened_names(run):
    ds = xr.open_dataset(run[0], engine="neurolens", group="texts")
    assert not ds.text.variable._in_memory
    hints = ds.text.encoding
    assert set(hints["preferred_chunks"]) == set(hints["stored_chunks"]) == {"epoch", "phrase", "feature"}
    chunked = xr.open_dataset(run[0], engine="neurolens", group="texts", chunks={})
    assert all(chunked[name].variable._in_memory for name in chunked.coords)
    assert chunked.text.chunksizes["phrase"] == (len(PHRASES),)
    dropped = xr.open_dataset(run[0], engine="neurolens", group="texts", drop_variables=["phrase", "words"])
    assert not {"phrase", "words", "sample"} & set(dropped.variables)


def test_export_zarr__keeps_the_opened_names(run, tmp_path):
    path = export_zarr(run[0], tmp_path / "plain.zarr", group="texts")
    with xr.open_zarr(path, chunks={}) as plain:
        xr.testing.assert_equal(plain.load(), xr.open_dataset(run[0], engine="neurolens", group="texts").load())


def test_prepare__refuses_a_coordinate_of_the_dims_name(tmp_path):
    samples = phrases()
    named = SampleCoords(samples.ids, samples.labels, samples.classes, {"phrase": samples.coords["words"]})
    with pytest.raises(SchemaError, match="cannot be named 'phrase'"):
        prepare(open_store(tmp_path / "s", create=True), schema.TEXTS, named, {"feature": Axis(np.arange(WIDTH))})


FEATURE = {"feature": Axis(np.arange(WIDTH))}


def known(store):
    ds = xr.open_dataset(store.url, engine="neurolens", group="texts", chunks={})
    return ds, ds.phrase.values.tolist()


def test_prepare__keeps_phrases_that_are_no_longer_named(tmp_path):
    store, cube = open_store(tmp_path / "s", create=True), schema.TEXTS
    prepare(store, cube, phrases(), FEATURE)
    whole = [values(cube, 0, block, {"sample": n, "feature": WIDTH}) for block, n in enumerate((4, 2))]
    for block, found in enumerate(whole):
        write(store, cube, 0, block, found)
    text = np.concatenate([found["text"] for found in whole])
    fewer = prepare(store, cube, phrases(PHRASES[:1] + PHRASES[2:4]), FEATURE)
    assert fewer.change == "leave out 3 phrases"
    assert fewer.generation == 0
    assert store.ledger("texts").named.tolist() == [True, False]
    ds, names = known(store)
    assert names == ["animals/cat", "animals/hen", "animals/cow"]
    np.testing.assert_array_equal(ds.text[0], text[[0, 2, 3]])
    assert ds.measured.values.tolist() == [True]
    again = prepare(store, cube, phrases(), FEATURE)
    assert again.change == "take in 3 phrases again"
    np.testing.assert_array_equal(known(store)[0].text[0], text)
    assert not prepare(store, cube, phrases(), FEATURE).change


@pytest.mark.parametrize("chunks", [{}, None])
def test_open_dataset__gives_phrases_in_the_studys_order_without_their_digests(tmp_path, chunks):
    store, cube = open_store(tmp_path / "s", create=True), schema.TEXTS
    ids = tuple(f"{name}@{i}" for i, name in enumerate(PHRASES[:4]))
    prepare(store, cube, phrases(ids), FEATURE)
    found = values(cube, 0, 0, {"sample": 4, "feature": WIDTH})
    write(store, cube, 0, 0, found)
    new = "animals/dog@other"  # another way of embedding the same phrase
    layout = prepare(store, cube, phrases((ids[3], new, ids[0], ids[2])), FEATURE)
    assert layout.change == "append 1 phrases; leave out 1 phrase"
    ds = xr.open_dataset(store.url, engine="neurolens", group="texts", chunks=chunks)
    assert ds.phrase.values.tolist() == ["animals/cow", "animals/dog", "animals/cat", "animals/hen"]
    np.testing.assert_array_equal(
        ds.text[0], np.stack([*found["text"][[3]], np.full(3, np.nan), *found["text"][[0, 2]]])
    )
    np.testing.assert_array_equal(ds.text.isel(phrase=[2, 0])[0], found["text"][[0, 3]])
    np.testing.assert_array_equal(ds.text.chunk(phrase=3), ds.text)
    np.testing.assert_array_equal(ds.text.sel(phrase="animals/hen").isel(epoch=0), found["text"][2])
    assert ds.measured.values.tolist() == [False]
    path = export_zarr(store.url, tmp_path / "plain.zarr", group="texts")
    with xr.open_zarr(path) as plain:
        assert plain.phrase.values.tolist() == ds.phrase.values.tolist()
        np.testing.assert_array_equal(plain.text, ds.text)


def test_prepare__refuses_labels_that_moved_and_coordinates_of_the_stores_own(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    samples = phrases()
    named = SampleCoords(samples.ids, samples.labels, samples.classes, {"sample_place": np.arange(6)})
    with pytest.raises(SchemaError, match="cannot be named 'sample_place'"):
        prepare(store, schema.TEXTS, named, FEATURE)
    short = {"text": np.zeros((3, WIDTH), np.float32)}
    prepare(store, schema.TEXTS, samples, FEATURE)
    with pytest.raises(SchemaError, match="shape"):
        write(store, schema.TEXTS, 0, 0, short)
