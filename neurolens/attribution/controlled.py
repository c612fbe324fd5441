"""Whether a cluster does more than random sets of as many units."""

import re
from typing import Any, Literal

import numpy as np
import xarray as xr

from neurolens.attribution.reading import Level, beside_whole, described
from neurolens.errors import SchemaError, nearest
from neurolens.inference import percentile_interval, require_resampling

Alternative = Literal["larger", "smaller", "two-sided"]

_ALTERNATIVES = ("larger", "smaller", "two-sided")
_CONTROL = re.compile(r"(?P<of>.+) control (?P<draw>\d+)")


def split_controls(scores: xr.DataArray, *, dim: str = "map") -> tuple[xr.DataArray, xr.DataArray]:
    """Split scores into those of maps and those of their random controls; lazy if they are.

    Parameters
    ----------
    scores : (…, map)
        With coordinates ``of`` and ``draw``, as the attributions cube has them; else told by names like ``k3/0`` and
        ``k3/0 control 0``, as `controls` gives them.
    dim
        That of the names.

    Returns
    -------
    observed : (…, map)
        Of the maps that have controls.
    draws : (…, map, draw)
        Of their controls, in the order of their numbers. NaN where a map has fewer than another.

    Raises
    ------
    SchemaError
        If no map has a control, or a control has no map.
    """
    if dim not in scores.dims or dim not in scores.coords:
        raise SchemaError(f"found {scores.dims} with {list(scores.coords)}, and names along {dim!r} were needed")
    names = [str(name) for name in scores[dim].to_numpy()]
    found: dict[str, dict[int, int]] = {}
    for place, (of, draw) in enumerate(_controlled(scores, dim, names)):
        if of:
            found.setdefault(of, {})[draw] = place
    if not found:
        raise SchemaError(
            f"found no control among {len(names)} maps, such as 'k3/0 control 0'; draw some with controls, or name "
            "sets as controlled in the study's [attributions] table"
        )
    for name in found:
        if name not in names:
            raise SchemaError(f"there are controls of {name!r}, but no such map; {nearest(name, names)}")
    kept = [name for name in names if name in found]
    places = np.full((len(kept), max(len(draws) for draws in found.values())), -1)
    for row, name in zip(places, kept, strict=True):
        row[: len(found[name])] = [found[name][draw] for draw in sorted(found[name])]
    index = xr.DataArray(places, dims=(dim, "draw"))
    along = [name for name, coord in scores.coords.items() if dim in coord.dims]
    observed = scores.isel({dim: [names.index(name) for name in kept]})
    draws = scores.drop_vars(along).isel({dim: index}).where(index >= 0)
    order = [d for d in scores.dims if d != dim]
    return observed, draws.assign_coords({dim: observed[dim]}).transpose(*order, dim, "draw")


def _controlled(scores: xr.DataArray, dim: str, names: list[str]) -> list[tuple[str, int]]:
    """Return of each map whose control it is, and which; empty names for other maps."""
    if all(name in scores.coords and scores[name].dims == (dim,) for name in ("of", "draw")):
        return [(str(of), int(draw)) for of, draw in zip(scores["of"].to_numpy(), scores["draw"].to_numpy())]
    matches = [_CONTROL.fullmatch(name) for name in names]
    return [(match["of"], int(match["draw"])) if match else ("", -1) for match in matches]


