"""Golden numbers of other sources than the tables that the tests of each module hold."""

import numpy as np
import pytest
import xarray as xr
from concept_cases import (
    CATEGORIES,
    CONCEPT_CATEGORY,
    CONCEPTS,
    LITE_BEST,
    MAPS,
    TALLY,
    THRESHOLDS,
    write_mini_broden,
)
from dissection_cases import cube
from dormancy_cases import statistics

from neurolens import iou, spectrum_metrics
from neurolens.data.broden import broden
from neurolens.dissection import Tally, Thresholds
from neurolens.mortality import export_tallies


def test_spectrum_metrics__of_four_values_are_those_of_the_reference() -> None:
    found = spectrum_metrics(xr.DataArray([4.0, 3, 2, 1], dims="component"))
    assert float(found["effective_rank"]) == pytest.approx(3.596115, abs=5e-7)
    assert (int(found["srank99"]), int(found["approx99"])) == (4, 4)


def test_statistics__of_classes_are_the_means_worked_by_hand() -> None:
    responses = np.array([[4, 1, 0], [2, 1, 0], [0, 1, 0], [1, 1, 0]], dtype=float)
    ds = statistics(responses, classes=[0, 0, 1, 2])
    assert (ds["class_sum"] / ds["class_n"])[0].data.tolist() == [[3, 1, 0], [0, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize("reading", ["lite", "paper"])
def test_tally__of_five_images_on_disk_is_the_table_and_the_file_of_the_reference(tmp_path, reading) -> None:
    found = broden(write_mini_broden(tmp_path / "mini"))
    tally = Tally(found.packed(cache=tmp_path / "cache"), 2)
    tally.add(MAPS, THRESHOLDS, np.arange(5))
    ds = cube(tally, concepts=list(CONCEPTS), category=found.category, categories=list(CATEGORIES))
    assert tuple(ds["concept_category"].values) == CONCEPT_CATEGORY
    score = iou(ds, reading=reading).isel(epoch=0).compute()
    for unit, of in enumerate(score.transpose("unit", "concept").values, start=1):
        for name, value in zip(CONCEPTS, of):
            known = TALLY.get((unit, name), (0,) * 5)
            assert value == pytest.approx(known[3 if reading == "lite" else 4], abs=1e-6)
    named = ds.assign_coords(index=("unit", [0, 1]))
    (path,) = export_tallies(named, tmp_path / "out", reading=reading)
    lines = [line.split(",") for line in path.read_text().splitlines()]
    printed = [(int(unit), category, label) for unit, category, label, *_ in lines[1:]]
    assert printed == [line[:3] for line in LITE_BEST]
    if reading == "lite":
        np.testing.assert_allclose(
            [float(line[3]) for line in lines[1:]], [b[3] for b in LITE_BEST], rtol=0, atol=5e-15
        )


def test_thresholds__of_lite_leave_as_many_of_a_million_above_as_they_say() -> None:
    values = np.maximum(np.random.default_rng(0).normal(size=(10**6, 1)), 0).astype(np.float32)
    with Thresholds(1, 10**6, compat="lite") as thresholds:
        thresholds.update(values)
        above = (values[:, 0] > thresholds.result()[0]).mean()
    assert above == pytest.approx(0.005005, abs=5e-7)  # the reference's sketch: 0.00500 to 0.00509
