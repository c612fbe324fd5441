"""Which files a study's checkpoints are: by explicit list, or by a pattern of names with fields."""

import difflib
import os
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from neurolens.checkpoint_folders import is_model_folder
from neurolens.errors import CheckpointError, MissingCheckpointError, StudyError, nearest
from neurolens.fingerprints import digest
from neurolens.study import OPEN_CLIP, CheckpointFile
from neurolens.study import Checkpoints as Table

RESUME, LOCK, WRITING, METRICS = ".resume.pt", ".train.lock", ".writing.tmp", "metrics.csv"  # training's own files
UNFINISHED = (".tmp", ".temp", ".part", ".partial", ".crdownload", "~")
POSITION = r"\d{1,18}"  # fits int64


@dataclass(frozen=True)
class Found:
    """A file, or a folder that save_pretrained wrote, with what its name, or the list, says of it.

    ``fields`` are the pattern's further ones, sorted by name.
    """

    path: Path
    epoch: int | None
    step: int | None
    fields: tuple[tuple[str, str], ...] = ()


def listed(files: Sequence[CheckpointFile], *, download: bool = False) -> list[Found]:
    """Check an explicit list of files; published weights are fetched where ``download`` allows it."""
    found: dict[str, Found] = {}
    for file in files:
        path = _path_of(file, download)
        if min(v for v in (file.epoch, file.step) if v is not None) < 0:
            raise StudyError(f"'{path}' in checkpoints.files has a negative epoch or step; they count from 0")
        if not path.is_file() and not is_model_folder(path):
            digest(path)  # says what is there instead
            raise CheckpointError(f"'{path}' is not a regular file; list a file that torch.save wrote")
        name = os.path.abspath(path)
        if name in found:
            raise CheckpointError(f"'{path}' is listed twice in checkpoints.files; remove one of the two entries")
        found[name] = Found(path, file.epoch, file.step)
    return list(found.values())


def _path_of(file: CheckpointFile, download: bool) -> Path:
    if file.path is not None:
        return file.path
    name = file.weights or ""
    if name.startswith(OPEN_CLIP):
        from neurolens import clip_weights  # needs open_clip

        return clip_weights.published(name, download=download)
    from neurolens.published_weights import published  # needs torchvision

    return published(name, download=download)


def _part_regex(part: str, pattern: str) -> re.Pattern[str]:
    """Turn one path component of a pattern into a regular expression.

    Fields are those of `str.format`, which training writes names with; a format such as ``{epoch:04d}`` is allowed,
    and numbers match with any number of leading zeros.
    """
    regex = ""
    beside = False
    for literal, name, _, _ in string.Formatter().parse(part):
        if beside and not literal and name is not None:
            raise StudyError(f"checkpoints.pattern {pattern!r} has two fields side by side; put text between them")
        regex += re.escape(literal)
        if name is not None:
            kind = POSITION if name in ("epoch", "step") else r"[^/]+?"
            regex += f"(?P={name})" if f"(?P<{name}>" in regex else f"(?P<{name}>{kind})"
        beside = name is not None
    return re.compile(regex)


def matched(table: Table, notes: list[str]) -> list[Found]:
    """Return the files of the folder that match the pattern and its required fields."""
    parts = [p for p in table.pattern.split("/") if p not in ("", ".")]
    regexes = [_part_regex(p, table.pattern) for p in parts]
    names = {name for regex in regexes for name in regex.groupindex}
    if reserved := names & {"epoch", "step"} & set(table.fields):
        raise StudyError(
            f"checkpoints.fields cannot hold {min(reserved)!r}; select with checkpoints.start, end and stride"
        )
    if not table.folder.is_dir():
        raise MissingCheckpointError(_no_folder(table))

    passed: dict[str, list[str]] = {"match": [], "unfinished": [], "folder": []}
    found = list(_walk(table.folder, regexes, passed))
    if passed["unfinished"]:
        notes.append(f"unfinished files passed over: {some(passed['unfinished'])}")
    if passed["folder"]:
        notes.append(
            "folders passed over, a checkpoint is one file, or a folder with a config.json and weights: "
            f"{some(passed['folder'])}"
        )
    if not found:
        raise MissingCheckpointError(_no_match(table))
    if passed["match"]:
        notes.append(f"files that do not match {table.pattern!r} passed over: {some(passed['match'])}")
    return _filtered(table, found, notes)


