"""Commands that look: ``status`` and ``show``."""

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from neurolens.cli.console import Overrides, Profile, Run, Seed, console, listing, run_in, say, store_of, study_in
from neurolens.errors import MissingCheckpointError

if TYPE_CHECKING:
    from neurolens.rows import Plan, Row
    from neurolens.study import Study

COLOURS = {"done": "green", "missing": "yellow", "stale": "magenta", "failed": "red"}
UNTRAINED = (("", "none yet", "[yellow]missing[/]", "0", "train"),)


def status(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file.")],
    profile: Profile = None,
    seed: Seed = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is done, missing, stale or failed, and why: cubes × checkpoints. Nothing is computed or written.

    Of a study that lists seeds, what is the same in several runs is told once.
    """
    from neurolens.checkpoint_files import spans
    from neurolens.study.seeds import each_seed, require_checkpoints

    loaded = study_in(study, profile, overrides) if seed is None else run_in(study, profile, overrides, seed)
    require_checkpoints(loaded)
    planned = [(one.name, _plans(one, untrained=bool(loaded.seeds))) for one in each_seed(loaded)]
    if as_json:
        named = ((plan, {"run": run} if loaded.seeds else {}) for run, plans in planned for plan in plans or ())
        typer.echo(json.dumps([run | _as_dict(plan) for plan, run in named], indent=2))
        return
    lines: dict[tuple[str, ...], list[int]] = {}
    for which, (_, plans) in zip(loaded.seeds or (0,), planned):
        for line in UNTRAINED if plans is None else _lines(plans):
            lines.setdefault(line, []).append(which)
    names = (*(["seeds"] if loaded.seeds else []), "cube", "checkpoints", "state", "rows", "to do, and why")
    place = ", ".join(one.store.url for one in each_seed(loaded))
    table = listing(f"{loaded.name}: {place}", *names, wrapped=("checkpoints", "to do, and why"))
    for line, seeds in sorted(lines.items(), key=lambda entry: entry[1]):
        table.add_row(*([spans(seeds)] if loaded.seeds else []), *line)
    console.print(table)
    plans = [plan for _, found in planned for plan in found or ()]
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):  # of the checkpoints, which cubes share
        say(note)
    for detail in dict.fromkeys(detail for plan in plans for detail in plan.details):
        console.print(f"[dim]{escape(detail)}[/]")
    for text in dict.fromkeys(f"{plan.cube}: the next run will {plan.change}" for plan in plans if plan.change):
        say(text)
    if any(plan.todo for plan in plans) or any(found is None for _, found in planned):
        given = [f"--profile {profile}"] if profile else []
        given += [f"--seed {seed}"] if seed is not None else []
        given += [f"--set '{text}'" for text in overrides or ()]
        say(" ".join(["to do: neurolens run", str(study), *given]))


def _plans(study: "Study", *, untrained: bool) -> "list[Plan] | None":
    """Return the plan of each cube; None where there is no checkpoint yet, if that may be."""
    from neurolens import rows

    store = rows.open_for_reading(study)
    try:
        return [rows.plan(materials, store) for materials in rows.gather_all(study, rows.cubes(study))]
    except MissingCheckpointError:
        if not untrained or study.train is None:
            raise
        return None


def _lines(plans: "list[Plan]") -> Iterator[tuple[str, ...]]:
    """Return the lines of the table: rows of one cube that are in the same state for the same reason."""
    from neurolens.checkpoint_files import spans

    for plan in plans:
        for group in _alike(plan.rows):
            first = group[0]
            yield (
                plan.cube,
                f"{plan.series} {spans(row.position for row in group)}",
                f"[{COLOURS[first.state]}]{first.state}[/]",
                str(len(group)),
                escape("\n".join(filter(None, (", ".join(first.missing), first.why)))),
            )
        if plan.kept:
            why = "the study does not name them now"
            yield plan.cube, f"{plan.series} {spans(plan.kept)}", "kept", str(len(plan.kept)), why


def _alike(rows: Iterable["Row"]) -> Iterator[list["Row"]]:
    """Gather rows of one state, reason and parts, in order of their first position."""
    ordered = sorted(rows, key=lambda row: (row.state, row.why, row.missing, row.block, row.position))
    groups = [list(g) for _, g in groupby(ordered, key=lambda row: (row.state, row.why, row.missing, row.block))]
    yield from sorted(groups, key=lambda group: (group[0].position, group[0].block))


def _as_dict(plan: "Plan") -> dict[str, Any]:
    return {
        "cube": plan.cube,
        "series": plan.series,
        "change": plan.change,
        "notes": list(plan.notes),
        "details": list(plan.details),
        "kept": list(plan.kept),
        "rows": [
            {"position": r.position, "block": r.block, "state": r.state, "missing": list(r.missing), "why": r.why}
            for r in plan.rows
        ],
    }


def show(
    run: Run,
    history: Annotated[int, typer.Option("--history", help="How many snapshots to list.")] = 5,
    profile: Profile = None,
    seed: Seed = None,
) -> None:
    """Show what is in a run: variables and their sizes, provenance, tags and history."""
    from neurolens.backend import open_run
    from neurolens.checkpoint_files import spans
    from neurolens.schema import CUBES
    from neurolens.store import open_store

    place = store_of(run, profile, seed)
    store = open_store(place.url, endpoint=place.endpoint, region=place.region, readonly=True)
    console.print(f"[bold]{escape(str(store.attributes().get('run')))}[/]  {escape(store.url)}")
    for cube in CUBES.values():
        ledger = store.ledger(cube.name)
        if not ledger.exists:
            continue
        opened = open_run(place.url, endpoint=place.endpoint, region=place.region)[cube.name]
        sizes = {dim: opened.sizes[cube.opened(dim)] for dim in cube.dims if cube.opened(dim) in opened.sizes}
        across = "".join(f" × {n} {cube.opened(dim)}s" for dim, n in sizes.items() if dim in ("sample", "unit"))
        title = f"{cube.name}: {len(ledger)} {ledger.series}s{across}, generation {ledger.generation}"
        table = listing(title, "variable", "part", "rows", "size", "meaning, units", wrapped=("meaning, units",))
        for part in cube.parts:
            done = _done(ledger, part.name)
            for variable in part.variables if done else ():
                size = done * prod(sizes.get(d, 1) for d in variable.dims) * _itemsize(variable.dtype)
                meaning = f"{variable.description}, {variable.units}" if variable.units != "1" else variable.description
                table.add_row(variable.name, part.name, str(done), _bytes(size), escape(meaning))
        console.print(table)
        rows = [entry for entry in ledger.rows() if ledger.named[entry.block]]
        failed = dict.fromkeys((e.position, e.error) for e in rows if e.state == "failed")
        for position, error in failed:
            console.print(f"[red]failed[/] {ledger.series} {position}: {escape(error)}")
        other = {entry.position for entry in rows if entry.state == "done" and not entry.current}
        if other:
            where = f"{ledger.series} {spans(other)}"
            say(f"measured under other settings, and so not shown: {where}; run the study again, if it names them")
        say(f"positions: {spans(ledger.positions.tolist())}")
        for name in ("data", "model", "parts", "exposure", "previous_snapshot"):
            if ledger.settings.get(name):
                say(f"{name}: {json.dumps(ledger.settings[name], ensure_ascii=False)}")
        for text in _provenance(ledger):
            say(f"measured with: {text}")
    tags = store.tags()
    if tags:
        say("tags: " + ", ".join(f"{name} ({snapshot})" for name, snapshot in tags.items()))
    table = listing("history, newest first", "snapshot", "time", "what", wrapped=("what",))
    for _, snapshot in zip(range(history), store.history()):
        table.add_row(snapshot.id, f"{snapshot.time:%Y-%m-%d %H:%M:%S}", escape(snapshot.message))
    console.print(table)
    say(f"open it: neurolens.open_run({store.url!r})")


def _done(ledger: Any, part: str) -> int:
    rows = (entry for entry in ledger.rows() if entry.part == part and ledger.named[entry.block])
    return len({entry.position for entry in rows if entry.state == "done" and entry.current})


def _itemsize(dtype: str) -> int:
    import numpy as np

    return int(np.dtype(dtype).itemsize)


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _provenance(ledger: Any) -> list[str]:
    """Return each distinct way in which rows were measured, less what differs by checkpoint and what they hold."""
    from neurolens.rows.holding import HELD
    from neurolens.rows.leaving_out import UNNAMED

    texts = set()
    for entry in ledger.rows():
        fields = json.loads(entry.provenance) if entry.provenance else {}
        kept = {name: value for name, value in fields.items() if name not in ("checkpoint", "digest", HELD, UNNAMED)}
        if kept:
            texts.add(json.dumps(kept, sort_keys=True))
    return sorted(texts)
