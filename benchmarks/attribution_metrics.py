"""Sparsity and faithfulness of all maps of a picture against one configuration at a time: the same scores.

``python -m benchmarks.attribution_metrics [--quick]``. DenseNet-121 with random weights and calibrated batch norm, on
one thread; a grid of 4 blocks times k = 2 to 5, clustered as the reference does, with the unfiltered maps: 57
configurations of two methods. The reference's way shows, for each map, the picture as it is and without the highest
tenth of its 14 x 14 patches, alone, and for each configuration the picture once more, for the accuracy: five pictures.
Ours shows each distinct picture once, in batches, laid out channels-last; the class that it names of the picture as it
is says whether all configurations are right. Both ways are timed turn by turn, the reference on some configurations,
multiplied. Times are CPU time.
"""

import copy
import os
import subprocess
import sys
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch
import xarray as xr

from benchmarks.attribution import KEEP, network, timed
from neurolens.attribution import (
    attributions,
    basis_gradients,
    cluster_masks,
    complements,
    faithfulness,
    find_cuts,
    patch_table,
    plan,
    sparsity,
)
from neurolens.clusters import unit_clusters, unit_features

GRID = 14


def requests_of(module: Any, layers: Any, images: Any, ks: tuple[int, ...]) -> dict[str, xr.DataArray]:
    """What is left without each cluster of the layers' units, by their spatial means on the images."""
    seen: dict[str, Any] = {}
    hooks = [
        module.get_submodule(layer.name).register_forward_hook(
            lambda _, __, output, name=layer.name: seen.update({name: output.mean(dim=(2, 3)).numpy()})
        )
        for layer in layers
    ]
    with torch.no_grad():
        module(images)
    for hook in hooks:
        hook.remove()
    return {
        name: complements(
            xr.concat(
                [
                    cluster_masks(unit_clusters(unit_features(means), k, compat="seed").to_numpy().reshape(-1))
                    for k in ks
                ],
                "map",
            )
        )
        for name, means in seen.items()
    }


def maps_of(module: Any, x: Any, images: Any, names: list[str], ks: tuple[int, ...], steps: int) -> xr.DataArray:
    """Maps of the pictures by method and configuration, (sample, attribution, map, channel, y, x)."""
    cuts = find_cuts(module, names, x)
    found = plan(requests_of(module, cuts.layers, images, ks))
    both = attributions(basis_gradients(module, x, cuts, found, steps=steps, batch_size=10), found)
    return both[["integrated_gradients", "saliency"]].to_dataarray("attribution").transpose("sample", ...)


def reference(module: Any, x: Any, heat: Any) -> tuple[float, float]:
    """Sparsity and drop of one map (channel, y, x), patches by loops, every picture alone."""
    _, height, width = heat.shape
    side = height // GRID
    mass = np.abs(heat).sum(axis=0)
    cells = np.array(
        [[mass[a:b, c:d].sum() for c, d in edges(width)] for a, b in edges(height)], dtype=np.float64
    ).ravel()
    held = np.cumsum(np.sort(cells)[::-1])
    spread = 1 - (int(np.searchsorted(held, 0.9 * cells.sum())) + 1) / cells.size
    highest = np.argsort(-cells, kind="stable")[: max(1, round(0.1 * cells.size))]
    masked = x.clone()
    for cell in highest:
        row, column = divmod(int(cell), GRID)
        masked[0, :, row * side : (row + 1) * side, column * side : (column + 1) * side] = 0
    with torch.no_grad():
        before, after = module(x).softmax(1), module(masked).softmax(1)
    target = int(before.argmax())
    return spread, float(before[0, target] - after[0, target])


def edges(length: int) -> list[tuple[int, int]]:
    """Where cells begin and end."""
    side = length // GRID
    return list(pairwise(range(0, GRID * side + 1, side)))


def configuration(module: Any, x: Any, maps: xr.DataArray) -> tuple[int, list[tuple[float, float]]]:
    """Class that is named, and scores of the maps (attribution, channel, y, x), of one configuration."""
    with torch.no_grad():
        named = int(module(x).argmax())
    return named, [reference(module, x, one.to_numpy()) for one in maps]


def ours_of(module: Any, x: Any, maps: xr.DataArray) -> tuple[xr.DataArray, xr.Dataset]:
    """Sparsity and drop of all maps, from their patches: the table that a study keeps anyway."""
    table = patch_table(maps, grid=GRID)
    return sparsity(table), faithfulness(module, x, table)


def compare(size: int, blocks: tuple[int, ...], ks: tuple[int, ...], shown: int, steps: int, some: int) -> None:
    """Print both ways' times and how far the scores are apart."""
    module, x = network(size, blocks)
    names = [f"features.denseblock{b + 1}" for b in range(shown)]
    turned, laid = copy.deepcopy(module).to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    images = torch.randn(32, *x.shape[1:], generator=torch.Generator().manual_seed(1))
    maps = maps_of(turned, laid, images.contiguous(memory_format=torch.channels_last), names, ks, steps)
    count = maps.sizes["map"]
    theirs, ours = [], []
    for turn in range(3):
        chosen = np.random.default_rng(turn).choice(count, some, replace=False)
        seconds, expected = timed(lambda: [configuration(module, x, maps[0, :, one]) for one in chosen])  # noqa: B023
        theirs.append(seconds / some * count)
        seconds, both = timed(lambda: ours_of(turned, laid, maps))
        ours.append(seconds)
    spread, falls = both
    got = np.stack([spread.to_numpy()[0], falls["drop"].to_numpy()[0]], axis=-1)[:, chosen]
    apart = np.abs(got.swapaxes(0, 1) - [scores for _, scores in expected]).max(axis=(0, 1))
    assert {named for named, _ in expected} == {int(falls["target"][0])}
    print(f"{2 * count} maps of a picture of {size}x{size}: {falls.attrs['pictures']} distinct pictures shown")
    print(f"  reference  {median(theirs):>8.2f} s for all, of {some} configurations timed, three times")
    ratio = median(theirs) / median(ours)
    print(f"  ours       {median(ours):>8.2f} s for all: {ratio:.1f}x, or {ratio * 4 / 5:.1f}x without the accuracy")
    print(f"  sparsity {apart[0]:.1e} apart, drop {apart[1]:.1e}", flush=True)


def main(quick: bool) -> None:
    """Print the comparison."""
    if quick:
        compare(56, (2, 2, 2, 2), (2, 3), 2, 2, 4)
    else:
        compare(224, (6, 12, 24, 16), (2, 3, 4, 5), 4, 4, 6)


if __name__ == "__main__":
    if KEEP.items() <= os.environ.items():
        torch.set_num_threads(1)
        main("--quick" in sys.argv)
    else:
        words = [sys.executable, "-m", "benchmarks.attribution_metrics", *sys.argv[1:]]
        sys.exit(subprocess.run(words, env=os.environ | KEEP).returncode)
