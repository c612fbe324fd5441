"""Transitions of dormant units: golden numbers, sets written out slowly, laziness, identities, errors."""

from itertools import pairwise

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dormancy_cases import MASKS, drawn, raising, with_units
from hypothesis import given, settings
from hypothesis import strategies as st

import neurolens
from neurolens import accessor
from neurolens.errors import ModelMismatchError, SchemaError
from neurolens.units import dormancy, dormant, transitions

CHUNKS = [{"step": 1}, {"unit": 4}, {"step": 2, "unit": 3}]


def masks(values=MASKS, layers=None):
    values = np.asarray(values, bool)
    ds = xr.Dataset({"mask": (("step", "unit"), values)}, coords={"step": 2 ** np.arange(len(values))})
    return with_units(ds, layers)["mask"]


def random_masks(checkpoints, units, seed):
    rng = np.random.default_rng(seed)
    return masks(rng.random((checkpoints, units)) < rng.random(), [f"l.{k}" for k in rng.integers(0, 3, units)])


def slow(mask):
    """One transition and one unit at a time, with sets."""
    sets = [set(np.flatnonzero(row).tolist()) for row in mask]
    units = range(mask.shape[1])
    pairs = []
    for a, b in pairwise(sets):
        pairs.append(
            {
                "stay": a & b,
                "revived": a - b,
                "new": b - a,
                "intersected_percent": 100 * len(a & b) / len(a) if a else 0.0,
                "overlap": len(a & b) / min(len(a), len(b)) if a and b else np.nan,
                "jaccard": len(a & b) / len(a | b) if a | b else np.nan,
            }
        )
    first = [next((t for t, s in enumerate(sets) if u in s), -1) for u in units]
    flips = [sum((u in a) != (u in b) for a, b in pairwise(sets)) for u in units]
    return pairs, first, flips


def where(flags):
    return set(np.flatnonzero(flags.data).tolist())


def test_transitions__match_the_masks_worked_by_hand():
    found = transitions(masks())
    assert found["n_dormant"].data.tolist() == [3, 3, 1]
    assert where(found["persistent"]) == {0}
    assert where(found["ever"]) == {0, 1, 2, 4}
    assert [where(found[name][0]) for name in ("stay", "revived", "new")] == [{0, 4}, {1}, {2}]
    assert [where(found[name][1]) for name in ("stay", "revived", "new")] == [{0}, {2, 4}, set()]
    np.testing.assert_allclose(found["intersected_percent"], [200 / 3, 100 / 3])
    np.testing.assert_allclose(found["overlap"], [2 / 3, 1])
    np.testing.assert_allclose(found["jaccard"], [1 / 2, 1 / 3])
    assert found["first_dormant"].data.tolist() == [0, 0, 1, -1, 0, -1]
    np.testing.assert_array_equal(found["first_dormant_step"], [1, 1, 2, np.nan, 1, np.nan])
    assert found["flips"].data.tolist() == [0, 1, 2, 0, 1, 0]
    assert [int(found[name]) for name in ("n_persistent", "n_ever", "n_units")] == [1, 4, 6]


def test_transitions__are_named_by_the_checkpoints_on_both_sides():
    found = transitions(masks())
    assert found["from_step"].data.tolist() == [1, 2]
    assert found["to_step"].data.tolist() == [2, 4]
    assert int(found.sel(to_step=4)["n_revived"]) == 2
    assert found.attrs["series"] == "step"


