"""Attributions by unit cluster against captum with a hook, one configuration at a time: the same maps.

``python -m benchmarks.attribution [--quick]``. DenseNet-121 with random weights and batch norm calibrated on images,
on one thread. The reference's way blocks the gradient of one cluster by a hook and runs captum's Integrated Gradients
(50 steps in chunks of 10: all at once take 6.5 GB) and Saliency, network and image laid out as torch lays them. A grid
of 4 blocks times k = 2 to 5, with the unfiltered maps, is 57 of its configurations: three are timed, turn by turn with
ours, and their median is multiplied. Ours lays them channels-last, as every measurement here does. Times are CPU time.

Ours is timed in the type of the network and with cotangents in bfloat16, and how far these maps are from the others is
printed: over all maps, of the worst one, and how many of the 20 highest patches stay.

glibc is told to keep the memory that was freed, for both: otherwise either way spends a varying part of its time, up to
half, on pages that it had before.
"""

import copy
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torchvision
import xarray as xr
from captum.attr import IntegratedGradients, Saliency

from neurolens.attribution import (
    attributions,
    basis_gradients,
    cluster_masks,
    complements,
    controls,
    find_cuts,
    patch_table,
    plan,
)

KEEP = {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_THRESHOLD_": str(2**40), "OMP_NUM_THREADS": "1"}


def network(size: int, blocks: tuple[int, ...]) -> tuple[Any, Any]:
    """A DenseNet in eval mode, and an image."""
    torch.manual_seed(0)
    module = torchvision.models.DenseNet(growth_rate=32, block_config=blocks, num_init_features=64)
    images = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None  # the mean of what it sees
    with torch.no_grad():
        module.train()(images)
    return module.eval(), images[:1]


def timed(way: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, and what came out."""
    start = time.process_time()
    found = way()
    return time.process_time() - start, found


def reference(module: Any, x: Any, target: int, steps: int, layer: str, kept: Any) -> Any:
    """One configuration: Integrated Gradients through the kept units, (channel, y, x); Saliency is computed too."""
    mask = torch.as_tensor(np.asarray(kept)).to(x).view(1, -1, 1, 1)
    hook = module.get_submodule(layer).register_forward_hook(
        lambda _, __, output: output * mask + (output * (1 - mask)).detach()
    )
    try:
        Saliency(module).attribute(x.clone().requires_grad_(), target=target)
        found = IntegratedGradients(module).attribute(x, target=target, n_steps=steps, internal_batch_size=10)
        return found[0].detach().numpy()
    finally:
        hook.remove()


def apart(one: Any, other: Any) -> float:
    """Relative L2 distance from the other."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def deviation(maps: xr.DataArray, exact: xr.DataArray) -> str:
    """How far maps (map, channel, y, x) are from the exact ones."""
    each = [apart(one.to_numpy(), other.to_numpy()) for one, other in zip(maps, exact, strict=True)]
    both = (np.argsort(-patch_table(found, grid=14).to_numpy().reshape(len(found), -1)) for found in (maps, exact))
    kept = [len({*one[:20]} & {*other[:20]}) for one, other in zip(*both, strict=True)]
    whole = apart(maps.to_numpy(), exact.to_numpy())
    return f"{whole:.2%} apart, the worst {max(each):.2%}; {min(kept)} or more of the 20 highest patches"


def compare(
    title: str, size: int, blocks: tuple[int, ...], ks: tuple[int, ...], shown: int, steps: int, turns: int, mib: float
) -> None:
    """Print both ways' times for all clusters of the first ``shown`` blocks, and how far the maps are apart."""
    torch.set_num_threads(1)
    module, x = network(size, blocks)
    names = [f"features.denseblock{b + 1}" for b in range(shown)]
    turned, laid = copy.deepcopy(module).to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    cuts, random = find_cuts(turned, names, laid), np.random.default_rng(0)
    requests = {
        layer.name: xr.concat([cluster_masks(random.permutation(np.arange(layer.units) % k)) for k in ks], "map")
        for layer in cuts.layers
    }
    filtered = {name: complements(masks) for name, masks in requests.items()}
    more = {name: xr.concat([masks, controls(masks[:1], draws=8)], "map") for name, masks in filtered.items()}
    few, many = plan(filtered), plan({**filtered, names[0]: more[names[0]]})
    new = [name for name in many.chosen() if name not in few.chosen()]
    options: dict[str, Any] = {"steps": steps, "batch_size": 10, "budget_mib": mib}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    basis = basis_gradients(turned, laid, cuts, few, **options)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    target = int(basis["target"][0])
    theirs, ours, lower, wider = [], [], [], []
    ways = {"same": ours, "bfloat16": lower}
    maps: dict[str, Any] = {}
    for turn in range(turns):
        layer = names[turn % shown]
        kept, name = filtered[layer].to_numpy()[turn], str(filtered[layer]["map"][turn].item())
        seconds, expected = timed(lambda: reference(module, x, target, steps, layer, kept))  # noqa: B023
        theirs.append(seconds)
        for kind, times in ways.items():
            seconds, maps[kind] = timed(
                lambda: attributions(
                    basis_gradients(turned, laid, cuts, few, cotangents=kind, **options),  # noqa: B023
                    few,
                ).compute()
            )
            times.append(seconds)
        if shown == 1:
            wider.append(timed(lambda: basis_gradients(turned, laid, cuts, many, **options))[0])
    found = {kind: both["integrated_gradients"][0] for kind, both in maps.items()}
    same = reference(turned, laid, target, steps, layer, kept)
    got = found["same"].sel(map=f"{layer}/{name}").to_numpy()
    configurations = few.combine.sizes["map"]
    whole = median(theirs) * configurations
    print(
        f"{title}: {configurations} configurations, {few.combine.sizes['vector']} vectors, {steps} steps, {size}x{size}"
    )
    print(f"  reference  {median(theirs):>8.2f} s each, {whole:>8.1f} s for all, of {turns} timed")
    print(f"  ours       {median(ours):>8.2f} s for all: {whole / median(ours):.1f}x")
    print(f"  bfloat16   {median(lower):>8.2f} s for all: {whole / median(lower):.1f}x")
    print(f"  maps {apart(got, same):.1e} apart, captum's in two layouts {apart(expected, same):.1e}")
    print(f"  bfloat16's {deviation(found['bfloat16'], found['same'])}")
    if wider:
        control = (median(wider) - median(ours)) / len(new)
        print(f"  one control more: {control:.2f} s, {median(theirs) / control:.1f}x")
    print(
        f"  memory grew by {grown:.0f} MiB of a budget of {mib:.0f}, in batches of {basis.attrs['batch_size']}, "
        f"{basis.attrs['together']} gradients of a point together",
        flush=True,
    )


def main(quick: bool) -> None:
    """Print all comparisons."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    print("bfloat16 in hardware:", ", ".join(f for f in ("amx_bf16", "avx512_bf16") if f in flags.split()) or "none")
    size, blocks, steps, turns, mib = (64, (2, 2, 2, 2), 5, 2, 512) if quick else (224, (6, 12, 24, 16), 50, 3, 2048)
    ks, shown = ((2, 3), 2) if quick else ((2, 3, 4, 5), 4)
    # a process for each: its memory is its own
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for title, numbers, cuts in (("one block", (3,), 1), ("grid", ks, shown)):
            pool.submit(compare, title, size, blocks, numbers, cuts, steps, turns, mib).result()


if __name__ == "__main__":
    if KEEP.items() <= os.environ.items():
        torch.set_num_threads(1)
        main("--quick" in sys.argv)
    else:
        words = [sys.executable, "-m", "benchmarks.attribution", *sys.argv[1:]]
        sys.exit(subprocess.run(words, env=os.environ | KEEP).returncode)
