"""What the report and ``neurolens plot`` say of concepts, from a store: figures, a table of thresholds, pictures."""

import re
import sys

import pandas as pd
import pytest
from concept_cube_cases import scripted, silent, write_store
from concept_study import STUDY, run, write_study
from tally_cases import tree
from typer.testing import CliRunner

from neurolens import mortality, open_run, plot, rows
from neurolens.cli import app
from neurolens.dissection import detectors, iou
from neurolens.report import life_rule_of, write_report
from neurolens.report.concept_figures import concept_figures, functional_figures, threshold_table
from neurolens.rows.adopting_tallies import adopt_tallies
from neurolens.store import open_store
from neurolens.study import Study, load_study


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    url = tmp_path_factory.mktemp("scripted") / "store"
    write_store(url, scripted(rotations=2, measured=[True] * 15 + [False]))
    return url


def named(figures):
    return {figure.name: figure for figure in figures}


def test_concept_figures__say_what_was_found_by_which_rule():
    ds = scripted()
    given = plot.concept_numbers(ds, rule=plot.LifeRule(k=2))
    found = named(concept_figures(given))
    events = mortality.concept_events(iou(ds), k=2)
    last = detectors(ds).isel(epoch=-1)
    assert found["detectors"].value == str(int(last["total_detectors"]))
    assert found["detectors"].meaning == "at epoch 150, of 10 units; 5 concepts; IoU of 0.04, paper reading"
    assert found["deaths"].value == str((events["end"] == "death").sum()) == "5"
    assert "tau = 0.04, k = 2" in found["deaths"].meaning
    assert found["births"].value == "6"
    assert found["births"].meaning.startswith("4 more were alive when first seen")
    assert found["rebirths"].value == "1"
    assert found["median lifetime"].value == f"{mortality.survival(events)['median'].item():g}" == "7"
    assert found["median lifetime"].meaning == "checkpoints, Kaplan–Meier; 95 %: from 4, no upper bound"


def test_concept_figures__say_where_the_median_is_not_reached_and_leave_it_out_without_lives():
    given = plot.concept_numbers(scripted().isel(epoch=slice(0, 4)))
    assert named(concept_figures(given))["median lifetime"].value == "> 3"
    nothing = named(concept_figures(plot.concept_numbers(silent())))
    assert "median lifetime" not in nothing
    assert nothing["detectors"].value == nothing["deaths"].value == "0"


def test_threshold_table__marks_the_threshold_of_the_page():
    given = plot.concept_numbers(scripted(), rule=plot.LifeRule(k=2, reading="lite"))
    table = threshold_table(given)
    assert [line[0] for line in table.lines] == ["0.02", "0.03", "0.04 (this page)", "0.05", "0.06"]
    assert table.lines[2][1:] == ("11", "1", "5", "5")
    assert "tau = 0.04, k = 2 (reading: lite)" in table.caption


