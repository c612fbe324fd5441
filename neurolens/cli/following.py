"""By which rule commands follow concepts: what their options say, and where they say nothing, the study's [effects]."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neurolens.cli.console import study_in
from neurolens.errors import StudyError, nearest

if TYPE_CHECKING:
    from neurolens.study.analyses import Effects

FOLLOWED = ("concepts", "tallies")
"""Cubes that concepts are followed in; measured ones come first."""

NONE = "none"
"""What --compat is told where the study names a compatibility and none is wanted."""

Tau = Annotated[
    float | None,
    typer.Option("--tau", help="IoU from which a unit detects a concept; default: of the study's [effects], or 0.04."),
]
K = Annotated[
    int | None,
    typer.Option("--k", help="Checkpoints below tau that confirm a death; default: of the study's [effects], or 3."),
]
Hysteresis = Annotated[
    float | None,
    typer.Option(
        "--hysteresis", help="Share of tau that a dying one falls below it; default: of the study's [effects], or 0."
    ),
]
SmoothingWindow = Annotated[
    int | None,
    typer.Option(
        "--smoothing-window",
        help="Checkpoints of a trailing mean of the scores; default: of the study's [effects], or 1.",
    ),
]
MinAlive = Annotated[
    int | None,
    typer.Option(
        "--min-alive", help="Alive checkpoints that a life needs to count; default: of the study's [effects], or 1."
    ),
]
By = Annotated[
    str | None,
    typer.Option("--by", help="Follow each concept of a unit (unit-concept, the default), or each unit."),
]
Compat = Annotated[
    str | None,
    typer.Option("--compat", help="'seed': the reference's single event a unit; 'none', where the study says so."),
]
RuleReading = Annotated[
    str | None, typer.Option("--reading", help="Of IoU: paper, or lite; default: of the study's [effects], or paper.")
]

_CHOICES = {"by": ("unit-concept", "unit"), "compat": ("seed", NONE), "reading": ("paper", "lite")}
_DEFAULTS: dict[str, Any] = {"tau": 0.04, "k": 3, "hysteresis": 0.0, "by": None, "compat": None}
_DEFAULTS |= {"smoothing_window": 1, "min_alive": 1, "reading": "paper"}


def rule_of_runs(runs: Sequence[str], profile: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reading, and the options of `neurolens.concept_events`, by which all runs are followed.

    Parameters
    ----------
    runs : studies and stores
        The [effects] of a study say how its concepts live and die, on its pictures too.
    profile : of the studies
    given : options by name, None where they are absent

    Raises
    ------
    StudyError
        If an option is unknown, or it is absent and studies disagree on it.
    """
    for name, known in _CHOICES.items():
        if given.get(name) is not None and given[name] not in known:
            raise StudyError(f"--{name} {given[name]!r} is unknown; {nearest(given[name], known)}")
    tables = [study_in(Path(run), profile).effects for run in runs if run.endswith(".toml")]
    said = [_said(table) for table in tables if table is not None]
    out = _DEFAULTS | {name: value for name, value in given.items() if value is not None}
    for name in (name for name in _DEFAULTS if given.get(name) is None and said):
        values = [one[name] for one in said]
        if any(value != values[0] for value in values):
            raise StudyError(
                f"the [effects] of the studies follow concepts by other rules, {name} = "
                f"{', '.join(map(str, dict.fromkeys(values)))}; compare by one: --{name.replace('_', '-')}"
            )
        out[name] = values[0]
    if out["compat"] == NONE:
        out["compat"] = None
    if out["compat"] == "seed" and given.get("by") is None:  # it has units only
        out["by"] = None
    return out


def told(rule: Mapping[str, Any], *, adopted: bool = False) -> str:
    """Say in words by which rule concepts were followed; adopted tallies have a reading of their own."""
    words = [f"tau = {rule['tau']:g}", f"k = {rule['k']}"]
    words += [f"hysteresis {rule['hysteresis']:g}"] if rule["hysteresis"] else []
    words += [f"smoothed over {rule['smoothing_window']} checkpoints"] if rule["smoothing_window"] > 1 else []
    words += [f"at least {rule['min_alive']} checkpoints alive"] if rule["min_alive"] > 1 else []
    words += ["by unit"] if rule["by"] == "unit" and not rule["compat"] else []
    words += [f"compat {rule['compat']}"] if rule["compat"] else []
    return f"{', '.join(words)}; reading: {'as adopted' if adopted else rule['reading']}"


def _said(table: "Effects") -> dict[str, Any]:
    return {name: getattr(table, name) for name in _DEFAULTS}
