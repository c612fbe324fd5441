"""Dormancy: golden numbers, the definitions written out slowly, laziness, chunks, invariants."""

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dormancy_cases import H, drawn, raising, statistics
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from neurolens.errors import SchemaError
from neurolens.units import dormancy, dormancy_summary, dormant
from neurolens.units.definitions import DEFINITIONS
from neurolens.units.layers_of import per_layer

ALL = list(DEFINITIONS)
CHUNKS = [{"epoch": 1}, {"unit": 5}, {"epoch": 2, "unit": 7}]


def slow(activations, layers, definition, tau):
    """Each source's rule for one checkpoint, unit by unit, from the activations: (scores, dormant)."""
    observations, units = activations.shape
    layers = list(layers)

    def strength(j):
        values = activations[:, j]
        if definition == "redo_centred":
            centre = sum(values) / observations
            return sum(abs(v - centre) for v in values) / observations
        return sum(abs(v) for v in values) / observations

    scores, flags = [], []
    for j in range(units):
        values = activations[:, j]
        if definition in ("redo", "redo_centred"):
            mates = [k for k in range(units) if layers[k] == layers[j]]
            mean = sum(strength(k) for k in mates) / len(mates)
            score = strength(j) / mean if mean else 0.0
            flag = score <= tau
        elif definition == "absolute":
            score = strength(j)
            flag = score < tau
        elif definition == "dead":
            score = max(values)
            flag = all(v <= 0 for v in values)
        elif definition == "lop":
            score = sum(v != 0 for v in values) / observations
            flag = score < tau
        else:
            score = sum(v > 0 for v in values) / observations
            flag = score <= tau
        scores.append(score)
        flags.append(flag)
    return scores, flags


def which(mask):
    return set(np.flatnonzero(mask.data).tolist())


def at(mask, **where):
    return which(mask.isel(epoch=0).sel(**where))


def test_dormancy__matches_the_table_worked_by_hand():
    ds = statistics(H)
    np.testing.assert_allclose(
        dormancy(ds)[0], [0, 0.952380952, 0.190476190, 0.047619048, 3.809523810], rtol=0, atol=5e-10
    )
    assert float(dormancy(ds).sum()) == pytest.approx(5)
    np.testing.assert_allclose(dormancy(ds, "absolute")[0], [0, 1, 0.2, 0.05, 4])
    np.testing.assert_allclose(dormancy(ds, "lop_rl")[0], [0, 0.5, 0.25, 1, 0.75])
    np.testing.assert_allclose(dormancy(ds, "lop")[0], [0, 0.5, 0.5, 1, 0.75])
    np.testing.assert_allclose(dormancy(ds, "redo_centred")[0], [0, 1.5625, 0.3125, 0, 3.125])


def test_dormant__matches_the_table_worked_by_hand():
    ds = statistics(H)
    swept = dormant(ds, tau=[0, 0.025, 0.1, 0.5, 1])
    assert [at(swept, tau=t) for t in (0, 0.025, 0.1, 0.5, 1)] == [{0}, {0}, {0, 3}, {0, 2, 3}, {0, 1, 2, 3}]
    assert at(dormant(ds, "absolute")) == {0, 3}
    assert at(dormant(ds, "absolute", 0.05)) == {0}
    assert which(dormancy(ds, "absolute")[0] <= 0.05) == {0, 3}
    assert at(dormant(ds, "dead")) == {0}
    assert at(dormant(ds, "lop")) == at(dormant(ds, "lop_rl")) == {0}
    assert at(dormant(ds, "redo_centred", 0.1)) == {0, 3}


def test_dormancy__of_maps_scores_channels():
    maps = np.zeros((2, 3, 2, 2))
    maps[:, 0] = [[[1, 2], [3, 4]], [[0, 0], [0, 6]]]
    maps[0, 1, 0, 0] = 0.8
    ds = statistics(maps.transpose(0, 2, 3, 1).reshape(-1, 3))
    np.testing.assert_allclose(dormancy(ds, "absolute")[0], [2, 0.1, 0])
    np.testing.assert_allclose(dormancy(ds)[0], [2.857142857, 0.142857143, 0], atol=5e-10)


