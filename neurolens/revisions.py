"""Checkpoints that are revisions of a model on the hub: those on this machine, and, where allowed, those to fetch."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from neurolens import hub
from neurolens.checkpoint_files import Found
from neurolens.checkpoint_folders import combined, is_model_folder, preferred
from neurolens.errors import MissingCheckpointError, StudyError
from neurolens.study import Checkpoints as Table
from neurolens.study import Transformers, pattern_fields

PYTHIA = (0, *(2**k for k in range(10)), *range(1000, 143_001, 1000))
"""The 154 steps that every Pythia model is kept at (Biderman et al. 2023)."""

_ASKED_AT_ONCE = 8


@dataclass(frozen=True)
class Remote:
    """A revision that may be fetched: its files on the hub, and what the hub says their fingerprint is."""

    name: str
    revision: str
    commit: str
    files: tuple[str, ...]
    digest: str


_lock = threading.Lock()
_remotes: dict[Path, Remote] = {}
_refused: dict[Path, str] = {}


def listed(table: Table, source: Transformers | None, notes: list[str]) -> list[Found]:
    """Return a checkpoint for each revision that a study names, whether it is on this machine or not.

    One that is not, and cannot be fetched, has a path that does not exist; reading it then says why, and the others
    are not held up. What may be fetched is fetched when it is read; here the hub is only asked what there is.

    Raises
    ------
    StudyError
        If the network is no model of the hub, or the name of the revisions or their steps are not given.
    """
    if source is None:
        raise StudyError(
            "checkpoints.revisions are those of a model of the hub; set model.name = 'transformers' and "
            "model.transformers.source, or use checkpoints.folder"
        )
    if Path(source.source).is_dir():
        raise StudyError(
            f"checkpoints.revisions are those of a model of the hub, and model.transformers.source is the folder "
            f"'{source.source}'; name the model, or use checkpoints.folder"
        )
    pattern = table.revisions or ""
    fields = sorted(set(pattern_fields(pattern)))
    if fields not in (["epoch"], ["step"]):
        raise StudyError(
            f"checkpoints.revisions is {pattern!r}; it needs one of {{step}} and {{epoch}}: 'step{{step}}'"
        )
    positions = PYTHIA if table.steps == "pythia" else tuple(table.steps)
    if not positions:
        raise StudyError("checkpoints.revisions needs its steps: checkpoints.steps = 'pythia', or a list of numbers")
    names = [pattern.format(**{fields[0]: position}) for position in positions]
    folders = _folders(source, names)
    if absent := [name for name, folder in zip(names, folders) if folder in _refused]:
        shown = ", ".join(absent[:4]) + (f" and {len(absent) - 4} more" if len(absent) > 4 else "")
        notes.append(f"revisions of {source.source} that are not on this machine: {shown}")
    if waiting := [folder for folder in folders if folder in _remotes and not is_model_folder(folder)]:
        notes.append(f"{len(waiting)} revisions of {source.source} will be fetched from the hub as they are read")
    at = "epoch" if fields == ["epoch"] else "step"
    return [
        Found(folder, position if at == "epoch" else None, position if at == "step" else None)
        for folder, position in zip(folders, positions)
    ]


def expected(path: Path) -> str | None:
    """Return the fingerprint that a revision will have once it is fetched; None if it is here, or cannot be."""
    remote = _remotes.get(path)
    return remote.digest if remote is not None and not is_model_folder(path) else None


def refused(path: Path) -> bool:
    """Tell whether this is where a revision would lie that is not on this machine and cannot be fetched."""
    return path in _refused and not path.exists()


def here(path: Path) -> Path:
    """Return a checkpoint's path; fetch it first if it is a revision that may be fetched.

    Raises
    ------
    MissingCheckpointError
        If it is a revision that is not on this machine and may not be fetched, or is not on the hub.
    """
    if path.exists() and (path not in _remotes or is_model_folder(path)):
        return path
    remote = _remotes.get(path)
    if remote is not None:
        try:
            return hub.fetched(remote.name, remote.revision, (*remote.files, *hub.SMALL_FILES))
        except StudyError as error:
            raise MissingCheckpointError(str(error)) from error.__cause__
    if path in _refused:
        raise MissingCheckpointError(_refused[path])
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        name = path.parent.parent.name.removeprefix("models--").replace("--", "/")
        raise MissingCheckpointError(_absent(name, path.name, download=False))
    return path


def _folders(source: Transformers, names: Sequence[str]) -> list[Path]:
    """Return where each revision lies in the hub's cache, or would lie."""

    def find(revision: str) -> Path:
        folder = hub.cached(source.source, revision)
        if folder is not None and is_model_folder(folder):
            return folder
        would_be = hub.repository_folder(source.source) / "snapshots" / revision
        why = _absent(source.source, revision, source.download)
        if source.download and not hub.is_offline():
            try:
                remote = _ask(source.source, revision)
            except StudyError as error:
                why = str(error)
            else:
                would_be = would_be.with_name(remote.commit)
                with _lock:
                    _remotes[would_be] = remote
                return would_be
        with _lock:
            _refused[would_be] = why
        return would_be

    with ThreadPoolExecutor(min(_ASKED_AT_ONCE, len(names))) as pool:
        return list(pool.map(find, names))


def _absent(name: str, revision: str, download: bool) -> str:
    return (
        f"revision {revision!r} of {name!r} is not on this machine; {hub.allow_fetching(download)}; "
        "or leave it out with checkpoints.steps, start, end or stride"
    )


def _ask(name: str, revision: str) -> Remote:
    """Ask the hub which files a revision has, and their fingerprints; nothing is fetched."""
    api = hub.library("huggingface_hub", "a model of the hub")
    try:
        info = api.HfApi().model_info(name, revision=revision, files_metadata=True)
    except hub.failures() as error:
        raise StudyError(hub.refusal(name, revision, error)) from hub.transient(error)
    hashes = {s.rfilename: s.lfs.sha256 for s in info.siblings if s.lfs is not None}
    there = [s.rfilename for s in info.siblings]
    files = preferred(there)
    if not files or any(f not in hashes for f in files):
        raise StudyError(
            f"revision {revision!r} of {name!r} has no weights that can be used (model.safetensors or "
            f"pytorch_model.bin); found {', '.join(sorted(there)[:6]) or 'nothing'}"
        )
    indices = tuple(f for f in there if f.endswith(".index.json"))
    return Remote(name, revision, info.sha, (*files, *indices), combined((f, hashes[f]) for f in files))
