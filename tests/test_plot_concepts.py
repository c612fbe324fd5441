"""Pictures of concepts: artists hold the right numbers, in few and in many; a run without an event says so."""

import re
import sys
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from concept_cube_cases import CATEGORY, drawn, scripted, silent
from matplotlib.collections import FillBetweenPolyCollection
from tally_cases import tree

import neurolens
from neurolens import mortality, plot
from neurolens.errors import MissingExtraError, MissingMeasurementError, SchemaError
from neurolens.plot.concept_heatmaps import by_onset
from neurolens.plot.concept_lifelines import PALETTE, liveliest
from neurolens.plot.concept_survival import median_interval


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def cube():
    return scripted(rotations=4)


@pytest.fixture(scope="module")
def events(cube):
    return mortality.concept_events(neurolens.iou(cube), k=2)


@pytest.fixture(scope="module")
def moves(cube):
    return mortality.migrations(neurolens.iou(cube), k=2)


@pytest.fixture(scope="module")
def crowd():
    return drawn(120, 20, 40)


@pytest.fixture(scope="module")
def crowded_events(crowd):
    return mortality.concept_events(neurolens.iou(crowd))


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def words(ax):
    return " ".join(text.get_text() for text in ax.texts)


def inside(ax):
    """Whether all text lies inside the figure, and tick labels do not lie over each other."""
    figure = ax.figure
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    boxes += [text.get_window_extent() for text in (ax.get_legend().get_texts() if ax.get_legend() else [])]
    for axis in (ax.xaxis, ax.yaxis) if ax.axison else ():
        low, high = sorted(axis.get_view_interval())
        at = zip(axis.get_majorticklocs(), axis.get_ticklabels())
        labels = [label.get_window_extent() for where, label in at if low <= where <= high and label.get_text()]
        assert not any(one.overlaps(two) for one, two in pairwise(labels))
        boxes += [*labels, *([axis.label.get_window_extent()] if axis.label.get_text() else [])]
    for box in boxes:
        assert figure.bbox.x0 - 1 <= box.x0
        assert box.x1 <= figure.bbox.x1 + 1
        assert figure.bbox.y0 - 1 <= box.y0
        assert box.y1 <= figure.bbox.y1 + 1
    return True


def heights(bars):
    return [round(bar.get_height()) for bar in bars]


def test_births_and_deaths__have_a_bar_for_every_checkpoint(cube, events):
    ax = plot.births_and_deaths(events)
    born, reborn, died = (heights(container) for container in ax.containers)
    lives = mortality.concept_lives(neurolens.iou(cube), k=2)
    assert len(born) == len(reborn) == len(died) == 16
    assert [-d for d in died] == lives["n_deaths"].values.tolist()
    assert reborn == lives["n_rebirths"].values.tolist()
    assert born[0] == 0  # who was alive when first seen was not born there
    assert (np.array(born) + reborn)[1:].tolist() == lives["n_births"].values[1:].tolist()
    assert "alive when first\nseen: 4" in legend(ax)
    assert [label for label in legend(ax) if "births" in label] == ["births: 6", "rebirths: 1"]
    assert ax.get_title(loc="left") == "Births and deaths: IoU of 0.04, k = 2"
    assert inside(ax)


def test_births_and_deaths__shade_where_no_death_can_be_confirmed(events):
    assert "too late to\nconfirm a death" in legend(plot.births_and_deaths(events))
    sooner = mortality.concept_events(neurolens.iou(scripted()), k=1)
    assert "too late to\nconfirm a death" not in legend(plot.births_and_deaths(sooner))


def test_cumulative_events__add_up_to_all_events(events):
    ax = plot.cumulative_events(events)
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["deaths"].get_xdata().tolist() == list(range(0, 160, 10))
    assert lines["deaths"].get_ydata()[-1] == 5
    assert lines["births,\nrebirths included"].get_ydata()[-1] == 7
    assert lines["rebirths"].get_ydata().tolist() == [0] * 8 + [1] * 8
    assert inside(ax)


