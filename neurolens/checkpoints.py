"""The ordered series of a run's checkpoints: discover, select, order and fingerprint. Needs no torch.

What fills networks is imported on first use: `read_state`, `fill` and `non_finite` of `neurolens.weights`, `refill` of
`neurolens.refilling`, and `load` of `neurolens.folder_weights`.
"""

from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from neurolens import revisions
from neurolens.checkpoint_files import Found, listed, matched, spans
from neurolens.checkpoint_folders import prints
from neurolens.errors import CheckpointError, MissingCheckpointError
from neurolens.fingerprints import Fingerprint, digest
from neurolens.study import Checkpoints as Table
from neurolens.study import Transformers

if TYPE_CHECKING:
    from neurolens.folder_weights import load
    from neurolens.refilling import refill
    from neurolens.weights import fill, non_finite, read_state

__all__ = [
    "Checkpoint",
    "Series",
    "digest",
    "discover",
    "fill",
    "load",
    "non_finite",
    "read_state",
    "refill",
    "require_unchanged",
]

Dim = Literal["epoch", "step"]

_HOMES = dict.fromkeys(("fill", "non_finite", "read_state"), "neurolens.weights") | {
    "load": "neurolens.folder_weights",
    "refill": "neurolens.refilling",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is not None:
        return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True)
class Checkpoint:
    """One saved state of a run.

    ``path`` is a file, or a folder as save_pretrained writes it. ``epoch`` and ``step`` (optimizer steps since the
    start of training) are None where unknown. ``digest`` is the sha256 of the file's bytes, or over those of a folder's
    weight files by name; empty if they could not be read, and reading the state then says why.
    """

    path: Path
    epoch: int | None
    step: int | None
    digest: str

    def position(self, dim: Dim) -> int:
        """Return the epoch or the step; CheckpointError if it is unknown, never along its own `Series`."""
        value = self.epoch if dim == "epoch" else self.step
        if value is None:
            raise CheckpointError(f"'{self.path}' has no {dim}; name it by a pattern with {{{dim}}}, or list its {dim}")
        return value


@dataclass(frozen=True)
class Series:
    """A run's checkpoints in order of ``dim``, with what was left out.

    ``skipped`` are positions that have a file but were not selected, ``gaps`` those of the declared range that have
    none. ``notes`` say the same for people; ``details`` are what is as it should be.
    """

    dim: Dim
    checkpoints: tuple[Checkpoint, ...]
    skipped: tuple[int, ...] = ()
    gaps: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    details: tuple[str, ...] = ()

    @property
    def positions(self) -> tuple[int, ...]:
        """The epoch or step of each checkpoint, increasing."""
        return tuple(c.position(self.dim) for c in self.checkpoints)


def discover(table: Table, *, source: Transformers | None = None) -> Series:
    """Find a run's checkpoints, order them by number and select from them.

    Files come from ``table.files`` if it names any (published weights among them are fetched at once,
    where ``table.download`` allows it), from ``table.revisions`` of ``source`` if that is set, else from
    the folder, by pattern; a folder that save_pretrained wrote counts as a file. Unfinished files (a leading dot, or
    .tmp and the like at the end) and other folders are passed over, and said so in the notes. The series dimension is
    ``table.series``, else the epoch if every file has a distinct one, else the step.

    Parameters
    ----------
    source
        The study's ``model.transformers``, whose revisions these may be. Of revisions that are not on this machine
        the hub is asked only where ``source.download`` allows it, and nothing is fetched before it is read.

    Raises
    ------
    MissingCheckpointError
        If nothing is there, nothing matches or nothing is selected; it names the nearest files.
    CheckpointError
        If two files have the same position, or epochs and steps contradict each other.
    StudyError
        If the pattern or its fields cannot be used.
    """
    notes: list[str] = []
    details: list[str] = []
    if table.revisions is not None:
        found = revisions.listed(table, source, notes)
    else:
        found = listed(table.files, download=table.download) if table.files else matched(table, notes)
    dim = _series_dim(found, table.series)
    in_names = [_position(f, dim) for f in found]
    found = sorted(found, key=lambda f: _position(f, dim))
    if in_names != sorted(in_names):
        if table.files:
            notes.append(f"files are not listed in order of {dim}; they were ordered by its number")
        else:
            details.append(f"files do not sort by name in order of {dim}; they were ordered by its number")
    found = _agreeing(found, dim, notes)

    positions = [_position(f, dim) for f in found]
    gaps = _gaps(table, positions, dim, notes)
    kept = _select(table, found, dim, notes)
    if table.strip_prefixes:
        notes.append("prefixes removed from tensor names: " + ", ".join(map(repr, table.strip_prefixes)))
    if table.renames:
        notes.append("old tensor names replaced: those of " + ", ".join(table.renames))
    checkpoints = _fingerprinted(kept, notes)
    chosen = {_position(f, dim) for f in kept}
    return Series(dim, checkpoints, tuple(p for p in positions if p not in chosen), gaps, tuple(notes), tuple(details))


def _position(found: Found, dim: Dim) -> int:
    value = found.epoch if dim == "epoch" else found.step
    if value is None:
        raise CheckpointError(
            f"'{found.path.name}' has no {dim}, which is the series dimension; give every file its {dim}, "
            f"or set checkpoints.series to '{'step' if dim == 'epoch' else 'epoch'}'"
        )
    return value


