"""``ds.lens`` on the concepts cube: each method is the function of its name, with its options and its reading."""

import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import test_functional_death as effects
import xarray as xr
from concept_store_cases import write_concepts
from mortality_cases import drawn
from tally_cases import tree

import neurolens
import neurolens.accessor
from neurolens import dissection, mortality
from neurolens.errors import MissingMeasurementError, SchemaError
from neurolens.inference import bootstrap_counts
from neurolens.mortality import read_tallies
from neurolens.rows.adopting_tallies import adopt_tallies
from neurolens.store import open_store

READINGS = ("paper", "lite")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("run") / "store"
    write_concepts(place, drawn(9, 8, 4, 0), spread=0.4, layers=("b", "a"))
    return str(place)


@pytest.fixture
def cube(url: str) -> xr.Dataset:
    return neurolens.open_run(url)["concepts"].to_dataset()


def same(one: Any, other: Any) -> None:
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other)
    else:
        xr.testing.assert_identical(one.compute(), other.compute())


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("iou", {"by": "block"}),
        ("iou_interval", {"resamples": 20, "seed": 3}),
        ("best_concept", {"by": "category"}),
        ("detectors", {"tau": 0.05}),
    ],
)
def test_lens__dissects_as_the_functions_do(cube, name, options, reading) -> None:
    same(
        getattr(cube.lens, name)(reading=reading, **options),
        getattr(dissection, name)(cube, reading=reading, **options),
    )


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("concept_events", {"k": 1, "by": "unit"}),
        ("concept_lives", {"k": 2, "tau": 0.05}),
        ("tau_sensitivity", {"tau": (0.03, 0.05), "k": 1}),
        ("migrations", {"k": 1, "window": 2}),
        ("churn", {"by": "unit"}),
        ("label_drift", {"tau": 0.03}),
        ("diversity", {"tau": 0.03}),
        ("extinctions", {"k": 1}),
    ],
)
def test_lens__follows_the_iou_of_a_reading(cube, name, options, reading) -> None:
    scores = dissection.iou(cube, reading=reading)
    same(getattr(cube.lens, name)(reading=reading, **options), getattr(mortality, name)(scores, **options))


def test_lens_readings__differ(cube) -> None:
    paper, lite = (cube.lens.concept_events(reading=reading, k=1) for reading in READINGS)
    assert len(paper) != len(lite)


def test_lens_survival__groups_lives_and_passes_options_of_both_on(cube) -> None:
    found = cube.lens.survival(by="layer", confidence=0.9, lives="first", k=1, tau=0.05, follow="unit")
    events = mortality.concept_events(dissection.iou(cube), k=1, tau=0.05, by="unit")
    same(found, mortality.survival(events, by="layer", confidence=0.9, lives="first"))
    assert set(found["group"].values.tolist()) == {"a", "b"}


@pytest.mark.parametrize("reading", READINGS)
def test_lens_event_probability__draws_blocks_of_images(cube, reading) -> None:
    found = cube.lens.event_probability(n_draws=12, seed=5, reading=reading, k=1, tolerance=0)
    weights = xr.DataArray(np.array(list(bootstrap_counts(4, 12, 5))), dims=("draw", "block"))
    draws = dissection.iou(cube, reading=reading, weights=weights).compute()
    expected = mortality.event_probability(dissection.iou(cube, reading=reading), draws, k=1, tolerance=0)
    same(found, expected)
    assert 0 < found["p_birth"].mean() < 1
    same(found, cube.lens.event_probability(n_draws=12, seed=5, reading=reading, k=1, tolerance=0))


def test_lens_event_probability__needs_blocks_of_images(cube) -> None:
    scores = xr.Dataset({"iou": dissection.iou(cube)})
    with pytest.raises(SchemaError, match=r"no counts of blocks of images among \['iou'\]"):
        scores.lens.event_probability()
    same(scores.lens.concept_events(k=1), cube.lens.concept_events(k=1))


def test_lens__follows_a_selection(cube) -> None:
    chosen = cube.sel(layer="a").isel(epoch=slice(2, None))
    events = chosen.lens.concept_events(k=1)
    assert set(events["layer"]) == {"a"}
    assert events["birth"].min() == 2
    same(chosen.lens.concept_lives(k=1), mortality.concept_lives(dissection.iou(chosen), k=1))


def test_lens_functional_death__is_of_the_effects_cube() -> None:
    found = effects.measured().lens.functional_death(effects.deaths(), ratio=0.4, n_classes=2)
    same(found, mortality.functional_death(effects.measured(), effects.deaths(), ratio=0.4, n_classes=2))
    assert len(found) == 2


@pytest.mark.parametrize("reading", READINGS)
def test_lens_rotation_null__compares_with_turned_layers(cube, reading) -> None:
    turned = np.random.default_rng(0).random((9, 3, 8)) * 0.1
    cube = cube.assign({dissection.null.ROTATED[reading]: (("epoch", "rotation", "unit"), turned)})
    found = cube.lens.rotation_null(reading=reading, by="layer", tau=0.05)
    same(found, dissection.rotation_null(cube, reading=reading, by="layer", tau=0.05))
    assert set(found["layer"].values.tolist()) == {"a", "b"}


def test_lens__says_that_rotations_were_not_measured(cube) -> None:
    with pytest.raises(MissingMeasurementError, match="rotations = 1"):
        cube.lens.rotation_null()


def test_lens__takes_adopted_tallies(tmp_path) -> None:
    adopt_tallies(read_tallies(tree(tmp_path / "tree")), open_store(tmp_path / "store", create=True), run="published")
    tallies = neurolens.open_run(tmp_path / "store")["tallies"].to_dataset()
    same(tallies.lens.concept_events(k=1), mortality.concept_events(tallies, k=1))
    same(tallies.lens.detectors(), dissection.detectors(tallies))
    assert tallies.lens.survival(k=1)["n_lives"].item() == len(mortality.concept_events(tallies, k=1))
    with pytest.raises(SchemaError, match="take the concepts cube"):
        tallies.lens.event_probability()


def test_lens__is_lazy_until_events_are_listed(cube) -> None:
    def raising(*_: object, **__: object) -> None:
        raise AssertionError("something was computed")

    import dask

    with dask.config.set(scheduler=raising):
        for name in ("iou", "best_concept", "detectors", "concept_lives", "churn", "label_drift", "diversity"):
            getattr(cube.lens, name)()


def test_lens__needs_no_torch(url) -> None:
    code = (
        "import sys, neurolens\n"
        "ds = neurolens.open_run(sys.argv[1])['concepts'].to_dataset()\n"
        "ds.lens.concept_events(k=1); ds.lens.detectors().compute(); ds.lens.event_probability(n_draws=2)\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