def test_dormancy__matches_the_reference_on_maps_of_four_images():
    maps = np.zeros((4, 3, 2, 2))
    maps[0, 0, 0, 0] = 1
    maps[:, 1] = 0.5
    ds = statistics(maps.transpose(0, 2, 3, 1).reshape(-1, 3))
    np.testing.assert_allclose(dormancy(ds, "lop")[0], [0.0625, 1, 0])
    assert dormant(ds, "lop", [0.01, 0.1]).sum("unit").data.tolist() == [[1], [2]]
    np.testing.assert_allclose(dormancy(ds)[0], [0.333333, 2.666667, 0], atol=5e-7)


def test_dormant__counts_a_silent_layer_as_wholly_dormant():
    ds = statistics(np.zeros((2, 3)))
    for definition in ALL:
        assert dormancy(ds, definition).data.tolist() == [[0, 0, 0]]
        assert dormant(ds, definition).all()
    assert dormant(ds, tau=0).all()
    assert dormancy(ds, normalize="median").data.tolist() == [[0, 0, 0]]


def test_dormancy__adds_no_epsilon():
    tiny = statistics(H * 1e-12)
    np.testing.assert_allclose(dormancy(tiny), dormancy(statistics(H)), rtol=1e-13)


def test_dormant__compares_as_each_source_does():
    a = np.zeros((100, 3))
    a[0, 0], a[:2, 1], a[:, 2] = 1, 1, 1
    ds = statistics(a)
    assert at(dormant(ds, "lop", 0.01)) == set()  # the share is 0.01: not below it
    assert at(dormant(ds, "lop_rl", 0.01)) == {0}
    assert at(dormant(ds, "absolute", 0.02)) == {0}
    same = statistics(np.ones((4, 3)))
    assert dormant(same, "redo", 1).all()
    assert not dormant(same, "absolute", 1).any()


def test_dormant__has_the_default_thresholds_of_the_sources():
    ds = drawn()
    several = dormant(ds, ALL)
    np.testing.assert_array_equal(several.tau, [0.025, 0.1, np.nan, 0.01, 0.01, 0.025])
    for definition, tau in zip(ALL, several.tau.data):
        alone = dormant(ds, definition) if np.isnan(tau) else dormant(ds, definition, float(tau))
        xr.testing.assert_equal(several.sel(definition=definition, drop=True), alone)
        if not np.isnan(tau):
            xr.testing.assert_identical(alone, dormant(ds, definition))
            assert alone.attrs["dormancy_tau"] == tau


def test_dormancy__documents_every_definition_as_it_is():
    rows = [line.strip("| ").split(" | ") for line in dormancy.__doc__.splitlines() if line.strip().startswith("| `")]
    assert [row[0].strip("`") for row in rows] == ALL
    for (_, _, compared, tau, reads), rule in zip(rows, DEFINITIONS.values()):
        assert compared.split()[1] == ("<" if rule.strict else "≤")
        assert tau == ("–" if rule.fixed else str(rule.tau))
        assert set(reads.replace("`", "").split(", ")) == set(rule.reads)


