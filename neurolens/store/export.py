"""Export: a run as plain consolidated Zarr v3, for readers that know nothing of neurolens."""

import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurolens.errors import StoreError

if TYPE_CHECKING:
    import xarray as xr

COLUMNS = 2**14  # samples per exported chunk, at most: 10 MiB with the rows of a dask chunk
HERE = ("url", "endpoint", "region")  # attributes that speak of where the store lies, not of the data


def export_zarr(
    url: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    group: str | None = None,
    tag: str | None = None,
    snapshot: str | None = None,
    endpoint: str | None = None,
    region: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write what opening a store gives as plain Zarr v3, out of core and all at once or not at all.

    Parameters
    ----------
    url : the store.
    path : the folder to make.
    group : export this cube alone, as the root of the folder; absent: every cube, each in a group of its name.
    tag, snapshot : export what this tag or snapshot id holds; absent: the newest commit.
    endpoint, region : of an S3-compatible server.
    overwrite : replace a Zarr folder that is there already.

    Returns
    -------
    Path
        The folder; `xarray.open_zarr(path, chunks={})` or `xarray.open_datatree` read it without neurolens. What was
        not measured is NaN; there is no ledger.

    Raises
    ------
    StoreError
        If there is no such store, group, tag or snapshot, the path is taken, or it cannot be written.
    """
    from neurolens.backend import NeurolensBackendEntrypoint
    from neurolens.store.repository import explained

    target = Path(os.path.abspath(Path(path).expanduser()))
    _require_free(target, overwrite)
    groups = NeurolensBackendEntrypoint().open_groups_as_dict(
        url, group=group, tag=tag, snapshot=snapshot, endpoint=endpoint, region=region
    )
    with explained(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent))
        try:
            for name, data in groups.items():
                _write(data, draft / "zarr", name.strip("/"))
            _consolidate(draft / "zarr")
            if target.exists():
                target.rename(draft / "old")
            (draft / "zarr").rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return target


def _require_free(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise StoreError(f"{target}: there is something here already; name another path, or pass overwrite=True")
    if not (target / "zarr.json").is_file() and (not target.is_dir() or any(target.iterdir())):
        raise StoreError(f"{target}: this is not a Zarr folder, and is not overwritten; name another path")


def _write(data: "xr.Dataset", folder: Path, group: str) -> None:
    plain = data.drop_attrs(deep=False).assign_attrs({k: v for k, v in data.attrs.items() if k not in HERE})
    encoding: dict[str, dict[str, Any]] = {}
    chunks: dict[str, int] = {}
    for name, variable in plain.variables.items():
        variable.encoding = {}
        preferred = data[name].encoding.get("preferred_chunks")
        if preferred:
            rows, columns = (min(size, preferred.get(dim, size)) for dim, size in data[name].sizes.items())
            columns = min(columns, COLUMNS)
            encoding[str(name)] = {"chunks": (max(1, rows), max(1, columns)), "compressors": None}
            for dim, size in zip(data[name].dims, (rows, columns), strict=True):
                chunks[str(dim)] = max(1, size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", UserWarning)
        plain.chunk(chunks).to_zarr(
            folder, group=group or None, mode="a", zarr_format=3, consolidated=False, encoding=encoding
        )


def _consolidate(folder: Path) -> None:
    import zarr

    with warnings.catch_warnings():  # the consolidated metadata of Zarr v3 is not in its specification yet
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", UserWarning)
        zarr.consolidate_metadata(folder, zarr_format=3)
