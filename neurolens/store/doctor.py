"""Doctor: can this store be read, written, shared and trusted from here? Every answer comes from trying."""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import icechunk
import zarr

from neurolens import __version__
from neurolens.errors import MissingExtraError, StoreError
from neurolens.store import locks, repository
from neurolens.store.opening import open_store
from neurolens.store.run_store import Store

FREE_BYTES = 2**30

_HOLD_LOCKS = """
import fcntl, os, struct, sys, time
whole = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(whole, fcntl.LOCK_EX | fcntl.LOCK_NB)
part = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
if hasattr(fcntl, "F_OFD_SETLK"):
    fcntl.fcntl(part, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 1, 0))
os.write(1, b"held")
time.sleep(60)
"""


@dataclass(frozen=True)
class Check:
    """One thing that was tried: whether it went well, what was found, and what mends it if not."""

    name: str
    ok: bool
    found: str
    mend: str = ""


def doctor(url: str | os.PathLike[str], *, endpoint: str | None = None, region: str | None = None) -> list[Check]:
    """Probe a store, or the place for one, and return what was found; nothing in it is changed."""
    return list(_checks(os.fspath(url), endpoint, region))


def _checks(url: str, endpoint: str | None, region: str | None) -> Iterator[Check]:
    yield Check(
        "versions",
        True,
        f"neurolens {__version__} (format {repository.FORMAT}), icechunk {icechunk.__version__} "
        f"(spec {icechunk.spec_version()}), zarr {zarr.__version__}",
    )
    try:
        store = open_store(url, endpoint=endpoint, region=region, readonly=True)
    except (StoreError, MissingExtraError) as error:
        yield Check("readable", False, str(error), "name the folder or s3:// URL that a run wrote to")
    else:
        yield _readable(store)
    yield from _s3(url, endpoint, region) if repository.is_s3(url) else _local(repository.local_path(url))


def _readable(store: Store) -> Check:
    own = store.attributes()
    count = sum(1 for _ in store.history())
    return Check("readable", True, f"run {own['run']!r}, format {own['format']}, {count} snapshots")


def _local(path: Path) -> Iterator[Check]:
    folder = path
    while not folder.exists():
        folder = folder.parent
    mend = "give this user the right to write there, or put the store elsewhere"
    probe = folder / f".neurolens-probe-{uuid.uuid4().hex}"
    try:
        probe.mkdir()
    except OSError as error:
        yield Check("writable", False, f"{folder}: {repository.diagnosis(error)}", mend)
        return
    try:
        yield Check("writable", True, f"{folder} takes new files")
        yield _locks(probe)
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    free = shutil.disk_usage(folder).free
    yield Check("free space", free >= FREE_BYTES, f"{free / 2**30:.1f} GiB", "free some space: a full disk stops a run")


def _locks(folder: Path) -> Check:
    """Let another process take both kinds of lock: they must keep us out, and be free once it is killed."""
    whole, part = folder / "commit.lock", folder / "rows.lock"
    child = subprocess.Popen([sys.executable, "-c", _HOLD_LOCKS, str(whole), str(part)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        held = child.stdout.read(4) == b"held"
        kept_out = held and not locks.try_lock(whole) and not locks.try_lock(part, byte=0)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    freed = locks.try_lock(whole) and locks.try_lock(part, byte=0)
    mend = "keep the store on a local disk, or on S3: two runs at once would lose rows on this file system"
    if not held:
        return Check("locks", False, "this file system takes no locks", mend)
    if not kept_out:
        return Check("locks", False, "a lock held by another process is not seen", mend)
    return Check("locks", freed, "honoured, and freed on a kill" if freed else "not freed when the holder dies", mend)


def _s3(url: str, endpoint: str | None, region: str | None) -> Iterator[Check]:
    from neurolens.store import s3

    mend = "check the endpoint, the bucket and the AWS_* credentials"
    try:
        honoured = s3.honours_conditional_put(url, endpoint=endpoint, region=region)
    except (StoreError, MissingExtraError) as error:
        yield Check("writable", False, str(error), mend)
        return
    yield Check("writable", True, "objects can be put and deleted")
    yield Check(
        "conditional writes",
        honoured,
        "honoured" if honoured else "ignored by this server: shared writing is refused",
        "use a server that honours If-None-Match and If-Match, or a local store",
    )
