"""Dormancy logs in the reference's CSV: written from a units cube, and read into a labelled Dataset.

One line per (model, revision, step, threshold, layer). Lines end in CR LF, as csv.DictWriter's do.
"""

import csv
import datetime
import io
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.errors import DataError, nearest
from neurolens.units.dormancy import dormant

COLUMNS = (
    "timestamp",
    "model",
    "revision",
    "step",
    "threshold",
    "layer_name",
    "layer_index",
    "num_neurons",
    "num_dormant",
    "pct_dormant",
    "avg_activation",
    "max_activation",
)
KEY = ("model", "revision", "step", "threshold", "layer_name")
FIGURES = ("num_neurons", "num_dormant", "pct_dormant", "avg_activation", "max_activation")
TRUE_MAX = "true_max_activation"
ABSENT = "N/A"

Line = dict[str, Any]


def export_dormancy(
    units: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    model: str,
    tau: float = 0.1,
    mode: Literal["append", "write"] = "append",
    compat: Literal["seed"] | None = None,
    revision: str | None = None,
    true_max: bool = False,
    missing: Literal["error", "drop"] = "error",
) -> Path:
    """Write the dormant units of every layer and checkpoint as the reference logs them, and return the path.

    A unit is dormant where its mean absolute activation is at most ``tau`` times that of its layer (`dormant`,
    definition ``redo``). The file is replaced as a whole: killed at any time, it is the old one or the new one.

    Parameters
    ----------
    units : (series, unit)
        The units cube.
    path
        The CSV. With ``mode="append"`` lines that are there stay, but for those of the same model, revision, step,
        threshold and layer, which are replaced; with ``"write"`` the file is made anew.
    model
        What the lines call the model.
    tau
        The threshold, relative to the layer's mean.
    compat
        ``"seed"`` numbers layers by the lexicographic order of their names, as the reference does (``layers.10`` comes
        before ``layers.2``), and writes them in that order. Absent: in the order in which they fire.
    revision
        What the lines say of the checkpoint, with ``{step}`` or ``{epoch}`` in it. Absent: N/A by step, and
        ``epoch {epoch}`` by epoch, where the column ``step`` holds the step if it is known, else the epoch.
    true_max
        Add a column ``true_max_activation``, the largest activation of a unit. ``max_activation`` is, as in the
        reference, the largest of the *mean absolute* activations.
    missing
        Raise where a checkpoint was not measured, or leave it out.

    Raises
    ------
    DataError
        If the file is not such a log, or cannot be written.
    MissingMeasurementError
        If checkpoints were not measured, naming them.
    """
    path = Path(path)
    lines = _lines(units, model, tau, compat, revision, missing)
    columns = (*COLUMNS, TRUE_MAX) if true_max else COLUMNS
    kept = _read(path, columns) if mode == "append" else []
    replaced = {_key(line) for line in lines}
    kept = [line for line in kept if _key(line) not in replaced]
    _replace(path, [{name: line[name] for name in columns} for line in (*kept, *lines)], columns)
    return path


def _lines(
    units: xr.Dataset, model: str, tau: float, compat: str | None, revision: str | None, missing: Any
) -> list[Line]:
    dim = schema.require(units, "n", "abs_sum", "max", "min")
    mask = dormant(units, "redo", tau=tau, missing=missing)
    data = units.sel({dim: mask[dim].values})[["n", "abs_sum", "max", "min"]].compute()
    asleep = mask.transpose(dim, "unit").values
    data = data.transpose(dim, "unit")
    mean = data["abs_sum"].values / data["n"].values
    largest = np.maximum(np.abs(data["max"].values), np.abs(data["min"].values))
    names = np.asarray(units["layer"].values.tolist(), str)
    layers = list(dict.fromkeys(names.tolist()))
    if "layer_index" in units.coords:
        first = {name: int(units["layer_index"].values[names == name][0]) for name in layers}
        layers.sort(key=first.__getitem__)
    if compat == "seed":
        layers.sort()
    stamp = datetime.datetime.now().isoformat()
    out = []
    for row, position in enumerate(data[dim].values.tolist()):
        known = {dim: position}
        if "step" in data.coords and dim == "epoch" and np.isfinite(data["step"].values[row]):
            known["step"] = int(data["step"].values[row])
        for index, layer in enumerate(layers):
            at = names == layer
            count, off = int(at.sum()), int(asleep[row, at].sum())
            out.append(
                {
                    "timestamp": stamp,
                    "model": model,
                    "revision": _revision(revision, dim, known),
                    "step": known.get("step", position),
                    "threshold": tau,
                    "layer_name": layer,
                    "layer_index": index,
                    "num_neurons": count,
                    "num_dormant": off,
                    "pct_dormant": round(100 * off / count, 4),
                    "avg_activation": round(float(mean[row, at].mean()), 6),
                    "max_activation": round(float(mean[row, at].max()), 6),
                    TRUE_MAX: round(float(largest[row, at].max()), 6),
                }
            )
    return out


