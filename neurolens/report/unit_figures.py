"""The key figures of units: how many are dormant in the end, where, and whether they come back."""

import xarray as xr

from neurolens import schema
from neurolens.plot import UnitCounts
from neurolens.plot.units_pictures import TAUS, most_dormant, revived_ever
from neurolens.report.records import KeyFigure

LOGS = 4
"""Up to how many adopted logs have a figure each."""
MEANINGS = {
    "dead": ("dead", "never above 0"),
    "lop": ("dormant by lop", "other than 0 in less than 1 % of all observations"),
}


def unit_figures(given: UnitCounts) -> list[KeyFigure]:
    """Gather the numbers of a units cube that say most about the run.

    Parameters
    ----------
    given : UnitCounts
        What `neurolens.plot.unit_counts` returned for it.
    """
    by_definition = given.by_definition
    series = schema.series_dim(by_definition["fraction"])
    position = by_definition[series].values[-1]
    last = by_definition["pooled_fraction"].isel({series: -1})
    further = ", ".join(f"{_last(given.by_tau.sel(tau=tau)):.1%} at {tau:g}" for tau in TAUS[1:])
    tau = float(by_definition["tau"].sel(definition="redo"))
    layers = by_definition.sizes["layer"]
    units = f"{int(given.changes['n_units']):,}"
    found = [
        KeyFigure(units, "units", f"in {layers} layer{'s' if layers > 1 else ''}"),
        KeyFigure(
            f"{float(last.sel(definition='redo')):.1%}",
            "dormant by redo",
            f"at {series} {position}, tau = {tau:g}; {further}",
        ),
    ]
    for name, (called, meaning) in MEANINGS.items():
        if name in by_definition["definition"].values.tolist():
            share = f"{float(last.sel(definition=name)):.1%}"
            found.append(KeyFigure(share, called, f"at {series} {position}: {meaning}"))
    detail = given.by_tau.isel(tau=-1)
    layer, share_of_layer = most_dormant(detail)
    if layers > 1 and share_of_layer > 0:
        meaning = f"{layer}, by redo at {TAUS[-1]:g}, at {series} {position}"
        found.append(KeyFigure(f"{share_of_layer:.1%}", "most dormant layer", meaning))
    if given.changes.sizes["transition"]:
        meaning = f"of {int(given.changes['n_ever']):,} units dormant at some {series} by redo at {TAUS[-1]:g}"
        found.append(KeyFigure(f"{revived_ever(given.changes):,}", "came back", meaning))
    return found


def log_figures(summary: xr.Dataset) -> list[KeyFigure]:
    """Say how many units are dormant at the last checkpoint of each adopted log.

    Parameters
    ----------
    summary : (series, log, layer)
        What `neurolens.dormancy_summary` returned for the `dormancy` cube.
    """
    series = schema.series_dim(summary["fraction"])
    found = []
    for label in summary["log"].values.tolist()[:LOGS]:
        one = summary.isel(log=summary["log"].values.tolist().index(label))
        one = one.dropna(series, subset=["pooled_fraction"])
        where = f"{label}, {series} {one[series].values[-1]}"
        found.append(KeyFigure(f"{_last(one):.1%}", "dormant, as logged", where))
    return found


def _last(summary: xr.Dataset) -> float:
    share = summary["pooled_fraction"]
    return float(share.isel({schema.series_dim(share): -1}))
