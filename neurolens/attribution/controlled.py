"""Whether a cluster does more than random sets of as many units."""

import re
from typing import Literal

import numpy as np
import xarray as xr

from neurolens.errors import SchemaError, nearest

Alternative = Literal["larger", "smaller", "two-sided"]

_ALTERNATIVES = ("larger", "smaller", "two-sided")
_CONTROL = re.compile(r"(?P<of>.+) control (?P<draw>\d+)")


def split_controls(scores: xr.DataArray, *, dim: str = "map") -> tuple[xr.DataArray, xr.DataArray]:
    """Split scores into those of maps and those of their random controls, told by name; lazy if they are.

    Parameters
    ----------
    scores : (…, map)
        With names like ``k3/0`` and ``k3/0 control 0``, as `controls` gives them.
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
    for place, name in enumerate(names):
        if match := _CONTROL.fullmatch(name):
            found.setdefault(match["of"], {})[int(match["draw"])] = place
    if not found:
        raise SchemaError(
            f"found no control among {len(names)} maps, such as 'k3/0 control 0'; draw some with controls"
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


def control(
    observed: xr.DataArray, draws: xr.DataArray, *, dim: str = "draw", alternative: Alternative = "larger"
) -> xr.Dataset:
    """Say how often random sets of as many units do as well as a cluster; lazy if they are.

    Parameters
    ----------
    observed : (…)
        A number for each cluster, e.g. the mean drop over the samples.
    draws : (…, draw)
        The same of the random sets (`controls`, `split_controls`).
    dim
        That of the random sets.
    alternative : {"larger", "smaller", "two-sided"}
        What would be remarkable. Two-sided is twice the smaller of the two p-values, at most 1.

    Returns
    -------
    Dataset over the dims of ``observed``
        ``p``: (1 + draws that are as large, or larger) / (draws + 1). With R draws none is below 1 / (R + 1).
        ``draws``: how many are not NaN. ``draw_mean``, ``draw_std`` (ddof 1) of them; ``excess``: observed − mean. NaN
        where ``observed`` is, or there is no draw (of ``draw_std``, one).

    Raises
    ------
    SchemaError
        If there is no such dim or no draw, or the alternative is unknown.

    References
    ----------
    Davison and Hinkley 1997, "Bootstrap Methods and their Application", section 4.2.
    """
    if alternative not in _ALTERNATIVES:
        raise SchemaError(f"alternative={alternative!r} is unknown; {nearest(str(alternative), _ALTERNATIVES)}")
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
    found = {"p": p.where(known), "draws": n, "draw_mean": mean, "draw_std": spread, "excess": observed - mean}
    return xr.Dataset(found).transpose(*observed.dims, ...)
