"""Selectivity, sparseness and position: golden numbers, slow versions; what all reductions of units share."""

import math

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dormancy_cases import H, drawn, raising, statistics, with_units
from hypothesis import given, settings
from hypothesis import strategies as st

import neurolens
from neurolens import accessor
from neurolens.errors import MissingMeasurementError, SchemaError
from neurolens.units import (
    alive,
    class_selectivity,
    contribution_utility,
    dormant,
    dormant_for_one,
    firing_bound,
    firing_density,
    lifetime_sparseness,
    positional_information,
    preferred_class,
    quantile,
)

RESPONSES = np.array([[4, 1, 0], [2, 1, 0], [0, 1, 0], [1, 1, 0]], float)
CLASSES = np.array([0, 0, 1, 2])


def positions(fired, shown):
    """A units cube of how many texts fired (unit, position) of those shown (position)."""
    fired, shown = np.asarray(fired, float)[None], np.asarray(shown, float)[None]
    return with_units(
        xr.Dataset(
            {"position_n_pos": (("step", "unit", "position"), fired), "position_n": (("step", "position"), shown)}
        )
    )


def slow_information(rates):
    mean = sum(rates) / len(rates)
    total = 0.0
    for rate in rates:
        for one, all_ in ((rate, mean), (1 - rate, 1 - mean)):
            total += one * math.log(one / all_) if one else 0.0
    return total / len(rates)


def cube():
    """Every statistic that the reductions of this file read, at random."""
    rng = np.random.default_rng(0)
    ds = drawn()
    shown = np.sort(rng.integers(1, 30, (5, 6)))[:, ::-1]
    return ds.assign(
        position_n=(("epoch", "position"), shown.astype(float)),
        position_n_pos=(("epoch", "unit", "position"), np.floor(shown[:, None] * rng.random((5, 24, 6)))),
        histogram=(("epoch", "unit", "bin"), rng.integers(0, 9, (5, 24, 256)) * (np.arange(256) % 128 < 124.0)),
        out_weight=(("epoch", "unit"), rng.random((5, 24))),
    )


REDUCTIONS = {
    "class_selectivity": class_selectivity,
    "preferred_class": preferred_class,
    "lifetime_sparseness": lifetime_sparseness,
    "positional_information": positional_information,
    "firing_density": firing_density,
    "alive": alive,
    "firing_bound": firing_bound,
    "contribution_utility": contribution_utility,
    "quantile": lambda ds, **options: quantile(ds, [0.1, 0.5], **options),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize(
    "chunks", [{"epoch": 1}, {"unit": 5, "class": 1}, {"epoch": 2, "unit": 7, "position": 4, "bin": 100}]
)
def test_reductions__are_lazy_and_blind_to_chunks(name, chunks):
    ds = cube()
    with dask.config.set(scheduler=raising):
        found = REDUCTIONS[name](ds.chunk(chunks))
    assert isinstance(found.data, da.Array)
    xr.testing.assert_allclose(found.compute(), REDUCTIONS[name](ds), rtol=1e-13)
    assert found.name == name
    assert found.attrs["long_name"]
    assert found.attrs["units"]


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions__name_the_checkpoints_that_were_not_measured(name):
    ds = cube().assign_coords(measured=("epoch", np.arange(5) != 2))
    with pytest.raises(MissingMeasurementError, match="at epoch 20"):
        REDUCTIONS[name](ds)
    assert REDUCTIONS[name](ds, missing="drop").sizes["epoch"] == 4


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("class_selectivity", "classes"),
        ("positional_information", "positions"),
        ("contribution_utility", "weights"),
        ("quantile", "histogram"),
    ],
)
def test_reductions__say_how_to_measure_what_they_need(name, part):
    with pytest.raises(MissingMeasurementError, match=rf"{part} = true in the study's \[units\] table"):
        REDUCTIONS[name](statistics(H))


def test_class_selectivity__matches_the_responses_worked_by_hand():
    ds = statistics(RESPONSES, classes=CLASSES)
    np.testing.assert_allclose(class_selectivity(ds), [[0.714285714, 0, 0]], atol=5e-10)
    assert preferred_class(ds).data.tolist() == [[0, 0, 0]]


@given(seed=st.integers(0, 999), classes=st.integers(2, 4))
@settings(max_examples=25, deadline=None)
def test_class_selectivity__matches_the_slow_definition(seed, classes):
    rng = np.random.default_rng(seed)
    a = np.maximum(rng.normal(size=(16, 5)), 0)
    y = np.arange(16) % classes
    found, best = class_selectivity(statistics(a, classes=y)), preferred_class(statistics(a, classes=y))
    for j in range(5):
        means = [float(a[y == c, j].mean()) for c in range(classes)]
        top = max(means)
        rest = (sum(means) - top) / (classes - 1)
        assert float(found[0, j]) == pytest.approx((top - rest) / (top + rest) if top + rest else 0, abs=1e-12)
        assert int(best[0, j]) == means.index(top)


