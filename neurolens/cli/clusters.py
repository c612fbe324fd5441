"""Clusters of units for the reference's own scripts: ``export clusters``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neurolens.cli.console import Profile, Run, Seed, say, store_of
from neurolens.errors import MissingCheckpointError, MissingMeasurementError, nearest

if TYPE_CHECKING:
    import xarray as xr


def export_clusters(
    run: Run,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write LAYER_kK/; block_B_kK/ of DenseNets.")],
    at: Annotated[int | None, typer.Option("--at", help="Epoch or step; default: the last that has clusters.")] = None,
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="Name or glob of the layers to write; default: all.")
    ] = None,
    k: Annotated[
        list[int] | None, typer.Option("--k", help="Number of clusters to write; default: every one measured.")
    ] = None,
    profile: Profile = None,
    seed: Seed = None,
) -> None:
    """Write statistics and clusters of units as the reference does: stats, cluster_results, manifest, centroids."""
    from neurolens.clusters import write_clusters

    place = store_of(run, profile, seed)
    ds, told = _checkpoint(place.url, place.endpoint, place.region, at)
    paths = write_clusters(ds, folder, layers=layer, k=k)
    say(f"wrote {len(paths)} files of {told}: {paths[0]} …")


def _checkpoint(url: str, endpoint: str | None, region: str | None, at: int | None) -> "tuple[xr.Dataset, str]":
    """Open one checkpoint of the clusters cube: the one asked for, or the last that has clusters."""
    import numpy as np

    from neurolens.backend import open_run
    from neurolens.schema import series_dim

    tree = open_run(url, endpoint=endpoint, region=region)
    cube = tree["clusters"].to_dataset() if "clusters" in tree.children else None
    known = np.zeros(0, dtype=np.int64)
    if cube is not None and "unit_cluster" in cube:
        known = np.flatnonzero(np.isfinite(cube["unit_cluster"].isel(unit=0, k=0).to_numpy()))
    if cube is None or not len(known):
        raise MissingMeasurementError(
            f"{url}: there are no clusters in this run, which holds {', '.join(tree.children) or 'nothing'}; measure "
            "them: `neurolens run STUDY --only clusters`, with a [clusters] table in the study"
        )
    series = series_dim(cube)
    labels = cube[series].to_numpy()[known].tolist()
    if at is not None and at not in labels:
        raise MissingCheckpointError(f"{url} has no {series} {at}; {nearest(str(at), map(str, labels))}")
    place = int(known[-1] if at is None else known[labels.index(at)])
    return cube.isel({series: place}), f"{series} {cube[series].to_numpy()[place]}"
