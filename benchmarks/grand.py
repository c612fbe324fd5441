"""GraNd on the CIFAR ResNet-18: ghost norms against per-sample loops, interleaved, and their error against float64.

Two loops: the reference's, which runs one backward pass of the whole batch's graph per sample (`retain_graph`), and
the kinder one, which runs each sample alone. Both are timed on a few samples and extrapolated to the batch.
"""

import argparse
import copy
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sample_measure import wear_in
from neurolens import models
from neurolens.samples.grand import GradientNorms
from neurolens.samples.measure import CPU_BATCH
from neurolens.study import Model

GOAL_RATIO, GOAL_ERROR = 100, 1e-6


def main(quick: bool = False) -> None:
    """Print times, ratios and the largest relative error."""
    batch, few, rounds, exact = (64, 1, 1, 4) if quick else (256, 2, 3, 32)
    module = models.build(Model(name="cifar_resnet18", classes=100), seed=0).module.eval()
    wear_in(module)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, 32, 32, generator=generator)
    y = torch.randint(0, 100, (batch,), generator=generator)
    seconds: dict[str, list[float]] = {"ghost": [], "shared graph": [], "alone": []}
    with GradientNorms(module) as norms:
        found = ghost(norms, x, y)
        for _ in range(rounds):
            start = time.perf_counter()
            ghost(norms, x, y)
            seconds["ghost"].append(time.perf_counter() - start)
            parameters = [p.requires_grad_(True) for p in norms.wanted.values()]
            seconds["shared graph"].append(shared_graph(module, parameters, x, y, few))
            seconds["alone"].append(alone(module, parameters, x, y, 4 * few))
            for p in parameters:
                p.requires_grad_(False)
    print(f"GraNd, CIFAR ResNet-18, B = {batch}, {torch.get_num_threads()} threads, median of {rounds} rounds")
    print(f"  ghost norms: {statistics.median(seconds['ghost']):.2f} s, all {batch} samples")
    for name, timed, what in (
        ("shared graph", few, f"forward of {batch}, then a backward of the whole graph per sample (the reference's)"),
        ("alone", 4 * few, "a forward and a backward of each sample alone"),
    ):
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["ghost"], strict=True))
        note = f" (goal {GOAL_RATIO} at B = 256)" if name == "shared graph" else ""
        print(f"  per-sample loop, {what}:")
        print(f"    {statistics.median(seconds[name]):.1f} s extrapolated from {timed} samples: {ratio:.1f}x{note}")
    double = copy.deepcopy(module).double()
    slow = loop(double, x[:exact].double(), y[:exact])
    with GradientNorms(double) as norms:
        same_arithmetic = ghost(norms, x[:exact].double(), y[:exact])
    print(f"  relative error against a float64 loop, {exact} samples, median and largest (goal {GOAL_ERROR:.0e}):")
    for what, norm in (
        ("ghost norms in float64", same_arithmetic),
        ("ghost norms in float32", found[:exact]),
        ("a plain loop in float32", loop(module, x[:exact], y[:exact])),
    ):
        error = ((norm.double() - slow) / slow).abs()
        print(f"    {what:<24} {float(error.median()):.1e}  {float(error.max()):.1e}")


def ghost(norms: GradientNorms, x: Tensor, y: Tensor) -> Tensor:
    """Return the norms of the batch, in passes of the size that `measure` uses on a CPU."""
    size = CPU_BATCH["grand"]
    return torch.cat([norms(a, b) for a, b in zip(x.split(size), y.split(size), strict=True)])


def shared_graph(module: nn.Module, parameters: list[nn.Parameter], x: Tensor, y: Tensor, few: int) -> float:
    """Return the seconds of the reference's loop, its backward passes extrapolated from the first few samples."""
    start = time.perf_counter()
    losses = F.cross_entropy(module(x), y, reduction="none")
    forward = time.perf_counter() - start
    start = time.perf_counter()
    for i in range(few):
        _norm(torch.autograd.grad(losses[i], parameters, retain_graph=True))
    return forward + (time.perf_counter() - start) / few * len(x)


def alone(module: nn.Module, parameters: list[nn.Parameter], x: Tensor, y: Tensor, few: int) -> float:
    """Return the seconds of a loop over single samples, extrapolated from the first few."""
    start = time.perf_counter()
    for i in range(few):
        _norm(torch.autograd.grad(F.cross_entropy(module(x[i : i + 1]), y[i : i + 1]), parameters))
    return (time.perf_counter() - start) / few * len(x)


def loop(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the norms by plain autograd, one sample at a time, in the network's arithmetic."""
    parameters = [p.requires_grad_(True) for p in module.parameters()]
    pairs = zip(x.split(1), y.split(1), strict=True)
    return torch.stack([_norm(torch.autograd.grad(F.cross_entropy(module(a), b), parameters)) for a, b in pairs])


def _norm(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([g.square().sum() for g in gradients]).sum().sqrt()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller batch and one round")
    main(parser.parse_args().quick)
