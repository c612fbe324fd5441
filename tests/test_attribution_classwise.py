"""Scores class by class, at once and in parts."""

import itertools

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurolens.attribution import merge_classes, per_class
from neurolens.errors import MissingMeasurementError, SchemaError


def scores(samples=30, seed=0, classes=5, missing=0.1):
    generator = np.random.default_rng(seed)
    coords = {"label": ("sample", [f"class {i}" for i in generator.integers(0, classes, samples)])}
    names = {"map": ["k3/0", "k3/1", "k3/2"]}
    baseline = xr.DataArray(generator.random(samples), dims="sample", coords=coords)
    filtered = xr.DataArray(generator.random((samples, 3)), dims=("sample", "map"), coords=coords | names)
    return filtered.where(generator.random((samples, 3)) >= missing), baseline


def test_per_class__is_that_of_each_class_alone():
    filtered, baseline = scores()
    found = per_class(filtered, baseline)
    assert found["class"].to_numpy().tolist() == sorted(set(filtered["label"].to_numpy()))
    for name in found["class"].to_numpy():
        for at in range(3):
            rows = np.flatnonzero((filtered["label"] == name) & filtered[:, at].notnull())
            one, other = filtered[rows, at].to_numpy(), baseline[rows].to_numpy()
            here = found.sel({"class": name}).isel(map=at)
            assert here["n"] == len(rows)
            for prefix, values in (("filtered", one), ("baseline", other), ("difference", one - other)):
                assert float(here[f"{prefix}_mean"]) == pytest.approx(values.mean())
                assert float(here[f"{prefix}_std"]) == pytest.approx(values.std())
            assert float(here["improved"]) == pytest.approx((one > other).mean())


def test_per_class__is_blind_to_chunks_and_order():
    filtered, baseline = scores()
    found = per_class(filtered, baseline)
    xr.testing.assert_identical(per_class(filtered.chunk(sample=7), baseline.chunk(sample=4)), found)
    order = np.random.default_rng(3).permutation(30)
    xr.testing.assert_allclose(per_class(filtered[order], baseline[order]), found)


def test_per_class__is_nan_where_no_sample_has_a_score():
    filtered, baseline = scores(missing=0)
    filtered = filtered.where(filtered["label"] != "class 2")
    here = per_class(filtered, baseline).sel({"class": "class 2"})
    assert (here["n"] == 0).all()
    assert all(np.isnan(here[name]).all() for name in here.data_vars if name != "n")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(1, 29), max_size=4))
def test_merge_classes__is_as_if_all_had_been_given_at_once(seed, cuts):
    filtered, baseline = scores(seed=seed, missing=0.3)
    edges = [0, *sorted(set(cuts)), 30]
    parts = [per_class(filtered[a:b], baseline[a:b]) for a, b in itertools.pairwise(edges)]
    xr.testing.assert_allclose(merge_classes(*parts, shared="pool"), per_class(filtered, baseline))
    xr.testing.assert_allclose(merge_classes(*parts[::-1], shared="pool"), per_class(filtered, baseline))


def test_merge_classes__joins_ranges_of_classes():
    filtered, baseline = scores()
    first = np.isin(filtered["label"], ["class 0", "class 3"])
    parts = [per_class(filtered[rows], baseline[rows]) for rows in (first, ~first)]
    found = merge_classes(*parts)
    xr.testing.assert_allclose(found, per_class(filtered, baseline))
    assert found["n"].dtype == np.int64
    xr.testing.assert_allclose(merge_classes(merge_classes(parts[0]), parts[1]), found)


def test_merge_classes__takes_numbered_classes_and_one_filter():
    values = xr.DataArray(np.arange(6.0), dims="sample", coords={"label": ("sample", [3, 1, 3, 1, 7, 7])})
    found = merge_classes(
        *(per_class(values[values["label"] == c], 0 * values[values["label"] == c]) for c in (7, 1, 3))
    )
    frame = pd.Series(np.arange(6.0)).groupby([3, 1, 3, 1, 7, 7]).mean()
    assert found["class"].to_numpy().tolist() == frame.index.tolist()
    np.testing.assert_allclose(found["difference_mean"], frame)


def test_merge_classes__errors_name_the_mend():
    filtered, baseline = scores()
    part = per_class(filtered, baseline)
    with pytest.raises(SchemaError, match=r"class 0.*shared='pool'"):
        merge_classes(part, part)
    with pytest.raises(SchemaError, match="found nothing to merge"):
        merge_classes()
    with pytest.raises(SchemaError, match="did you mean 'pool'"):
        merge_classes(part, shared="pol")
    with pytest.raises(SchemaError, match="parts are of different filters"):
        merge_classes(part, part.isel(map=[0, 1]))
    with pytest.raises(MissingMeasurementError, match=r"lacks \['improved'\]"):
        merge_classes(part.drop_vars("improved"))


def test_per_class__needs_the_classes():
    filtered, baseline = scores()
    with pytest.raises(SchemaError, match="did you mean 'label'"):
        per_class(filtered, baseline, classes="labels")
