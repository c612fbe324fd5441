"""Statistics of units: what the hooks add to a forward, and the whole pass against the reference's way, interleaved.

The hooks' part is a forward with every statistic measured at every layer of units, against the same forward without:
ResNet-18 on 16 images of 224x224 (17 layers, 37 million activations), and a GPT-NeoX of the shape of Pythia-70m on 2
texts of 256 tokens (6 layers, 6.3 million), with one thread and with two. The reference's way (dormant-neurons): hooks
that take each output to the CPU, its absolute mean per sample, into lists that are joined and reduced at the end; that
gives one of the eight statistics. It skips maps, so for images the mean is over the map. For all eight, what it would
have to do is collect everything, then reduce.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from neurolens.capture import capture
from neurolens.layers import Layer, find_layers
from neurolens.units import observing
from neurolens.units.kernels import merge_groups
from neurolens.units.observing import Groups
from neurolens.units.statistics import empty_table

GATE, GOAL = 1.10, 1.05
Case = tuple[str, nn.Module, tuple[Any, ...], dict[str, Any]]


def main(quick: bool = False) -> None:
    """Print the times of each way, and the medians of each round's ratios."""
    rounds = 3 if quick else 15
    before = torch.get_num_threads()
    try:
        for name, module, args, kwargs in cases(quick):
            with torch.no_grad():
                layers = find_layers(module, "auto", (args, kwargs))
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    compare(f"{name}, {threads} thread{'s' * (threads > 1)}", module, layers, args, kwargs, rounds)
    finally:
        torch.set_num_threads(before)


def cases(quick: bool) -> list[Case]:
    """Return the networks, with what they are shown."""
    from transformers import GPTNeoXConfig, GPTNeoXModel

    torch.manual_seed(0)
    side, images, tokens = (96, 4, 64) if quick else (224, 16, 256)
    resnet = torchvision.models.resnet18().eval()
    x = torch.randn(images, 3, side, side)
    config = GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=2048,
        use_cache=False,
    )
    neox = GPTNeoXModel(config).eval()
    ids = torch.randint(0, 50000, (2, tokens))
    turned = {"memory_format": torch.channels_last}
    return [
        (f"ResNet-18, {images} x {side}, as built", resnet, (x,), {}),
        (f"ResNet-18, {images} x {side}, channels last", resnet_last(resnet), (x.to(**turned),), {}),
        (f"GPT-NeoX (Pythia-70m), 2 x {tokens}", neox, (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}),
    ]


def resnet_last(resnet: nn.Module) -> nn.Module:
    """Return a copy with its weights laid out channels last, as `measure` runs it."""
    other = torchvision.models.resnet18().eval()
    other.load_state_dict(resnet.state_dict())
    return other.to(memory_format=torch.channels_last)


def compare(name: str, module: nn.Module, layers: tuple[Layer, ...], args: Any, kwargs: Any, rounds: int) -> None:
    """Time a plain forward, one with our hooks, one with hooks that do nothing, and the reference's way."""
    mask = None if "attention_mask" not in kwargs else kwargs["attention_mask"].bool()
    ways: dict[str, Callable[[], Any]] = {
        "plain": lambda: module(*args, **kwargs),
        "hooks that do nothing": partial(with_hooks, module, layers, args, kwargs, lambda i, t: None),
        "our statistics": partial(ours, module, layers, args, kwargs, mask),
        "the reference's": partial(reference, module, layers, args, kwargs),
        "everything collected": partial(everything, module, layers, args, kwargs),
    }
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[way].append(time.perf_counter() - start)
    plain = seconds["plain"]
    print(f"{name}: plain forward {1e3 * statistics.median(plain):.1f} ms, median of {rounds} interleaved rounds")
    for way, times in list(seconds.items())[1:]:
        ratio = statistics.median(t / p for t, p in zip(times, plain, strict=True))
        fastest = min(times) / min(plain)
        note = f"; gate {GATE:.2f}, goal {GOAL:.2f}" if way == "our statistics" else ""
        print(
            f"  {way:22} {1e3 * statistics.median(times):8.1f} ms  {ratio:.3f}x (of the fastest: {fastest:.3f}x{note})"
        )
    for way in ("the reference's", "everything collected"):
        both = zip(seconds[way], seconds["our statistics"], strict=True)
        print(f"  whole pass, {way} against ours: {statistics.median(r / o for r, o in both):.2f}x")
    found, wanted = ours(module, layers, args, kwargs, mask), reference(module, layers, args, kwargs)
    error = max(float(np.abs(t[1] / t[0] - w).max() / np.abs(w).max()) for t, w in zip(found, wanted, strict=True))
    print(
        f"  largest deviation of mean |activation| from the reference's, relative to the layer's largest: {error:.1e}"
    )


def with_hooks(module: nn.Module, layers: tuple[Layer, ...], args: Any, kwargs: Any, on: Any) -> None:
    """Run a forward with a function called at each layer."""
    with capture(module, [layer.tap for layer in layers], on=on):
        module(*args, **kwargs)


def ours(module: nn.Module, layers: tuple[Layer, ...], args: Any, kwargs: Any, mask: Tensor | None) -> list[np.ndarray]:
    """Return the eight statistics of each layer, (8, unit)."""
    tables = [empty_table(layer.units) for layer in layers]
    kept = None if mask is None else observing.kept_tokens(mask, tokens="token")
    seen: dict[int, Groups] = {}

    def on(index: int, tensor: Tensor) -> None:
        seen[index] = observing.groups(tensor, layers[index].axis, kept)

    with_hooks(module, layers, args, kwargs, on)
    for index, groups in seen.items():
        merge_groups(tables[index], *groups)
    return tables


def reference(module: nn.Module, layers: tuple[Layer, ...], args: Any, kwargs: Any) -> list[np.ndarray]:
    """Return the mean absolute activation of each unit, as the reference takes it."""
    lists: list[list[Tensor]] = [[] for _ in layers]

    def on(index: int, tensor: Tensor) -> None:
        h = tensor.detach().cpu()
        over = [d for d in range(1, h.ndim) if d != layers[index].axis]
        lists[index].append(h.abs().mean(dim=over) if over else h.abs())

    with_hooks(module, layers, args, kwargs, on)
    return [torch.cat(several).mean(dim=0).numpy() for several in lists]


def everything(module: nn.Module, layers: tuple[Layer, ...], args: Any, kwargs: Any) -> list[Tensor]:
    """Return the eight statistics of each layer from copies of all activations, reduced when the forward is over."""
    lists: list[list[Tensor]] = [[] for _ in layers]

    def on(index: int, tensor: Tensor) -> None:
        lists[index].append(tensor.detach().clone().movedim(layers[index].axis, -1).flatten(0, -2))

    with_hooks(module, layers, args, kwargs, on)
    found = []
    for several in lists:
        h = torch.cat(several)
        m2, mean = torch.var_mean(h, dim=0, correction=0)
        extremes = (h.amin(dim=0), h.amax(dim=0))
        found.append(torch.stack([h.abs().sum(dim=0), mean, m2, *extremes, (h > 0).sum(dim=0), (h != 0).sum(dim=0)]))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: a smoke test")
    main(parser.parse_args().quick)
