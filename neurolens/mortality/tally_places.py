"""Where tallies lie: the folders of the checkpoints, in order, and in each the table of a layer; nothing is guessed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from neurolens.errors import DataError, nearest
from neurolens.mortality.tally_files import FILE
from neurolens.study.tables import pattern_fields
from neurolens.units.inputs import listed
from neurolens.units.seed_log import natural

OWN_NAMES = (
    (re.compile(r"epoch[_-](\d+)[_-]iter[_-](\d+)"), ("epoch", "step")),
    (re.compile(r"epoch[_-](\d+)"), ("epoch",)),
    (re.compile(r"(?:iter|step)[_-](\d+)"), ("step",)),
)
"""Names of checkpoints as the reference writes them, and what their numbers are."""

MEND = (
    "give the order: order=['first', 'second', …] (--order first,second,…), positions by name: "
    "order={'first': 14000, …} (--order first=14000,…), or a pattern: pattern='ck_{step}' (--pattern)"
)
"""How names that say too little are mended, from Python and from the command line."""


@dataclass(frozen=True)
class Place:
    """A folder of tallies of one checkpoint, with its position along the series and its other number, if it has one."""

    path: Path
    position: int
    other: int | None = None


def places_in(
    root: Path, order: Sequence[str] | Mapping[str, int] | None, pattern: str | None, dim: str | None
) -> tuple[list[Place], str]:
    """Return the folders of checkpoints in order, and what numbers them: ``epoch`` or ``step``.

    Raises
    ------
    DataError
        If names are ambiguous, or two are at one position.
    """
    if order is not None and pattern is not None:
        raise DataError("found both an order and a pattern; give the one or the other")
    if dim is not None and dim not in ("epoch", "step"):
        raise DataError(f"dim={dim!r} is unknown; {nearest(dim, ('epoch', 'step'))}")
    folders = {p.name: p for p in _folders(root)}
    if order is not None:
        places = _ordered(root, folders, order)
        series = dim or "epoch"
    else:
        places, series = _named(root, folders, pattern, dim)
    twice = [p for p in places if sum(q.position == p.position for q in places) > 1]
    if twice:
        raise DataError(f"{listed([p.path.name for p in twice])} are at the same {series}, {twice[0].position}; {MEND}")
    places = sorted(places, key=lambda p: p.position)
    for before, after in pairwise(places):
        if series == "step" and before.other is not None and after.other is not None and after.other < before.other:
            raise DataError(
                f"{after.path.name} is of a later step and an earlier epoch than {before.path.name}: steps seem to be "
                f"counted anew in every epoch; {MEND}"
            )
    return places, series


def _ordered(root: Path, folders: Mapping[str, Path], order: Sequence[str] | Mapping[str, int]) -> list[Place]:
    at = dict(order) if isinstance(order, Mapping) else {name: i for i, name in enumerate(order)}
    if not at or len(at) != len(order):
        raise DataError("the order names no checkpoint, or one twice; name each folder once")
    for name in at:
        if name not in folders:
            raise DataError(f"the order names {name!r}, which is not in {root}; {nearest(name, folders)}")
    return [Place(folders[name], int(position)) for name, position in at.items()]


def _named(root: Path, folders: Mapping[str, Path], pattern: str | None, dim: str | None) -> tuple[list[Place], str]:
    if pattern is None:
        candidates = {name: path for name, path in folders.items() if _tables(path)}
        found, fields = _by_reference(root, candidates)
    else:
        found, fields = _by_pattern(folders, pattern)
    if not found:
        wanted = f"is called {pattern!r}" if pattern else f"holds a {FILE}"
        raise DataError(f"no folder in {root} {wanted}; {nearest(pattern or FILE, folders)}")
    series = dim or ("step" if "step" in fields else "epoch")
    if series not in fields:
        raise DataError(f"the names of checkpoints tell no {series}, only {', '.join(fields)}; {MEND}")
    at, other = fields.index(series), next((i for i, name in enumerate(fields) if name != series), None)
    return [
        Place(folders[name], numbers[at], None if other is None else numbers[other]) for name, numbers in found.items()
    ], series


def _by_reference(root: Path, folders: Mapping[str, Path]) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    kinds: dict[tuple[str, ...], str] = {}
    for name in folders:
        hits = [(rule.fullmatch(name), fields) for rule, fields in OWN_NAMES]
        match, fields = next(((m, f) for m, f in hits if m), (None, ()))
        if match is None:
            raise DataError(
                f"{name!r} in {root} is no unambiguous name of a checkpoint: it is none of epoch_<n>, "
                f"epoch_<n>_iter_<n> and iter_<n>, with digits only; {MEND}"
            )
        found[name] = tuple(map(int, match.groups()))
        kinds.setdefault(fields, name)
    if len(kinds) > 1:
        raise DataError(
            f"{listed(list(kinds.values()))} in {root} number epochs and steps on one axis; {MEND} that fits one kind"
        )
    return found, next(iter(kinds), ())


def _by_pattern(folders: Mapping[str, Path], pattern: str) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    try:
        fields = pattern_fields(pattern)
    except ValueError as error:
        raise DataError(str(error)) from error
    odd = [name for name in fields if name not in ("epoch", "step")]
    if odd or not fields:
        found = f"has a field {{{odd[0]}}}" if odd else "has no field"
        raise DataError(f"pattern {pattern!r} {found}; {{epoch}} and {{step}} are known, and stand for digits")
    pieces = re.split(r"\{(?:epoch|step)[^}]*\}", pattern)
    rule = re.compile(r"(\d+)".join(re.escape(piece.replace("{{", "{").replace("}}", "}")) for piece in pieces))
    matches = {name: rule.fullmatch(name) for name in folders}
    return {name: tuple(map(int, match.groups())) for name, match in matches.items() if match}, fields


def folders_with_tables(root: Path) -> list[Path]:
    """Return the folders that may be checkpoints, since there is a table in them, in natural order of their names."""
    return sorted((p for p in _folders(root) if _tables(p)), key=lambda p: natural(p.name))


def _folders(root: Path) -> list[Path]:
    return [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]


def _tables(folder: Path) -> list[Path]:
    return [p for p in (folder / FILE, *sorted(folder.glob(f"*/{FILE}"))) if p.is_file()]


def layers_in(places: Sequence[Place], layers: Sequence[str] | None) -> list[str]:
    """Return the layers to read: those named, or all that have a folder, in natural order."""
    if layers is not None:
        if isinstance(layers, str) or not layers or len(set(layers)) < len(layers):
            raise DataError(f"layers={layers!r} is no list of distinct layers; give e.g. layers=['layer4']")
        return list(layers)
    found = {p.parent.name for place in places for p in _tables(place.path) if p.parent != place.path}
    if found:
        return sorted(found, key=natural)
    if not any(_tables(place.path) for place in places):
        raise DataError(f"there is no {FILE} in {listed([p.path for p in places])}; name the folder that holds them")
    raise DataError(
        f"{places[0].path / FILE} lies in no folder of a layer, so its layer is unknown; name it: "
        "layers=['layer4'] (--layer layer4)"
    )


def file_of(folder: Path, layer: str, layers: Sequence[str]) -> Path:
    """Return the table of a layer, in its own folder or in that of the checkpoint."""
    own, shared = folder / layer / FILE, folder / FILE
    if own.is_file():
        return own
    if not shared.is_file():
        there = [p.parent.name for p in _tables(folder)]
        raise DataError(f"{folder} has no {FILE} of layer {layer!r}; {nearest(layer, there)}")
    if len(layers) > 1:
        raise DataError(
            f"{shared} lies in no folder of a layer, so it cannot be of {len(layers)} layers; "
            f"move it to {own}, or read one layer"
        )
    return shared
