"""Files of the reference: ``import tallies``, and ``export`` of tallies, trajectories, events and metrics."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neurolens.cli.console import Overrides, Profile, Run, Seed, run_in, say, store_of
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
from neurolens.errors import DataError, MissingMeasurementError, StudyError, nearest

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Reading = Annotated[str, typer.Option("--reading", help="Of the concepts cube: paper, or lite.")]
Missing = Annotated[str, typer.Option("--missing", help="Where a checkpoint was not measured: 'error', or 'drop' it.")]
Source = Annotated[
    str | None, typer.Option("--cube", help="concepts, or tallies; default: concepts where they were measured.")
]


def import_tallies(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Holds CHECKPOINT/LAYER/tally.csv or CHECKPOINT/tally.csv.")
    ],
    url: Annotated[str, typer.Option("--store", help="The store to adopt them into; made if there is none.")],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the run; default: the store's, or the folder's.")
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(
            "--order",
            help="The checkpoints in order, first,second,… or with positions, first=300,second=600,…; or a file of "
            "such lines.",
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option("--pattern", help="What their folders are called: 'epoch_{epoch}_iter_{step}'; digits only."),
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="Layers to read, in order; default: all there are.")
    ] = None,
    dim: Annotated[
        str | None, typer.Option("--dim", help="What the positions are: epoch or step; default: step where named.")
    ] = None,
    mismatched: Annotated[
        str, typer.Option("--mismatched", help="Where an IoU contradicts its counts: 'error', or 'nan'.")
    ] = "error",
    differing: Annotated[
        str, typer.Option("--differing", help="Where checkpoints have other concepts: 'error', or 'keep' them.")
    ] = "error",
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="Of an S3-compatible server.")] = None,
    region: Annotated[str | None, typer.Option("--region", help="S3 region.")] = None,
) -> None:
    """Adopt a tree of tally.csv: its concepts are followed from the store like those that neurolens measured.

    Of each category only the best concept is known; one that another displaces is censored, and not dead.
    """
    from neurolens.mortality import read_tallies
    from neurolens.mortality.tally_places import folders_with_tables
    from neurolens.rows.adopting_tallies import adopt_tallies
    from neurolens.store import open_store

    _one_of("--dim", dim, ("epoch", "step"))
    _one_of("--mismatched", mismatched, ("error", "nan"))
    _one_of("--differing", differing, ("error", "keep"))
    found = read_tallies(
        folder,
        layers=layer,
        order=None if order is None else order_of(order),
        pattern=pattern,
        dim=None if dim is None else "epoch" if dim == "epoch" else "step",
        mismatched="nan" if mismatched == "nan" else "error",
        differing="keep" if differing == "keep" else "error",
    )
    series = "epoch" if "epoch" in found.dims else "step"
    say(
        f"{found.sizes[series]} checkpoints by {series}, {found.sizes['unit']} units of "
        f"{', '.join(dict.fromkeys(found['layer'].values.tolist()))}"
    )
    taken = set(found["checkpoint"].values.tolist())
    left = [place.name for place in folders_with_tables(folder) if place.name not in taken]
    if left:
        say(f"passed over, with a tally.csv in them: {', '.join(left)}")
    store = open_store(url, endpoint=endpoint, region=region, create=True)
    run = name or str(store.attributes().get("run") or folder.resolve().name)
    written, known = adopt_tallies(found, store, run=run)
    say(f"{written} rows adopted, {known} there already; store: {store.url}")


def export_tallies(
    run: Run,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write CHECKPOINT/LAYER/tally.csv.")],
    reading: Reading = "paper",
    missing: Missing = "error",
    cube: Source = None,
    profile: Profile = None,
    seed: Seed = None,
) -> None:
    """Write the best concepts of every unit as the reference's dissection does: tally.csv per checkpoint and layer."""
    from neurolens.mortality import export_tallies as export

    known, keep = _read_as(reading, missing)
    paths = export(_cube_of(run, profile, seed, cube), folder, reading=known, missing=keep)
    say(f"wrote {len(paths)} files: {paths[0]} …" if len(paths) > 1 else f"wrote {paths[0]}")


def export_trajectories(
    run: Run,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The trajectories.csv to write.")],
    reading: Reading = "paper",
    missing: Missing = "error",
    cube: Source = None,
    profile: Profile = None,
    seed: Seed = None,
) -> None:
    """Write the best concept of every unit at every checkpoint: trajectories.csv, with the reference's columns."""
    from neurolens.mortality import export_trajectories as export

    known, keep = _read_as(reading, missing)
    say(f"wrote {export(_cube_of(run, profile, seed, cube), path, reading=known, missing=keep)}")


