"""What a new threshold reads of a cube of the shape of Pythia-70m, and what memory a large one takes."""

import tracemalloc

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

from neurolens import schema
from neurolens.units import dormancy_summary, dormant


class Counted:
    """An array that counts the bytes that are read of it."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype, self.ndim = shape, np.dtype(dtype), len(shape)
        self.read = 0

    def __getitem__(self, key):
        out = np.broadcast_to(np.ones((), self.dtype), self.shape)[key].copy()
        self.read += out.nbytes
        return out


def counted_pythia(checkpoints=12, units=12_288):
    """The whole units cube of six layers of 2048 units at 12 checkpoints; nothing but what is asked for is made."""
    sizes = {"series": checkpoints, "class": 2, "unit": units, "bin": 256, "position": 8, "rank": 4, "parameter": 10}
    backing = {v.name: Counted(tuple(sizes[d] for d in v.dims), v.dtype) for v in schema.UNITS.variables}
    data = {
        v.name: (
            tuple("step" if d == "series" else d for d in v.dims),
            da.from_array(backing[v.name], chunks=(1, *backing[v.name].shape[1:]), name=f"counted-{v.name}"),
        )
        for v in schema.UNITS.variables
    }
    return with_units_fast(xr.Dataset(data, coords={"step": np.arange(checkpoints)}), 6), backing


def with_units_fast(ds, layers):
    units = np.arange(ds.sizes["unit"])
    names = np.array([f"layers.{k}.mlp.dense_4h_to_h:input" for k in units * layers // len(units)])
    return ds.assign_coords(unit=units, layer=("unit", names))


@pytest.mark.parametrize(
    ("definition", "variables"),
    [
        ("redo", {"n", "abs_sum"}),
        ("absolute", {"n", "abs_sum"}),
        ("dead", {"max", "abs_sum"}),
        ("lop", {"n", "n_nonzero", "abs_sum"}),
        ("lop_rl", {"n", "n_pos", "abs_sum"}),
    ],
)
def test_dormant__reads_less_than_10_mb_at_new_thresholds(definition, variables):
    ds, backing = counted_pythia()
    taus = None if definition == "dead" else [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
    mask = dormant(ds, definition, taus).compute()
    assert mask.sizes["unit"] == 12_288
    assert {name for name, array in backing.items() if array.read} == variables
    read = sum(array.read for array in backing.values())
    assert read == len(variables) * 12 * 12_288 * 8  # every statistic once, whatever the number of thresholds
    assert read < 10e6


def test_dormancy_summary__of_a_large_cube_fits_in_little_memory():
    ds, backing = counted_pythia(checkpoints=100, units=50_000)
    tracemalloc.start()
    try:
        with dask.config.set(scheduler="synchronous"):
            pooled = dormancy_summary(ds, tau=[0.1, 2])["pooled_fraction"].compute()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert pooled.data.tolist() == [[0.0] * 100, [1.0] * 100]
    assert backing["abs_sum"].read == 100 * 50_000 * 8
    assert peak < 40e6  # of 80 MB that are read, names of units included
