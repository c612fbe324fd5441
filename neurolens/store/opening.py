"""Opening the store of a run, and making it."""

import os

from neurolens import __version__
from neurolens.errors import StoreError
from neurolens.store import repository, s3
from neurolens.store.run_store import Store


def open_store(
    url: str | os.PathLike[str],
    *,
    endpoint: str | None = None,
    region: str | None = None,
    create: bool = False,
    readonly: bool = False,
) -> Store:
    """Open the store of a run: a local folder or ``s3://bucket/prefix``.

    Parameters
    ----------
    endpoint, region
        Of an S3-compatible server; absent: from the environment, as are the credentials.
    create
        Make an empty store if there is none.
    readonly
        Take no lock and refuse to write.

    Raises
    ------
    StoreError
        If there is no store, it is not ours, it is newer than this version, it cannot be written (and
        ``readonly`` was not asked for), or its S3 server ignores conditional writes.
    MissingExtraError
        If an S3 store is to be written and boto3 is absent.
    """
    text = os.fspath(url)
    if not repository.is_s3(text):
        text = str(repository.local_path(text))
    elif not readonly:
        s3.require_conditional_put(text, endpoint=endpoint, region=region)
    try:
        repo = repository.open_repository(text, endpoint=endpoint, region=region)
    except StoreError:
        if not create or readonly:
            raise
        repo = repository.create_repository(text, endpoint=endpoint, region=region, version=__version__)
    store = Store(text, repo, endpoint=endpoint, region=region, readonly=readonly)
    own = store.attributes()
    if own["format"] > repository.FORMAT:
        raise StoreError(
            f"{text}: the store has format {own['format']} (neurolens {own.get('version')}), and this is neurolens "
            f"{__version__}, which reads up to format {repository.FORMAT}; upgrade neurolens"
        )
    if not readonly:
        store.check_writable()
    return store