def _series_dim(found: list[Found], wanted: Dim | None) -> Dim:
    """Choose the series dimension and refuse two files at one position, naming both."""
    if wanted is not None:
        _refuse_duplicates(found, wanted)
        return wanted
    epochs, steps = [f.epoch for f in found], [f.step for f in found]
    if None not in epochs and len(set(epochs)) == len(found):
        return "epoch"
    if None not in steps:
        _refuse_duplicates(found, "step")
        return "step"
    if None not in epochs:
        _refuse_duplicates(found, "epoch")
    without = next(f for f in found if f.epoch is None)
    raise CheckpointError(
        f"some files have only an epoch and others only a step ('{without.path.name}' has no epoch); "
        "an epoch is never read as a step: give every file the same one of the two"
    )


def _refuse_duplicates(found: list[Found], dim: Dim) -> None:
    first: dict[int, Found] = {}
    for f in found:
        position = _position(f, dim)
        if position in first:
            other = first[position]
            differing = sorted(n for (n, a), (_, b) in zip(other.fields, f.fields) if a != b)
            if differing:
                mend = f"choose one with checkpoints.fields.{differing[0]}"
            elif dim == "step" and other.epoch != f.epoch:
                mend = (
                    "a step counts from the start of training, not within an epoch: "
                    "write the pattern with another field, such as {iteration}, in its place"
                )
            elif dim == "epoch" and None not in (other.step, f.step):
                mend = "leave checkpoints.series out, or set it to 'step'"
            else:
                mend = "remove one, or list the files in checkpoints.files"
            raise CheckpointError(f"'{other.path}' and '{f.path}' are both {dim} {position}; {mend}")
        first[position] = f


def _agreeing(found: list[Found], dim: Dim, notes: list[str]) -> list[Found]:
    """Check that epochs and steps grow together; drop steps that do not count from the start of training."""
    for a, b in pairwise(found):
        if dim == "step" and a.epoch is not None and b.epoch is not None and b.epoch < a.epoch:
            raise CheckpointError(
                f"'{a.path.name}' has the smaller step but the larger epoch of the two, '{b.path.name}' the contrary; "
                "a step counts from the start of training, not within an epoch: use another field, such as {iteration}"
            )
        if dim == "epoch" and a.step is not None and b.step is not None and b.step <= a.step:
            notes.append(
                f"steps are not recorded: they do not grow with the epoch ('{a.path.name}', '{b.path.name}'), "
                "so they do not count from the start of training"
            )
            return [Found(f.path, f.epoch, None, f.fields) for f in found]
    return found


def _gaps(table: Table, positions: list[int], dim: Dim, notes: list[str]) -> tuple[int, ...]:
    """Compare what was found with the declared range."""
    if table.expect is None:
        return ()
    low, high = table.expect
    declared = range(low, high + 1, table.expect_every)
    gaps = tuple(sorted(set(declared) - set(positions)))
    every = f" by {table.expect_every}" if table.expect_every > 1 else ""
    if gaps:
        notes.append(
            f"{len(gaps)} of the {len(declared)} declared {dim}s ({low}–{high}{every}) have no file: {spans(gaps)}"
        )
    if extra := [p for p in positions if p not in declared]:
        notes.append(f"outside the declared {dim}s ({low}–{high}{every}): {spans(extra)}")
    return gaps


def _select(table: Table, found: list[Found], dim: Dim, notes: list[str]) -> list[Found]:
    """Apply start, end and stride, and say what was kept and skipped."""
    positions = [_position(f, dim) for f in found]
    start = positions[0] if table.start is None else table.start
    end = positions[-1] if table.end is None else table.end
    stride = table.stride or 1
    kept = [f for f, p in zip(found, positions) if start <= p <= end and (p - start) % stride == 0]
    if not kept:
        raise MissingCheckpointError(
            f"start = {start}, end = {end}, stride = {stride} select none of the {len(found)} checkpoints found "
            f"({dim}s {spans(positions)}); widen checkpoints.start, end or stride"
        )
    chosen = {_position(f, dim) for f in kept}
    notes.insert(0, f"kept {len(kept)} of {len(found)} checkpoints: {dim}s {spans(sorted(chosen))}")
    skipped = {
        f"before start = {start}": [p for p in positions if p < start],
        f"after end = {end}": [p for p in positions if p > end],
        f"between strides of {stride}": [p for p in positions if start <= p <= end and p not in chosen],
    }
    notes[1:1] = [f"skipped {len(p)} {why}: {dim}s {spans(p)}" for why, p in skipped.items() if p]
    return kept


def _fingerprinted(kept: list[Found], notes: list[str]) -> tuple[Checkpoint, ...]:
    """Fingerprint the files; one that cannot be read stays in the series, and fails when its state is read."""
    expected = {f.path: digest for f in kept if (digest := revisions.expected(f.path)) is not None}
    read = prints(f.path for f in kept if f.path not in expected)
    checkpoints = []
    for f in kept:
        found = read.get(f.path, Fingerprint(expected.get(f.path, "")))
        if not isinstance(found, Fingerprint) and not revisions.refused(f.path):  # one note names all of those
            notes.append(f"'{f.path.name}' cannot be read: {getattr(found, 'strerror', None) or found}")
        checkpoints.append(Checkpoint(f.path, f.epoch, f.step, found.digest if isinstance(found, Fingerprint) else ""))
    return tuple(checkpoints)


def require_unchanged(path: Path, digest: str) -> None:
    """Raise CheckpointError if a file, or a folder's weights, no longer have this fingerprint."""
    place = path if path.exists() else revisions.here(path)
    found = prints([place])[place]
    if not isinstance(found, Fingerprint) or found.digest != digest:
        raise CheckpointError(f"'{place}' changed since it was discovered; run again to measure the new one")