def control(
    observed: xr.DataArray | xr.Dataset,
    draws: xr.DataArray | None = None,
    *,
    score: str = "drop",
    level: Level = "patch",
    dim: str = "draw",
    alternative: Alternative = "larger",
    confidence: float = 0.95,
) -> xr.Dataset:
    """Say how often random sets of as many units do as well as a cluster; lazy if they are.

    Parameters
    ----------
    observed : Dataset of the opened attributions cube, or a number for each cluster (…)
        Such as the mean drop over the samples. Of a cube it is the mean of what the score differs by from that of the
        whole, over samples that have both, of each set that has controls.
    draws : (…, draw), with numbers
        The same of the random sets (`controls`, `split_controls`).
    score, level : with a cube
        Which of the scores of `neurolens.attribution.map_scores`, of which entries (patch or pixel).
    dim
        That of the random sets.
    alternative : {"larger", "smaller", "two-sided"}
        What would be remarkable. Two-sided is twice the smaller of the two p-values, at most 1.
    confidence
        Share of the random sets that the band holds.

    Returns
    -------
    Dataset over the dims of ``observed``: of a cube (series, map, attribution)
        ``p``: (1 + draws that are as large, or larger) / (draws + 1). With R draws none is below 1 / (R + 1).
        ``draws``: how many are not NaN. ``draw_mean``, ``draw_std`` (ddof 1) of them; ``draw_low``, ``draw_high``:
        percentiles of them, the band that a set has to leave; ``excess``: observed − mean. NaN where ``observed`` is,
        or there is no draw (of ``draw_std``, one). Of a cube also ``observed`` itself, of ``n`` samples, and ``drawn``
        (series, map, attribution, draw).

    Raises
    ------
    SchemaError
        If there is no such dim or no draw, an option is out of range, or a cube has no whole, or no controls.
    MissingMeasurementError
        If the score of a cube was not measured.

    References
    ----------
    Davison and Hinkley 1997, "Bootstrap Methods and their Application", section 4.2.
    """
    require_resampling(0, confidence)
    if alternative not in _ALTERNATIVES:
        raise SchemaError(f"alternative={alternative!r} is unknown; {nearest(str(alternative), _ALTERNATIVES)}")
    if isinstance(observed, xr.Dataset):
        if draws is not None:
            raise SchemaError("the cube holds the random sets: give it alone, or two arrays of numbers")
        return _of_cube(observed, score, level, alternative, confidence)
    if draws is None:
        raise SchemaError(
            "found numbers of clusters, and those of random sets were needed too: control(*split_controls(scores)); or "
            "give the Dataset of the cube: run['attributions'].to_dataset()"
        )
    if not draws.sizes.get(dim):
        raise SchemaError(f"found draws with {dict(draws.sizes)}, and one or more along {dim!r} was needed; draw 20")
    if dim in observed.dims:
        raise SchemaError(f"what was observed has a dim {dim!r} too; give one number for all draws, see split_controls")
    n = draws.notnull().sum(dim)
    larger, smaller = ((1 + reached.sum(dim)) / (n + 1) for reached in (draws >= observed, draws <= observed))
    p = {"larger": larger, "smaller": smaller, "two-sided": np.minimum(2 * np.minimum(larger, smaller), 1)}[alternative]
    mean = (draws.sum(dim) / n.where(n > 0)).transpose(*p.dims)
    spread = np.sqrt(((draws - mean) ** 2).sum(dim) / (n - 1).where(n > 1))
    known = observed.notnull() & (n > 0)
    low, high = xr.apply_ufunc(
        _band,
        draws if draws.chunks is None else draws.chunk({dim: -1}),
        confidence,
        input_core_dims=[[dim], []],
        output_core_dims=[[], []],
        dask="parallelized",
        output_dtypes=[np.float64] * 2,
    )
    found = {
        "p": p.where(known),
        "draws": n,
        "draw_mean": mean,
        "draw_std": spread,
        "draw_low": low,
        "draw_high": high,
        "excess": observed - mean,
    }
    return xr.Dataset(found).transpose(*observed.dims, ...)


def _of_cube(ds: xr.Dataset, score: str, level: Level, alternative: Alternative, confidence: float) -> xr.Dataset:
    values, whole = beside_whole(ds, score=score, level=level, kinds=("only", "without", "union", "control"))
    difference = (values - whole).transpose(*values.dims)
    along = [name for name, coord in difference.coords.items() if "sample" in coord.dims]
    difference = difference.drop_vars(along)
    observed, drawn = split_controls(difference.mean("sample"))
    found = control(observed, drawn, alternative=alternative, confidence=confidence)
    n, _ = split_controls(difference.notnull().sum("sample"))
    found = found.assign({"observed": observed, "drawn": drawn, "n": n}).drop_vars(["of", "draw"])
    found = found.transpose(
        *(dim for dim in found["p"].dims if dim not in ("map", "attribution")), "map", "attribution", "draw"
    )
    return described(found, ds, score, level).assign_attrs(alternative=alternative, confidence=confidence)


def _band(values: Any, confidence: float) -> tuple[Any, Any]:
    """Return percentiles over the last axis, NaN where all of it is."""
    values = np.moveaxis(np.asarray(values, dtype=np.float64), -1, 0)
    rows = values.reshape(len(values), -1)
    low, high = np.full((2, rows.shape[1]), np.nan)
    known = np.isfinite(rows).any(axis=0)
    low[known], high[known] = percentile_interval(rows[:, known], confidence)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])
