"""The store of a study: opened for reading, where there is one, or for writing."""

from typing import TYPE_CHECKING

from neurolens.study import Study

if TYPE_CHECKING:
    from neurolens.store import Store


def open_for_reading(study: Study) -> "Store | None":
    """Open the study's store for reading, or return None if there is none yet."""
    from icechunk import Repository

    from neurolens import store
    from neurolens.store import repository

    table = study.store
    if repository.is_s3(table.url):
        with repository.explained(table.url):
            found = Repository.exists(repository.storage(table.url, endpoint=table.endpoint, region=table.region))
    else:
        folder = repository.local_path(table.url)
        found = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    if not found:
        return None
    return store.open_store(table.url, endpoint=table.endpoint, region=table.region, readonly=True)


def open_for_writing(study: Study) -> "Store":
    """Open the study's store for writing; create it if there is none."""
    from neurolens import store

    table = study.store
    return store.open_store(table.url, endpoint=table.endpoint, region=table.region, create=True)
