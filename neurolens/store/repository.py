"""Icechunk repositories: where they are, how they are opened and created, and what their errors mean."""

import atexit
import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import icechunk
import zarr

from neurolens.errors import StoreError

FORMAT = 1
BRANCH = "main"
SLOTS_PER_MANIFEST = 1024
SIDE_FOLDER = ".neurolens"
DRAFT_S = 600.0
LAST_S = 0.02

if "ICECHUNK_LOG" not in os.environ:
    # on local folders icechunk warns of concurrent commits at every open; here a file lock serialises them
    icechunk.set_logs_filter("icechunk=error")

# A thread of icechunk that still holds the interpreter when it ends aborts the process, with all work done
# (pyo3-async-runtimes 40). What the last call left them to do takes microseconds.
atexit.register(time.sleep, LAST_S)


def is_s3(url: str | os.PathLike[str]) -> bool:
    """Whether the store lies on an S3 server."""
    return str(url).startswith("s3://")


def local_path(url: str | os.PathLike[str]) -> Path:
    """Return the absolute folder of a local store.

    Raises
    ------
    StoreError
        If the URL names another protocol.
    """
    text = os.fspath(url)
    if text.startswith("file://"):
        text = urlsplit(text).path
    if "://" in text:
        raise StoreError(f"{text}: protocol {text.split('://')[0]!r} is not known; use a local folder or s3://bucket/…")
    return Path(os.path.abspath(Path(text).expanduser()))


def bucket_and_prefix(url: str) -> tuple[str, str]:
    """Split ``s3://bucket/prefix``.

    Raises
    ------
    StoreError
        If there is no bucket or no prefix.
    """
    parts = urlsplit(url)
    prefix = parts.path.strip("/")
    if not parts.netloc or not prefix:
        raise StoreError(f"{url}: an S3 store is named s3://bucket/prefix, with a prefix of its own")
    return parts.netloc, prefix


def s3_endpoint(endpoint: str | None) -> str | None:
    """Return the endpoint: the one given, else the environment's, as boto3 reads it."""
    return endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def s3_region(region: str | None) -> str:
    """Return the region: the one given, else the environment's, else us-east-1."""
    return region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def storage(url: str, *, endpoint: str | None = None, region: str | None = None) -> icechunk.Storage:
    """Return icechunk's storage of a URL; S3 credentials come from the environment."""
    if not is_s3(url):
        return icechunk.local_filesystem_storage(str(local_path(url)))
    bucket, prefix = bucket_and_prefix(url)
    address = s3_endpoint(endpoint)
    return icechunk.s3_storage(
        bucket=bucket,
        prefix=prefix,
        region=s3_region(region),
        endpoint_url=address,
        allow_http=bool(address and address.startswith("http://")),
        force_path_style=address is not None,
        from_env=True,
    )


def configuration() -> icechunk.RepositoryConfig:
    """Return the configuration of every repository: manifests split along slots, and none preloaded.

    With it the cost of appending a row stays flat; both halves are needed.
    """
    splitting = icechunk.ManifestSplittingConfig.from_dict(
        {
            icechunk.ManifestSplitCondition.AnyArray(): {
                icechunk.ManifestSplitDimCondition.DimensionName("slot"): SLOTS_PER_MANIFEST
            }
        }
    )
    preload = icechunk.ManifestPreloadConfig(preload_if=icechunk.ManifestPreloadCondition.false())
    return icechunk.RepositoryConfig(manifest=icechunk.ManifestConfig(splitting=splitting, preload=preload))


def open_repository(
    url: str | os.PathLike[str], *, endpoint: str | None = None, region: str | None = None
) -> icechunk.Repository:
    """Open the icechunk repository of a store that exists.

    Raises
    ------
    StoreError
        If there is none at this URL, or it cannot be read.
    """
    text = os.fspath(url)
    if not is_s3(text):
        path = local_path(text)
        if not path.exists():
            raise StoreError(f"{text}: there is no store here (no such folder); `neurolens run STUDY` makes one")
        if not (path / "refs").is_dir():
            raise StoreError(f"{text}: this is not a neurolens store (an icechunk repository has a folder `refs`)")
    with explained(text):
        return icechunk.Repository.open(storage(text, endpoint=endpoint, region=region), config=configuration())


