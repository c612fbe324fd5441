"""Cubes and matrices for the tests of spectra, and what is known of them."""

import numpy as np
import xarray as xr

METHODS = ["gram", "qr", "randomised"]


GOLDEN = {
    "effective_rank": 3.363585661,
    "stable_rank": 1.375,
    "srank99": 4,
    "approx99": 4,
    "numerical_rank": 4,
    "participation_ratio": 1.766423358,
}


WIDTHS = {"layers.10": 10, "layers.2": 5, "head": 25}


def cube(samples=50, positions=3, seed=0, dtype="f4", widths=WIDTHS):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((positions, samples, sum(widths.values())))
    values[..., 11:13] = 0  # dead units
    return xr.Dataset(
        {"activation": (("epoch", "sample", "unit"), values.astype(dtype), {"units": "activation"})},
        coords={
            "epoch": np.arange(positions) * 5,
            "layer": ("unit", np.repeat(list(widths), list(widths.values()))),
            "sample": [f"s{i}" for i in range(samples)],
        },
    )


def matrix_of(ds, epoch, layer, *, centred=False):
    values = ds["activation"].sel(epoch=epoch).isel(unit=np.flatnonzero(ds["layer"] == layer)).values.astype(float)
    return values - values.mean(axis=0) if centred else values


def close(found, expected, *, rtol=1e-9, atol=1e-6):
    """Compare two results; what rounding alone decides is left out."""
    left_out = ["singular_value_error", "left_vector", "right_vector", "floor", "tolerance"]
    xr.testing.assert_allclose(
        found.drop_vars(left_out, errors="ignore"),
        expected.drop_vars(left_out, errors="ignore"),
        rtol=rtol,
        atol=atol,
    )


def orthogonal(size, rng):
    return np.linalg.qr(rng.standard_normal((size, size)))[0]


def of_values(values, rows, columns, seed=0):
    """A matrix with these singular values."""
    rng = np.random.default_rng(seed)
    short = len(values)
    return orthogonal(rows, rng)[:, :short] * np.asarray(values) @ orthogonal(columns, rng)[:short]
