"""Files of the reference: keys and types as it writes them, back and forth, and what is refused."""

import csv
import json

import concept_study
import numpy as np
import pytest
import xarray as xr
from conftest import STUDY
from sklearn.cluster import KMeans
from typer.testing import CliRunner

from neurolens import open_run
from neurolens.cli import app
from neurolens.clusters import (
    cluster_stability,
    cluster_summary,
    clusters_of,
    read_clusters,
    read_features,
    unit_clusters,
    unit_features,
    write_clusters,
)
from neurolens.clusters.cluster_files import file_names
from neurolens.errors import DataError, MissingMeasurementError, NonFiniteError, SchemaError
from neurolens.study import load_study

BLOCKS = {"features.denseblock1": 24, "features.denseblock2": 40}
FILES = ["stats_{}.npz", "cluster_results.npz", "manifest.json", "cluster_centroids.csv"]


def cube(layers=BLOCKS, k=(2, 3), compat="seed", epochs=None):
    """What one checkpoint of the clusters cube opens as: of means and variances that float32 holds."""
    rng = np.random.default_rng(0)
    names = np.repeat(list(layers), list(layers.values()))
    activation = (
        rng.gamma(0.7, 1.0, (60, len(names))) * rng.choice([1.0, -0.2], len(names)) * rng.gamma(1, 1, len(names))
    )
    index = np.concatenate([np.arange(n) for n in layers.values()])
    coords = {"layer": ("unit", names), "index": ("unit", index), "unit": np.arange(len(names))}
    ds = unit_features(xr.DataArray(activation.astype("f4"), dims=("sample", "unit"), coords=coords))
    rounded = {name: ds[name].astype("f4").astype("f8") for name in ("mean", "variance")}
    ds = ds.assign(rounded)
    ds["unit_cluster"] = unit_clusters(ds, k, compat=compat).astype(float)
    return ds if epochs is None else ds.expand_dims(epoch=list(epochs)).copy(deep=True)


def test_write_clusters__has_the_references_files_keys_and_types(tmp_path):
    ds = cube()
    paths = write_clusters(ds, tmp_path)
    folders = [f"block_{b}_k{k}" for b in (1, 2) for k in (2, 3)]
    wanted = [tmp_path / folder / name.format(folder[:7]) for folder in folders for name in FILES]
    assert sorted(paths) == sorted(wanted)
    place = tmp_path / "block_2_k3"
    with np.load(place / "stats_block_2.npz") as held:
        types = {name: (held[name].dtype.str, held[name].shape) for name in held}
    assert types == {"activation_rate": ("<f8", (40,)), "mean_activation": ("<f4", (40,)), "variance": ("<f4", (40,))}
    with np.load(place / "cluster_results.npz") as held:
        assert set(held) == {"selected_block", "labels", "n_clusters"}
        assert (str(held["selected_block"]), int(held["n_clusters"])) == ("block_2", 3)
        assert (held["labels"].dtype.str, held["labels"].shape) == ("<i4", (40,))
    told = {"selected_block": "block_2", "n_clusters": 3, "num_neurons": 40, "stats_files": ["stats_block_2.npz"]}
    assert json.loads((place / "manifest.json").read_text()) == told


