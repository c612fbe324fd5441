"""Fingerprints: what identifies a checkpoint's bytes, computed once per file and remembered, or a set of samples.

A file's fingerprint is remembered by size, modification time, inode and change time together: size and modification
time alone miss a file that was replaced by another of the same size. Nothing else depends on the memo: losing it costs
one reading of each file.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import ArrayLike

from neurolens.errors import CheckpointError, MissingCheckpointError, nearest

SETTLED_SECONDS = 2.0  # a younger file may yet change within one tick of its file system's clock
MEMO_ENTRIES = 100_000

_ATTEMPTS = 3
_CHUNK = 1 << 20
_lock = threading.Lock()
_saving = threading.Lock()
_memo: "dict[str, tuple[Stamp, Fingerprint]]" = {}
_loaded: set[Path] = set()

Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class Fingerprint:
    """What one reading of a file tells: the sha256 of its bytes, and why it cannot be a whole checkpoint, if so.

    ``damage`` is empty for a sound file. Archives of torch.save hold checksums, which a memory-mapped load does not
    verify; they are verified here.
    """

    digest: str
    damage: str = ""


def digest(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file's bytes as 64 hexadecimal digits, remembered until the file changes.

    Raises
    ------
    MissingCheckpointError
        If there is no such file.
    CheckpointError
        If it is a folder or cannot be read.
    """
    return fingerprint(path).digest


def fingerprint(path: str | os.PathLike[str]) -> Fingerprint:
    """Return a file's `Fingerprint`; errors as for `digest`."""
    path = Path(path)
    found = fingerprints([path])[path]
    if isinstance(found, FileNotFoundError):
        raise MissingCheckpointError(f"there is no file '{path}'; {_neighbours(path)}") from found
    if isinstance(found, IsADirectoryError):
        raise CheckpointError(
            f"'{path}' is a folder, and a checkpoint is one file; gather a sharded checkpoint into one first"
        ) from found
    if isinstance(found, OSError):
        raise CheckpointError(f"'{path}' cannot be read: {found.strerror or found}; mend its permissions") from found
    return found


def fingerprints(paths: Iterable[Path]) -> dict[Path, Fingerprint | OSError]:
    """Return the fingerprint of each file, or the OSError that reading it gave."""
    paths = list(paths)
    _load()
    before = {path: _remembered(path) for path in paths}
    missing = [path for path in paths if before[path] is None]
    if not missing:
        return {path: found for path, found in before.items() if found is not None}
    with ThreadPoolExecutor(min(4, len(missing), os.cpu_count() or 1)) as pool:  # sha256 frees the interpreter lock
        read = dict(zip(missing, pool.map(_measure, missing), strict=True))
    if any(isinstance(_remembered(path), Fingerprint) for path in missing):
        _save()
    return {path: found if (found := before[path]) is not None else read[path] for path in paths}


def _neighbours(path: Path) -> str:
    """Say which files of the folder resemble a name that is not there."""
    folder = path.parent
    if not folder.is_dir():
        return f"nor is there a folder '{folder}'"
    names = [p.name for p in folder.iterdir() if p.is_file()]
    return f"in '{folder}': {nearest(path.name, names)}"


def _stamp(status: os.stat_result) -> Stamp:
    return (status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)


def _remembered(path: Path) -> Fingerprint | OSError | None:
    try:
        stamp = _stamp(os.stat(path))
    except OSError as error:
        return error
    with _lock:
        known = _memo.get(os.path.abspath(path))
    return known[1] if known is not None and known[0] == stamp else None


def _measure(path: Path) -> Fingerprint | OSError:
    """Read the file; again if it changed meanwhile, and remember the result only if it has come to rest."""
    found = Fingerprint("")
    try:
        for _ in range(_ATTEMPTS):
            before = _stamp(os.stat(path))
            with open(path, "rb") as file:
                found = Fingerprint(hashlib.file_digest(file, "sha256").hexdigest(), _damage(path))
            after = os.stat(path)
            if _stamp(after) == before:
                if time.time() - max(after.st_mtime, after.st_ctime) >= SETTLED_SECONDS:
                    with _lock:
                        _memo[os.path.abspath(path)] = (before, found)
                break
    except OSError as error:
        return error
    return found


def _damage(path: Path) -> str:
    """Say what is wrong with an archive of torch.save; empty if nothing is, or if the file is of another format."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return ""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if any(name.endswith(".npy") for name in names):
                return "it is a NumPy archive, not a checkpoint"
            if not any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
                return "it is a zip archive, but not one that torch.save wrote"
            script = any(name.endswith("/constants.pkl") for name in names)  # TorchScript, whose code is compressed
            for member in members:
                if member.compress_type != zipfile.ZIP_STORED and not (script and "/code/" in member.filename):
                    return "its contents are compressed, which torch.save never does"
                if member.CRC:  # 0 where saved without checksums
                    with archive.open(member) as content:
                        while content.read(_CHUNK):
                            pass
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        if "CRC" in str(error):
            return "its bytes do not match their checksums: it was damaged after it was written; restore it from a copy"
        return "it is truncated: its writing or copying was interrupted; restore it, or delete it"
    return ""


def _memo_path() -> Path:
    return platformdirs.user_cache_path("neurolens", appauthor=False) / "fingerprints.json"


def _read_memo(path: Path) -> "dict[str, tuple[Stamp, Fingerprint]]":
    """Return what a memo file holds: nothing if it is unreadable, and only the entries that make sense."""
    try:
        files = json.loads(path.read_bytes())["files"].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    entries = {}
    for name, entry in files:
        match entry:
            case [int() as size, int() as mtime, int() as inode, int() as ctime, str() as digest, str() as damage]:
                entries[name] = ((size, mtime, inode, ctime), Fingerprint(digest, damage))
    return entries


def _load() -> None:
    """Read the memo file of this user once per process."""
    path = _memo_path()
    with _lock:
        if path in _loaded:
            return
        _loaded.add(path)
        for name, entry in _read_memo(path).items():
            _memo.setdefault(name, entry)


def _save() -> None:
    """Merge what this process knows into the memo file and replace it in one step.

    Of two processes that save at once one may lose its additions, never the file; a cache folder that cannot be
    written leaves the memo in memory.
    """
    path = _memo_path()
    with contextlib.suppress(OSError), _saving:  # else a thread could replace the file by one with less in it
        with _lock:
            known = _read_memo(path) | _memo
        entries = {name: [*stamp, found.digest, found.damage] for name, (stamp, found) in known.items()}
        entries = dict(list(entries.items())[-MEMO_ENTRIES:])
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".fingerprints-", suffix=".tmp")
        try:
            with open(handle, "w") as file:
                json.dump({"files": entries}, file)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise


def sample_fingerprint(ids: Sequence[str] | np.ndarray, labels: ArrayLike) -> str:
    """Return the sha256 (hex) of sample ids and labels, in order."""
    hashed = hashlib.sha256("\n".join(map(str, ids)).encode())
    hashed.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    return hashed.hexdigest()
