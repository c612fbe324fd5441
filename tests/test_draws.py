"""Images drawn again: against drawing by hand, in event probabilities, counts and comparisons, out of core."""

import os
import subprocess
import sys
import textwrap

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.dissection import image_draws, iou
from neurolens.dissection.overlap import EPSILON
from neurolens.errors import MissingMeasurementError, SchemaError
from neurolens.inference import bootstrap_counts
from neurolens.mortality import compare, concept_events, event_counts, event_probability

TAU = 0.15


def cube(seed=0, epochs=9, blocks=8, units=4, concepts=5, series="epoch"):
    """Counts that come and go; the last concept is on images of one block only, the first unit is dead."""
    rng = np.random.default_rng(seed)
    strength = rng.choice([2, 8, 20], (epochs, 1, units, concepts))
    common = rng.poisson(strength, (epochs, blocks, units, concepts)).astype(float)
    common[:, 1:, :, -1] = 0
    common[:, :, 0] = 0
    area = 60 + rng.poisson(30, (epochs, blocks, units, 2)).astype(float)
    area[:, :, 0] = 0
    whole = 60 + rng.poisson(30, (1, blocks, concepts)).astype(float) * np.ones((epochs, 1, 1))
    whole[:, 1:, -1] = 0
    dims = {"intersection": ("unit", "concept"), "unit_area": ("unit", "category"), "unit_area_lite": None}
    dims["unit_area_lite"] = dims["unit_area"]
    data = {"intersection": common, "unit_area": area, "unit_area_lite": np.maximum(area - 30, 0)}
    return xr.Dataset(
        {name: ((series, "block", *dims[name]), values) for name, values in data.items()}
        | {"concept_area": ((series, "block", "concept"), whole)},
        {
            series: 10 * np.arange(epochs),
            "unit": 100 + np.arange(units),
            "layer": ("unit", ["layer4"] * units),
            "concept": [f"c{i}" for i in range(concepts)],
            "concept_category": ("concept", ["object", "color", "object", "color", "object"][:concepts]),
            "category": ["object", "color"],
        },
    )


def slow_draw(data, counts, reading):
    """Repeat blocks as often as they were drawn, and compute IoU of what came of it."""
    drawn = np.repeat(np.arange(len(counts)), counts)
    area = "unit_area" if reading == "paper" else "unit_area_lite"
    common = data["intersection"].data[:, drawn].sum(axis=1)
    of = [data["category"].data.tolist().index(c) for c in data["concept_category"].data]
    mask = data[area].data[:, drawn].sum(axis=1)[..., of]
    whole = data["concept_area"].data[:, drawn].sum(axis=1)[:, None, :]
    fired = data["unit_area"].data.sum(axis=(1, 3))[..., None] > 0
    return np.where(fired & (whole > 0), common / (mask + whole - common + EPSILON), np.nan)


@pytest.mark.parametrize("reading", ["paper", "lite"])
def test_image_draws__are_iou_of_blocks_drawn_again(reading):
    data = cube()
    draws = image_draws(data, n=6, seed=3, reading=reading)
    assert len(draws) == 6
    expected = list(bootstrap_counts(8, 6, 3))
    for i, counts in enumerate(expected):
        found = draws(i)
        np.testing.assert_allclose(found.data, slow_draw(data, counts, reading), rtol=1e-12)
        assert found.dims == ("epoch", "unit", "concept")
        assert (draws.counts[i] == counts).all()
    gone = [i for i, counts in enumerate(expected) if not counts[0]]
    assert gone
    assert draws(gone[0]).isel(concept=-1).isnull().all()
    assert draws(0).isel(unit=0).isnull().all()


def test_image_draws__are_lazy_and_follow_from_the_seed():
    data = cube()
    lazy = image_draws(data.chunk(epoch=2, unit=1), n=2, seed=1)
    assert isinstance(lazy(1).data, da.Array)
    xr.testing.assert_allclose(lazy(1).compute(), image_draws(data, n=2, seed=1)(1))
    assert (image_draws(data, n=2, seed=2).counts != lazy.counts).any()


