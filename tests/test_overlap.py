"""IoU and what follows: the golden table, exact detectors, laziness and chunks, blocks drawn again, missing, errors."""

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dissection_cases import CATEGORIES, CONCEPTS, cube, drawn_images, five_images

from neurolens.dissection import Tally, best_concept, detectors, iou, iou_interval, pack_labels
from neurolens.errors import MissingMeasurementError, SchemaError

CHUNKS = [{"epoch": 1}, {"unit": 2, "concept": 3}, {"block": 5, "category": 2}, {"epoch": 2, "unit": 3, "block": 1}]


def drawn(epochs=3, images=24):
    tallies = []
    _, _, shown, category = drawn_images(0, images=images)
    for seed in range(epochs):
        maps, thresholds, _, _ = drawn_images(seed, images=images)
        tallies.append(Tally(pack_labels(shown, (9, 14), category, 4), 5, blocks=np.arange(images) % 8))
        tallies[-1].add(maps, thresholds, np.arange(images))
    names = [f"concept {c}" for c in range(7)]
    return cube(*tallies, concepts=names, category=category, categories=["a", "b", "c", "d"])


def slow(ds, reading, epoch, unit, concept):
    """Equation 1 from the counts, for one unit and concept; None where either is absent."""
    one = ds.isel(epoch=epoch, unit=unit)
    category = str(one["concept_category"].values[concept])
    area = one["unit_area" if reading == "paper" else "unit_area_lite"].sel(category=category).values.sum()
    both = one["intersection"].values[:, concept].sum()
    whole = one["concept_area"].values[:, concept].sum()
    if not whole or not one["unit_area"].values.sum():
        return None
    return both / (area + whole - both + 1e-10)


GOLDEN = {
    (0, "red"): (0.3, 0.3), (0, "blue"): (0.133333, 0.133333), (0, "dog"): (1.0, 0.75), (0, "leg"): (0.5, 0.5),
    (0, "street"): (0.25, 0.25), (0, "dotted"): (0, 0), (1, "red"): (0.181818, 0.181818),
    (1, "blue"): (0.214286, 0.214286), (1, "cat"): (0.8, 0.8), (1, "street"): (0.125, 0.125), (1, "dotted"): (1, 1),
}  # fmt: skip


@pytest.mark.parametrize(("unit", "concept"), GOLDEN)
def test_iou__gives_the_golden_table_in_both_readings(unit, concept):
    for reading, value in zip(("lite", "paper"), GOLDEN[unit, concept]):
        score = iou(cube(five_images()), reading=reading).sel(epoch=0, unit=unit, concept=concept)
        assert abs(score.item() - value) < 1e-6


def test_iou__of_lite_is_what_its_table_prints():
    best = best_concept(cube(five_images()), reading="lite").isel(epoch=0)
    assert best["label"].values.tolist() == ["dog", "dotted"]
    assert best["label_category"].values.tolist() == ["object", "texture"]
    np.testing.assert_allclose(best["score"], [0.99999999999167, 0.99999999999375], rtol=0, atol=5e-15)


def test_iou__knows_no_label_0():
    textures = best_concept(cube(five_images()), reading="lite", by="category").isel(epoch=0).sel(category="texture")
    assert textures["label"].values.tolist() == ["", "dotted"]  # the reference has a nameless one of 0.25 for the first
    assert textures["score"].values[0] == 0


def test_iou__without_colours_leaves_the_other_categories_as_they_are():
    # the reference counts an area of 20 for object, of an image whose cell is empty
    ds = cube(five_images()).sel(category=CATEGORIES[1:]).isel(concept=slice(2, None))
    assert abs(iou(ds, reading="lite").sel(epoch=0, unit=1, concept="cat").item() - 0.8) < 1e-9