def test_write_report__has_concepts_and_still_fetches_and_runs_nothing(store, tmp_path):
    text = write_report(store, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in text
    for name in ("detectors", "births", "deaths", "rebirths", "median lifetime"):
        assert f"<dt>{name}</dt>" in text
    assert "Concepts at other thresholds" in text
    assert '<td class="number">0.04 (this page)</td>' in text
    for title in ("Lives of concepts in units", "How long concepts live", "Units against rotated units"):
        assert f"<strong>{title}</strong>" in text
    assert text.count("<img ") == 10
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', text))
    assert "neurolens.concept_events(scores, tau=0.05)" in text


def test_write_report__follows_concepts_by_the_rule_of_the_study(store, tmp_path):
    effects = {"tau": 0.125, "k": 1, "reading": "lite"}
    study = Study(checkpoints={"folder": tmp_path}, concepts={"root": tmp_path}, effects=effects)
    assert life_rule_of(study) == plot.LifeRule(reading="lite", tau=0.125, k=1, by="unit-concept")
    assert life_rule_of(Study(checkpoints={"folder": tmp_path})) is None
    text = write_report(store, tmp_path / "r.html", study=study).read_text(encoding="utf-8")
    assert "tau = 0.125, k = 1" in text
    cube = open_run(store)["concepts"].to_dataset()
    deaths = (mortality.concept_events(iou(cube, reading="lite"), tau=0.125, k=1)["end"] == "death").sum()
    assert re.search(rf"<dt>deaths</dt><dd class=\"value\">{deaths}</dd>", text)


def test_plot__writes_pictures_and_a_page_of_migrations(store, tmp_path, monkeypatch):
    call = CliRunner().invoke(app, ["plot", str(store), "--out", str(tmp_path / "plots")])
    assert call.exit_code == 0, call.output
    written = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {"concept_lifelines.png", "concept_migrations.png", "concept_survival.png", "sankey.html"} <= written
    page = (tmp_path / "plots" / "sankey.html").read_text(encoding="utf-8")
    assert "square" in page
    assert not re.findall(r'<script[^>]*\ssrc="', page)
    monkeypatch.setitem(sys.modules, "plotly", None)
    call = CliRunner().invoke(app, ["plot", str(store), "--out", str(tmp_path / "without")])
    assert call.exit_code == 0, call.output
    assert "neurolens[report]" in " ".join(call.output.split())
    assert not (tmp_path / "without" / "sankey.html").exists()
    assert (tmp_path / "without" / "concept_migrations.png").exists()


def test_write_report__and_plot_take_adopted_tallies(tmp_path):
    tallies = mortality.read_tallies(tree(tmp_path / "tree"))
    adopt_tallies(tallies, open_store(tmp_path / "store", create=True), run="published")
    text = write_report(tmp_path / "store", tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<dt>deaths, tallies</dt>" in text
    assert "as adopted" in text
    assert "Concepts at other thresholds, adopted tallies" in text
    given = plot.concept_numbers(open_run(tmp_path / "store")["tallies"].to_dataset())
    wanted = mortality.concept_events(tallies)
    assert (
        given.events[["unit", "concept", "end"]].values.tolist() == wanted[["unit", "concept", "end"]].values.tolist()
    )
    call = CliRunner().invoke(app, ["plot", str(tmp_path / "store"), "--out", str(tmp_path / "plots")])
    assert call.exit_code == 0, call.output
    written = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {"tallies_sankey.html", "tallies_concept_lifelines.png", "tallies_concept_detectors.png"} <= written


def test_key_figures__give_detectors_by_category_at_the_last_checkpoints(tmp_path):
    from neurolens.flows.figures import key_figures

    path = write_study(tmp_path, checkpoints=6, text=STUDY)
    run(path)
    study = load_study(path)
    text = key_figures(study, rows.plan(rows.gather(study, "concepts"), rows.open_for_reading(study)), "done")
    cube = open_run(study.store.url)["concepts"].to_dataset()
    found = detectors(cube.isel(epoch=slice(1, None)))
    header = ["epoch", *(str(name) for name in found["category"].values), "all", "different concepts"]
    assert f"| {' | '.join(header)} |" in text
    lines = [line for line in text.splitlines() if re.match(r"\| \d", line)]
    cells = [[int(cell) for cell in line.strip("| ").split(" | ")] for line in lines]
    assert [line[0] for line in cells] == [1, 2, 3, 4, 5]
    assert [line[-2] for line in cells] == found["total_detectors"].values.tolist()
    assert [line[1:-2] for line in cells] == found["n_detectors"].values.tolist()
    assert "IoU of 0.04, paper reading" in text
    path.write_text(STUDY + '[effects]\ntau = 0.1\nreading = "lite"\n')
    study = load_study(path)
    text = key_figures(study, rows.plan(rows.gather(study, "concepts"), rows.open_for_reading(study)), "done")
    assert "IoU of 0.1, lite reading" in text
    last = detectors(cube.isel(epoch=-1), tau=0.1, reading="lite").compute()
    assert f"| {last['total_detectors'].item()} | {last['total_unique'].item()} |" in text.splitlines()[-1]


def test_functional_figures__count_deaths_that_were_measured():
    table = pd.DataFrame({"functional_dead": pd.array([True, False, None, True], "boolean")})
    (figure,) = functional_figures(table)
    assert (figure.value, figure.name) == ("2", "functional deaths")
    assert figure.meaning.startswith("of 3 that were measured: less than 10 %")
    assert functional_figures(table.iloc[2:3]) == []


def test_write_report__says_which_deaths_are_functional(tmp_path):
    path = write_study(tmp_path, checkpoints=6, text=STUDY + "[effects]\ntau = 0.03\nk = 1\n")
    run(path)
    run(path, "effects")
    study = load_study(path)
    text = write_report(study.store.url, tmp_path / "r.html", study=study).read_text(encoding="utf-8")
    opened = open_run(study.store.url)
    events = mortality.concept_events(iou(opened["concepts"].to_dataset()), tau=0.03, k=1)
    found = mortality.functional_death(opened["effects"].to_dataset(), events)
    known = found["functional_dead"].dropna()
    assert len(known)
    assert f'<dt>functional deaths</dt><dd class="value">{int(known.sum())}</dd>' in text
    assert "<strong>Use of units before and after a death</strong>" in text
