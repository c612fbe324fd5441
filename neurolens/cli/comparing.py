"""The command ``compare``: events and survival of several runs, side by side."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from neurolens.cli.console import Profile, console, listing, print_whole, require_picture, say, store_of, study_in
from neurolens.cli.following import (
    FOLLOWED,
    By,
    Compat,
    Hysteresis,
    K,
    MinAlive,
    RuleReading,
    SmoothingWindow,
    Tau,
    rule_of_runs,
    told,
)
from neurolens.errors import MissingMeasurementError, StudyError, nearest

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from neurolens.study import StoreTable

TIMES = 5
"""At how many times the survival curves are read off."""
NAMES = {
    "lives": "lives",
    "births": "births seen",
    "rebirths": "rebirths",
    "deaths": "deaths",
    "alive_at_end": "alive at the end",
    "share_died": "died, of all lives",
    "share_reborn": "reborn, of all deaths",
    "median_lifetime": "median lifetime",
}
SHARES = ("share_died", "share_reborn", "alive")
COLUMNS = ("run", "other", "quantity", "time", "value", "low", "high", "p_value", "p_adjusted")


@dataclass(frozen=True)
class Compared:
    """A run that is compared: its events, and IoU of resampled images by number of the draw, if it has any."""

    events: "pd.DataFrame"
    draws: Any
    adopted: bool = False


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN…", help="Stores, or study files: one that lists seeds means all of them."),
    ],
    tau: Tau = None,
    k: K = None,
    hysteresis: Hysteresis = None,
    smoothing_window: SmoothingWindow = None,
    min_alive: MinAlive = None,
    by: By = None,
    reading: RuleReading = None,
    compat: Compat = None,
    missing: Annotated[
        str, typer.Option("--missing", help="Where a checkpoint was not measured: 'error', or 'drop' it.")
    ] = "error",
    draws: Annotated[int, typer.Option("--draws", help="Resamples of the images, for intervals of the counts.")] = 100,
    draw_seed: Annotated[int, typer.Option("--draw-seed", help="Seed of the resamples.")] = 0,
    confidence: Annotated[float, typer.Option("--confidence", help="Coverage of all intervals.")] = 0.95,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write every number to this file too.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the survival curves to this file.")] = None,
    profile: Profile = None,
) -> None:
    """Compare births, deaths and survival of concepts between runs, with intervals: seeds, or other networks.

    Units are counted and never matched. Counts have intervals of resampled images, shares Wilson's, survival
    Greenwood's, and the mean over runs Student's.
    """
    from neurolens.mortality import compare as side_by_side
    from neurolens.mortality import logrank

    if missing not in ("error", "drop"):
        raise StudyError(f"--missing {missing!r} is unknown; {nearest(missing, ('error', 'drop'))}")
    if draws < 0:
        raise StudyError(f"--draws {draws} is no number of resamples; give 0 for none, or e.g. 100")
    given = {"tau": tau, "k": k, "hysteresis": hysteresis, "smoothing_window": smoothing_window}
    rule = rule_of_runs(runs, profile, given | {"min_alive": min_alive, "by": by, "compat": compat, "reading": reading})
    if plot is not None:
        require_picture("--plot", plot)
    options = {name: value for name, value in rule.items() if name != "reading"} | {"missing": missing}
    found: dict[str, Compared] = {}
    with console.status("reading") as status:
        for name, cube in cubes_of(runs, profile).items():
            status.update(f"reading {escape(name)}")
            found[name] = _events_of(cube, rule["reading"], draws, draw_seed, options)
        status.update("resampling images" if draws else "comparing")
        compared = side_by_side(
            {name: one.events for name, one in found.items()},
            draws={name: one.draws for name, one in found.items() if one.draws is not None},
            n_draws=draws or None,
            confidence=confidence,
        )
    tests = logrank(_pooled(found), by="run") if len(found) > 1 else None
    _show(compared, tests, found, draws)
    say(f"by {told(rule, adopted=all(one.adopted for one in found.values()))}")
    if csv is not None:
        csv.parent.mkdir(parents=True, exist_ok=True)
        _lines(compared, tests).to_csv(csv, index=False)
        say(f"wrote {csv}")
    if plot is not None:
        say(f"wrote {_draw(compared, plot)}")


def cubes_of(runs: list[str], profile: str | None) -> "dict[str, xr.Dataset]":
    """Open what concepts are followed in, by the name of the run.

    Raises
    ------
    StudyError
        If a run is named twice, or is no run.
    MissingMeasurementError
        If no concepts were measured in a run.
    """
    found: dict[str, xr.Dataset] = {}
    places: list[StoreTable] = [place for run in runs for place in _places(run, profile)]
    twice = [place.url for i, place in enumerate(places) if place.url in [other.url for other in places[:i]]]
    if twice:
        raise StudyError(f"{twice[0]} is named twice; name each run once")
    opened = [_opened(place) for place in places]
    names = [str(cube.attrs.get("run") or "run") for cube in opened]
    for place, name, cube in zip(places, names, opened):
        file = os.path.basename(place.url.rstrip("/"))
        found[name if names.count(name) == 1 else f"{name} ({file})"] = cube
    if len(found) < len(places):  # the files are of one name too
        return {place.url: cube for place, cube in zip(places, opened)}
    return found


def _places(run: str, profile: str | None) -> "list[StoreTable]":
    from neurolens.study.seeds import each_seed

    if not run.endswith(".toml"):
        return [store_of(run, profile).model_copy(update={"url": run.rstrip("/")})]
    return [one.store for one in each_seed(study_in(Path(run), profile))]


def _opened(place: "StoreTable") -> "xr.Dataset":
    from neurolens.backend import open_run

    tree = open_run(place.url, endpoint=place.endpoint, region=place.region)
    for name in FOLLOWED:
        if name in tree.children and bool(tree[name]["measured"].any()):
            return tree[name].to_dataset()
    held = f"it holds {', '.join(tree.children)}" if tree.children else "it is empty"
    raise MissingMeasurementError(
        f"{place.url}: no concepts were measured in this run, {held}; measure them: `neurolens run STUDY --only "
        "concepts`, with a [concepts] table in the study, or adopt those of another program: `neurolens import tallies`"
    )


def _events_of(cube: "xr.Dataset", reading: Any, draws: int, seed: int, options: Mapping[str, Any]) -> Compared:
    """Return the events of a run, and what gives the IoU of a draw, where blocks of images were kept."""
    from neurolens.mortality import concept_events

    if cube.attrs["cube"] != "concepts":
        return Compared(concept_events(cube, **options), None, adopted=True)
    from neurolens.dissection import image_draws, iou

    events = concept_events(iou(cube, reading=reading), **options)
    return Compared(events, image_draws(cube, n=draws, seed=seed, reading=reading) if draws else None)


def _pooled(found: Mapping[str, Compared]) -> "pd.DataFrame":
    import pandas as pd

    tables = [
        one.events[["duration", "censored", "birth_seen", "life"]].assign(run=name) for name, one in found.items()
    ]
    for table in tables:
        table.attrs = {}
    return pd.concat(tables, ignore_index=True)


def _show(compared: "xr.Dataset", tests: "pd.DataFrame | None", found: Mapping[str, Compared], draws: int) -> None:
    runs = [str(name) for name in compared["run"].values]
    several = len(runs) > 1
    table = listing(
        f"{len(runs)} runs" if several else runs[0], "", *map(escape, runs), *["mean"] * several, wrapped=()
    )
    for name in compared["quantity"].values.tolist():
        one = compared.sel(quantity=name)
        cells = [_cell(name, *cell) for cell in zip(*(one[part].values for part in ("value", "low", "high")))]
        mean = [_cell(name, *(float(one[part]) for part in ("mean", "mean_low", "mean_high")), mean=True)]
        table.add_row(NAMES[name], *cells, *mean * several)
    for time in times_of(compared):
        one = compared.sel(time=time)
        cells = [_cell("alive", *cell) for cell in zip(*(one[part].values for part in ("survival", "lower", "upper")))]
        table.add_row(f"alive after {time} checkpoint{'s' * (time > 1)}", *cells, *[""] * several)
    print_whole(table)
    share = f"{compared.attrs['confidence']:.0%}"
    say(f"in brackets: {share} intervals; lifetimes are in checkpoints" + (", over runs Student's" if several else ""))
    without = [name for name, one in found.items() if one.draws is None]
    if draws and without:
        say(f"counts of {', '.join(without)} have no intervals: adopted tallies know nothing of single images")
    series = {name: one.events.attrs.get("checkpoints") for name, one in found.items()}
    if any(stamps != series[runs[0]] for stamps in series.values()):
        say("the runs have other checkpoints, and a lifetime counts checkpoints, however far apart they are")
    if tests is None:
        return
    whole, *pairs = tests.to_dict("records")
    say(f"log-rank, of all runs: chi-squared {whole['statistic']:.2f}, p {_p(whole['p_value'])}")
    if len(pairs) > 1:
        table = listing("log-rank, pair by pair", "run", "other", "z", "p", "p by Holm", wrapped=())
        for pair in pairs:
            figures = (f"{pair['statistic']:.2f}", _p(pair["p_value"]), _p(pair["p_adjusted"]))
            table.add_row(escape(pair["group"]), escape(pair["other"]), *figures)
        print_whole(table)


def times_of(compared: "xr.Dataset") -> list[int]:
    """Return a few times to read survival off, evenly over the longest life."""
    import numpy as np

    last = int(compared["time"].values[-1])
    return sorted({int(t) for t in np.rint(np.linspace(0, last, TIMES + 1))[1:] if t >= 1})


def _cell(name: str, value: float, low: float, high: float, *, mean: bool = False) -> str:
    def text(x: float) -> str:
        if x != x:
            return "–"
        return f"{x:.1%}" if name in SHARES else f"{x:.1f}" if mean else f"{x:.0f}"

    return text(value) + (f" \\[{text(low)}, {text(high)}]" if low == low or high == high else "")


def _p(p: float) -> str:
    return "–" if p != p else "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def _lines(compared: "xr.Dataset", tests: "pd.DataFrame | None") -> "pd.DataFrame":
    """Return every number, one line each: quantities of runs and their mean, survival at each time, tests."""
    import pandas as pd

    def rows() -> Iterator[dict[str, Any]]:
        for run in compared["run"].values.tolist():
            one = compared.sel(run=run)
            for at, quantity in enumerate(compared["quantity"].values.tolist()):
                values = {part: float(one[part][at]) for part in ("value", "low", "high")}
                yield {"run": run, "quantity": quantity} | values
            for at, time in enumerate(compared["time"].values.tolist()):
                parts = {"value": "survival", "low": "lower", "high": "upper"}
                yield {"run": run, "quantity": "survival", "time": time} | {
                    part: float(one[name][at]) for part, name in parts.items()
                }
        for at, quantity in enumerate(compared["quantity"].values.tolist() if tests is not None else ()):
            parts = {"value": "mean", "low": "mean_low", "high": "mean_high"}
            yield {"run": "mean", "quantity": quantity} | {
                part: float(compared[name][at]) for part, name in parts.items()
            }
        for line in tests.to_dict("records") if tests is not None else ():
            figures = {name: line[name] for name in ("p_value", "p_adjusted")}
            yield {
                "run": line["group"],
                "other": line["other"],
                "quantity": "logrank",
                "value": line["statistic"],
            } | figures

    table = pd.DataFrame(list(rows()), columns=list(COLUMNS))
    return table.astype({"time": "Int64"})


def _draw(compared: "xr.Dataset", path: Path) -> Path:
    import matplotlib as mpl

    mpl.use("agg")
    from neurolens.plot.concept_survival import survival_curves

    axes = survival_curves(compared)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure: Any = axes.figure
    figure.savefig(path, dpi=150)
    return path
