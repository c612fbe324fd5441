"""Maintain: build tiles, let old snapshots expire, and collect what nothing refers to any more."""

import contextlib
import datetime
import os
from dataclasses import dataclass

from neurolens.errors import StoreError
from neurolens.store.locks import commit_lock
from neurolens.store.opening import open_store
from neurolens.store.repository import explained, is_s3, local_path
from neurolens.store.tiles import build_tiles

GRACE = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Maintenance:
    """What maintaining a store did: tiles built, snapshots expired, objects deleted and bytes freed."""

    tiles: int
    expired: int
    deleted: int
    bytes_freed: int


def maintain(
    url: str | os.PathLike[str],
    *,
    tiles: bool = True,
    expire: datetime.timedelta | None = None,
    grace: datetime.timedelta = GRACE,
    endpoint: str | None = None,
    region: str | None = None,
) -> Maintenance:
    """Look after a store. The newest state and every tag stay as they are.

    Parameters
    ----------
    url : the store.
    tiles : build the tiles that are missing or stale.
    expire : let snapshots older than this expire; absent: none. An expired snapshot can no longer be opened, unless
        a tag names it: tag what should stay, e.g. the last snapshot before a new generation.
    grace : objects younger than this are never deleted: a writer or a copy that is still at work may need objects
        that no snapshot names yet.
    endpoint, region : of an S3-compatible server.

    Raises
    ------
    StoreError
        If the store cannot be written, or ``grace`` is zero or less, or ``expire`` is negative.
    """
    if grace <= datetime.timedelta(0):
        raise StoreError(
            f"found a grace of {grace}, and needed more than zero: collecting beside a live writer would delete what "
            f"it is about to commit; leave it out for {GRACE.days} day, or give at least an hour"
        )
    if expire is not None and expire < datetime.timedelta(0):
        raise StoreError(f"found expire={expire}, and needed an age of zero or more; leave it out to expire nothing")
    store = open_store(url, endpoint=endpoint, region=region)
    store.check_writable()
    built = build_tiles(store) if tiles else 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(explained(store.url))
        if not is_s3(store.url):
            stack.enter_context(commit_lock(local_path(store.url)))
        now = datetime.datetime.now(datetime.UTC)
        gone = set() if expire is None else store.repository.expire_snapshots(older_than=now - expire)
        found = store.repository.garbage_collect(delete_object_older_than=now - grace)
    deleted = (
        found.chunks_deleted
        + found.manifests_deleted
        + found.snapshots_deleted
        + found.attributes_deleted
        + found.transaction_logs_deleted
    )
    return Maintenance(built, len(gone), int(deleted), int(found.bytes_deleted))