def create_repository(
    url: str | os.PathLike[str], *, endpoint: str | None = None, region: str | None = None, version: str
) -> icechunk.Repository:
    """Create an empty store, or open the one that another process has just created there.

    A local store is made beside its place and moved there whole, so that a kill leaves none or a complete one.

    Raises
    ------
    StoreError
        If the place is taken by something else, or cannot be written.
    """
    text = os.fspath(url)
    root_attrs: dict[str, object] = {"neurolens": {"format": FORMAT, "run": None, "version": version}}
    if is_s3(text):
        with explained(text):
            try:
                repository = icechunk.Repository.create(
                    storage(text, endpoint=endpoint, region=region), config=configuration()
                )
            except icechunk.IcechunkError as error:
                if "clean prefix" not in str(error):
                    raise
                return open_repository(text, endpoint=endpoint, region=region)
            _write_root(repository, root_attrs)
            return repository
    path = local_path(text)
    with explained(text):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            return open_repository(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*.new"):  # by a process that was killed while creating
            if time.time() - left.stat().st_mtime > DRAFT_S:
                shutil.rmtree(left, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent))
        try:
            inner = draft / "store"
            _write_root(
                icechunk.Repository.create(icechunk.local_filesystem_storage(str(inner)), config=configuration()),
                root_attrs,
            )
            (inner / SIDE_FOLDER).mkdir()
            with contextlib.suppress(OSError):  # another process was faster: its store is opened below
                inner.rename(path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return open_repository(text)


def _write_root(repository: icechunk.Repository, attrs: dict[str, object]) -> None:
    session = repository.writable_session(BRANCH)
    zarr.create_group(session.store, attributes=attrs)
    try:
        session.commit("create store")
    except icechunk.ConflictError:  # created by another process at the same moment, with the same attributes
        session.discard_changes()


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what icechunk, zarr and the operating system raise into a StoreError that names the store and the mend."""
    try:
        yield
    except StoreError:
        raise
    except (icechunk.IcechunkError, OSError) as error:
        raise StoreError(f"{url}: {diagnosis(error)}") from error


def diagnosis(error: BaseException) -> str:
    """Say in one line what went wrong and what mends it."""
    text = str(error)
    number = getattr(error, "errno", None)
    low = text.lower()
    if number == errno.ENOSPC or "no space left" in low or "os error 28" in low:
        return "the disk is full; free some space and run again: all rows committed so far are safe"
    if number == errno.EDQUOT or "quota exceeded" in low or "os error 122" in low:
        return "the disk quota is used up; free some space and run again: all rows committed so far are safe"
    if number == errno.EROFS or "read-only file system" in low or "os error 30" in low:
        return "the file system is read-only; open the store with readonly=True, or move it to where you may write"
    if number in (errno.EACCES, errno.EPERM) or "permission denied" in low or "os error 13" in low:
        return "no permission to write here; open the store with readonly=True, or mend the folder's permissions"
    if "accessdenied" in low.replace(" ", "") or "forbidden" in low or "credential" in low:
        return f"the S3 server refused the request ({_brief(text)}); check the AWS_* credentials in the environment"
    if "dispatch failure" in low:
        return "the S3 server cannot be reached; check the endpoint and the network"
    if "nosuchbucket" in low.replace(" ", ""):
        return "the bucket does not exist; create it, or correct the URL"
    if "repository doesn't exist" in low or "repository does not exist" in low:
        return "there is no store here; `neurolens run STUDY` makes one"
    return _brief(text)


def _brief(text: str) -> str:
    """Return the first telling line of icechunk's multi-line report."""
    lines = [line.strip(" x|`->") for line in text.splitlines()]
    return next((line for line in lines if line and line != "context:"), "unknown error")