def test_top_concepts__rank_by_deaths_and_say_how_many_lives(events):
    ax = plot.top_concepts(events)
    names = [label.get_text() for label in ax.get_yticklabels()]
    died = dict(zip(names, (bar.get_width() for bar in ax.containers[0])))
    assert died == {"wheel (part)": 1, "red (color)": 1, "dotted (texture)": 1, "square (object)": 2}
    assert names[-1] == "square (object)"
    assert "2 of 3" in words(ax)
    by_lives = plot.top_concepts(events, by="lives", count=2)
    assert [label.get_text() for label in by_lives.get_yticklabels()] == ["dotted (texture)", "square (object)"]
    assert by_lives.get_xlabel() == "lives; 4 more concepts"
    with pytest.raises(SchemaError, match="deaths"):
        plot.top_concepts(events, by="death")


def test_lifelines__draw_every_life_where_it_was(events):
    ax = plot.lifelines(events)
    rows = [label.get_text() for label in ax.get_yticklabels()]
    places = ax.get_yticks()
    found = set()
    for container in ax.containers:
        (bar,) = container
        y = bar.get_y() + bar.get_height() / 2
        row = rows[int(np.argmin(np.abs(places - y)))]
        found.add((row, bar.get_x() + 0.5, bar.get_x() + bar.get_width() - 0.5))
    wanted = {
        (f"{life.layer} · {life.index}", life.birth_position, life.last_position)
        for life in events.rename(columns={"index": "number"}).assign(index=events["index"]).itertuples(index=False)
    }
    assert found == wanted
    assert rows[0].startswith("layer3")
    assert rows[-1].startswith("layer4")
    for mark in ("death", "rebirth", "alive in the end", "born before the record"):
        assert mark in legend(ax)
    assert set(CATEGORY) <= set(legend(ax))
    assert inside(ax)


def test_lifelines__never_give_two_concepts_a_colour(crowded_events):
    ax = plot.lifelines(crowded_events)
    named = [label for label in legend(ax) if label in set(crowded_events["concept"])]
    handles = [h for h in ax.get_legend().legend_handles if h.get_label() in named]
    colours = {handle.get_facecolor() for handle in handles}
    assert len(colours) == len(named) == len(PALETTE)
    assert any(re.fullmatch(r"\d+ other concepts", label) for label in legend(ax))
    assert inside(ax)


def test_lifelines__say_how_many_units_are_left_out(crowded_events):
    ax = plot.lifelines(crowded_events, count=7)
    assert len(ax.get_yticks()) == 7
    assert f"{crowded_events['unit'].nunique() - 7} units with fewer events" in ax.get_xlabel()
    moved = (crowded_events["birth_seen"].astype(int) + (crowded_events["end"] == "death")).groupby(
        crowded_events["unit"]
    )
    chosen = liveliest(crowded_events, 7)
    assert moved.sum()[chosen].min() >= moved.sum().drop(chosen).max()


def test_lifelines__put_lives_that_overlap_side_by_side():
    table = {unit: [0.09, 0.09, 0.09, 0.09] for unit in range(1)}
    iou = xr.DataArray(
        np.array([[table[0][t], 0.06, 0.07, 0.08] for t in range(4)])[:, None],
        dims=("epoch", "unit", "concept"),
        coords={"epoch": range(4), "concept": ["a", "b", "c", "d"]},
    )
    ax = plot.lifelines(mortality.concept_events(iou))
    bars = [container[0] for container in ax.containers]
    assert len(bars) == 3
    assert len({round(bar.get_y(), 6) for bar in bars}) == 3
    assert "1 life beside 3 with higher scores" in ax.get_xlabel()
    assert "b" not in legend(ax)


def test_lifelines__follow_units_without_labels():
    score = xr.DataArray(
        [[0.09, 0.01], [0.09, 0.06], [0.01, 0.06]], dims=("epoch", "unit"), coords={"epoch": [0, 1, 2]}
    )
    ax = plot.lifelines(mortality.concept_events(score, k=1))
    assert legend(ax)[0] == "alive"
    assert len(ax.containers) == 2