@pytest.mark.parametrize("reading", ["paper", "lite"])
def test_iou__is_one_of_a_unit_that_is_exactly_the_concept(reading):
    rng = np.random.default_rng(1)
    red = rng.random((20, 8, 8)) < 0.4
    square = rng.random((20, 8, 8)) < 0.2
    shown = [{0: r, 1: ~r, 2: s} for r, s in zip(red, square)]
    tally = Tally(pack_labels(shown, (8, 8), [0, 0, 1]), 3)
    tally.add(np.stack([red, square, np.zeros_like(red)], axis=1).astype(np.float32), [0.5, 0.5, 0.5], np.arange(20))
    ds = cube(tally, concepts=["red", "blue", "square"], category=[0, 0, 1], categories=["color", "object"])
    score = iou(ds, reading=reading).isel(epoch=0)
    np.testing.assert_allclose([score[0, 0], score[1, 2]], 1, rtol=0, atol=1e-12)
    assert score[0, 1] == 0
    assert score[2].isnull().all()
    assert best_concept(ds)["label"].values.tolist() == [["red", "square", ""]]


@pytest.mark.parametrize("reading", ["paper", "lite"])
def test_iou__equals_the_equation_written_out(reading):
    ds = drawn()
    score = iou(ds, reading=reading)
    for at, value in np.ndenumerate(score.values):
        expected = slow(ds, reading, *at)
        assert np.isnan(value) if expected is None else value == pytest.approx(expected, rel=1e-14)
    assert score.dims == ("epoch", "unit", "concept")
    assert np.nanmin(score) >= 0
    assert np.nanmax(score) <= 1
    assert (iou(ds, reading="lite") >= iou(ds, reading="paper") - 1e-15).where(score.notnull(), True).all()


def test_iou__is_nan_for_a_dead_unit_and_an_absent_concept_and_never_0():
    ds = drawn()
    score = iou(ds)
    assert score.isel(unit=0).isnull().all()  # its maps are 0 everywhere
    ds["concept_area"][:, :, 2] = 0
    ds["intersection"][:, :, :, 2] = 0
    assert iou(ds).isel(concept=2).isnull().all()
    assert iou(ds).isel(unit=slice(1, None), concept=slice(3, None)).notnull().any()


@pytest.mark.parametrize("chunks", [None, *CHUNKS])
def test_iou__of_a_silent_unit_is_0_where_asked_and_nothing_else_changes(chunks):
    ds = drawn()
    ds["intersection"][1, :, 2], ds["unit_area"][1, :, 2], ds["unit_area_lite"][1, :, 2] = 0, 0, 0
    ds["intersection"][2, :, 3], ds["unit_area"][2, :, 3], ds["unit_area_lite"][2, :, 3] = np.nan, np.nan, np.nan
    ds = ds if chunks is None else ds.chunk(chunks)
    plain, silent = iou(ds).compute(), iou(ds, silent=0).compute()
    shown = (ds["concept_area"].sum("block") > 0).compute()
    assert np.isnan(plain[1, 2]).all()
    assert (silent[1, 2].where(shown[1], 0) == 0).all()
    assert np.isnan(silent[1, 2].where(~shown[1])).all()
    assert np.isnan(silent[2, 3]).all()  # what was not measured is no silence
    fired = (ds["unit_area"].sum(["block", "category"]) > 0).compute()
    xr.testing.assert_identical(silent.where(fired), plain.where(fired))
    with pytest.raises(SchemaError, match="neither NaN nor 0"):
        iou(ds, silent=0.5)


def test_iou__silent_units_die_only_where_silence_counts():
    from neurolens import concept_events

    ds = drawn(epochs=1)
    ds = xr.concat([ds, *[xr.zeros_like(ds).assign(concept_area=ds["concept_area"])] * 3], "epoch")
    ds = ds.assign_coords(epoch=range(4))
    tau = float(iou(ds).isel(epoch=0).quantile(0.9))
    assert set(concept_events(iou(ds), tau=tau)["end"]) == {"absent"}
    assert set(concept_events(iou(ds, silent=0), tau=tau)["end"]) == {"death"}


