"""A folder of files that is written as a whole: beside its place first, and then moved there."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neurolens.errors import DataError, StoreError

ABOUT = "export.json"
"""The file that tells what was exported: ``files`` in it lists all others."""


def folder_at(path: str | os.PathLike[str]) -> Path:
    """Return the whole path of a folder to make."""
    return Path(os.path.abspath(Path(path).expanduser()))


def require_free(target: Path, overwrite: bool) -> None:
    """Refuse a place where there is something, but for what an export wrote and may replace.

    Raises
    ------
    DataError
        If there is something that is not to be replaced, or that no export wrote.
    """
    if not target.exists():
        return
    if not overwrite:
        raise DataError(
            f"{target}: there is something here already; name another folder, or pass overwrite=True (--overwrite)"
        )
    try:
        listed = {*json.loads((target / ABOUT).read_text(encoding="utf-8"))["files"], ABOUT}
    except (OSError, ValueError, KeyError, TypeError):
        listed = set()
    there = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir())
    foreign = [path for path in there if path not in listed] if target.is_dir() else [target.name]
    if foreign:
        raise DataError(
            f"{target}: {foreign[0]} was not written by this export, so nothing is replaced; name another folder"
        )


@contextmanager
def draft_of(target: Path) -> Iterator[Path]:
    """Give a folder that takes the place of the target in the end; killed before, the target is as it was.

    Raises
    ------
    DataError
        If it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        around = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent))
        try:
            draft = around / "export"
            draft.mkdir()
            yield draft
            if target.exists():
                target.rename(around / "old")
            draft.rename(target)
        finally:
            shutil.rmtree(around, ignore_errors=True)
    except StoreError:  # of what is read meanwhile
        raise
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror}); name a folder you may write to") from error
