"""The store under kill -9, and under two writers at once: nothing is lost, nothing is mixed, nothing is done twice."""

import random
import subprocess
import sys
import time
from pathlib import Path

import kill_cases
import numpy as np
import pytest
import store_cases
from kill_cases import Engine, started
from store_cases import EPOCHS, PARTS, array, key, prepare, values

from neurolens.errors import StoreError
from neurolens.store import open_store

WRITER = """
import faulthandler, sys
import store_cases
faulthandler.enable()
print("begin", flush=True)
store_cases.run(sys.argv[1], int(sys.argv[2]), [int(epoch) for epoch in sys.argv[3:]])
"""


def start(url: Path, version: int, epochs: list[int]) -> Engine:
    return started(WRITER, url, version, *epochs)


def finish(writer: Engine) -> list[int]:
    return [int(line) for line in kill_cases.finish(writer)]


def kill_at_random(url: Path, version: int, draw: random.Random) -> list[int]:
    """Start a writer, kill it some moment after its first row, and return the epochs that it said were committed."""
    process, said = start(url, version, EPOCHS)
    with said:
        assert said.readline() == "begin\n"
        lines = [said.readline()]
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.join()
        lines += said.readlines()
    return [int(line) for line in lines if line.strip()]


def assert_rows_are_whole(url: Path) -> None:
    """Every row that reads as done is, in all its parts, the one version that its keys name."""
    store = open_store(url, readonly=True)
    ledger = store.ledger("samples")
    stored = {name: array(store, name) for name in values(0)}
    for epoch in EPOCHS:
        slot = ledger.slot(epoch)
        versions = {v for v in (1, 2) for p in PARTS if ledger.is_done(epoch, 0, p, key(epoch, p, v))}
        if slot is None:
            continue
        assert len(versions) == 1, "a row is committed whole"
        for name, wanted in values(epoch, version=versions.pop()).items():
            np.testing.assert_array_equal(stored[name][slot], wanted, err_msg=f"{name} at epoch {epoch}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    urls = {version: folder / f"v{version}" for version in (1, 2)}
    for version, url in urls.items():
        store_cases.run(str(url), version, EPOCHS)
    return urls


def test_write_row__killed_while_appending_loses_nothing(tmp_path, undisturbed, stores_equal):
    url, draw, said = tmp_path / "s", random.Random(0), []
    for _ in range(5):
        new = kill_at_random(url, 1, draw)
        assert not set(new) & set(said), "a committed row was computed again"
        said += new
        ledger = open_store(url, readonly=True).ledger("samples")
        assert set(said) <= set(ledger.positions.tolist()), "an acknowledged row was lost"
        assert_rows_are_whole(url)
    finish(start(url, 1, EPOCHS))
    stores_equal(url, undisturbed[1])


def test_write_row__killed_while_overwriting_never_mixes_versions(tmp_path, undisturbed, stores_equal):
    url, draw = tmp_path / "s", random.Random(1)
    finish(start(url, 1, EPOCHS))
    for _ in range(5):
        kill_at_random(url, 2, draw)
        assert_rows_are_whole(url)
    finish(start(url, 2, EPOCHS))
    stores_equal(url, undisturbed[2])


def test_open_store__killed_while_creating_leaves_a_whole_store_or_none(tmp_path):
    url, draw = tmp_path / "s", random.Random(2)
    for _ in range(4):
        kill_cases.kill(lambda: start(url, 1, []), draw.uniform(0, 0.1))
    store = open_store(url, create=True)
    prepare(store)
    assert len(store.ledger("samples")) == 0


def test_write_row__two_writers_lose_nothing_and_share_the_work(tmp_path, undisturbed, stores_equal):
    url = tmp_path / "s"
    writers = [start(url, 1, epochs) for epochs in (EPOCHS, EPOCHS[::-1])]
    said = [epoch for writer in writers for epoch in finish(writer)]
    assert sorted(said) == EPOCHS, "each row was computed once, by one of the two"
    stores_equal(url, undisturbed[1])


def test_claim__is_exclusive_and_freed_by_the_kernel(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    code = (
        "import sys, time; from neurolens.store import open_store\n"
        "with open_store(sys.argv[1]).claim('samples', [(0, 0), (1, 0)]) as won:\n"
        "    print(len(won), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, store.url], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"2\n"
        with store.claim("samples", [(0, 0), (2, 0)]) as won:
            assert won == {(2, 0)}
        with store.claim("units", [(0, 0)]) as won:
            assert won == {(0, 0)}, "rows of another cube are other rows"
        other.kill()
    with store.claim("samples", [(0, 0), (1, 0)]) as won:
        assert won == {(0, 0), (1, 0)}


def test_claim__thousands_of_rows_take_one_file(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    rows = [(epoch, block) for epoch in range(4000) for block in range(2)]
    with store.claim("samples", rows) as won, store.claim("samples", rows[:10]) as again:
        assert len(won) == 8000
        assert not again, "a second claim of the same process is kept out too"
    with store.claim("samples", rows[:10]) as won:
        assert len(won) == 10
    assert sorted(p.name for p in (tmp_path / "s" / ".neurolens").iterdir()) == ["rows.lock"]


def test_claim__without_byte_locks_falls_back_to_files(tmp_path, monkeypatch):
    monkeypatch.delattr("fcntl.F_OFD_SETLK")
    store = open_store(tmp_path / "s", create=True)
    with store.claim("samples", [(0, 0), (1, 0)]) as won, store.claim("samples", [(1, 0), (2, 0)]) as again:
        assert won == {(0, 0), (1, 0)}
        assert again == {(2, 0)}
    with store.claim("samples", [(1, 0)]) as won:
        assert won == {(1, 0)}


def test_store__whose_folder_is_gone_says_so(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    prepare(store)
    (tmp_path / "s").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="neurolens doctor"):
        store.claim("samples", [(0, 0)]).__enter__()
    with pytest.raises(StoreError, match=str(tmp_path / "s")):
        store_cases.write(store, 0)
    assert not (tmp_path / "s").exists()


def test_transact__waits_for_the_commit_lock_and_says_who_may_hold_it(tmp_path):
    from neurolens.store import locks

    store = open_store(tmp_path / "s", create=True)
    with locks.commit_lock(tmp_path / "s"), pytest.raises(StoreError, match="held the commit lock"):
        locks.commit_lock(tmp_path / "s", timeout=0.2).__enter__()
    prepare(store)