def test_iou__of_what_was_not_measured_is_nan():
    ds = drawn()
    ds = ds.where(ds["epoch"] != 1).assign_coords(ds.coords)
    assert iou(ds).isel(epoch=1).isnull().all()
    np.testing.assert_array_equal(iou(ds).isel(epoch=[0, 2]), iou(drawn()).isel(epoch=[0, 2]))
    best = best_concept(ds).isel(epoch=1)
    assert best["score"].isnull().all()
    assert set(best["label"].values.tolist()) == {""}
    assert detectors(ds)["total_detectors"].values[1] == 0


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_reductions__are_lazy_and_blind_to_chunks(chunks):
    ds = drawn()

    def refuse(*_, **__):
        raise AssertionError("computed")

    lazy = ds.chunk(chunks)
    with dask.config.set(scheduler=refuse):
        found = [iou(lazy), best_concept(lazy), best_concept(lazy, by="category"), detectors(lazy, tau=0.2)]
        found.append(iou_interval(lazy, resamples=50))
    for array in (found[0], *(v for f in found[1:] for v in f.data_vars.values())):
        assert isinstance(array.data, da.Array)
    eager = [iou(ds), best_concept(ds), best_concept(ds, by="category"), detectors(ds, tau=0.2)]
    eager.append(iou_interval(ds, resamples=50))
    for one, other in zip(found, eager):
        xr.testing.assert_identical(one.compute(), other)


def test_reductions__take_one_checkpoint():
    ds = drawn()
    for function in (iou, best_concept, detectors, iou_interval):
        xr.testing.assert_allclose(function(ds.isel(epoch=1)), function(ds).isel(epoch=1))


def test_iou__by_block_and_by_weights_agree_with_blocks_selected():
    ds = drawn()
    weights = np.array([2, 0, 1, 0, 0, 3, 1, 1])
    repeated = ds.isel(block=np.repeat(np.arange(8), weights))
    score = iou(ds, weights=weights)
    known = score.notnull() & iou(repeated).notnull()
    assert known.any()
    xr.testing.assert_allclose(score.where(known), iou(repeated).where(known))
    by_block = iou(ds, by="block")
    assert by_block.dims == ("epoch", "block", "unit", "concept")
    for block in range(8):
        xr.testing.assert_allclose(by_block.isel(block=block), iou(ds.isel(block=[block])), check_dim_order=False)
    several = iou(ds, weights=xr.DataArray([weights, np.ones(8)], dims=("draw", "block")))
    xr.testing.assert_allclose(several.isel(draw=1), iou(ds))


def test_best_concept__takes_the_first_category_and_the_lowest_label_of_equals():
    score = xr.DataArray(
        [[[0.5, 0.5, 0.5], [0.1, 0.2, 0.2], [np.nan, 0.3, np.nan], [np.nan] * 3, [0.0, 0.0, np.nan]]],
        dims=("epoch", "unit", "concept"),
        coords={
            "concept": ["late", "first", "second"],
            "label": ("concept", [9, 7, 3]),
            "concept_category": ("concept", ["a", "b", "b"]),
        },
    )
    best = best_concept(score).isel(epoch=0)
    assert best["label"].values.tolist() == ["late", "second", "first", "", ""]
    assert best["position"].values.tolist() == [0, 2, 1, -1, -1]
    np.testing.assert_array_equal(best["score"], [0.5, 0.2, 0.3, np.nan, 0])
    per = best_concept(score, by="category").isel(epoch=0)
    assert per["label"].sel(category="b").values.tolist() == ["second", "second", "first", "", ""]


def test_detectors__count_units_and_concepts():
    ds = cube(five_images(), five_images())
    found = detectors(ds)
    assert found["n_detectors"].sel(category=["object", "texture"]).values.tolist() == [[1, 1]] * 2
    twice = detectors(ds.isel(unit=[0, 0, 1]))
    assert twice["n_detectors"].sel(category="object").values.tolist() == [2, 2]
    assert twice["n_unique"].sel(category="object").values.tolist() == [1, 1]
    assert twice["total_detectors"].values.tolist() == [3, 3]
    assert detectors(ds, tau=0.9)["total_detectors"].values.tolist() == [1, 1]
    assert detectors(ds, tau=0.9, reading="lite")["total_unique"].values.tolist() == [2, 2]
    score = best_concept(ds)["score"].values.min()
    assert detectors(ds, tau=score)["total_detectors"].values.tolist() == [2, 2]


