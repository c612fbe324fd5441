"""Scores of images drawn again: whatever gives them, and what is counted in each draw."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neurolens.dissection.draws import ImageDraws, Values
from neurolens.errors import SchemaError
from neurolens.mortality.events import concept_events
from neurolens.mortality.inputs import PAIR, Trajectories, rule_of, trajectories_of
from neurolens.units.inputs import OnMissing
from neurolens.units.layers_of import held

Draws = xr.DataArray | Callable[[int], xr.DataArray]
"""IoU of resampled images: with a dim `draw`, or a function of its number, as `neurolens.dissection.image_draws`."""

COUNTS = ("lives", "births", "rebirths", "deaths", "alive_at_end")


def counts_of(events: pd.DataFrame) -> dict[str, int]:
    """Count what a table of events holds, by the names of `COUNTS`."""
    return {
        "lives": len(events),
        "births": int(events["birth_seen"].sum()),
        "rebirths": int(events["rebirth"].sum()),
        "deaths": int((~events["censored"]).sum()),
        "alive_at_end": int((events["end"] == "alive").sum()),
    }


def in_strips(draws: Draws, pairs: Any, found: Trajectories, missing: OnMissing) -> Iterator[tuple[slice, Values]]:
    """Yield which pairs of units and concepts, and what gives their IoU (pair, series) in a draw."""
    if not pairs.size:
        return
    if isinstance(draws, ImageDraws):
        drawn = trajectories_of(draws(0), by=PAIR, missing=missing, dim=found.series)
        _alike(found.score, drawn.score)
        yield from draws.of_pairs(pairs[0], pairs[1], _measured_in(draws, found.series))
        return
    unit, concept = (xr.DataArray(row, dims="pair") for row in pairs)

    def values(i: int) -> Any:
        drawn = trajectories_of(_draw(draws, i), by=PAIR, missing=missing, dim=found.series)
        _alike(found.score, drawn.score)
        return drawn.score.isel(unit=unit, concept=concept).transpose("pair", found.series).compute().data

    yield slice(0, pairs.shape[1]), values


def counts_of_images(draws: ImageDraws, n: int, options: dict[str, Any]) -> pd.DataFrame:
    """Count events of the pairs that reach the threshold in any draw: of the others, nothing lives."""
    rule_of(*(options[name] for name in ("tau", "k", "hysteresis", "smoothing_window", "min_alive")))
    found = trajectories_of(draws(0), by=PAIR, missing=options["missing"], dim=options["dim"])
    at = _measured_in(draws, found.series)
    total = pd.DataFrame(0, index=range(n), columns=list(COUNTS))
    options = options | {"by": PAIR, "dim": found.series}
    pairs = draws.reaching(options["tau"], at)
    for _, values in draws.of_pairs(pairs[0], pairs[1], at):
        for i in range(n):
            score = xr.DataArray(values(i).T[..., None], {"concept": [""]}, (found.series, "unit", "concept"))
            total.loc[i] += pd.Series(counts_of(concept_events(score, **options)))
    return total


def _measured_in(draws: ImageDraws, series: str) -> Any:
    """Return the positions along the series that were measured."""
    if "measured" not in draws.concepts.coords:
        return np.arange(draws.concepts.sizes[series])
    return np.flatnonzero(held(draws.concepts["measured"]).astype(bool))


def number_of(draws: Draws, n: int | None) -> int:
    """Return how many draws are looked at: ``n``, or as many as there are.

    Raises
    ------
    SchemaError
        If there is no dim of draws, or it is not known how many there are.
    """
    if isinstance(draws, xr.DataArray):
        if "draw" not in draws.dims:
            raise SchemaError(f"found dims {draws.dims}; draws lie along the dim 'draw', or are given by a function")
        n = draws.sizes["draw"] if n is None else min(n, draws.sizes["draw"])
    elif isinstance(draws, ImageDraws):
        n = len(draws) if n is None else min(n, len(draws))
    if n is None or n < 1:
        raise SchemaError(f"n_draws={n!r}; say how many draws there are, at least 1")
    return n


def each_of(draws: Draws, n: int) -> Iterator[xr.DataArray]:
    """Yield the scores of each draw."""
    for i in range(n):
        yield _draw(draws, i)


def _draw(draws: Draws, i: int) -> xr.DataArray:
    return draws.isel(draw=i, drop=True) if isinstance(draws, xr.DataArray) else draws(i)


def _alike(scores: xr.DataArray, drawn: xr.DataArray) -> None:
    for dim in scores.dims:
        one, other = (data.indexes.get(dim, pd.RangeIndex(data.sizes[dim])) for data in (scores, drawn))
        if not one.equals(other):
            raise SchemaError(
                f"draws have {len(other)} {dim}s and the scores {len(one)}, or other ones; resample what is looked at"
            )
