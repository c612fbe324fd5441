"""Cubes that are not (series, sample): units on fixed axes, activations in blocks; written, grown, renewed."""

from dataclasses import replace

import cube_cases
import numpy as np
import pytest
from cube_cases import (
    AXES,
    PARTS,
    UNITS,
    activations,
    prepare_activations,
    prepare_units,
    relabelled,
    texts,
    unit_values,
    units,
    without,
    write_activations,
    write_units,
)
from store_cases import key

from neurolens import schema
from neurolens.errors import SchemaError, StoreError
from neurolens.store import Axis, open_store
from neurolens.store.layout import wanted as as_wanted


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "run", create=True)


def stored(store, name):
    return np.asarray(store.root()[0][name][...])


def dims(store, name):
    return store.root()[0][name].metadata.dimension_names


def test_prepare__of_units_lays_every_part_along_its_axes(store):
    made = prepare_units(store)
    assert made.change == "create 10 units"
    assert made.sizes == {name: len(axis) for name, axis in AXES.items()}
    assert made.fingerprints == ("f" * 64,)
    assert [len(block) for block in made.blocks] == [0]
    assert prepare_units(store).change == ""
    group = store.root()[0]["units"]
    for variable in schema.UNITS.variables:
        array = group[variable.name]
        assert array.metadata.dimension_names == ("slot", *variable.dims[1:])
        assert array.shape[1:] == tuple(len(AXES[dim]) for dim in variable.dims[1:])
        assert array.dtype == variable.dtype
    assert stored(store, "units/layer").tolist() == ["b"] * 4 + ["a"] * 6
    assert stored(store, "units/sample").tolist() == ["s1", "s2"]


def test_propose__of_units_says_what_prepare_does(store):
    wanted = {"run": "r", "series": "step", "axes": AXES, "fingerprint": "f" * 64, "settings": {"parts": {"top": {}}}}
    proposed = store.propose(schema.UNITS, **wanted)
    assert store.layout("units") is None
    made = store.prepare(schema.UNITS, **wanted)
    assert (made.change, made.sizes, made.fingerprints) == (proposed.change, proposed.sizes, proposed.fingerprints)
    wanted |= {"axes": {**AXES, "rank": Axis(np.arange(9))}, "fingerprint": "e" * 64}
    proposed, tip = store.propose(schema.UNITS, **wanted), store.snapshot_id
    assert proposed.change == "measure other samples; replace axis rank and measure top again"
    assert proposed.sizes["rank"] == 9
    assert proposed.fingerprints == ("e" * 64,)
    assert store.snapshot_id == tip


def test_write_row__of_units_keeps_every_number(store):
    prepare_units(store)
    write_units(store, 3)
    for name, values in unit_values(3).items():
        np.testing.assert_array_equal(stored(store, f"units/{name}")[0], values)
    assert {(r.part, r.state, r.key) for r in store.ledger("units").rows()} == {
        (p, "done", key(3, p, 1)) for p in PARTS
    }


def test_prepare__a_part_added_later_leaves_the_others(store):
    few = ("statistics",)
    prepare_units(store, few, axes=without(AXES, "bin", "rank", "sample"))
    write_units(store, 1, few)
    grown = prepare_units(store, ("statistics", "histogram"), axes=without(AXES, "rank"))
    assert "add axis bin" in grown.change
    assert "add arrays histogram" in grown.change
    assert grown.generation == 0
    ledger = store.ledger("units")
    assert ledger.entry(1, 0, "statistics").current
    assert ledger.entry(1, 0, "histogram").state == "absent"
    write_units(store, 1, ("histogram",))
    np.testing.assert_array_equal(stored(store, "units/mean")[0], unit_values(1, few)["mean"])
    np.testing.assert_array_equal(stored(store, "units/histogram")[0], unit_values(1, ("histogram",))["histogram"])


@pytest.mark.parametrize(
    ("axis", "said"),
    [
        (units({"b": 4, "a": 5}), "units were 10 and are 9"),
        (units({"c": 4, "a": 6}), "units are other ones"),
        (Axis(np.arange(10) + 1, AXES["unit"].coords), "units are other ones"),
    ],
)
def test_prepare__other_units_start_a_generation_and_the_old_stays_readable(store, axis, said):
    prepare_units(store)
    old = write_units(store, 1)
    renewed = prepare_units(store, axes={**AXES, "unit": axis})
    assert said in renewed.change
    assert renewed.generation == 1
    assert len(store.ledger("units")) == 0
    root, _ = store.root()
    assert root["units"].attrs["neurolens"]["previous_snapshot"] == old
    root, _ = store.root(snapshot=old)
    np.testing.assert_array_equal(root["units/mean"][0], unit_values(1)["mean"])