def export_events(
    run: Run,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="For mortality_events, summary and concept_death_counts (.csv).")
    ],
    tau: Tau = None,
    k: K = None,
    hysteresis: Hysteresis = None,
    smoothing_window: SmoothingWindow = None,
    min_alive: MinAlive = None,
    window: Annotated[
        int, typer.Option("--window", help="Of migrations, in checkpoints; with --compat seed, in epochs or steps.")
    ] = 3,
    min_delta: Annotated[
        float, typer.Option("--min-delta", help="Of migrations: by how much the mean score must rise.")
    ] = 0.01,
    by: By = None,
    compat: Compat = None,
    reading: RuleReading = None,
    missing: Missing = "error",
    cube: Source = None,
    profile: Profile = None,
    seed: Seed = None,
) -> None:
    """Write deaths of concepts as the reference does; `functional_dead` is empty where nobody looked."""
    from neurolens.dissection import iou
    from neurolens.mortality import concept_events, migrations
    from neurolens.mortality import export_events as export

    given = {"tau": tau, "k": k, "hysteresis": hysteresis, "smoothing_window": smoothing_window}
    rule = rule_of_runs(
        [run], profile, given | {"min_alive": min_alive, "by": by, "compat": compat, "reading": reading}
    )
    known, keep = _read_as(rule["reading"], missing)
    held = _cube_of(run, profile, seed, cube)
    scores = iou(held, reading=known) if held.attrs["cube"] == "concepts" else held
    options = {name: value for name, value in rule.items() if name != "reading"} | {"missing": keep}
    events = concept_events(scores, **options)
    moved = migrations(scores, window=window, min_delta=min_delta, **options)
    paths = export(events, folder, migrations=moved, functional_dead=_functional(held, events, rule["compat"]))
    deaths = int((events["end"] == "death").sum())
    say(f"{deaths} deaths; wrote {', '.join(map(str, paths))}")
    say(f"by {told(rule, adopted=held.attrs['cube'] == 'tallies')}")


def export_metrics(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study whose training is meant.")],
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The metrics.csv to write.")],
    profile: Profile = None,
    seed: Seed = None,
    overrides: Overrides = None,
) -> None:
    """Write losses, accuracies and learning rate by epoch: metrics.csv, with the reference's columns."""
    from neurolens.checkpoint_files import METRICS
    from neurolens.mortality.exports import export_metrics as export

    loaded = run_in(study, profile, overrides, seed)
    say(f"wrote {export(Path(loaded.checkpoints.folder) / METRICS, path)}")


def order_of(text: str) -> list[str] | dict[str, int]:
    """Return the checkpoints that an --order names: in order, or by position.

    Raises
    ------
    DataError
        If positions are no numbers, or only some have one.
    """
    lines = [text]
    if os.path.isfile(text):  # Path.is_file raises where the list is longer than a file's name can be
        try:
            lines = [line.partition("#")[0] for line in Path(text).read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError as error:
            raise DataError(
                f"{text} is no list of checkpoints ({error}); write name or name=position per line"
            ) from error
    items = [item.strip() for line in lines for item in line.split(",") if item.strip()]
    pairs = [item.rpartition("=") for item in items]
    if not any(sign for _, sign, _ in pairs):
        return items
    wrong = next((item for item, (_, sign, at) in zip(items, pairs) if not sign or not at.strip().isdecimal()), None)
    if wrong is not None:
        raise DataError(f"--order has {wrong!r} beside positions; give all of them one: first=300,second=600")
    found = {name.strip(): int(at) for name, _, at in pairs}
    if len(found) < len(pairs):
        raise DataError("--order names a checkpoint twice; name each once")
    return found


def _cube_of(run: str, profile: str | None, seed: int | None, wanted: str | None) -> "xr.Dataset":
    from neurolens.backend import open_run

    _one_of("--cube", wanted, FOLLOWED)
    place = store_of(run, profile, seed)
    tree = open_run(place.url, endpoint=place.endpoint, region=place.region)
    for name in FOLLOWED if wanted is None else (wanted,):
        if name in tree.children and bool(tree[name]["measured"].any()):
            return tree[name].to_dataset()
    raise MissingMeasurementError(
        f"{place.url}: {' and '.join(FOLLOWED) if wanted is None else wanted} are not in this run, which holds "
        f"{', '.join(tree.children) or 'nothing'}; measure them: `neurolens run STUDY --only concepts`, with a "
        "[concepts] table in the study, or adopt those of another program: `neurolens import tallies DIR --store STORE`"
    )


def _functional(held: "xr.Dataset", events: "pd.DataFrame", compat: str | None) -> "list[Any] | None":
    """Return whether each death was a functional one, as the run's effects tell it; None where there are none."""
    from neurolens.backend import open_run

    if held.attrs["cube"] != "concepts":
        return None
    tree = open_run(held.attrs["url"], endpoint=held.attrs.get("endpoint"), region=held.attrs.get("region"))
    if "effects" not in tree.children:
        return None
    effects = tree["effects"].to_dataset()
    needed = "conductance" if compat else "ablated_logit"
    if needed not in effects:
        say(f"functional_dead is left empty: {needed} was not measured; see [effects] in the study")
        return None
    from neurolens.mortality import functional_death

    flags = functional_death(effects, events, compat="seed" if compat else None)["functional_dead"]
    if flags.isna().any():
        n = int(flags.isna().sum())
        say(f"functional_dead is empty for {n} deaths: not measured around them, or of no use before")
    return list(flags)


def _read_as(reading: str, missing: str) -> tuple[Any, Any]:
    _one_of("--reading", reading, ("paper", "lite"))
    _one_of("--missing", missing, ("error", "drop"))
    return reading, missing


def _one_of(option: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise StudyError(f"{option} {value!r} is unknown; {nearest(value, known)}")