def test_write_clusters__lists_centroids(tmp_path):
    ds = cube()
    write_clusters(ds, tmp_path, layers="*denseblock1", k=3)
    with (tmp_path / "block_1_k3" / "cluster_centroids.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["cluster", "mean", "rate", "variance", "n_neurons"]
    labels = ds["unit_cluster"].sel(k=3).values[:24]
    for line, cluster in zip(lines, range(3), strict=True):
        rows = np.flatnonzero(labels == cluster)
        means = [np.mean([float(ds[name][i]) for i in rows]) for name in ("mean", "rate", "variance")]
        assert (int(line[0]), int(line[4])) == (cluster, len(rows))
        np.testing.assert_allclose([float(x) for x in line[1:4]], means, rtol=1e-12)
    assert [path.name for path in tmp_path.iterdir()] == ["block_1_k3"]


@pytest.mark.parametrize("k", [2, 3])
def test_write_clusters__reads_back_and_clusters_to_the_same_labels(tmp_path, k):
    ds = cube()
    write_clusters(ds, tmp_path)
    for block, (layer, units) in enumerate(BLOCKS.items(), start=1):
        place = tmp_path / f"block_{block}_k{k}"
        labels = read_clusters(place / "cluster_results.npz", layer=layer, units=units)
        own = ds.isel(unit=np.flatnonzero(ds["layer"] == layer))
        np.testing.assert_array_equal(labels, own["unit_cluster"].sel(k=k))
        assert labels.dtype == np.int64
        features = read_features(place / f"stats_block_{block}.npz")
        for name in ("rate", "mean", "variance"):
            np.testing.assert_array_equal(features[name], own[name])
        np.testing.assert_array_equal(unit_clusters(features, k, compat="seed")[0], labels)
        with np.load(place / f"stats_block_{block}.npz") as held:  # as the reference's own script does
            matrix = np.stack([held["activation_rate"], held["mean_activation"], held["variance"]], axis=1)
        scores = (matrix - matrix.mean(axis=0)) / matrix.std(axis=0)
        np.testing.assert_array_equal(KMeans(k, random_state=42).fit(scores).labels_, labels)


def test_file_names__are_the_references_of_dense_blocks_and_safe_of_others():
    layers = ["features.denseblock3", "layer1.0:input", "layer1.0#1", "x"]
    assert list(file_names(layers).values()) == ["block_3", "layer1.0_input", "layer1.0_1", "x"]
    assert list(file_names(["a.denseblock1", "b.denseblock1"]).values()) == ["a.denseblock1", "b.denseblock1"]
    with pytest.raises(SchemaError, match="'layer:input' would share files called 'layer_input'"):
        file_names(["layer:input", "layer#input"])


def saved(path, **changes):
    held = {"selected_block": "block_1", "labels": np.array([0, 1, 1, 0], "i4"), "n_clusters": 2} | changes
    np.savez(path, **{name: value for name, value in held.items() if value is not None})
    return path


@pytest.mark.parametrize(
    ("block", "layer"),
    [
        ("block_1", "features.denseblock1"),
        ("layer_1", "layer1"),
        ("layer1.0_input", "layer1.0:input"),
        ("stem", "stem"),
        ("block_01", "features.denseblock1"),
    ],
)
def test_read_clusters__takes_files_of_the_layer(tmp_path, block, layer):
    path = saved(tmp_path / "cluster_results.npz", selected_block=block)
    for place in (path, tmp_path):
        np.testing.assert_array_equal(read_clusters(place, layer=layer, units=4), [0, 1, 1, 0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"selected_block": "block_2"}, r"clusters of 'block_2', and those of 'features\.denseblock1' were needed"),
        ({"selected_block": "block_11"}, r"clusters of 'block_11', and those of 'features\.denseblock1'"),
        ({"selected_block": "stem"}, r"clusters of 'stem', and those of"),
        ({"labels": np.zeros(5, "i4")}, r"clusters of 5 units of 'block_1', and layer 'features\.denseblock1' has 4"),
        ({"labels": np.zeros((4, 1), "i4")}, r"clusters of 4 units of"),
        ({"labels": np.array([0, 1, 2, 0], "i4")}, r"clusters 0, 1, 2 of type int32, and whole numbers from 0 to 1"),
        ({"labels": np.array([0, -1, 1, 0], "i4")}, r"clusters -1, 0, 1 of type"),
        ({"labels": np.array([0.0, 1, 1, 0])}, r"of type float64"),
        ({"n_clusters": None}, r"holds selected_block, labels, and 'n_clusters' was needed"),
        ({"labels": np.array([0, None, 1, 0])}, r"is no archive of arrays"),
    ],
)
def test_read_clusters__says_what_does_not_fit(tmp_path, changes, words):
    path = saved(tmp_path / "cluster_results.npz", **changes)
    with pytest.raises(DataError, match=words):
        read_clusters(path, layer="features.denseblock1", units=4)


