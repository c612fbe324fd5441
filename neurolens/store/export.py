"""Export: a run as plain consolidated Zarr v3, for readers that know nothing of neurolens."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
    import zarr.codecs

    plain = data.drop_attrs(deep=False).assign_attrs({k: v for k, v in data.attrs.items() if k not in HERE})
    encoding: dict[str, dict[str, Any]] = {}
    for name, variable in plain.variables.items():
        variable.encoding = {}
        found = data[name].encoding
        if found.get("preferred_chunks"):
            read, written = _chunks(data[name].sizes, found["preferred_chunks"], found["stored_chunks"])
            plain[name] = plain[name].chunk(read)
            raw = variable.ndim == 2 or variable.dtype == np.float16
            codecs = None if raw else (zarr.codecs.BloscCodec(cname="lz4", shuffle="bitshuffle"),)
            encoding[str(name)] = {"chunks": tuple(written.values()), "compressors": codecs}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", UserWarning)
        plain.to_zarr(folder, group=group or None, mode="a", zarr_format=3, consolidated=False, encoding=encoding)


def _chunks(
    sizes: Mapping[Hashable, int], preferred: Mapping[str, int], stored: Mapping[str, int]
) -> tuple[dict[Hashable, int], dict[Hashable, int]]:
    """Return how a variable is read and how its chunks are written, by dim: whole chunks are written at a time."""
    read = {dim: max(1, min(size, preferred[str(dim)])) for dim, size in sizes.items()}
    if len(sizes) == 2:
        _, along = sizes
        read[along] = min(read[along], COLUMNS)
        return read, read
    return read, {dim: max(1, min(size, stored[str(dim)])) for dim, size in sizes.items()}


def _consolidate(folder: Path) -> None:
    import zarr

    with warnings.catch_warnings():  # the consolidated metadata of Zarr v3 is not in its specification yet
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", UserWarning)
        zarr.consolidate_metadata(folder, zarr_format=3)