def test_survival_curves__draw_steps_bands_and_numbers_at_risk(events):
    curves = mortality.survival(events)
    ax = plot.survival_curves(curves)
    line = next(line for line in ax.lines if line.get_label() == "all 11 lives")
    np.testing.assert_allclose(line.get_ydata(), curves["survival"].isel(group=0))
    assert line.get_drawstyle() == "steps-post"
    assert [c for c in ax.collections if isinstance(c, FillBetweenPolyCollection)]
    at_risk = [text.get_text() for text in ax.texts if text.get_text().isdigit()]
    assert at_risk[0] == "11"
    assert set(at_risk) <= {str(n) for n in curves["at_risk"].values.ravel()}
    assert inside(ax)


def test_survival_curves__keep_groups_apart_and_say_how_many_are_left_out(crowded_events):
    ax = plot.survival_curves(mortality.survival(crowded_events, by="category"))
    groups = crowded_events["category"].unique().tolist()
    assert sorted(legend(ax)) == sorted(groups)
    assert len({line.get_color() for line in ax.lines if line.get_label() in groups}) == len(groups)
    assert all(str((crowded_events["category"] == name).sum()) in words(ax) for name in groups)
    assert "by category" in ax.get_title(loc="left")
    assert inside(ax)
    many = plot.survival_curves(mortality.survival(crowded_events, by="concept"))
    assert len(legend(many)) == 6
    assert "more groups left out" in many.get_xlabel()


def test_survival_curves__take_runs_side_by_side(events, crowded_events):
    ax = plot.survival_curves(mortality.compare({"small": events, "large": crowded_events}))
    assert legend(ax) == ["small", "large"]
    assert ax.get_title(loc="left") == "How long concepts live, by run"


def test_median_interval__is_where_curve_and_band_fall_to_one_half():
    curves = xr.Dataset(
        {
            "survival": (("group", "time"), [[1, 0.7, 0.5, 0.3], [1, 0.9, 0.8, 0.7]]),
            "lower": (("group", "time"), [[np.nan, 0.4, 0.2, 0.1], [np.nan, 0.6, 0.5, 0.4]]),
            "upper": (("group", "time"), [[np.nan, 0.9, 0.7, 0.6], [np.nan, 1.0, 0.9, 0.8]]),
        },
        {"time": [0, 1, 2, 3]},
    )
    first, second = median_interval(curves)
    np.testing.assert_array_equal(first, (2, 1, np.nan))
    np.testing.assert_array_equal(second, (np.nan, 2, np.nan))


def test_detector_curves__count_by_category_and_name_those_without(cube):
    ax = plot.detector_curves(cube)
    found = neurolens.detectors(cube)
    lines = {line.get_label(): line for line in ax.lines}
    for name in found["category"].values:
        np.testing.assert_array_equal(lines[name].get_ydata(), found["n_detectors"].sel(category=name))
    np.testing.assert_array_equal(lines["all"].get_ydata(), found["total_detectors"])
    strict = plot.detector_curves(cube, tau=0.185, quantity="n_unique")
    assert next(label for label in legend(strict) if label.startswith("none")).split() == [
        "none:",
        "color,",
        "texture,",
        "scene",
    ]
    with pytest.raises(SchemaError, match="n_unique"):
        plot.detector_curves(cube, quantity="unique")


def test_detector_curves__count_what_tallies_know(tmp_path):
    tallies = mortality.read_tallies(tree(tmp_path))
    bare = tallies[["score", "label", "label_category"]]
    one, two = (plot.detector_curves(data) for data in (tallies, bare))
    for label in legend(two):
        lines = [next(line for line in ax.lines if line.get_label() == label) for ax in (one, two)]
        np.testing.assert_array_equal(*(line.get_ydata() for line in lines))
    with pytest.raises(SchemaError, match="label_category"):
        plot.detector_curves(tallies[["score"]])


