"""Where models of the transformers library come from: folders, the hub's cache on this machine, or the hub itself."""

import contextlib
import importlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from neurolens.errors import MissingExtraError, StudyError, nearest

CONFIG = "config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
)
SMALL_FILES = (CONFIG, "preprocessor_config.json", *TOKENIZER_FILES)
"""What describes a model and its input, without its weights."""

_quiet = threading.RLock()


def library(name: str, purpose: str) -> Any:
    """Import a library of the extra ``text``; MissingExtraError says what it is for."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError.of(name.partition(".")[0], "text", purpose) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the transformers library from writing to the terminal; what matters becomes an error of ours."""
    logging = library("transformers.utils.logging", "a network of the transformers library")
    with _quiet:
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()


def cache_folder() -> Path:
    """Return the hub's cache on this machine, as the environment names it now."""
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named)
    if home := os.environ.get("HF_HOME"):
        return Path(home) / "hub"
    constants = library("huggingface_hub.constants", "a model of the hub")
    return Path(constants.HF_HUB_CACHE)


def is_offline() -> bool:
    """Tell whether the environment forbids the hub, whatever a study allows."""
    named = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return named.upper() in ("1", "TRUE", "YES", "ON")


def model_folder(source: str, *, needs: Sequence[str] = (CONFIG,), download: bool = False) -> Path:
    """Return the folder that holds a model's configuration, its tokenizer or both.

    Parameters
    ----------
    source
        A folder, or a name on the hub.
    needs
        Names of files, one of which must be there for the hub not to be asked where that is allowed.
    download
        Allow what is not on this machine to be fetched. The environment's HF_HUB_OFFLINE forbids it all the same.

    Raises
    ------
    StudyError
        If there is neither such a folder nor, on this machine or where allowed on the hub, such a name.
    """
    if os.path.isdir(source):
        return Path(source)
    if os.path.isabs(source) or source.startswith((".", "~")) or source.count("/") > 1:
        raise StudyError(f"there is no folder '{source}'; {_neighbours(Path(source))}; correct model.transformers")
    found = cached(source)
    if found is not None and any(next(found.glob(name), None) for name in needs):
        return found
    if download and not is_offline():
        return fetched(source, None, SMALL_FILES)
    if found is None:
        raise StudyError(
            f"'{source}' is neither a folder nor in the hub's cache on this machine; {allow_fetching(download)}"
        )
    return found


def allow_fetching(download: bool) -> str:
    """Say how what is not on this machine could come here."""
    if download:
        return "it may be fetched, but HF_HUB_OFFLINE is set; unset it, or copy the files here"
    return "allow fetching it with model.transformers.download = true, or name a folder that holds it"


def cached(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of a revision in the hub's cache on this machine, or None; asks nobody."""
    top = repository_folder(name)
    ref = top / "refs" / (revision or "main")
    commit = ref.read_text().strip() if ref.is_file() else revision
    folder = top / "snapshots" / commit if commit else top
    return folder if commit and folder.is_dir() else None


def repository_folder(name: str) -> Path:
    """Return where the hub's cache keeps a model, whether it is there or not."""
    return cache_folder() / f"models--{name.replace('/', '--')}"


def fetched(name: str, revision: str | None, files: Sequence[str]) -> Path:
    """Fetch files of a revision into the hub's cache and return its folder there.

    Raises
    ------
    StudyError
        If the hub has no such name or revision, or cannot be reached.
    """
    hub = library("huggingface_hub", "a model of the hub")
    wanted = list(files)
    try:
        with _without_bars():
            where = hub.snapshot_download(name, revision=revision, allow_patterns=wanted, cache_dir=cache_folder())
    except failures() as error:
        raise StudyError(refusal(name, revision, error)) from transient(error)
    return Path(where)


def failures() -> tuple[type[BaseException], ...]:
    """Return what the hub's library raises where the hub refuses, or cannot be reached."""
    errors = library("huggingface_hub.errors", "a model of the hub")
    known = (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError, OSError)
    try:
        return (*known, importlib.import_module("httpx").HTTPError)
    except ImportError:  # older releases speak through requests, whose errors are of input and output
        return known


def transient(error: BaseException) -> BaseException:
    """Return a failure to reach the hub as an error of input and output, which a row is tried again after."""
    if isinstance(error, OSError) or not type(error).__module__.startswith("httpx"):
        return error
    return ConnectionError(str(error))


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the hub's progress bars off the terminal; other threads may go on meanwhile."""
    bars = library("huggingface_hub.utils", "a model of the hub")
    shown = not bars.are_progress_bars_disabled()
    if shown:
        bars.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bars()


def refusal(name: str, revision: str | None, error: BaseException) -> str:
    """Say why the hub gave nothing, and what would mend it."""
    errors = library("huggingface_hub.errors", "a model of the hub")
    if isinstance(error, errors.RevisionNotFoundError):
        return f"'{name}' has no revision {revision!r} on the hub; correct checkpoints.revisions or checkpoints.steps"
    if isinstance(error, errors.GatedRepoError):
        return f"'{name}' is on the hub for those alone who accepted its terms; accept them and log in to the hub"
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return f"there is no '{name}' on the hub; correct model.transformers.source"
    first = str(error).strip().partition("\n")[0]
    return f"'{name}' could not be fetched from the hub ({type(error).__name__}: {first}); try again, or copy it here"


def _neighbours(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"nor is there '{folder}'"
    return nearest(path.name, [p.name for p in folder.iterdir() if p.is_dir()])