@given(seed=st.integers(0, 999), k=st.integers(1, 3), reading=st.sampled_from(["paper", "lite"]))
@settings(max_examples=6, deadline=None)
def test_event_probability__of_image_draws_is_that_of_each_draw_by_itself(seed, k, reading):
    data = cube(seed)
    draws, scores = image_draws(data, n=7, seed=seed, reading=reading), iou(data, reading=reading)
    found = event_probability(scores, draws, tau=TAU, k=k)
    slow = event_probability(scores, lambda i: draws(i), n_draws=7, tau=TAU, k=k)
    pd.testing.assert_frame_equal(found, slow)
    assert found.attrs["n_draws"] == 7
    lazy = data.chunk(epoch=2, block=3, unit=2, concept=2)
    again = event_probability(
        iou(lazy, reading=reading), image_draws(lazy, n=7, seed=seed, reading=reading), tau=TAU, k=k
    )
    pd.testing.assert_frame_equal(again, found)


@pytest.mark.parametrize("options", [{}, {"k": 2, "hysteresis": 0.2}, {"smoothing_window": 2, "k": 1}])
def test_event_counts__of_image_draws_are_those_of_each_draw_by_itself(options):
    data = cube(2, units=6)
    draws = image_draws(data, n=9)
    found = event_counts(draws, tau=TAU, **options)
    assert found["lives"].nunique() > 1
    slow = pd.DataFrame(
        [event_counts(lambda _, i=i: draws(i), n_draws=1, tau=TAU, **options).iloc[0] for i in range(9)]
    )
    pd.testing.assert_frame_equal(found, slow.reset_index(drop=True), check_dtype=False)
    lazy = event_counts(image_draws(data.chunk(epoch=4, block=2, concept=3), n=9), n_draws=4, tau=TAU, **options)
    pd.testing.assert_frame_equal(lazy, found.iloc[:4])
    by_unit = event_counts(draws, tau=TAU, by="unit", **options)
    assert by_unit["lives"].tolist() == [len(concept_events(draws(i), tau=TAU, by="unit", **options)) for i in range(9)]


@given(seed=st.integers(0, 999), tau=st.sampled_from([0.02, 0.1, 0.15, 0.3]))
@settings(max_examples=25, deadline=None)
def test_image_draws__find_the_pairs_that_reach_a_threshold_in_any_draw(seed, tau):
    data = cube(seed, concepts=4)
    draws = image_draws(data, n=5, seed=seed)
    values = np.stack([draws(i).data for i in range(5)])
    unit, concept = np.nonzero((values >= tau).any(axis=(0, 1)))
    found = draws.reaching(tau, np.arange(9))
    assert found.tolist() == [unit.tolist(), concept.tolist()]


def test_image_draws__of_pairs_in_strips_are_the_same(monkeypatch):
    data = cube()
    draws, at = image_draws(data, n=3), np.arange(9)
    unit, concept = np.array([3, 1, 1, 2, 3]), np.array([0, 4, 1, 1, 2])
    monkeypatch.setattr("neurolens.dissection.draws._HELD", 2 * 9 * 8)
    parts = list(draws.of_pairs(unit, concept, at[2:]))
    assert [part for part, _ in parts] == [slice(0, 2), slice(2, 4), slice(4, 6)]
    for i in range(3):
        whole = np.concatenate([values(i) for _, values in parts])
        np.testing.assert_allclose(whole, draws(i).data[2:, unit, concept].T, rtol=1e-12)


def test_compare__takes_image_draws():
    data = cube(4)
    draws = image_draws(data, n=8)
    found = compare({"a": iou(data)}, draws={"a": draws}, tau=TAU, k=1).sel(run="a", quantity="deaths")
    counts = event_counts(draws, tau=TAU, k=1)
    low, high = np.quantile(counts["deaths"], [0.025, 0.975])
    np.testing.assert_allclose([found["low"], found["high"]], [low, high])