def test_score_heatmap__orders_units_by_layer_and_onset(cube):
    ax = plot.score_heatmap(cube)
    best = neurolens.best_concept(cube)["score"].transpose("unit", "epoch").values
    layers = cube["layer"].values.tolist()
    order = by_onset(best, layers, 0.04)
    np.testing.assert_allclose(ax.images[0].get_array(), best[order])
    first = [int(np.argmax(best[i] >= 0.04)) if (best[i] >= 0.04).any() else 99 for i in order]
    assert first == [0, 0, 2, 9, 0, 0, 11, 14, 14, 99]
    assert [layers[i] for i in order] == layers
    assert ax.get_title(loc="left") == "Best IoU of each unit: 9 of 10 ever detect"
    fewer = plot.score_heatmap(cube, count=3)
    assert fewer.images[0].get_array().shape == (3, 16)
    assert "7 units with lower scores left out" in fewer.get_xlabel()


def test_score_heatmap__hatches_what_has_no_score(cube):
    best = neurolens.best_concept(cube)["score"]
    ax = plot.score_heatmap(best.where(best["unit"] != 9))
    assert np.ma.getmaskarray(ax.images[0].get_array())[-1].all()
    assert ax.patch.get_hatch()


def test_iou_heatmap__is_a_staircase_of_detectors(cube):
    ax = plot.iou_heatmap(cube)
    cells = ax.images[0].get_array()
    concepts = [label.get_text() for label in ax.get_xticklabels()]
    assert concepts == ["red", "square", "dotted", "roof", "street"]
    np.testing.assert_array_equal(cells.argmax(axis=1), np.arange(5))
    assert ax.get_title(loc="left") == "IoU of detectors and concepts at epoch 150"
    assert plot.iou_heatmap(cube, at=30).get_title(loc="left").endswith("epoch 30")
    with pytest.raises(SchemaError, match="no epoch 7"):
        plot.iou_heatmap(cube, at=7)


def test_iou_heatmap__says_what_is_left_out(crowd):
    ax = plot.iou_heatmap(crowd, units=10, concepts=4)
    cells = ax.images[0].get_array()
    assert cells.shape[0] <= 10
    assert cells.shape[1] == 4
    total = int(neurolens.detectors(crowd)["total_detectors"][-1])
    assert f"{total - cells.shape[0]} more detectors" in ax.get_xlabel()
    assert inside(plot.iou_heatmap(crowd))


def test_rotation_null__draws_both_shares_and_counts(cube):
    score = neurolens.best_concept(cube)["score"].isel(epoch=-1)
    rotated = cube["rotated_score"].isel(epoch=-1)
    ax = plot.rotation_null(score, rotated)
    units = next(line for line in ax.lines if str(line.get_label()).startswith("units"))
    x, share = units.get_data()
    np.testing.assert_allclose(share, [(score.values >= at).mean() for at in x])
    above = (rotated >= 0.04).sum("unit").values
    assert f"4 rotations: {above.min()}–{above.max()} detectors" in legend(ax)
    assert "units: 5 detectors" in legend(ax)
    with pytest.raises(SchemaError, match="isel"):
        plot.rotation_null(neurolens.best_concept(cube)["score"], cube["rotated_score"])


def test_migration_flows__count_each_death_once(cube, moves):
    flows = plot.migration_flows(moves, units=neurolens.iou(cube))
    assert flows["deaths"].sum() == len(moves) == 5
    lines = {(f.source, f.concept, f.target): f.deaths for f in flows.itertuples()}
    assert lines == {
        ("layer3", "square", "layer4"): 1,
        ("layer3", "square", "no other unit"): 1,
        ("layer3", "dotted", "layer3"): 1,
        ("layer3", "red", "layer4"): 1,
        ("layer4", "wheel", "no other unit"): 1,
    }
    assert plot.migration_flows(moves, units=neurolens.iou(cube), dying=False)["deaths"].sum() == 3
    units = plot.migration_flows(moves, units=neurolens.iou(cube), level="unit")
    assert ("layer3 · 2", "dotted", "layer3 · 3") in set(zip(units["source"], units["concept"], units["target"]))
    assert set(plot.migration_flows(moves)["target"]) == {"layer3", "another layer", "no other unit"}


