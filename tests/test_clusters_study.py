"""The template of clusters on digits: a network trained on real images, its clusters, and what they are worth."""

import numpy as np
import pytest

import neurolens
from neurolens import rows
from neurolens.errors import StudyError
from neurolens.study import load_study
from neurolens.study_files import init_study
from neurolens.training import train

SMALL = (
    "train.epochs=4",
    "train.save_every_epochs=4",
    "attributions.images=30",
    "attributions.steps=20",
    "compute.device=cpu",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The study of the template with fewer epochs, images and steps, run."""
    home = tmp_path_factory.mktemp("clusters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        study = load_study(init_study(home / "study.toml", "digits-clusters"), overrides=SMALL)
        train(study, progress=False)
        target = rows.open_for_writing(study)
        outcomes = {}
        for cube in rows.cubes(study):
            materials = rows.gather(study, cube)
            results = rows.run_rows(materials, rows.plan(materials, target).rows, target)
            outcomes[cube] = [result.outcome for result in results]
        yield study, outcomes


@pytest.fixture(scope="module")
def last(run):
    study, _ = run
    return neurolens.open_run(study.store.url)["attributions"].to_dataset().isel(epoch=-1).load()


def test_digits_clusters__measures_every_cube_at_every_checkpoint(run):
    _, outcomes = run
    assert {name: len(of) for name, of in outcomes.items()} == {"samples": 2, "clusters": 2, "attributions": 2}
    assert {outcome for of in outcomes.values() for outcome in of} == {"computed"}


def test_digits_clusters__tells_digits_apart_and_shares_out_the_answer(last):
    assert float(last.lens.accuracy().accuracy.sel(top=1)) > 0.9
    total = last["total"].isel(attribution=0)
    for cut in ("bn2", "bn3"):
        parts = (last["cut"] == cut) & (last["clustering"] == "k3") & (last["kind"] == "only")
        np.testing.assert_allclose(total[:, parts.values].sum("map"), total.sel(map="whole"), rtol=1e-3, atol=1e-4)
    gap = total.sel(map="whole") - (last["output"] - last["baseline_output"])
    assert float(abs(gap / last["output"]).median()) < 0.05


def test_digits_clusters__reports_each_effect_with_its_control_and_corrected_interval(last):
    compared = last.lens.compare(flips=500, bootstrap=500)
    assert compared.sizes["map"] == 2 * (2 + 3)
    assert np.isfinite(compared["difference"]).all()
    assert (
        (compared["class_low"] <= compared["difference"]) & (compared["difference"] <= compared["class_high"])
    ).all()
    assert (compared["p_max_t"] >= compared["p_t"] - 0.05).all()  # of 500 flips
    control = last.lens.control()
    assert control["map"].values.tolist() == [f"bn3/without k3/{cluster}" for cluster in range(3)]
    observed = compared["difference"].sel(map=control["map"])
    np.testing.assert_allclose(control["observed"], observed.transpose(*control["observed"].dims), atol=1e-9)
    smallest = 1 / 21
    assert ((control["p"] >= smallest - 1e-12) & (control["p"] <= 1)).all()
    assert (control["draw_low"] <= control["draw_high"]).all()


@pytest.mark.parametrize(
    ("k", "match"),
    [("[1, 2]", "clusters.k.*found 1, needed .*2"), ("[]", "clusters.k"), ("[2, 2]", "k lists 2 more than once")],
)
def test_load_study__refuses_numbers_of_clusters_that_are_none(tmp_path, k, match):
    path = init_study(tmp_path / "study.toml", "digits-clusters")
    with pytest.raises(StudyError, match=match):
        load_study(path, overrides=[f"clusters.k={k}"])
