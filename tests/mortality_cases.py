"""Trajectories for tests: the eight units worked by hand, drawn ones, and lives found one checkpoint at a time."""

import numpy as np
import xarray as xr

EIGHT = {
    "aaaaaaaa": [0.01, 0.05, 0.09, 0.07, 0.05, 0.03, 0.02, 0.01],
    "bbbbbbbb": [0.05, 0.04, 0.03, 0.05, 0.04, 0.03, 0.02, 0.01],
    "cccccccc": [0.09, 0.08, 0.07, 0.06, 0.05, 0.045, 0.041, 0.04],
    "dddddddd": [0.09, 0.02, 0.03, 0.02, 0.03, 0.02, 0.03, 0.02],
    "eefffggg": [0.06, 0.06, 0.05, 0.05, 0.05, 0.03, 0.03, 0.03],
    "hhhhhhhh": [0.01] * 8,
    "aaaaaaa ": [0.01] * 6 + [0.06, 0.07],
    "iiiiiiii": [0.06, 0.05, 0.04, 0.039999, 0.05, 0.01, 0.01, 0.01],
}
MOVING = {
    "aaaaaaaa": [0.09, 0.08, 0.06, 0.05, 0.03, 0.02, 0.01, 0.01],
    "zzzzaaaa": [0.01] * 4 + [0.01, 0.10, 0.11, 0.12],
    "zzzzaaa ": [0.01] * 4 + [0.01, 0.09, 0.10, 0.11],
}


def by_unit(table=EIGHT, series="step", stamps=None, layers=None):
    """Dataset of `score` and `label` (series, unit), units numbered from 1 in the reference's files."""
    score = np.array(list(table.values())).T
    label = np.array([list(word.replace(" ", "a")) for word in table]).T
    n = score.shape[1]
    coords = {
        series: np.arange(len(score)) if stamps is None else stamps,
        "unit": np.arange(n),
        "layer": ("unit", ["layer4"] * n if layers is None else layers),
        "index": ("unit", np.arange(n)),
    }
    return xr.Dataset({"score": ((series, "unit"), score), "label": ((series, "unit"), label)}, coords)


def iou_of(values, series="epoch", layers=None, categories=None):
    """IoU (series, unit, concept) with coordinates, of a plain array."""
    values = np.asarray(values, float)
    _, units, concepts = values.shape
    return xr.DataArray(
        values,
        dims=(series, "unit", "concept"),
        coords={
            series: np.arange(len(values)) * 10,
            "unit": np.arange(units),
            "layer": ("unit", ["layer4"] * units if layers is None else layers),
            "concept": [f"c{i}" for i in range(concepts)],
            "concept_category": ("concept", ["object"] * concepts if categories is None else categories),
        },
        name="iou",
    )


def drawn(checkpoints=8, units=6, concepts=5, seed=0, holes=0.1, levels=(0.01, 0.03, 0.036, 0.04, 0.05, 0.09)):
    """IoU that crosses the threshold often, with holes, and values that are exactly the threshold."""
    rng = np.random.default_rng(seed)
    values = rng.choice(levels, size=(checkpoints, units, concepts))
    values[rng.random(values.shape) < holes] = np.nan
    return iou_of(values, layers=[f"layer{1 + i % 3}" for i in range(units)])


def slow_lives(scores, tau=0.04, k=3, hysteresis=0.0, window=1, min_alive=1):
    """Lives of one trajectory, read off checkpoint by checkpoint: dicts in order of birth."""
    x = slow_smooth(scores, window)
    n, leave = len(x), tau * (1 - hysteresis)
    lives, t, last_end = [], 0, None
    while t < n:
        if not x[t] >= tau:
            t += 1
            continue
        birth, alive, end, at = t, [t], None, None
        while end is None:
            t += 1
            if t == n:
                end = "alive"
            elif np.isnan(x[t]):
                end = "absent"
            elif x[t] >= leave:
                alive.append(t)
            else:
                run = []
                while t + len(run) < n and x[t + len(run)] < leave and len(run) < k:
                    run.append(t + len(run))
                if len(run) == k:
                    end, at = "death", t
                elif t + len(run) == n:
                    end, at = "unconfirmed", t
                elif np.isnan(x[t + len(run)]):
                    end = "absent"
                t += len(run) - 1
        if len(alive) >= min_alive:
            life = {"birth": birth, "last": alive[-1], "end": end, "death": at, "n_alive": len(alive)}
            life["seen"] = birth > 0 and not np.isnan(x[birth - 1])
            life["gap"] = birth - last_end if last_end is not None else None
            lives.append(life)
            last_end = at if end == "death" else None
        if end == "absent" or end == "death":
            t += 1
        if end == "death":
            t = at + k
    return lives


def slow_seed(scores, tau=0.04, k=3, window=1, min_alive=1):
    """The reference's single event of a trajectory: (birth, death, score_birth, score_death), or None."""
    where = [t for t, x in enumerate(scores) if not np.isnan(x)]
    s = slow_smooth([scores[t] for t in where], window)
    alive = [i for i, x in enumerate(s) if x >= tau]
    if len(alive) < min_alive:
        return None
    for i in alive:
        if i + k >= len(s) or any(s[j + 1] > s[j] for j in range(i, i + k)):
            continue
        for j in range(i + 1, len(s)):
            if s[j] < tau:
                if not any(x >= tau for x in s[j:]):
                    return where[i], where[j], s[i], s[j]
                break
    return None


def slow_smooth(scores, window):
    out = []
    for t, x in enumerate(scores):
        known = [y for y in scores[max(0, t - window + 1) : t + 1] if not np.isnan(y)]
        out.append(np.nan if np.isnan(x) else sum(known) / len(known) if window > 1 else x)
    return out