def _walk(folder: Path, regexes: list[re.Pattern[str]], passed: dict[str, list[str]]) -> Iterator[Found]:
    """Yield the files that match, component by component, in order of their names."""

    def descend(folder: Path, depth: int, known: dict[str, str]) -> Iterator[Found]:
        last = depth == len(regexes) - 1
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda e: e.name)
        for entry in entries:
            match = regexes[depth].fullmatch(entry.name)
            if not last:
                if match and entry.is_dir() and (fields := _merged(known, match.groupdict())) is not None:
                    yield from descend(Path(entry.path), depth + 1, fields)
                continue
            if entry.name in (RESUME, LOCK, WRITING, METRICS):
                continue
            if entry.name.startswith(".") or entry.name.lower().endswith(UNFINISHED) or ".tmp" in entry.name:
                passed["unfinished"].append(entry.name)
            elif entry.is_dir() and not is_model_folder(Path(entry.path)):
                if match:
                    passed["folder"].append(entry.name)
            elif (
                match
                and (entry.is_file() or entry.is_dir())
                and (fields := _merged(known, match.groupdict())) is not None
            ):
                number = {name: int(fields[name]) if name in fields else None for name in ("epoch", "step")}
                others = tuple(sorted((k, v) for k, v in fields.items() if k not in number))
                yield Found(Path(entry.path), number["epoch"], number["step"], others)
            else:
                passed["match"].append(entry.name)

    yield from descend(folder, 0, {})


def _merged(known: dict[str, str], new: dict[str, str]) -> dict[str, str] | None:
    """Join the fields of two path components; None if they give one field two values."""
    for name, value in new.items():
        if name in known and known[name] != value:
            same_number = name in ("epoch", "step") and int(known[name]) == int(value)
            if not same_number:
                return None
    return known | new


def _filtered(table: Table, matched: list[Found], notes: list[str]) -> list[Found]:
    """Keep the files whose further fields have the required values."""
    for field, wanted in table.fields.items():
        values = sorted({dict(f.fields)[field] for f in matched}, key=_natural)
        matched = [f for f in matched if _equals(dict(f.fields)[field], wanted)]
        if not matched:
            raise MissingCheckpointError(
                f"no checkpoint in '{table.folder}' has {field} = {wanted!r}; found {some(values)}; "
                f"set checkpoints.fields.{field} to one of them"
            )
        if others := [v for v in values if not _equals(v, wanted)]:
            notes.append(f"files of other {field} passed over: {some(others)}")
    for field in sorted({name for f in matched for name, _ in f.fields} - set(table.fields)):
        values = sorted({dict(f.fields)[field] for f in matched}, key=_natural)
        if 1 < len(values) < len(matched):
            notes.append(f"files differ in {field}: {some(values)}; keep one with checkpoints.fields.{field}")
    return matched


def _equals(text: str, wanted: str | int | float) -> bool:
    if isinstance(wanted, str):
        return text == wanted
    try:
        return float(text) == wanted
    except ValueError:
        return False


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key that orders the numbers within a text by their value."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", text) if p]


def _no_folder(table: Table) -> str:
    parent = table.folder.parent
    near = f"nor is there '{parent}'"
    if parent.is_dir():
        near = nearest(table.folder.name, [p.name for p in parent.iterdir() if p.is_dir()])
    return (
        f"there is no folder '{table.folder}' to look for {table.pattern!r} in; {near}; "
        "set checkpoints.folder, or train first: neurolens run STUDY --only train"
    )


def _no_match(table: Table) -> str:
    """Say which files are there instead, and a pattern that they suggest."""
    with os.scandir(table.folder) as scan:
        names = sorted((e.name + "/" if e.is_dir() else e.name for e in scan), key=_natural)
    if not names:
        return (
            f"folder '{table.folder}' is empty; {table.pattern!r} was looked for; "
            "train first (neurolens run STUDY --only train), or set checkpoints.folder"
        )
    example = re.sub(r"\{\w+\}", "0", table.pattern)
    near = difflib.get_close_matches(example, names, n=3, cutoff=0.0)
    guess = re.sub(r"(?i)(epoch\W?_?)\d+", r"\1{epoch}", near[0])
    guess = re.sub(r"(?i)((?:step|iter|itr|iteration)\W?_?)\d+", r"\1{step}", guess)
    mend = f"set checkpoints.pattern, perhaps to {guess!r}" if guess != near[0] else "set checkpoints.pattern or folder"
    return (
        f"no file in '{table.folder}' matches {table.pattern!r}; nearest of the {len(names)} there: "
        f"{', '.join(map(repr, near))}; {mend}"
    )


def some(names: Sequence[str], shown: int = 5) -> str:
    """Write the first few names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def spans(positions: Iterable[int], shown: int = 6) -> str:
    """Write numbers shortly: 0–9, 12, or 0, 10, …, 190 where they are evenly spaced."""
    numbers = sorted(set(positions))
    steps = {b - a for a, b in pairwise(numbers)}
    if len(numbers) > 3 and len(steps) == 1 and steps != {1}:
        return f"{numbers[0]}, {numbers[1]}, …, {numbers[-1]}"
    found: list[tuple[int, int]] = []
    for n in numbers:
        found = [*found[:-1], (found[-1][0], n)] if found and n == found[-1][1] + 1 else [*found, (n, n)]
    texts = [str(a) if a == b else f"{a}–{b}" for a, b in found]
    return ", ".join(texts if len(texts) <= shown else [*texts[: shown - 2], "…", *texts[-2:]])
