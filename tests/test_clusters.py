"""Clusters of units: scikit-learn's own labels, an order without chance, slow versions of what they are like."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from cluster_cases import best_inertia, blobs, features, same, slow_ari, slow_silhouette, z
from cube_cases import prepare_units, write_units
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.mixture import GaussianMixture

import neurolens.clusters
from neurolens.attribution import cluster_masks
from neurolens.backend import open_run
from neurolens.backend.layers import LayerIndex
from neurolens.clusters import cluster_stability, cluster_summary, unit_clusters, unit_features
from neurolens.errors import NonFiniteError, SchemaError
from neurolens.store import open_store

ROOT = Path(__file__).parent.parent
METHODS = ["kmeans", "agglomerative", "gmm"]


def like_a_block(units=256, seed=0):
    """Features like those of a dense block: units carried in fire, most new ones hardly do; with ties."""
    rng = np.random.default_rng(seed)
    a = rng.gamma(0.7, 1.0, (40, units)) * np.where(np.arange(units) < units // 4, 1.0, -0.3) * rng.gamma(1, 1, units)
    return unit_features(a.astype(np.float32))


@pytest.mark.parametrize("k", [2, 3, 4, 5])
@pytest.mark.parametrize("units", [64, 256, 1024])
def test_unit_clusters__of_the_reference_are_sklearns_bit_for_bit(units, k):
    ds = like_a_block(units, seed=k)
    scores = z(np.stack([ds["rate"], ds["mean"], ds["variance"]], axis=1))
    expected = KMeans(k, n_init=1, random_state=42).fit(scores).labels_
    found = unit_clusters(ds, k, compat="seed")
    np.testing.assert_array_equal(found[0], expected)
    assert found.attrs["compat"] == "seed"


def test_unit_clusters__of_the_reference_are_those_of_its_defaults():
    ds = like_a_block()
    default = KMeans(3, random_state=42).fit(z(ds.to_dataarray("feature").T)).labels_
    np.testing.assert_array_equal(unit_clusters(ds, compat="seed").sel(k=3), default)


def oracle(method, scores, k):
    made = {
        "kmeans": lambda: KMeans(k, n_init=10, random_state=0),
        "agglomerative": lambda: AgglomerativeClustering(k),
        "gmm": lambda: GaussianMixture(k, n_init=10, random_state=0),
    }
    return made[method]().fit_predict(scores)


@pytest.mark.parametrize("method", METHODS)
def test_unit_clusters__put_together_what_sklearn_does(method):
    rows, group = blobs()
    found = unit_clusters(features(rows), 3, method=method)
    assert same(found[0], group)
    assert same(found[0], oracle(method, z(rows), 3))


def test_unit_clusters__are_the_best_there_are_after_many_starts():
    rng = np.random.default_rng(3)
    for _ in range(3):
        ds = features(rng.normal(size=(7, 3)))
        for k in (2, 3):
            found = cluster_summary(ds, unit_clusters(ds, k, n_init=1000))["inertia"]
            assert float(found.item()) == pytest.approx(best_inertia(z(ds.to_dataarray("feature").T), k))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    method=st.sampled_from(METHODS),
    k=st.integers(2, 4),
    ties=st.booleans(),
)
def test_unit_clusters__of_permuted_units_are_permuted(seed, method, k, ties):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 4, (20, 3)).astype(float) if ties else rng.normal(size=(20, 3))
    order = rng.permutation(20)
    found = unit_clusters(features(rows), k, method=method, n_init=2)
    permuted = unit_clusters(features(rows[order]), k, method=method, n_init=2)
    np.testing.assert_array_equal(permuted[0], found[0].data[order])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), method=st.sampled_from(METHODS), k=st.integers(2, 5))
def test_unit_clusters__come_in_order_of_size_then_of_means(seed, method, k):
    rows = np.random.default_rng(seed).integers(0, 6, (24, 3)).astype(float)
    found = unit_clusters(features(rows), k, method=method, n_init=2)[0].data
    assert set(found) == set(range(found.max() + 1))
    keys = [(-(found == c).sum(), *-rows[found == c].mean(axis=0).round(9)) for c in range(found.max() + 1)]
    assert keys == sorted(keys)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), scale=st.sampled_from([0.25, 8.0]), shift=st.sampled_from([0.0, -16.0]))
def test_unit_clusters__do_not_depend_on_the_units_of_a_feature(seed, scale, shift):
    rows = blobs(seed=seed)[0]
    other = rows * [1, scale, scale**2] + [0, shift, 0]
    np.testing.assert_array_equal(unit_clusters(features(rows), 3), unit_clusters(features(other), 3))


def test_unit_clusters__of_one_seed_are_the_same_twice():
    ds = like_a_block()
    xr.testing.assert_identical(unit_clusters(ds, seed=5), unit_clusters(ds, seed=5))
    one = unit_clusters(ds, 5, n_init=1, seed=1)
    assert (
        cluster_summary(ds, unit_clusters(ds, 5, n_init=20, seed=1))["inertia"] <= cluster_summary(ds, one)["inertia"]
    )


def of_layers(epochs=2):
    rows = np.stack([np.concatenate([blobs(seed=s)[0], blobs((10, 4), seed=s + 5)[0]]) for s in range(epochs)])
    return features(rows, ["layer10"] * 26 + ["layer2"] * 14).assign_attrs(run="r")


def test_unit_clusters__of_layers_and_checkpoints_are_those_of_each():
    ds = of_layers()
    found = unit_clusters(ds, [2, 3])
    assert found.dims == ("epoch", "k", "unit")
    assert found["k"].data.tolist() == [2, 3]
    assert found.attrs["run"] == "r"
    for epoch in (0, 1):
        for layer in ("layer10", "layer2"):
            units = np.flatnonzero(ds["layer"] == layer)
            alone = unit_clusters(ds.isel(epoch=epoch, unit=units), [2, 3])
            np.testing.assert_array_equal(found[epoch].isel(unit=units), alone)
    chosen = unit_clusters(ds, [2, 3], layers="*2")
    xr.testing.assert_identical(chosen, found.isel(unit=np.flatnonzero(ds["layer"] == "layer2")))
    xr.testing.assert_identical(unit_clusters(ds.chunk({"epoch": 1, "unit": 7}), [2, 3]), found)


def test_unit_clusters__of_a_layer_become_masks():
    text = np.asarray(of_layers()["layer"].data.tolist(), np.dtypes.StringDType())
    ds = of_layers().assign_coords(layer=("unit", text))
    ds = ds.set_xindex("layer", LayerIndex, units=ds.indexes["unit"])
    found = unit_clusters(ds)
    masks = cluster_masks(found.sel(epoch=10, k=3, layer="layer2"), name="layer2/k3")
    assert masks["map"].data.tolist() == ["layer2/k3/0", "layer2/k3/1", "layer2/k3/2"]
    assert masks.shape == (3, 14)
    assert (masks.sum("map") == 1).all()


def test_unit_clusters__take_units_as_a_store_opens_them(tmp_path):
    store = open_store(tmp_path / "s.icechunk", create=True)
    prepare_units(store)
    for step in (0, 10):
        write_units(store, step)
    ds = unit_features(open_run(str(tmp_path / "s.icechunk"))["units"].to_dataset(), threshold=0)
    found = unit_clusters(ds, 2)
    assert found.attrs["run"] == "r"
    bare = np.stack([ds[name].data for name in ("rate", "mean", "variance")], axis=-1)
    for layer in ("a", "b"):
        units = np.flatnonzero(ds["layer"].data == layer)
        np.testing.assert_array_equal(
            found.sel(layer=layer), unit_clusters(features(np.asarray(bare)[:, units]), 2).data
        )
    summary = cluster_summary(ds, found)
    assert summary["layer"].data.tolist() == ["b", "a"]
    np.testing.assert_array_equal(summary["size"].sum("cluster").sel(layer="a"), 6)
    assert set(cluster_stability(ds, found, starts=2).coords) == {"step", "measured", "k", "layer"}


def test_unit_clusters__leave_out_features_that_are_constant():
    rows, group = blobs((8, 8))
    rows[:, 2] = 0.1
    ds = features(rows)
    assert same(unit_clusters(ds, 2)[0], group)
    assert same(unit_clusters(ds, 2, compat="seed")[0], group)
    assert cluster_summary(ds, unit_clusters(ds, 2))["spread"].sel(feature="variance") == 0


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({}, {"k": 15}, SchemaError, r"layer 'layer2' at epoch 0 has 14 units, and k=15 needs as many"),
        ({}, {"layers": "layer20"}, SchemaError, r"no layer 'layer20'; did you mean 'layer2'"),
        ({"layer": None}, {"layers": "layer2"}, SchemaError, "needs the coordinate `layer`"),
        ({}, {"k": 1}, SchemaError, "k=1 is no number of clusters"),
        ({}, {"k": [2, 2.5]}, SchemaError, r"k=2\.5 is no number of clusters"),
        ({}, {"k": []}, SchemaError, r"k=\[\] is no number"),
        ({}, {"k": [2, 2]}, SchemaError, "twice"),
        ({}, {"method": "k-means"}, SchemaError, "did you mean 'kmeans'"),
        ({}, {"n_init": 0}, SchemaError, "n_init=0"),
        ({}, {"compat": "sed"}, SchemaError, "did you mean 'seed'"),
        ({}, {"compat": "seed", "n_init": 10}, SchemaError, "leave out method, n_init and seed"),
        ({}, {"compat": "seed", "method": "gmm"}, SchemaError, "leave out method, n_init and seed"),
        ({"mean": np.nan}, {}, NonFiniteError, r"'layer10' at epoch 10 has no finite mean of units 3 of 26"),
        ({"same": 0.5}, {}, SchemaError, r"14 units but only 1 that differ .* k=2 needs"),
    ],
)
def test_unit_clusters__refuse_what_cannot_be(change, options, error, message):
    ds = of_layers()
    if "layer" in change:
        ds = ds.drop_vars("layer")
    if "mean" in change:
        ds["mean"][1, 3] = change["mean"]
    if "same" in change:
        ds = ds.where(ds["layer"] != "layer2", change["same"])
    with pytest.raises(error, match=message):
        unit_clusters(ds, **options)


@pytest.mark.parametrize("compat", [None, "seed"])
def test_cluster_summary__matches_slow_versions(compat):
    ds = of_layers()
    clusters = unit_clusters(ds, [2, 3], compat=compat)
    found = cluster_summary(ds, clusters)
    assert found["layer"].data.tolist() == ["layer10", "layer2"]
    assert found["size"].dims == ("epoch", "k", "layer", "cluster")
    for epoch in (0, 10):
        for layer in ("layer10", "layer2"):
            units = np.flatnonzero(ds["layer"] == layer)
            rows = ds.sel(epoch=epoch).isel(unit=units).to_dataarray("feature").T.data
            for k in (2, 3):
                labels = clusters.sel(epoch=epoch, k=k).data[units]
                at = found.sel(epoch=epoch, k=k, layer=layer)
                groups = [rows[labels == c] for c in range(k)]
                np.testing.assert_array_equal(at["size"][:k], [len(g) for g in groups])
                np.testing.assert_allclose(at["centroid"][:k], [g.mean(axis=0) for g in groups])
                assert at["centroid"][k:].isnull().all()
                assert at["size"][k:].isnull().all()
                np.testing.assert_allclose(at["spread"], rows.std(axis=0))
                scores = [z(rows)[labels == c] for c in range(k)]
                inertia = sum(((s - s.mean(axis=0)) ** 2).sum() for s in scores)
                assert float(at["inertia"]) == pytest.approx(inertia)
                assert float(at["silhouette"]) == pytest.approx(slow_silhouette(z(rows), labels.tolist()))


def test_cluster_summary__agrees_with_the_fit():
    ds = like_a_block()
    fitted = KMeans(3, n_init=1, random_state=42, tol=0).fit(z(ds.to_dataarray("feature").T))
    found = cluster_summary(ds, unit_clusters(ds, compat="seed")).sel(k=3)
    assert float(found["inertia"]) == pytest.approx(fitted.inertia_, rel=1e-3)


def test_cluster_summary__knows_no_silhouette_of_units_all_apart():
    ds = features(np.random.default_rng(0).normal(size=(3, 3)))
    found = cluster_summary(ds, unit_clusters(ds, [2, 3]))
    assert found["silhouette"].isnull().squeeze().data.tolist() == [False, True]
    assert (found["inertia"].sel(k=3) == 0).all()


def test_cluster_summary__takes_components_that_are_nobodys():
    rows = blobs((20, 6))[0]
    ds = features(rows)
    clusters = xr.DataArray([rows[:, 0] * 0], dims=("k", "unit"), coords={"k": [2], "unit": ds["unit"]}).astype(int)
    found = cluster_summary(ds, clusters.assign_coords(layer=ds["layer"]))
    assert found["size"].data.tolist() == [[[26, 0]]]
    assert found["centroid"][0, 0, 1].isnull().all()
    assert found["silhouette"].isnull().all()


def test_cluster_summary__refuses_clusters_of_something_else():
    ds = of_layers()
    clusters = unit_clusters(ds)
    with pytest.raises(SchemaError, match=r"14 units have a cluster and no features"):
        cluster_summary(ds.isel(unit=slice(26)), clusters)
    with pytest.raises(SchemaError, match="differ in 'layer'"):
        cluster_summary(ds.assign_coords(layer=("unit", ["x"] * 40)), clusters)
    with pytest.raises(SchemaError, match="differ in 'epoch'"):
        cluster_summary(ds.assign_coords(epoch=[0, 11]), clusters)
    with pytest.raises(SchemaError, match="features of 1 and clusters of 2 along 'epoch'"):
        cluster_summary(ds.isel(epoch=[0]), clusters)
    with pytest.raises(SchemaError, match="clusters over"):
        cluster_summary(ds, clusters.astype(float))
    some = cluster_summary(ds, unit_clusters(ds, layers="layer2"))
    xr.testing.assert_allclose(some, cluster_summary(ds, clusters).sel(layer=["layer2"]))


@pytest.mark.parametrize("compat", [None, "seed"])
def test_cluster_stability__matches_a_slow_version(compat):
    ds = like_a_block(40)
    clusters = unit_clusters(ds, [3, 5], compat=compat)
    found = cluster_stability(ds, clusters, starts=3)
    n_init, seed = (1, 42) if compat else (10, 0)
    rows = ds.to_dataarray("feature").T.data
    order = np.arange(40) if compat else np.lexsort(rows.T[::-1])
    for k in (3, 5):
        for start in range(3):
            again = KMeans(k, n_init=n_init, random_state=seed + 1 + start).fit(z(rows[order])).labels_
            expected = slow_ari(clusters.sel(k=k).data[order], again)
            assert float(found["ari"].sel(k=k)[start]) == pytest.approx(expected)
    np.testing.assert_allclose(found["stability"], found["ari"].mean("start"))


def test_cluster_stability__is_one_where_clusters_lie_apart():
    ds = of_layers().isel(unit=slice(26))
    assert (cluster_stability(ds, unit_clusters(ds, 3), starts=4)["stability"] == 1).all()
    mixed = features(np.random.default_rng(0).normal(size=(60, 3)))
    assert (cluster_stability(mixed, unit_clusters(mixed, 5, n_init=1))["stability"] < 0.95).all()


def test_cluster_stability__is_unknown_without_chance():
    ds = of_layers()
    found = cluster_stability(ds, unit_clusters(ds, 3, method="agglomerative"))
    assert found["ari"].isnull().all()
    assert found["stability"].isnull().all()
    with pytest.raises(SchemaError, match="starts=0"):
        cluster_stability(ds, unit_clusters(ds, 3), starts=0)
    with pytest.raises(SchemaError, match="no attribute 'method'"):
        cluster_stability(ds, unit_clusters(ds, 3).drop_attrs())


def test_clusters__load_neither_torch_nor_scikit_learn_before_they_are_needed():
    code = (
        "import sys; import numpy as np; from neurolens.clusters import unit_features, standardised, unit_clusters\n"
        "assert 'sklearn' not in sys.modules; f = unit_features(np.eye(6)); f['rate'][0] = 3; unit_clusters(f, 2)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_clusters__have_a_page_that_names_them_all():
    page = (ROOT / "docs" / "reference" / "clusters.md").read_text()
    listed = {line.removeprefix("::: ") for line in page.splitlines() if line.startswith("::: ")}
    assert listed == {f"neurolens.clusters.{name}" for name in neurolens.clusters.__all__}
    assert "reference/clusters.md" in (ROOT / "mkdocs.yml").read_text()
    names: dict[str, object] = {}
    for snippet in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S):
        exec(compile(snippet, "clusters.md", "exec"), names)
    assert names["masks"].dims == ("map", "unit")


def test_clusters__know_their_names():
    assert set(neurolens.clusters.__all__) <= set(dir(neurolens.clusters))
    with pytest.raises(ImportError, match="cannot import name 'kmeans'"):
        from neurolens.clusters import kmeans  # noqa: F401