def _key(line: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a line speaks of; thresholds are compared as numbers, however they are written."""
    try:
        threshold = repr(float(line["threshold"]))
    except ValueError:
        threshold = str(line["threshold"])
    return (*(str(line[name]) for name in KEY if name != "threshold"), threshold)


def _revision(pattern: str | None, dim: str, known: Mapping[str, int]) -> str:
    if pattern is None:
        return ABSENT if dim == "step" else f"epoch {known['epoch']}"
    try:
        return pattern.format(**known)
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(
            f"revision {pattern!r} cannot be filled in ({error}); known here: {', '.join(map(repr, known))}"
        ) from error


def _read(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read the lines of a log; none where the file is absent or empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a mark at the beginning
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a log ({error}); name another file") from error
    if not text.strip():
        return []
    reader = csv.DictReader(io.StringIO(text))
    found = tuple(reader.fieldnames or ())
    _require_columns(path, found, columns)
    lines = list(reader)
    if any(None in line or None in line.values() for line in lines):
        raise DataError(f"{path} has lines of another length than its header; mend or remove them")
    return lines


def _require_columns(path: Path, found: Sequence[str], columns: Sequence[str]) -> None:
    if tuple(found) == tuple(columns):
        return
    lacking = [name for name in columns if name not in found]
    more = [name for name in found if name not in columns]
    if lacking == [TRUE_MAX] or more == [TRUE_MAX]:
        verb = "lacks" if lacking else "has"
        mend = "append without it" if lacking else "append with it"
        raise DataError(f"{path} {verb} the column {TRUE_MAX!r}; {mend}, or write another file")
    raise DataError(
        f"{path} is no dormancy log: it has columns {', '.join(found) or 'none'}; "
        f"{'lacking: ' + ', '.join(lacking) if lacking else 'needed, in this order: ' + ', '.join(columns)}; "
        "name another file"
    )


def _replace(path: Path, lines: Iterable[Line], columns: Sequence[str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", newline="", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as draft:
            writer = csv.DictWriter(draft, columns)
            writer.writeheader()
            writer.writerows(lines)
        os.chmod(draft.name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.replace(draft.name, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); name a folder you may write to") from error


def read_log(path: str | os.PathLike[str]) -> tuple[xr.Dataset, tuple[str, ...]]:
    """Read a dormancy log of the reference, and say what was found in it.

    Models and thresholds are kept apart along `log`. Where lines say the same of the same model, threshold, step and
    layer twice, the last one counts, and a note says so; the reference averages them.

    Returns
    -------
    log : Dataset (step, log, layer)
        num_neurons, num_dormant, pct_dormant (%), avg_activation, max_activation; NaN where there is no line. Layers
        are in natural order. Coordinates `model`, `threshold` (log,).
    notes
        What was passed over.

    Raises
    ------
    DataError
        If the file is not such a log, has no line with a number as its step, or a number in it is none.
    """
    path = Path(path)
    if not path.exists():
        near = [p.name for p in path.parent.glob("*.csv")] if path.parent.is_dir() else []
        raise DataError(f"{path}: there is no such file; {nearest(path.name, near)}")
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = tuple(next(csv.reader(file), ()))
    lines = _read(path, (*COLUMNS, TRUE_MAX) if TRUE_MAX in header else COLUMNS)
    notes = []
    dated = [(line, step) for line in lines if (step := _step(line["step"])) is not None]
    if len(dated) < len(lines):
        notes.append(f"{_lines_of(len(lines) - len(dated))} without a number as step passed over")
    if not lines:
        raise DataError(f"{path} holds no line of a log; name a log that was written to")
    if not dated:
        raise DataError(f"{path} has no line with a number as its step; name a log of several checkpoints")
    figures: dict[tuple[int, tuple[str, float], str], list[float]] = {}
    twice = 0
    for line, step in dated:
        numbers = [_number(path, line, name) for name in ("threshold", *FIGURES)]
        at = (step, (line["model"], numbers[0]), line["layer_name"])
        twice += at in figures
        figures[at] = numbers[1:]
    if twice:
        notes.append(f"{_lines_of(twice)} logged again later; the last of each counts")
    silent = sum(figure[1] == 0 and figure[3] == 0 for figure in figures.values())  # num_dormant, avg_activation
    if silent:
        notes.append(
            f"{_lines_of(silent)} of layers that are silent as a whole, of whose units the reference counts none as "
            "dormant; taken as logged"
        )
    steps = sorted({step for step, _, _ in figures})
    logs = sorted({log for _, log, _ in figures})
    layers = sorted({layer for _, _, layer in figures}, key=natural)
    cells = np.full((len(FIGURES), len(steps), len(logs), len(layers)), np.nan)
    where = [{value: i for i, value in enumerate(values)} for values in (steps, logs, layers)]
    for at, numbers in figures.items():
        cells[:, where[0][at[0]], where[1][at[1]], where[2][at[2]]] = numbers
    coords = {
        "step": steps,
        "log": [f"{name} at {threshold:g}" for name, threshold in logs],
        "layer": layers,
        "model": ("log", [name for name, _ in logs]),
        "threshold": ("log", [threshold for _, threshold in logs]),
    }
    declared = {v.name: v for v in schema.DORMANCY.variables}
    variables = {name: (("step", "log", "layer"), cells[i], declared[name].attrs) for i, name in enumerate(FIGURES)}
    return xr.Dataset(variables, coords, attrs={"imported_from": str(path)}), tuple(notes)


def _lines_of(count: int) -> str:
    return f"{count} line{'s' * (count != 1)}"


def _step(text: str) -> int | None:
    """Return a step as the reference's plots read it; None where it is no number."""
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        return None


def _number(path: Path, line: Mapping[str, str], name: str) -> float:
    try:
        return float(line[name])
    except ValueError:
        raise DataError(
            f"{path}: {name} of layer {line['layer_name']!r} at step {line['step']} is {line[name]!r}; "
            "a number was needed: mend that line"
        ) from None


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return what sorts names in natural order: ``layers.2`` before ``layers.10``."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", name) if p)