@pytest.mark.parametrize(
    ("dim", "axis", "parts"),
    [
        ("rank", Axis(np.arange(5)), {"top"}),
        ("bin", Axis(np.arange(255)), {"histogram"}),
        ("class", Axis(np.array(["x", "z"])), {"classes"}),
        ("position", Axis(np.arange(8)), {"positions"}),
        ("parameter", Axis(np.array(["w1", "w2"])), {"weights"}),
        ("sample", Axis(np.array(["s1", "s3"])), set()),
    ],
)
def test_prepare__another_axis_makes_only_what_lies_along_it_absent(store, dim, axis, parts):
    prepare_units(store)
    write_units(store, 1)
    axes = {**AXES, dim: axis}
    changed = prepare_units(store, axes=axes)
    assert changed.generation == 0
    assert f"replace axis {dim}" in changed.change
    assert changed.sizes[dim] == len(axis)
    states = {part: store.ledger("units").entry(1, 0, part).state for part in PARTS}
    assert states == {part: "absent" if part in parts else "done" for part in PARTS}
    for part in parts:
        entry = store.ledger("units").entry(1, 0, part)
        assert (entry.key, entry.reading, entry.provenance) == ("", 0, "")
    np.testing.assert_array_equal(stored(store, "units/mean")[0], unit_values(1)["mean"])
    if parts:
        write_units(store, 1, tuple(parts), axes=axes)
    for name, values in unit_values(1, tuple(parts), axes).items():
        np.testing.assert_array_equal(stored(store, f"units/{name}")[0], values)


def test_prepare__further_coordinates_of_an_axis_are_updated_in_place(store):
    prepare_units(store)
    write_units(store, 1)
    named = relabelled(AXES["unit"], module=np.array(["é"] * UNITS), index=AXES["unit"].coords["index"].astype("int32"))
    changed = prepare_units(store, axes={**AXES, "unit": named})
    assert changed.change == "update coordinates of unit"
    assert stored(store, "units/module").tolist() == ["é"] * UNITS
    assert stored(store, "units/index").dtype == "int32"
    assert store.ledger("units").entry(1, 0, "statistics").state == "done"
    prepare_units(store)
    assert "module" not in store.root()[0]["units"]


def test_prepare__axes_left_out_stay_as_they_are(store):
    prepare_units(store)
    write_units(store, 1)
    assert prepare_units(store, ("statistics",), axes=without(AXES, "rank", "bin", "sample")).change == ""
    assert store.ledger("units").entry(1, 0, "top").state == "done"


def test_prepare__other_data_updates_the_fingerprint(store):
    prepare_units(store)
    write_units(store, 1)
    changed = prepare_units(store, fingerprint="e" * 64)
    assert "measure other samples" in changed.change
    assert changed.fingerprints == store.ledger("units").fingerprints == ("e" * 64,)
    assert not store.ledger("units").entry(1, 0, "statistics").current


