"""The template of shapes: what it names can be trained, dissected and followed."""

import numpy as np
import pytest

import neurolens
from neurolens import rows
from neurolens.data import make_concepts
from neurolens.study import load_study
from neurolens.study_files import init_study
from neurolens.training import train

SMALL = ("train.epochs=3", "effects.tau=0.05", "effects.k=1", "effects.samples=12", "compute.device=cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The study of the template on a few small pictures, run."""
    home = tmp_path_factory.mktemp("shapes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        make_concepts(home / "shapes", n=60, size=32)
        study = load_study(init_study(home / "study.toml", "shapes"), overrides=SMALL)
        train(study, progress=False)
        target = rows.open_for_writing(study)
        outcomes = {}
        for cube in rows.cubes(study):
            materials = rows.gather(study, cube)
            results = rows.run_rows(materials, rows.plan(materials, target).rows, target)
            outcomes[cube] = [result.outcome for result in results]
        yield study, outcomes


def test_shapes__measures_every_cube_at_every_checkpoint(run):
    _, outcomes = run
    assert set(outcomes) == {"samples", "units", "concepts", "effects"}
    assert {outcome for of in outcomes.values() for outcome in of} == {"computed"}
    assert [len(outcomes[name]) for name in ("samples", "units", "concepts")] == [4, 4, 4]
    assert outcomes["effects"]


def test_shapes__has_concepts_that_are_born_and_die(run):
    study, _ = run
    concepts = neurolens.open_run(study.store.url)["concepts"].to_dataset()
    assert list(dict.fromkeys(concepts["layer"].values.tolist())) == ["block2", "block3", "block4"]
    assert concepts.sizes["unit"] == 32 + 64 + 64
    assert np.isfinite(concepts["rotated_score"]).any()
    events = neurolens.concept_events(neurolens.iou(concepts), tau=0.05, k=1)
    assert (events["end"] == "death").any()
    assert (events["birth_position"] > 0).any()
