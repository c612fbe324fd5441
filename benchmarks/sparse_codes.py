"""Orthogonal matching pursuit of 64 atoms against scikit-learn's coder, where that can run, and alone at full size.

``python benchmarks/sparse_codes.py [--quick]``. Dictionaries of 768 features are random with a spectrum that falls, as
embeddings of words have; rows are centred and of length 1, in float32. The reference's way is ``SparseCoder`` with a
Gram matrix of all phrases, in batches of 16 signals as it takes them: that matrix is made anew for each batch, and
copied for each signal, so its time per signal goes with the square of the phrases. Ours takes 256 signals at once. Both
ways are timed turn by turn, on one thread, in CPU time; then ours runs at full size on one thread and on two.
"""

import resource
import sys
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from sklearn.decomposition import SparseCoder
from threadpoolctl import threadpool_limits

from neurolens.sparse_codes import prepared, sparse_codes

FEATURES, BATCH, OURS = 768, 16, 256


def problem(phrases: int, signals: int, features: int) -> tuple[Any, Any]:
    """Signals and a dictionary, float32."""
    random = np.random.default_rng(0)
    spectrum = 1 / np.sqrt(1 + np.arange(features))
    turned = np.linalg.qr(random.normal(size=(features, features)))[0] * spectrum[:, None]
    dictionary = random.normal(size=(phrases, features)).astype(np.float32) @ turned.astype(np.float32)
    return random.normal(size=(signals, features)).astype(np.float32), dictionary


def timed(way: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, and what came out."""
    start = time.process_time()
    found = way()
    return time.process_time() - start, found


def compare(phrases: int, features: int, atoms: int, turns: int) -> None:
    """Print both ways' times per signal, and how far atoms and coefficients are apart."""
    signals, dictionary = problem(phrases, OURS, features)
    scaled = prepared(dictionary).to_numpy()
    coder = SparseCoder(dictionary=scaled, transform_algorithm="omp", transform_n_nonzero_coefs=atoms)
    theirs, ours = [], []
    with threadpool_limits(1):
        for _ in range(turns):
            seconds, expected = timed(lambda: coder.transform(signals[:BATCH]))
            theirs.append(seconds / BATCH)
            seconds, codes = timed(lambda: sparse_codes(signals, dictionary, atoms=atoms))
            ours.append(seconds / OURS)
    found, codes = np.zeros_like(expected), codes.isel(signal=slice(BATCH))
    np.put_along_axis(found, codes["index"].to_numpy().astype(np.int64), codes["value"].to_numpy(), axis=1)
    same = [set(np.flatnonzero(one)) == set(np.flatnonzero(other)) for one, other in zip(found, expected, strict=True)]
    apart = np.abs(found - expected)[same].max() / np.abs(expected).max() if any(same) else np.nan
    print(
        f"{phrases:>6} phrases: reference {median(theirs):.4f} s/signal, ours {median(ours):.4f}: "
        f"{median(theirs) / median(ours):.1f}x; {sum(same)} of {BATCH} signals with the same {atoms} atoms, "
        f"coefficients {apart:.0e} apart",
        flush=True,
    )


def exact(phrases: int, features: int, atoms: int) -> None:
    """Print how far both ways are apart in float64, where rounding decides nothing."""
    signals, dictionary = problem(phrases, BATCH, features)
    signals, dictionary = signals.astype(np.float64), dictionary.astype(np.float64)
    codes = sparse_codes(signals, dictionary, atoms=atoms)
    coder = SparseCoder(
        dictionary=prepared(dictionary).to_numpy(), transform_algorithm="omp", transform_n_nonzero_coefs=atoms
    )
    expected = coder.transform(signals)
    found = np.zeros_like(expected)
    np.put_along_axis(found, codes["index"].to_numpy().astype(np.int64), codes["value"].to_numpy(), axis=1)
    same = sum(bool(((one != 0) == (other != 0)).all()) for one, other in zip(found, expected, strict=True))
    apart = np.abs(found - expected).max()
    print(f"{phrases:>6} phrases in float64: {same} of {BATCH} the same, coefficients {apart:.0e} apart", flush=True)


def alone(phrases: int, signals: int, features: int, atoms: int, threads: int) -> None:
    """Print ours at a size where the other cannot run."""
    vectors, dictionary = problem(phrases, signals, features)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with threadpool_limits(threads):
        start, cpu = time.perf_counter(), time.process_time()
        codes = sparse_codes(vectors, dictionary, atoms=atoms)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    written = sum(codes[name].nbytes for name in ("index", "value")) / signals
    print(
        f"{phrases:>6} phrases, {signals} signals, {threads} threads: {signals / wall:.1f} signals/s, "
        f"{cpu / signals:.4f} CPU s/signal; memory grew by {grown:.0f} MiB, a code is {written:.0f} bytes",
        flush=True,
    )


def main(quick: bool) -> None:
    """Print all comparisons."""
    warnings.simplefilter("error")
    if quick:
        exact(200, 96, 16)
        compare(200, 96, 16, 2)
        alone(500, 32, 96, 16, 1)
        return
    exact(1000, FEATURES, 64)
    for phrases, turns in ((1000, 5), (2000, 5), (4000, 3)):
        compare(phrases, FEATURES, 64, turns)
    for threads in (1, 2):
        alone(30_000, 512, FEATURES, 64, threads)


if __name__ == "__main__":
    main("--quick" in sys.argv)
