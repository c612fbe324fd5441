import numpy as np
import pytest
from concept_study import STUDY, run, write_checkpoint, write_study

import neurolens
from neurolens import rows
from neurolens.errors import CaptureError, DataError, StudyError
from neurolens.study import load_study


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path / "run")


def opened(path, cube="concepts"):
    return neurolens.open_run(load_study(path).store.url)[cube].to_dataset()


def outcomes(results):
    return [(result.row.position, result.row.missing, result.outcome) for result in results]


def test_run_rows__writes_a_row_of_counts_per_checkpoint_and_nothing_twice(study):
    assert outcomes(run(study)) == [(epoch, ("counts", "top"), "computed") for epoch in range(3)]
    assert run(study) == []
    ds = opened(study)
    assert dict(ds.sizes) | {"epoch": 3, "block": 32, "unit": 11, "rank": 3, "sample": 30} == dict(ds.sizes)
    assert ds["n_images"].sum("block").values.tolist() == [30.0] * 3
    assert ds["layer"].values.tolist() == ["1"] * 6 + ["3"] * 5
    score = neurolens.iou(ds)
    assert score.chunks is not None
    assert np.nanmax(score.values) > 0.02


def test_plan__says_how_large_the_cube_will_be(study):
    plan = rows.plan(rows.gather(load_study(study), "concepts"), None)
    assert plan.change == "create 11 units × 32 blocks × 28 concepts × 5 categories"
    run(study)
    fewer = load_study(study, overrides=["concepts.categories=['color']"])
    change = rows.plan(rows.gather(fewer, "concepts"), rows.open_for_reading(fewer)).change
    assert "the categories were 5 and are 1" in change


def test_run_rows__counts_what_dissect_counts(study):
    from neurolens import checkpoints, models
    from neurolens.dissection.measure import dissect

    run(study)
    loaded, ds = load_study(study), opened(study)
    materials = rows.gather(loaded, "concepts")
    network = models.build(loaded.model)
    checkpoints.load(network.module, materials.series.checkpoints[1].path, loaded.checkpoints)
    slow = dissect(
        network, materials.samples, materials.samples.concepts.masks, layers=["1", "3"], quantile=0.05, batch_size=7
    )
    for name in ("intersection", "unit_area", "unit_area_lite", "threshold"):
        np.testing.assert_array_equal(ds[name].isel(epoch=1).values, slow[name])
    np.testing.assert_array_equal(ds["concept_area"].isel(epoch=1).values, slow["concept_area"])


def test_plan__redoes_only_what_depends_on_what_changed(study):
    run(study)
    write_checkpoint(study.parent, 1, seed=99)
    assert outcomes(run(study)) == [(1, ("counts", "top"), "computed")]
    assert {missing for _, missing, _ in outcomes(run(study, "concepts", "concepts.top=4"))} == {("top",)}
    changed = outcomes(run(study, "concepts", "concepts.top=4", "concepts.quantile=0.01"))
    assert {missing for _, missing, _ in changed} == {("counts",)}
    assert run(study, "concepts", "concepts.top=4", "concepts.quantile=0.01", "compute.batch_size=7") == []
    added = outcomes(run(study, "concepts", "concepts.top=4", "concepts.quantile=0.01", "concepts.rotations=1"))
    assert {missing for _, missing, _ in added} == {("rotated",)}


def test_reading_and_tau__are_questions_and_recompute_nothing(study):
    run(study)
    ds = opened(study)
    for reading in ("paper", "lite"):
        for tau in (0.01, 0.04):
            neurolens.concept_events(neurolens.iou(ds, reading=reading), tau=tau)
    assert run(study) == []


@pytest.mark.parametrize(("wanted", "epoch"), [("'last'", 2), ("1", 1)])
def test_threshold_from__fixes_the_thresholds_of_one_checkpoint(study, wanted, epoch):
    run(study)
    own = opened(study)["threshold"].values
    assert not np.allclose(own[0], own[epoch])
    again = run(study, "concepts", f"concepts.threshold_from={wanted}")
    assert {result.row.missing for result in again} == {("counts",)}
    fixed = opened(study)["threshold"].values
    np.testing.assert_array_equal(fixed, np.tile(own[epoch], (3, 1)))
    assert run(study, "concepts", f"concepts.threshold_from={wanted}") == []


