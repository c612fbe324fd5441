"""Per-sample loss and input gradient on the CIFAR ResNet-18: ours against the references' batched way, interleaved.

The reference way (Ravikumar et al. 2025): the network as it is built, eval mode, batches of 128 or 256, per-sample
cross-entropy, and one gradient of its sum in the input. Ours is the whole `measure`: it also reads and normalises the
pixels, folds the batch norms, and returns seven more quantities.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from neurolens import models
from neurolens.data import SampleSet, batches
from neurolens.data.arrays import ArrayImages
from neurolens.samples.measure import measure
from neurolens.study import Model, Samples

GOAL_FLOAT32, GOAL_BF16 = 1.2, 3.5


def main(quick: bool = False) -> None:
    """Print the time of each way, the ratios of each round's times, and how far the numbers lie apart."""
    n, rounds = (256, 1) if quick else (1024, 5)
    network = models.build(Model(name="cifar_resnet18", classes=100), seed=0)
    wear_in(network.module)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 100, n)
    ids = np.array([f"{i:06d}" for i in range(n)])
    samples = SampleSet(ids, labels, tuple(map(str, range(100))), ArrayImages(pixels))
    inputs = torch.cat([b.x for b in batches(samples, network.preprocessing, batch_size=256)])
    y = torch.from_numpy(labels)

    def ours(bf16: bool) -> dict[str, np.ndarray]:
        table = Samples(bf16=bf16)
        return measure(network, samples, parts=("forward", "input_gradient"), table=table)

    ways: dict[str, Callable[[], dict[str, np.ndarray]]] = {
        "reference, batch 128": lambda: reference(network.module, inputs, y, 128),
        "reference, batch 256": lambda: reference(network.module, inputs, y, 256),
        "ours, float32": lambda: ours(False),
        "ours, bfloat16": lambda: ours(True),
    }
    values = {name: way() for name, way in ways.items()}  # also warms up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    print(f"CIFAR ResNet-18, {n} samples, {torch.get_num_threads()} threads, median of {rounds} interleaved rounds")
    for name, times in seconds.items():
        print(f"  {name:22} {statistics.median(times):7.2f} s  {n / statistics.median(times):7.0f} samples/s")
    amx = torch.cpu._is_amx_tile_supported()
    for name, goal in (("ours, float32", GOAL_FLOAT32), ("ours, bfloat16", GOAL_BF16 if amx else None)):
        for against in ("reference, batch 128", "reference, batch 256"):
            ratio = statistics.median(a / b for a, b in zip(seconds[against], seconds[name], strict=True))
            note = f"goal {goal}" if goal else "no goal: this CPU has no AMX-bf16"
            print(f"  {name} against {against}: {ratio:.2f}x ({note})")
    exact = values["reference, batch 128"]
    for name in ("ours, float32", "ours, bfloat16"):
        for variable in ("loss", "grad_norm"):
            error = np.abs(values[name][variable] - exact[variable]) / np.abs(exact[variable])
            rank = spearmanr(values[name][variable], exact[variable]).statistic
            spread = ", ".join(f"{np.quantile(error, q):.1e}" for q in (0.5, 0.99, 1))
            print(f"  {name}, {variable}: relative deviation (median, 99 %, max) {spread}; rank correlation {rank:.6f}")


def reference(module: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor, size: int) -> dict[str, np.ndarray]:
    """Measure as the references do: parameters left trainable, no folding, one gradient of the summed loss."""
    module.eval()
    losses, norms = [], []
    for x, y in zip(inputs.split(size), labels.split(size), strict=True):
        leaf = x.clone().requires_grad_()
        loss = F.cross_entropy(module(leaf), y, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        losses.append(loss.detach())
        norms.append(gradient.reshape(len(x), -1).norm(dim=1))
    return {"loss": torch.cat(losses).numpy(), "grad_norm": torch.cat(norms).numpy()}


def wear_in(module: torch.nn.Module) -> None:
    """Give the batch norms statistics and affine parameters such as training leaves."""
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            with torch.no_grad():
                layer.weight.uniform_(0.5, 1.5, generator=generator)
                layer.bias.normal_(0, 0.1, generator=generator)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few samples and rounds")
    main(parser.parse_args().quick)