def test_class_selectivity__leaves_out_classes_without_samples():
    ds = statistics(RESPONSES, classes=CLASSES)
    empty = xr.zeros_like(ds[["class_n", "class_sum"]].isel({"class": [0]}))
    more = xr.concat(
        [empty, ds[["class_n", "class_sum"]]],
        "class",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="override",
    )
    np.testing.assert_allclose(class_selectivity(more), class_selectivity(ds))
    np.testing.assert_array_equal(preferred_class(more), preferred_class(ds) + 1)
    alone = more.isel({"class": [0, 1]})
    assert class_selectivity(alone).isnull().all()
    assert preferred_class(more.isel({"class": [0]})).isnull().all()


def test_class_selectivity__is_unknown_where_it_means_nothing():
    a = np.array([[1.0, -2.0, np.nan], [-2.0, -2.0, 1.0]])
    ds = statistics(a, classes=[0, 1])
    np.testing.assert_array_equal(class_selectivity(ds), [[np.nan, 0, np.nan]])
    np.testing.assert_allclose(class_selectivity(ds, of="absolute"), [[1 / 3, 0, np.nan]])
    np.testing.assert_array_equal(preferred_class(ds), [[0, 0, np.nan]])
    with pytest.raises(SchemaError, match="of='max' is unknown"):
        class_selectivity(ds, of="max")


def test_dormant_for_one__is_silent_for_one_class_and_no_other():
    a = np.array([[0, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]], float)
    mask = dormant(statistics(np.c_[a, [1, 1, 1]], classes=[0, 1, 2]), "dead", per_class=True)
    found = dormant_for_one(mask)
    assert found.dims == mask.dims == ("epoch", "class", "unit")
    assert found[0].data.astype(int).tolist() == [[1, 0, 0, 0, 0], [0] * 5, [0] * 5]
    with pytest.raises(SchemaError, match="per_class=True"):
        dormant_for_one(mask.isel({"class": 0}))
    with pytest.raises(SchemaError, match="a bool mask is needed"):
        dormant_for_one(mask.astype(int))


def test_lifetime_sparseness__is_one_for_one_hot_and_zero_for_uniform():
    a = np.array([[1, 2, 0, 3], [0, 2, 0, 0], [0, 2, 0, 1], [0, 2, 0, 0]], float)
    expected = (1 - (4 / 4) ** 2 / (10 / 4)) / (1 - 1 / 4)
    np.testing.assert_allclose(lifetime_sparseness(statistics(a)), [[1, 0, np.nan, expected]])
    assert lifetime_sparseness(statistics(a[:1])).isnull().all()


@given(seed=st.integers(0, 999), scale=st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
def test_lifetime_sparseness__lies_between_zero_and_one_and_knows_no_scale(seed, scale):
    a = np.maximum(np.random.default_rng(seed).normal(size=(9, 6)), 0)
    found = lifetime_sparseness(statistics(a)).data
    active = a.any(axis=0)
    assert ((found[0, active] >= -1e-12) & (found[0, active] <= 1 + 1e-12)).all()
    np.testing.assert_allclose(lifetime_sparseness(statistics(a * scale)).data, found, atol=1e-12)


def test_positional_information__matches_the_rates_worked_by_hand():
    found = positional_information(positions([[9, 1], [5, 5], [10, 0], [0, 0], [10, 10]], [10, 10]))
    np.testing.assert_allclose(found, [[0.368064207, 0, math.log(2), 0, 0]], atol=5e-10)


@given(seed=st.integers(0, 999), length=st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_positional_information__matches_the_slow_definition(seed, length):
    rng = np.random.default_rng(seed)
    shown = rng.integers(1, 20, length)
    fired = rng.integers(0, shown + 1, (4, length))
    found = positional_information(positions(fired, shown))
    np.testing.assert_allclose(found[0], [slow_information((f / shown).tolist()) for f in fired], atol=1e-12)
    assert (found >= 0).all()
    assert (found <= math.log(2) + 1e-12).all()


def test_positional_information__is_unknown_for_units_without_tokens():
    ds = positions([[9, 1], [np.nan, np.nan]], [10, 10])
    assert positional_information(ds).isnull().data.tolist() == [[False, True]]


def test_positional_information__leaves_out_positions_that_few_texts_reach():
    ds = positions([[9, 1, 0, 3]], [10, 10, 0, 3])
    expected = positional_information(ds.isel(position=[0, 1]))
    np.testing.assert_allclose(positional_information(ds, min_texts=5), expected)
    np.testing.assert_allclose(positional_information(ds), positional_information(ds.isel(position=[0, 1, 3])))
    assert positional_information(ds, min_texts=11).isnull().all()
    with pytest.raises(SchemaError, match="min_texts=0"):
        positional_information(ds, min_texts=0)
    with pytest.raises(SchemaError, match="no dim 'position'"):
        positional_information(ds.isel(position=0))


@pytest.mark.parametrize("name", ["class_selectivity", "lifetime_sparseness", "positional_information"])
def test_lens__is_the_function_of_the_same_name(name):
    ds = cube()
    assert isinstance(ds.lens, accessor.Lens)
    xr.testing.assert_identical(getattr(ds.lens, name)(), getattr(neurolens, name)(ds))
