"""Pictures of attributions: artists hold the right numbers, scales are shared, and what is absent is left out."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from attribution_cube_cases import SIDE, attributions_cube
from matplotlib.collections import PathCollection

from neurolens import plot
from neurolens.attribution import compare, control, decompose, per_class, split_controls
from neurolens.attribution.reading import score_of
from neurolens.data.shape_pictures import picture
from neurolens.errors import DataError, MissingMeasurementError, SchemaError
from neurolens.plot.attribution_pictures import panel_samples, remarkable, strongest

FILTERED = "stage1/without k3/0"


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def cube():
    return attributions_cube(epochs=(0, 5, 9), samples=24, classes=4)


@pytest.fixture(scope="module")
def numbers(cube):
    return plot.attribution_numbers(cube, resamples=200)


@pytest.fixture(scope="module")
def drops(cube):
    return score_of(cube.isel(epoch=-1), "drop")


@pytest.fixture(scope="module")
def compared(drops):
    some = drops.isel(map=np.flatnonzero(drops["kind"] == "without"))
    return compare(some, drops.sel(map="whole", drop=True), classes="label", bootstrap=200, flips=200)


@pytest.fixture(scope="module")
def image():
    return picture(3, seed=0, size=32).pixels[8 : 8 + SIDE, 8 : 8 + SIDE]


@pytest.fixture
def shown(image):
    return plot.ShownImages(lambda ids: [image for _ in ids], (0.5, 0.25, 0.0))


def dots(ax):
    return next(c for c in ax.collections if isinstance(c, PathCollection))


def test_effect_forest__has_a_dot_per_set_on_one_scale_for_all_methods(compared):
    axes = plot.effect_forest(compared)
    assert [ax.get_title(loc="left") for ax in axes] == ["Integrated Gradients", "Saliency"]
    assert axes[0].get_xlim() == axes[1].get_xlim()
    for i, ax in enumerate(axes):
        found = dots(ax).get_offsets()
        np.testing.assert_allclose(found[:, 0], compared["difference"].isel(attribution=i))
        assert np.all(np.diff(found[:, 1]) > 0)
        sure = compared["class_p_max_t"].isel(attribution=i).to_numpy() < 0.05
        white = (dots(ax).get_facecolors()[:, :3] == 1).all(axis=1)
        np.testing.assert_array_equal(~white, sure)
    names = [label.get_text() for label in axes[0].get_yticklabels()]
    assert {"stage1", "stage2"} <= set(names)
    assert names.count("without k3/0") == 2


def test_effect_forest__fills_what_stays_below_the_threshold_after_correction(compared):
    sure = compared.assign(class_p_max_t=xr.where(compared["map"] == FILTERED, 0.01, 0.9).broadcast_like(compared["n"]))
    faces = dots(plot.effect_forest(sure)[0]).get_facecolors()[:, :3]
    assert np.flatnonzero((faces != 1).any(axis=1)).tolist() == [compared["map"].values.tolist().index(FILTERED)]


def test_effect_forest__bands_are_the_range_of_controls(compared, drops):
    _, draws = split_controls(drops - drops.sel(map="whole", drop=True))
    draws = draws.mean("sample")
    axes = plot.effect_forest(compared, draws=draws)
    for i, ax in enumerate(axes):
        (band,) = ax.patches
        values = draws.isel(map=0, attribution=i)
        np.testing.assert_allclose([band.get_x(), band.get_width()], [values.min(), values.max() - values.min()])
    assert not plot.effect_forest(compared)[0].patches


def test_effect_forest__needs_what_compare_returns(compared):
    with pytest.raises(SchemaError, match="'low' is drawn; pass what compare returns"):
        plot.effect_forest(compared.drop_vars("low"))
    with pytest.raises(SchemaError, match=r"found dims \['epoch'\]"):
        plot.effect_forest(compared.expand_dims("epoch"))


def test_control_strip__sets_each_set_against_its_draws(drops):
    observed, draws = (array.mean("sample") for array in split_controls(drops - drops.sel(map="whole", drop=True)))
    p = control(observed, draws)["p"]
    axes = plot.control_strip(observed, draws, p=p)
    for i, ax in enumerate(axes):
        random, own = (c.get_offsets()[:, 0] for c in ax.collections if isinstance(c, PathCollection))
        np.testing.assert_allclose(random, draws.isel(map=0, attribution=i))
        np.testing.assert_allclose(own, observed.isel(attribution=i))
        assert f"p = {float(p.isel(map=0, attribution=i)):.3g}, 20 sets" in [text.get_text() for text in ax.texts]


def test_class_improvement__is_sorted_and_its_mean_is_computed(drops):
    table = per_class(drops.sel(map=FILTERED), drops.sel(map="whole", drop=True))
    ax = plot.class_improvement(table)
    heights = [bar.get_height() for bar in ax.patches]
    mean = table["difference_mean"].mean("attribution").to_numpy()
    np.testing.assert_allclose(heights, np.sort(mean)[::-1])
    dashed = next(line for line in ax.lines if line.get_linestyle() == "--")
    np.testing.assert_allclose(dashed.get_ydata(), mean.mean())
    nothing = table.assign(difference_mean=table["difference_mean"] * np.nan)
    assert "no class has scores" in plot.class_improvement(nothing).texts[0].get_text()


def test_class_improvement__leaves_names_out_where_there_are_hundreds():
    table = xr.Dataset({"difference_mean": ("class", np.linspace(-1, 1, 300))}, {"class": np.arange(300)})
    ax = plot.class_improvement(table)
    assert len(ax.patches) == 300
    assert len(ax.get_xticks()) < 40


def test_effects_over_checkpoints__follow_each_set(cube):
    drops = score_of(cube, "drop")
    names = [f"stage1/without k3/{i}" for i in range(3)]
    found = compare(drops.sel(map=names), drops.sel(map="whole", drop=True), bootstrap=100, flips=0)
    axes = plot.effects_over_checkpoints(found)
    lines = [line for line in axes[1].lines if len(line.get_xdata()) == 3]
    assert [line.get_xdata().tolist() for line in lines] == [[0, 5, 9]] * 3
    for line, name in zip(lines, names):
        np.testing.assert_allclose(line.get_ydata(), found["difference"].sel(map=name).isel(attribution=1))
    assert axes[0].get_ylim() == axes[1].get_ylim()


def test_perturbation_lines__are_means_over_images(cube):
    curves = cube.isel(epoch=0, map=[0, 1, 2])[["deletion", "insertion"]].load()
    axes = plot.perturbation_lines(curves)
    assert [ax.get_title(loc="left") for ax in axes[:2]] == [
        "Integrated Gradients: deletion",
        "Integrated Gradients: insertion",
    ]
    mean = curves["deletion"].isel(map=1, attribution=0).mean("sample")
    np.testing.assert_allclose(axes[0].lines[1].get_ydata(), mean, rtol=1e-6)
    area = float(mean.astype(float).integrate("share"))
    assert axes[0].get_legend().get_texts()[1].get_text().startswith(f"{area:.3f}")
    empty = plot.perturbation_lines(curves * np.nan)
    assert "no image has curves" in empty[0].texts[0].get_text()
    with pytest.raises(SchemaError, match="'deletion' or 'insertion' is drawn"):
        plot.perturbation_lines(cube[["mass"]])


def test_completeness_shares__stack_to_all_of_the_change():
    shares = xr.DataArray(
        [[0.7, 0.4, -0.1], [0.2, 0.5, 0.3], [np.nan] * 3], dims=("sample", "map"), coords={"map": ["a", "b", "c"]}
    )
    ax = plot.completeness_shares(shares)
    bars = [[bar.get_height() for bar in container] for container in ax.containers]
    np.testing.assert_allclose(bars, [[0.7, 0.2], [0.4, 0.5], [-0.1, 0.3]])
    bottoms = [[bar.get_y() for bar in container] for container in ax.containers]
    np.testing.assert_allclose(bottoms, [[0, 0], [0.7, 0.2], [0, 0.7]])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 1)
    assert "no image" in plot.completeness_shares(shares * np.nan).texts[0].get_text()


def test_gap_histogram__counts_all_images_and_says_what_is_beyond():
    gap = xr.DataArray([0.01] * 60 + [5.0], dims="sample")
    ax = plot.gap_histogram(gap, xr.ones_like(gap))
    assert sum(bar.get_height() for bar in ax.patches) == 61
    assert "1 beyond" in ax.get_xlabel()
    assert "median size 1 %" in ax.get_xlabel()
    assert "no image" in plot.gap_histogram(gap, gap * 0).texts[0].get_text()


def test_cluster_shares__and_cosines_are_those_of_decompose(cube):
    last = cube.isel(epoch=-1)
    own = last.isel(
        map=np.flatnonzero((last["kind"] == "only") & (last["cut"] == "stage1") & (last["clustering"] == "k3"))
    )
    made = decompose(own).isel(attribution=0)
    ax = plot.cluster_shares(made["norm_share"], made["completeness_share"])
    heights = [[bar.get_height() for bar in container] for container in ax.containers]
    np.testing.assert_allclose(heights[0], made["norm_share"].mean("sample"))
    np.testing.assert_allclose(heights[1], made["completeness_share"].median("sample"))
    assert [label.get_text() for label in ax.get_xticklabels()] == [f"cluster {i}" for i in range(3)]
    cosine = made["cosine"].mean("sample").rename(mate="other")
    drawn = plot.cosine_heatmap(cosine)
    np.testing.assert_allclose(np.asarray(drawn.images[0].get_array()), cosine.transpose("map", "other"))
    assert drawn.images[0].get_clim() == (-1, 1)


def test_attribution_numbers__are_those_of_the_reductions(cube, numbers, drops):
    assert numbers.focus == FILTERED  # the one with controls
    assert numbers.clustering == ("stage1", "k3")
    assert numbers.where == "epoch 9"
    assert numbers.top1 == float((cube["label_rank"].isel(epoch=-1) == 0).mean())
    found = compare(
        drops.isel(map=np.flatnonzero(drops["kind"] == "without")),
        drops.sel(map="whole", drop=True),
        classes="label",
        bootstrap=200,
        flips=200,
    )
    xr.testing.assert_allclose(numbers.effects["without"], found)
    assert numbers.draws.sizes == {"map": 1, "attribution": 2, "draw": 20}
    assert numbers.over.sizes["epoch"] == 3
    assert numbers.classes["class"].values.tolist() == [f"class{i}" for i in range(4)]
    np.testing.assert_allclose(numbers.shares.sum("map") * numbers.change, numbers.change + numbers.gap, rtol=1e-4)
    np.testing.assert_allclose(np.diagonal(numbers.cosine.isel(attribution=0)), 1)
    assert numbers.notes == ()


def test_attribution_numbers__take_the_last_checkpoint_and_the_images_that_were_measured(cube):
    ds = cube.copy()
    ds["mass"] = ds["mass"].where((ds["epoch"] < 9) & (ds["sample"] != ds["sample"][0]))
    given = plot.attribution_numbers(ds, resamples=50)
    assert given.where == "epoch 5"
    assert given.last.sizes["sample"] == 23
    assert "2 of 3 checkpoints" in given.notes[0]
    with pytest.raises(MissingMeasurementError, match="no checkpoint has attributions yet"):
        plot.attribution_numbers(ds.assign({name: ds[name] * np.nan for name in ("mass", "log_prob")}))
    with pytest.raises(MissingMeasurementError, match="neither maps nor answers"):
        plot.attribution_numbers(ds[["target"]])
    with pytest.raises(SchemaError, match="there is no set of units 'stage3"):
        plot.attribution_numbers(cube, filtered="stage3/without k3/0")


def test_attribution_pictures__are_all_there(cube, numbers, shown):
    drawn = plot.attribution_pictures(cube, given=numbers, shown=shown, panels=3)
    names = [one.name for one in drawn]
    assert names == [
        "attribution_grid",
        "attribution_grid_only",
        "attribution_controls",
        "attribution_classes",
        "attribution_training",
        "attribution_curves",
        "attribution_completeness",
        "attribution_decomposition",
        *(f"attribution_{kind}_{at}" for at in (0, 11, 23) for kind in ("panels", "clusters")),
    ]
    assert all(one.alt and one.caption and one.title for one in drawn)
    heads = {one.name: one.figure.get_suptitle() for one in drawn}
    assert heads["attribution_classes"] == f"{numbers.focus}, {numbers.where}"
    for name in ("curves", "completeness", "clusters_0"):  # a file has no caption
        assert heads[f"attribution_{name}"] == f"{'/'.join(numbers.clustering)}, {numbers.where}"
    assert heads["attribution_decomposition"].startswith("/".join(numbers.clustering))
    assert heads["attribution_training"] == "/".join(numbers.clustering)
    assert any("two-sided p = " in text.get_text() for ax in drawn[2].figure.axes for text in ax.texts)
    sure, cells = remarkable(numbers.effects["without"])
    assert f"{sure} of {cells} differences" in drawn[0].caption
    name, _, difference = strongest(numbers.effects["without"])
    assert f"{name}, " in drawn[0].caption
    assert f"{difference:+.3f}" in drawn[0].caption
    assert abs(difference) == float(abs(numbers.effects["without"]["difference"]).max())


def test_attribution_pictures__leave_out_what_was_not_measured(cube, shown):
    answers = ["target", "predicted", "scored", "label_rank", "output", "baseline_output", "logit", "log_prob"]
    bare = plot.attribution_numbers(cube[answers], resamples=50)
    assert plot.attribution_pictures(cube[answers], given=bare, shown=shown) == []
    assert "faithfulness was not measured" in bare.notes[0]
    one = cube.isel(epoch=[-1]).drop_vars(
        ["deletion", "insertion", "reduced", "reduced_mass", "reduced_scale", "full_map"]
    )
    names = [
        p.name for p in plot.attribution_pictures(one, given=plot.attribution_numbers(one, resamples=50), shown=shown)
    ]
    assert names == [
        "attribution_grid",
        "attribution_grid_only",
        "attribution_controls",
        "attribution_classes",
        "attribution_completeness",
        "attribution_decomposition",
    ]
    saliency = cube.isel(epoch=[-1], map=np.flatnonzero(cube["kind"] != "control")).isel(attribution=[1])
    given = plot.attribution_numbers(saliency, resamples=50)
    names = [p.name for p in plot.attribution_pictures(saliency, given=given)]
    assert "attribution_completeness" not in names
    assert "attribution_controls" not in names
    assert "attribution_decomposition" in names


def test_panel_samples__are_evenly_spaced_among_those_that_were_kept(cube, numbers):
    assert panel_samples(numbers, 4) == np.linspace(0, 23, 4, dtype=int).tolist()
    assert panel_samples(numbers, 100) == list(range(24))
    whole = plot.attribution_numbers(cube.drop_vars(["reduced", "reduced_mass", "reduced_scale"]), resamples=50)
    assert panel_samples(whole, 9) == [0, 6, 12, 18]


def test_run_pictures__note_images_that_are_gone(cube):
    def gone():
        raise DataError("the images are gone; put them back")

    drawn = plot.run_pictures({"attributions": cube.isel(epoch=[-1])}, shown=gone)
    assert drawn.attributions.focus == FILTERED
    assert any("There are no panels of attributions: the images are gone" in note for note in drawn.notes)
    assert drawn.pictures[0].name == "attribution_grid"


def test_attribution_numbers__and_panels_leave_out_methods_that_know_the_whole_only(cube, image, shown):
    first = cube.isel(attribution=0, drop=True).where(cube["kind"] == "whole")
    both = cube.reindex({"attribution": ["integrated_gradients", "saliency", "captum.DeepLift"]})
    both = both.assign({name: both[name].fillna(first[name]) for name in both if "attribution" in both[name].dims})
    given = plot.attribution_numbers(both, resamples=50)
    for found in (given.effects["without"], given.draws, given.classes, given.over):
        assert found["attribution"].values.tolist() == ["integrated_gradients", "saliency"]
    axes = plot.attribution_panels(given.last.isel(sample=0), image, shown, filtered=FILTERED)
    assert len(axes) == 14
    assert len(plot.attribution_pictures(both, given=given, shown=shown)) == 12


def _where(ds, kept):
    return ds.assign({name: ds[name].where(kept) for name in ds if "map" in ds[name].dims})


@pytest.mark.parametrize(
    "cut",
    [
        lambda ds: _where(ds, ds["sample"] == ds["sample"][0]),
        lambda ds: ds.isel(sample=[0]),
        lambda ds: ds.isel(map=[0]),
        lambda ds: ds.assign(baseline_output=ds["output"]),
        lambda ds: ds.assign({name: ds[name] * 0 for name in ds if "map" in ds[name].dims}),
        lambda ds: ds.assign(
            {name: ds[name].where(ds["map"] != "stage1/k3/0", 0) for name in ("norm", "total", "dot")}
        ),
    ],
    ids=["maps of one image", "one image", "the whole only", "nothing changes", "zero maps", "a zero cluster"],
)
def test_attribution_pictures__of_what_is_degenerate_are_drawn_or_left_out(cube, shown, cut):
    ds = cut(cube.isel(epoch=[0, 2], sample=slice(0, 8)))
    given = plot.attribution_numbers(ds, resamples=20)
    drawn = plot.attribution_pictures(ds, given=given, shown=shown)
    assert "attribution_curves" in [one.name for one in drawn]
    for one in drawn:
        one.figure.draw_without_rendering()