def test_migration_flows__share_a_death_among_destinations_and_pool_the_rest():
    moves = pd.DataFrame(
        {
            "unit": range(4),
            "layer": ["a"] * 4,
            "concept": ["x", "x", "y", "z"],
            "destinations": [(7, 8, 9), (), (7,), ()],
            "same_layer": [(True, False, False), (), (True,), ()],
        }
    )
    flows = plot.migration_flows(moves, count=1)
    assert flows.groupby("concept")["deaths"].sum().round(9).to_dict() == {"x": 2, "2 other concepts": 2}
    away = flows[(flows["concept"] == "x") & (flows["target"] == "another layer")]["deaths"].item()
    assert away == pytest.approx(2 / 3)
    assert flows.attrs["order"]["concept"] == ["x", "2 other concepts"]


def test_migration_flows__need_destinations(cube):
    by_reference = mortality.migrations(neurolens.iou(cube), compat="seed")
    with pytest.raises(SchemaError, match="no destinations"):
        plot.migration_flows(by_reference)
    with pytest.raises(SchemaError, match="unit"):
        plot.migration_flows(by_reference, level="units")


@pytest.mark.parametrize("level", ["layer", "unit"])
def test_migration_ribbons__stack_nodes_by_their_deaths(cube, moves, level):
    ax = plot.migration_ribbons(moves, units=neurolens.iou(cube), level=level)
    flows = plot.migration_flows(moves, units=neurolens.iou(cube), level=level)
    for place, column in enumerate(("source", "concept", "target")):
        nodes = [p.get_height() for p in ax.patches if abs(p.get_x() + p.get_width() / 2 - place) < 0.01]
        total = flows.groupby(column)["deaths"].sum()
        np.testing.assert_allclose(sorted(np.array(nodes) / sum(nodes)), sorted(total / total.sum()))
    pairs = sum(len(flows.groupby(pair)) for pair in (["source", "concept"], ["concept", "target"]))
    assert len(ax.collections) == pairs
    assert inside(ax)


def test_migration_sankey__has_the_flows_of_the_same_table(cube, moves, tmp_path):
    figure = plot.migration_sankey(moves, units=neurolens.iou(cube))
    (sankey,) = figure.data
    names = list(sankey.node.label)
    flows = plot.migration_flows(moves, units=neurolens.iou(cube))
    into = flows.groupby(["source", "concept"])["deaths"].sum()
    links = {(names[s], names[t]): v for s, t, v in zip(sankey.link.source, sankey.link.target, sankey.link.value)}
    assert all(links[pair] == value for pair, value in into.items())
    assert sum(links.values()) == 2 * flows["deaths"].sum()
    page = tmp_path / "sankey.html"
    figure.write_html(page, include_plotlyjs=True)
    assert not re.findall(r'<script[^>]*src="', page.read_text(encoding="utf-8"))


