"""Unit-head pairs of an attention pool by scalars and fixed vectors, against the arrays that they stand for.

``python benchmarks/pairs.py [--quick]``. Random pools of the real sizes; two threads at most, as many as the cores.

1. Collection at RN50's pool (2048 units, 32 heads, 50 tokens, embedding of 1024). The reference's way computes the
   contribution of every pair and image from values of every head, token, dim and unit: (head, unit, feature) float32,
   of which it would write 268 MB an image; it is timed on a few images, and its file is left out. Ours is timed on all,
   with the sum checked against the embeddings that the network puts out; and with the pool run in its textbook form.
2. End to end at a small size: collection and the principal direction of every pair. The reference's way keeps the array
   in memory (it writes a file and reads it back) and takes one singular value decomposition a pair.
3. A pool of RN50x16's size over synthetic maps: seconds, bytes kept, peak memory, in a process of its own.
4. 59 phrases against all pairs of that pool.
5. Mean ablation, per image, at RN50's pool. The reference's way takes the array of an image, puts the mean array where
   pairs are not kept, and adds up; both arrays are in memory here, which spares it its file.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
import xarray as xr

from neurolens.pairs import (
    Pool,
    ScalarTotals,
    ablate,
    directions,
    factors,
    image_embeddings,
    majority,
    pair_norms,
    pair_vectors,
    percentile_mask,
    scalars,
    text_scores,
)

RN50 = {"units": 2048, "heads": 32, "features": 1024, "side": 7}
RN50X16 = {"units": 3072, "heads": 48, "features": 768, "side": 12}
SMALL = {"units": 256, "heads": 8, "features": 128, "side": 4}
TOP = 50


def random_pool(units: int, heads: int, features: int, side: int) -> Pool:
    """A pool of random matrices, float32."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Any:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    width = [drawn(units) for _ in range(3)]
    return Pool(
        W_q=drawn(units, units) * 4,
        b_q=width[0],
        W_k=drawn(units, units) * 4,
        b_k=width[1],
        W_v=drawn(units, units),
        b_v=width[2],
        W_o=drawn(features, units),
        b_o=drawn(features),
        positions=drawn(side * side + 1, units),
        heads=heads,
    )


def random_maps(pool: Pool, images: int, seed: int = 1) -> Any:
    """Maps after a ReLU, float32."""
    rng = np.random.default_rng(seed)
    return np.maximum(rng.standard_normal((images, pool.units, *pool.grid), dtype=np.float32), 0)