def test_prepare__a_class_schedule_needs_classes(store):
    with pytest.raises(SchemaError, match="no classes for the class schedule"):
        prepare_units(store, ("statistics",), axes=without(AXES, "class"), exposure={0: [0]})
    prepare_units(store, ("statistics",), exposure={0: [0], 2: [0, 1]})
    row = {"values": {}, "keys": {"statistics": key(1)}, "seconds": 1, "provenance": {}}
    store.write_row(schema.UNITS, (5, 0), positions={"step": 5, "epoch": 1}, **row)
    assert stored(store, "units/exposed")[0].tolist() == [True, False]
    prepare_units(store, ("statistics",), axes={**AXES, "class": Axis(np.array(["y", "x", "z"]))}, exposure={0: [2]})
    assert stored(store, "units/exposed")[0].tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"axes": without(AXES, "bin")}, r"'histogram' has dims .* no axis 'bin'"),
        ({"axes": without(AXES, "unit"), "parts": ("weights",)}, "no axis 'unit'"),
        ({"axes": {**AXES, "binn": Axis(np.arange(3))}}, "no axis 'binn'; did you mean 'bin'"),
        ({"axes": {**AXES, "rank": Axis(np.array([0, 0]))}}, "'rank' .* ids that repeat"),
        ({"axes": {**AXES, "rank": Axis(np.arange(0))}}, "'rank' .* is empty"),
        ({"axes": {**AXES, "rank": Axis(np.arange(3), {"order": np.arange(2)})}}, "'order' has shape"),
        ({"axes": {**AXES, "rank": Axis(np.arange(3), {"mean": np.arange(3)})}}, "that is the variable 'mean'"),
        ({"axes": {**AXES, "sample": Axis(np.arange(3), {"position": np.arange(3)})}}, "that is a dim"),
        ({"axes": {**AXES, "sample": Axis(np.arange(3), {"index": np.arange(3)})}}, "that is a coordinate of 'unit'"),
        ({"axes": {**AXES, "rank": Axis(np.arange(3), {"measured": np.arange(3)})}}, "the store's own"),
        ({"samples": texts(3)}, "pass fingerprint="),
        ({"fingerprint": None}, "pass their fingerprint"),
        ({"block_samples": 3}, "leave samples out"),
        ({"encodings": {"mean": "float8"}}, "no encoding 'float8' for 'mean'; .*'float16'"),
        ({"encodings": {"histogram": "float16"}}, "'float16' stores floats"),
        ({"encodings": {"men": "float16"}}, "did you mean 'mean'"),
    ],
)
def test_prepare__of_units_that_contradict_themselves_is_refused(store, changes, said):
    with pytest.raises(SchemaError, match=said):
        prepare_units(store, **changes)
    assert store.layout("units") is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": None}, "none are given; pass samples="),
        ({"fingerprint": "f"}, "leave fingerprint= out"),
        ({"block": 0}, "at least one sample"),
        ({"axes": {}}, "no axis 'unit'"),
        ({"axes": {"unit": units(), "sample": Axis(np.arange(3))}}, "no axis 'sample'"),
        ({"axes": {"unit": relabelled(units(), tokens=np.arange(UNITS))}}, "that is a coordinate of the samples"),
        ({"axes": {"unit": relabelled(units(), label=np.arange(UNITS))}}, "the store's own"),
        ({"samples": replace(texts(3), coords={"unit": np.arange(3)})}, "the store's own"),
    ],
)
def test_prepare__of_activations_that_contradict_themselves_is_refused(store, changes, said):
    with pytest.raises(SchemaError, match=said):
        prepare_activations(store, **changes)


def test_prepare__of_activations_cuts_blocks_that_fit(store):
    made = prepare_activations(store)
    assert made.change == "create 50 samples × 10 units"
    assert [len(ids) for ids in made.blocks] == [20, 20, 10]
    assert len(set(made.fingerprints)) == 3
    assert stored(store, "activations/sample_block").tolist() == [0] * 20 + [1] * 20 + [2] * 10
    assert dims(store, "activations/activation") == ("slot", "sample", "unit")
    assert store.root()[0]["activations/activation"].chunks == (1, 20, 10)
    assert prepare_activations(store).change == ""


def test_prepare__of_activations_grows_by_blocks_and_fills_up_a_begun_chunk(store):
    prepare_activations(store)
    for block, n in enumerate((20, 20, 10)):
        write_activations(store, 1, block, n)
    wanted = {**_activations_of(97), "settings": {"parts": {"activation": {}}}}
    proposed = store.propose(schema.ACTIVATIONS, **wanted)
    grown = prepare_activations(store, 97)
    assert [len(ids) for ids in grown.blocks] == [20, 20, 10, 10, 20, 17]
    assert grown.fingerprints == proposed.fingerprints
    assert [b.tolist() for b in grown.blocks] == [b.tolist() for b in proposed.blocks]
    assert grown.change.startswith("append 47 samples")
    assert store.ledger("activations").state[0, :, 0].tolist() == [1, 1, 1, 0, 0, 0]
    write_activations(store, 1, 3, 10)
    found = stored(store, "activations/activation")[0]
    np.testing.assert_array_equal(found[40:50], activations(1, 2, 10).astype("float16"))
    np.testing.assert_array_equal(found[50:60], activations(1, 3, 10).astype("float16"))
    assert np.isnan(found[60:]).all()


def _activations_of(n):
    return {
        "run": "r",
        "series": "step",
        "samples": texts(n),
        "axes": {"unit": units()},
        "block_samples": cube_cases.BLOCK,
    }


def test_prepare__of_activations_without_a_limit_is_one_block(store):
    assert [len(ids) for ids in prepare_activations(store, block=None).blocks] == [50]
    assert [len(ids) for ids in prepare_activations(store, 70, block=None).blocks] == [50, 20]


