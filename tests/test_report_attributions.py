"""What the report, ``neurolens plot`` and flows say of attributions: figures, a section, pictures of real images."""

import html
import re

import numpy as np
import pytest
from attribution_cube_cases import attributions_cube
from attribution_study import TEXT, run_both, write_study
from PIL import Image
from typer.testing import CliRunner

from neurolens import open_run, plot, rows
from neurolens.attribution import compare
from neurolens.attribution.reading import accuracy, score_of
from neurolens.cli import app
from neurolens.data import make_concepts
from neurolens.errors import DataError
from neurolens.plot.run_pictures import RunPictures
from neurolens.report import shown_images_of, write_report
from neurolens.report.attribution_figures import attribution_figures, attribution_section, effect_table
from neurolens.study import Study, load_study


@pytest.fixture(scope="module")
def numbers():
    return plot.attribution_numbers(attributions_cube(epochs=(0, 9), samples=24, classes=4), resamples=200)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    text = TEXT + "reduced = true\ncurves = true\n"
    path = write_study(tmp_path_factory.mktemp("run"), checkpoints=2, samples=24, text=text)
    found = run_both(path)
    assert {result.why for results in found.values() for result in results} == {""}
    return path


def named(figures):
    return {figure.name: figure for figure in figures}


def facts(section):
    return {fact.name: fact.text for fact in section.facts}


def test_attribution_figures__say_what_was_found(numbers):
    found = named(attribution_figures(numbers))
    assert found["images explained"].value == "24"
    assert found["images explained"].meaning == f"at epoch 9, through {numbers.last.sizes['map']} sets of units"
    right = accuracy(numbers.last)["accuracy"]
    assert found["top-1 accuracy"].value == f"{float(right.sel(top=1)):.1%}"
    compared = numbers.effects["without"]
    sure = int((compared["class_p_max_t"] < 0.05).sum())
    assert found["effects of filters"].value == f"{sure} of {compared['difference'].size}"
    largest = float(compared["difference"].to_numpy().ravel()[np.abs(compared["difference"].to_numpy()).argmax()])
    assert found["largest effect"].value == f"{largest:+.3f}"
    gap = np.median(np.abs(numbers.gap / numbers.change))
    assert found["gap of completeness"].value == f"{gap:.2%}"


def test_attribution_section__states_accuracy_once_and_why(numbers):
    section = attribution_section(RunPictures(attributions=numbers))
    said = facts(section)
    assert "a filter blocks gradients and leaves every number that goes forward as it is" in said["accuracy"]
    assert sum("top-1" in text for text in said.values()) == 1
    assert not any("accuracy" in name for table in section.tables for name in table.header)


def test_attribution_section__names_interval_correction_control_and_gap(numbers):
    said = facts(attribution_section(RunPictures(attributions=numbers)))
    compared = numbers.effects["without"]
    assert f"the smallest is {float(compared['class_p_max_t'].min()):.3g}" in said["p, corrected"]
    one = compared.sel(map=numbers.focus).isel(attribution=0)
    interval = f"{float(one['class_low']):+.4f} to {float(one['class_high']):+.4f}"
    assert f"whole classes drawn {interval}" in said[f"effect of {numbers.focus}"]
    p = float(numbers.control["p"].isel(map=0, attribution=0))
    assert f"{numbers.focus}: Integrated Gradients p = {p:.3g}" in said["random controls"]
    assert "With R = 20 random sets" in said["random controls"]
    assert "no two-sided p is below 0.095" in said["random controls"]
    assert "lacks the conductance of what was left out" in said["completeness"]
    assert "statistics of units" not in said


def test_attribution_section__is_left_out_or_shorter_without_parts():
    assert attribution_section(RunPictures()) is None
    cube = attributions_cube(samples=8)
    few = ["log_prob", "label_rank", "target", "total", "norm"]
    bare = cube[few].isel(map=np.flatnonzero(cube["kind"] != "control"), attribution=[1])
    said = facts(attribution_section(RunPictures(attributions=plot.attribution_numbers(bare, resamples=50))))
    assert list(said) == ["accuracy", "random controls"]
    assert "No set has random controls" in said["random controls"]


