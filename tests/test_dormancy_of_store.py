"""Dormancy of an opened store of the shape of Pythia-70m: the bytes that a new threshold reads, and what is missing."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from store_cases import key

import neurolens
from neurolens import schema
from neurolens.errors import MissingMeasurementError
from neurolens.store import Axis, open_store

STEPS = (0, 1, 64, 512, 1000, 7000, 14000, 46000, 94000, 110000, 126000, 143000)
WIDTH, LAYERS = 2048, 6
PARTS = ("statistics", "histogram")
READ = Path("/proc/self/io")


def axes():
    units, layer = np.arange(WIDTH * LAYERS), np.repeat(np.arange(LAYERS), WIDTH)
    coords = {
        "layer": np.array([f"layers.{k}.mlp.act" for k in range(LAYERS)])[layer],
        "index": units % WIDTH,
        "layer_index": layer.astype(np.int32),
    }
    return {"unit": Axis(units, coords), "bin": Axis(np.arange(256))}


def row(step):
    rng = np.random.default_rng(step)
    n, units = 1000.0, WIDTH * LAYERS
    share = np.where(rng.random(units) < 0.1, 0, rng.random(units))
    values = {
        "n": np.full(units, n),
        "abs_sum": n * share * rng.random(units),
        "mean": share,
        "m2": share,
        "min": -share,
        "max": share,
        "n_pos": np.floor(n * share),
        "n_nonzero": np.floor(n * share),
    }
    counts = rng.integers(0, 9, (units, 256), dtype=np.uint32) * (np.arange(256) % 128 < 124)  # no infinity, no NaN
    return values | {"histogram": counts.astype(np.uint32)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Twelve steps, the fourth of which failed."""
    url = tmp_path_factory.mktemp("pythia") / "store"
    store = open_store(url, create=True)
    settings = {"parts": {part: {} for part in PARTS}}
    store.prepare(
        schema.UNITS, run="pythia", series="step", samples=None, axes=axes(), fingerprint="f" * 64, settings=settings
    )
    for step in STEPS:
        about = {"positions": {"step": step}, "provenance": {}, "keys": {part: key(step, part) for part in PARTS}}
        if step == 512:
            store.write_failure(schema.UNITS, (step, 0), error="out of memory", **about)
        else:
            store.write_row(schema.UNITS, (step, 0), values=row(step), seconds=1.0, **about)
    return url


def read_so_far():
    return int(READ.read_text().split()[1])


@pytest.mark.skipif(not READ.exists(), reason="this system does not count the bytes that a process reads")
@pytest.mark.parametrize("definition", ["redo", "absolute", "lop", "lop_rl"])
def test_dormant__reads_less_than_10_mb_of_a_store_at_new_thresholds(run, definition):
    neurolens.open_run(run)["units"].to_dataset().lens.dormant("dead", missing="drop").compute()  # modules are loaded
    before = read_so_far()
    units = neurolens.open_run(run)["units"].to_dataset()
    mask = neurolens.dormant(units, definition, [0.01, 0.02, 0.1, 0.5], missing="drop").compute()
    assert mask.sizes == {"tau": 4, "step": 11, "unit": WIDTH * LAYERS}
    assert 2e6 < read_so_far() - before < 10e6


def test_reductions__of_a_store_are_those_of_its_arrays(run):
    units = neurolens.open_run(run)["units"].to_dataset()
    steps = [step for step in STEPS if step != 512]
    rows = [row(step) for step in steps]
    strength = np.stack([r["abs_sum"] / r["n"] for r in rows]).reshape(11, LAYERS, WIDTH)
    dormant = (strength / strength.mean(axis=2, keepdims=True) <= 0.025).reshape(11, -1)
    found = neurolens.dormant(units, missing="drop")
    np.testing.assert_array_equal(found, dormant)
    np.testing.assert_array_equal(units.sel(step=steps).lens.dormant(), dormant)
    summary = units.lens.dormancy_summary(missing="drop")
    assert summary.layer.values.tolist() == [f"layers.{k}.mlp.act" for k in range(LAYERS)]
    np.testing.assert_allclose(summary["fraction"], dormant.reshape(11, LAYERS, WIDTH).mean(axis=2))
    by_layer = units.lens.transitions(missing="drop", by="layer").compute()
    both = (dormant[:-1] & dormant[1:]).reshape(10, LAYERS, WIDTH).sum(axis=2)
    np.testing.assert_array_equal(by_layer["n_stay"], both)
    every = units.lens.transitions(missing="drop").compute()
    np.testing.assert_array_equal(every["flips"], (dormant[:-1] != dormant[1:]).sum(axis=0))
    assert every.attrs["snapshot"] == found.attrs["snapshot"] == units.attrs["snapshot"]
    one = units.sel(layer="layers.3.mlp.act", step=64)
    np.testing.assert_array_equal(one.lens.dormant(), dormant[2, 3 * WIDTH : 4 * WIDTH])
    median = neurolens.units.quantile(units.isel(unit=slice(5)), 0.5, missing="drop").compute()
    assert median.notnull().all()
    xr.testing.assert_identical(found.chunk({"unit": 1000}).compute(), found.compute())


def test_reductions__of_a_store_name_the_failed_checkpoint(run):
    units = neurolens.open_run(run)["units"].to_dataset()
    for reduction in (units.lens.dormant, units.lens.transitions, units.lens.dormancy_summary):
        with pytest.raises(
            MissingMeasurementError, match=r"run 'pythia' has no .* at step 512; measure them: `neurolens"
        ):
            reduction()
