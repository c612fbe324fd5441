"""What is worth keeping between runs and can always be made again: files in the user's cache, under keys of content."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

import platformdirs
from filelock import FileLock

from neurolens.errors import DataError

Value = TypeVar("Value")


def remembered(
    kind: str,
    name: str,
    make: Callable[[], Value],
    *,
    read: Callable[[Path], Value],
    write: Callable[[IO[bytes], Value], None],
) -> Value:
    """Return what is kept under a name, or make it and keep it. One process makes it, and others wait for it.

    Killed at any time, the file is whole or not there.

    Parameters
    ----------
    kind : folder in the cache
    name : key of all that decides the value, with the suffix of the file

    Raises
    ------
    DataError
        If the cache cannot be written.
    """
    folder = platformdirs.user_cache_path("neurolens", appauthor=False) / kind
    path = folder / name
    lock = FileLock(folder / f"{name}.lock")
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        if path.exists():
            return read(path)
        value = make()
        with _explained(folder):
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=path.suffix, delete=False) as draft:
                write(draft, value)
            os.replace(draft.name, path)
        return value
    finally:
        lock.release()


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror}); free some space there, or set XDG_CACHE_HOME to a folder "
            "that can be"
        ) from error
