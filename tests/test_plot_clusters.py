"""Pictures of clusters: points and centroids where they should be, sets of units, tables, the page, what is refused."""

import sys

import concept_study
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from cluster_cases import blobs, features
from conftest import STUDY
from matplotlib.colors import to_hex
from typer.testing import CliRunner

from neurolens.attribution.sets import UnitSet
from neurolens.cli import app
from neurolens.clusters import cluster_stability, cluster_summary, unit_clusters, unit_embedding
from neurolens.errors import MissingExtraError, MissingMeasurementError, SchemaError
from neurolens.plot.clusters import (
    QUALITIES,
    cluster_map,
    cluster_quality,
    cluster_scatter,
    control_scatter,
    look_of,
)
from neurolens.plot.clusters_page import cluster_page
from neurolens.plot.clusters_pictures import STARTS, cluster_numbers, cluster_pictures
from neurolens.plot.style import BLUE, VERMILLION
from neurolens.report.cluster_figures import cluster_figures

SIZES = {"block.a": (12, 9, 5), "block.b": (20, 10)}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def cube():
    """Two layers of groups that lie apart, at one checkpoint, with their clusters."""
    rows = np.concatenate([blobs(sizes, seed=i)[0] for i, sizes in enumerate(SIZES.values())])
    ds = features(rows, np.repeat(list(SIZES), [sum(sizes) for sizes in SIZES.values()]).tolist())
    ds = ds.assign_coords(unit=np.arange(ds.sizes["unit"]))
    return ds.assign(unit_cluster=unit_clusters(ds, (2, 3)).astype(float))


def bare(cube):
    return cube[["rate", "mean", "variance"]]


def solid_points(collection):
    return np.stack([np.asarray(axis, float) for axis in collection._offsets3d], axis=1)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_cluster_scatter__has_every_unit_in_its_cluster_and_centroids(cube):
    ax = cluster_scatter(cube, k=3, layer="block.a")
    own = cube.isel(unit=slice(0, 26))
    values = bare(own).to_dataarray("feature").T.to_numpy()
    labels = own["unit_cluster"].sel(k=3).to_numpy()
    clouds, centroids = ax.collections[:3], ax.collections[3:]
    for cluster, (cloud, centroid) in enumerate(zip(clouds, centroids, strict=True)):
        np.testing.assert_allclose(solid_points(cloud), values[labels == cluster])
        np.testing.assert_allclose(solid_points(centroid), [values[labels == cluster].mean(axis=0)])
        assert to_hex(cloud.get_facecolor()[0]).upper() == look_of(cluster)[0]
    assert legend(ax) == ["0: 12 units", "1: 9 units", "2: 5 units"]
    assert (ax.elev, ax.azim) == (30, 120)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel()) == ("rate", "mean activation", "variance")
    assert ax.get_title(loc="left") + ax.get_title() == "block.a, k = 3"


def test_cluster_scatter__takes_clusters_from_elsewhere_and_says_one_unit(cube):
    own = cube.isel(unit=slice(0, 26))
    labels = xr.DataArray(np.arange(26) == 0, dims="unit").astype(int)
    ax = cluster_scatter(bare(own), labels)
    assert legend(ax) == ["0: 25 units", "1: 1 unit"]


def test_look_of__keeps_many_clusters_apart():
    assert len({look_of(cluster) for cluster in range(36)}) == 36


def test_cluster_map__has_units_where_the_embedding_has_them(cube):
    plane = unit_embedding(bare(cube), layers="block.b")
    clusters = cube["unit_cluster"].isel(unit=slice(26, None))
    ax = cluster_map(plane, clusters, k=2)
    labels = clusters.sel(k=2).to_numpy()
    for cluster, cloud in enumerate(ax.collections):
        np.testing.assert_allclose(cloud.get_offsets(), plane.to_numpy()[labels == cluster])
    assert ax.get_title(loc="left") == "block.b, k = 2"
    raw = unit_embedding(bare(cube), layers="block.b", scaled=False)
    assert "unscaled" in cluster_map(raw, clusters, k=2).xaxis.get_label().get_text()


def test_cluster_map__takes_one_layer_of_several(cube):
    plane = unit_embedding(bare(cube))
    ax = cluster_map(plane, cube["unit_cluster"], k=2, layer="block.b")
    assert sum(len(cloud.get_offsets()) for cloud in ax.collections) == 30


