"""The store: opened, prepared from the schema, grown and renewed."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_cases import CUBE, PARTS, array, key, prepare, samples, values, write

from neurolens import schema
from neurolens.errors import SchemaError, StoreError
from neurolens.store import SampleCoords, Store, open_store
from neurolens.store.commits import class_sums
from neurolens.store.repository import diagnosis


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(tmp_path / "run", create=True)
    prepare(made)
    return made


def test_open_store__does_not_import_torch(tmp_path):
    code = "import sys; from neurolens.store import open_store; open_store(sys.argv[1], create=True)\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], check=True)


def test_open_store__of_nothing_says_so(tmp_path):
    with pytest.raises(StoreError, match=r"no store here.*neurolens run"):
        open_store(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_open_store__refuses_a_folder_that_is_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="not a neurolens store"):
        open_store(tmp_path, create=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_open_store__refuses_another_programs_repository_and_a_newer_format(tmp_path, store):
    import icechunk

    icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "other")))
    with pytest.raises(StoreError, match="not written by neurolens"):
        open_store(tmp_path / "other")
    store.transact("newer", lambda root, _: root.attrs.put({"neurolens": {"format": 99, "version": "9.9"}}))
    with pytest.raises(StoreError, match=r"format 99 .*upgrade neurolens"):
        open_store(store.url)


def test_open_store__leaves_nothing_but_the_store_behind(tmp_path):
    open_store(tmp_path / "run", create=True)
    assert os.listdir(tmp_path) == ["run"]


def test_open_store__clears_what_a_killed_creation_left(tmp_path):
    for name, age in {".run.a.new": 10_000, ".run.b.new": 0}.items():
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    open_store(tmp_path / "run", create=True)
    assert sorted(os.listdir(tmp_path)) == [".run.b.new", "run"], "the younger may be another process at work"


def test_open_store__readonly_refuses_to_write(store):
    reader = open_store(store.url, readonly=True)
    for act in (lambda: write(reader, 0), lambda: reader.tag("t"), lambda: reader.claim("samples", []).__enter__()):
        with pytest.raises(StoreError, match="readonly=True"):
            act()


def test_store__without_permission_to_write_says_so(store):
    """A subprocess gives up root's rights, which a chmod would not bind."""
    code = f"""
import os
from neurolens.store import open_store
from neurolens.errors import StoreError
if os.geteuid() == 0:
    os.setuid(65534)
try:
    open_store({store.url!r})
except StoreError as error:
    assert "no permission to write" in str(error), error
else:
    raise SystemExit("opened for writing")
open_store({store.url!r}, readonly=True).ledger("samples")
"""
    folder = Path(store.url)
    for parent in (folder, *folder.parents):
        if parent.owner() and str(parent).startswith("/tmp/pytest"):
            parent.chmod(0o755)
    folder.chmod(0o555)
    try:
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (OSError(28, "No space left on device"), "disk is full"),
        (OSError("I/O error: No space left on device (os error 28)"), "disk is full"),
        (OSError(30, "Read-only file system"), "read-only"),
        (PermissionError(13, "Permission denied"), "no permission"),
    ],
)
def test_diagnosis__names_the_mend(raised, said):
    assert said in diagnosis(raised)


def test_prepare__creates_from_the_schema_and_then_changes_nothing(store):
    tip = store.snapshot_id
    again = prepare(store)
    assert again.change == ""
    assert store.snapshot_id == tip
    assert again.generation == 0
    assert [b.tolist() for b in again.blocks] == [samples().ids.tolist()]
    root, _ = store.root()
    group = root["samples"]
    assert {v.name for p in PARTS for v in CUBE.part(p).variables} <= set(group.array_keys())
    assert "grand" not in group
    assert group["loss"].metadata.dimension_names == ("slot", "sample")
    assert group["loss"].chunks == (1, 4096)
    assert np.isnan(group["loss"].fill_value)
    assert group["correct"].fill_value == -1
    assert group.attrs["neurolens"]["parts"] == PARTS


def test_prepare__order_given_does_not_matter(store):
    tip, given = store.snapshot_id, samples()
    back = slice(None, None, -1)
    coords = {name: c[back] for name, c in given.coords.items()}
    assert prepare(store, replace(given, ids=given.ids[back], labels=given.labels[back], coords=coords)).change == ""
    assert store.snapshot_id == tip


