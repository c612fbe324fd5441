"""Locks of a local store: one that serialises commits, and one per claimed row. The kernel frees them all on a kill."""

import contextlib
import errno
import fcntl
import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from neurolens.errors import StoreError
from neurolens.store.repository import SIDE_FOLDER

RowId = tuple[int, int]
"""(series position, block)."""

COMMIT_TIMEOUT_S = 600.0
_RECORD = "hhqqi4x"  # struct flock: type, whence, start, length, pid


def side_folder(store: Path) -> Path:
    """Return (and make) the folder inside the store that holds its lock files."""
    folder = store / SIDE_FOLDER
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def commit_lock(store: Path, *, timeout: float = COMMIT_TIMEOUT_S) -> Iterator[None]:
    """Hold the store's commit lock: icechunk's local storage may lose one of two concurrent commits.

    Raises
    ------
    StoreError
        If another process holds it for longer than ``timeout`` seconds.
    """
    lock = FileLock(side_folder(store) / "commit.lock", timeout=timeout)
    try:
        lock.acquire()
    except Timeout:
        raise StoreError(
            f"{store}: another process has held the commit lock for {timeout:.0f} s, and a commit takes less than one; "
            "end that process (see `fuser`), then run again"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def claim_rows(store: Path, cube: str, rows: Iterable[RowId]) -> Iterator[frozenset[RowId]]:
    """Claim rows without waiting, and yield those won; they are free again on leaving, or when the process dies.

    A claim is a lock on one byte of one file, at an offset hashed from the row: thousands of rows take one file
    and one descriptor. The locks belong to the open file, so threads of one process exclude each other too.

    Raises
    ------
    StoreError
        If the store's folder is gone, or its file system takes no locks.
    """
    if not hasattr(fcntl, "F_OFD_SETLK"):
        with _claim_files(store, cube, rows) as won:
            yield won
        return
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(side_folder(store) / "rows.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            stack.callback(os.close, descriptor)
            won = frozenset(row for row in rows if _lock_byte(descriptor, row_number(cube, row)))
        except OSError as error:
            raise StoreError(f"{store}: rows cannot be claimed ({error}); try: neurolens doctor {store}") from error
        yield won


def row_number(cube: str, row: RowId) -> int:
    """Return a number of 62 bits for a row, equal in every process."""
    digest = hashlib.sha256(f"{cube}\0{row[0]}\0{row[1]}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def try_lock(path: Path, *, byte: int | None = None) -> bool:
    """Whether a file, or one byte of it, can be locked this moment; the lock is given back at once."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if byte is not None and hasattr(fcntl, "F_OFD_SETLK"):
            return _lock_byte(descriptor, byte)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _lock_byte(descriptor: int, offset: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(_RECORD, fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


@contextlib.contextmanager
def _claim_files(store: Path, cube: str, rows: Iterable[RowId]) -> Iterator[frozenset[RowId]]:
    """Claim rows by a lock file each, where the system has no locks on byte ranges of open files (macOS)."""
    folder = side_folder(store) / "rows"
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        won = set()
        for row in rows:
            lock = FileLock(folder / f"{row_number(cube, row):016x}.lock", blocking=False)
            with contextlib.suppress(Timeout):
                stack.enter_context(lock)
                won.add(row)
        yield frozenset(won)
