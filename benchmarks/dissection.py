"""Thresholds and tally of one layer against the reference's way, with the same counts and without error.

``python benchmarks/dissection.py [--quick]``. The ways run turn by turn on one thread; times are CPU time, so that what
else runs on the machine counts little, and the ratio is that of the medians. Goals: tally 35x with identical counts,
thresholds 15x with error 0, less than 64 MB for 512 units of 7x7 on 63 305 images.

The reference's way is written anew here, as small as it can be and step by step what it does. Its tally goes image by
image and unit by unit over maps kept in float64: resize by Pillow, compare, list the pixels of the mask, take the
labels of each plane there, count them, and tell by a table of labels and categories which categories the mask touches.
Labels are decoded beforehand, as ours are. Its thresholds are a sketch: buffers of 24 x 1024 values per unit, of which
every other value moves up a level when one is full (Karnin, Lang and Liberty 2016), fed maps of float64 as (unit,
positions). The set is as large as Broden in what matters here: 1200 labels, a dozen of which an image shows in three
planes. Activations are half-rectified normals: independent, which makes many small masks, and with images that a unit
likes as a whole, which makes fewer and larger ones.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from neurolens.dissection import Tally, Thresholds, pack_labels

Way = Callable[[], Any]
QUANTILE = 0.005


def activations(images: int, units: int, size: int, seed: int = 0, liking: float = 0.0) -> Any:
    """Half-rectified normals (images, units, size, size) float32; with ``liking``, each unit likes some images more."""
    rng = np.random.default_rng(seed)
    whole = liking * rng.normal(size=(images, units, 1, 1)).astype(np.float32)
    return np.maximum(rng.normal(size=(images, units, size, size)).astype(np.float32) + whole, 0)


def label_planes(images: int, concepts: int, size: int, seed: int = 1) -> tuple[Any, Any]:
    """Three planes of labels (images, 3, size, size) in patches, 0 for none, and a label of each whole image."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, concepts // 4, (images, 3, 8, 8)) + np.arange(3)[:, None, None] * (concepts // 4)
    patches[rng.random(patches.shape) < 0.3] = 0
    some = rng.integers(1, concepts // 4, (images, 3, 4))  # an image shows few of them
    few = np.take_along_axis(some, rng.integers(0, 4, (images, 3, 64)), axis=2).reshape(images, 3, 8, 8)
    planes = np.where(patches > 0, few + np.arange(3)[:, None, None] * (concepts // 4), 0)
    step = -(-size // 8)
    return np.kron(planes, np.ones((step, step), np.int64))[..., :size, :size], rng.integers(
        3 * concepts // 4, concepts, images
    )


def sketch(batches: list[Any], units: int, resolution: int = 24 * 1024) -> Any:
    """Thresholds as the reference reads them off its sketch: entry 994 of 1000."""
    rng = np.random.default_rng(1)
    buffers = [np.zeros((units, resolution))]
    fill = [0]

    def add(level: int, values: Any) -> None:
        while values.shape[1]:
            room = buffers[level].shape[1] - fill[level]
            part, values = values[:, :room], values[:, room:]
            buffers[level][:, fill[level] : fill[level] + part.shape[1]] = part
            fill[level] += part.shape[1]
            if fill[level] == buffers[level].shape[1]:
                if level + 1 == len(buffers):
                    buffers.append(np.zeros((units, resolution)))
                    fill.append(0)
                full = np.sort(buffers[level], axis=1)
                fill[level] = 0
                add(level + 1, full[:, int(rng.integers(0, 2)) :: 2])

    for batch in batches:
        add(0, batch.transpose(1, 0, 2, 3).reshape(units, -1).astype(np.float64))
    kept = np.concatenate([buffer[:, :n] for buffer, n in zip(buffers, fill)], axis=1)
    weights = np.concatenate([np.full(n, 2.0**level) for level, n in enumerate(fill)])
    found = np.empty(units)
    for unit in range(units):
        order = np.argsort(kept[unit])
        ranks = np.cumsum(weights[order]) - weights[order] / 2
        found[unit] = np.interp(994 / 999 * weights.sum(), ranks, kept[unit][order])
    return found


def inner_loop(
    maps: Any, thresholds: Any, planes: Any, whole: Any, category: Any, n_categories: int
) -> tuple[Any, ...]:
    """Count in the reference's inner loop; the paper's area of masks beside its own, and the pixels of all masks."""
    images, units = maps.shape[:2]
    height, width = planes.shape[2:]
    both = np.zeros((units, len(category)), np.int64)
    paper, lite = np.zeros((units, n_categories), np.int64), np.zeros((units, n_categories), np.int64)
    truth = np.zeros(len(category), np.int64)
    table = np.zeros((len(category), n_categories), np.int64)
    table[np.arange(len(category)), category] = 1
    drawn = 0
    for i in range(images):
        pixels, scalars = planes[i], np.atleast_1d(whole[i])
        counts = np.bincount(pixels.ravel(), minlength=len(category))
        counts[0] = 0
        for scalar in scalars:
            counts[scalar] += height * width
        truth += counts
        anywhere = (counts @ table) > 0
        for unit in range(units):
            activation = maps[i][unit]
            if activation.max() > thresholds[unit]:
                mask = np.array(Image.fromarray(activation).resize((width, height), resample=Image.Resampling.BILINEAR))
                where = np.argwhere(mask > thresholds[unit])
                drawn += len(where)
                common = np.bincount(pixels[:, where[:, 0], where[:, 1]].ravel())
                if len(common):
                    common[0] = 0
                touched = np.dot(common[None, :], table[: len(common), :])[0]
                both[unit, : len(common)] += common
                for scalar in scalars:
                    touched = touched + table[scalar]
                    both[unit, scalar] += len(where)
                lite[unit] += len(where) * (touched > 0)
                paper[unit] += len(where) * anywhere
    return both, paper, lite, truth, drawn


def race(ways: dict[str, Way], turns: int) -> dict[str, float]:
    """Run the ways turn by turn, and return the median CPU seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name].append(time.process_time() - start)
    return {name: float(np.median(taken)) for name, taken in times.items()}


def tally(images: int, units: int, size: int, turns: int, liking: float = 0.0, labels: int = 112) -> None:
    """Print how fast masks are counted, and that the counts are the same."""
    concepts = 1200
    maps = activations(images, units, size, liking=liking)
    thresholds = np.quantile(maps.transpose(1, 0, 2, 3).reshape(units, -1), 1 - QUANTILE, axis=1)
    planes, whole = label_planes(images, concepts, labels)
    category = np.repeat(np.arange(4), concepts // 4)
    shown = []
    for i in range(images):
        image: dict[int, Any] = {int(c): (planes[i] == c).any(axis=0) for c in np.unique(planes[i]) if c}
        shown.append(image | {int(whole[i]): True})
    packed = pack_labels(shown, (labels, labels), category, 4)

    counted = Tally(packed, units)

    def ours() -> None:  # into the same counts turn by turn: they are made once for all images
        for at in range(0, images, 32):
            counted.add(maps[at : at + 32], thresholds, np.arange(at, min(at + 32, images)))

    kept = maps.astype(np.float64)

    def theirs() -> tuple[Any, ...]:
        return inner_loop(kept, thresholds, planes, whole, category, 4)

    ours()
    expected = theirs()
    sums = (counted.intersection, counted.unit_area, counted.unit_area_lite, counted.concept_area)
    same = all(np.array_equal(mine.sum(axis=0), other) for mine, other in zip(sums, expected[:4]))
    active = (maps.max(axis=(2, 3)) > thresholds).mean()
    taken = race({"reference": theirs, "ours": ours}, turns)
    ratio = taken["reference"] / taken["ours"]
    pixels = expected[4] / max(1, int((maps.max(axis=(2, 3)) > thresholds).sum()))
    print(
        f"tally: {images} images, {units} units of {size}x{size}, liking {liking}: {active:.0%} active, masks of "
        f"{pixels:.0f} pixels, labels {labels}x{labels}"
    )
    for name, seconds in taken.items():
        print(f"  {name:<10} {seconds / images * 1e3:>8.3f} ms per image")
    print(f"  {ratio:.0f}x, counts identical: {same}", flush=True)
    if not same:
        raise SystemExit("the counts differ")


def thresholds(images: int, units: int, size: int, turns: int) -> None:
    """Print how fast thresholds are found, and how far off they are."""
    maps = activations(images, units, size)
    batches = np.array_split(maps, max(1, images // 64))

    def ours(memory_mib: float = 56) -> Any:
        with Thresholds(units, images * size * size, compat="lite", memory_mib=memory_mib) as found:
            for batch in batches:
                found.update(batch)
            return found.result()

    n = images * size * size
    rank = 994 / 999 * n - 0.5
    flat = np.sort(maps.transpose(1, 0, 2, 3).reshape(units, -1).astype(np.float64), axis=1)
    low, high = flat[:, int(rank)], flat[:, int(rank) + 1]
    exact, mine, theirs = low + (high - low) * (rank % 1), ours(), sketch(batches, units)
    del flat
    taken = race({"sketch": lambda: sketch(batches, units), "ours": ours}, turns)
    above = [np.abs((maps > t[:, None, None]).mean(axis=(0, 2, 3)) / (1 - 994 / 999) - 1).max() for t in (theirs, mine)]
    error = [np.abs(t - exact).max() / exact.max() for t in (theirs, mine)]
    print(f"thresholds: {images} images, {units} units of {size}x{size}")
    for (name, seconds), wrong, share in zip(taken.items(), error, above):
        print(
            f"  {name:<10} {seconds / images * 1e3:>8.3f} ms per image   largest error {wrong:.1e}, "
            f"share above off by {share:.2%}"
        )
    print(f"  {taken['sketch'] / taken['ours']:.0f}x, in a file: {ours(0.5) is not None and (ours(0.5) == mine).all()}")
    sys.stdout.flush()


def memory(images: int, units: int, size: int, memory_mib: float) -> None:
    """Print what thresholds take, in a process of their own: batches are drawn one by one."""
    words = [sys.executable, "-m", "benchmarks.dissection", "--memory", *map(str, (images, units, size, memory_mib))]
    subprocess.run(words, check=True)


def limited(images: int, units: int, size: int, memory_mib: float) -> None:
    """Find thresholds of maps made on the way, and print how much the process grew."""
    pool = [activations(64, units, size, seed) for seed in range(4)]
    with Thresholds(units, 64 * size * size) as warm:
        warm.update(pool[0])
        warm.result()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with Thresholds(units, images * size * size, memory_mib=memory_mib) as found:
        for number, at in enumerate(range(0, images, 64)):
            found.update(pool[number % 4][: min(64, images - at)])
        found.result()
        spilled, held = found.spilled, found.nbytes
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    where = "in a file" if spilled else "in memory"
    print(
        f"memory: {images} images, {units} units of {size}x{size}, {where}: candidates hold {held / 1e6:.0f} MB, "
        f"peak grew by {grown / 1e6:.0f} MB; {seconds:.0f} s, {seconds / images * 1e3:.2f} ms per image",
        flush=True,
    )


def main(quick: bool) -> None:
    """Print all comparisons."""
    if quick:
        tally(16, 64, 7, 2)
        tally(16, 64, 7, 2, liking=1.3)
        thresholds(800, 16, 7, 2)
        memory(2000, 64, 7, 56)
        memory(1000, 16, 28, 2)
        return
    for liking in (0.0, 1.3):
        tally(64, 512, 7, 5, liking=liking)
        tally(64, 256, 14, 5, liking=liking)
        tally(32, 64, 56, 3, liking=liking)
    thresholds(4096, 512, 7, 3)
    memory(63305, 512, 7, 56)
    memory(63305, 64, 56, 56)


if __name__ == "__main__":
    if "--memory" in sys.argv:
        limited(*map(int, sys.argv[2:5]), float(sys.argv[5]))
    else:
        main("--quick" in sys.argv)
