"""Galleries made from a study: what its store knows, its checkpoints and its concept data."""

import numpy as np
import pytest
import torch
from concept_study import STUDY, run, write_checkpoint, write_study
from typer.testing import CliRunner

import neurolens
from neurolens.cli import app
from neurolens.data.concepts import study_concepts
from neurolens.errors import (
    MissingCheckpointError,
    MissingMeasurementError,
    ModelMismatchError,
    SchemaError,
    StudyError,
)
from neurolens.report.galleries import concepts_of, detector_picture, unit_galleries
from neurolens.study import load_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of three checkpoints, dissected."""
    home = tmp_path_factory.mktemp("gallery")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        path = write_study(home / "run")
        run(path)
        yield path


@pytest.fixture(scope="module")
def opened(study):
    return concepts_of(neurolens.open_run(load_study(study).store.url))


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200", "TERM": "dumb"})


def test_unit_galleries__shows_the_images_in_the_store_with_masks_that_were_counted(study, opened):
    loaded = load_study(study)
    shown = unit_galleries(loaded, opened, units=[8, 2], at=[2, 0])
    sizes = {"epoch": 2, "unit": 2, "rank": 3, "y": 32, "x": 32, "channel": 3, "row": 16, "column": 16}
    assert dict(shown.sizes) == sizes
    assert shown["epoch"].values.tolist() == [2, 0]
    assert shown["unit"].values.tolist() == [8, 2]
    assert shown["layer"].values.tolist() == ["3", "1"]
    stored = opened.sel(epoch=[2, 0]).isel(unit=[8, 2])
    np.testing.assert_allclose(shown["largest"], stored["top_value"], rtol=1e-5)
    samples = study_concepts(loaded.concepts)
    for place in np.ndindex(2, 2, 3):
        image = int(stored["top_sample"].values[place])
        np.testing.assert_array_equal(shown["image"].values[place], samples.images.load([image])[0])
    best = neurolens.best_concept(opened).compute().sel(epoch=[2, 0]).isel(unit=[8, 2])
    np.testing.assert_array_equal(shown["label"], best["label"])
    np.testing.assert_array_equal(shown["score"], best["score"])
    fired = shown["mask"].any(("row", "column"))
    np.testing.assert_array_equal(fired, shown["largest"] > shown["threshold"])


def test_unit_galleries__takes_the_last_checkpoint_and_its_images_where_asked(study, opened):
    loaded = load_study(study)
    assert unit_galleries(loaded, opened, units=[1], top=2).sizes["rank"] == 2
    assert unit_galleries(loaded, opened, units=[1])["epoch"].values.tolist() == [2]
    same = unit_galleries(loaded, opened, units=[1], at=[0, 2], same=True, resolution="image")
    own = unit_galleries(loaded, opened, units=[1], at=[0, 2])
    assert (same["image"].isel(epoch=0) == own["image"].isel(epoch=1)).all()
    assert not (own["image"].isel(epoch=0) == own["image"].isel(epoch=1)).all()
    assert same["mask"].shape[-2:] == (32, 32)


def test_unit_galleries__says_what_is_not_there_any_more(study, opened, tmp_path):
    loaded = load_study(study)
    with pytest.raises(MissingMeasurementError, match="epoch 7 has not been dissected; dissected are 0–2"):
        unit_galleries(loaded, opened, units=[0], at=[7])
    with pytest.raises(MissingMeasurementError, match="top = 9"):
        unit_galleries(loaded, opened.drop_vars("top_sample"), units=[0])
    with pytest.raises(StudyError, match=r"has no \[concepts\] table"):
        unit_galleries(loaded.model_copy(update={"concepts": None}), opened, units=[0])
    with pytest.raises(SchemaError, match="not those that were dissected"):
        unit_galleries(load_study(study, overrides=["concepts.split=val"]), opened, units=[0])
    other = write_study(tmp_path / "other", checkpoints=2)
    with pytest.raises(MissingCheckpointError, match="the checkpoint of epoch 2 was dissected and is not in"):
        unit_galleries(load_study(other), opened, units=[0])
    write_checkpoint(other.parent, 2, seed=77)
    with pytest.raises(ModelMismatchError, match=r"at epoch 2 the largest activation of a unit is .* in the store"):
        unit_galleries(load_study(other), opened, units=[0])


def test_concepts_of__says_that_nothing_was_dissected(make_study):
    from test_cli import measured

    url = load_study(measured(make_study())).store.url
    with pytest.raises(MissingMeasurementError, match="the run holds samples, and no checkpoint has been dissected"):
        concepts_of(neurolens.open_run(url))


def test_detector_picture__names_the_strongest_detectors(study, opened):
    picture = detector_picture(load_study(study), opened, count=2, top=3)
    assert picture is not None
    assert len(picture.figure.subfigs) == 2
    best = neurolens.best_concept(opened.isel(epoch=-1)).compute()
    first = int(np.nanargmax(best["score"]))
    assert f"{best['label'].values[first]} ({float(best['score'][first]):.2f})" in picture.caption


def test_gallery__writes_a_picture_of_units_at_several_checkpoints(study, tmp_path):
    for name, words in {
        "strongest": (),
        "unit": ("--unit", 3, "--unit", 7, "--at", "0,2", "--top", 2, "--same"),
        "layer": ("--layer", "3", "--index", 4, "--fine", "--lite"),
    }.items():
        out = tmp_path / "pictures" / f"{name}.png"
        result = call("gallery", study, *words, "--out", out)
        assert result.exit_code == 0, result.output
        assert f"wrote {out}" in result.output
        assert out.read_bytes().startswith(b"\x89PNG")


def test_gallery__tells_of_wrong_units_and_checkpoints(study):
    for words, text in (
        (("--unit", 99), "there is no unit 99; the cube has units 0 to 10"),
        (("--out", "gallery.foo"), "gallery.foo is no file of a picture; name one, e.g. gallery.png"),
        (("--layer", "4", "--index", 0), "there is no layer '4'"),
        (("--layer", "3"), "go together"),
        (("--unit", 0, "--at", "first"), "--at 'first' is no epoch or step"),
    ):
        result = call("gallery", study, *words)
        assert result.exit_code == 2
        assert text in result.stderr
        assert not (study.parent / "gallery.png").exists()


def test_gallery__of_a_dead_unit_says_that_nothing_excites_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_study(tmp_path / "run", checkpoints=1, text=STUDY + 'layers = ["1"]\n')
    file = path.parent / "checkpoints" / "epoch_0.pt"
    state = torch.load(file)
    state["0.weight"][2], state["0.bias"][2] = 0, -1
    torch.save(state, file)
    run(path)
    shown = unit_galleries(load_study(path), concepts_of(neurolens.open_run(load_study(path).store.url)), units=[2])
    assert not shown["mask"].any()
    assert shown["label"].values.tolist() == [[""]]
    assert call("gallery", path, "--unit", 2).exit_code == 0


def test_plot_and_report__show_what_the_strongest_detectors_see(study, tmp_path):
    result = call("plot", study, "--out", tmp_path / "plots")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "plots" / "unit_galleries.png").exists()
    result = call("report", study, "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "page.html").read_text()
    assert "What the strongest detectors see" in text
    assert f"neurolens gallery {study}" in text


def test_plot__goes_on_without_galleries_where_checkpoints_are_gone(study, tmp_path):
    folder = study.parent / "checkpoints"
    folder.rename(folder.with_name("elsewhere"))
    try:
        result = call("plot", study, "--out", tmp_path / "plots")
    finally:
        folder.with_name("elsewhere").rename(folder)
    assert result.exit_code == 0, result.output
    assert "There are no galleries of units: " in result.output
    assert (tmp_path / "plots" / "concept_detectors.png").exists()


def test_gallery_plot_and_report__of_steps_that_know_their_epochs_are_by_step(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    named = '[checkpoints]\npattern = "epoch_{epoch}_iter_{step}.pt"\n[concepts]'
    rule = "threshold_from = 20\n[effects]\nk = 1\ntau = 0.08\nsamples = 12\n"
    path = write_study(tmp_path / "run", checkpoints=0, text=STUDY.replace("[concepts]", named) + rule)
    for step in (0, 10, 20, 30):
        write_checkpoint(path.parent, step).rename(path.parent / "checkpoints" / f"epoch_{step // 20}_iter_{step}.pt")
    run(path)
    run(path, "effects")
    out = tmp_path / "gallery.png"
    told = call("gallery", path, "--unit", 3, "--at", "0,20", "--out", out)
    assert told.exit_code == 0, told.output
    assert out.stat().st_size > 10_000
    for words in (("plot", path, "--out", tmp_path / "plots"), ("report", path, "--out", tmp_path / "page.html")):
        told = call(*words)
        assert told.exit_code == 0, told.output
    assert (tmp_path / "plots" / "unit_galleries.png").exists()
    assert (tmp_path / "plots" / "concept_effects.png").exists()