def test_read_clusters__says_which_file_is_missing_or_none(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*nowhere/x\.npz; give the path"):
        read_clusters(tmp_path / "nowhere" / "x.npz", layer="l", units=4)
    saved(tmp_path / "cluster_results.npz")
    with pytest.raises(DataError, match=r"no file .*results\.npz; did you mean 'cluster_results\.npz'"):
        read_clusters(tmp_path / "results.npz", layer="l", units=4)
    for text in ("", "a,b\n"):
        (tmp_path / "table.npz").write_text(text)
        with pytest.raises(DataError, match=r"table\.npz is no archive of arrays"):
            read_clusters(tmp_path / "table.npz", layer="l", units=4)
    np.save(tmp_path / "labels.npy", np.zeros(4))
    with pytest.raises(DataError, match=r"labels\.npy is no archive of arrays"):
        read_clusters(tmp_path / "labels.npy", layer="l", units=4)


def test_read_features__needs_one_number_per_unit(tmp_path):
    path = tmp_path / "stats_block_1.npz"
    np.savez(path, activation_rate=np.zeros(3), mean_activation=np.zeros(4), variance=np.zeros(3))
    with pytest.raises(DataError, match="one number per unit of each was needed"):
        read_features(path)
    saved(path)
    with pytest.raises(DataError, match="and 'activation_rate' was needed; give a file of statistics of units"):
        read_features(path)


def test_write_clusters__says_what_is_not_there(tmp_path):
    with pytest.raises(SchemaError, match=r"found 2 checkpoints, and one was needed; select it: ds\.isel\(epoch=-1\)"):
        write_clusters(cube(epochs=[1, 2]), tmp_path)
    with pytest.raises(SchemaError, match="there are no 9 clusters here, but 2, 3"):
        write_clusters(cube(), tmp_path, k=9)
    with pytest.raises(SchemaError, match="there is no layer 'denseblock'; did you mean"):
        write_clusters(cube(), tmp_path, layers="denseblock")
    ds = cube()
    ds["mean"][30] = np.nan
    with pytest.raises(NonFiniteError, match=r"layer 'features\.denseblock2' has features of NaN"):
        write_clusters(ds, tmp_path)


def test_clusters_of__names_checkpoints_without_clusters():
    ds = cube(epochs=[3, 7, 9])
    ds["unit_cluster"][1] = np.nan
    with pytest.raises(MissingMeasurementError, match=r"no clusters at epoch 7; .*--only clusters.*missing=\"drop\""):
        clusters_of(ds)
    assert clusters_of(ds, missing="drop")["epoch"].values.tolist() == [3, 9]
    with pytest.raises(MissingMeasurementError, match="no clusters here"):
        clusters_of(ds.isel(epoch=1))
    with pytest.raises(SchemaError, match=r"found clusters over .*'k'.* were needed"):
        clusters_of(ds.isel(k=0))


CLUSTERED = STUDY.replace("[samples]", '[clusters]\nlayers = ["conv2", "conv3"]\nk = [2, 3]\n')


def test_clusters_of__opened_cubes_say_how_sure_they_are(make_study):
    path = make_study(text=CLUSTERED)
    concept_study.run(path, "clusters")
    ds = open_run(load_study(path).store.url)["clusters"].to_dataset()
    features, clusters = ds[["rate", "mean", "variance"]], clusters_of(ds)
    assert clusters.dtype == np.int64
    fresh = unit_clusters(features.load(), (2, 3))
    xr.testing.assert_equal(clusters.drop_vars("measured"), fresh.drop_vars("measured"))
    assert {key: clusters.attrs[key] for key in ("method", "n_init", "seed", "compat")} == {
        key: fresh.attrs[key] for key in ("method", "n_init", "seed", "compat")
    }
    for reduce in (cluster_summary, cluster_stability):
        xr.testing.assert_allclose(reduce(features, clusters), reduce(features, fresh))


def test_clusters_of__knows_the_references(make_study):
    path = make_study(text=CLUSTERED + 'compat = "seed"\n', checkpoints=1)
    concept_study.run(path, "clusters")
    attrs = clusters_of(open_run(load_study(path).store.url)["clusters"].to_dataset()).attrs
    assert (attrs["method"], attrs["n_init"], attrs["seed"], attrs["compat"]) == ("kmeans", 1, 42, "seed")


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_export_clusters__writes_the_last_checkpoint_or_a_named_one(make_study, tmp_path):
    path = make_study(text=CLUSTERED)
    url = load_study(path).store.url
    found = invoke("export", "clusters", url, tmp_path / "out")
    assert found.exit_code == 2
    concept_study.run(path, "clusters")
    found = invoke("export", "clusters", path, tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert "wrote 16 files of epoch 2" in " ".join(found.output.split())
    ds = open_run(url)["clusters"].to_dataset()
    labels = read_clusters(tmp_path / "out" / "conv2_k3", layer="conv2", units=32)
    np.testing.assert_array_equal(labels, ds["unit_cluster"].sel(epoch=2, k=3, layer="conv2"))
    found = invoke("export", "clusters", url, tmp_path / "one", "--at", 1, "--layer", "conv3", "--k", 2)
    assert found.exit_code == 0, found.output
    assert [folder.name for folder in (tmp_path / "one").iterdir()] == ["conv3_k2"]
    labels = read_clusters(tmp_path / "one" / "conv3_k2", layer="conv3", units=32)
    np.testing.assert_array_equal(labels, ds["unit_cluster"].sel(epoch=1, k=2, layer="conv3"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--at", "7"], "has no epoch 7; known: '0', '1', '2'"),
        (["--layer", "conv9"], "there is no layer 'conv9'; did you mean 'conv"),
        (["--k", "5"], "there are no 5 clusters here, but 2, 3"),
    ],
)
def test_export_clusters__says_what_is_not_there(make_study, tmp_path, words, said):
    path = make_study(text=CLUSTERED)
    concept_study.run(path, "clusters")
    found = invoke("export", "clusters", path, tmp_path / "out", *words)
    assert found.exit_code == 2
    assert said in " ".join(found.stderr.split())
    assert not (tmp_path / "out").exists()
