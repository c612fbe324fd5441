"""Maps from those of a basis, and what goes through each set of units."""

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from neurolens.attribution import attributions, cluster_masks, combined, completeness, plan
from neurolens.errors import MissingMeasurementError, SchemaError


def grid(units=40, ks=(2, 3, 4, 5)):
    random = np.random.default_rng(0)
    return xr.concat([cluster_masks(random.permutation(np.arange(units) % k)) for k in ks], "map")


def basis(found, shape=(2, 5)):
    values = np.random.default_rng(0).random((shape[0], found.combine.sizes["vector"], shape[1])).astype("float32")
    names = found.combine["vector"].to_numpy()
    return xr.DataArray(values, dims=("sample", "vector", "pixel"), coords={"vector": names})


def test_combined__adds_up():
    found = plan({"a": cluster_masks(np.arange(9) % 3)})
    maps = combined(basis(found), found)
    assert maps.dims == ("sample", "map", "pixel")
    assert maps.dtype == np.float32
    parts = [f"a/k3/{c}" for c in range(3)]
    np.testing.assert_allclose(maps.sel(map=parts).sum("map"), maps.sel(map="whole"), rtol=1e-5)
    xr.testing.assert_allclose(combined(basis(found), found, maps=parts[1:]), maps.sel(map=parts[1:]))


@pytest.mark.parametrize("chunks", [{"sample": 1}, {"vector": 1}, {"pixel": 2, "vector": 2}])
def test_combined__is_lazy_and_blind_to_chunks(chunks):
    found = plan({"a": grid()})
    maps = combined(basis(found).chunk(chunks), found)
    assert maps.chunks is not None
    xr.testing.assert_allclose(maps.compute(), combined(basis(found), found))


def test_combined__says_what_is_wrong():
    found, other = plan({"a": cluster_masks(np.arange(9) % 3)}), plan({"b": cluster_masks(np.arange(9) % 3)})
    with pytest.raises(SchemaError, match="combine maps with the plan that they were measured with"):
        combined(basis(other), found)
    with pytest.raises(SchemaError, match="did you mean 'a/k3/"):
        combined(basis(found), found, maps=["a/k3/O"])


def measured(found, samples=3, pixels=4):
    random = np.random.default_rng(1)
    names = found.combine["vector"].to_numpy()
    maps = (("sample", "vector", "pixel"), random.normal(size=(samples, len(names), pixels)).astype("float32"))
    data = {"integrated_gradients": maps, "gradient": (maps[0], maps[1][::-1])}
    data |= {"input": (("sample", "pixel"), random.normal(size=(samples, pixels)).astype("float32"))}
    data |= {"output": ("sample", [2.0, 1.0, 0.5]), "baseline_output": ("sample", [0.5, 1.0, 0.0])}
    return xr.Dataset(data | {"target": ("sample", [0, 1, 2])}, coords={"vector": names})


def test_attributions__take_absolute_values_of_combined_gradients():
    found = plan({"a": cluster_masks(np.arange(9) % 3)})
    basis = measured(found)
    maps = attributions(basis, found, methods=("saliency", "input_x_gradient", "integrated_gradients"))
    rest = basis["gradient"].sel(vector="whole") - basis["gradient"].sel(vector=["a/k3/0", "a/k3/1"]).sum("vector")
    np.testing.assert_allclose(maps["saliency"].sel(map="a/k3/2"), abs(rest), rtol=1e-5)
    np.testing.assert_allclose(maps["input_x_gradient"].sel(map="a/k3/2"), rest * basis["input"], rtol=1e-5)
    assert maps["saliency"].dims == maps["input_x_gradient"].dims == ("sample", "map", "pixel")
    xr.testing.assert_identical(maps["target"], basis["target"])
    assert set(attributions(basis, found).data_vars) == {"integrated_gradients", "saliency", "target"}


@pytest.mark.parametrize("chunks", [{"sample": 1}, {"pixel": 3}, {"vector": 2}])
def test_attributions__are_lazy_and_blind_to_chunks(chunks):
    found = plan({"a": grid()})
    whole = attributions(measured(found), found)
    lazy = attributions(measured(found).chunk(chunks), found)
    assert lazy["saliency"].chunks is not None
    xr.testing.assert_allclose(lazy.compute(), whole)


def test_attributions__of_some_maps_are_those():
    found = plan({"a": cluster_masks(np.arange(9) % 3)})
    names = ["a/k3/1", "whole"]
    some = attributions(measured(found), found, maps=names)
    xr.testing.assert_allclose(some, attributions(measured(found), found).sel(map=names))


def test_completeness__is_what_goes_through_the_units():
    found = plan({"a": cluster_masks(np.arange(9) % 3)})
    basis = measured(found)
    report = completeness(basis, found)
    sums = attributions(basis, found)["integrated_gradients"].astype(float).sum("pixel")
    np.testing.assert_allclose(report["conductance"], sums, atol=1e-6)
    np.testing.assert_allclose(report["gap"], sums.sel(map="whole") - [1.5, 0, 0.5], atol=1e-6)
    np.testing.assert_allclose(report["share"][0], sums[0] / 1.5, rtol=1e-5)
    assert report["share"][1].isnull().all()  # nothing changes from baseline to sample
    assert report["conductance"].dtype == np.float64
    alone = plan({"a": cluster_masks(np.arange(9) % 3)[:1]}, whole=False)
    assert completeness(measured(alone), alone)["gap"].isnull().all()


@pytest.mark.parametrize("chunks", [{"sample": 1}, {"pixel": 3}])
def test_completeness__is_lazy_and_blind_to_chunks(chunks):
    found = plan({"a": grid()})
    lazy = completeness(measured(found).chunk(chunks), found)
    assert lazy["conductance"].chunks is not None
    xr.testing.assert_allclose(lazy.compute(), completeness(measured(found), found))


def test_attributions__say_what_is_missing():
    found = plan({"a": cluster_masks(np.arange(9) % 3)})
    basis = measured(found)
    with pytest.raises(SchemaError, match="did you mean 'saliency'"):
        attributions(basis, found, methods=["salience"])
    with pytest.raises(MissingMeasurementError, match="measure the basis with steps"):
        completeness(basis.drop_vars("integrated_gradients"), found)


def test_attribution__combines_maps_without_torch():
    names = "attributions, combined, completeness, controls, plan"
    code = f"import sys; from neurolens.attribution import {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