@given(checkpoints=st.integers(1, 6), units=st.integers(1, 12), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_transitions__match_the_slow_definition(checkpoints, units, seed):
    mask = random_masks(checkpoints, units, seed)
    found = transitions(mask)
    pairs, first, flips = slow(mask.data)
    assert found.sizes["transition"] == len(pairs) == checkpoints - 1
    for i, expected in enumerate(pairs):
        here = found.isel(transition=i)
        for name in ("stay", "revived", "new"):
            assert where(here[name]) == expected[name]
            assert int(here[f"n_{name}"]) == len(expected[name])
        for name in ("intersected_percent", "overlap", "jaccard"):
            np.testing.assert_allclose(here[name], expected[name])
    assert found["first_dormant"].data.tolist() == first
    assert found["flips"].data.tolist() == flips


@given(checkpoints=st.integers(2, 6), units=st.integers(1, 12), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_transitions__keep_their_identities(checkpoints, units, seed):
    mask = random_masks(checkpoints, units, seed)
    for found in (transitions(mask), transitions(mask, by="layer")):
        before, after = (found["n_dormant"].isel(step=s).data for s in (slice(None, -1), slice(1, None)))
        np.testing.assert_array_equal(found["n_stay"] + found["n_revived"], before)
        np.testing.assert_array_equal(found["n_stay"] + found["n_new"], after)
        assert (found["n_persistent"] <= found["n_dormant"].min("step")).all()
        assert (found["n_ever"] >= found["n_dormant"].max("step")).all()
        assert (found["n_ever"] <= found["n_units"]).all()
        overlap, jaccard = found["overlap"].fillna(1), found["jaccard"].fillna(0)
        assert (overlap >= jaccard - 1e-12).all()
    found = transitions(mask)
    assert not (found["stay"] & found["revived"] | found["stay"] & found["new"] | found["revived"] & found["new"]).any()
    np.testing.assert_array_equal(found["flips"].sum(), (found["n_revived"] + found["n_new"]).sum())
    np.testing.assert_array_equal(found["ever"], found["first_dormant"] >= 0)
    back = transitions(mask.isel(step=slice(None, None, -1)))
    np.testing.assert_array_equal(back["n_revived"], found["n_new"][::-1])
    np.testing.assert_array_equal(back["jaccard"], found["jaccard"][::-1])


@given(units=st.integers(1, 12), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_transitions__by_layer_are_those_of_each_layer(units, seed):
    mask = random_masks(4, units, seed)
    found = transitions(mask, by="layer")
    assert found.layer.data.tolist() == list(dict.fromkeys(mask.layer.data.tolist()))
    for layer in found.layer.data:
        alone = transitions(mask.isel(unit=np.flatnonzero(mask.layer.data == str(layer))))
        here = found.sel(layer=layer, drop=True)
        xr.testing.assert_allclose(here, alone[list(here.data_vars)].drop_vars("unit", errors="ignore"))
    total = transitions(mask)
    for name in ("n_stay", "n_revived", "n_new", "n_dormant", "n_ever", "n_persistent", "n_units"):
        np.testing.assert_array_equal(found[name].sum("layer"), total[name])


@pytest.mark.parametrize("by", [None, "layer"])
@pytest.mark.parametrize("chunks", CHUNKS)
def test_transitions__are_lazy_and_blind_to_chunks(by, chunks):
    mask = random_masks(5, 11, 3)
    with dask.config.set(scheduler=raising):
        found = transitions(mask.chunk(chunks), by=by)
    lazy = [name for name, variable in found.items() if isinstance(variable.data, da.Array)]
    assert set(lazy) == set(found) - {"n_units"}
    xr.testing.assert_identical(found.compute(), transitions(mask, by=by).compute())


def test_transitions__keep_definitions_and_thresholds_apart():
    mask = dormant(drawn(), ["redo", "lop"], [0.0, 0.1])
    found = transitions(mask)
    assert found["stay"].sizes == {"definition": 2, "tau": 2, "transition": 4, "unit": 24}
    alone = transitions(mask.sel(definition="lop", tau=0.1))
    for name in ("stay", "flips", "n_new", "jaccard", "first_dormant_epoch"):
        np.testing.assert_array_equal(found[name].sel(definition="lop", tau=0.1), alone[name])


def test_transitions__take_several_masks_of_the_same_units():
    mask = random_masks(5, 7, 1)
    xr.testing.assert_identical(transitions([mask[:2], mask[2:]]), transitions(mask))


def test_transitions__of_one_checkpoint_have_no_transition():
    found = transitions(masks(MASKS[:1]))
    assert found.sizes["transition"] == 0
    assert where(found["persistent"]) == where(found["ever"]) == {0, 1, 4}
    assert found["flips"].data.tolist() == [0] * 6


def test_transitions__remember_what_the_mask_means():
    mask = dormant(drawn().assign_attrs(run="r18"), "lop", 0.2)
    attrs = transitions(mask).attrs
    assert attrs["run"] == "r18"
    assert attrs["definition"] == "lop"
    assert attrs["dormancy_tau"] == 0.2
    assert attrs["comparison"] == "<"


def test_transitions__work_where_layer_is_an_index():
    mask = random_masks(4, 9, 2)
    for by in (None, "layer"):
        xr.testing.assert_equal(
            transitions(mask.set_xindex("layer"), by=by).drop_indexes("layer", errors="ignore").reset_coords(drop=True),
            transitions(mask, by=by).drop_indexes("layer", errors="ignore").reset_coords(drop=True),
        )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (masks(MASKS[:, :4]), "6 and 4 units"),
        (masks(layers=["a"] * 3 + ["b"] * 3), "differ in layer, index"),
        (masks().drop_vars("layer"), "differ in layer"),
        (masks().assign_coords(unit=np.arange(6) + 1), "differ in unit"),
    ],
)
def test_transitions__refuse_masks_over_different_units(other, message):
    with pytest.raises(ModelMismatchError, match=message):
        transitions([masks(), other])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transitions(dormancy(drawn())), "found dtype float64; a bool mask is needed"),
        (lambda: transitions(drawn()), "found a Dataset"),
        (lambda: transitions([]), "there is no mask"),
        (lambda: transitions(masks(), by="unit"), "by='unit' is unknown"),
        (lambda: transitions(masks().isel(step=0)), "need one series dim"),
        (lambda: transitions(masks().isel(step=[])), "no step left"),
        (lambda: transitions(masks().isel(unit=[])), "at least one unit"),
        (lambda: transitions(masks().rename(unit="neuron", index="i", layer="l")), "at least one unit"),
        (lambda: transitions(masks().drop_vars("layer"), by="layer"), "no coordinate `layer`"),
    ],
)
def test_transitions__errors_name_the_mend(call, message):
    with pytest.raises(SchemaError, match=message):
        call()


def test_lens_transitions__are_those_of_the_mask():
    ds = drawn()
    assert isinstance(ds.lens, accessor.Lens)
    xr.testing.assert_identical(
        ds.lens.transitions("lop", 0.1, by="layer"),
        neurolens.transitions(neurolens.dormant(ds, "lop", 0.1), by="layer"),
    )
