"""The reference's files, byte by byte where it matters, and back."""

import csv
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from mortality_cases import MOVING, by_unit, drawn
from tally_cases import tree

from neurolens.errors import DataError, SchemaError
from neurolens.mortality import (
    concept_events,
    export_events,
    export_tallies,
    export_trajectories,
    migrations,
    read_tallies,
)


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.reader(file))


def test_export_tallies__give_back_what_was_read(tmp_path):
    original = tree(tmp_path / "a")
    paths = export_tallies(read_tallies(original), tmp_path / "b")
    assert [p.relative_to(tmp_path / "b").as_posix() for p in paths] == [
        f"epoch_{n}/layer4/tally.csv" for n in (0, 2, 10)
    ]
    for path in paths:
        assert rows(path) == rows(original / path.relative_to(tmp_path / "b"))
    xr.testing.assert_identical(
        read_tallies(tmp_path / "b").drop_attrs().compute(), read_tallies(original).drop_attrs().compute()
    )


def cube(readings_differ=True):
    """Two units and three concepts of two categories, in two blocks of images."""
    intersection = np.array([[[12, 8, 12], [0, 0, 0]]]) * np.array([[1], [3]])[:, None] / 4
    area = np.array([[20.0, 12.0], [0.0, 0.0]])
    coords = {
        "step": [300],
        "epoch": ("step", [0]),
        "concept": ["red", "blue", "dog"],
        "label": ("concept", [1, 2, 3]),
        "concept_category": ("concept", ["color", "color", "object"]),
        "category": ["color", "object"],
        "layer": ("unit", ["layer4"] * 2),
        "index": ("unit", [0, 1]),
    }
    split = np.array([1, 3]) / 4
    lite = area[None, None] * split[None, :, None, None]
    paper = lite + np.array([0.0, 4.0 if readings_differ else 0.0]) * split[None, :, None, None] * (area > 0)
    data = {
        "intersection": (("step", "block", "unit", "concept"), intersection[None]),
        "unit_area": (("step", "block", "unit", "category"), paper),
        "unit_area_lite": (("step", "block", "unit", "category"), lite),
        "concept_area": (("step", "block", "concept"), np.array([[[32, 48, 12]]]) * split[None, :, None]),
    }
    return xr.Dataset(data, coords)


@pytest.mark.parametrize(("reading", "area", "iou"), [("lite", 12, 1.0), ("paper", 16, 0.75)])
def test_export_tallies__of_a_cube_hold_its_counts_in_either_reading(tmp_path, reading, area, iou):
    (path,) = export_tallies(cube(), tmp_path, reading=reading)
    assert path == tmp_path / "epoch_0_iter_300" / "layer4" / "tally.csv"
    header, first, second = rows(path)
    assert header[:9] == [
        "unit",
        "category",
        "label",
        "score",
        *(f"color-{f}" for f in ("label", "truth", "activation", "intersect", "iou")),
    ]
    assert first[:3] == ["1", "object", "dog"]
    np.testing.assert_allclose(float(first[3]), iou)
    assert first[4:8] == ["red", "32", "20", "12"]
    np.testing.assert_allclose(float(first[8]), 0.3)
    assert first[9:13] == ["dog", "12", str(area), "12"]
    assert second == ["2", "", "", "nan", "", "0", "0", "0", "nan", "", "0", "0", "0", "nan"]
    found = read_tallies(tmp_path)
    assert found["label"].data.tolist() == [["dog", ""]]
    assert np.isnan(found["score"].data[0, 1])


def test_export_trajectories__has_the_columns_of_its_series(tmp_path):
    data = read_tallies(tree(tmp_path / "a"))
    lines = rows(export_trajectories(data, tmp_path / "trajectories.csv"))
    assert lines[0] == ["epoch", "layer", "unit", "label", "score", "category"]
    assert len(lines) == 1 + 3 * 2
    assert lines[4] == ["2", "layer4", "2", "dog", repr(float(data["score"].data[1, 1])), "object"]
    tree(tmp_path / "b", ("epoch_0_iter_300", "epoch_0_iter_600", "epoch_1_iter_900"))
    lines = rows(export_trajectories(read_tallies(tmp_path / "b"), tmp_path / "trajectories.csv"))
    assert lines[0] == ["step", "checkpoint", "layer", "unit", "label", "score", "category"]
    assert lines[1][:4] == ["300", "epoch_0_iter_300", "layer4", "1"]