def test_threshold_from__last_moves_with_a_new_checkpoint_and_a_number_does_not(study):
    run(study, "concepts", "concepts.threshold_from=1")
    run(study, "concepts", "concepts.threshold_from=1")
    write_checkpoint(study.parent, 3)
    assert [result.row.position for result in run(study, "concepts", "concepts.threshold_from=1")] == [3]
    run(study, "concepts", "concepts.threshold_from='last'")
    write_checkpoint(study.parent, 4)
    assert len(run(study, "concepts", "concepts.threshold_from='last'")) == 5


def test_threshold_from__a_checkpoint_where_a_unit_is_dead_gives_it_no_threshold(study):
    import torch

    file = study.parent / "checkpoints" / "epoch_1.pt"
    state = torch.load(file)
    state["0.weight"][2], state["0.bias"][2] = 0, -1
    torch.save(state, file)
    run(study)
    assert np.isfinite(neurolens.iou(opened(study)).isel(epoch=0, unit=2)).any()
    run(study, "concepts", "concepts.threshold_from=1")
    ds = opened(study)
    score = neurolens.iou(ds).compute()
    assert np.isnan(ds["threshold"].values[:, 2]).all()
    assert np.isnan(score.isel(unit=2)).all()
    assert np.isfinite(ds["threshold"].values[:, 1]).all()
    assert np.isfinite(score.isel(unit=1)).any("concept").all()


@pytest.mark.parametrize("workers", [1, 2])
def test_threshold_from__a_checkpoint_that_fails_is_named_in_every_row_and_tried_once(study, workers, monkeypatch):
    import torch

    from neurolens.dissection import cube

    tried = []
    refer = cube.refer
    monkeypatch.setattr(cube, "refer", lambda *given, **options: tried.append(1) or refer(*given, **options))
    file = study.parent / "checkpoints" / "epoch_2.pt"
    state = torch.load(file)
    state["2.weight"][:] = 1e38
    torch.save(state, file)
    results = run(study, "concepts", "concepts.threshold_from='last'", f"compute.workers={workers}")
    assert [result.outcome for result in results] == ["failed"] * 3
    for result in results:
        assert result.why.startswith(f"concepts need the thresholds of epoch 2, {file}, which cannot be had: layer '3'")
    assert len(tried) == 1


def test_threshold_from__a_number_without_checkpoint_is_refused(study):
    with pytest.raises(StudyError, match=r"threshold_from is 7, and there is no checkpoint of that epoch"):
        run(study, "concepts", "concepts.threshold_from=7")


def test_gather__refuses_a_crop_that_would_lay_maps_beside_the_labels(study):
    with pytest.raises(DataError, match=r"is shown 16 x 16 of the 32 x 32 pixels"):
        run(study, "concepts", "model.preprocessing.crop=16")


def test_gather__names_an_image_of_another_size(study):
    from PIL import Image

    first = rows.gather(load_study(study), "concepts").samples.coords["path"][0]
    path = study.parent / "concepts" / "images" / str(first)
    Image.open(path).resize((40, 40)).save(path)
    with pytest.raises(DataError, match=rf"{path.name} is 40 x 40 pixels, and 32 x 32 were announced"):
        run(study)


def test_gather__refuses_a_named_layer_without_maps(study):
    with pytest.raises(CaptureError, match=r"'6'.*maps"):
        run(study, "concepts", "concepts.layers=['6']")


def test_run_rows__a_broken_label_file_fails_the_row_and_is_told(study):
    broken = next((study.parent / "concepts" / "images").rglob("*_object.png"), None)
    masks = sorted((study.parent / "concepts").rglob("*.png"))
    victim = broken or next(path for path in masks if path.stat().st_size < 2000)
    victim.write_bytes(victim.read_bytes()[:40])
    results = run(study)
    assert {result.outcome for result in results} == {"failed"}
    assert victim.name in results[0].why


def test_units_that_never_fire__are_nan_in_the_iou_and_never_0(tmp_path):
    import torch

    path = write_study(tmp_path / "run", checkpoints=2)
    file = tmp_path / "run" / "checkpoints" / "epoch_1.pt"
    state = torch.load(file)
    state["0.weight"][2] = 0
    state["0.bias"][2] = -1
    torch.save(state, file)
    run(path)
    score = neurolens.iou(opened(path))
    assert np.isnan(score.isel(epoch=1, unit=2)).all()
    assert np.isfinite(score.isel(epoch=1, unit=1)).any()


EFFECTS = STUDY + "[effects]\nk = 1\ntau = 0.08\n"


