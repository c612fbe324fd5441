"""Reload the checkpoints of a CIFAR ResNet-18 into a network: ours against torch.load, interleaved.

Gates: at least 2x over torch.load + load_state_dict for files of torch.save, bare state dicts and those that training
writes, {epoch, step, state_dict}; at least 6x for safetensors.
Ours is as the row engine reloads: the network's tensors are the file's memory. What that leaves to the first use is
timed beside.
Fingerprints are not part of a reload: they are taken once per file, when checkpoints are discovered; their cost is
printed beside.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from neurolens import checkpoints, fingerprints, models
from neurolens.study import Model

TABLE = Model(name="cifar_resnet18", classes=100)
GATES = {"torch.save": 2, "{epoch, step, state_dict}": 2, "safetensors": 6}


def rounds(ways: dict[str, Callable[[int], object]], count: int) -> dict[str, list[float]]:
    """Time every way once per round, in turn, so that a slow moment of the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for n in range(-2, count):
        for name, way in ways.items():
            start = time.perf_counter()
            way(n)
            if n >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def total(network: torch.nn.Module) -> float:
    """Look at every weight once."""
    return sum(float(parameter.detach().sum()) for parameter in network.parameters())


def main(quick: bool) -> None:
    """Print the median of each way and its ratio to ours, round by round."""
    files, count = (2, 3) if quick else (6, 40)
    network = models.build(TABLE, seed=0).module
    reference = models.build(TABLE, seed=1).module
    copied = models.build(TABLE, seed=2).module
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        pts, dicts, tensors = [], [], []
        for n in range(files):
            state = models.build(TABLE, seed=n).module.state_dict()
            pts.append(Path(folder) / f"epoch_{n}.pt")
            dicts.append(Path(folder) / f"trained_{n}.pt")
            tensors.append(Path(folder) / f"epoch_{n}.safetensors")
            torch.save(state, pts[-1])
            torch.save({"epoch": n, "step": 391 * n, "state_dict": state}, dicts[-1])
            save_file(state, tensors[-1])
        time.sleep(fingerprints.SETTLED_SECONDS + 0.1)
        start = time.perf_counter()
        for path in pts:
            checkpoints.digest(path)
        once = (time.perf_counter() - start) / files
        for path in dicts + tensors:
            checkpoints.digest(path)

        def rebuild(n: int) -> None:
            module = models.build(TABLE, seed=0).module
            module.load_state_dict(torch.load(pts[n % files], map_location="cpu", weights_only=True))

        ways: dict[str, Callable[[int], object]] = {
            "rebuild + torch.load": rebuild,
            "torch.load + load_state_dict": lambda n: reference.load_state_dict(
                torch.load(pts[n % files], map_location="cpu", weights_only=True)
            ),
            "ours, torch.save": lambda n: checkpoints.refill(network, pts[n % files], mapped=True),
            "ours, {epoch, step, state_dict}": lambda n: checkpoints.refill(network, dicts[n % files], mapped=True),
            "ours, safetensors": lambda n: checkpoints.refill(network, tensors[n % files], mapped=True),
            "ours, safetensors, not mapped": lambda n: checkpoints.refill(copied, tensors[n % files]),
        }
        sums: dict[str, Callable[[int], object]] = {  # what is not copied is first read when it is used
            "torch.load + load_state_dict, then a sum": lambda n: (
                reference.load_state_dict(torch.load(pts[n % files], map_location="cpu", weights_only=True)),
                total(reference),
            ),
            "ours, safetensors, then a sum": lambda n: (
                checkpoints.refill(network, tensors[n % files], mapped=True),
                total(network),
            ),
        }
        seconds = rounds(ways | sums, count)
        ways["torch.load + load_state_dict"](0)
        for kind in GATES:
            for parameter in network.parameters():
                parameter.data.zero_()
            ways[f"ours, {kind}"](0)
            theirs, mine = reference.state_dict(), network.state_dict()
            assert all(torch.equal(theirs[k], mine[k]) for k in theirs), kind
        size = pts[0].stat().st_size / 1e6

    print(f"checkpoint reload: ResNet-18 for CIFAR, {size:.0f} MB, {count} rounds over {files} files")
    for name, times in seconds.items():
        print(f"  {name:42} {1e3 * statistics.median(times):8.2f} ms, at least {1e3 * min(times):.2f} ms")
    print(f"  {'fingerprint, once per file':42} {1e3 * once:8.2f} ms")
    for kind, gate in GATES.items():
        for name in ("torch.load + load_state_dict", "rebuild + torch.load"):
            ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds[f"ours, {kind}"]))
            wanted = f" (needed: {gate}x)" if name.startswith("torch.load") else ""
            print(f"  {kind}: {ratio:.1f}x over {name}{wanted}")
    theirs, mine = (seconds[name] for name in sums)
    ratio = statistics.median(a / b for a, b in zip(theirs, mine))
    print(f"  safetensors, and a sum over all weights: {ratio:.1f}x over torch.load + load_state_dict and that sum")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few files and rounds: a smoke test")
    main(parser.parse_args().quick)