def test_iou_interval__is_the_percentiles_of_blocks_drawn_again():
    ds = drawn(epochs=1)
    found = iou_interval(ds, resamples=200, confidence=0.9, seed=3)
    draws = np.random.default_rng(3)
    values = []
    for _ in range(200):
        values.append(iou(ds.isel(block=draws.integers(0, 8, 8))).values[0, 3])
    for name, share in (("iou_low", 0.05), ("iou_high", 0.95)):
        np.testing.assert_allclose(found[name].values[0, 3], np.nanquantile(values, share, axis=0), atol=1e-12)
    inside = (found["iou_low"] <= found["iou"]) & (found["iou"] <= found["iou_high"])
    assert inside.where(found["iou"].notnull(), True).mean() > 0.95
    assert (found["iou_low"].isnull() == found["iou"].isnull()).all()


def test_iou_interval__covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    units, blocks = 300, 32
    counts = rng.poisson(40, (1, blocks, units, 1)).astype(float)
    rest = rng.poisson(60, (1, blocks, units, 1)).astype(float)
    data = {
        "intersection": (("epoch", "block", "unit", "concept"), counts),
        "unit_area": (("epoch", "block", "unit", "category"), counts + rest),
        "concept_area": (("epoch", "block", "concept"), np.full((1, blocks, 1), 200.0)),
    }
    ds = xr.Dataset(data, {"concept": ["c"], "concept_category": ("concept", ["k"]), "category": ["k"]})
    found = iou_interval(ds, resamples=400)
    truth = 40 / (100 + 200 - 40)
    covered = ((found["iou_low"] <= truth) & (truth <= found["iou_high"])).mean().item()
    assert 0.88 < covered < 0.98


def test_reductions__say_what_is_wrong():
    ds = cube(five_images())
    with pytest.raises(SchemaError, match="did you mean 'paper'"):
        iou(ds, reading="papers")
    with pytest.raises(SchemaError, match="by='blocks'"):
        iou(ds, by="blocks")
    with pytest.raises(SchemaError, match="weights"):
        iou(ds, weights=[1, 2])
    with pytest.raises(SchemaError, match="Dataset of the concepts cube"):
        iou(ds["intersection"])
    with pytest.raises(MissingMeasurementError, match="--only concepts"):
        iou(ds.drop_vars("unit_area_lite"), reading="lite")
    with pytest.raises(SchemaError, match="'unit'"):
        iou(ds.isel(unit=0))
    with pytest.raises(SchemaError, match="category 'texture', which is not along"):
        iou(ds.isel(category=slice(0, 4)))
    with pytest.raises(SchemaError, match="concept_category"):
        best_concept(xr.DataArray(np.zeros((2, 3)), dims=("unit", "concept")))
    with pytest.raises(SchemaError, match="tau=0"):
        detectors(ds, tau=0)
    with pytest.raises(SchemaError, match="gives no interval"):
        iou_interval(ds, resamples=0)
    with pytest.raises(SchemaError, match="confidence"):
        iou_interval(ds, confidence=95)


def test_reductions__describe_themselves_and_keep_where_they_come_from():
    ds = cube(five_images())
    for result in (iou(ds), best_concept(ds), detectors(ds), iou_interval(ds)):
        assert result.attrs["reading"] == "paper"
        assert result.attrs["run"] == "five"
    assert iou(ds).attrs["long_name"]
    assert detectors(ds).attrs["iou_tau"] == 0.04
    assert best_concept(ds)["label"].dims == ("epoch", "unit")
    assert iou(ds)["concept"].values.tolist() == CONCEPTS
