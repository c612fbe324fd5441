"""Rows of the store: one commit each, with their ledger; failures, exposure, tags."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from store_cases import CUBE, PARTS, array, key, prepare, samples, values, write

from neurolens.errors import SchemaError, StoreError
from neurolens.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(tmp_path / "run", create=True)
    prepare(made)
    return made


def test_write_row__commits_data_sums_and_ledger_at_once(store):
    before = len(list(store.history()))
    snapshot = write(store, 7)
    assert store.snapshot_id == snapshot
    assert len(list(store.history())) == before + 1
    assert next(store.history()).message == "samples: epoch 7, step 700, block 0: forward, input_gradient"
    ledger = store.ledger("samples")
    assert ledger.positions.tolist() == [7]
    assert ledger.steps.tolist() == [700]
    assert [(r.part, r.state, r.key) for r in ledger.rows()] == [(p, "done", key(7, p, 1)) for p in PARTS]
    entry = ledger.entry(7, 0, "forward")
    assert entry.seconds == 0.5
    assert entry.provenance == '{"device": "cpu"}'
    assert ledger.is_done(7, 0, "forward", key(7, "forward", 1))
    assert not ledger.is_done(7, 0, "grand", key(7, "grand", 1))
    assert ledger.entry(8, 0, "forward").state == "absent"
    for name, wanted in values(7).items():
        np.testing.assert_array_equal(array(store, name)[0], wanted)
    sums = [values(7)["loss"][samples().labels == c].sum(dtype="f8") for c in range(3)]
    np.testing.assert_allclose(array(store, "loss_sum")[0, 0], sums, rtol=1e-14)
    assert array(store, "loss_count")[0, 0].tolist() == [4, 4, 4]


def test_write_row__of_one_part_leaves_the_others(store):
    write(store, 0)
    write(store, 0, parts=("input_gradient",), version=2)
    np.testing.assert_array_equal(array(store, "loss")[0], values(0)["loss"])
    np.testing.assert_array_equal(array(store, "grad_norm")[0], values(0, 12, ("input_gradient",), 2)["grad_norm"])
    ledger = store.ledger("samples")
    assert ledger.entry(0, 0, "forward").key == key(0, "forward", 1)
    assert ledger.entry(0, 0, "input_gradient").key == key(0, "input_gradient", 2)


def test_write_row__over_a_stale_one_keeps_it_in_the_history(store):
    old = write(store, 0)
    write(store, 0, version=2)
    np.testing.assert_array_equal(array(store, "loss")[0], values(0, version=2)["loss"])
    root, _ = store.root(snapshot=old)
    np.testing.assert_array_equal(root["samples/loss"][0], values(0)["loss"])
    assert len(store.ledger("samples")) == 1


def test_write_row__a_variable_without_value_reads_as_not_measured(store):
    write(store, 0)
    write(store, 0, parts=("forward",), values={"margin": np.ones(12, "f4")})
    assert np.isnan(array(store, "loss")[0]).all()
    assert array(store, "correct")[0].tolist() == [-1] * 12
    assert not array(store, "loss_count")[0].any()
    assert array(store, "grad_norm_count")[0].sum() == 12


def test_write_row__nan_is_not_counted(store):
    given = values(0)
    given["loss"][:3] = np.nan
    write(store, 0, values=given)
    assert array(store, "loss_count")[0, 0].tolist() == [3, 3, 3]
    assert np.isfinite(array(store, "loss_sum")[0]).all()


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"values": {"loss": np.ones(5, "f4")}}, SchemaError, "block 0 has 12 samples"),
        ({"values": {"los": np.ones(12, "f4")}}, SchemaError, "did you mean 'loss'"),
        ({"values": {"correct": np.ones(12)}}, SchemaError, "does not fit into int8"),
        ({"keys": {"forward": "abc"}}, SchemaError, "sha256"),
        ({"positions": {"step": 3}}, SchemaError, "epoch must be 0"),
        ({"positions": {"epoch": 0, "step": -1}}, SchemaError, "negative"),
        ({"generation": 5}, StoreError, "changed the samples meanwhile"),
        ({"block": 1}, StoreError, "no block 1"),
    ],
)
def test_write_row__what_does_not_fit_is_refused_and_leaves_no_trace(store, changes, error, said):
    tip = store.snapshot_id
    with pytest.raises(error, match=said):
        write(store, 0, **changes)
    assert store.snapshot_id == tip


def test_write_row__beyond_the_slots_allocated_ahead(store, monkeypatch):
    for target in ("groups", "commits"):
        monkeypatch.setattr(f"neurolens.store.{target}.SLOTS_AHEAD", 2)
    for epoch in range(64, -1, -1):  # one more than the first allocation holds
        write(store, epoch, parts=("input_gradient",))
    ledger = store.ledger("samples")
    assert len(ledger) == 65
    assert array(store, "loss").shape[0] == 66
    assert [r.position for r in ledger.rows()] == list(range(65))


def test_write_failure__is_recorded_and_then_mended(store):
    given = {"positions": {"epoch": 0}, "keys": {p: key(0, p, 1) for p in PARTS}, "provenance": {}}
    store.write_failure(CUBE, (0, 0), error="truncated file", **given)
    entry = store.ledger("samples").entry(0, 0, "forward")
    assert (entry.state, entry.error, entry.key) == ("failed", "truncated file", key(0, "forward", 1))
    write(store, 0)
    entry = store.ledger("samples").entry(0, 0, "forward")
    assert (entry.state, entry.error) == ("done", "")


def test_write_failure__spares_what_is_done_under_the_same_key(store):
    tip = write(store, 0)
    given = {"positions": {"epoch": 0}, "keys": {p: key(0, p, 1) for p in PARTS}, "provenance": {}}
    assert store.write_failure(CUBE, (0, 0), error="late", **given) == tip
    assert store.ledger("samples").entry(0, 0, "forward").state == "done"


def test_write_failure__of_a_stale_row_leaves_no_old_number_to_read(store):
    write(store, 0)
    store.write_failure(
        CUBE, (0, 0), positions={"epoch": 0}, keys={"forward": key("new")}, error="NaN weights", provenance={}
    )
    ledger = store.ledger("samples")
    assert ledger.entry(0, 0, "forward").state == "failed"
    assert ledger.entry(0, 0, "input_gradient").state == "done"
    assert np.isnan(array(store, "loss")[0]).all()
    assert not array(store, "loss_count")[0].any()
    np.testing.assert_array_equal(array(store, "grad_norm")[0], values(0)["grad_norm"])


def test_rows__arrival_order_does_not_change_what_is_stored(tmp_path, stores_equal):
    for name, order in {"a": [0, 1, 2, 3], "b": [3, 1, 0, 2]}.items():
        store = open_store(tmp_path / name, create=True)
        prepare(store)
        for epoch in order:
            write(store, epoch)
    stores_equal(tmp_path / "a", tmp_path / "b")


def test_exposure__is_written_with_each_row_and_follows_the_schedule(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    prepare(store, exposure={0: [0], 2: [0, 2]})
    for epoch in (3, 0, 1):
        write(store, epoch)
    assert array(store, "exposed")[:3].tolist() == [[True, False, True], [True, False, False], [True, False, False]]
    assert prepare(store, exposure={0: [0], 2: [0, 2]}).change == ""
    prepare(store, exposure={1: [1]})
    assert array(store, "exposed")[:3].tolist() == [[False, True, False], [False] * 3, [False, True, False]]
    prepare(store)
    assert "exposed" not in store.root()[0]["samples"]
    write(store, 4)


def test_exposure__without_an_epoch_is_refused(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    prepare(store, series="step", exposure={0: [0]})
    with pytest.raises(SchemaError, match="by epoch"):
        store.write_row(
            CUBE, (5, 0), positions={"step": 5}, values={}, keys={"forward": key(1)}, seconds=1, provenance={}
        )


@pytest.mark.parametrize("name", ["", " ", "a/b"])
def test_tag__that_is_no_name_is_refused(store, name):
    with pytest.raises(StoreError, match="cannot be a tag; give a name"):
        store.tag(name)


def test_tag__freezes_a_snapshot(store):
    first = write(store, 0)
    store.tag("thesis-v1")
    write(store, 1)
    assert store.tags() == {"thesis-v1": first}
    _root, snapshot = store.root(tag="thesis-v1")
    assert snapshot == first
    with pytest.raises(StoreError, match="choose another name"):
        store.tag("thesis-v1")
    with pytest.raises(StoreError, match="did you mean 'thesis-v1'"):
        store.root(tag="thesis-v2")
    with pytest.raises(StoreError):
        store.tag("x", "0" * 20)


def test_store__pickles_to_a_url(store):
    write(pickle.loads(pickle.dumps(store)), 0)
    assert len(store.ledger("samples")) == 1


def test_ledger__of_a_cube_that_is_not_there_is_empty(tmp_path):
    ledger = open_store(tmp_path / "s", create=True).ledger("samples")
    assert not ledger.exists
    assert len(ledger) == 0
    assert list(ledger.rows()) == []
    assert ledger.entry(0, 0, "forward").state == "absent"
