"""Whole dissection of a checkpoint, from files to counts, against the reference's way.

``python benchmarks/checkpoint_dissection.py [--quick]``. ResNet-18 in fp32, layer4, on generated concepts of 224 x 224
pixels; the ways run turn by turn on one thread, times are CPU time, and the ratio is that of the medians. Goal: 1.7x
where the forward dominates.

The reference's way, written anew as small as it can be: decode the images, run the forward, dump the maps as float64
into a file, feed a sketch with them, decode the labels of every image, and count image by image and unit by unit; all
of it for each checkpoint. Ours packs the labels once, from an empty cache (first checkpoint), and finds them packed in
another process (second) or in the same run, which keeps the images in memory too (next: nothing is decoded). Few images
let the sketch keep every value, so that both have the thresholds of NetDissect-Lite, and counts differ by how
convolutions round; more than 501 images of 7 x 7 are beyond that.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.models import resnet18

from benchmarks.dissection import inner_loop, sketch
from neurolens.data.concepts import open_concepts
from neurolens.data.shapes import make_concepts
from neurolens.dissection.measure import dissect
from neurolens.study import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 32


def checkpoint(seed: int) -> Any:
    """Return a network."""
    torch.manual_seed(seed)
    module = resnet18(num_classes=6).eval()
    return SimpleNamespace(module=module, preprocessing=Preprocessing(mean=MEAN, std=STD), tokenizer=None)


def reference(root: Path, network: Any, folder: Path) -> Any:
    """Dissect layer4 as the reference does, and return thresholds and counts of intersection by label number."""
    data = open_concepts(root)  # the index alone; nothing is decoded here
    names, cells = data.images.names, data.cells
    category = np.zeros(int(data.labels.max()) + 1, np.int64)
    category[data.labels] = data.category
    maps: Any = None
    seen: list[Any] = []
    hook = network.module.layer4.register_forward_hook(lambda _module, _given, out: seen.append(out.numpy()))
    with torch.no_grad():
        for at in range(0, len(names), BATCH):
            pixels = np.stack(
                [np.asarray(Image.open(root / "images" / n).convert("RGB")) for n in names[at : at + BATCH]]
            )
            x = (torch.from_numpy(pixels).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
            network.module(x.permute(0, 3, 1, 2).contiguous())
            if maps is None:
                shape = (len(names), *seen[-1].shape[1:])
                maps = np.memmap(folder / "maps.mmap", dtype=np.float64, mode="w+", shape=shape)
            maps[at : at + BATCH] = seen.pop()
    hook.remove()
    thresholds = sketch([maps[at : at + BATCH] for at in range(0, len(names), BATCH)], maps.shape[1])
    both = np.zeros((maps.shape[1], len(category)), np.int64)
    for i, cell in enumerate(cells):
        planes = [labels_of(root / "images" / name) for name in cell if isinstance(name, str)]
        scalars = [number for number in cell if not isinstance(number, str)]
        counted = inner_loop(
            maps[i : i + 1], thresholds, np.stack(planes)[None], [scalars], category, len(data.categories)
        )
        both += counted[0]
    return thresholds, both[:, data.labels]


def labels_of(path: Path) -> Any:
    """Decode a picture of labels."""
    colours = np.asarray(Image.open(path).convert("RGB"), dtype=np.int64)
    return colours[..., 0] + 256 * colours[..., 1]


def opened(root: Path, network: Any, cache: Path) -> Any:
    """Open the data and dissect layer4, packing the labels if the cache has none."""
    os.environ["XDG_CACHE_HOME"] = str(cache)
    return ours(open_concepts(root), network, cache)


def ours(data: Any, network: Any, cache: Path) -> Any:
    """Dissect layer4 with data that are open."""
    found = dissect(
        network, data.samples(), data.packed(cache=cache), layers=["layer4"], compat="lite", batch_size=BATCH
    )
    return found["threshold"], found["intersection"].sum(axis=0)


def main(quick: bool) -> None:
    """Print what the ways take."""
    images, turns = (30, 1) if quick else (512, 3)
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {"reference": [], "first": [], "second": [], "next": []}
    with tempfile.TemporaryDirectory() as folder:
        root = make_concepts(Path(folder) / "concepts", n=images, size=224)
        for name in ("warm", *map(str, range(turns))):
            networks = [checkpoint(0), checkpoint(1)]
            cache = Path(folder) / name
            cache.mkdir()
            results = []
            kept = open_concepts(root)
            for way, act, data, network, place in (
                ("reference", reference, root, networks[0], Path(folder)),
                ("first", opened, root, networks[0], cache),
                ("second", opened, root, networks[1], cache),
                ("", ours, kept, networks[0], cache),  # the checkpoint before, of the same run
                ("next", ours, kept, networks[1], cache),
            ):
                start = time.process_time()
                results.append(act(data, network, place))
                if not way:
                    continue
                if name != "warm" or quick:
                    times[way].append(time.process_time() - start)
    (theirs, both), (mine, counts) = results[:2]
    print(f"whole checkpoint: {images} images of 224x224, ResNet-18, layer4, one thread")
    median = {way: float(np.median(taken)) for way, taken in times.items()}
    for way, seconds in median.items():
        print(f"  {way:<10} {seconds / images * 1e3:>8.2f} ms per image   {median['reference'] / seconds:.2f}x")
    off = np.abs(both - counts).sum() / both.sum()
    print(f"  thresholds differ by {np.abs(theirs - mine).max() / theirs.max():.1e}, counts by {off:.1e}", flush=True)


if __name__ == "__main__":
    main("--quick" in sys.argv)
