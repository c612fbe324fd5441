"""Tallies in a store: what is adopted is what the files say, once, and is followed as they are."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from mortality_cases import EIGHT
from tally_cases import TREE, both, tree, write

import neurolens
from neurolens.errors import SchemaError, StoreError
from neurolens.mortality import (
    churn,
    compare,
    concept_events,
    concept_lives,
    diversity,
    export_tallies,
    extinctions,
    label_drift,
    migrations,
    read_tallies,
    survival,
    tau_sensitivity,
)
from neurolens.mortality.tallies import from_cube
from neurolens.rows.adopting_tallies import adopt_tallies
from neurolens.store import open_store

NAMES = ("epoch_0", "epoch_2", "epoch_10")


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store.icechunk", create=True)


def opened(store):
    return neurolens.open_run(store.url)["tallies"].to_dataset()


def adopt(store, folder, **options):
    return adopt_tallies(read_tallies(folder, **options), store, run="published")


def assert_same(held, read):
    """Assert that two readings hold the same, whatever their text is kept as."""
    held, read = held.compute(), read.compute()
    assert set(held.data_vars) == set(read.data_vars)
    for name in [*read.data_vars, *read.coords]:
        one, other = held[name], read[name]
        assert one.dims == other.dims
        if one.dtype.kind in "OTU":
            assert one.data.tolist() == other.data.tolist()
        else:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("names", [NAMES, ("epoch_0_iter_300", "epoch_0_iter_600", "epoch_1_iter_900")])
def test_adopt_tallies__keeps_what_the_files_say(store, tmp_path, names):
    read = read_tallies(tree(tmp_path / "tree", names))
    assert adopt_tallies(read, store, run="published") == (3, 0)
    held = opened(store)
    assert held.attrs["run"] == "published"
    assert held["measured"].all()
    assert held["best_number"].dtype == np.float64
    assert_same(from_cube(held), read)
    assert_same(from_cube(held.sel(layer="layer4").isel(unit=[1])), read.isel(unit=[1]))


def test_from_cube__takes_selections_as_what_they_are(store, tmp_path):
    read = read_tallies(tree(tmp_path / "tree"))
    adopt_tallies(read, store, run="published")
    held = opened(store)
    assert_same(from_cube(held.isel(epoch=[2, 0])), read.isel(epoch=[2, 0]))
    objects = from_cube(held.sel(category=["object"], concept=["dog", "cat"])).compute()
    assert objects["iou"]["concept"].data.tolist() == ["cat", "dog"]
    np.testing.assert_array_equal(objects["iou"], read["iou"].sel(concept=["cat", "dog"]))
    assert objects["best_label"].data.tolist() == read["best_label"].sel(category=["object"]).data.tolist()
    assert objects["label_category"].data.tolist() == [["", "object"], ["object", "object"], ["object", ""]]
    for dim, label in (("category", "object"), ("concept", "dog"), ("unit", 0)):
        with pytest.raises(SchemaError, match=f"no dim '{dim}'.*select with lists"):
            from_cube(held.sel({dim: label}))


def test_from_cube__is_lazy_and_blind_to_chunks(store, tmp_path):
    adopt(store, tree(tmp_path / "tree"))
    held = opened(store)
    found = from_cube(held.chunk(unit=1))
    assert all(found[name].chunks is not None for name in found.data_vars)
    assert_same(found, from_cube(held.compute()))


def test_adopt_tallies__writes_nothing_the_second_time_and_of_a_changed_file_its_row(store, tmp_path):
    folder = tree(tmp_path / "tree")
    adopt(store, folder)
    before = store.snapshot_id
    assert adopt(store, folder) == (0, 3)
    assert store.snapshot_id == before
    rows = {1: both(("green-c", 7, 50, 2), ("dog", 60, 50, 30)), 2: TREE[1][2]}
    write(folder / "epoch_2" / "layer4" / "tally.csv", rows)
    assert adopt(store, folder) == (1, 2)
    assert_same(from_cube(opened(store)).drop_vars(["iou"]), read_tallies(folder).drop_vars(["iou"]))
    iou = neurolens.iou(opened(store))
    known = read_tallies(folder)["iou"]
    xr.testing.assert_equal(iou.sel(concept=known["concept"]).drop_vars("measured").compute(), known.compute())


def test_adopt_tallies__lays_later_checkpoints_beside_it(store, tmp_path):
    adopt(store, tree(tmp_path / "a", NAMES[:2]))
    write(tmp_path / "b" / NAMES[2] / "layer4" / "tally.csv", TREE[2])
    assert adopt(store, tmp_path / "b") == (1, 0)
    assert_same(from_cube(opened(store)), read_tallies(tree(tmp_path / "whole")))


def test_adopt_tallies__goes_on_where_it_was_killed(store, tmp_path):
    read = read_tallies(tree(tmp_path / "tree"))

    def killed(position):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adopt_tallies(read, store, run="published", report=killed)
    assert opened(store).sizes["epoch"] == 1
    assert adopt_tallies(read, store, run="published") == (2, 1)
    assert_same(from_cube(opened(store)), read)


def test_adopt_tallies__killed_before_its_first_row_leaves_an_empty_cube(store, tmp_path, monkeypatch):
    read = read_tallies(tree(tmp_path / "tree"))

    def killed(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(store), "write_row", killed)
        with pytest.raises(KeyboardInterrupt):
            adopt_tallies(read, store, run="published")
    with pytest.raises(SchemaError, match="no epoch left to follow"):
        concept_events(opened(store))
    assert adopt_tallies(read, store, run="published") == (3, 0)
    assert_same(from_cube(opened(store)), read)


def test_adopt_tallies__with_the_four_first_columns(store, tmp_path):
    eight(tmp_path / "tree")
    read = read_tallies(tmp_path / "tree", layers=["layer4"])
    adopt_tallies(read, store, run="published")
    assert_same(from_cube(opened(store)), read)
    with pytest.raises(SchemaError, match="no columns per category"):
        neurolens.iou(opened(store))


def test_adopt_tallies__names_that_two_categories_share_and_names_that_are_none(store, tmp_path):
    same = {1: both(("wood", 100, 50, 20), ("wood", 60, 50, 2)), 2: both(("", 9, 9, 8), ("", 9, 9, 1))}
    write(tmp_path / "tree" / "epoch_0" / "layer4" / "tally.csv", same)
    adopt(store, tmp_path / "tree")
    held = opened(store)
    assert_same(from_cube(held), read_tallies(tmp_path / "tree"))
    assert from_cube(held)["iou"]["concept"].data.tolist() == ["wood (color)", "wood (object)"]
    assert from_cube(held)["label_category"].compute().data.tolist() == [["color", "color"]]
    chosen = neurolens.iou(held.sel(concept=["wood (object)"]))
    assert chosen["concept"].data.tolist() == ["wood (object)"]
    assert chosen.isel(unit=0).values.item() == read_tallies(tmp_path / "tree")["best_iou"].values[0, 0, 1]


def test_adopt_tallies__of_several_layers(store, tmp_path):
    for layer in ("layer10", "layer2"):
        tree(tmp_path / "tree", layer=layer)
    adopt(store, tmp_path / "tree")
    held = opened(store)
    assert_same(from_cube(held), read_tallies(tmp_path / "tree"))
    assert held["layer"].data.tolist() == ["layer2"] * 2 + ["layer10"] * 2
    found = concept_events(held.sel(layer="layer10"), k=1)
    assert found["unit"].unique().tolist() == [2, 3]
    assert set(found["layer"]) == {"layer10"}
    with pytest.raises(StoreError, match="4 units of layer2, layer10, and these are of 2 units of layer10"):
        adopt(store, tmp_path / "tree", layers=["layer10"])


def test_adopt_tallies__of_nameless_concepts_only(store, tmp_path):
    write(tmp_path / "tree" / "epoch_0" / "layer4" / "tally.csv", {1: both(("", 9, 9, 8), ("", 9, 9, 1))})
    adopt(store, tmp_path / "tree")
    found = from_cube(opened(store))
    assert found["iou"].sizes["concept"] == 0
    assert found["label"].compute().data.tolist() == [[""]]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({1: TREE[2][1]}, {}, "holds tallies of 2 units of layer4, and these are of 1 units of layer4"),
        (TREE[2], {"layer": "layer3"}, "2 units of layer4, and these are of 2 units of layer3"),
        (
            {unit: {"object": row["object"]} for unit, row in TREE[2].items()},
            {"categories": ("object",)},
            "with columns for color, object, and these have columns for object; give these a store of their own",
        ),
        (
            {unit: both(row["color"], ("dog", 61, 50, 1)) for unit, row in TREE[2].items()},
            {},
            "the object 'dog' has an area .* of 60, and in these it has 61",
        ),
    ],
)
def test_adopt_tallies__refuses_what_is_no_one_series(store, tmp_path, rows, options, message):
    adopt(store, tree(tmp_path / "tree"))
    before = store.snapshot_id
    path = tmp_path / "other" / "epoch_20" / options.pop("layer", "layer4") / "tally.csv"
    write(path, rows, **options)
    with pytest.raises(StoreError, match=message):
        adopt(store, tmp_path / "other")
    assert store.snapshot_id == before


def test_adopt_tallies__refuses_another_run_another_series_and_an_import_under_way(store, tmp_path):
    folder = tree(tmp_path / "tree")
    adopt(store, folder)
    with pytest.raises(StoreError, match="holds run 'published'"):
        adopt_tallies(read_tallies(folder), store, run="another")
    with pytest.raises(StoreError, match="holds tallies by epoch, and these are by step"):
        adopt(store, folder, order=dict(zip(NAMES, (1, 2, 3))), dim="step")
    with store.claim("tallies", [(0, -1)]), pytest.raises(StoreError, match="being imported by another process"):
        adopt(store, folder)


def eight(folder):
    """The eight units worked by hand, in tables of four columns."""
    score = np.array(list(EIGHT.values()))
    for epoch in range(8):
        path = folder / f"epoch_{epoch}" / "tally.csv"
        path.parent.mkdir(parents=True)
        labels = [word[epoch].strip() or "a" for word in EIGHT]
        rows = [f"{u + 1},object,{labels[u]},{float(score[u, epoch])!r}" for u in range(8)]
        path.write_text("\n".join(["unit,category,label,score", *rows]) + "\n")


SEED = {
    1: [(1, "a", 2, 5), (2, "b", 3, 5), (4, "d", 0, 1), (5, "f", 0, 5), (8, "i", 4, 5)],
    2: [(1, "a", 2, 5), (2, "b", 3, 5), (5, "f", 0, 5), (8, "i", 4, 5)],
    3: [(1, "a", 2, 5), (2, "b", 3, 5), (5, "f", 0, 5), (8, "i", 4, 5)],
}


@pytest.mark.parametrize("k", SEED)
def test_concept_events__of_an_import_are_those_of_the_reference(store, tmp_path, k):
    eight(tmp_path / "tree")
    adopt(store, tmp_path / "tree", layers=["layer4"])
    found = concept_events(opened(store), compat="seed", k=k)
    lines = list(zip(found["index"] + 1, found["concept"], found["birth"], found["death"]))
    assert lines == SEED[k]
    scores = {(1, 0.09, 0.03), (2, 0.05, 0.03), (5, 0.06, 0.03), (8, 0.05, 0.01)}
    assert scores <= set(zip(found["index"] + 1, found["score_birth"], found["score_death"]))


FOLLOWING = {
    "concept_events": lambda x: concept_events(x, k=1),
    "concept_events by unit": lambda x: concept_events(x, k=1, by="unit"),
    "concept_events seed": lambda x: concept_events(x, k=1, compat="seed"),
    "concept_lives": lambda x: concept_lives(x, k=1),
    "migrations": lambda x: migrations(x, k=1),
    "migrations seed": lambda x: migrations(x, k=1, compat="seed"),
    "extinctions": lambda x: extinctions(x, k=1),
    "survival": lambda x: survival(concept_events(x, k=1)),
    "churn": churn,
    "label_drift": label_drift,
    "diversity": diversity,
    "tau_sensitivity": tau_sensitivity,
    "compare": lambda x: compare({"one": x}, k=1),
}


@pytest.mark.parametrize("what", FOLLOWING)
def test_mortality__follows_the_opened_cube_as_the_files(store, tmp_path, what):
    folder = tree(tmp_path / "tree")
    adopt(store, folder)
    expected = FOLLOWING[what](read_tallies(folder))
    for held in (opened(store), neurolens.open_run(store.url)["tallies"]):
        found = FOLLOWING[what](held)
        if isinstance(expected, pd.DataFrame):
            pd.testing.assert_frame_equal(found, expected)
        else:
            xr.testing.assert_equal(found.compute().drop_vars("measured", errors="ignore"), expected.compute())


def test_concept_events__of_an_import_displaced_concepts_do_not_die(store, tmp_path):
    adopt(store, tree(tmp_path / "tree"))
    found = concept_events(opened(store), k=1).set_index(["unit", "concept"])
    assert found.loc[(1, "cat"), ["end", "censored"]].tolist() == ["displaced", True]
    assert found.loc[(0, "red-c"), ["end", "death"]].tolist() == ["death", 2]
    assert found.attrs["run"] == "published"


def test_best_concept__and_detectors_of_an_import_are_those_of_what_is_known(store, tmp_path):
    folder = tree(tmp_path / "tree")
    adopt(store, folder)
    known = read_tallies(folder)["iou"]
    for reduce in (neurolens.best_concept, neurolens.detectors, lambda x: neurolens.best_concept(x, by="category")):
        xr.testing.assert_equal(
            reduce(opened(store)).compute().drop_vars("measured"),
            reduce(known).compute(),
        )
    with pytest.raises(SchemaError, match="no blocks of them"):
        neurolens.iou(opened(store), by="block")


@pytest.mark.parametrize("names", [NAMES, ("epoch_0_iter_300", "epoch_0_iter_600", "epoch_1_iter_900")])
def test_iou__of_an_import_at_one_checkpoint_is_that_of_the_series_there(store, tmp_path, names):
    adopt(store, tree(tmp_path / "tree", names))
    held = opened(store)
    series = next(iter(held["best_iou"].dims))
    xr.testing.assert_equal(
        neurolens.iou(held.isel({series: 1})).compute(), neurolens.iou(held).isel({series: 1}).compute()
    )
    best = neurolens.best_concept(held.isel({series: 1})).compute()
    assert best["label"].data.tolist() == ["dog", "dog"]


AREAS = {("color", name): 100 + i for i, name in enumerate("ab")} | {("object", name): 60 for name in ("a", "dog")}


@st.composite
def cells(draw):
    """The best of both categories, of one unit at one checkpoint; a name may be empty, or shared by the categories."""
    out = {}
    for category in ("color", "object"):
        name = draw(st.sampled_from(["", *(n for c, n in AREAS if c == category)]))
        area = AREAS.get((category, name), 9)
        out[category] = (name, area, 50, draw(st.integers(0, min(area, 50))))
    return out


@settings(max_examples=12, deadline=None)
@given(
    histories=st.lists(st.lists(cells(), min_size=2, max_size=2), min_size=2, max_size=4),
    first=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_adopt_tallies__in_whatever_portions_holds_what_the_files_say_and_gives_them_back(histories, first, seed):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for epoch, units in enumerate(histories):
            write(root / "tree" / f"epoch_{epoch}" / "layer4" / "tally.csv", dict(enumerate(units, 1)))
        store = open_store(root / "store.icechunk", create=True)
        names = [f"epoch_{epoch}" for epoch in np.random.default_rng(seed).permutation(len(histories))]
        for part in (names[:first], names[first:]):
            if part:
                adopt(store, root / "tree", order={name: int(name[6:]) for name in part})
        held = opened(store)
        assert_same(from_cube(held), read_tallies(root / "tree"))
        for path in export_tallies(held, root / "back"):
            assert path.read_bytes() == (root / "tree" / path.relative_to(root / "back")).read_bytes()
