"""The report: one page, self-contained, true to the store, and safe to open."""

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neurolens.errors import DataError, StoreError
from neurolens.report import images_of, metrics_of, write_report
from neurolens.schema import SAMPLES
from neurolens.store import SampleCoords, open_store
from neurolens.study import Study


@pytest.fixture
def store(tmp_path, make_store):
    make_store(tmp_path / "store", failed=[(2, 0, "input_gradient"), (2, 1, "input_gradient")])
    return tmp_path / "store"


@pytest.fixture
def metrics():
    return pd.DataFrame({"epoch": [1, 2], "train_loss": [2.0, 1.0], "train_acc": [0.2, 0.6], "val_acc": [0.1, 0.5]})


def black(ids):
    return np.zeros((len(ids), 8, 8, 1), np.uint8)


def test_write_report__is_one_page_that_fetches_and_runs_nothing(store, tmp_path, metrics):
    path = write_report(store, tmp_path / "new" / "report.html", metrics=metrics, images=black)
    text = path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert "<script" not in text
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', text))
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', text))
    assert "default-src 'none'" in text
    for link in re.findall(r'href="#([^"]*)"', text):
        assert f'id="{link}"' in text


def test_write_report__shows_pictures_with_alt_texts_and_key_figures(store, tmp_path, metrics):
    text = write_report(store, tmp_path / "r.html", metrics=metrics, images=black).read_text(encoding="utf-8")
    assert text.count("<img ") == 5
    assert all(len(alt) > 20 for alt in re.findall(r'<img alt="([^"]*)"', text))
    assert "50.0%" in text
    for name in ("checkpoints", "median CSL", "median learning time", "never learned"):
        assert f"<dt>{name}</dt>" in text


def test_write_report__tells_of_failed_rows_and_their_reasons(store, tmp_path):
    text = write_report(store, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "2 rows failed" in text
    assert "broken" in text
    assert "epoch_2.pt" in text
    assert "failed at epoch 2" in text
    assert "Learning time leaves out what is missing" in text
    assert 'class="cell failed" title="epoch 2: failed"' in text


def test_write_report__leaves_rows_that_failed_or_are_of_other_settings_out_of_its_numbers(tmp_path, make_store):
    parts = ("forward", "input_gradient")
    make_store(tmp_path / "store", failed=[(3, b, p) for b in (0, 1) for p in parts])
    text = write_report(tmp_path / "store", tmp_path / "r.html", images=black).read_text(encoding="utf-8")
    assert "failed at epoch 3: every number here leaves them out." in text
    assert "Mean loss stands here instead of cumulative loss" in text
    assert "median of mean loss" in text
    assert "csl_mean" in text
    opened = open_store(tmp_path / "store")
    layout = opened.layout("samples")
    held = xr.open_dataset(tmp_path / "store", engine="neurolens", group="samples")
    samples = SampleCoords(np.concatenate(layout.blocks), held.label.values, tuple(held["class"].values.tolist()))
    settings = {"parts": {part: {"version": 2} for part in parts}}
    opened.prepare(SAMPLES, run="random", series="epoch", samples=samples, settings=settings)
    text = write_report(tmp_path / "store", tmp_path / "r.html", images=black).read_text(encoding="utf-8")
    assert "There is nothing to draw" in text
    assert 'class="cell stale" title="epoch 0: stale"' in text
    assert "<img" not in text


def test_write_report__names_the_snapshot_and_its_tags(store, tmp_path):
    opened = open_store(store)
    opened.tag("thesis-v1")
    text = write_report(store, tmp_path / "r.html").read_text(encoding="utf-8")
    assert opened.snapshot_id in text
    assert "thesis-v1" in text


def test_write_report__escapes_what_comes_from_outside(store, tmp_path):
    study = Study(name="<script>alert(1)</script>", checkpoints={"folder": tmp_path})
    text = write_report(store, tmp_path / "r.html", study=study, study_file='"><b>').read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_write_report__says_so_when_images_are_not_of_this_run(store, tmp_path):
    study = Study(checkpoints={"folder": tmp_path})
    text = write_report(store, tmp_path / "r.html", study=study).read_text(encoding="utf-8")
    assert "There are no images" in text
    assert "The hardest images" not in text
    assert "Loss against learning time" in text


def test_write_report__manages_a_store_without_measurements(tmp_path):
    open_store(tmp_path / "store", create=True)
    text = write_report(tmp_path / "store", tmp_path / "r.html").read_text(encoding="utf-8")
    assert "No checkpoint has been measured yet." in text
    assert "<img" not in text


def test_write_report__replaces_a_page_as_a_whole(store, tmp_path):
    page = tmp_path / "r.html"
    page.write_text("old", encoding="utf-8")
    write_report(store, page)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not list(tmp_path.glob(".*.part"))


def test_write_report__names_what_cannot_be_read_or_written(store, tmp_path):
    with pytest.raises(StoreError):
        write_report(tmp_path / "none", tmp_path / "r.html")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StoreError, match="cannot be written"):
        write_report(store, tmp_path / "file" / "r.html")


def test_metrics_of__reads_the_table_beside_the_checkpoints(tmp_path, metrics):
    study = Study(checkpoints={"folder": tmp_path})
    assert metrics_of(study) is None
    metrics.to_csv(tmp_path / "metrics.csv", index=False)
    pd.testing.assert_frame_equal(metrics_of(study), metrics)
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="needs 'epoch'"):
        metrics_of(study)


def test_images_of__finds_images_by_id():
    from neurolens.data import open_samples

    study = Study()
    samples = open_samples(study.data)
    chosen = [5, 0, 17]
    images = images_of(study)([str(samples.ids[i]) for i in chosen])
    for image, i in zip(images, chosen):
        np.testing.assert_array_equal(image, samples.images.load(np.array([i]))[0])
    with pytest.raises(DataError, match="not in the study's data"):
        images_of(study)(["nothing"])


@pytest.mark.browser
@pytest.mark.parametrize("width", [500, 1200])
def test_write_report__is_drawn_by_a_browser(store, tmp_path, metrics, width):
    from PIL import Image

    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium on this machine")
    page = write_report(store, tmp_path / "r.html", metrics=metrics, images=black)
    picture = tmp_path / "page.png"
    switches = (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        "disable-component-update disable-sync hide-scrollbars"
    )
    command = [browser, *(f"--{switch}" for switch in switches.split()), f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},1600", f"--screenshot={picture}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape == (1600, width, 3)
    assert len(np.unique(pixels.reshape(-1, 3)[::97], axis=0)) > 20
