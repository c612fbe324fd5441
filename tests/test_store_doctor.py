"""Doctor: what it finds of a local store, and what it says where something is amiss."""

import shutil

import pytest
from store_cases import prepare, write

from neurolens.store import doctor, locks, open_store


def by_name(url):
    return {check.name: check for check in doctor(url)}


def test_doctor__of_a_healthy_store_changes_nothing(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    prepare(store)
    tip = write(store, 0)
    before = sorted(p for p in tmp_path.rglob("*"))
    checks = by_name(tmp_path / "s")
    assert all(check.ok for check in checks.values())
    assert set(checks) == {"versions", "readable", "writable", "locks", "free space"}
    assert "icechunk" in checks["versions"].found
    assert "run 'r'" in checks["readable"].found
    assert sorted(p for p in tmp_path.rglob("*")) == before
    assert store.snapshot_id == tip


def test_doctor__of_a_place_without_store_probes_the_place(tmp_path):
    checks = by_name(tmp_path / "none" / "yet")
    assert not checks["readable"].ok
    assert "no store here" in checks["readable"].found
    assert checks["writable"].ok
    assert checks["locks"].ok
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("answers", "said"), [([True, True, True, True], "not seen"), ([False, False, False, False], "not freed")]
)
def test_doctor__a_file_system_that_ignores_locks_is_found_out(tmp_path, monkeypatch, answers, said):
    monkeypatch.setattr(locks, "try_lock", lambda *_, **__: answers.pop())
    check = by_name(tmp_path)["locks"]
    assert not check.ok
    assert said in check.found
    assert "local disk" in check.mend


def test_doctor__a_full_disk_is_found_out(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    assert not by_name(tmp_path)["free space"].ok
