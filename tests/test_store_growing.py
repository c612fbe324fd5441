"""Axes that grow: what is stored keeps its place, and what the study no longer names is not shown."""

from typing import Any

import numpy as np
import pytest
from store_cases import key

from neurolens import schema
from neurolens.backend import open_run
from neurolens.errors import SchemaError
from neurolens.store import Axis, SampleCoords, open_store

SAMPLES = SampleCoords(np.array(["s0", "s1", "s2"]), np.array([0, 1, 0]), ("a", "b"))


def axes(*names: str, mates: int = 2, **kinds: str) -> dict[str, Axis]:
    coords = {"kind": np.array([kinds.get(name.partition("@")[0], "only") for name in names])}
    return {
        "map": Axis(np.array(names, dtype=np.dtypes.StringDType()), coords),
        "mate": Axis(np.arange(mates)),
        "attribution": Axis(np.array(["saliency"])),
        "patch_y": Axis(np.arange(2)),
        "patch_x": Axis(np.arange(2)),
    }


def prepare(store: Any, *names: str, **kinds: Any) -> Any:
    settings = {"data": "d", "model": {}, "parts": {"answers": {}, "maps": {}}}
    return store.prepare(
        schema.ATTRIBUTIONS,
        run="r",
        series="epoch",
        samples=SAMPLES,
        settings=settings,
        axes=axes(*names, **kinds),
        block_samples=2,
    )


def values(maps: int, samples: int, mates: int, fill: float) -> dict[str, np.ndarray]:
    sizes = {"sample": samples, "map": maps, "attribution": 1, "patch_y": 2, "patch_x": 2, "mate": mates}
    part = schema.ATTRIBUTIONS.part("maps")
    return {v.name: np.full([sizes[d] for d in v.dims[1:]], fill, dtype=v.dtype) for v in part.variables}


def write(store: Any, block: int, maps: int, mates: int, fill: float) -> None:
    store.write_row(
        schema.ATTRIBUTIONS,
        (0, block),
        positions={"epoch": 0},
        values=values(maps, (2, 1)[block], mates, fill),
        keys={"maps": key(block)},
        seconds=1.0,
        provenance={},
    )


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "run", create=True)


def test_prepare__adds_what_is_new_of_a_growing_axis_behind_what_is_there(store):
    prepare(store, "whole@1", "a/k2/0@2")
    write(store, 0, 2, 2, 1.0)
    grown = prepare(store, "a/k3/0@3", "whole@1", "a/k2/0@2", mates=3)
    assert grown.change == "add 1 maps; add 1 mates"
    assert grown.generation == 0
    assert store.axis("attributions", "map").tolist() == ["whole@1", "a/k2/0@2", "a/k3/0@3"]
    held = store.read_row("attributions", (0, 0), ["total", "dot", "target"])
    assert held["total"].shape == (2, 3, 1)
    assert held["total"][:, :, 0].tolist() == [[1.0, 1.0, pytest.approx(np.nan, nan_ok=True)]] * 2
    assert np.isnan(held["dot"][..., 2]).all()
    assert prepare(store, "a/k3/0@3", "whole@1", "a/k2/0@2", mates=3).change == ""


def test_propose__of_a_growing_axis_says_what_prepare_does_and_writes_nothing(store):
    prepare(store, "whole@1")
    tip = store.snapshot_id
    proposed = store.propose(
        schema.ATTRIBUTIONS,
        run="r",
        series="epoch",
        samples=SAMPLES,
        settings={"data": "d", "model": {}, "parts": {"answers": {}, "maps": {}}},
        axes=axes("b@2"),
        block_samples=2,
    )
    assert (proposed.change, proposed.sizes["map"], store.snapshot_id) == ("add 1 maps", 2, tip)


def test_prepare__keeps_what_the_study_no_longer_names_and_opens_the_rest_by_name(store, tmp_path):
    prepare(store, "whole@1", "a/k2/0@2", "a/k3/0@3", mates=3)
    write(store, 0, 3, 3, 1.0)
    assert prepare(store, "whole@1", "a/k2/0@9").change == "add 1 maps; update coordinates of mate"
    opened = open_run(tmp_path / "run")["attributions"].to_dataset()
    assert opened["map"].values.tolist() == ["whole", "a/k2/0"]
    assert opened["mate"].values.tolist() == [0, 1]
    first = opened["total"].isel(sample=slice(0, 2), attribution=0, epoch=0).values
    assert (first[:, 0] == 1.0).all()
    assert np.isnan(first[:, 1]).all()  # of the same name, and another set: not measured
    prepare(store, "whole@1", "a/k2/0@2", mates=3)
    again = open_run(tmp_path / "run")["attributions"].to_dataset()
    assert (again["total"].isel(sample=slice(0, 2)).values == 1.0).all()


def test_prepare__updates_coordinates_of_a_growing_axis_in_place(store, tmp_path):
    prepare(store, "whole@1", "b@2")
    write(store, 0, 2, 2, 4.0)
    assert prepare(store, "whole@1", "b@2", b="union").change == "update coordinates of map"
    opened = open_run(tmp_path / "run")["attributions"].to_dataset()
    assert opened["kind"].values.tolist() == ["only", "union"]
    assert (opened["total"].isel(sample=0).values == 4.0).all()


def test_write_row__takes_a_row_measured_before_an_axis_grew(store):
    prepare(store, "whole@1")
    other = open_store(store.url)
    prepare(other, "whole@1", "b@2", mates=4)
    write(store, 1, 1, 2, 7.0)
    held = store.read_row("attributions", (0, 1), ["total", "dot"])
    assert held["total"].shape == (1, 2, 1)
    assert held["total"][0, 0, 0] == 7.0
    assert np.isnan(held["total"][0, 1, 0])
    assert held["dot"].shape == (1, 2, 1, 4)


def test_write_row__refuses_more_than_a_growing_axis_has(store):
    prepare(store, "whole@1")
    with pytest.raises(SchemaError, match="has shape"):
        write(store, 0, 3, 2, 1.0)


def test_read_row__of_what_is_not_there_is_empty(store):
    prepare(store, "whole@1")
    assert store.read_row("attributions", (5, 0), ["total"]) == {}
    assert store.axis("units", "unit").size == 0
