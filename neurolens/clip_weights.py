"""Weights that open_clip publishes, by name: where their file lies on this machine, fetched where that is allowed."""

import os
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import URLError

from neurolens import hub
from neurolens.errors import CheckpointError, MissingCheckpointError, MissingExtraError, StudyError, nearest
from neurolens.fingerprints import digest
from neurolens.study import OPEN_CLIP

_DEFAULT_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # as open_clip looks for them


def published(name: str, *, download: bool) -> Path:
    """Return the file of weights that open_clip publishes, in the caches that it and OpenAI's package keep.

    Parameters
    ----------
    name
        ``open_clip/``, the network, a slash, and open_clip's tag: ``open_clip/RN50/openai``.
    download
        Allow it to be fetched by open_clip, if it is not there.

    Raises
    ------
    StudyError
        If open_clip knows no such weights.
    MissingExtraError
        If open_clip is absent.
    MissingCheckpointError
        If the file is not on this machine, and may not or cannot be fetched.
    CheckpointError
        If it has not the hash that its address says.
    """
    try:
        pretrained = import_module("open_clip.pretrained")
    except ImportError as error:
        raise MissingExtraError.of("open_clip_torch", "clip", f"the weights {name!r}") from error
    network, _, tag = name.removeprefix(OPEN_CLIP).rpartition("/")
    found: dict[str, Any] = pretrained.get_pretrained_cfg(network, tag) or {}
    if not found:
        known = [f"{OPEN_CLIP}{one}/{other}" for one, other in pretrained.list_pretrained()]
        raise StudyError(f"open_clip has no weights {name!r}; {nearest(name, known)}")
    url, repository = str(found.get("url", "")), str(found.get("hf_hub", ""))
    path = _here(url, repository)
    if path is None:
        if not download:
            where = _cache() / url.rpartition("/")[2]
            mend = f", or copy {url} to '{where}'" if url else ""
            raise MissingCheckpointError(
                f"open_clip's weights {name} are not on this machine; set checkpoints.download = true{mend}"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # it leaves files for Python to close
                path = Path(pretrained.download_pretrained(found))
        except (URLError, OSError, RuntimeError) as error:
            raise MissingCheckpointError(
                f"open_clip's weights {name} cannot be fetched ({error}); try again, or list a file: "
                "checkpoints.files = [{ path = …, epoch = 0 }]"
            ) from error
    begins = _hash(url) if path.name == url.rpartition("/")[2] else ""
    if not digest(path).startswith(begins):
        raise CheckpointError(
            f"'{path}' is not whole: its sha256 does not begin with {begins}; delete it to fetch it anew"
        )
    return path


def _cache() -> Path:
    """Return where open_clip and OpenAI's package keep what they fetch by address."""
    return Path(os.path.expanduser("~/.cache/clip"))


def _here(url: str, repository: str) -> Path | None:
    """Return the file if it is on this machine; asks nobody."""
    if url and (file := _cache() / url.rpartition("/")[2]).is_file():
        return file
    if not repository:
        return None
    folder, _, name = repository.rpartition("/")
    snapshot = hub.cached(folder)
    names = (name,) if name else _DEFAULT_NAMES
    return next((snapshot / n for n in names if (snapshot / n).is_file()), None) if snapshot else None


def _hash(url: str) -> str:
    """Return how the sha256 begins, where the address says it as open_clip reads it."""
    if "openaipublic" in url:
        return url.split("/")[-2]
    return Path(url).stem.rpartition("-")[2] if "mlfoundations" in url else ""