def test_event_probability__of_image_draws_leaves_out_checkpoints_that_were_not_measured():
    data = cube().assign_coords(measured=("epoch", [True] * 4 + [False] + [True] * 4))
    data = data.where(data["measured"]).transpose("epoch", ...)
    draws = image_draws(data, n=4)
    for given_ in (draws, lambda i: draws(i)):
        with pytest.raises(MissingMeasurementError, match="at epoch 40"):
            event_probability(iou(data), given_, n_draws=4, tau=TAU)
    found = event_probability(iou(data), draws, tau=TAU, missing="drop")
    slow = event_probability(iou(data), lambda i: draws(i), n_draws=4, tau=TAU, missing="drop")
    pd.testing.assert_frame_equal(found, slow)
    counted = event_counts(draws, tau=TAU, missing="drop")
    slow = event_counts(lambda i: draws(i), n_draws=4, tau=TAU, missing="drop")
    pd.testing.assert_frame_equal(counted, slow, check_dtype=False)


def test_image_draws__say_what_is_wrong():
    data = cube()
    with pytest.raises(SchemaError, match="n=0 gives no draw"):
        image_draws(data, n=0)
    with pytest.raises(SchemaError, match="draw=3; there are draws 0 to 2"):
        image_draws(data, n=3)(3)
    with pytest.raises(SchemaError, match="need one series dim"):
        image_draws(data.isel(epoch=0), n=3)
    with pytest.raises(SchemaError, match="did you mean 'lite'"):
        image_draws(data, n=3, reading="light")
    with pytest.raises(MissingMeasurementError, match="'unit_area_lite' was not measured"):
        image_draws(data.drop_vars("unit_area_lite"), n=3, reading="lite")
    with pytest.raises(SchemaError, match="draws have 3 units and the scores 4"):
        event_probability(iou(data), image_draws(data.isel(unit=slice(3)), n=3), tau=TAU)


def test_event_probability__of_image_draws_stays_out_of_core():
    """Counts of 1.6 GB in rows, drawn 100 times, with 600 MB to allocate once everything is imported."""
    code = """
        import resource, dask, dask.array as da, numpy as np, xarray as xr
        from neurolens.dissection import image_draws, iou
        from neurolens.mortality import event_counts, event_probability
        dask.config.set(scheduler="threads", num_workers=2)
        def block(kind, block_info=None):
            (low, _), *_ = location = block_info[None]["array-location"]
            out = np.zeros([stop - start for start, stop in location])
            if kind == "common":
                out[..., ::32, 7] = 9 if low % 20 < 10 else 1
            else:
                out[...] = 50
            return out
        def rows(kind, *sizes):
            chunks = ((1,) * sizes[0], (8,), *((32,) * (size // 32) if size == 512 else (size,) for size in sizes[2:]))
            return da.map_blocks(block, kind, chunks=chunks, dtype="f8", meta=np.empty((0,) * len(sizes)))
        def cube(epochs):
            data = {
                "intersection": (("epoch", "block", "unit", "concept"), rows("common", epochs, 8, 512, 1200)),
                "unit_area": (("epoch", "block", "unit", "category"), rows("area", epochs, 8, 512, 1)),
                "concept_area": (("epoch", "block", "concept"), rows("area", epochs, 8, 1200)),
            }
            names = np.arange(1200).astype(str)
            coords = {"concept": names, "concept_category": ("concept", ["o"] * 1200), "category": ["o"]}
            return xr.Dataset(data, coords)
        def both(epochs):
            data = cube(epochs)
            draws = image_draws(data, n=100)
            return event_probability(iou(data), draws), event_counts(draws)
        both(4)
        used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + (600 << 20),) * 2)
        events, counts = both(40)
        assert len(events) == 2 * 16 and (events["p_birth"] == 1).all(), events
        assert (counts["lives"] == 32).all() and (counts["deaths"] == 32).all(), counts
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
