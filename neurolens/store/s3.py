"""What an S3 store needs beyond icechunk: a server that honours conditional writes, and leases on rows.

A lease is an object put on condition that there is none. It lapses when it has not been renewed for `LEASE_S` by the
server's own clock, so that no clock of ours counts.
"""

import contextlib
import email.utils
import functools
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from neurolens.errors import MissingExtraError, StoreError
from neurolens.store.locks import RowId, row_number
from neurolens.store.repository import SIDE_FOLDER, bucket_and_prefix, explained, s3_endpoint, s3_region

LEASE_S = 120.0
PARALLEL = 16


def client(*, endpoint: str | None = None, region: str | None = None) -> Any:
    """Return a boto3 S3 client; credentials come from the environment.

    Raises
    ------
    MissingExtraError
        If boto3 is absent.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise MissingExtraError.of("boto3", "s3", "writing to an S3 store") from None
    address = s3_endpoint(endpoint)
    config = Config(
        s3={"addressing_style": "path" if address else "auto"},
        retries={"mode": "standard", "max_attempts": 5},
        max_pool_connections=PARALLEL,
    )
    return boto3.client("s3", endpoint_url=address, region_name=s3_region(region), config=config)


@contextlib.contextmanager
def explained_s3(url: str) -> Iterator[None]:
    """Turn what boto3 raises into a StoreError that names the store and the mend."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        with explained(url):
            yield
    except (BotoCoreError, ClientError) as error:
        raise StoreError(f"{url}: {error}; check the endpoint, the bucket and the AWS_* credentials") from error


def honours_conditional_put(url: str, *, endpoint: str | None = None, region: str | None = None) -> bool:
    """Whether the server refuses to overwrite an object that was put on condition that there is none.

    A server that ignores the condition loses commits silently: icechunk relies on it.
    """
    s3 = client(endpoint=endpoint, region=region)
    bucket, prefix = bucket_and_prefix(url)
    name = f"{prefix}/{SIDE_FOLDER}/probe-{uuid.uuid4().hex}"
    with explained_s3(url):
        try:
            first = _put(s3, bucket, name, b"1", IfNoneMatch="*")
            again = _put(s3, bucket, name, b"2", IfNoneMatch="*")
            wrong = _put(s3, bucket, name, b"3", IfMatch='"00000000000000000000000000000000"')
        finally:
            s3.delete_object(Bucket=bucket, Key=name)
    return first is not None and again is None and wrong is None


@functools.cache
def _probed(url: str, endpoint: str | None, region: str | None) -> bool:
    return honours_conditional_put(url, endpoint=endpoint, region=region)


def require_conditional_put(url: str, *, endpoint: str | None = None, region: str | None = None) -> None:
    """Raise StoreError if the server ignores conditional writes (probed once per process)."""
    if not _probed(url, s3_endpoint(endpoint), region):
        raise StoreError(
            f"{url}: this S3 server ignores conditional writes, and would lose commits without a word; use one that "
            "honours If-None-Match and If-Match (AWS S3, MinIO, Ceph, R2), or a local store"
        )


@contextlib.contextmanager
def claim_rows(
    url: str,
    cube: str,
    rows: Sequence[RowId],
    *,
    endpoint: str | None = None,
    region: str | None = None,
    lease_s: float = LEASE_S,
) -> Iterator[frozenset[RowId]]:
    """Claim rows by leases without waiting, and yield those won.

    They are renewed in the background until the block is left, and free again then; those of a dead process lapse
    ``lease_s`` seconds after their last renewal.
    """
    s3 = client(endpoint=endpoint, region=region)
    bucket, prefix = bucket_and_prefix(url)
    names = {row: f"{prefix}/{SIDE_FOLDER}/leases/{row_number(cube, row):016x}" for row in rows}
    held: dict[RowId, str] = {}
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(lease_s / 4):
            for row, tag in list(held.items()):
                # a renewal that fails is tried again next time; a lease lost to another costs a row computed twice
                with contextlib.suppress(StoreError), explained_s3(url):
                    held[row] = _put(s3, bucket, names[row], _new_body(), IfMatch=tag) or tag

    with ThreadPoolExecutor(PARALLEL) as pool:

        def acquire(row: RowId) -> tuple[RowId, str | None]:
            return row, _acquire(s3, bucket, names[row], lease_s)

        with explained_s3(url):
            held.update({row: tag for row, tag in pool.map(acquire, rows) if tag is not None})
        renewer = threading.Thread(target=renew, name="neurolens-leases", daemon=True)
        renewer.start()
        try:
            yield frozenset(held)
        finally:
            stop.set()
            renewer.join()
            with contextlib.suppress(StoreError), explained_s3(url):
                list(pool.map(lambda row: _release(s3, bucket, names[row], held[row]), held))


def _acquire(s3: Any, bucket: str, name: str, lease_s: float) -> str | None:
    """Return the ETag of the lease if it is ours now."""
    tag = _put(s3, bucket, name, _new_body(), IfNoneMatch="*")
    if tag is not None:
        return tag
    from botocore.exceptions import ClientError

    try:
        found = s3.head_object(Bucket=bucket, Key=name)
    except ClientError as error:
        if _status(error) == 404:  # released this moment: the next round takes it
            return None
        raise
    now = email.utils.parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
    if (now - found["LastModified"]).total_seconds() <= lease_s:
        return None
    return _put(s3, bucket, name, _new_body(), IfMatch=found["ETag"])


def _new_body() -> bytes:
    """Return what no other lease or renewal holds, so that its ETag names this one alone."""
    return uuid.uuid4().hex.encode()


def _release(s3: Any, bucket: str, name: str, tag: str) -> None:
    found = s3.head_object(Bucket=bucket, Key=name)
    if found["ETag"] == tag:
        s3.delete_object(Bucket=bucket, Key=name)


def _put(s3: Any, bucket: str, name: str, body: bytes, **condition: str) -> str | None:
    """Put an object on a condition, and return its ETag; None if the condition does not hold."""
    from botocore.exceptions import ClientError

    try:
        return str(s3.put_object(Bucket=bucket, Key=name, Body=body, **condition)["ETag"])
    except ClientError as error:
        missing_bucket = error.response.get("Error", {}).get("Code") == "NoSuchBucket"
        if _status(error) in (404, 409, 412) and not missing_bucket:  # 404: the object that should match is gone
            return None
        raise


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
