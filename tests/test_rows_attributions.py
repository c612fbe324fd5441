"""Rows of attributions: asked of the clusters in the store, and of no set twice."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import xarray as xr
from attribution_study import TEXT, outcomes, run, run_both

import neurolens
from neurolens import rows
from neurolens.errors import CaptureError, DataError, SchemaError, StudyError
from neurolens.study import load_study


def opened(path, cube="attributions") -> xr.Dataset:
    return neurolens.open_run(load_study(path).store.url)[cube].to_dataset().compute()


@pytest.fixture
def asked(monkeypatch) -> list[list[str]]:
    """The names of the sets that each measurement was asked of, in order."""
    import neurolens.attribution.measure as module

    seen, measure = [], module.measure

    def watched(*args: Any, **options: Any) -> Any:
        seen.append([one.name for one in options["sets"]])
        return measure(*args, **options)

    assert isinstance(module, ModuleType)
    monkeypatch.setattr(module, "measure", watched)
    return seen


def test_run_rows__measures_every_set_of_every_block_once(make_study, asked):
    path = make_study(text=TEXT, checkpoints=2)
    done = run_both(path)
    assert outcomes(done["clusters"]) == outcomes(done["attributions"]) == {("computed", "")}
    assert len(done["attributions"]) == 2 * 3
    assert run_both(path) == {"clusters": [], "attributions": []}
    found = opened(path)
    names = found["map"].values.tolist()
    assert names[0] == "whole"
    assert len(names) == 1 + 2 * 2 * (2 + 3) + 2
    assert asked == [names] * 6
    assert found.sizes["sample"] == 6
    for name in ("patch", "total", "masked_logit", "target"):
        assert np.isfinite(found[name]).any(), name
    assert np.isfinite(found["total"]).all()


def test_plan__waits_for_the_clusters_of_the_checkpoint_that_they_are_taken_from(make_study):
    path = make_study(text=TEXT, checkpoints=2)
    study = load_study(path)
    plan = rows.plan(rows.gather(study, "attributions"), rows.open_for_reading(study))
    assert plan.rows == ()
    assert plan.notes[-1] == "attributions wait for clusters of epoch 1: run clusters first"


def test_plan__waits_for_clusters_that_would_be_others_now(make_study):
    path = make_study(text=TEXT, checkpoints=2)
    run_both(path)
    before = opened(path)["total"].values
    changed = "clusters.threshold=0.5"
    study = load_study(path, overrides=[changed])
    plan = rows.plan(rows.gather(study, "attributions"), rows.open_for_reading(study))
    assert plan.rows == ()
    assert plan.notes[-1] == "attributions wait for clusters of epoch 1: run clusters first"
    run_both(path, changed)
    assert not np.array_equal(opened(path)["total"].values, before)
    (path.parent / "checkpoints" / "epoch_1.pt").write_bytes((path.parent / "checkpoints" / "epoch_0.pt").read_bytes())
    assert run(path, "attributions", changed) == []
    assert run_both(path, changed)["attributions"]


def test_run_rows__of_another_k_measures_its_sets_alone(make_study, asked):
    path = make_study(text=TEXT, checkpoints=1)
    run_both(path)
    before = opened(path)
    asked.clear()
    done = run_both(path, "clusters.k=[2,3,4]")
    assert outcomes(done["attributions"]) == {("computed", "")}
    new = [f"{cut}/{word}k4/{c}" for cut in ("bn2", "bn3") for c in range(4) for word in ("", "without ")]
    assert asked == [new] * 3
    after = opened(path)
    old = after.sel(map=before["map"].values, mate=before["mate"].values)
    for name, values in before.data_vars.items():
        np.testing.assert_array_equal(old[name].values, values.values, err_msg=str(name))
    assert np.isfinite(after["total"].sel(map=new)).all()
    assert np.isfinite(after["dot"].sel(map="bn2/k4/0")).all()
    assert run_both(path, "clusters.k=[2,3,4]")["attributions"] == []


def test_run_rows__of_fewer_sets_measures_nothing_and_of_the_same_ones_again_neither(make_study, asked):
    path = make_study(text=TEXT, checkpoints=1)
    run_both(path)
    asked.clear()
    study = load_study(path, overrides=["clusters.k=[2]"])
    run(path, "clusters", "clusters.k=[2]")
    materials = rows.gather(study, "attributions")
    store = rows.open_for_writing(study)
    assert rows.plan(materials, store).todo == ()
    rows.prepare(materials, store)
    assert {name.rpartition("/")[0] for name in opened(path)["map"].values.tolist()} >= {"bn2/k2", "bn3/k2"}
    assert not [name for name in opened(path)["map"].values.tolist() if "k3" in name]
    run(path, "clusters")
    assert run(path, "attributions") == []
    materials = rows.gather(load_study(path), "attributions")
    rows.prepare(materials, store)
    assert "bn3/k3/2" in opened(path)["map"].values.tolist()
    assert asked == []


def test_run_rows__of_another_layer_measures_its_sets_alone(make_study, asked):
    path = make_study(text=TEXT.replace('layers = ["bn2", "bn3"]', 'layers = ["bn3"]'), checkpoints=1)
    run_both(path)
    asked.clear()
    run_both(path, 'clusters.layers=["bn2","bn3"]')
    assert {name.split("/")[0] for names in asked for name in names} == {"bn2"}


def test_run_rows__switches_a_part_on_without_measuring_the_others_anew(make_study, asked):
    path = make_study(text=TEXT, checkpoints=1)
    run_both(path, "attributions.faithfulness=false")
    before = opened(path)
    assert "masked_logit" not in before
    assert outcomes(run_both(path)["attributions"]) == {("computed", "")}
    after = opened(path)
    np.testing.assert_array_equal(before["patch"].values, after["patch"].values)
    assert np.isfinite(after["masked_logit"]).any()


def test_run_rows__measures_a_changed_setting_anew(make_study):
    path = make_study(text=TEXT, checkpoints=1)
    run_both(path)
    logits = opened(path)
    assert len(run_both(path, 'attributions.explain="log_prob"')["attributions"]) == 3
    changed = opened(path)
    np.testing.assert_allclose(changed["output"], logits["log_prob"], rtol=1e-5)
    assert not np.allclose(logits["total"], changed["total"], rtol=1e-2)
    assert run_both(path)["attributions"] != []  # a row holds what was measured last


def test_run_rows__takes_each_checkpoints_own_clusters(make_study):
    path = make_study(text=TEXT, checkpoints=3)
    each = 'attributions.clusters_from="each"'
    assert outcomes(run_both(path, each)["attributions"]) == {("computed", "")}
    found, clusters = opened(path), opened(path, "clusters")
    labels = clusters["unit_cluster"].sel(k=2).where(clusters["layer"] == "bn3", drop=True)
    assert not (labels == labels.isel(epoch=0)).all()
    assert np.isfinite(found["total"]).all()
    assert run_both(path, each)["attributions"] == []
    path.parent.joinpath("checkpoints", "epoch_3.pt").write_bytes(
        path.parent.joinpath("checkpoints", "epoch_0.pt").read_bytes()
    )
    assert len(run_both(path, each)["attributions"]) == 3


def test_run_rows__adds_images_as_blocks_and_measures_only_those(make_study):
    path = make_study(text=TEXT, checkpoints=1)
    run_both(path)
    before = opened(path)
    assert len(run_both(path, "attributions.images=10")["attributions"]) == 2
    after = opened(path)
    assert after.sizes["sample"] == 10
    same = after.sel(sample=before["sample"].values)
    np.testing.assert_array_equal(same["patch"].values, before["patch"].values)


def test_run_rows__keeps_whole_maps_of_as_many_images_when_there_are_more(make_study, asked):
    path = make_study(text=TEXT, checkpoints=1)
    full = ("attributions.full=2", "attributions.faithfulness=false")

    def chosen() -> list[str]:
        known = np.isfinite(opened(path)["full_map"])
        rest = [dim for dim in known.dims if dim != "sample"]
        assert (known.any(rest) == known.all(rest)).all()
        return known["sample"].values[known.any(rest).values].tolist()

    run_both(path, *full)
    assert chosen() == opened(path)["sample"].values[[0, 3]].tolist()  # of the first and the second block of two
    asked.clear()
    more = (*full, "attributions.images=12")
    assert outcomes(run_both(path, *more)["attributions"]) == {("computed", "")}
    assert len(asked) == 3 + 2  # those added, and those whose images are chosen no more
    materials = rows.gather(load_study(path, overrides=more), "attributions")
    assert sorted(chosen()) == sorted(materials.samples.ids[[0, 6]].tolist())
    assert rows.plan(materials, rows.open_for_reading(materials.study)).todo == ()


def test_run_rows__tables_of_patches_take_what_they_should(make_study):
    path = make_study(text=TEXT, checkpoints=1, samples=40)
    more = ("clusters.k=[2,3,4,5]", "clusters.layers=['bn1', 'bn2', 'bn3']", "attributions.images=2")
    run_both(path, *more, "attributions.controls=0")
    found = opened(path)
    assert found["patch"].dtype == np.float32
    assert found["patch"].isel(epoch=0, sample=0).nbytes == (1 + 3 * 2 * 14) * 2 * 16 * 4


def test_run_rows__that_fail_on_further_sets_leave_those_there_are(make_study, asked, monkeypatch):
    import neurolens.attribution.measure as module

    path = make_study(text=TEXT, checkpoints=1)
    run_both(path)
    before, measure = opened(path), module.measure
    asked.clear()
    more = "clusters.k=[2,3,4]"

    def refused(*args: Any, **options: Any) -> Any:
        raise CaptureError("layer 'bn2' is no cut")

    monkeypatch.setattr(module, "measure", refused)
    assert outcomes(run_both(path, more)["attributions"]) == {("failed", "layer 'bn2' is no cut")}
    assert outcomes(run(path, "attributions", more)) == {("failed", "layer 'bn2' is no cut")}
    after = opened(path)
    assert after["total"].isnull().sel(map="bn2/k4/0").all()
    for name in ("total", "dot", "masked_logit"):
        found = after[name].sel(map=before["map"].values)
        found = found.sel(mate=before["mate"].values) if "mate" in found.dims else found
        np.testing.assert_array_equal(found.values, before[name].values)
    (row, *_) = rows.plan(
        rows.gather(load_study(path, overrides=[more]), "attributions"), rows.open_for_reading(load_study(path))
    ).todo
    assert (row.state, row.why) == ("stale", "sets of units were added")
    monkeypatch.setattr(module, "measure", measure)
    assert outcomes(run(path, "attributions", more)) == {("computed", "")}
    assert {name.split("/")[1].split()[-1] for names in asked for name in names} == {"k4"}


def test_gather__names_what_unions_and_controls_do_not_find(make_study):
    path = make_study(text=TEXT, checkpoints=1)
    run(path, "clusters")
    with pytest.raises(SchemaError, match="controlled names 'bn9/\\*', and there is no such set"):
        rows.gather(load_study(path, overrides=['attributions.controlled=["bn9/*"]']), "attributions")
    with pytest.raises(SchemaError, match="there is no cluster 'bn3/k9/0'"):
        rows.gather(load_study(path, overrides=['attributions.unions={u=["bn3/k9/0"]}']), "attributions")
    with pytest.raises(StudyError, match="clusters_from is 7, and there is no checkpoint of that epoch"):
        rows.gather(load_study(path, overrides=["attributions.clusters_from=7"]), "attributions")


def test_gather__takes_clusters_of_files_and_refuses_those_of_another_layer(make_study):
    path = make_study(text=TEXT, checkpoints=1)
    run(path, "clusters")
    folder = path.parent / "bn3_k2"
    folder.mkdir()
    labels = np.arange(32, dtype=np.int32) % 2
    np.savez(folder / "cluster_results.npz", selected_block="bn3", labels=labels, n_clusters=2)
    study = load_study(path, overrides=['attributions.files={bn3=["bn3_k2/cluster_results.npz"]}'])
    names = [one.name for one in rows.gather(study, "attributions").sets.sets[0]]
    assert "bn3/bn3_k2/1" in names
    assert "bn3/without bn3_k2/0" in names
    given = load_study(path, overrides=['attributions.files={bn3=["bn3_k2"]}'])  # the folder will do
    assert [one.name for one in rows.gather(given, "attributions").sets.sets[0]] == names
    for clash in ('["bn3_k2", "bn3_k2/cluster_results.npz"]', '["k3/cluster_results.npz"]'):
        (path.parent / "k3").mkdir(exist_ok=True)
        (path.parent / "k3" / "cluster_results.npz").write_bytes((folder / "cluster_results.npz").read_bytes())
        twice = load_study(path, overrides=[f"attributions.files={{bn3={clash}}}"])
        with pytest.raises(StudyError, match="after their folder, as others of 'bn3' are; put the file into"):
            rows.gather(twice, "attributions")
    wrong = load_study(path, overrides=['attributions.files={bn2=["bn3_k2/cluster_results.npz"]}'])
    with pytest.raises(DataError, match="holds clusters of 'bn3', and those of 'bn2' were needed"):
        rows.gather(wrong, "attributions")


def test_run_rows__says_when_another_run_took_away_what_a_row_was_to_keep(make_study):
    path = make_study(text=TEXT, checkpoints=1)
    run_both(path)
    run(path, "clusters", "clusters.k=[2,4]")
    study = load_study(path, overrides=["clusters.k=[2,4]"])
    materials, store = rows.gather(study, "attributions"), rows.open_for_writing(study)
    planned = rows.plan(materials, store).todo  # to keep k = 3 too, and to add 4
    run(path, "clusters")
    run(path, "attributions", 'attributions.explain="log_prob"')
    results = rows.run_rows(materials, planned, store)
    assert {result.outcome for result in results} == {"failed"}
    assert "by other settings meanwhile" in results[0].why