@pytest.mark.parametrize("definition", ALL)
@given(seed=st.integers(0, 999), tau=st.sampled_from([0.0, 0.01, 0.03, 0.1, 0.5, 1.0, 2.0]))
@settings(max_examples=15, deadline=None)
def test_dormant__matches_the_slow_definition(definition, seed, tau):
    rng = np.random.default_rng(seed)
    layers = [f"l.{k}" for k in rng.integers(0, 3, 9)]
    a = rng.normal(size=(2, 7, 9)) * rng.choice([0, 0.05, 1], size=(2, 1, 9))
    a = np.maximum(a, 0) if seed % 2 else a
    ds = statistics(a, layers)
    scores, flags = zip(*(slow(one, layers, definition, tau) for one in a))
    np.testing.assert_allclose(dormancy(ds, definition), scores, rtol=1e-12, atol=1e-15)
    assume(not any(0 < abs(s - tau) < 1e-9 for one in scores for s in one))
    mask = dormant(ds, definition) if definition == "dead" else dormant(ds, definition, tau)
    np.testing.assert_array_equal(mask, flags)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("definition", ALL)
def test_dormancy__is_lazy_and_blind_to_chunks(definition, chunks):
    ds = drawn()
    with dask.config.set(scheduler=raising):
        scores, mask = dormancy(ds.chunk(chunks), definition), dormant(ds.chunk(chunks), definition)
        summary = dormancy_summary(ds.chunk(chunks), definition)
    assert isinstance(scores.data, da.Array)
    assert isinstance(mask.data, da.Array)
    xr.testing.assert_identical(scores.compute(), dormancy(ds, definition))
    xr.testing.assert_identical(mask.compute(), dormant(ds, definition))
    xr.testing.assert_identical(summary.compute(), dormancy_summary(ds, definition))


@given(
    seed=st.integers(0, 99),
    rows=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    columns=st.lists(st.integers(1, 9), min_size=1, max_size=9),
)
@settings(max_examples=25, deadline=None)
def test_dormant__is_blind_to_ragged_chunks_that_split_layers(seed, rows, columns):
    ds = drawn(sum(rows), sum(columns), seed)
    given_chunks = ds.chunk({"epoch": tuple(rows), "unit": tuple(columns)})
    options = {"definition": ["redo", "lop"], "tau": [0.0, 0.3]}
    xr.testing.assert_identical(dormant(given_chunks, **options).compute(), dormant(ds, **options))


@pytest.mark.parametrize("layers", [1, 150])
def test_dormancy__needs_few_tasks_however_many_layers(layers):
    ds = drawn(1, 300, layers=[f"l.{k * layers // 300}" for k in range(300)])
    assert len(dormancy(ds.chunk({"unit": 300})).__dask_graph__()) <= 8
    rows = xr.concat([ds] * 40, "epoch", join="override", compat="override", coords="minimal").chunk({"epoch": 1})
    assert len(dormancy(rows).__dask_graph__()) <= 5 * 40 + 4
    assert len(dormant(rows, tau=[0.1, 0.2]).__dask_graph__()) <= 12 * 40