def test_effects__are_asked_of_the_checkpoints_around_deaths(tmp_path):
    path = write_study(tmp_path / "run", checkpoints=4, text=EFFECTS)
    study = load_study(path)
    waiting = rows.plan(rows.gather(study, "effects"), rows.open_for_reading(study))
    assert waiting.rows == ()
    assert any("wait for concepts" in note for note in waiting.notes)
    run(path)
    events = neurolens.concept_events(neurolens.iou(opened(path)), tau=0.08, k=1)
    deaths = events[events["end"] == "death"]
    assert len(deaths)
    results = run(path, "effects")
    around = {*deaths["death"], *(d - 1 for d in deaths["death"])}
    assert {result.row.position for result in results} == around
    assert {result.outcome for result in results} == {"computed"}
    assert run(path, "effects") == []
    ds = opened(path, "effects")
    known = ds["ablated_logit"].notnull().any("class")
    for position in sorted(around):
        asked = {*deaths["unit"][deaths["death"] == position], *deaths["unit"][deaths["death"] == position + 1]}
        assert set(ds["unit"].values[known.sel(epoch=position).values]) == asked


def test_effects__another_way_to_take_units_away_is_another_measurement(tmp_path):
    path = write_study(tmp_path / "run", checkpoints=4, text=EFFECTS)
    run(path)
    first = {result.row.position for result in run(path, "effects")}
    assert {result.row.position for result in run(path, "effects", "effects.replace='mean'")} == first
    assert {
        result.row.missing for result in run(path, "effects", "effects.replace='mean'", "effects.conductance=true")
    } == {("conductance",)}


def test_effects__of_a_longer_run_are_measured_only_where_more_is_asked(tmp_path):
    path = write_study(tmp_path / "run", checkpoints=4, text=EFFECTS)
    run(path)
    before = {result.row.position: result.row.asked for result in run(path, "effects")}
    write_checkpoint(path.parent, 4)
    run(path)
    study = load_study(path)
    plan = rows.plan(rows.gather(study, "effects"), rows.open_for_reading(study))
    wanted = {row.position: row.asked for row in plan.rows}
    assert {row.position for row in plan.todo} == {p for p, units in wanted.items() if before.get(p) != units}
    assert {p for p in before if before[p] == wanted[p]} != set()
    run(path, "effects")
    assert run(path, "effects") == []


def test_run_rows__shows_images_whole_where_the_network_was_trained_on_crops(study):
    text = study.read_text()
    study.write_text(text.replace("[model.preprocessing]\n", "[model.preprocessing]\nresize = 40\ncrop = 32\n"))
    with pytest.raises(DataError, match=r"concepts\.whole = true"):
        run(study)
    run(study, "concepts", "concepts.whole=true")
    cropping = opened(study)[["intersection", "threshold"]].load()
    study.write_text(text)
    run(study, "concepts", "store.url=other.icechunk")
    plain = neurolens.open_run(study.parent / "other.icechunk")["concepts"].to_dataset()
    np.testing.assert_array_equal(cropping["intersection"], plain["intersection"])
    np.testing.assert_array_equal(cropping["threshold"], plain["threshold"])


def test_run__of_effects_alone_says_why_there_are_none(tmp_path):
    from typer.testing import CliRunner

    from neurolens.cli import app

    path = write_study(tmp_path / "run", text=STUDY + "[effects]\ntau = 0.99\n")
    for expected in ("effects wait for concepts: no checkpoint", "effects are of units whose concepts died; none has"):
        told = CliRunner().invoke(app, ["run", str(path), "--only", "effects"], env={"COLUMNS": "200"})
        assert told.exit_code == 0
        assert expected in told.output
        run(path)


def test_effects__are_asked_by_the_rows_they_are_remembered_for_whatever_is_committed_meanwhile(tmp_path, monkeypatch):
    from neurolens.rows import asking

    path = write_study(tmp_path / "run", checkpoints=4, text=EFFECTS)
    run(path)
    study = load_study(path)
    series = rows.gather(study, "concepts").series
    kept = []

    def late(kind, name, make, **options):
        write_checkpoint(path.parent, 4)
        run(path)
        kept.append(make())
        return kept[-1]

    before = asking.asked(study, series).units
    monkeypatch.setattr(asking, "remembered", late)
    assert asking.asked(study, series).units == before
    assert "4" not in kept[0]["units"]
    monkeypatch.undo()
    longer = rows.gather(study, "concepts").series
    assert 4 in asking.asked(study, longer).units