def test_prepare__added_samples_become_a_block_and_keep_the_rest(store):
    write(store, 3)
    write(store, 1)
    before, keys = array(store, "loss")[:2], store.ledger("samples").key
    more = samples(20)
    order = np.random.default_rng(0).permutation(20)
    coords = {name: c[order] for name, c in more.coords.items()}
    grown = prepare(store, replace(more, ids=more.ids[order], labels=more.labels[order], coords=coords))
    assert grown.change.startswith("append 8 samples")
    assert grown.generation == 0
    assert grown.blocks[0].tolist() == samples().ids.tolist()
    assert sorted(grown.blocks[1].tolist()) == more.ids[12:].tolist()
    assert array(store, "sample_block").tolist() == [0] * 12 + [1] * 8
    ledger = store.ledger("samples")
    assert ledger.state[:, 0].tolist() == [[1, 1, 0, 0]] * 2
    assert not ledger.state[:, 1].any()
    assert (ledger.key[:, :1] == keys).all()
    np.testing.assert_array_equal(array(store, "loss")[:2, :12], before)
    new = {name: v[:8] for name, v in values(3).items()}
    write(store, 3, block=1, n=8, values=new)
    np.testing.assert_array_equal(array(store, "loss")[0], np.concatenate([before[0], new["loss"]]))
    np.testing.assert_array_equal(array(store, "loss")[1, 12:], np.full(8, np.nan, "f4"))
    counted = array(store, "loss_count")[0]
    assert counted.sum(axis=1).tolist() == [12, 8]
    labels = array(store, "label")[12:]
    np.testing.assert_array_equal(array(store, "loss_sum")[0, 1], class_sums(new["loss"], labels, 3)[0])
    third = prepare(store, samples(23))
    assert [len(b) for b in third.blocks] == [12, 8, 3]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: SampleCoords(s.ids[1:], s.labels[1:], s.classes), "1 of 12 samples were removed"),
        (lambda s: replace(s, labels=(s.labels + 1) % 3), "12 labels were changed"),
        (lambda s: replace(s, classes=("cat", "dog", "hen")), "classes"),
    ],
)
def test_prepare__changed_samples_start_a_generation_and_the_old_stays_readable(store, change, why):
    old = write(store, 0)
    before = array(store, "loss")[0]
    renewed = prepare(store, change(samples()))
    assert why in renewed.change
    assert renewed.generation == 1
    assert len(store.ledger("samples")) == 0
    root, _ = store.root()
    assert root["samples"].attrs["neurolens"]["previous_snapshot"] == old
    root, _ = store.root(snapshot=old)
    np.testing.assert_array_equal(root["samples/loss"][0], before)
    assert prepare(store, change(samples())).change == ""


def test_prepare__changed_coordinates_and_settings_are_updated_in_place(store):
    write(store, 0)
    given = samples()
    moved = replace(given, coords={"position": given.coords["position"] + 5, "note": np.array(["é"] * 12)})
    done = prepare(store, moved, settings={"parts": {"grand": {}}, "data": "new"})
    assert done.generation == 0
    assert array(store, "position").tolist() == list(range(5, 17))
    assert array(store, "note")[0] == "é"
    root, _ = store.root()
    settings = root["samples"].attrs["neurolens"]
    assert settings["parts"] == {**PARTS, "grand": {}}
    assert settings["data"] == "new"
    assert root["samples/grand"].shape == root["samples/loss"].shape
    assert store.ledger("samples").state[0, 0].tolist() == [1, 1, 0, 0]
    assert prepare(store, moved, settings={"parts": {"grand": {}}, "data": "new"}).change == ""


def test_prepare__a_changed_dtype_starts_a_generation(store):
    wide = replace(schema.LOSS, dtype="float64")
    parts = tuple(replace(p, variables=tuple(wide if v.name == "loss" else v for v in p.variables)) for p in CUBE.parts)
    renewed = store.prepare(
        replace(CUBE, parts=parts), run="r", series="epoch", samples=samples(), settings={"parts": PARTS}
    )
    assert "loss was stored as float32" in renewed.change
    assert renewed.generation == 1


def test_prepare__a_part_new_in_the_schema_joins_the_ledger(store):
    write(store, 0)
    later = schema.Part("later", (replace(schema.LOSS, name="novel"),))
    cube = replace(CUBE, parts=(*CUBE.parts, later))
    store.prepare(cube, run="r", series="epoch", samples=samples(), settings={"parts": {"later": {}}})
    store.write_row(
        cube, (0, 0), positions={"epoch": 0}, values={"novel": np.ones(12, "f4")}, keys={"later": key("n")},
        seconds=1, provenance={},
    )  # fmt: skip
    ledger = store.ledger("samples")
    assert ledger.parts[-1] == "later"
    assert ledger.state[0, 0].tolist() == [1, 1, 0, 0, 1]
    assert ledger.entry(0, 0, "forward").key == key(0, "forward", 1)


def test_prepare__another_run_or_series_is_refused(store):
    with pytest.raises(StoreError, match=r"holds run 'r'.*store of its own"):
        prepare(store, run="other")
    with pytest.raises(StoreError, match=r"series by epoch.*by step"):
        prepare(store, series="step")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: replace(s, ids=np.array(["a"] * 12)), "'a' occurs 12 times"),
        (lambda s: replace(s, labels=np.arange(12)), "give every label a class name"),
        (lambda s: replace(s, labels=np.arange(11)), "one value per sample"),
        (lambda s: replace(s, coords={"loss": np.arange(12)}), "the store's own"),
        (lambda s: SampleCoords(s.ids[:0], s.labels[:0], s.classes), "no samples"),
    ],
)
def test_prepare__samples_that_contradict_themselves_are_refused(store, change, said):
    with pytest.raises(SchemaError, match=said):
        prepare(store, change(samples()))


def test_propose__says_what_would_change_and_writes_nothing(store):
    tip = store.snapshot_id
    wanted = {"run": "r", "series": "epoch", "settings": {"parts": PARTS}}
    assert store.propose(CUBE, samples=samples(), **wanted).change == ""
    grown = store.propose(CUBE, samples=samples(14), **wanted)
    assert grown.change.startswith("append 2 samples")
    assert [len(b) for b in grown.blocks] == [12, 2]
    assert store.snapshot_id == tip
    made = prepare(store, samples(14))
    assert made.fingerprints == grown.fingerprints
    assert [b.tolist() for b in made.blocks] == [b.tolist() for b in grown.blocks]
