"""Detectors against rotated layers: worked by hand, counted slowly, lazy, and honest about what was not measured."""

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dormancy_cases import raising
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from neurolens.dissection import best_concept, rotation_null
from neurolens.errors import MissingMeasurementError, SchemaError


def cube(score, turned, layers=None):
    """A concepts cube whose units have the best IoU ``score`` (epoch, unit), and rotated units that of ``turned``."""
    score, turned = np.asarray(score, float), np.asarray(turned, float)
    epochs, units = score.shape
    counts = np.round(np.nan_to_num(score) * 1e6)
    per_unit = np.stack([counts, np.zeros_like(counts)], axis=-1)[:, None]  # two concepts, of which the first is met
    area = np.where(np.isnan(score), 0, 1)[:, None, :, None] * per_unit[..., :1]
    return xr.Dataset(
        {
            "intersection": (("epoch", "block", "unit", "concept"), per_unit),
            "unit_area": (("epoch", "block", "unit", "category"), area),
            "unit_area_lite": (("epoch", "block", "unit", "category"), area),
            "concept_area": (("epoch", "block", "concept"), np.full((epochs, 1, 2), 1e6)),
            "rotated_score": (("epoch", "rotation", "unit"), turned),
            "rotated_score_lite": (("epoch", "rotation", "unit"), turned + 0.01),
        },
        {
            "epoch": 10 * np.arange(epochs),
            "unit": np.arange(units),
            "layer": ("unit", ["layer4"] * units if layers is None else layers),
            "rotation": np.arange(turned.shape[1]),
            "concept": ["dog", "cat"],
            "concept_category": ("concept", ["object", "object"]),
            "category": ["object"],
        },
        attrs={"run": "r18"},
    )


def drawn(seed=0, epochs=3, units=7, rotations=4):
    rng = np.random.default_rng(seed)
    levels = [0.01, 0.03, 0.04, 0.05, 0.2, np.nan]
    score = rng.choice(levels, (epochs, units))
    turned = rng.choice(levels, (epochs, rotations, units), p=[0.3, 0.3, 0.15, 0.1, 0.1, 0.05])
    return cube(score, turned, [f"layer{u % 3}" for u in range(units)])


def slow_null(score, turned, tau, false_rate):
    """One checkpoint's units (unit,) and rotated units (rotation, unit), counted one by one."""
    if np.isnan(turned).all():
        return [np.nan] * 6
    own = sum(s >= tau for s in score)
    each = [sum(s >= tau for s in row) for row in turned]
    p = (1 + sum(n >= own for n in each)) / (len(each) + 1)
    flat = [s for row in turned for s in row]
    for limit in sorted([0.0, *(s for s in flat if s == s)]):
        limit = np.nextafter(limit, 1)
        if sum(s >= limit for s in flat) <= false_rate * len(flat):
            break
    return [own, np.mean(each), np.mean(each) / len(score), p, limit, sum(s >= limit for s in score)]


NAMES = ["unit_detectors", "rotated_detectors", "rotated_share", "p_rotation", "null_tau", "null_detectors"]


def test_rotation_null__of_ten_units_worked_by_hand():
    score = [[0.1, 0.1, 0.06, 0.05, 0.045, 0.03, 0.01, 0.0, np.nan, np.nan]]
    turned = [[[0.07, 0.02, 0.01, 0, 0, 0, 0, 0, 0, 0], [0.05, 0.03] + [0.01] * 8]]
    found = rotation_null(cube(score, turned), false_rate=0.1)
    assert found["unit_detectors"].item() == 5
    assert found["unit_share"].item() == 0.5
    assert found["rotated_detectors"].item() == 1
    assert found["rotated_share"].item() == 0.1
    assert found["p_rotation"].item() == pytest.approx(1 / 3)
    assert found["null_tau"].item() == np.nextafter(0.03, 1)  # two of twenty lie above
    assert found["null_detectors"].item() == 5  # 0.03 itself is no detector
    interval = binomtest(2, 20).proportion_ci(0.95, "wilson")
    assert found["rotated_share_low"].item() == pytest.approx(interval.low)
    assert found["rotated_share_high"].item() == pytest.approx(interval.high)
    assert found.attrs == {
        "run": "r18",
        "reading": "paper",
        "iou_tau": 0.04,
        "false_rate": 0.1,
        "confidence": 0.95,
        "rotations": 2,
    }
    lite = rotation_null(cube(score, turned), reading="lite")
    assert lite["rotated_detectors"].item() == 1.5
    assert found["null_tau"].attrs["units"] == "1"


def test_rotation_null__is_less_sure_where_rotations_differ():
    alike = np.zeros((1, 4, 10))
    alike[:, :, :5] = 0.1
    apart = np.zeros((1, 4, 10))
    apart[:, :2] = 0.1
    width = []
    for turned in (alike, apart):
        found = rotation_null(cube(np.full((1, 10), 0.1), turned))
        assert found["rotated_share"].item() == 0.5
        width.append((found["rotated_share_high"] - found["rotated_share_low"]).item())
    interval = binomtest(20, 40).proportion_ci(0.95, "wilson")
    assert width[0] == pytest.approx(interval.high - interval.low)
    assert width[1] > 2 * width[0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.02, 0.04, 0.05]), st.sampled_from([0.05, 0.2, 0.6]))
