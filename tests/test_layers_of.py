"""Reductions take units as a store opens them: names as text of variable width, chunked along any dim."""

import numpy as np
import pytest
import xarray as xr
from dormancy_cases import drawn

import neurolens
from neurolens.units.layers_of import layers_of
from neurolens.units.seed_log import export_dormancy


def as_opened(ds):
    text = np.dtypes.StringDType()
    names = np.asarray(ds["layer"].values.tolist(), text)
    return ds.assign_coords(layer=("unit", names), module=("unit", names)).set_xindex("layer")


def test_layers_of__takes_names_as_a_store_opens_them():
    assert layers_of(as_opened(drawn())).names == layers_of(drawn()).names


@pytest.mark.parametrize("chunks", [{}, {"epoch": 1}, {"unit": 7}, {"epoch": 2, "unit": 5}])
def test_transitions__take_units_as_a_store_opens_them(chunks):
    wanted = neurolens.transitions(neurolens.dormant(drawn(), tau=0.1))
    found = neurolens.transitions(neurolens.dormant(as_opened(drawn()).chunk(chunks), tau=0.1))
    for name in ("n_stay", "n_revived", "n_new", "flips"):
        np.testing.assert_array_equal(found[name], wanted[name])


@pytest.mark.parametrize("chunks", [{"unit": 7}, {"epoch": 2, "unit": 5}])
def test_dormancy_summary__takes_units_as_a_store_opens_them(chunks):
    wanted = neurolens.dormancy_summary(drawn(), ["redo", "dead"])
    found = neurolens.dormancy_summary(as_opened(drawn()).chunk(chunks), ["redo", "dead"])
    xr.testing.assert_equal(
        found["n_dormant"].drop_vars(["layer", "definition"]), wanted["n_dormant"].drop_vars(["layer", "definition"])
    )


def test_export_dormancy__takes_units_as_a_store_opens_them(tmp_path):
    files = [
        export_dormancy(ds, tmp_path / f"{i}.csv", model="m") for i, ds in enumerate((drawn(), as_opened(drawn())))
    ]
    lines = [[line.split(b",", 1)[1] for line in file.read_bytes().splitlines()[1:]] for file in files]
    assert lines[0] == lines[1]
    assert lines[0]