def test_effect_table__has_a_line_per_set_and_method_with_every_interval(numbers):
    table = effect_table(numbers)
    compared = numbers.effects["without"]
    assert len(table.lines) == compared["difference"].size
    assert "corrected for all 20 cells" in table.caption
    assert table.header.index("p, corrected") < table.header.index("95 %, images")  # or a narrow page cuts it off
    assert "against random sets it is two-sided" in table.caption
    lines = {(line[0], line[2]): dict(zip(table.header, line)) for line in table.lines}
    one = lines[numbers.focus, "Saliency"]
    cell = compared.sel(map=numbers.focus).isel(attribution=1)
    assert one["units"] == str(int(cell["kept"]))
    assert one["difference"] == f"{float(cell['difference']):+.4f}"
    assert one["95 %, images"] == f"{float(cell['low']):+.4f} to {float(cell['high']):+.4f}"
    assert one["p, random"] == f"{float(numbers.control['p'].isel(map=0, attribution=1)):.3g}"
    assert lines["stage2/without k3/0", "Saliency"]["p, random"] == ""
    alone = effect_table(numbers, "only")
    assert "p, random" not in alone.header  # no cluster alone has random sets
    assert "random" not in alone.caption


def test_write_report__has_a_section_with_its_pictures(study, tmp_path):
    loaded = load_study(study)
    text = write_report(loaded.store.url, tmp_path / "r.html", study=loaded).read_text(encoding="utf-8")
    assert "<script" not in text
    ways = re.findall(r"<dt>attributions measured with</dt><dd>(.*?)</dd>", text)
    assert len(ways) == 1
    assert "maps" not in ways[0]  # which sets a row holds is no way of measuring
    start = text.index('<section id="attributions">')
    section, rest = text[start : text.index('<section id="ledger">')], text[: text.index('<section id="attributions">')]
    titles = re.findall(r"<strong>(.*?)</strong>", section)
    for title in (
        "Filters by how faithful their maps are",
        "Filters against random sets of units",
        "Deletion and insertion",
    ):
        assert title in titles
        assert f"<strong>{title}</strong>" not in rest
    assert "Maps with and without the filter, image 0" in titles
    assert "How sure clusters of units are" in titles
    words = html.unescape(re.sub(r"<[^>]+>", " ", section))
    assert "They are 16 images of 10 of 10 classes." in words
    assert "mean adjusted Rand index" in words
    assert '<a href="#attributions">Attributions</a>' in text
    assert "neurolens.attribution.held_out(ds)" in text
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', text))


def test_write_report__does_without_the_study(study, tmp_path):
    text = write_report(load_study(study).store.url, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Of how many classes these are is known with the study at hand" in text
    assert "Maps with and without the filter" not in text


def test_plot__draws_some_cubes_and_panels_of_one_set(study, tmp_path):
    given = ["plot", str(study), "--only", "attributions", "--panels", "3", "--filtered", "bn2/without k3/1"]
    call = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "plots")])
    assert call.exit_code == 0, call.output
    written = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {f"attribution_panels_{at}.png" for at in (0, 2, 5)} <= written
    assert {"attribution_grid.png", "attribution_training.png", "attribution_curves.png"} <= written
    assert not any(name.startswith("clusters") for name in written)
    call = CliRunner().invoke(app, ["plot", str(study), "--only", "attribution", "--out", str(tmp_path / "plots")])
    assert call.exit_code != 0
    assert "did you mean 'attributions'" in " ".join(str(call.output + str(call.exception)).split())


