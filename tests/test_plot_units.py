"""Pictures of units: what is drawn, from cubes and logs alike, that nothing is averaged over models or thresholds."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from dormancy_cases import drawn
from matplotlib.collections import FillBetweenPolyCollection

import neurolens
from neurolens import plot
from neurolens.errors import SchemaError
from neurolens.plot.style import short_names
from neurolens.plot.units import most_variable
from neurolens.units.seed_log import export_dormancy, read_log


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def cube(epochs=5, layers=3, units=8, **changes):
    return drawn(
        epochs, layers * units, layers=[f"net.{i}.relu" for i in range(layers) for _ in range(units)], **changes
    )


def labels_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def lines_of(ax):
    return {line.get_label(): line for line in ax.lines}


@pytest.fixture
def log(tmp_path):
    """Two models at two thresholds each, one of them with layers of its own."""
    for i, (model, layers) in enumerate((("small", 2), ("large", 3))):
        for tau in (0.1, 0.5):
            units = cube(4, layers, seed=i).rename(epoch="step")
            export_dormancy(units, tmp_path / "log.csv", model=model, tau=tau)
    return read_log(tmp_path / "log.csv")[0]


def test_dormancy_curves__draw_mean_band_and_pooled_share():
    units = cube()
    summary = neurolens.dormancy_summary(units, "redo", tau=0.1)
    ax = plot.dormancy_curves(summary)
    mean, pooled = ax.lines
    np.testing.assert_allclose(mean.get_xydata(), np.stack([units["epoch"], summary["mean_fraction"]], 1))
    np.testing.assert_allclose(pooled.get_ydata(), summary["pooled_fraction"])
    (band,) = (c for c in ax.collections if isinstance(c, FillBetweenPolyCollection))
    edges = band.get_paths()[0].vertices[:, 1]
    assert {round(float(v), 9) for v in summary["max_fraction"]} <= {round(float(v), 9) for v in edges}
    assert labels_of(ax) == ["mean of the layers", "all units pooled", "least to most dormant layer"]
    assert ax.get_title(loc="left") == "Dormant units: redo at 0.1"
    assert ax.get_xlabel() == "epoch"


def test_dormancy_curves__count_a_units_cube_by_redo_and_draw_its_gaps():
    assert plot.dormancy_curves(cube()).get_title(loc="left") == "Dormant units: redo at 0.025"
    summary = neurolens.dormancy_summary(cube())
    ax = plot.dormancy_curves(summary.where(summary["epoch"] != 20))
    assert np.isnan(ax.lines[0].get_ydata()).sum() == 1


def test_dormancy_curves__keep_definitions_apart():
    names = ["redo", "dead", "lop"]
    summary = neurolens.dormancy_summary(cube(), names)
    ax = plot.dormancy_curves(summary)
    assert labels_of(ax)[:3] == ["redo at 0.025", "dead", "lop at 0.01"]
    for i, label in enumerate(labels_of(ax)[:3]):
        np.testing.assert_allclose(lines_of(ax)[label].get_ydata(), summary["mean_fraction"].isel(definition=i))
    colours = {lines_of(ax)[label].get_color() for label in labels_of(ax)[:3]}
    assert len(colours) == 3


def test_dormancy_curves__keep_models_and_thresholds_of_a_log_apart(log):
    ax = plot.dormancy_curves(log)
    names = ["large at 0.1", "large at 0.5", "small at 0.1", "small at 0.5"]
    assert labels_of(ax)[:4] == names
    for name in names:
        one = log.isel(log=log["log"].values.tolist().index(name))
        share = (one["num_dormant"] / one["num_neurons"]).mean("layer")
        np.testing.assert_allclose(lines_of(ax)[name].get_ydata(), share)


@pytest.mark.parametrize(("epochs", "layers"), [(1, 1), (1, 3), (2, 1), (60, 2)])
def test_dormancy_curves__manage_few_and_many(epochs, layers):
    ax = plot.dormancy_curves(cube(epochs, layers))
    assert len(ax.lines) == (1 if layers == 1 else 2)
    assert ax.get_ylim()[0] == 0
    plt.gcf().draw_without_rendering()


def test_dormancy_curves__lay_steps_that_grow_out_on_a_logarithmic_axis():
    steps = [0, 1, 2, 4, 512, 1000, 143_000]
    ax = plot.dormancy_curves(cube(7).rename(epoch="step").assign_coords(step=steps))
    assert ax.get_xscale() == "symlog"
    even = cube(3).rename(epoch="step").assign_coords(step=[1000, 7000, 14_000])
    assert plot.dormancy_curves(even).get_xscale() == "linear"


def test_dormancy_curves__say_what_they_need():
    with pytest.raises(SchemaError, match="dormancy_summary"):
        plot.dormancy_curves(cube()["n"])


@pytest.mark.parametrize("source", ["units", "log"])
def test_dormancy_heatmap__has_layers_in_natural_order_from_the_top(source, tmp_path):
    units = cube(3, 12).rename(epoch="step")
    data = neurolens.dormancy_summary(units, "redo", tau=0.1)
    if source == "log":
        data = read_log(export_dormancy(units, tmp_path / "log.csv", model="m", compat="seed"))[0]
    ax = plot.dormancy_heatmap(data)
    wanted = neurolens.dormancy_summary(units, "redo", tau=0.1)["fraction"].transpose("layer", "step")
    np.testing.assert_allclose(ax.images[0].get_array(), wanted)
    named = [text.get_text() for text in ax.get_yticklabels()]
    assert named[0] == "0"
    assert named == sorted(named, key=int)
    assert "net.*.relu" in ax.get_ylabel()
    assert ax.yaxis_inverted()


@pytest.mark.parametrize(("epochs", "layers", "annotated"), [(1, 1, 1), (4, 3, 12), (154, 3, 0), (2, 120, 0)])
def test_dormancy_heatmap__annotates_few_cells_and_names_as_many_as_fit(epochs, layers, annotated):
    ax = plot.dormancy_heatmap(neurolens.dormancy_summary(cube(epochs, layers), tau=0.1))
    assert len(ax.texts) == annotated
    figure = ax.figure
    figure.draw_without_rendering()
    for axis in (ax.xaxis, ax.yaxis):
        boxes = [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
        assert boxes
        assert not any(one.overlaps(two) for one, two in pairwise(boxes))
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
        assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_dormancy_heatmap__leaves_out_what_was_not_measured():
    summary = neurolens.dormancy_summary(cube(4, 3)).compute()
    summary["fraction"] = summary["fraction"].where(summary["epoch"] != 10)
    ax = plot.dormancy_heatmap(summary)
    assert np.ma.getmaskarray(ax.images[0].get_array())[:, 1].all()
    assert len(ax.texts) == 9


def test_dormancy_heatmap__never_averages_over_models(log):
    with pytest.raises(SchemaError, match="select one"):
        plot.dormancy_heatmap(log)
    ax = plot.dormancy_heatmap(log.sel(log=["small at 0.5"]))
    assert ax.images[0].get_array().shape == (2, 4)
    assert ax.get_title(loc="left") == "Dormant units by layer: small at 0.5"


def test_dormancy_evolution__draws_the_layers_that_vary_most():
    share = np.array([[0, 0, 0], [0, 0.5, 1], [0.4, 0.5, 0.6], [np.nan] * 3, [0.2, np.nan, 0.3]])
    assert most_variable(share)[:3] == [1, 2, 4]
    assert 3 not in most_variable(share)
    summary = neurolens.dormancy_summary(cube(6, 9), tau=0.1).compute()
    ax = plot.dormancy_evolution(summary, count=3)
    chosen = sorted(most_variable(summary["fraction"].transpose("layer", "epoch").values)[:3])
    assert labels_of(ax) == [*map(str, chosen), "6 others"]
    for i in chosen:
        np.testing.assert_allclose(lines_of(ax)[str(i)].get_ydata(), summary["fraction"].isel(layer=i))


@pytest.mark.parametrize(("epochs", "layers"), [(1, 1), (1, 4), (100, 30)])
def test_dormancy_evolution__manages_few_and_many(epochs, layers):
    ax = plot.dormancy_evolution(neurolens.dormancy_summary(cube(epochs, layers), tau=0.5))
    ax.figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    assert box.x1 <= ax.figure.bbox.x1


def changes_of(masks):
    masks = np.asarray(masks, bool)
    mask = xr.DataArray(masks, dims=("epoch", "unit"), coords={"epoch": np.arange(len(masks)) * 10})
    return neurolens.transitions(mask.assign_coords(layer=("unit", ["a"] * masks.shape[1])))


def test_transition_ribbons__lead_from_where_units_are_to_where_they_are_next():
    changes = changes_of([[1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0]])
    ax = plot.transition_ribbons(changes)
    alive, stay, revived, new = ax.collections
    heights = [
        [np.ptp(path.vertices[np.isclose(path.vertices[:, 0], path.vertices[:, 0].min()), 1]) for path in c.get_paths()]
        for c in (stay, revived, new, alive)
    ]
    assert heights == [[2, 1], [1, 2], [1], [2, 3]]
    assert ax.get_ylabel() == "units, of 6"
    bars = [bar.get_height() for bar in ax.containers[1]]
    assert bars == [3, 3, 1]


def test_transition_ribbons__become_areas_where_there_are_many():
    masks = np.random.default_rng(0).random((60, 30)) < 0.3
    ax = plot.transition_ribbons(changes_of(masks))
    assert "revived (below 0)" in labels_of(ax)
    assert ax.get_ylim()[0] < 0
    assert not ax.containers


@pytest.mark.parametrize(
    ("masks", "says"), [([[1, 0]], "one checkpoint"), ([[0, 0], [0, 0]], "none of 2 units is dormant")]
)
def test_transition_ribbons__say_why_there_is_nothing_to_see(masks, says):
    assert says in plot.transition_ribbons(changes_of(masks)).texts[0].get_text()


def test_transition_ribbons__need_counts_of_one_mask():
    with pytest.raises(SchemaError, match="transitions"):
        plot.transition_ribbons(cube())
    with pytest.raises(SchemaError, match="select one"):
        plot.transition_ribbons(neurolens.transitions(neurolens.dormant(cube(), tau=[0.1, 0.5])))


def test_threshold_curves__draw_the_first_and_last_checkpoint_among_others():
    taus = np.geomspace(0.01, 1, 20)
    summary = neurolens.dormancy_summary(cube(9), "redo", tau=taus[::-1])
    ax = plot.threshold_curves(summary, count=3)
    assert labels_of(ax) == ["epoch 0", "epoch 40", "epoch 80"]
    line = lines_of(ax)["epoch 80"]
    np.testing.assert_allclose(line.get_xdata(), taus)
    np.testing.assert_allclose(line.get_ydata(), summary["pooled_fraction"].sel(epoch=80)[::-1])
    assert (np.diff(line.get_ydata()) >= 0).all()
    assert ax.get_xscale() == "log"


def test_threshold_curves__need_thresholds():
    with pytest.raises(SchemaError, match="tau="):
        plot.threshold_curves(neurolens.dormancy_summary(cube()))
    both = neurolens.dormancy_summary(cube(), ["redo", "lop"], tau=[0.1, 0.5])
    with pytest.raises(SchemaError, match="select one"):
        plot.threshold_curves(both)


def activations(epochs=3, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(epochs, 40, 10)).astype("f4")
    values[0, :, 5:] = 0
    layers = np.repeat(["first", "second"], 5)
    coords = {"epoch": np.arange(epochs), "layer": ("unit", layers), "unit": np.arange(10)}
    return xr.DataArray(values, dims=("epoch", "sample", "unit"), coords=coords, name="activation")


def test_singular_values__are_drawn_on_logarithmic_axes_without_zeros():
    found = neurolens.spectra(activations())
    ax = plot.singular_values(found, layer="second")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert labels_of(ax) == ["epoch 1", "epoch 2"]
    np.testing.assert_allclose(lines_of(ax)["epoch 2"].get_ydata(), found["singular_value"][2, 1])
    assert plot.singular_values(found.isel(epoch=[0]), layer="second").texts[0].get_text().startswith("no singular")


def test_singular_values__of_many_checkpoints_have_a_colour_bar():
    ax = plot.singular_values(neurolens.spectra(activations(12)), layer="first")
    assert ax.get_legend() is None
    assert len(ax.lines) == 12
    assert len(ax.figure.axes) == 2


def test_singular_values__name_the_nearest_layer():
    found = neurolens.spectra(activations())
    with pytest.raises(SchemaError, match="did you mean 'first'"):
        plot.singular_values(found, layer="frist")
    with pytest.raises(SchemaError, match="2 layers; name one"):
        plot.singular_values(found)


def test_dormancy_curves__have_their_legend_beside_band_and_lines():
    ax = plot.dormancy_curves(cube(40))
    ax.figure.canvas.draw()
    assert ax.get_legend().get_window_extent().x0 > ax.get_window_extent().x1


@pytest.mark.parametrize(
    "steps",
    [[0, 1000, 143_000], [0, 1, 2, 4, 512, 1000, 143_000], [1000, 7000, 143_000], [0, 150, 9000], [5, 6, 900]],
)
def test_dormancy_curves__label_steps_far_apart_without_overlap(steps):
    units = cube(len(steps)).rename(epoch="step").assign_coords(step=steps)
    ax = plot.dormancy_curves(units)
    ax.figure.canvas.draw()
    low, high = ax.get_xlim()
    labels = [t.label1 for t in ax.xaxis.get_major_ticks() if low <= t.get_loc() <= high and t.label1.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    assert len(boxes) >= 2
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_singular_values__have_their_legend_beside_the_lines():
    ax = plot.singular_values(neurolens.spectra(activations()), layer="first")
    ax.figure.canvas.draw()
    assert ax.get_legend().get_window_extent().x0 > ax.get_window_extent().x1


def test_rank_curves__draw_every_layer():
    found = neurolens.spectra(activations())
    ax = plot.rank_curves(found, variable="stable_rank")
    assert labels_of(ax) == ["first", "second"]
    ax.figure.canvas.draw()
    assert ax.get_legend().get_window_extent().x0 > ax.get_window_extent().x1, "the legend stands beside the lines"
    np.testing.assert_allclose(lines_of(ax)["first"].get_ydata(), found["stable_rank"].sel(layer="first"))
    with pytest.raises(SchemaError, match="did you mean 'stable_rank'"):
        plot.rank_curves(found, variable="stable_rnk")


@pytest.mark.parametrize(
    ("names", "short", "pattern"),
    [
        (["layers.0.mlp:input", "layers.10.mlp:input"], ["0", "10"], "layers.*.mlp:input"),
        (["relu", "relu#1"], ["relu", "relu#1"], ""),
        (["h.0.c_fc", "h.0.act", "h.1.c_fc"], ["0.c_fc", "0.act", "1.c_fc"], "h.*"),
        (["only.one"], ["only.one"], ""),
        (["a.b", "a.b.c"], ["b", "b.c"], "a.*"),
    ],
)
def test_short_names__leave_out_what_all_share(names, short, pattern):
    assert short_names(names) == (short, pattern)


def test_unit_pictures__draw_what_there_is_and_leave_no_figure_behind():
    before = dict(plt.rcParams)
    drawn_pictures = plot.unit_pictures(cube().chunk(epoch=2))
    names = ["dormancy", "dormancy_heatmap", "dormancy_evolution", "transitions", "thresholds"]
    assert [p.name for p in drawn_pictures] == names
    assert all(p.title and p.caption and len(p.alt) > 20 for p in drawn_pictures)
    assert not plt.get_fignums()
    assert dict(plt.rcParams) == before


def test_unit_counts__leave_out_what_was_not_measured_and_say_so():
    units = cube().assign_coords(measured=("epoch", [True, True, False, True, True]))
    given = plot.unit_counts(units)
    assert "epoch 20" in given.notes[0]
    assert given.by_definition["epoch"].values.tolist() == [0, 10, 30, 40]
    assert given.by_definition["definition"].values.tolist() == ["redo", "dead", "lop", "lop_rl", "redo_centred"]
    fewer = plot.unit_counts(cube().drop_vars(["abs_dev", "n_pos"]))
    assert fewer.by_definition["definition"].values.tolist() == ["redo", "dead", "lop"]


def test_unit_counts__count_what_is_not_finite_as_alive_and_say_so():
    units = cube()
    units["abs_sum"][0, 3] = np.inf
    assert any("count as alive" in note for note in plot.unit_counts(units).notes)


def test_log_pictures__have_one_heatmap_and_evolution_per_log(log):
    found = [p.name for p in plot.log_pictures(log)]
    assert found[0] == "log_dormancy"
    assert found[1:3] == ["log_large_at_0.1_dormancy_heatmap", "log_large_at_0.1_dormancy_evolution"]
    assert len(found) == len(set(found)) == 9
    alike = log.isel(log=[0, 1]).assign_coords(log=["a b", "a_b"])
    assert len({p.name for p in plot.log_pictures(alike)}) == 5


def test_drawable_spectra__take_as_many_checkpoints_as_there_is_time_for(monkeypatch):
    cubes = activations(6).to_dataset().assign_coords(measured=("epoch", [True] * 5 + [False]))
    found, note = plot.drawable_spectra(cubes)
    assert (found["epoch"].values.tolist(), note) == ([0, 1, 2, 3, 4], "")
    monkeypatch.setattr("neurolens.plot.units_pictures.WORK", 2 * 40 * (25 + 25))
    found, note = plot.drawable_spectra(cubes)
    assert found["epoch"].values.tolist() == [0, 4]
    assert "2 of 5 checkpoints" in note
    monkeypatch.setattr("neurolens.plot.units_pictures.WORK", 1)
    found, note = plot.drawable_spectra(cubes)
    assert found is None
    assert "neurolens.spectra" in note


def test_run_pictures__draw_whatever_cubes_there_are(log):
    held = {"units": cube(), "activations": activations().to_dataset(), "dormancy": log}
    drawn_run = plot.run_pictures(held)
    names = [p.name for p in drawn_run.pictures]
    assert names[0] == "dormancy"
    assert "spectra" in names
    assert "log_dormancy" in names
    assert drawn_run.scores is None
    assert drawn_run.counts is not None
    assert drawn_run.log is not None
    assert plot.run_pictures({}).pictures == []


def test_run_pictures__tell_of_cubes_without_a_measured_row():
    nothing = cube().assign_coords(measured=("epoch", [False] * 5))
    drawn_run = plot.run_pictures({"units": nothing})
    assert drawn_run.pictures == []
    assert "There is nothing to draw of units" in drawn_run.notes[0]
