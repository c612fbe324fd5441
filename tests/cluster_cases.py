"""Features of units for tests, and what is made of them from the definitions, slowly."""

from itertools import combinations
from math import comb

import numpy as np
import xarray as xr
from dormancy_cases import with_units


def features(rows, layers=None):
    """Features Dataset of rows (unit, 3) at one checkpoint, or (epoch, unit, 3)."""
    rows = np.asarray(rows, float)
    dims = ("epoch", "unit")[-rows.ndim + 1 :]
    data = {name: (dims, rows[..., i]) for i, name in enumerate(("rate", "mean", "variance"))}
    out = with_units(xr.Dataset(data), layers)
    return out.assign_coords(epoch=np.arange(len(rows)) * 10) if rows.ndim == 3 else out


def blobs(per_blob=(12, 9, 5), seed=0, apart=4.0):
    """Rows (unit, 3) of groups that lie apart, mixed, and the group of each."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(len(per_blob)), per_blob))
    centres = apart * np.array([[0, 0, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1]], float)
    return centres[group] + rng.normal(size=(len(group), 3)) * [0.5, 0.4, 0.3], group


def z(rows):
    """Scores as the reference makes them."""
    rows = np.asarray(rows, float)
    return (rows - rows.mean(axis=0)) / rows.std(axis=0)


def same(one, other):
    """Whether two clusterings put the same units together."""
    one, other = np.asarray(one), np.asarray(other)
    return np.array_equal(one[:, None] == one, other[:, None] == other)


def slow_silhouette(points, labels):
    """Rousseeuw 1987, section 2, unit by unit."""
    scores = []
    for i, own in enumerate(labels):
        distance = [float(np.sqrt(((points[i] - p) ** 2).sum())) for p in points]
        mates = [distance[j] for j in range(len(labels)) if labels[j] == own and j != i]
        if not mates:
            scores.append(0.0)
            continue
        a = sum(mates) / len(mates)
        others = set(labels) - {own}
        b = min(np.mean([distance[j] for j in range(len(labels)) if labels[j] == other]) for other in others)
        scores.append((b - a) / max(a, b))
    return float(np.mean(scores))


def slow_ari(one, other):
    """Hubert and Arabie 1985, eq. 5, from pairs of units that are together in both, in one, in the other."""
    pairs = list(combinations(range(len(one)), 2))
    both = sum(one[i] == one[j] and other[i] == other[j] for i, j in pairs)
    first, second = sum(one[i] == one[j] for i, j in pairs), sum(other[i] == other[j] for i, j in pairs)
    expected, most = first * second / comb(len(one), 2), (first + second) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def best_inertia(points, k):
    """Least sum of squared distances over every way to part a few points into k clusters."""
    best = np.inf
    for code in np.ndindex(*[k] * len(points)):
        groups = [points[np.array(code) == c] for c in range(k)]
        if all(len(g) for g in groups):
            best = min(best, sum(((g - g.mean(axis=0)) ** 2).sum() for g in groups))
    return best