def test_write_row__of_bitround_loses_at_most_2_to_the_minus_11(store):
    prepare_activations(store, encoding="float32-bitround10")
    values = activations(1, 0, 20) * np.float32(1e30)
    values[0, :4] = np.nan, np.inf, -np.inf, 0
    write_activations(store, 1, 0, 20, values={"activation": values})
    found = stored(store, "activations/activation")[0, :20]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0, :4], values[0, :4])
    finite = np.isfinite(values) & (values != 0)
    error = np.abs(found[finite].astype("f8") / values[finite] - 1).max()
    assert 2**-13 < error <= 2**-11
    assert (found[finite].view("i4") & 0x1FFF == 0).all(), "13 bits of the mantissa are zero: what compresses"


def test_write_row__beyond_float16_is_refused_and_names_the_other_encoding(store):
    prepare_activations(store)
    values = np.full((20, UNITS), 65519, "float32")
    write_activations(store, 1, 0, 20, values={"activation": values})
    assert (stored(store, "activations/activation")[0, :20] == 65504).all()
    values[3, 3] = 65520
    with pytest.raises(SchemaError, match=r"beyond the range of float16 \(±65504\).*'float32-bitround10'"):
        write_activations(store, 2, 0, 20, values={"activation": values})


@pytest.mark.parametrize("encoding", [None, "float16"])
def test_prepare__another_encoding_starts_a_generation(store, encoding):
    prepare_activations(store, encoding=encoding)
    write_activations(store, 1, 0, 20)
    assert prepare_activations(store, encoding="float16").change == ""
    renewed = prepare_activations(store, encoding="float32-bitround10")
    assert "activation was stored as float16 and is now float32" in renewed.change
    assert renewed.generation == 1
    assert prepare_activations(store, encoding="float32-bitround10").change == ""


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"n": 5}, SchemaError, r"\(5, 10\); block 0 has 20 samples, and needs \(sample 20, unit 10\)"),
        ({"values": {"activation": np.ones((20, 9), "f4")}}, SchemaError, r"needs \(sample 20, unit 10\)"),
        ({"values": {"activation": np.ones(20, "f4")}}, SchemaError, r"needs \(sample 20, unit 10\)"),
        ({"values": {"activation": np.ones((20, 10), "c8")}}, SchemaError, "complex64, which does not fit"),
        ({"block": 7}, StoreError, "has 3 blocks, and no block 7"),
    ],
)
def test_write_row__of_another_shape_is_refused_and_leaves_no_trace(store, changes, error, said):
    prepare_activations(store)
    tip = store.snapshot_id
    with pytest.raises(error, match=said):
        write_activations(store, 1, **{"block": 0, "n": 20, **changes})
    assert store.snapshot_id == tip


def test_write_row__of_units_of_another_shape_names_the_dims(store):
    prepare_units(store)
    row = {"positions": {"step": 1}, "keys": {"histogram": key(1)}, "seconds": 1, "provenance": {}}
    with pytest.raises(SchemaError, match=r"\(10, 3\), and needs \(unit 10, bin 256\)"):
        store.write_row(schema.UNITS, (1, 0), values={"histogram": np.ones((10, 3), "u4")}, **row)


def test_write_row__of_an_older_generation_is_refused(store):
    prepare_units(store)
    late = open_store(store.url)
    prepare_units(late, axes={**AXES, "unit": units({"b": 4})})
    with pytest.raises(StoreError, match="now at generation 1"):
        write_units(store, 1)


def test_write_failure__of_a_stale_block_leaves_no_old_number_to_read(store):
    prepare_activations(store)
    for block in (0, 1):
        write_activations(store, 1, block, 20)
    row = {"positions": {"step": 1}, "keys": {"activation": key("new")}, "provenance": {}}
    store.write_failure(schema.ACTIVATIONS, (1, 0), error="NaN activations", **row)
    found = stored(store, "activations/activation")[0]
    assert np.isnan(found[:20]).all()
    np.testing.assert_array_equal(found[20:40], activations(1, 1, 20).astype("float16"))
    assert store.ledger("activations").entry(1, 0, "activation").error == "NaN activations"


def test_cubes__of_one_store_are_apart(store):
    prepare_units(store)
    prepare_activations(store)
    write_units(store, 1)
    assert prepare_units(store).change == prepare_activations(store).change == ""
    assert len(store.ledger("activations")) == 0
    with pytest.raises(SchemaError, match="did you mean 'activation'"):
        as_wanted(
            schema.ACTIVATIONS, "r", "step", texts(3), {}, None, ["activatio"], None, {"unit": units()}, None, None, {}
        )
