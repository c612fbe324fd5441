"""Clusterings of a cube taken apart: the same as of the maps themselves, told from what was measured of them."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from attribution_cube_cases import SIDE, attributions_cube
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.attribution import decompose
from neurolens.errors import MissingMeasurementError, SchemaError

ENTRIES = 3 * SIDE * SIDE
OVER = ["channel", "y", "x"]


def whole_maps(ds):
    """Keep the images whose whole maps are kept."""
    return ds.isel(sample=np.flatnonzero(ds["full_map"].notnull().all(["epoch", "map", "attribution", *OVER])))


def clustering(ds, cut, name):
    """Return the places of the clusters of a clustering."""
    same = (ds["cut"] == cut) & (ds["clustering"] == name) & (ds["kind"] == "only")
    return np.flatnonzero(same)


@pytest.mark.parametrize(("cut", "name"), [("stage1", "k2"), ("stage1", "k3"), ("stage2", "k3")])
def test_decompose__of_a_cube_is_that_of_its_maps(cut, name):
    ds = whole_maps(attributions_cube(epochs=(1, 9)))
    places = clustering(ds, cut, name)
    change = ds["output"] - ds["baseline_output"]
    maps = ds["full_map"].isel(map=places)
    wanted = decompose(maps, whole=ds["full_map"].isel(map=0, drop=True), over=OVER)
    found = decompose(ds).sel({"map": maps["map"].to_numpy()})
    order = ("epoch", "sample", "map", "attribution")
    np.testing.assert_allclose(found["norm"], wanted["norm"].transpose(*order), rtol=1e-6)
    np.testing.assert_allclose(found["norm_share"], wanted["norm_share"].transpose(*order), rtol=1e-6)
    mates = len(places)
    cosine = wanted["cosine"].transpose(*order, "other")
    np.testing.assert_allclose(found["cosine"][..., :mates], cosine, atol=1e-6)
    assert found["cosine"][..., mates:].isnull().all()
    for at in range(mates):
        correlation = found["mean_abs_correlation"].isel(map=at)
        np.testing.assert_allclose(correlation, wanted["mean_abs_correlation"], atol=1e-6)
        np.testing.assert_allclose(
            found["reconstruction_error"].isel(map=at), wanted["reconstruction_error"], rtol=1e-3, atol=1e-6
        )
    share = (maps.sum(OVER, dtype=float) / change).transpose(*order).isel(attribution=0)
    np.testing.assert_allclose(found["completeness_share"].isel(attribution=0), share, rtol=1e-4)
    assert found["completeness_share"].isel(attribution=1).isnull().all()
    assert found["conductance"].isel(attribution=1).isnull().all()
    assert found.attrs["entries"] == ENTRIES


def test_decompose__means_are_over_pairs_of_a_clustering():
    ds = attributions_cube()
    found = decompose(ds)
    for name in ("cosine", "correlation"):
        for cut, k in (("stage1", 2), ("stage1", 3), ("stage2", 3)):
            own = found.sel({"map": [f"{cut}/k{k}/{c}" for c in range(k)]})
            pairs = [abs(own[name].isel(map=i, mate=j)) for i in range(k) for j in range(i)]
            for at in range(k):
                np.testing.assert_allclose(own[f"mean_abs_{name}"].isel(map=at), np.mean(pairs, axis=0), rtol=1e-10)


@pytest.mark.parametrize("chunks", [{"sample": 5}, {"map": 7, "sample": 4, "epoch": 1, "attribution": 1, "mate": 1}])
def test_decompose__of_a_cube_is_lazy_and_blind_to_chunks(chunks):
    ds = attributions_cube(epochs=(1, 9))
    lazy = decompose(ds.chunk(chunks))
    assert all(isinstance(array.data, da.Array) for array in lazy.data_vars.values())
    xr.testing.assert_allclose(lazy.compute(), decompose(ds))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100), st.randoms(use_true_random=False), st.floats(1e-3, 1e3))
def test_decompose__follows_clusters_and_not_scale(seed, random, factor):
    ds = attributions_cube(samples=3, seed=seed, reduced=False, full=False, curves=False)
    found = decompose(ds, entries=ENTRIES)
    order = list(range(ds.sizes["map"]))
    random.shuffle(order)
    xr.testing.assert_allclose(decompose(ds.isel(map=order), entries=ENTRIES).sel({"map": found["map"]}), found)
    linear = {name: ds[name] * factor for name in ("norm", "total", "output", "baseline_output")}
    scaled = decompose(ds.assign({**linear, "dot": ds["dot"] * factor**2}), entries=ENTRIES)
    names = ["norm_share", "cosine", "correlation", "mean_abs_correlation", "mean_abs_cosine", "completeness_share"]
    xr.testing.assert_allclose(scaled[names], found[names], rtol=1e-6, atol=1e-9)
    whole = (ds["total"] / (ds["output"] - ds["baseline_output"])).sel(
        {"map": "whole", "attribution": "integrated_gradients"}
    )
    for cut, k in (("stage1", 2), ("stage2", 3)):
        own = found.sel({"map": [f"{cut}/k{k}/{c}" for c in range(k)]})
        np.testing.assert_allclose(own["norm_share"].sum("map"), 1)
        np.testing.assert_allclose(
            own["completeness_share"].isel(attribution=0).sum("map"), whole, rtol=1e-3, atol=1e-5
        )


def test_decompose__knows_correlations_only_where_the_size_of_maps_is_known():
    ds = attributions_cube(full=False)
    found = decompose(ds)
    assert "mean_abs_cosine" in found
    assert not {"correlation", "mean_abs_correlation"} & set(found)
    known = decompose(ds, entries=ENTRIES)
    xr.testing.assert_allclose(known, decompose(attributions_cube()))
    xr.testing.assert_allclose(decompose(ds.assign_attrs(entries=ENTRIES)), known)
    xr.testing.assert_allclose(decompose(ds.assign_coords(channel=[0, 1, 2])), known)
    assert float(abs(found["mean_abs_cosine"] - known["mean_abs_correlation"]).isel(attribution=1).min()) > 0.1


def test_decompose__of_a_cube_says_nothing_of_what_is_not_defined():
    ds = attributions_cube(epochs=(1, 9), full=False).astype(float)
    for name in ds.data_vars:
        ds[name][1] = np.nan
    first = clustering(ds, "stage1", "k2")
    for name in ("norm", "total", "dot"):
        ds[name][0, 0, first] = 0.0  # maps of zeros
    ds["norm"][0, 1, first[0]] = np.nan  # one of two was not measured
    constant = {"norm": np.sqrt(ENTRIES) * 0.3, "total": ENTRIES * 0.3}  # one of two does not vary
    for name, value in constant.items():
        ds[name][0, 2, first[0]] = value
    ds["output"][0, 3] = ds["baseline_output"][0, 3]
    found = decompose(ds, entries=ENTRIES)
    for name, array in found.data_vars.items():
        assert array.isel(epoch=1).isnull().all(), name
    here = found.isel(epoch=0, map=[0, 1])
    assert here["map"].to_numpy().tolist() == ["stage1/k2/0", "stage1/k2/1"]
    zero, lacking, flat, still = (here.isel(sample=at) for at in range(4))
    for name in ("norm_share", "cosine", "correlation", "mean_abs_cosine", "mean_abs_correlation"):
        assert zero[name].isnull().all(), name
        assert name in ("cosine", "correlation") or lacking[name].isnull().all(), name
    assert (zero["norm"] == 0).all()
    assert flat["mean_abs_correlation"].isnull().all()
    assert flat["mean_abs_cosine"].notnull().all()
    assert still["completeness_share"].isnull().all()
    assert still["norm_share"].notnull().all()


def test_decompose__of_some_clusters_does_not_take_them_for_all():
    ds = attributions_cube()
    part = decompose(ds.isel(map=ds["map"] != "stage1/k3/2"))
    same = decompose(ds).sel({"map": part["map"].to_numpy()})
    cut = np.flatnonzero((part["cut"] == "stage1") & (part["clustering"] == "k3"))
    rest = np.setdiff1d(np.arange(part.sizes["map"]), cut)
    xr.testing.assert_allclose(part.isel(map=rest), same.isel(map=rest))
    for name in ("norm_share", "mean_abs_cosine", "mean_abs_correlation"):
        assert part[name].isel(map=cut).isnull().all(), name
    xr.testing.assert_allclose(part["norm"], same["norm"])


def test_decompose__of_a_cube_is_described():
    found = decompose(attributions_cube())
    for name, array in found.data_vars.items():
        assert array.attrs["long_name"], name
    assert found.attrs["run"] == "case"
    assert found["map"].to_numpy().tolist()[0] == "stage1/k2/0"
    assert "conductance" not in decompose(attributions_cube(methods=("saliency",)))
    assert decompose(attributions_cube().isel(epoch=0))["norm"].dims == ("sample", "map", "attribution")


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (lambda ds: ds, {"whole": xr.DataArray(0)}, SchemaError, "whole go with maps"),
        (lambda ds: ds, {"entries": 0}, SchemaError, "channels · height · width"),
        (lambda ds: ds["full_map"], {"entries": 5}, SchemaError, "entries=5 goes with a cube"),
        (lambda ds: ds.isel(map=[0]), {}, SchemaError, "no map of kind 'only'"),
        (lambda ds: ds.isel(mate=[0]), {}, SchemaError, "keep all of `mate`"),
        (lambda ds: ds.drop_vars("dot"), {}, MissingMeasurementError, "'dot' was not measured"),
        (lambda ds: ds.drop_vars("output"), {}, MissingMeasurementError, "'output' was not measured"),
    ],
)
def test_decompose__of_a_cube_errors_name_the_mend(change, options, error, message):
    with pytest.raises(error, match=message):
        decompose(change(attributions_cube()), **options)
