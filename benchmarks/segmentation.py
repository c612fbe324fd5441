"""Segmentation of one window from pairs at RN50x16's size, against the way that gathers each class's pairs.

``python benchmarks/segmentation.py [--quick]``. A pool of 3072 units and 48 heads over maps of 12 by 12 patches, 59
classes with 20 000 pairs each, random. The gathering way, as the reference has it, takes for each class the activations
and the similarities of its pairs, (pair, patch) each, and multiplies them; its similarities are ours, so that only this
step differs. Both are timed turn by turn in one process, on two threads at most, and must give the same logits; peaks
are of what numpy allocates, traced in passes of their own. The baselines that need no pairs are timed beside.
"""

import sys
import time
import tracemalloc
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.pairs import RN50X16, random_maps, random_pool
from neurolens.pairs import class_pairs, factors, head_similarity, pair_logits, value_logits

TINY = {"units": 64, "heads": 4, "features": 32, "side": 4}


def timed(way: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came out."""
    start = time.perf_counter()
    found = way()
    return time.perf_counter() - start, found


def peak(way: Callable[[], Any]) -> float:
    """Megabytes that a way holds at its peak beside what is there."""
    tracemalloc.start()
    try:
        way()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def gathered(similarity: Any, maps: Any, mask: Any) -> Any:
    """Logits (phrase, patch) from the activations and similarities of each class's pairs."""
    patches = maps.reshape(maps.shape[0], -1)
    out = np.empty((len(mask), patches.shape[1]), np.float32)
    for phrase, keep in enumerate(mask):
        head, unit = np.nonzero(keep)
        out[phrase] = (patches[unit] * similarity[phrase, head]).mean(axis=0)
    return out


def main(quick: bool) -> None:
    """Print seconds and peaks of both ways."""
    torch.set_num_threads(2)
    size, classes, k, turns = (TINY, 5, 30, 2) if quick else (RN50X16, 59, 20_000, 5)
    pool = random_pool(**size)
    maps = np.maximum(np.asarray(random_maps(pool, 1)), 0)
    texts = np.random.default_rng(3).standard_normal((classes, pool.features)).astype(np.float32)
    choosing, chosen = timed(lambda: class_pairs(factors(pool), texts, k=k))
    mask = chosen.transpose("phrase", "head", "unit").to_numpy()
    flat = (classes, pool.heads, pool.tokens - 1)

    def ours() -> Any:
        return pair_logits(head_similarity(pool, maps, texts, repair=False), maps, chosen, repair=False)

    def theirs() -> Any:
        similarity = head_similarity(pool, maps, texts, repair=False)
        return gathered(similarity.to_numpy()[0].reshape(flat), maps[0], mask)

    slow, fast, baseline = [], [], []
    for _ in range(turns):
        seconds, wanted = timed(theirs)
        slow.append(seconds)
        seconds, found = timed(ours)
        fast.append(seconds)
        baseline.append(timed(lambda: value_logits(pool, maps, texts))[0])
    gap = np.abs(found.to_numpy().reshape(wanted.shape) - wanted).max() / np.abs(wanted).max()
    print(f"a window, {classes} classes with {k} of {pool.heads * pool.units} pairs, chosen in {choosing:.1f} s")
    print(f"  pairs gathered    {median(slow) * 1e3:>9.1f} ms, peak {peak(theirs):.1f} MB")
    print(f"  units summed      {median(fast) * 1e3:>9.1f} ms, peak {peak(ours):.1f} MB")
    print(f"  ratio             {median(slow) / median(fast):>9.1f} x time; logits differ by {gap:.0e}")
    print(f"  MaskCLIP, no pairs {median(baseline) * 1e3:>8.1f} ms", flush=True)


if __name__ == "__main__":
    main("--quick" in sys.argv)
