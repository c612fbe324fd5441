"""Statistics of units for tests: from activations by plain numpy, or drawn at random."""

import numpy as np
import xarray as xr

H = np.array([[0, 2, 0, 0.05, 8], [0, 0, 0, 0.05, 4], [0, 2, -0.4, 0.05, 0], [0, 0, 0.4, 0.05, 4]])
MASKS = np.array([[1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0]], bool)


def statistics(activations, layers=None, classes=None):
    """Units cube of activations (series, observation, unit), every statistic from its definition."""
    a = np.asarray(activations, float)
    if a.ndim == 2:
        a = a[None]
    mean = a.mean(axis=1)
    found = {
        "n": np.full(mean.shape, float(a.shape[1])),
        "abs_sum": np.abs(a).sum(axis=1),
        "mean": mean,
        "m2": ((a - mean[:, None]) ** 2).sum(axis=1),
        "min": a.min(axis=1),
        "max": a.max(axis=1),
        "n_pos": (a > 0).sum(axis=1).astype(float),
        "n_nonzero": (a != 0).sum(axis=1).astype(float),
        "abs_dev": np.abs(a - mean[:, None]).mean(axis=1),
    }
    data = {name: (("epoch", "unit"), values) for name, values in found.items()}
    if classes is not None:
        data |= _per_class(a, np.asarray(classes))
    return with_units(xr.Dataset(data, coords={"epoch": np.arange(len(a)) * 10}), layers)


def with_units(ds, layers=None):
    units = ds.sizes["unit"]
    names = np.asarray(["layer"] * units if layers is None else layers, dtype=str)
    index = np.array([(names[:i] == names[i]).sum() for i in range(units)])
    return ds.assign_coords(unit=np.arange(units), layer=("unit", names), index=("unit", index))


def drawn(epochs=5, units=24, seed=0, layers=None):
    """A units cube of random activations, some units silent, some constant, one layer silent at the first epoch."""
    rng = np.random.default_rng(seed)
    a = np.maximum(rng.normal(size=(epochs, 20, units)), 0) * rng.choice([0, 0.02, 1, 30], size=(epochs, 1, units))
    a[:, :, rng.random(units) < 0.1] = 0.5
    names = [f"net.{k}" for k in np.sort(rng.integers(0, 12, units))] if layers is None else list(layers)
    a[0, :, np.array(names) == names[0]] = 0
    return statistics(a, names, classes=np.arange(20) % 3)


def raising(*_, **__):
    raise AssertionError("something was computed")


def _per_class(a, classes):
    groups = [a[:, classes == c] for c in range(classes.max() + 1)]
    found = {
        "class_n": [np.full((len(a), a.shape[2]), float(g.shape[1])) for g in groups],
        "class_abs_sum": [np.abs(g).sum(axis=1) for g in groups],
        "class_sum": [g.sum(axis=1) for g in groups],
        "class_max": [g.max(axis=1) for g in groups],
        "class_n_pos": [(g > 0).sum(axis=1).astype(float) for g in groups],
    }
    return {name: (("epoch", "class", "unit"), np.stack(values, axis=1)) for name, values in found.items()}
