"""Pictures of maps over images: one scale, what was put in, clusters that add up, and what numbers stand below."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from attribution_cube_cases import SIDE, attributions_cube

from neurolens import plot
from neurolens.data.shape_pictures import picture
from neurolens.errors import MissingMeasurementError, SchemaError
from neurolens.plot.attribution_images import _away, _edges

FILTERED = "stage1/without k3/0"


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def cube():
    return attributions_cube(epochs=(9,), samples=7, classes=4)


@pytest.fixture(scope="module")
def image():
    return picture(3, seed=0, size=32).pixels[8 : 8 + SIDE, 8 : 8 + SIDE]


@pytest.fixture
def shown(image):
    return plot.ShownImages(lambda ids: [image for _ in ids], (0.5, 0.25, 0.0))


def texts(axes):
    return " ".join(ax.get_xlabel() for ax in axes)


def test_attribution_panels__have_one_scale_for_both_maps_of_a_method(cube, image, shown):
    one = cube.isel(epoch=-1, sample=0)
    axes = plot.attribution_panels(one, image, shown, filtered=FILTERED)
    assert len(axes) == 14
    figure = axes[0].figure
    bars = [ax for ax in figure.axes if ax not in axes]
    assert len(bars) == 2
    weak = one.assign(full_map=one["full_map"] * xr.where(one["map"] == FILTERED, 0.01, 1.0))
    faint = plot.attribution_panels(weak, image, shown, filtered=FILTERED)[2].images[0].get_array()
    whole, strong = (axes[i].images[0].get_array() for i in (1, 2))
    ground = strong.max(axis=2)
    assert faint.mean() > strong.mean()  # a hundredth of the map is nearly white in the scale of the whole
    assert ground.shape == (SIDE, SIDE)
    assert whole.shape == (SIDE, SIDE, 3)


def test_attribution_panels__break_names_that_are_wider_than_a_panel(cube, image, shown):
    one = cube.isel(epoch=-1, sample=0)
    called = {"stage1/without k3/0": "features.denseblock1/without k3/0"}
    long = one.assign_coords(map=[called.get(str(name), str(name)) for name in one["map"].values])
    axes = plot.attribution_panels(long, image, shown, filtered="features.denseblock1/without k3/0")
    assert axes[2].get_title() == "map of\nfeatures.denseblock1/\nwithout k3/0"
    assert all(len(line) <= 25 for ax in axes for line in ax.get_title().splitlines())


def test_attribution_panels__say_probability_drop_and_sparsity(cube, image, shown):
    one = cube.isel(epoch=-1, sample=0)
    axes = plot.attribution_panels(one, image, shown, filtered=FILTERED)
    at = one.sel({"map": FILTERED, "attribution": "saliency"})
    left = float(np.exp(at["masked_log_prob"].sel(level="patch")))
    assert axes[13].get_xlabel() == f"p = {left:.3f},\ndrop {float(np.exp(at['log_prob'])) - left:+.3f}"
    assert f"sparsity {float(at['pixel_sparsity']):.2f} by pixel" in axes[9].get_xlabel()
    assert axes[0].get_xlabel() == f"p = {float(np.exp(one['log_prob'])):.3f}"


@pytest.mark.parametrize(("fill", "colour"), [("zero", (0.5, 0.25, 0.0)), ("mean", None)])
def test_attribution_panels__show_what_was_put_in(cube, image, fill, colour):
    one = cube.isel(epoch=-1, sample=0)
    given = plot.ShownImages(lambda ids: [], (0.5, 0.25, 0.0), fill, 0.25)
    axes = plot.attribution_panels(one, image, given, filtered=FILTERED)
    drawn = axes[3].images[0].get_array()
    heat = (
        np.abs(one["full_map"].sel({"map": "whole", "attribution": "integrated_gradients"})).sum("channel").to_numpy()
    )
    away = heat >= np.sort(heat.ravel())[-16]
    wanted = np.array(colour) if colour else image.reshape(-1, 3).mean(axis=0) / 255
    np.testing.assert_allclose(drawn[away], np.broadcast_to(wanted, (16, 3)), atol=1e-6)
    np.testing.assert_allclose(drawn[~away], image[~away] / 255)


def test_attribution_panels__hatch_what_cannot_be_shown(cube, image):
    one = cube.isel(epoch=-1, sample=0)
    axes = plot.attribution_panels(one, image, plot.ShownImages(lambda ids: [], fill="road"), filtered=FILTERED)
    assert any(getattr(c, "hatches", None) == ["//////"] for c in axes[3].collections)


def test_attribution_panels__take_maps_kept_as_float16_where_there_are_no_others(cube, image, shown):
    one = cube.isel(epoch=-1, sample=1)  # its whole map was not kept
    assert not one["full_map"].notnull().any()
    assert len(plot.attribution_panels(one, image, shown, filtered=FILTERED)) == 14
    with pytest.raises(MissingMeasurementError, match=r"attributions\.reduced = true"):
        plot.attribution_panels(one.drop_vars("reduced_mass"), image, shown, filtered=FILTERED)


def test_attribution_panels__name_the_nearest_set_and_refuse_other_sizes(cube, image, shown):
    one = cube.isel(epoch=-1, sample=0)
    with pytest.raises(SchemaError, match="there is no map 'stage1/without k3/9'; did you mean"):
        plot.attribution_panels(one, image, shown, filtered="stage1/without k3/9")
    with pytest.raises(SchemaError, match="give it as the network is shown it"):
        plot.attribution_panels(one, np.zeros((4, 4, 3), np.uint8), shown, filtered=FILTERED)


def test_away__takes_the_patches_that_were_measured(cube):
    one = cube.isel(epoch=-1, sample=0, map=0, attribution=0)
    mask = _away(one, np.zeros((SIDE, SIDE)), "patch", 0.1)
    table = one["patch"].to_numpy()
    chosen = np.zeros(16, dtype=bool)
    chosen[np.argsort(-table.ravel(), kind="stable")[:2]] = True
    np.testing.assert_array_equal(mask, np.kron(chosen.reshape(4, 4), np.ones((2, 2))).astype(bool))
    assert _away(one * np.nan, np.zeros((SIDE, SIDE)), "patch", 0.1) is None
    assert len(_edges(np.eye(1, dtype=bool))) == 4


def test_cluster_overlays__add_up_on_one_scale(cube, image):
    one = cube.isel(epoch=-1, sample=0)
    axes = plot.cluster_overlays(one, image, clustering=("stage1", "k3"))
    assert [ax.get_title(loc="center") for ax in axes][:4] == [
        "image",
        "all units",
        "sum of the clusters",
        "sum − all units",
    ]
    assert axes[4].get_title(loc="center") == "cluster 0: 2 units"
    whole, total, rest = (np.asarray(ax.images[0].get_array()) for ax in axes[1:4])
    np.testing.assert_allclose(whole, total, atol=0.02)
    np.testing.assert_allclose(np.ptp(rest / rest.max(axis=2, keepdims=True), axis=2), 0, atol=0.02)  # grey: nothing
    shares = one["total"].isel(attribution=0).sel(map=[f"stage1/k3/{i}" for i in range(3)])
    change = float(one["output"] - one["baseline_output"])
    assert texts(axes[4:]) == " ".join(f"{float(s) / change:+.0%} of the change" for s in shares)


def test_cluster_overlays__name_what_there_is(cube, image):
    one = cube.isel(epoch=-1, sample=0)
    with pytest.raises(SchemaError, match="no clusters of 'stage1/k4' alone"):
        plot.cluster_overlays(one, image, clustering=("stage1", "k4"))
    with pytest.raises(SchemaError, match="no method 'integrated'"):
        plot.cluster_overlays(one, image, clustering=("stage1", "k3"), method="integrated")
