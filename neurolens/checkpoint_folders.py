"""Checkpoints that are folders, as save_pretrained writes them: which files hold the weights, and their fingerprint."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from neurolens.errors import CheckpointError
from neurolens.fingerprints import Fingerprint, fingerprints
from neurolens.hub import CONFIG

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights in order of preference; a sharded one has an index of its name and ``.index.json``."""

_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}(?P<suffix>\.\w+)")


def is_model_folder(path: Path) -> bool:
    """Tell whether a folder holds a configuration and weights."""
    return (path / CONFIG).is_file() and any(
        (path / name).is_file() for weights in WEIGHTS for name in (weights, f"{weights}.index.json")
    )


def preferred(names: Iterable[str]) -> tuple[str, ...]:
    """Return which of a folder's files hold its weights: safetensors before torch's, whole before sharded."""
    names = sorted(names)
    for whole in WEIGHTS:
        if whole in names:
            return (whole,)
        if f"{whole}.index.json" in names:
            stem, suffix = os.path.splitext(whole)
            shards = [_SHARD.fullmatch(name) for name in names]
            return tuple(s[0] for s in shards if s is not None and (s["stem"], s["suffix"]) == (stem, suffix))
    return ()


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that hold a folder's weights, by name.

    Raises
    ------
    CheckpointError
        If there are none, or a shard that the index names is not there.
    """
    there = [entry.name for entry in folder.iterdir() if entry.is_file()]
    names = preferred(there)
    for whole in WEIGHTS:
        index = f"{whole}.index.json"
        if names and whole not in names and index in there:
            names = _shards(folder / index)
            if absent := [name for name in names if name not in there]:
                raise CheckpointError(
                    f"'{folder}' lacks {len(absent)} of the {len(names)} shards that {index} names, first "
                    f"{absent[0]!r}; copy the rest, or delete the folder"
                )
            break
    if not names:
        raise CheckpointError(
            f"'{folder}' is a folder without weights: one of {', '.join(WEIGHTS)}, or their shards with an index, was "
            "needed; write it with save_pretrained"
        )
    return tuple(folder / name for name in names)


def _shards(index: Path) -> tuple[str, ...]:
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"'{index}' is not an index of shards ({error}); write it again") from error
    if outside := [name for name in names if not isinstance(name, str) or os.path.basename(name) != name]:
        raise CheckpointError(f"'{index}' names {outside[0]!r}, which is no file beside it; write it again")
    return tuple(sorted(names))


def combined(digests: Iterable[tuple[str, str]]) -> str:
    """Return the sha256 over (name, sha256) of weight files, by name."""
    text = "".join(f"{name} {digest}\n" for name, digest in sorted(digests))
    return hashlib.sha256(text.encode()).hexdigest()


def prints(paths: Iterable[Path]) -> dict[Path, Fingerprint | OSError | CheckpointError]:
    """Return the fingerprint of each checkpoint, file or folder, or what stood against reading it."""
    files: dict[Path, tuple[Path, ...] | CheckpointError] = {}
    for path in paths:
        try:
            files[path] = weight_files(path) if path.is_dir() else (path,)
        except CheckpointError as error:
            files[path] = error
    read = fingerprints(dict.fromkeys(f for found in files.values() if isinstance(found, tuple) for f in found))
    result: dict[Path, Fingerprint | OSError | CheckpointError] = {}
    for path, found in files.items():
        if isinstance(found, CheckpointError):
            result[path] = found
        elif not path.is_dir():
            result[path] = read[path]
        else:
            result[path] = _joined([(f.name, read[f]) for f in found])
    return result


def _joined(parts: list[tuple[str, Fingerprint | OSError]]) -> Fingerprint | OSError:
    digests = []
    for name, part in parts:
        if not isinstance(part, Fingerprint):
            return part
        if part.damage:
            return Fingerprint("", f"{name}: {part.damage}")
        digests.append((name, part.digest))
    return Fingerprint(combined(digests))