@given(seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_dormancy__has_mean_one_over_every_layer_that_is_not_silent(seed):
    ds = drawn(seed=seed)
    for definition, strength in (("redo", ds["abs_sum"]), ("redo_centred", ds["abs_dev"])):
        mean, silent = per_layer(dormancy(ds, definition), "mean"), per_layer(strength, "total") == 0
        np.testing.assert_allclose(mean, np.where(silent, 0.0, 1.0), rtol=1e-12)


@given(seed=st.integers(0, 999), taus=st.lists(st.floats(0, 3), min_size=2, max_size=6))
@settings(max_examples=25, deadline=None)
def test_dormant__grows_with_tau(seed, taus):
    swept = dormant(drawn(seed=seed), [d for d in ALL if d != "dead"], sorted(taus))
    assert (swept.astype(int).diff("tau") >= 0).all()


@given(seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_dormancy__does_not_depend_on_the_order_of_units(seed):
    ds = drawn(seed=seed)
    shuffled = ds.isel(unit=np.random.default_rng(seed).permutation(ds.sizes["unit"]))
    for definition in ALL:
        xr.testing.assert_allclose(dormancy(shuffled, definition).sortby("unit"), dormancy(ds, definition))


@given(seed=st.integers(0, 999), scale=st.floats(1e-6, 1e6))
@settings(max_examples=25, deadline=None)
def test_dormancy__relative_to_a_layer_does_not_change_when_the_layer_is_scaled(seed, scale):
    ds = drawn(seed=seed)
    factor = xr.where(ds["layer"] == ds["layer"][-1], scale, 1.0).reset_coords(drop=True)
    scaled = ds.assign(abs_sum=ds["abs_sum"] * factor, abs_dev=ds["abs_dev"] * factor)
    for normalize in ("mean", "median"):
        names = ["redo", "redo_centred"]
        xr.testing.assert_allclose(
            dormancy(scaled, names, normalize=normalize), dormancy(ds, names, normalize=normalize)
        )


def test_dormancy__by_the_median_is_not_pulled_by_a_few_large_units():
    loud = np.array([[1.0, 1.0, 1.0, 1.0, 996.0]])
    assert at(dormant(statistics(loud))) == {0, 1, 2, 3}
    assert at(dormant(statistics(loud), normalize="median")) == set()
    scores = dormancy(statistics([[0.0, 0.0, 2.0]]), normalize="median")
    assert scores.data.tolist() == [[0, 0, np.inf]]


def test_dormancy__per_class_is_that_of_the_samples_of_each_class():
    rng = np.random.default_rng(3)
    a = np.maximum(rng.normal(size=(2, 12, 5)), 0) * [0, 0.01, 1, 1, 1]
    classes, layers = np.arange(12) % 3, ["x", "x", "x", "y", "y"]
    ds = statistics(a, layers, classes)
    for definition in ("redo", "absolute", "dead", "lop_rl"):
        for name, reduction in (("score", dormancy), ("mask", dormant)):
            found = reduction(ds, definition, per_class=True)
            for c in range(3):
                alone = reduction(statistics(a[:, classes == c], layers), definition)
                np.testing.assert_allclose(found.isel({"class": c}), alone, err_msg=f"{name} {definition}")
    with pytest.raises(SchemaError, match="'lop' reads 'n_nonzero', which is not kept per class; use redo"):
        dormancy(ds, "lop", per_class=True)


def test_dormancy__of_one_checkpoint_needs_no_series():
    ds = drawn()
    xr.testing.assert_allclose(dormancy(ds.isel(epoch=-1)), dormancy(ds).isel(epoch=-1))
    xr.testing.assert_identical(
        dormancy_summary(ds.isel(epoch=-1)).drop_attrs(), dormancy_summary(ds).isel(epoch=-1).drop_attrs()
    )


def test_dormancy__keeps_where_numbers_come_from():
    ds = drawn().assign_attrs(run="r18", snapshot="ABC", settings="{}", series="epoch")
    for result in (dormancy(ds), dormant(ds), dormant(ds, ["redo", "lop"]), dormancy_summary(ds)):
        assert result.attrs["run"] == "r18"
        assert result.attrs["snapshot"] == "ABC"
        assert "settings" not in result.attrs
    assert dormant(ds, "lop", 0.2).attrs["dormancy_tau"] == 0.2
    assert dormant(ds, "lop").attrs["definition"] == dormancy_summary(ds, "lop").attrs["definition"] == "lop"
    assert dormancy(ds, "absolute").attrs["units"] == "activation"


def test_dormancy__works_where_layer_is_an_index():
    ds = drawn()
    indexed = ds.set_xindex("layer")
    xr.testing.assert_equal(dormant(indexed, ["redo", "lop"]).drop_indexes("layer"), dormant(ds, ["redo", "lop"]))
    layer = str(ds.layer.data[-1])
    alone = dormancy(indexed.sel(layer=layer))
    xr.testing.assert_equal(alone, dormancy(indexed).sel(layer=layer))
    found = dormancy_summary(indexed)
    assert found.sel(layer=layer).fraction.equals(dormancy_summary(indexed.sel(layer=layer)).fraction.isel(layer=0))