def test_migration_sankey__names_the_extra_where_plotly_is_absent(moves, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(MissingExtraError, match=r"neurolens\[report\]"):
        plot.migration_sankey(moves)


def test_pictures__say_in_words_that_nothing_happened():
    ds = silent()
    drawn_ = plot.run_pictures({"concepts": ds})
    assert len(drawn_.pictures) == 8
    for picture in drawn_.pictures:
        said = [words(ax) for ax in picture.figure.axes] + [ax.get_title(loc="left") for ax in picture.figure.axes]
        assert re.search("no unit reaches an IoU of 0.04|no concept died|0 of 5 ever detect", " ".join(said))
    figure = plot.migration_sankey(mortality.migrations(neurolens.iou(ds)))
    assert "no concept died" in figure.layout.title.text
    still = mortality.concept_events(neurolens.iou(scripted()).isel(epoch=slice(0, 2)))
    assert "no birth and no death: 4 lives" in words(plot.births_and_deaths(still))
    assert "no concept dies" in words(plot.top_concepts(still))


@pytest.mark.parametrize("checkpoints", [1, 2])
def test_pictures__manage_few_checkpoints(checkpoints):
    given = plot.run_pictures({"concepts": scripted(rotations=1).isel(epoch=slice(0, checkpoints))})
    for picture in given.pictures:
        picture.figure.draw_without_rendering()
    assert ("concept_survival" in {p.name for p in given.pictures}) == (checkpoints > 1)


def test_pictures__are_blind_to_chunks_and_leave_out_what_was_not_measured():
    ds = scripted(rotations=2, measured=[True] * 15 + [False])
    ds["intersection"] = ds["intersection"].where(ds["measured"])
    whole, chunked = (plot.concept_numbers(d) for d in (ds, ds.chunk(epoch=1, unit=3)))
    pd.testing.assert_frame_equal(whole.events, chunked.events)
    pd.testing.assert_frame_equal(whole.sensitivity, chunked.sensitivity)
    xr.testing.assert_identical(whole.best, chunked.best)
    assert whole.events.attrs["checkpoints"] == list(range(0, 150, 10))
    assert "epoch 150" in whole.notes[0]
    with pytest.raises(MissingMeasurementError, match="not measured"):
        plot.concept_numbers(scripted(measured=[False] * 16))


def test_concept_numbers__count_lives_as_the_events_do():
    rule = plot.LifeRule(reading="lite", k=2, tau=0.05)
    ds = scripted()
    given = plot.concept_numbers(ds, rule=rule)
    wanted = mortality.concept_events(neurolens.iou(ds, reading="lite"), k=2, tau=0.05)
    pd.testing.assert_frame_equal(given.events, wanted)
    row = given.sensitivity.set_index("tau").loc[0.05]
    assert row["lives"] == len(wanted)
    assert row["deaths"] == (wanted["end"] == "death").sum()
    assert row["alive_at_end"] == (wanted["end"] == "alive").sum()
    assert str(rule) == "tau = 0.05, k = 2"


def test_concept_numbers__keep_all_that_reaches_a_threshold_of_the_table(crowd):
    given = plot.concept_numbers(crowd)
    counts = mortality.tau_sensitivity(neurolens.iou(crowd), tau=given.sensitivity["tau"].tolist())
    np.testing.assert_array_equal(given.sensitivity["deaths"], counts["n_deaths"].sum("step"))


def test_pictures__of_tallies_have_names_of_their_own(tmp_path):
    tallies = mortality.read_tallies(tree(tmp_path))
    out = plot.run_pictures({"tallies": tallies, "concepts": scripted()})
    names = [picture.name for picture in out.pictures]
    assert len(names) == len(set(names))
    assert {"tallies_concept_lifelines", "concept_lifelines", "tallies_concept_migrations"} <= set(names)
    assert out.tallies.cube == "tallies"
    assert "as adopted" in next(p for p in out.pictures if p.name == "tallies_concept_scores").caption
    pd.testing.assert_frame_equal(out.tallies.events, mortality.concept_events(tallies))
    bare = plot.concept_numbers(tallies[["score", "label", "label_category"]])
    assert bare.iou is None
    assert bare.events.attrs["by"] == "unit"


def test_plots_of_events__say_what_they_need(events):
    with pytest.raises(SchemaError, match="concept_events"):
        plot.births_and_deaths(events.drop(columns="birth_seen"))
    lost = events.copy()
    lost.attrs = {}
    with pytest.raises(SchemaError, match="attrs"):
        plot.lifelines(lost)
    with pytest.raises(SchemaError, match="survival"):
        plot.survival_curves(xr.Dataset())
    with pytest.raises(SchemaError, match="table of"):
        plot.cumulative_events(xr.Dataset())


def test_pictures__tell_layers_with_long_names_apart():
    names = [f"gpt_neox.layers.{i}.mlp.dense_4h_to_h:input" for i in range(4)]
    ds = drawn(24, 30, 20, layers=4)
    layers = [names[int(name.removeprefix("layer")) - 3] for name in ds["layer"].values]
    out = plot.run_pictures({"concepts": ds.assign_coords(layer=("unit", np.array(layers, object)))})
    for picture in out.pictures:
        assert all(inside(ax) for ax in picture.figure.axes if ax.get_label() != "<colorbar>"), picture.name
    (ax,) = next(p for p in out.pictures if p.name == "concept_migrations").figure.axes
    said = [text.get_text() for text in ax.texts]
    sources = [word for word in said if re.fullmatch(r"[0-3]( · \d+)?", word)]
    assert sources
    assert "layers: gpt_neox.layers.*.mlp.dense_4h_to_h:input" in said
    survival = next(p for p in out.pictures if p.name == "concept_survival").figure.axes[-1]
    assert legend(survival) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("checkpoints", [2, 153])
def test_pictures__keep_to_their_figures_in_few_and_in_many(checkpoints):
    stamps = [0, *(2**i for i in range(10)), *range(1000, 143_000, 1000)][:checkpoints]
    ds = drawn(70, checkpoints, 30, stamps=stamps, rotations=2)
    for picture in plot.run_pictures({"concepts": ds}).pictures:
        assert all(inside(ax) for ax in picture.figure.axes if ax.get_label() != "<colorbar>"), picture.name


def deaths(before, after, dead, ratio=0.1):
    columns = {"logit_drop_before": before, "logit_drop_after": after, "functional_dead": pd.array(dead, "boolean")}
    table = pd.DataFrame(columns)
    table.attrs = {"ratio": ratio}
    return table


def test_effects_of_deaths__tell_functional_deaths_from_others():
    table = deaths([1.0, 0.5, 0.4, np.nan], [0.9, 0.01, -0.1, np.nan], [False, True, True, None])
    ax = plot.effects_of_deaths(table)
    still, dead = ax.collections
    np.testing.assert_allclose(still.get_offsets(), [[1.0, 0.9]])
    np.testing.assert_allclose(dead.get_offsets(), [[0.5, 0.01], [0.4, -0.1]])
    assert "functional deaths: 2\n(below 10 % of before)" in legend(ax)
    assert "of no use, or not\nmeasured: 1" in legend(ax)
    assert inside(ax)
    assert "measured on both sides" in words(plot.effects_of_deaths(table.iloc[3:]))
    assert words(plot.effects_of_deaths(table.iloc[:0])) == "no concept died"
    with pytest.raises(SchemaError, match="without compat"):
        plot.effects_of_deaths(table.drop(columns="logit_drop_after"))


@pytest.mark.parametrize("options", [{"by": "unit"}, {"hysteresis": 0.2, "smoothing_window": 2, "min_alive": 2}])
@pytest.mark.parametrize("source", ["scripted", "silent", "tallies", "labels"])
def test_pictures__follow_every_rule(options, source, tmp_path):
    sources = {"scripted": scripted, "silent": silent}
    ds = sources[source]() if source in sources else mortality.read_tallies(tree(tmp_path))
    if source == "labels":
        ds = ds[["score", "label", "label_category"]]
    rule = plot.LifeRule(**options)
    out = plot.run_pictures({"concepts" if source in sources else "tallies": ds}, rule=rule)
    given = out.concepts or out.tallies
    scores = neurolens.iou(ds) if source in sources else ds
    wanted = mortality.concept_events(scores, **rule.options)
    pd.testing.assert_frame_equal(given.events, wanted, check_dtype=len(wanted) > 0)
    assert len(given.moves) == (given.events["end"] == "death").sum()
    for picture in out.pictures:
        picture.figure.draw_without_rendering()
    assert str(rule) in next(p.caption for p in out.pictures if p.name.endswith("concept_lifelines"))