def test_plot__names_the_nearest_set(study, tmp_path):
    given = ["plot", str(study), "--only", "attributions", "--filtered", "bn3/without k2/9"]
    call = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "plots")])
    assert call.exit_code != 0
    assert "there is no set of units 'bn3/without k2/9'" in " ".join(str(call.output + str(call.exception)).split())


def test_plot__says_where_images_are_gone(study, tmp_path):
    path = tmp_path / "study.toml"
    store = load_study(study).store.url
    text = study.read_text().replace('root = "data.npz"', 'root = "gone.npz"')
    path.write_text(text + f'[store]\nurl = "{store}"\n')
    call = CliRunner().invoke(app, ["plot", str(path), "--only", "attributions", "--out", str(tmp_path / "plots")])
    assert call.exit_code == 0, call.output
    assert "There are no panels of attributions" in " ".join(call.output.split())
    assert (tmp_path / "plots" / "attribution_grid.png").exists()


def test_shown_images_of__are_as_the_network_is_shown_them(tmp_path):
    make_concepts(tmp_path / "shapes", n=30, size=48)
    geometry = {"resize": 40, "crop": 32}
    study = Study(
        model={"name": "shapes_convnet", "classes": 6, "preprocessing": geometry},
        data={"source": "folder", "root": tmp_path / "shapes" / "images", "split": "train"},
        clusters={"layers": ["block4"]},
        attributions={"fill": "mean", "drop": 0.2},
    )
    shown = shown_images_of(study)
    assert (shown.fill, shown.drop, shown.zero) == ("mean", 0.2, (0.5, 0.5, 0.5))
    from neurolens.data import open_samples

    samples = open_samples(study.data)
    (image,) = shown.load([str(samples.ids[3])])
    assert image.shape == (32, 32, 3)
    raw = Image.fromarray(samples.images.load([3])[0]).resize((40, 40), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(image, np.asarray(raw)[4:36, 4:36])
    with pytest.raises(DataError, match="not in the study's data"):
        shown.load(["0" * 16])


def test_key_figures__give_accuracy_and_drops_at_the_last_checkpoints(study):
    from neurolens.flows.figures import key_figures

    loaded = load_study(study)
    opened = open_run(loaded.store.url)

    def said(cube):
        return key_figures(loaded, rows.plan(rows.gather(loaded, cube), rows.open_for_reading(loaded)), "done")

    text = said("attributions")
    cube = opened["attributions"].to_dataset()
    drop = score_of(cube, "drop").isel(map=0, attribution=0).mean("sample").values
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| \d", line)]
    header = next(line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| epoch"))
    assert [line[0] for line in cells] == ["0", "1"]
    at = header.index("all units, integrated_gradients")
    assert [line[at] for line in cells] == [f"{value:.4f}" for value in drop]
    right = accuracy(cube)["accuracy"].sel(top=1).values
    assert [line[header.index("top-1 accuracy")] for line in cells] == [f"{value:.2%}" for value in right]
    text = said("clusters")
    labels = opened["clusters"].to_dataset()["unit_cluster"].isel(epoch=-1).sel(k=2).values[:32]
    assert f"| bn2 | {' + '.join(str(int(n)) for n in np.bincount(labels.astype(int)))}; " in text


def test_attribution_numbers__of_a_store_are_those_of_its_cube(study):
    cube = open_run(load_study(study).store.url)["attributions"].to_dataset()
    given = plot.attribution_numbers(cube, resamples=100)
    last = score_of(cube.isel(epoch=-1), "drop").load()
    some = last.isel(map=np.flatnonzero(last["kind"] == "without"))
    found = compare(some, last.sel(map="whole", drop=True), classes="label", bootstrap=100, flips=100)
    np.testing.assert_allclose(given.effects["without"]["difference"], found["difference"])
    np.testing.assert_allclose(given.effects["without"]["class_low"], found["class_low"])
    assert given.focus == "bn3/without k2/0"
    assert given.draws.sizes["draw"] == 2