def test_rotation_null__equals_counting_one_by_one(seed, tau, false_rate):
    data = drawn(seed)
    score = best_concept(data)["score"].data
    whole = rotation_null(data, tau=tau, false_rate=false_rate)
    layered = rotation_null(data, tau=tau, false_rate=false_rate, by="layer")
    of = data["layer"].data
    for t in range(3):
        turned = data["rotated_score"].data[t]
        np.testing.assert_allclose(
            [whole[name][t].item() for name in NAMES], slow_null(score[t], turned, tau, false_rate), rtol=1e-12
        )
        for layer in layered["layer"].data.tolist():
            inside = of == layer
            np.testing.assert_allclose(
                [layered[name].isel(epoch=t).sel(layer=layer).item() for name in NAMES],
                slow_null(score[t, inside], turned[:, inside], tau, false_rate),
                rtol=1e-12,
            )
    known = whole["rotated_share"].notnull()
    for low, high in (("rotated_share_low", "rotated_share"), ("rotated_share", "rotated_share_high")):
        assert (whole[low] <= whole[high] + 1e-12).where(known, True).all()


@pytest.mark.parametrize("chunks", [{"epoch": 1}, {"unit": 2}, {"epoch": 2, "rotation": 3, "concept": 1}])
@pytest.mark.parametrize("by", [None, "layer"])
def test_rotation_null__is_lazy_and_blind_to_chunks(chunks, by):
    found = rotation_null(drawn().chunk(chunks), by=by)
    assert all(isinstance(array.data, da.Array) for array in found.data_vars.values())
    xr.testing.assert_allclose(found.compute(), rotation_null(drawn(), by=by))


def test_rotation_null__reads_nothing_before_it_is_computed():
    measured = xr.DataArray(np.ones(drawn().sizes["epoch"], bool), dims="epoch")
    ds = drawn().chunk({"unit": 2}).assign_coords(measured=measured)  # in memory, as in an opened cube
    with dask.config.set(scheduler=raising):
        found = rotation_null(ds, by="layer")
    xr.testing.assert_allclose(found.drop_vars("measured").compute(), rotation_null(drawn(), by="layer"))


def test_rotation_null__at_one_checkpoint_is_that_of_the_series():
    xr.testing.assert_allclose(
        rotation_null(drawn().isel(epoch=1), by="layer"), rotation_null(drawn(), by="layer").isel(epoch=1)
    )


def test_rotation_null__is_nan_where_it_was_not_measured_or_a_layer_is_silent():
    data = drawn()
    turned = data["rotated_score"].data.copy()
    turned[1] = np.nan
    turned[2][:, data["layer"].data == "layer1"] = np.nan
    found = rotation_null(data.assign(rotated_score=(data["rotated_score"].dims, turned)), by="layer")
    for array in found.data_vars.values():
        assert np.isnan(array.data).tolist() == [[False] * 3, [True] * 3, [False, True, False]]


def test_rotation_null__is_nan_where_counts_were_not_measured_and_0_where_masks_are_empty():
    data = drawn()
    gone = data["epoch"] != 10
    counts = ["intersection", "unit_area", "concept_area"]
    found = rotation_null(data.assign({name: data[name].where(gone) for name in counts}))
    for array in found.data_vars.values():
        assert np.isnan(array.data).tolist() == [False, True, False]
    empty = data.assign(unit_area=0 * data["unit_area"], intersection=0 * data["intersection"])
    assert rotation_null(empty)["unit_detectors"].data.tolist() == [0, 0, 0]


def test_rotation_null__says_what_is_wrong():
    data = drawn()
    with pytest.raises(MissingMeasurementError, match=r"rotations = 1 in the study's \[concepts\] table"):
        rotation_null(data.drop_vars(["rotated_score", "rotated_score_lite"]))
    with pytest.raises(MissingMeasurementError, match="rotations = 1"):
        rotation_null(data.isel(rotation=[]))
    with pytest.raises(SchemaError, match="false_rate=0"):
        rotation_null(data, false_rate=0)
    with pytest.raises(SchemaError, match="tau=2"):
        rotation_null(data, tau=2)
    with pytest.raises(SchemaError, match="did you mean 'lite'"):
        rotation_null(data, reading="light")
    with pytest.raises(SchemaError, match="did you mean 'layer'"):
        rotation_null(data, by="layers")
    with pytest.raises(SchemaError, match="confidence=1"):
        rotation_null(data, confidence=1)
    with pytest.raises(MissingMeasurementError, match="intersection"):
        rotation_null(data.drop_vars("intersection"))
