import datetime

import numpy as np
import pytest

import neurolens
from neurolens import schema
from neurolens.errors import StoreError
from neurolens.store import open_store
from neurolens.store import tiles as tiles_module
from neurolens.store.maintain import maintain

NOW = datetime.timedelta(0)
INSTANT = datetime.timedelta(microseconds=1)


def _rewrite(url, value, n=3000):
    store = open_store(url)
    values = {"loss": np.full(n, value, "float32")}
    keys = {"forward": f"{value:064x}"}
    store.write_row(schema.SAMPLES, (0, 0), positions={"epoch": 0}, values=values, keys=keys, seconds=0, provenance={})
    return store.snapshot_id


def _loss(url, **where):
    return neurolens.open_run(url, **where)["samples"]["loss"].sel(epoch=0).values


def test_maintain__frees_what_nothing_refers_to_and_keeps_the_rest(make_store, tmp_path):
    url = tmp_path / "s"
    truth = make_store(url, positions=(0, 1), blocks=(3000,))
    first = open_store(url).snapshot_id
    lost, kept = _rewrite(url, 7), _rewrite(url, 8)
    open_store(url).tag("kept", kept)
    _rewrite(url, 9)
    done = maintain(url, expire=NOW, grace=INSTANT)
    assert done.expired >= 2
    assert done.bytes_freed > 2 * 3000 * 4  # the losses of two snapshots that are gone
    assert done.deleted > 2
    assert (_loss(url) == 9).all()
    assert (_loss(url, tag="kept") == 8).all()
    np.testing.assert_array_equal(neurolens.open_run(url)["samples"]["grad_norm"], truth["grad_norm"])
    for gone in (first, lost):
        with pytest.raises(StoreError, match="may have expired"):
            neurolens.open_run(url, snapshot=gone)
    assert maintain(url, expire=NOW, grace=INSTANT).expired == 0
    _rewrite(url, 10)
    assert (_loss(url) == 10).all()


def test_maintain__by_default_expires_nothing_and_deletes_nothing_young(make_store, tmp_path):
    make_store(tmp_path / "s", positions=(0,), blocks=(3000,))
    first = open_store(tmp_path / "s").snapshot_id
    _rewrite(tmp_path / "s", 7)
    done = maintain(tmp_path / "s")
    assert (done.expired, done.deleted, done.bytes_freed) == (0, 0, 0)
    assert not (_loss(tmp_path / "s", snapshot=first) == 7).any()
    done = maintain(tmp_path / "s", expire=NOW)
    assert done.bytes_freed == 0
    assert (_loss(tmp_path / "s") == 7).all()


def test_maintain__builds_tiles(make_store, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles_module, "TILE", (4, 8))
    truth = make_store(tmp_path / "s", positions=range(4), blocks=(12,))
    assert maintain(tmp_path / "s", tiles=False).tiles == 0
    assert maintain(tmp_path / "s").tiles == 2
    assert maintain(tmp_path / "s").tiles == 0
    np.testing.assert_array_equal(neurolens.open_run(tmp_path / "s")["samples"]["loss"], truth["loss"])


def test_maintain__refuses_a_grace_of_zero(make_store, tmp_path):
    make_store(tmp_path / "s", positions=(0,), blocks=(4,))
    with pytest.raises(StoreError, match="needed more than zero"):
        maintain(tmp_path / "s", grace=NOW)
    with pytest.raises(StoreError, match="leave it out to expire nothing"):
        maintain(tmp_path / "s", expire=-INSTANT)
    with pytest.raises(StoreError, match="no such folder"):
        maintain(tmp_path / "nowhere")
