"""Concept data fetched over the network, and verified before they are used."""

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from neurolens.data.broden import INDEX, broden
from neurolens.errors import DataError, MissingExtraError

BRODEN_URL = "http://netdissect.csail.mit.edu/data/broden1_{size}.zip"
BRODEN_SIZES = (224, 227, 384)


def fetch_broden(
    root: Path, *, size: int = 224, sha256: str | None = None, n_bytes: int | None = None, url: str = BRODEN_URL
) -> Path:
    """Fetch Broden into ``root/broden1_<size>`` with pooch, verify it, and return that folder.

    The archive is held against ``sha256`` and ``n_bytes`` where they are given; none is known to be published, so none
    is assumed. In any case every file is held against the archive's checksums, and the layout is checked as
    `broden` does. Only then does the folder appear. What was fetched, with its hash, is told in ``fetched.json`` there:
    give that hash the next time.

    Raises
    ------
    MissingExtraError
        If pooch is not installed.
    DataError
        If the size is not one that there is, or what was fetched is not what was expected.
    """
    if size not in BRODEN_SIZES and url == BRODEN_URL:
        raise DataError(f"Broden comes in sizes {', '.join(map(str, BRODEN_SIZES))}, and {size} was asked for")
    try:
        import pooch
    except ImportError as error:
        raise MissingExtraError.of("pooch", "fetch", "fetching concept data") from error
    source, folder = url.format(size=size), root / f"broden1_{size}"
    pooch.get_logger().setLevel("WARNING")
    try:
        root.mkdir(parents=True, exist_ok=True)
        known = None if sha256 is None else f"sha256:{sha256.lower()}"
        archive = Path(pooch.retrieve(source, known, fname=f"{folder.name}.zip", path=root))
    except (OSError, ValueError) as error:  # what requests and pooch raise: no connection, no such page, another hash
        raise DataError(f"{source} could not be fetched to {root}: {error}; fetch it by hand, or try again") from error
    found = {"url": source, "bytes": archive.stat().st_size, "sha256": _sha256(archive)}
    if n_bytes is not None and found["bytes"] != n_bytes:
        archive.unlink()
        raise DataError(
            f"{source} has {found['bytes']} bytes, and {n_bytes} were expected; check the number, try again"
        )
    made = Path(tempfile.mkdtemp(dir=root, prefix=f".{folder.name}-"))
    try:
        unpacked = _unpack(archive, made, source)
        broden(unpacked)
        (unpacked / "fetched.json").write_text(json.dumps(found, indent=2) + "\n")
        os.replace(unpacked, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    archive.unlink()
    return folder


def _unpack(archive: Path, into: Path, source: str) -> Path:
    """Unpack the part of an archive that lies beside its index.csv; return that folder."""
    try:
        with zipfile.ZipFile(archive) as packed:
            names = [PurePosixPath(name) for name in packed.namelist()]
            tops = [name.parent for name in names if name.name == INDEX]
            if not tops:
                raise DataError(f"{source} holds no {INDEX}, so it is no concept set; check the address")
            top = min(tops, key=lambda path: len(path.parts))
            packed.extractall(into, [str(name) for name in packed.namelist() if name.startswith(_prefix(top))])
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        archive.unlink()
        raise DataError(f"{source} is damaged or no zip archive ({error}); fetch it again") from error
    return into / top


def _prefix(top: PurePosixPath) -> str:
    return "" if top == PurePosixPath(".") else f"{top}/"


def _sha256(path: Path) -> Any:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