@pytest.mark.parametrize("source", ["set", "mask"])
def test_control_scatter__sets_kept_apart_from_filtered_on_both_panels(cube, source):
    kept = np.arange(30) % 3 > 0
    named = UnitSet("block.b/without k3/0 control 4", "block.b", kind="control", units=kept)
    solid, flat = (
        control_scatter(cube, named) if source == "set" else control_scatter(cube, kept.tolist(), layer="block.b")
    )
    values = bare(cube).to_dataarray("feature").T.to_numpy()[26:]
    plane = unit_embedding(bare(cube), layers="block.b").to_numpy()
    for at, rows, colour in ((0, kept, BLUE), (1, ~kept, VERMILLION)):
        np.testing.assert_allclose(solid_points(solid.collections[at]), values[rows])
        np.testing.assert_allclose(flat.collections[at].get_offsets(), plane[rows])
        assert to_hex(flat.collections[at].get_facecolor()[0]).upper() == colour
    assert legend(flat) == ["kept: 20", "filtered: 10"]
    title = solid.get_title(loc="left") + solid.get_title()
    assert title == ("without k3/0 control 4, block.b" if source == "set" else "set of units, block.b")


@pytest.mark.parametrize("name", QUALITIES)
def test_cluster_quality__writes_every_number_in_its_cell(cube, name):
    clusters = unit_clusters(cube[["rate", "mean", "variance"]], (2, 3))
    quality = cluster_summary(bare(cube), clusters) if name == "silhouette" else cluster_stability(bare(cube), clusters)
    ax = cluster_quality(quality, name=name)
    told = {tuple(text.get_position()): text.get_text() for text in ax.texts}
    table = quality[name].transpose("layer", "k").to_numpy()
    assert told == {(column, row): f"{table[row, column]:.2f}" for row in range(2) for column in range(2)}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_ylabel() == "layer: block.*"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["2", "3"]


def test_cluster_quality__leaves_cells_without_a_number_empty(cube):
    found = cluster_stability(bare(cube), unit_clusters(bare(cube), (2, 3), method="agglomerative"))
    ax = cluster_quality(found, name="stability")
    assert [text.get_text() for text in ax.texts] == ["there is nothing to tell"]


def test_cluster_page__has_units_and_diamonds_of_every_clustering(cube, tmp_path):
    figure = cluster_page(cube)
    labels = [button.label for button in figure.layout.updatemenus[0].buttons]
    assert labels == ["block.a, k = 2", "block.a, k = 3", "block.b, k = 2", "block.b, k = 3"]
    assert len(figure.data) == 2 * (2 + 3 + 2 + 3)
    for place, button in enumerate(figure.layout.updatemenus[0].buttons):
        layer, k = ["block.a", "block.b"][place // 2], [2, 3][place % 2]
        shown = [trace for trace, visible in zip(figure.data, button.args[0]["visible"]) if visible]
        diamonds = [trace for trace in shown if trace.marker.symbol == "diamond"]
        own = cube.isel(unit=np.flatnonzero(cube["layer"] == layer))
        by = own["unit_cluster"].sel(k=k)
        assert sum(len(trace.x) for trace in shown if trace not in diamonds) == own.sizes["unit"]
        for cluster, diamond in enumerate(diamonds):
            mean = own.isel(unit=np.flatnonzero(by == cluster)).mean("unit")
            np.testing.assert_allclose(
                [diamond.x[0], diamond.y[0], diamond.z[0]], [mean["rate"], mean["mean"], mean["variance"]]
            )
    assert [trace.visible for trace in figure.data[:5]] == [True] * 4 + [False]
    figure.write_html(tmp_path / "clusters.html", include_plotlyjs=True)
    assert "block.b, k = 3" in (tmp_path / "clusters.html").read_text(encoding="utf-8")


def test_cluster_page__names_the_extra_where_plotly_is_absent(cube, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(MissingExtraError, match=r"neurolens\[report\]"):
        cluster_page(cube)


def test_cluster_pictures__are_of_the_last_checkpoint_with_clusters(cube):
    series = xr.concat([cube.assign_coords(epoch=epoch) for epoch in (2, 5, 9)], "epoch")
    series["unit_cluster"] = series["unit_cluster"].where(series["epoch"] < 9)
    given = cluster_numbers(series)
    assert given.where == "epoch 5"
    assert "no clusters at epoch 9" in given.notes[0]
    drawn = cluster_pictures(series, given=given)
    assert [picture.name for picture in drawn] == ["clusters_quality", "clusters_block.a", "clusters_block.b"]
    assert f"{STARTS} other seeds" in drawn[0].caption
    assert "block.a at epoch 5" in drawn[1].caption
    assert (
        "14 of 26 units at k = 2, 12 of 26 units at k = 3" in drawn[1].caption or "units at k = 2" in drawn[1].caption
    )
    for picture in drawn:
        picture.figure.draw_without_rendering()
    assert len(drawn[1].figure.axes) == 4


def test_cluster_pictures__say_which_layers_are_left_out_and_manage_one_clustering(cube):
    many = xr.concat(
        [cube.isel(unit=slice(0, 26)).drop_vars(["layer", "unit"]).assign_coords(layer=("unit", [f"l{i}"] * 26))
         for i in range(8)], "unit").isel(k=[1])  # fmt: skip
    drawn = cluster_pictures(many)
    assert len(drawn) == 7
    assert "2 further layers are not drawn" in drawn[1].caption
    drawn[1].figure.draw_without_rendering()


def test_cluster_pictures__need_clusters(cube):
    nothing = cube.assign(unit_cluster=cube["unit_cluster"] * np.nan).expand_dims(epoch=[1])
    with pytest.raises(MissingMeasurementError, match="no clusters at epoch 1"):
        cluster_pictures(nothing)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, r"there are 2 layers, block\.a, block\.b; name one as layer="),
        ({"layer": "block.c"}, r"there is no layer 'block\.c'; did you mean"),
        ({"layer": "block.a"}, r"there are clusterings of k = 2, 3; name one as k="),
        ({"layer": "block.a", "k": 7}, r"there are no 7 clusters here, but 2, 3"),
    ],
)
def test_cluster_scatter__says_what_to_choose(cube, change, words):
    with pytest.raises(SchemaError, match=words):
        cluster_scatter(cube, **change)


