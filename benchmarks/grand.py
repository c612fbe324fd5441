"""GraNd on the CIFAR ResNet-18: ghost norms against per-sample loops, interleaved, and their error against float64.

The arithmetic is mixed (float64 forward, float32 products backward), the default, beside plain float32. Two loops in
float32: the reference's, which runs one backward pass of the whole batch's graph per sample (`retain_graph`), and the
kinder one, which runs each sample alone. Both are timed on a few samples and extrapolated to the batch.
"""

import argparse
import contextlib
import copy
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sample_measure import wear_in
from neurolens import models
from neurolens.samples.grand import Arithmetic, GradientNorms
from neurolens.samples.measure import CPU_BATCH
from neurolens.study import Model

GOAL_RATIO, GOAL_ERROR = 100, 1e-6


def main(quick: bool = False) -> None:
    """Print times, ratios, and the relative errors of all samples for untrained and trained weights."""
    batch, few, rounds, steps = (32, 1, 1, 2) if quick else (256, 2, 3, 30)
    module = models.build(Model(name="cifar_resnet18", classes=100), seed=0).module.eval()
    wear_in(module)
    x, y = structured(batch, seed=0)
    times(module, x, y, few=few, rounds=rounds)
    print(f"  relative error against float64, all {batch} samples: median, largest, samples above {GOAL_ERROR:.0e}")
    errors(module, x, y, "untrained")
    train(module, steps)
    errors(module, x, y, f"after {steps} steps of SGD, samples not seen")
    errors(module, *structured(batch, seed=1), f"after {steps} steps of SGD, samples trained on")


def times(module: nn.Module, x: Tensor, y: Tensor, *, few: int, rounds: int) -> None:
    """Print the seconds of ghost norms and of the loops, interleaved, and their ratios."""
    names = ("mixed", "float32", "shared graph", "alone")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    parameters = list(module.parameters())
    arithmetics: tuple[Arithmetic, ...] = ("mixed", "float32")
    with contextlib.ExitStack() as stack:
        norms = {a: stack.enter_context(GradientNorms(module, arithmetic=a)) for a in arithmetics}
        for a in arithmetics:
            ghost(norms[a], x[: CPU_BATCH["grand"]], y[: CPU_BATCH["grand"]])
        for _ in range(rounds):
            for a in arithmetics:
                start = time.perf_counter()
                ghost(norms[a], x, y)
                seconds[a].append(time.perf_counter() - start)
            seconds["shared graph"].append(shared_graph(module, parameters, x, y, few))
            seconds["alone"].append(alone(module, parameters, x, y, 4 * few))
    print(f"GraNd, CIFAR ResNet-18, B = {len(x)}, {torch.get_num_threads()} threads, {rounds} rounds: median (least)")
    print(f"  ghost norms of all {len(x)} samples, mixed (the default): {_told(seconds['mixed'])}")
    print(f"  the same in float32: {_told(seconds['float32'])}")
    for name, timed, what in (
        ("shared graph", few, f"forward of {len(x)}, then a backward of the whole graph per sample (the reference's)"),
        ("alone", 4 * few, "a forward and a backward of each sample alone"),
    ):
        ratio, fast = (
            statistics.median(a / b for a, b in zip(seconds[name], seconds[arithmetic], strict=True))
            for arithmetic in arithmetics
        )
        note = f" (goal {GOAL_RATIO} at B = 256)" if name == "shared graph" else ""
        print(f"  per-sample loop in float32, {what}:")
        print(f"    {_told(seconds[name])}, extrapolated from {timed} samples")
        print(f"    {ratio:.1f}x the time of mixed{note}, {fast:.1f}x that of float32")


def errors(module: nn.Module, x: Tensor, y: Tensor, when: str) -> None:
    """Print the errors of each way against ghost norms in float64, and of those against a float64 loop."""
    found = {}
    arithmetics: tuple[Arithmetic, ...] = ("mixed", "float32", "float64")
    for arithmetic in arithmetics:
        with GradientNorms(module, arithmetic=arithmetic) as norms:
            found[arithmetic] = ghost(norms, x, y)
    checked = min(len(x), 16)
    slow = loop(copy.deepcopy(module).double(), x[:checked].double(), y[:checked])
    accuracy = float((logits(module, x).argmax(dim=1) == y).double().mean())
    exact = found["float64"]
    print(f"    {when} (accuracy {accuracy:.2f}, norms {float(exact.min()):.1e} to {float(exact.max()):.1e}):")
    for what, norm, expected in (
        ("mixed", found["mixed"], exact),
        ("float32", found["float32"], exact),
        ("a plain loop in float32", loop(module, x, y), exact),
        (f"float64, {checked} against a loop", exact[:checked], slow),
    ):
        error = ((norm.double() - expected) / expected).abs()
        above = int((error > GOAL_ERROR).sum())
        print(f"      {what:<27} {float(error.median()):.1e}  {float(error.max()):.1e}  {above}")


def structured(n: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return images of 100 classes: a coarse pattern per class under noise, and their labels."""
    patterns = torch.randn(100, 3, 8, 8, generator=torch.Generator().manual_seed(100))
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 100, (n,), generator=generator)
    noise = torch.randn(n, 3, 32, 32, generator=generator)
    return F.interpolate(patterns[y], scale_factor=4) + noise, y


def train(module: nn.Module, steps: int) -> None:
    """Train for a few steps on 256 samples."""
    x, y = structured(256, seed=1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9)
    module.train()
    for step in range(steps):
        part = slice(step % 4 * 64, step % 4 * 64 + 64)
        optimizer.zero_grad()
        F.cross_entropy(module(x[part]), y[part]).backward()
        optimizer.step()
    module.eval()


def logits(module: nn.Module, x: Tensor) -> Tensor:
    """Return the logits of all samples."""
    with torch.no_grad():
        return torch.cat([module(part) for part in x.split(32)])


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


def _told(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} s)"


def _norm(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([g.square().sum() for g in gradients]).sum().sqrt()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller batch and one round")
    main(parser.parse_args().quick)
