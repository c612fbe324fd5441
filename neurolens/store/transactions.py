"""One commit at the tip: under the file lock locally, by rebasing and rewriting on S3."""

import contextlib
import random
import time
from collections.abc import Callable

import icechunk
import zarr

from neurolens.errors import StoreError
from neurolens.store.locks import commit_lock
from neurolens.store.repository import BRANCH, explained, is_s3, local_path

TRIES = 40
LONGEST_WAIT_S = 2.0


def transact(
    repository: icechunk.Repository, url: str, message: str, write: Callable[[zarr.Group, str], object]
) -> str:
    """Run ``write(root, tip)`` on a session at the tip, commit it, and return the id of the new tip.

    A ``write`` that changes nothing makes no commit. It is called again, on the new tip, where another writer of an
    S3 store changed the same things meanwhile.

    Raises
    ------
    StoreError
        If the store cannot be written, or other writers were faster every time.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(explained(url))
        if not is_s3(url):
            stack.enter_context(commit_lock(local_path(url)))
        for attempt in range(TRIES):
            session = repository.writable_session(BRANCH)
            tip = str(session.snapshot_id)
            write(zarr.open_group(session.store, mode="r+", use_consolidated=False), tip)
            if not session.has_uncommitted_changes:
                return tip
            try:
                return _commit(session, message)
            except icechunk.RebaseFailedError:
                time.sleep(random.uniform(0, min(LONGEST_WAIT_S, 0.02 * 2**attempt)))
    raise StoreError(f"{url}: {TRIES} tries to commit met other writers; run fewer at once")


def _commit(session: icechunk.Session, message: str) -> str:
    """Commit, rebasing as long as others commit what does not touch ours."""
    while True:
        try:
            return str(session.commit(message))
        except icechunk.ConflictError:
            session.rebase(icechunk.ConflictDetector())
