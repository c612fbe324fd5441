"""The xarray entry point: opens a store's committed rows, in order of the series. It imports no torch.

xarray imports this module when it looks for an engine, so what is heavy is imported on opening.
"""

import os
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import xarray as xr
from xarray.backends import BackendEntrypoint

from neurolens.errors import StoreError, nearest

if TYPE_CHECKING:
    import icechunk
    import zarr

SIDE_FOLDER = ".neurolens"
FORMAT = 1


class NeurolensBackendEntrypoint(BackendEntrypoint):
    """Open neurolens stores with ``engine="neurolens"``.

    Parameters of opening, besides xarray's own
    -------------------------------------------
    group : name of the cube; absent in `open_dataset`: the only one there is.
    tag, snapshot : open what a tag or a snapshot id holds, instead of the newest commit.
    endpoint, region : of an S3-compatible server.
    """

    description = "Open neurolens stores: cubes over the checkpoints of a run"
    supports_groups = True
    open_dataset_parameters: ClassVar[tuple[str, ...]] = (
        "filename_or_obj",
        "drop_variables",
        "group",
        "tag",
        "snapshot",
        "endpoint",
        "region",
    )

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Claim local folders that neurolens made, and nothing else."""
        if not isinstance(filename_or_obj, str | os.PathLike) or "://" in os.fspath(filename_or_obj):
            return False
        folder = Path(os.fspath(filename_or_obj)).expanduser()
        return (folder / SIDE_FOLDER).is_dir() and (folder / "refs").is_dir()

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        tag: str | None = None,
        snapshot: str | None = None,
        endpoint: str | None = None,
        region: str | None = None,
    ) -> xr.Dataset:
        """Open one cube.

        Raises
        ------
        StoreError
            If there is no store, or it has no such group, tag or snapshot.
        """
        opened = open_at(filename_or_obj, tag=tag, snapshot=snapshot, endpoint=endpoint, region=region)
        return _dataset(opened, _one_group(opened, group), drop_variables)

    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        tag: str | None = None,
        snapshot: str | None = None,
        endpoint: str | None = None,
        region: str | None = None,
    ) -> dict[str, xr.Dataset]:
        """Open every cube, by path; with ``group``, that one alone as the root."""
        opened = open_at(filename_or_obj, tag=tag, snapshot=snapshot, endpoint=endpoint, region=region)
        if group is not None and group.strip("/"):
            return {"/": _dataset(opened, _one_group(opened, group), drop_variables)}
        root = xr.Dataset(attrs=opened.attrs)
        return {"/": root} | {f"/{name}": _dataset(opened, name, drop_variables) for name in opened.cubes}

    def open_datatree(self, filename_or_obj: Any, **options: Any) -> xr.DataTree:
        """Open every cube as a tree; the options are those of `open_groups_as_dict`."""
        groups: Mapping[str, Any] = self.open_groups_as_dict(filename_or_obj, **options)
        return xr.DataTree.from_dict(groups)


@dataclass(frozen=True)
class OpenedStore:
    """A store at one snapshot."""

    url: str
    session: "icechunk.Session"
    root: "zarr.Group"
    endpoint: str | None
    region: str | None

    @property
    def attrs(self) -> dict[str, Any]:
        """The attributes that say where an opened cube came from, enough to open it again."""
        found: dict[str, Any] = dict(self.root.attrs["neurolens"])  # type: ignore[arg-type]
        attrs = {
            "run": found.get("run") or "",
            "neurolens": str(found.get("version", "")),
            "url": self.url,
            "snapshot": str(self.session.snapshot_id),
            "endpoint": self.endpoint,
            "region": self.region,
        }
        return {key: value for key, value in attrs.items() if value is not None}

    @property
    def cubes(self) -> list[str]:
        """The names of the cubes that it holds."""
        return sorted(name for name, group in self.root.groups() if "neurolens" in group.attrs)


def open_at(
    url: str | os.PathLike[str],
    *,
    tag: str | None = None,
    snapshot: str | None = None,
    endpoint: str | None = None,
    region: str | None = None,
) -> OpenedStore:
    """Open a store for reading at a tag, a snapshot, or the newest commit.

    Raises
    ------
    StoreError
        If there is no store at this URL, it is a newer format, or it has no such tag or snapshot.
    """
    import zarr

    from neurolens.store.repository import explained, is_s3, local_path, open_repository

    if not isinstance(url, str | os.PathLike):
        raise StoreError(f"cannot open a {type(url).__name__} as a store; pass its folder or s3://bucket/prefix")
    text = os.fspath(url)
    repository = open_repository(text, endpoint=endpoint, region=region)
    with explained(text):
        session = _session(repository, text, tag, snapshot)
        try:
            root = zarr.open_group(session.store, mode="r", use_consolidated=False)
        except FileNotFoundError:
            raise StoreError(f"{text}: snapshot {session.snapshot_id} is empty; open a newer one") from None
    found = root.attrs.get("neurolens")
    if not isinstance(found, dict):
        raise StoreError(f"{text}: an icechunk repository that neurolens did not make; open it with xarray.open_zarr")
    if int(str(found.get("format", 0))) > FORMAT:
        raise StoreError(
            f"{text}: store format {found['format']} is newer than this neurolens reads ({FORMAT}); "
            "run: pip install --upgrade neurolens"
        )
    import_module("neurolens.accessor")  # registers ds.lens; it stands below the backend, hence not at the top
    return OpenedStore(text if is_s3(text) else str(local_path(text)), session, root, endpoint, region)


def _session(repository: "icechunk.Repository", url: str, tag: str | None, snapshot: str | None) -> "icechunk.Session":
    import icechunk

    if tag is not None and snapshot is not None:
        raise StoreError(f"{url}: found tag={tag!r} and snapshot={snapshot!r}; pass one of them")
    if tag is not None:
        tags = sorted(repository.list_tags())
        if tag not in tags:
            raise StoreError(f"{url}: there is no tag {tag!r}; {nearest(tag, tags)} Make it with: neurolens tag")
        return repository.readonly_session(tag=tag)
    if snapshot is None:
        return repository.readonly_session("main")
    try:
        return repository.readonly_session(snapshot_id=snapshot)
    except (icechunk.IcechunkError, ValueError) as error:
        newest = [info.id for info in repository.ancestry(branch="main")][:3]
        raise StoreError(
            f"{url}: there is no snapshot {snapshot!r} (it may have expired); the newest are {', '.join(newest)}"
        ) from error


def _one_group(opened: OpenedStore, group: str | None) -> str:
    name, cubes = (group or "").strip("/"), opened.cubes
    if name in cubes:
        return name
    if not name and len(cubes) == 1:
        return cubes[0]
    if not cubes:
        raise StoreError(f"{opened.url}: the store is empty, nothing was measured yet; run: neurolens run STUDY")
    if not name:
        raise StoreError(f"{opened.url}: there are several cubes; pass group= one of {', '.join(cubes)}")
    raise StoreError(f"{opened.url}: there is no group {name!r}; {nearest(name, cubes)}")


def _dataset(opened: OpenedStore, name: str, drop: str | Iterable[str] | None) -> xr.Dataset:
    from neurolens.backend.cubes import open_cube
    from neurolens.store.ledger import group_in
    from neurolens.store.repository import explained

    dropped: Iterable[Hashable] = [drop] if isinstance(drop, str) else drop or ()
    with explained(opened.url):
        return open_cube(group_in(opened.root, name), opened.attrs, [str(key) for key in dropped])


def open_run(
    url: str | os.PathLike[str],
    *,
    tag: str | None = None,
    snapshot: str | None = None,
    endpoint: str | None = None,
    region: str | None = None,
) -> xr.DataTree:
    """Open a run's store as a tree of lazy (dask) cubes.

    Parameters
    ----------
    url : local folder, or s3://bucket/prefix.
    tag, snapshot : open what this tag or snapshot id holds; absent: the newest commit.
    endpoint, region : of an S3-compatible server; absent: the environment's.

    Returns
    -------
    DataTree : one node per cube, e.g. ``tree["samples"]``
        Only committed rows, in order of the series. What was not measured is NaN, and so are rows that failed, and
        rows measured under other settings than the study's now. `ds.lens` holds the reductions.

    Raises
    ------
    StoreError
        If there is no store at this URL, or it has no such tag or snapshot.
    """
    given = {"tag": tag, "snapshot": snapshot, "endpoint": endpoint, "region": region}
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    return xr.open_datatree(os.fspath(url), engine="neurolens", chunks={}, **options)