def test_export_events__are_the_files_of_the_reference(tmp_path):
    events = concept_events(by_unit(), compat="seed", k=3)
    paths = export_events(events, tmp_path, migrations=migrations(by_unit(), compat="seed", k=3))
    assert [p.name for p in paths] == ["mortality_events.csv", "summary.csv", "concept_death_counts.csv"]
    names = ["unit", "layer", "label", "step_birth", "step_death", "score_birth", "score_death"]
    assert rows(paths[0]) == [
        [*names, "migrated", "functional_dead"],
        ["1", "layer4", "a", "2", "5", "0.09", "0.03", "False", ""],
        ["2", "layer4", "b", "3", "5", "0.05", "0.03", "False", ""],
        ["5", "layer4", "f", "0", "5", "0.06", "0.03", "False", ""],
        ["8", "layer4", "i", "4", "5", "0.05", "0.01", "False", ""],
    ]
    assert rows(paths[1]) == [
        ["metric", "value"],
        ["total_events", "4"],
        ["migrated_events", "0"],
        ["functional_dead_events", ""],
        ["step_5_deaths", "4"],
        ["layer_layer4_deaths", "4"],
    ]
    assert rows(paths[2]) == [["label", "count"], ["a", "1"], ["b", "1"], ["f", "1"], ["i", "1"]]


def test_export_events__write_what_is_known_of_migration_and_function(tmp_path):
    scores = by_unit(MOVING, series="epoch")
    events, moved = concept_events(scores, compat="seed"), migrations(scores, compat="seed")
    path, summary, _ = export_events(events, tmp_path, migrations=moved, functional_dead=[True])
    assert rows(path)[0][3:5] == ["epoch_birth", "epoch_death"]
    assert rows(path)[1][-2:] == ["True", "True"]
    assert rows(summary)[2:5] == [["migrated_events", "1"], ["functional_dead_events", "1"], ["epoch_4_deaths", "1"]]
    path, summary, _ = export_events(events, tmp_path)
    assert rows(path)[1][-2:] == ["", ""]
    assert rows(summary)[2:4] == [["migrated_events", ""], ["functional_dead_events", ""]]


def test_export_events__count_concepts_by_falling_number(tmp_path):
    events = concept_events(drawn(12, 9, 3, 0, levels=(0.01, 0.02, 0.05)), k=1)
    _, summary, counts = export_events(events, tmp_path)
    deaths = events[events["end"] == "death"]
    numbers = [int(n) for _, n in rows(counts)[1:]]
    assert numbers == sorted(numbers, reverse=True)
    assert sum(numbers) == len(deaths)
    per_checkpoint = [int(n) for name, n in rows(summary) if name.startswith("epoch_")]
    assert sum(per_checkpoint) == len(deaths)
    assert [name for name, _ in rows(summary) if name.startswith("layer_")] == [
        "layer_layer1_deaths",
        "layer_layer2_deaths",
        "layer_layer3_deaths",
    ]


def test_export_events__of_no_death_are_headers(tmp_path):
    path, summary, counts = export_events(concept_events(drawn(levels=(0.01,)))[:0], tmp_path)
    assert len(rows(path)) == 1
    assert rows(summary)[1] == ["total_events", "0"]
    assert rows(counts) == [["label", "count"]]


def test_exports__say_what_is_wrong(tmp_path):
    events = concept_events(by_unit(), compat="seed")
    with pytest.raises(SchemaError, match="functional_dead has 1 lines, and there are 4 deaths"):
        export_events(events, tmp_path, functional_dead=[True])
    with pytest.raises(SchemaError, match="migrations has 1 lines"):
        export_events(events, tmp_path, migrations=migrations(by_unit(MOVING), compat="seed"))
    with pytest.raises(SchemaError, match="the events have no concept"):
        export_events(concept_events(by_unit()["score"]), tmp_path)
    with pytest.raises(SchemaError, match="no 'best_label'; pass the concepts cube"):
        export_tallies(by_unit(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written .*; name a folder"):
        export_events(events, tmp_path / "file")