def brute_force(pool: Pool, image: Any, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The contributions (head, unit, feature) of an image, from value vectors of every head, token, dim and unit."""
    heads, dim, units = pool.heads, pool.head_dim, pool.units
    z = torch.from_numpy(image.reshape(units, -1).T.copy())
    x = torch.cat([z.mean(0, keepdim=True), z]) + tensors["positions"]
    query = (x[0] @ tensors["W_q"].T + tensors["b_q"]).reshape(heads, dim)
    key = (x @ tensors["W_k"].T + tensors["b_k"]).reshape(-1, heads, dim)
    attention = torch.softmax(torch.einsum("hd,thd->ht", query, key) / dim**0.5, dim=1)
    value = torch.einsum("tc,hdc->htdc", x, tensors["W_v"].reshape(heads, dim, units))
    value = value + tensors["b_v"].reshape(heads, 1, dim, 1) / units
    mixed = torch.einsum("ht,htdc->hcd", attention, value)
    out = torch.einsum("hcd,ohd->hco", mixed, tensors["W_o"].reshape(-1, heads, dim))
    return out + tensors["b_o"] / (units * heads)


def tensors_of(pool: Pool) -> dict[str, torch.Tensor]:
    """The pool's matrices as tensors."""
    names = ("W_q", "b_q", "W_k", "b_k", "W_v", "b_v", "W_o", "b_o", "positions")
    return {name: torch.from_numpy(np.array(getattr(pool, name))) for name in names}


def timed(way: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came out."""
    start = time.perf_counter()
    found = way()
    return time.perf_counter() - start, found


def collection(size: dict[str, int], images: int, by_force: int) -> None:
    """Print milliseconds an image, and bytes."""
    pool = random_pool(**size)
    maps, tensors = random_maps(pool, images), tensors_of(pool)
    exact = image_embeddings(pool, maps)
    scalars(pool, maps[:16], embedding=exact[:16])
    slow, fast, checked = [], [], []
    for i in range(by_force):
        seconds, r = timed(lambda i=i: brute_force(pool, maps[i], tensors))
        slow.append(seconds)
        error = float(np.linalg.norm(r.sum((0, 1)).numpy() - exact[i]) / np.linalg.norm(exact[i]))
        seconds, found = timed(lambda: scalars(pool, maps, embedding=exact))
        fast.append(seconds / images)
        seconds, _ = timed(lambda: scalars(pool, maps[:16]))
        checked.append(seconds / 16)
        u = pair_vectors(factors(pool)).isel(unit=slice(3), head=slice(2)).compute()
        ours = found["scalar"][i, :3, :2] * u + factors(pool)["constant"][:2]
        gap = float(abs(ours.transpose("head", "unit", "feature").values - r[:2, :3].numpy()).max() / abs(r).max())
    number = pool.units * pool.heads
    print(
        f"collection, {pool.units} units, {pool.heads} heads, {pool.tokens} tokens, {pool.features} features, float32"
    )
    print(f"  whole arrays      {median(slow) * 1e3:>9.1f} ms/image, {number * pool.features * 4 / 1e6:.1f} MB/image")
    print(f"  scalars           {median(fast) * 1e3:>9.2f} ms/image, {number * 4 / 1e6:.3f} MB/image")
    print(f"    and textbook    {median(checked) * 1e3:>9.2f} ms/image")
    print(f"  ratio             {median(slow) / median(fast):>9.0f} x time, {pool.features} x bytes; gate 800 x time")
    residual = float(found["completeness"].max())
    print(f"  sum against embedding {residual:.0e} (arrays {error:.0e}), pair against pair {gap:.0e}", flush=True)


def end_to_end(size: dict[str, int], images: int, turns: int) -> None:
    """Print seconds from maps to the principal direction, sign and norms of every pair."""
    pool = random_pool(**size)
    maps, tensors = random_maps(pool, images), tensors_of(pool)
    exact = image_embeddings(pool, maps)

    def reference() -> Any:
        r = np.empty((images, pool.heads, pool.units, pool.features), np.float32)
        for i, image in enumerate(maps):
            r[i] = brute_force(pool, image, tensors).numpy()
        found = np.empty((pool.heads, pool.units, pool.features), np.float32)
        norms = np.empty((pool.heads, pool.units, TOP), np.float32)
        for h in range(pool.heads):
            for n in range(pool.units):
                centred = r[:, h, n] - r[:, h, n].mean(axis=0)
                length = np.linalg.norm(centred, axis=1)
                at = np.argsort(length)[-TOP:]
                norms[h, n] = length[at]
                first = np.linalg.svd(centred[at], full_matrices=False)[2][0]
                found[h, n] = first if (centred[at] @ first > 0).sum() > TOP // 2 else -first
        return found, norms

    def ours() -> Any:
        fixed = factors(pool)
        scalar = scalars(pool, maps, embedding=exact)["scalar"]
        found = directions(fixed, sign="majority", scalar=scalar, top=TOP)
        direction = found["direction"].transpose("head", "unit", "feature").to_numpy()
        return direction, pair_norms(scalar, fixed, top=TOP).transpose("head", "unit", "rank").to_numpy(), scalar, fixed

    slow, fast = [], []
    ours()
    for _ in range(turns):
        seconds, (direction, norms) = timed(reference)
        slow.append(seconds)
        for _ in range(5):
            seconds, (mine, lengths, scalar, fixed) = timed(ours)
            fast.append(seconds)
    tied = np.isnan(mine).any(axis=-1)
    print(f"end to end, {images} images, {pool.heads * pool.units} pairs: {int(tied.sum())} ties left out")
    print(f"  whole arrays and SVD {median(slow):>8.2f} s, {median(slow) / median(fast):.0f} x ours; gate 60 x")
    print(f"  scalars              {median(fast):>8.3f} s")
    gap = np.abs(mine - direction)[~tied].max()
    length = (np.abs(lengths - norms) / norms.max()).max()
    ties = int((majority(scalar, fixed, top=TOP) == 0).sum())
    print(f"  directions differ by {gap:.0e}, norms by {length:.0e} of the largest; {ties} signs tied", flush=True)


def large(size: dict[str, int], images: int) -> None:
    """In a process of its own: totals of many images; print seconds and peak memory as JSON."""
    pool = random_pool(**size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    maps = random_maps(pool, 16)
    exact = image_embeddings(pool, maps)
    totals, measuring, adding = ScalarTotals(ranks=TOP), 0.0, 0.0
    for start in range(0, images, 16):
        seconds, found = timed(lambda: scalars(pool, maps, embedding=exact))
        measuring += seconds
        scalar = found["scalar"]
        seconds, _ = timed(lambda scalar=scalar, start=start: totals.add(scalar, np.arange(start, start + 16)))
        adding += seconds
    kept = sum(v.nbytes for v in totals.dataset()[["mean", "std", "top", "bottom"]].values())
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shown = {"measuring": measuring, "adding": adding, "kept": kept / 1e6, "peak": after / 1e3, "before": before / 1e3}
    print(json.dumps(shown))


def phrases(size: dict[str, int], count: int, turns: int) -> None:
    """Print milliseconds of all pairs' cosines with phrases, against vectors that are built."""
    pool = random_pool(**size)
    fixed = factors(pool)
    texts = np.random.default_rng(2).standard_normal((count, pool.features)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    value, output = fixed["value"].to_numpy(), fixed["output"].to_numpy()

    def reference() -> Any:
        u = np.matmul(value.transpose(0, 2, 1), output.transpose(1, 2, 0))
        u /= np.linalg.norm(u, axis=2, keepdims=True)
        return u @ texts.T

    slow, fast = [], []
    for _ in range(turns):
        seconds, wanted = timed(reference)
        slow.append(seconds)
        seconds, found = timed(lambda: text_scores(fixed, texts))
        fast.append(seconds)
    gap = np.abs(found.transpose("head", "unit", "phrase").to_numpy() - wanted).max()
    print(f"{count} phrases, {pool.heads * pool.units} pairs: {median(fast) * 1e3:.0f} ms")
    print(
        f"  vectors built {median(slow) * 1e3:.0f} ms, {median(slow) / median(fast):.1f} x; difference {gap:.0e}",
        flush=True,
    )


def ablation(size: dict[str, int], images: int, by_force: int) -> None:
    """Print milliseconds an image of mean ablation."""
    pool = random_pool(**size)
    maps = random_maps(pool, images)
    scalar, fixed = scalars(pool, maps, embedding=image_embeddings(pool, maps))["scalar"], factors(pool)
    mask = percentile_mask(pair_norms(scalar, fixed, top=min(TOP, images)), 90)
    mean: xr.DataArray = scalar.mean("sample", dtype=np.float64)
    dims = ("head", "unit")
    keep = torch.from_numpy(mask.transpose(*dims).to_numpy())[..., None]
    tensors = tensors_of(pool)
    s_mean = mean.transpose(*dims).to_numpy().astype(np.float32)
    u = pair_vectors(fixed).transpose("head", "unit", "feature").to_numpy()
    mean_array = torch.from_numpy(s_mean[..., None] * u + fixed["constant"].to_numpy()[:, None])
    del u
    slow, fast = [], []
    for i in range(by_force):
        whole = brute_force(pool, maps[i], tensors)  # its file
        seconds, wanted = timed(lambda whole=whole: torch.where(keep, whole, mean_array).sum((0, 1)))
        slow.append(seconds)
        seconds, found = timed(lambda: ablate(scalar, fixed, mask, mean=mean).to_numpy())
        fast.append(seconds / images)
        gap = float(np.abs(found[i] - wanted.numpy()).max() / np.abs(found[i]).max())
    print(f"mean ablation, {pool.heads * pool.units} pairs: {median(fast) * 1e3:.2f} ms/image")
    print(f"  whole arrays {median(slow) * 1e3:.1f} ms/image, {median(slow) / median(fast):.0f} x; differ by {gap:.0e}")
    sys.stdout.flush()


def main(quick: bool) -> None:
    """Print all comparisons."""
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    tiny = {"units": 64, "heads": 4, "features": 32, "side": 3}
    collection(tiny if quick else RN50, 32 if quick else 128, 2 if quick else 5)
    end_to_end(tiny if quick else SMALL, 60 if quick else 200, 1 if quick else 3)
    name, images = ("tiny", "64") if quick else ("RN50x16", "1008")
    words = [sys.executable, "-m", "benchmarks.pairs", "--large", name, images]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    print(f"totals of {images} images, {name}'s pool: {found['measuring']:.1f} s and {found['adding']:.1f} s adding up")
    print(
        f"  {found['kept']:.0f} MB kept, peak {found['peak']:.0f} MB ({found['before']:.0f} MB before the maps)",
        flush=True,
    )
    phrases(tiny if quick else RN50X16, 59, 1 if quick else 5)
    ablation(tiny if quick else RN50, 32 if quick else 256, 1 if quick else 5)


if __name__ == "__main__":
    if "--large" in sys.argv:
        large(
            {"units": 64, "heads": 4, "features": 32, "side": 3} if sys.argv[2] == "tiny" else RN50X16, int(sys.argv[3])
        )
    else:
        main("--quick" in sys.argv)
