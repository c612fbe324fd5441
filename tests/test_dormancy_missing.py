"""Dormancy of what is not finite, was not measured, or makes no sense: what is said, and how it is mended."""

import numpy as np
import pytest
import xarray as xr
from dormancy_cases import H, drawn, statistics

from neurolens.errors import MissingMeasurementError, NonFiniteError, SchemaError
from neurolens.units import dormancy, dormancy_summary, dormant
from neurolens.units.definitions import DEFINITIONS

ALL = list(DEFINITIONS)


def which(mask):
    return set(np.flatnonzero(mask.data).tolist())


def at(mask, **where):
    return which(mask.isel(epoch=0).sel(**where))


def test_dormant__refuses_what_is_not_finite_or_counts_it_as_said():
    a = np.stack([H, H])
    a[1, 2, 4] = np.nan
    ds = statistics(np.concatenate([a, np.ones((2, 4, 2))], axis=2), ["one"] * 5 + ["two"] * 2)
    scores = dormancy(ds, ALL).isel(epoch=1).isnull()
    for definition in ALL:
        whole = DEFINITIONS[definition].relative
        assert which(scores.sel(definition=definition)) == ({0, 1, 2, 3, 4} if whole else {4}), definition
        for chunked in (ds, ds.chunk({"epoch": 1, "unit": 3})):
            with pytest.raises(NonFiniteError, match=rf"{definition}' is NaN at epoch 10, for \d units of one:.*alive"):
                dormant(chunked, definition).compute()
        assert dormant(ds, definition, non_finite="dormant")[1, 4]
        assert not dormant(ds, definition, non_finite="alive")[1, 4]
    clean = dormant(statistics(np.concatenate([H, np.ones((4, 2))], axis=1), ds.layer.data))
    np.testing.assert_array_equal(dormant(ds, non_finite="alive")[0], clean[0])
    assert not dormancy(ds).isel(epoch=1, unit=slice(5, None)).isnull().any()


def test_dormant__names_the_classes_without_samples_as_a_cause():
    ds = statistics(H, classes=[0, 0, 1, 1])
    ds["class_n"][:, 1], ds["class_abs_sum"][:, 1] = 0, 0
    assert dormancy(ds, per_class=True).isnull().all("unit").data.tolist() == [[False, True]]
    with pytest.raises(NonFiniteError, match=r"a class without samples \(leave it out: units.sel"):
        dormant(ds, per_class=True)
    assert dormant(ds.isel({"class": [0]}), per_class=True).sizes["class"] == 1


def test_dormancy__by_the_median_is_unknown_in_the_layer_of_a_nan():
    ds = statistics(np.c_[H, np.ones((4, 2))], ["one"] * 5 + ["two"] * 2)
    ds["abs_sum"][0, 1] = np.nan
    found = dormancy(ds, normalize="median").isnull()
    assert found.data.tolist() == [[True] * 5 + [False] * 2]


def test_dormancy__takes_any_series():
    ds, renamed = drawn(), drawn().rename(epoch="time")
    for reduction in (dormancy, dormant, dormancy_summary):
        found = reduction(renamed, dim="time")
        xr.testing.assert_identical(found.rename(time="epoch"), reduction(ds))


def test_dormant__does_not_take_the_mates_of_an_infinite_unit_for_silent():
    a = H.copy()
    a[0, 4] = np.inf
    with np.errstate(invalid="ignore"):
        ds = statistics(a)
    assert dormancy(ds).isnull().all()
    with pytest.raises(NonFiniteError, match="not finite"):
        dormant(ds)


def test_dormant__refuses_units_without_an_observation():
    ds = statistics(H)
    ds["n"][0, 1], ds["abs_sum"][0, 1] = 0, 0
    with pytest.raises(NonFiniteError, match="nothing was observed"):
        dormant(ds, "absolute")


def test_dormancy__names_the_checkpoints_that_were_not_measured():
    done = np.array([True, False, True, False, True])
    ds = drawn().where(xr.DataArray(done, dims="epoch")).assign_coords(measured=("epoch", done)).assign_attrs(run="r18")
    ds = ds.assign_coords(drawn().coords)
    for reduction in (dormancy, dormant, dormancy_summary):
        with pytest.raises(MissingMeasurementError, match=r"run 'r18' has no .* at epochs 10, 30; .*--only units"):
            reduction(ds)
        assert reduction(ds, missing="drop").epoch.data.tolist() == [0, 20, 40]
    with pytest.raises(MissingMeasurementError, match="at any checkpoint"):
        dormancy(ds.isel(epoch=[1, 3]), missing="drop")
    with pytest.raises(MissingMeasurementError, match="at checkpoint 10"):
        dormancy(ds.isel(epoch=1))
    xr.testing.assert_equal(dormancy(ds.chunk({"epoch": 2}), missing="drop").compute(), dormancy(ds, missing="drop"))


def test_dormancy__says_how_to_measure_what_it_needs():
    with pytest.raises(MissingMeasurementError, match=r"'abs_dev' .*part 'abs_dev'.*abs_dev = true in .*\[units\]"):
        dormancy(drawn().drop_vars("abs_dev"), "redo_centred")
    rows = drawn().assign(abs_dev=drawn()["abs_dev"].where(drawn()["epoch"] != 20))
    with pytest.raises(NonFiniteError, match=r"at epoch 20.*not measured there"):
        dormant(rows, "redo_centred")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: dormancy(ds, "rado"), "no definition 'rado' of dormancy; did you mean 'redo'"),
        (lambda ds: dormancy(ds, []), "is none"),
        (lambda ds: dormancy(ds, ["redo", "redo"]), "twice"),
        (lambda ds: dormant(ds, "dead", 0.1), "'dead' has no threshold"),
        (lambda ds: dormant(ds, ["redo", "dead"], 0.1), "'dead' has no threshold"),
        (lambda ds: dormant(ds, tau=-1), "tau=-1 is no threshold"),
        (lambda ds: dormant(ds, tau=[]), "no threshold"),
        (lambda ds: dormant(ds, tau=[0.1, np.nan]), "no threshold"),
        (lambda ds: dormancy(ds, normalize="max"), "normalize='max' is unknown"),
        (lambda ds: dormancy(ds, ["redo", "lop"], normalize="median"), "'lop' is not relative"),
        (lambda ds: dormancy(ds, missing="ignore"), "missing='ignore' is unknown"),
        (lambda ds: dormant(ds, non_finite="nan"), "non_finite='nan' is unknown"),
        (lambda ds: dormancy(ds["abs_sum"]), "found a DataArray"),
        (lambda ds: dormancy(ds, dim="step"), "no dim 'step'"),
        (lambda ds: dormancy(ds.isel(unit=0)), "no dim 'unit'.*with lists"),
        (lambda ds: dormancy(ds.isel(unit=[])), "at least one unit"),
        (lambda ds: dormancy(ds.drop_vars("layer")), "no coordinate `layer`.*assign_coords"),
        (lambda ds: dormancy_summary(dormant(ds), tau=0.1), "a mask is counted as it is"),
        (lambda ds: dormancy_summary(dormancy(ds)), "found dtype float64"),
        (
            lambda ds: dormancy(ds.assign_coords(layer_index=("unit", np.arange(ds.sizes["unit"])))),
            "`layer_index` gives layer .* two places",
        ),
    ],
)
def test_dormancy__errors_name_the_mend(change, message):
    with pytest.raises(SchemaError, match=message):
        change(drawn())