def test_pictures__say_what_they_need(cube):
    with pytest.raises(SchemaError, match="found 1 checkpoints, and one is drawn"):
        cluster_scatter(cube.expand_dims(epoch=[3]), k=2, layer="block.a")
    with pytest.raises(SchemaError, match="there is no 'variance'"):
        cluster_scatter(cube.drop_vars("variance"))
    with pytest.raises(SchemaError, match=r'these Axes are flat.*projection="3d"'):
        cluster_scatter(cube, k=2, layer="block.a", ax=plt.figure().add_subplot())
    with pytest.raises(SchemaError, match=r"found a set of bool \(29,\), and bool \(30,\) was needed"):
        control_scatter(cube, np.ones(29, dtype=bool), layer="block.b")
    with pytest.raises(SchemaError, match="found clusters of shape"):
        cluster_scatter(cube, cube["unit_cluster"].isel(unit=slice(0, 5)), k=2, layer="block.a")
    with pytest.raises(SchemaError, match="name='silhouete' is unknown; did you mean 'silhouette'"):
        cluster_quality(cube, name="silhouete")
    with pytest.raises(SchemaError, match="'stability' is not here; pass what cluster_stability returns"):
        cluster_quality(cube, name="stability")


CLUSTERED = STUDY.replace("[samples]", '[clusters]\nlayers = ["conv2", "conv3"]\nk = [2, 3]\nimages = 20\n')


def test_plot_and_report__show_the_clusters_of_a_run(make_study, tmp_path):
    path = make_study(text=CLUSTERED)
    concept_study.run(path, "clusters")
    found = CliRunner().invoke(app, ["plot", str(path), "--out", str(tmp_path / "plots")])
    assert found.exit_code == 0, found.output
    written = {file.name for file in (tmp_path / "plots").iterdir()}
    assert written == {"clusters_quality.png", "clusters_conv2.png", "clusters_conv3.png", "clusters.html"}
    found = CliRunner().invoke(app, ["report", str(path), "--out", str(tmp_path / "report.html")])
    assert found.exit_code == 0, found.output
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "units in clusters" in page
    assert "up to 20 images, as many of each class; rate above 0.1" in page
    assert "Clusters of units, conv3" in page


def test_plot__does_without_the_page_where_plotly_is_absent(make_study, tmp_path, monkeypatch):
    path = make_study(text=CLUSTERED, checkpoints=1)
    concept_study.run(path, "clusters")
    monkeypatch.setitem(sys.modules, "plotly", None)
    found = CliRunner().invoke(app, ["plot", str(path), "--out", str(tmp_path / "plots")])
    assert found.exit_code == 0, found.output
    assert "without clusters.html" in found.output
    assert not (tmp_path / "plots" / "clusters.html").exists()


def test_cluster_figures__leave_out_stability_where_there_is_no_chance(cube):
    ds = cube.assign(unit_cluster=unit_clusters(bare(cube), (2, 3), method="agglomerative").astype(float))
    named = [figure.name for figure in cluster_figures(cluster_numbers(ds))]
    assert named == ["units in clusters", "best silhouette of clusters"]
    silhouettes = cluster_numbers(cube).quality["silhouette"]
    shown = {figure.name: figure for figure in cluster_figures(cluster_numbers(cube))}
    assert shown["best silhouette of clusters"].value == f"{float(silhouettes.max()):.2f}"
    assert shown["units in clusters"].value == "56"
    assert "least stable clusters" in shown
