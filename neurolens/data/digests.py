"""Digests of the files of a data set, computed once and remembered by path, size, times and inode."""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import platformdirs

from neurolens.data.samples import in_threads
from neurolens.errors import DataError


def remembered_digests(paths: Sequence[Path], measure: Callable[[Path], str], *, kind: str = "") -> list[str]:
    """Return ``measure(path)`` of every file, from the user's cache where the file has not changed since.

    Parameters
    ----------
    kind
        Says what is measured, where it is not the content of an image: the same file may be known by several digests.

    Raises
    ------
    DataError
        If a file is not there, or whatever ``measure`` raises.
    """
    with _memory() as memory:
        known: dict[str, str] = {}
        folders = {folder: folder.resolve() for folder in {path.parent for path in paths}}
        stamps = [kind + _stamp(path, folders[path.parent]) for path in paths]
        for chunk in _chunks(stamps, 500):
            marks = ",".join("?" * len(chunk))
            known |= dict(memory.execute(f"SELECT stamp, digest FROM content WHERE stamp IN ({marks})", chunk))
        missing = [i for i, stamp in enumerate(stamps) if stamp not in known]
        for chunk in _chunks(missing, 2048):
            digests = in_threads(measure, [paths[i] for i in chunk], threads=os.cpu_count() or 1)
            fresh = {stamps[i]: value for i, value in zip(chunk, digests)}
            known |= fresh
            memory.executemany("INSERT OR REPLACE INTO content VALUES (?, ?)", fresh.items())
            memory.commit()
    return [known[stamp] for stamp in stamps]


def _stamp(path: Path, folder: Path) -> str:
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path} is listed and not there; unpack the data set again") from None
    return f"{folder / path.name}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


@contextmanager
def _memory() -> Iterator[sqlite3.Connection]:
    """Open the user's cache of content digests; one in memory where the home cannot be written."""
    home = platformdirs.user_cache_path("neurolens", appauthor=False)
    create = "CREATE TABLE IF NOT EXISTS content (stamp TEXT PRIMARY KEY, digest TEXT) WITHOUT ROWID"
    try:
        home.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(home / "content.sqlite", timeout=60)
        connection.execute(create)
    except (OSError, sqlite3.Error):
        connection = sqlite3.connect(":memory:")
        connection.execute(create)
    with closing(connection):
        yield connection
