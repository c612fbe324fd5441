"""Find flows by name: those of neurolens and those that installed packages add (entry-point group neurolens.flows)."""

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from neurolens import rows
from neurolens.errors import StudyError, nearest
from neurolens.study import Study

GROUP = "neurolens.flows"


def names_of(study: Study, *, train: bool = True) -> tuple[str, ...]:
    """Return the flows that a study asks for, in order; training only if ``train``.

    Raises
    ------
    StudyError
        If it asks for none.
    """
    names = (("train",) if train and study.train is not None else ()) + rows.cubes(study)
    if not names:
        raise StudyError(
            f"study {study.name!r} asks for nothing; add a {'[train] or ' * train}[samples] table to its file"
        )
    return names


def find(names: Iterable[str]) -> dict[str, EntryPoint]:
    """Return the entry points of the named flows, in the order given; nothing is imported.

    Raises
    ------
    StudyError
        If there is no flow of a name.
    """
    known = {entry.name: entry for entry in entry_points(group=GROUP)}
    found = {}
    for name in names:
        if name not in known:
            raise StudyError(f"there is no flow {name!r}; {nearest(name, known)}")
        found[name] = known[name]
    return found


def load(names: Iterable[str]) -> dict[str, Any]:
    """Import the named flows."""
    return {name: entry.load() for name, entry in find(names).items()}
