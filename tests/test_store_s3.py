"""S3 stores, against a moto server on loopback: two writers, leases, and a server that ignores conditions."""

import builtins
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest
import store_cases
import xarray as xr
from cube_cases import activations, prepare_activations, write_activations
from store_cases import EPOCHS, array, key, prepare, values, write

from neurolens.errors import MissingExtraError, StoreError
from neurolens.store import doctor, open_store, s3

pytest.importorskip("boto3")
server = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def endpoint():
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def url(endpoint, monkeypatch):
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"b{uuid.uuid4().hex[:12]}"
    s3.client().create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs/one"


def test_open_store__on_s3_writes_and_reads(url):
    with pytest.raises(StoreError, match="no store here"):
        open_store(url)
    store = open_store(url, create=True)
    prepare(store)
    snapshot = write(store, 3)
    again = open_store(url)
    assert again.snapshot_id == snapshot
    assert again.ledger("samples").is_done(3, 0, "forward", key(3, "forward", 1))
    assert (array(again, "loss")[0] == values(3)["loss"]).all()
    assert prepare(again).change == ""


def test_write_row__of_blocks_by_two_writers_on_s3_keeps_both(url):
    """Both blocks of a row share a slot, its ledger and, once grown, a chunk: the second writer writes anew."""
    first = open_store(url, create=True)
    prepare_activations(first, 30)
    prepare_activations(first, 50)
    second = open_store(url)
    layout = prepare_activations(second, 50)
    assert [len(ids) for ids in layout.blocks] == [20, 10, 20]
    for block, ids in enumerate(layout.blocks):
        write_activations((first, second)[block % 2], 4, block, len(ids))
    ds = xr.open_dataset(url, group="activations", engine="neurolens")
    wanted = np.concatenate([activations(4, block, len(ids)) for block, ids in enumerate(layout.blocks)])
    np.testing.assert_array_equal(ds.activation[0], wanted.astype("float16"))
    np.testing.assert_array_equal(ds.sel(layer="a").activation[0, ::7], wanted[::7, 4:].astype("float16"))


def test_open_store__on_s3_names_what_is_wrong(url):
    with pytest.raises(StoreError, match="prefix of its own"):
        open_store("s3://bucket")
    with pytest.raises(StoreError, match=r"NoSuchBucket.*check the endpoint, the bucket"):
        open_store("s3://no-such-bucket-here/run", create=True)


def test_write_row__two_writers_on_s3_lose_nothing_and_share_the_work(url):
    prepare(open_store(url, create=True))
    command = [sys.executable, store_cases.__file__, url, "1"]
    writers = [
        subprocess.Popen([*command, *map(str, epochs)], stdout=subprocess.PIPE, text=True)
        for epochs in (EPOCHS, EPOCHS[::-1])
    ]
    said = [int(line) for w in writers for line in w.communicate(timeout=120)[0].splitlines()]
    assert [w.returncode for w in writers] == [0, 0]
    assert sorted(said) == EPOCHS
    store = open_store(url)
    ledger = store.ledger("samples")
    assert sorted(ledger.positions.tolist()) == EPOCHS
    stored = array(store, "loss")
    for epoch in EPOCHS:
        assert (stored[ledger.slot(epoch)] == values(epoch)["loss"]).all()


def test_transact__two_sessions_at_one_tip_both_land(url):
    """The inner commit lands between the outer's reading of the tip and its commit: a conflict, every time."""
    store = open_store(url, create=True)
    prepare(store)
    other = open_store(url)
    calls = []

    def meddle(root, _tip):
        if not calls:
            write(other, 5)
        calls.append(len(root["samples/epoch"][:]))
        root["samples/epoch"][0] = 9 if root["samples/epoch"][0] < 0 else root["samples/epoch"][0]
        root.attrs["seen"] = len(calls)

    store.transact("meddle", meddle)
    assert len(calls) == 2
    assert store.ledger("samples").positions.tolist() == [5]


def test_claim__on_s3_is_exclusive_renewed_and_lapses(url):
    open_store(url, create=True)
    rows = [(0, 0), (1, 0)]
    with s3.claim_rows(url, "samples", rows, lease_s=2.0) as first:
        assert first == set(rows)
        time.sleep(3.2)
        with s3.claim_rows(url, "samples", [(1, 0), (2, 0)], lease_s=2.0) as second:
            assert second == {(2, 0)}, "the first lease was renewed, and holds"
    with s3.claim_rows(url, "samples", rows, lease_s=2.0) as again:
        assert again == set(rows)
    bucket, prefix = url.removeprefix("s3://").split("/", 1)
    dead = f"{prefix}/.neurolens/leases/{s3.row_number('samples', (7, 0)):016x}"
    s3.client().put_object(Bucket=bucket, Key=dead, Body=b"a writer that died")
    with s3.claim_rows(url, "samples", [(7, 0)], lease_s=1.0) as held:
        assert not held
    time.sleep(2.2)
    with s3.claim_rows(url, "samples", [(7, 0)], lease_s=1.0) as held:
        assert held == {(7, 0)}, "a lease that nobody renews lapses"


def test_open_store__refuses_a_server_that_ignores_conditions(url, monkeypatch):
    put = s3._put
    monkeypatch.setattr(s3, "_put", lambda client, bucket, name, body, **_: put(client, bucket, name, body))
    s3._probed.cache_clear()
    with pytest.raises(StoreError, match="ignores conditional writes"):
        open_store(url, create=True)
    checks = {check.name: check for check in doctor(url)}
    assert not checks["conditional writes"].ok
    s3._probed.cache_clear()


def test_doctor__of_an_s3_store(url):
    open_store(url, create=True)
    checks = {check.name: check for check in doctor(url)}
    assert all(check.ok for check in checks.values())
    assert set(checks) == {"versions", "readable", "writable", "conditional writes"}
    assert not {c.name: c for c in doctor("s3://no-such-bucket-here/run")}["writable"].ok


def test_open_store__without_boto3_names_the_extra(url, monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "boto3":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    s3._probed.cache_clear()
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtraError, match=r"neurolens\[s3\]"):
        open_store(url, create=True)


def test_open_store__whose_server_is_not_there_says_so(url):
    with pytest.raises(StoreError, match="cannot be reached; check the endpoint and the network"):
        open_store(url, endpoint="http://127.0.0.1:9", readonly=True)
