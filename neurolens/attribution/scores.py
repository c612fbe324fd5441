"""Where the mass of an attribution map lies: by pixel and by patch, how concentrated, in which order."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import SchemaError, nearest

Array = npt.NDArray[Any]
Channels = Literal["summed", "apart"]
Compat = Literal["seed"] | None

PATCH = ("patch_y", "patch_x")
PIXEL = ("y", "x")
_SLACK = 1e-12
"""Sums that reach the wanted mass but for rounding reach it: a map times a number has the sparsity of the map."""


def patch_table(maps: xr.DataArray, *, grid: int = 14) -> xr.DataArray:
    """Sum \\|attribution\\| over channels and over the cells of a grid.

    Parameters
    ----------
    maps : (…, channel, y, x) or (…, y, x)
        Attributions, signed or not.
    grid
        Cells per side, each of ⌊height/grid⌋ × ⌊width/grid⌋ pixels. Rows below the last cell and columns to its right
        are left out.

    Returns
    -------
    table : (…, patch_y, patch_x) float64, lazy if ``maps`` is
        NaN where a pixel of the cell is.

    Raises
    ------
    SchemaError
        If these are no maps of pictures, or they have fewer pixels than cells.
    """
    return masses(maps, grid=grid)[0]


def sparsity(
    maps: xr.DataArray,
    *,
    grid: int | None = None,
    mass: float = 0.9,
    channels: Channels = "summed",
    compat: Compat = None,
) -> xr.DataArray:
    """Return the share of entries that are not needed to hold a share of a map's mass.

    Parameters
    ----------
    maps : (…, channel, y, x), (…, y, x), (…, input), or (…, patch_y, patch_x) from `patch_table`
        Attributions. Entries are pixels, numbers of a vector, or patches; their mass is \\|attribution\\|.
    grid
        Take patches, so many per side; pixels by default.
    mass
        The share that is to be held, by as few entries as can.
    channels : {"summed", "apart"}
        A pixel is one entry, or one in each channel.
    compat : {"seed"}, optional
        As the reference: channels apart (patches sum over them anyway), in the dtype of the map, with no care for
        rounding, and 0 where there is no mass.

    Returns
    -------
    sparsity : (…,) float64, lazy if ``maps`` is
        1 − k/n for k of n entries: 0 is spread evenly, near 1 is on few entries. NaN where a map is zero everywhere or
        not finite. It does not change when a map is multiplied by a number.

    Raises
    ------
    SchemaError
        If these are no maps, an option is unknown, or the mass is no share.
    """
    if not 0 < mass <= 1:
        raise SchemaError(f"mass={mass} is no share of a map; give a number above 0, at most 1, e.g. 0.9")
    if compat == "seed":
        channels = "apart"
    entries, dims = masses(maps, grid=grid, channels=channels, compat=compat)

    def of(row: Array) -> float:
        total = row.sum()
        if compat == "seed":
            if total == 0:
                return 0.0
            held = np.cumsum(np.sort(row)[::-1])
            return 1 - (int(np.searchsorted(held, mass * total)) + 1) / len(row)
        if not np.isfinite(total) or total <= 0:
            return float("nan")
        held = np.cumsum(np.sort(row)[::-1])
        return 1 - (int(np.searchsorted(held, mass * held[-1] * (1 - _SLACK))) + 1) / len(row)

    return _by_row(entries, dims, of)


def gini(maps: xr.DataArray, *, grid: int | None = None, channels: Channels = "summed") -> xr.DataArray:
    """Return the Gini coefficient of \\|attribution\\| over the entries of a map, as `sparsity` takes them.

    Returns
    -------
    gini : (…,) float64, lazy if ``maps`` is
        0 where all entries are equal, 1 − 1/n where one of n holds all. NaN where a map is zero everywhere or not
        finite.

    Raises
    ------
    SchemaError
        If these are no maps, or an option is unknown.

    References
    ----------
    Chalasani et al. 2020, "Concise Explanations of Neural Networks using Adversarial Training" (sparseness).
    """
    entries, dims = masses(maps, grid=grid, channels=channels)

    def of(row: Array) -> float:
        total, n = row.sum(), len(row)
        if not np.isfinite(total) or total <= 0:
            return float("nan")
        return float((2 * np.arange(1, n + 1) - n - 1) @ np.sort(row) / (n * total))

    return _by_row(entries, dims, of)


def entropy(maps: xr.DataArray, *, grid: int | None = None, channels: Channels = "summed") -> xr.DataArray:
    """Return the entropy of a map's mass over its entries, as `sparsity` takes them.

    Returns
    -------
    entropy : (…,) float64, nats, lazy if ``maps`` is
        0 where one entry holds all, ln n where all n are equal. NaN where a map is zero everywhere or not finite.

    Raises
    ------
    SchemaError
        If these are no maps, or an option is unknown.

    References
    ----------
    Bhatt et al. 2020, "Evaluating and Aggregating Feature-based Model Explanations" (complexity).
    """
    entries, dims = masses(maps, grid=grid, channels=channels)

    def of(row: Array) -> float:
        total = row.sum()
        if not np.isfinite(total) or total <= 0:
            return float("nan")
        share = row[row > 0] / total
        return float(-(share * np.log(share)).sum())

    return _by_row(entries, dims, of)


def ranking(maps: xr.DataArray, *, grid: int | None = None, channels: Channels = "summed") -> xr.DataArray:
    """Return the entries of a map, as `sparsity` takes them, by falling \\|attribution\\|.

    Returns
    -------
    entry : (…, rank) int64, lazy if ``maps`` is
        Flat numbers of the entries, row by row. Of equal ones the lowest number comes first, on every machine. NaN
        comes last.

    Raises
    ------
    SchemaError
        If these are no maps, or an option is unknown.
    """
    entries, dims = masses(maps, grid=grid, channels=channels)

    def kernel(values: Array) -> Array:
        return order(values.reshape(*values.shape[: -len(dims)], -1))

    size = int(np.prod([entries.sizes[dim] for dim in dims]))
    out: xr.DataArray = xr.apply_ufunc(
        kernel,
        entries,
        input_core_dims=[dims],
        output_core_dims=[["rank"]],
        dask="parallelized",
        output_dtypes=[np.int64],
        dask_gufunc_kwargs={"output_sizes": {"rank": size}, "allow_rechunk": True},
    )
    return out


def order(entries: Array) -> Array:
    """Return numbers of entries (…, n) by falling mass, the lowest first of equal ones, (…, n) int64."""
    return np.argsort(-entries, axis=-1, kind="stable").astype(np.int64, copy=False)


def count_of(share: float, entries: int) -> int:
    """Return how many entries are a share of them: rounded, halves to even, and at least one.

    Raises
    ------
    SchemaError
        If it is no share.
    """
    if not 0 < share <= 1:
        raise SchemaError(f"share={share} is no share of {entries} entries; give a number above 0, at most 1, e.g. 0.1")
    return max(1, round(share * entries))


def masses(
    maps: xr.DataArray, *, grid: int | None = None, channels: Channels = "summed", compat: Compat = None
) -> tuple[xr.DataArray, tuple[str, ...]]:
    """Return the mass of each entry of maps, and the dims of the entries; lazy if the maps are.

    Raises
    ------
    SchemaError
        If these are no maps, an option is unknown, or the grid does not fit.
    """
    if not isinstance(maps, xr.DataArray):
        raise SchemaError(
            f"found a {type(maps).__name__}, and one array of maps was needed; give maps['saliency'], or several "
            "methods as maps[['integrated_gradients', 'saliency']].to_dataarray('attribution')"
        )
    for value, known, name in ((channels, ("summed", "apart"), "channels"), (compat, (None, "seed"), "compat")):
        if value not in known:
            raise SchemaError(f"{name}={value!r} is unknown; {nearest(str(value), filter(None, known))}")
    found = set(maps.dims)
    dtype = maps.dtype if compat == "seed" else np.dtype(np.float64)
    if found >= set(PATCH):
        if grid is not None and (grid, grid) != (maps.sizes["patch_y"], maps.sizes["patch_x"]):
            raise SchemaError(
                f"found a table of {maps.sizes['patch_y']} × {maps.sizes['patch_x']} patches, and grid={grid} was "
                "asked for; leave it out, or make the table anew from the maps"
            )
        return abs(maps.astype(np.float64)), PATCH
    if "input" in found and not found & {"channel", *PIXEL}:
        if grid is not None:
            raise SchemaError(f"grid={grid} needs pictures, over y and x, and these are maps of vectors; leave it out")
        return abs(maps.astype(dtype)), ("input",)
    if not found >= set(PIXEL):
        raise SchemaError(
            f"found dims {maps.dims}, and maps over ('channel', 'y', 'x'), ('y', 'x'), ('input',) or {PATCH} were "
            "needed; name the dims of the maps so"
        )
    if channels == "apart" and grid is None:
        return abs(maps.astype(dtype)), ("channel", *PIXEL) if "channel" in found else PIXEL
    if grid is not None:
        return _cells(maps, grid, dtype), PATCH
    pixels = abs(maps)
    return pixels.sum("channel", dtype=dtype, skipna=False) if "channel" in found else pixels.astype(dtype), PIXEL


def _cells(maps: xr.DataArray, grid: int, dtype: npt.DTypeLike) -> xr.DataArray:
    """Sum \\|attribution\\| over channels, in this dtype, and over cells, one map at a time: it stays in the cache."""
    if grid < 1:
        raise SchemaError(f"grid={grid} is no number of patches per side; give 1 or more, e.g. 14")
    rows, columns = (maps.sizes[dim] // grid for dim in PIXEL)
    if not rows or not columns:
        raise SchemaError(
            f"found maps of {maps.sizes['y']} × {maps.sizes['x']} pixels, and a grid of {grid} × {grid} patches "
            "needs one for each; lower grid"
        )
    dims = ("channel", *PIXEL) if "channel" in maps.dims else PIXEL

    def kernel(values: Array) -> Array:
        out = np.empty((*values.shape[: -len(dims)], grid, grid))
        for at in np.ndindex(out.shape[:-2]):
            pixels = np.abs(values[at][..., : grid * rows, : grid * columns])
            pixels = pixels.sum(axis=0, dtype=dtype) if "channel" in dims else pixels
            lines = pixels.reshape(grid, rows, grid * columns).sum(axis=1, dtype=np.float64)
            lines.reshape(grid, grid, columns).sum(axis=2, out=out[at])
        return out

    out: xr.DataArray = xr.apply_ufunc(
        kernel,
        maps,
        input_core_dims=[dims],
        output_core_dims=[PATCH],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": dict.fromkeys(PATCH, grid), "allow_rechunk": True},
    )
    return out


def _by_row(entries: xr.DataArray, dims: tuple[str, ...], of: Callable[[Array], float]) -> xr.DataArray:
    """Apply a function of one map's entries to all maps, one at a time: sorting takes the memory of one."""

    def kernel(values: Array) -> Array:
        lead = values.shape[: -len(dims)]
        rows = values.reshape(int(np.prod(lead)), -1)
        return np.array([of(row) for row in rows], dtype=np.float64).reshape(lead)

    out: xr.DataArray = xr.apply_ufunc(
        kernel,
        entries,
        input_core_dims=[dims],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"allow_rechunk": True},
    )
    return out
